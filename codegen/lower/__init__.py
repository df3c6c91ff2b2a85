"""Lowering: from what a layer means to the tile programs that compute it.  One mixer a file."""
