"""Emitters: printers of the same tile programs, one a backend."""
