"""Pathfinder (arXiv 1805.08315; 2011.04006, section 2.2): do two discs lie at the ends of one dashed path?

Images are drawn here from that definition, and read row by row: nothing is downloaded.
"""

from __future__ import annotations

import math
import random
from typing import NamedTuple

import torch

from ..errors import ArgumentValueError, fail
from .examples import Examples

EMPTY, STROKE, DISC = 0, 1, 2
DASH, GAP = 3, 1
"""Pixels of a stroke, and between two."""
TURN = 0.35
"""By how much, in radians, a path may turn from one pixel to the next."""

AROUND = -1, 0, 1

Pixel = tuple[int, int]


class Pathfinder(NamedTuple):
    """Images of `side` × `side` pixels, with so many dashed paths that lead nowhere besides."""

    side: int
    distractors: int
    examples: int

    @property
    def length(self) -> int:
        return self.side**2

    @property
    def asked(self) -> int:
        return 1

    def of(self, examples: int) -> Pathfinder:
        return self._replace(examples=examples)

    def draw(self, vocabulary: int, seed: int, device: torch.device | str = "cpu") -> Examples:
        """Tokens 0 for nothing, 1 for a stroke, 2 for a disc; at the last pixel 1 for one path, 0 for two.

        Raises `ArgumentValueError` for images below 12 pixels: paths have no room there.
        """
        if vocabulary < 3:
            fail(ArgumentValueError, "vocabulary", vocabulary, "3 or more, the tokens of this task")
        if self.side < 12:
            fail(ArgumentValueError, "pathfinder.side", self.side, "12 or more")
        source = random.Random(seed)
        labels = [source.randrange(2) for _ in range(self.examples)]
        images = [self._image(source, bool(label)) for label in labels]
        places = torch.full((self.examples, 1), self.length - 1, device=device)
        ids = torch.tensor(images, dtype=torch.int32, device=device)
        return Examples(ids, places, torch.tensor(labels, device=device).unsqueeze(1))

    def _image(self, source: random.Random, connected: bool) -> list[int]:
        while (paths := self._paths(source, 2 + self.distractors)) is None:
            pass
        first, second = paths[:2]
        ends = (first[0], first[-1]) if connected else (first[0], second[-1])
        image = [EMPTY] * self.length
        for path in paths:
            for number, (y, x) in enumerate(path):
                if number % (DASH + GAP) < DASH:
                    image[y * self.side + x] = STROKE
        for y, x in ends:
            for dy, dx in ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0)):
                image[(y + dy) * self.side + x + dx] = DISC
        return image

    def _paths(self, source: random.Random, count: int) -> list[list[Pixel]] | None:
        """So many that keep a pixel away from each other, the first two longer; None if one finds no room."""
        taken: set[Pixel] = set()
        paths = []
        for number in range(count):
            length = self.side * 3 // 4 if number < 2 else self.side // 3
            for _ in range(50):
                path = self._path(source, length)
                if path is not None and taken.isdisjoint(path):
                    break
            else:
                return None
            taken |= {
                (y + dy, x + dx) for y, x in path for dy in (-2, -1, 0, 1, 2) for dx in (-2, -1, 0, 1, 2)
            }
            paths.append(path)
        return paths

    def _path(self, source: random.Random, length: int) -> list[Pixel] | None:
        """A smooth walk of `length` different pixels; None if it leaves the image, or meets itself."""
        y, x = (source.uniform(2, self.side - 3) for _ in range(2))
        direction = source.uniform(0, 2 * math.pi)
        found: list[Pixel] = []
        while len(found) < length:
            pixel = round(y), round(x)
            if not all(1 <= at <= self.side - 2 for at in pixel):
                return None
            if not found or pixel != found[-1]:
                if any(max(abs(pixel[0] - b), abs(pixel[1] - a)) < 2 for b, a in found[:-2]):
                    return None
                found.append(pixel)
            direction += source.uniform(-TURN, TURN)
            y, x = y + math.sin(direction), x + math.cos(direction)
        return found
