"""What pages of the site are generated from: a function for each name that a page may ask for."""

from __future__ import annotations

from collections.abc import Callable

GENERATED: dict[str, Callable[[], str]] = {}
"""By the names in `<!-- generated: NAME -->`."""


def pictures() -> dict[str, bytes]:
    """Pictures that are drawn for the site, by their paths in it."""
    return {}
