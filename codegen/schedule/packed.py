"""Tiles of the kernel that lays out packed sequences for all layers (`based_ops.support.triton`)."""

PLAN = {"SEGMENTS": 32, "SEQUENCES": 256, "num_warps": 4}
"""Segments that look for themselves at once, among so many sequences at a time."""
