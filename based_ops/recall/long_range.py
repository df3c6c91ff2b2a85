"""Tasks of long range, written from their definitions: what models of states are compared on.

Each is a sequence of tokens and what to say at some of its places.  `Pathfinder` is in a module of its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ArgumentValueError, fail
from ..extras import require
from .examples import Examples

SYMBOLS, BLANK, MARK = 8, 0, 9
"""Of both copying tasks: symbols 1 … 8, a token between them, and the one that asks."""


class Delay(NamedTuple):
    """At every token from the lag on: which came `lag` tokens before (arXiv 2206.12037, section 4.2).

    There a number is to be given back, here one of 16 tokens.
    """

    length: int
    lag: int
    examples: int

    @property
    def asked(self) -> int:
        return self.length - self.lag

    def of(self, examples: int) -> Delay:
        return self._replace(examples=examples)

    def draw(self, vocabulary: int, seed: int, device: torch.device | str = "cpu") -> Examples:
        """Tokens 0 … 15; raises `ArgumentValueError` for a lag that leaves none to ask for."""
        _room(vocabulary, 16)
        if not 0 <= self.lag < self.length:
            fail(ArgumentValueError, "delay.lag", self.lag, f"from 0 to below the length, {self.length}")
        ids = _integers(16, (self.examples, self.length), seed, device)
        places = torch.arange(self.lag, self.length, device=device).repeat(self.examples, 1)
        return Examples(ids.int(), places, ids[:, : self.asked].contiguous())


class Copying(NamedTuple):
    """The first `items` symbols, said again at the end (arXiv 1511.06464, section 5.1).

    If `selective`, they lie anywhere before the end, and a model has to know them from what lies between
    (arXiv 2312.00752, section 4.1.1).
    """

    length: int
    items: int
    examples: int
    selective: bool = False

    @property
    def asked(self) -> int:
        return self.items

    def of(self, examples: int) -> Copying:
        return self._replace(examples=examples)

    def draw(self, vocabulary: int, seed: int, device: torch.device | str = "cpu") -> Examples:
        """Symbols 1 … 8, blanks 0; the mark 9 asks for the first, and blanks, or marks, for those after it.

        Raises `ArgumentValueError` where the symbols have no room twice.
        """
        _room(vocabulary, MARK + 1)
        if not 1 <= self.items <= self.length // 2:
            fail(ArgumentValueError, "copying.items", self.items, f"from 1 to {self.length // 2}")
        generator = torch.Generator(device).manual_seed(seed)
        shape = self.examples, self.items
        symbols = torch.randint(1, SYMBOLS + 1, shape, generator=generator, device=device)
        before = self.length - self.items
        ids = torch.full((self.examples, self.length), BLANK, dtype=torch.int64, device=device)
        if self.selective:
            chance = torch.rand(self.examples, before, generator=generator, device=device)
            where = chance.topk(self.items).indices.sort().values
            ids[:, before:] = MARK
        else:
            where = torch.arange(self.items, device=device).expand(shape)
            ids[:, before] = MARK
        ids.scatter_(1, where, symbols)
        places = torch.arange(before, self.length, device=device).repeat(self.examples, 1)
        return Examples(ids.int(), places, symbols)


OPERATIONS: dict[str, Callable[[list[int]], int]] = {
    "MIN": min,
    "MAX": max,
    "MED": lambda x: int(median(x)),
    "SM": lambda x: sum(x) % 10,
}
"""What a list becomes: the median is rounded down, the sum is modulo 10."""
TOKENS = (*map(str, range(10)), *(f"[{name}" for name in OPERATIONS), "]", " ")
"""Of ListOps, each with its number; the last one lies before an expression."""


class ListOps(NamedTuple):
    """The value of nested lists of digits (arXiv 1804.06028), of more than half the length (as arXiv
    2011.04006 has it, whose expressions have up to 2000 tokens)."""

    length: int
    examples: int
    deepest: int = 10
    widest: int = 10

    @property
    def asked(self) -> int:
        return 1

    def of(self, examples: int) -> ListOps:
        return self._replace(examples=examples)

    def draw(self, vocabulary: int, seed: int, device: torch.device | str = "cpu") -> Examples:
        """`TOKENS` by their numbers; the last one asks for the value, 0 … 9."""
        _room(vocabulary, len(TOKENS))
        if self.length < 8:
            fail(ArgumentValueError, "listops.length", self.length, "8 or more")
        source = random.Random(seed)
        rows, values = [], []
        for _ in range(self.examples):
            tokens, value = self._expression(source)
            rows.append([len(TOKENS) - 1] * (self.length - len(tokens)) + tokens)
            values.append([value])
        places = torch.full((self.examples, 1), self.length - 1, device=device)
        ids = torch.tensor(rows, dtype=torch.int32, device=device)
        return Examples(ids, places, torch.tensor(values, device=device))

    def _expression(self, source: random.Random) -> tuple[list[int], int]:
        while True:
            tokens, value = self._list(source, self.length, 1)
            if 2 * len(tokens) > self.length:
                return tokens, value

    def _list(self, source: random.Random, room: int, depth: int) -> tuple[list[int], int]:
        """An operation of two or more digits and lists, in no more tokens than `room`, 4 or more."""
        number = source.randrange(len(OPERATIONS))
        tokens, values = [10 + number], []
        for left in range(source.randint(2, min(self.widest, room - 2)), 0, -1):
            free = room - len(tokens) - left  # but for a digit for each that follows, and the bracket
            if free >= 4 and depth < self.deepest and source.random() < 0.35:
                inner, value = self._list(source, free, depth + 1)
                tokens += inner
            else:
                value = source.randrange(10)
                tokens.append(value)
            values.append(value)
        operation = list(OPERATIONS.values())[number]
        return [*tokens, len(TOKENS) - 2], operation(values)


class Digits(NamedTuple):
    """Handwritten digits of 8 × 8 pixels, pixel by pixel, from scikit-learn; which digit, at the last.

    All models see the same 1437 in training, and the other 360 are for tests.
    """

    examples: int
    test: bool = False
    length: int = 64

    @property
    def asked(self) -> int:
        return 1

    def of(self, examples: int) -> Digits:
        return self._replace(examples=examples)

    def draw(self, vocabulary: int, seed: int, device: torch.device | str = "cpu") -> Examples:
        """Brightness 0 … 16, row by row; in another order for each seed."""
        _room(vocabulary, 17)
        pixels, digits = _digits(self.test)
        if not 1 <= self.examples <= len(digits):
            fail(ArgumentValueError, "digits.examples", self.examples, f"from 1 to {len(digits)}")
        order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))[: self.examples]
        places = torch.full((self.examples, 1), 63, device=device)
        return Examples(pixels[order].to(device), places, digits[order].unsqueeze(1).to(device))


@cache
def _digits(test: bool) -> tuple[Tensor, Tensor]:
    require("harness", "the digits of scikit-learn")
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    chosen = order[1437:] if test else order[:1437]
    pixels = torch.from_numpy(found.data).to(torch.int32)[chosen]
    return pixels, torch.from_numpy(found.target).to(torch.int64)[chosen]


def _room(vocabulary: int, least: int) -> None:
    if vocabulary < least:
        fail(ArgumentValueError, "vocabulary", vocabulary, f"{least} or more, the tokens of this task")


def _integers(below: int, shape: tuple[int, int], seed: int, device: torch.device | str) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randint(0, below, shape, generator=generator, device=device)
