"""Multi-query associative recall: examples drawn on the device, with Zoology's distribution.

Source: Zoology (arXiv 2312.04927), section 4 and appendix E.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ArgumentValueError, fail
from .examples import Examples

POWER = 0.01
"""A slot i, from 1, is drawn with a probability that is proportional to i^(POWER - 1)."""
ROWS = 4096
"""Examples that are drawn at once: each takes a number for every key there is."""


class Segment(NamedTuple):
    """Examples of one length."""

    length: int
    pairs: int
    examples: int
    quiet: bool = False
    """Whether what is neither key nor value is the token 0 instead of anything."""

    @property
    def asked(self) -> int:
        """For the value of each pair, once."""
        return self.pairs

    def of(self, examples: int) -> Segment:
        return self._replace(examples=examples)

    def draw(self, vocabulary: int, seed: int, device: torch.device | str = "cpu") -> Examples:
        """See `based_ops.recall.mqar.draw`."""
        return draw(self, vocabulary, seed, device)


def draw(segment: Segment, vocabulary: int, seed: int, device: torch.device | str = "cpu") -> Examples:
    """The examples of a segment; equal arguments give equal ones on a device.

    Keys are 1 … vocabulary/2 - 1 and values the upper half, each drawn without replacement.  Positions
    0 … 2K-1 are k₁ v₁ k₂ v₂ …; behind them lie (T - 2K)/2 slots of two tokens, and in the first token of a
    slot of its own, drawn without replacement by `POWER`, each key stands again.  All else is uniform over
    the vocabulary, or 0 where that is `quiet`.  Raises `ArgumentValueError` unless T is even, at least 4K,
    and there are K keys.
    """
    length, pairs, examples, quiet = segment
    half = vocabulary // 2
    if length % 2 or length < 4 * pairs:
        what = f"even and at least four times the pairs, {4 * pairs}"
        fail(ArgumentValueError, "segment.length", length, what)
    if vocabulary % 2 or not 1 <= pairs < half:
        what = f"from 1 to {half - 1}, of a vocabulary of {vocabulary}"
        fail(ArgumentValueError, "segment.pairs", pairs, what)
    if examples < 1:
        fail(ArgumentValueError, "segment.examples", examples, "1 or more")
    generator = torch.Generator(device).manual_seed(seed)
    alike = torch.ones(half, device=device)
    slots = torch.arange(1, (length - 2 * pairs) // 2 + 1, device=device) ** (POWER - 1)
    parts = []
    for first in range(0, examples, ROWS):
        count = min(ROWS, examples - first)
        keys = 1 + _drawn(alike[1:], count, pairs, generator)
        values = half + _drawn(alike, count, pairs, generator)
        places = 2 * pairs + 2 * _drawn(slots, count, pairs, generator)
        fillers = 1 if quiet else vocabulary
        ids = torch.randint(0, fillers, (count, length), generator=generator, device=device)
        ids[:, 0 : 2 * pairs : 2] = keys
        ids[:, 1 : 2 * pairs : 2] = values
        parts.append(Examples(ids.scatter_(1, places, keys).int(), places, values))
    return Examples(*(torch.cat(x) for x in zip(*parts, strict=True)))


def _drawn(weights: Tensor, rows: int, count: int, generator: torch.Generator) -> Tensor:
    """In each row `count` different places of `weights`, drawn one after the other in proportion to these.

    Exponential clocks with these rates ring in that order (Efraimidis and Spirakis, 2006).
    """
    clocks = torch.empty(rows, len(weights), device=weights.device).exponential_(generator=generator)
    return (clocks / weights).topk(count, largest=False).indices
