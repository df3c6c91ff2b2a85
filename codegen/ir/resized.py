"""Sizes that a schedule has made equal, and so tiles that fit where another constant names the side."""

from __future__ import annotations

from dataclasses import dataclass

from .nodes import Dim, Expr


@dataclass(frozen=True)
class Resized(Expr):
    """A tile whose sides go by other constants of the same sizes."""

    x: Expr
    shape: tuple[Dim, ...]
