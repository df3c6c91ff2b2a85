"""States of sums of features, S and z: as tiles, and in the tensors that keep them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ..ir.build import Builder
from ..ir.nodes import ACC, OPERAND, Cast, Expr, Load, Unary, Var, column
from ..ir.program import Tensor

B, H = Var("b"), Var("h")
LOG2_E = 1.0 / math.log(2.0)
"""What makes a natural logarithm one to the base 2."""


def left(log: Expr) -> Expr:
    """What a memory that fades leaves, given the logarithm, to the base 2."""
    return Unary("exp2", log)


@dataclass(frozen=True)
class Kept:
    """Tensors that keep states: S ``[B, H, ..., F, V]``, and z ``[B, H, ..., F]`` if the layer normalises.

    `first` is the first index of a program's own: of the batch, or of one of several sequences.
    """

    tensors: tuple[Tensor, ...]
    first: Var = B

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.tensors)

    def of_sequences(self) -> Kept:
        """The same with a state for each of several sequences, of which there are N."""
        tensors = (replace(tensor, dims=("N", *tensor.dims[1:])) for tensor in self.tensors)
        return Kept(tuple(tensors), Var("sequence"))


Sources = Mapping[str, tuple[Kept, tuple[Expr, ...]]]
"""States to start from, by the flag under which there is one: tensors, and the indices in them."""


@dataclass(frozen=True)
class Block:
    """A block of features: their indices, and the columns that each is made of."""

    f: Var
    selection: tuple[Var, ...]


@dataclass(frozen=True)
class Part:
    """S or z of a block of features, as a tile that grows."""

    b: Builder
    tile: Var
    place: tuple[Expr, ...]
    """Its last indices in a tensor: of features, and of values if it is S."""

    def load(
        self, tensor: Tensor, index: tuple[Expr, ...], suffix: str, dtype: str = ACC, first: Var = B
    ) -> Var:
        """What a tensor keeps of it; the tile's name ends in `suffix`."""
        kept = Load(tensor.name, (first, H, *index, *self.place), dtype)
        return self.b.let(f"{self.tile.name}{suffix}", kept)

    def store(self, tensor: Tensor, index: tuple[Expr, ...] = (), first: Var = B) -> None:
        value = self.value()
        kept = value if tensor.dtype == ACC else Cast(value, tensor.dtype)
        self.b.store(tensor.name, (first, H, *index, *self.place), kept)

    def set(self, loaded: Var) -> None:
        self.b.set(self.tile, loaded)

    def value(self) -> Var:
        return self.tile

    def operand(self, weight: Var | None = None) -> Var:
        """As an operand of a product; each feature times its `weight`."""
        value = self.tile * column(weight) if weight else self.tile
        return self.b.let(f"{self.tile.name}_operand", Cast(value, OPERAND))

    def rest(self) -> Var:
        """What the operand lacks of it, as another one: products with both have nearly twice its digits."""
        rounded = Cast(Cast(self.tile, OPERAND), ACC)
        return self.b.let(f"{self.tile.name}_rest", Cast(self.tile - rounded, OPERAND))


@dataclass(frozen=True)
class State:
    """S and z of a block of features; no z if the layer does not normalise."""

    parts: tuple[Part, ...]

    @property
    def sums(self) -> Var:
        return self.parts[0].tile

    def operand(self, weight: Var | None = None) -> Var:
        """S as an operand of a product; each feature times its `weight`."""
        return self.parts[0].operand(weight)

    def rest(self) -> Var:
        """What the operand lacks of S."""
        return self.parts[0].rest()

    def normalizer(self) -> Var:
        """z, of a layer that normalises."""
        return self.parts[1].tile

    def numbers(self) -> Var:
        """z as one number a feature."""
        return self.parts[1].value()

    def restore(self, kept: Kept, suffix: str, *index: Expr) -> None:
        """Go on from a state that was kept."""
        for part, tensor in zip(self.parts, kept, strict=True):
            part.set(part.load(tensor, index, suffix, first=kept.first))

    def store(self, kept: Kept, *index: Expr) -> None:
        for part, tensor in zip(self.parts, kept, strict=True):
            part.store(tensor, index, kept.first)

    def fade(self, log: Var | None) -> None:
        """Leave exp(log) of it, where it fades."""
        if log:
            for part in self.parts:
                part.b.set(part.tile, part.tile * left(log))

    def add(self, other: State, log: Var | None) -> None:
        """Add what is later in the sequence; before that, fade by what lies in between."""
        self.fade(log)
        for part, added in zip(self.parts, other.parts, strict=True):
            part.b.add(part.tile, added.tile)

    def pass_by(self, sums: Kept, before: Kept, segment: Expr, log: Var | None) -> None:
        """Keep the state before a segment; then add the sums of that segment, as `add` does."""
        for part, adds, tensor in zip(self.parts, sums, before, strict=True):
            added = part.load(adds, (segment,), "_added")
            part.store(tensor, (segment,))
            if log:
                part.b.set(part.tile, part.tile * left(log))
            part.b.add(part.tile, added)


@dataclass(frozen=True)
class Stored:
    """A state that is only read: each part is loaded where it is needed."""

    b: Builder
    kept: Kept
    place: tuple[Expr, ...]
    """Its last indices in S: of features, and of values."""
    index: tuple[Expr, ...]

    def operand(self, weight: Var | None = None) -> Var:
        assert weight is None
        return Part(self.b, Var("S"), self.place).load(self.kept.tensors[0], self.index, "", OPERAND)

    def numbers(self) -> Var:
        return self.normalizer()

    def normalizer(self) -> Var:
        return Part(self.b, Var("z"), self.place[:1]).load(self.kept.tensors[1], self.index, "")
