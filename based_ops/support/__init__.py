"""What generated modules import: small host helpers and the tile operations of the torch backend."""
