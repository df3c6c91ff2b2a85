"""Word problems of small groups: which element is the product of all tokens so far.

A state that only sums and fades forgets in which order its tokens came; to answer here it has to be turned by
each of them.  The parity of bits is the group of two elements, the permutations of three things that of six,
those of five things, S5, are complete for NC1: no fixed number of layers that compute all tokens at once
solves it at every length, unless states turn (arXiv 2404.08819, section 3; 2411.12537, section 4).
"""

from __future__ import annotations

from functools import cache
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ArgumentValueError, fail
from .examples import Examples

GROUPS = {"parity": 2, "s3": 3, "s5": 5}
"""Permutations of how many things; those of two are the parities of bits."""


class Words(NamedTuple):
    """Words of one length over the elements of a group."""

    length: int
    group: str
    examples: int

    @property
    def asked(self) -> int:
        """At every token, for the product of all up to it."""
        return self.length

    def of(self, examples: int) -> Words:
        return self._replace(examples=examples)

    def draw(self, vocabulary: int, seed: int, device: torch.device | str = "cpu") -> Examples:
        """Elements drawn uniformly, each a token; the target at each is the product of all up to it.

        Raises `ArgumentValueError` for a group that there is not, and for a vocabulary that it exceeds.
        """
        if self.group not in GROUPS:
            fail(ArgumentValueError, "words.group", repr(self.group), f"one of {', '.join(GROUPS)}")
        if self.length < 1 or self.examples < 1:
            fail(ArgumentValueError, "words", str(tuple(self)), "of 1 or more examples of 1 or more tokens")
        table = products(self.group).to(device)
        if vocabulary < len(table):
            fail(ArgumentValueError, "vocabulary", vocabulary, f"{len(table)} or more, of {self.group}")
        generator = torch.Generator(device).manual_seed(seed)
        shape = self.examples, self.length
        ids = torch.randint(0, len(table), shape, generator=generator, device=device)
        places = torch.arange(self.length, device=device).expand(shape)
        return Examples(ids.int(), places.contiguous(), running_products(ids, table))


@cache
def products(group: str) -> Tensor:
    """int64 [n,n]: the number of the product of two elements, the first of which acts first.

    The identity is 0; elements are numbered as their permutations are sorted.
    """
    elements = list(permutations(range(GROUPS[group])))
    numbers = {element: number for number, element in enumerate(elements)}
    return torch.tensor([[numbers[tuple(then[x] for x in first)] for then in elements] for first in elements])


def running_products(ids: Tensor, table: Tensor) -> Tensor:
    """int64 [N,T]: the product of all elements up to each, in as many rounds as T has binary digits."""
    found, reach = ids.long(), 1
    while reach < ids.shape[1]:
        joined = table[found[:, :-reach], found[:, reach:]]
        found = torch.cat([found[:, :reach], joined], 1)
        reach *= 2
    return found
