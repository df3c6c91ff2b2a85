"""Durations as people say them."""

from __future__ import annotations


def spoken(seconds: float) -> str:
    """A duration for people: "20 s", "2 min 10 s"; to five seconds where it is longer than ten."""
    whole = round(seconds) if seconds < 10 else 5 * round(seconds / 5)
    minutes, rest = divmod(whole, 60)
    if not minutes:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"
