"""Dtypes by name, and the roles that stand for one until a call fixes it."""

from __future__ import annotations

DTYPES = ("bfloat16", "float16", "float32")
"""Of inputs; the torch backend takes float64 too."""

IO, OPERAND, ACC, STATE, WIDE = "io", "operand", "acc", "state", "wide"
"""Roles: of what the user passes, of what the matrix units read, of sums, of the stored state, and of sums of
which only differences matter."""
