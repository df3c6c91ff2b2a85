"""Tiles of the kernels that lay out packed sequences for all layers (`based_ops.support.triton`)."""

PLAN = {"SEGMENTS": 32, "SEQUENCES": 256, "num_warps": 4}
"""Segments that look for themselves at once, among so many sequences at a time."""

CLEAR = {"TOKENS": 128, "SEQUENCES": 128, "COLUMNS": 64, "num_warps": 4}
"""Tokens that look for themselves at once, among so many sequences at a time, and what is cleared of each."""
