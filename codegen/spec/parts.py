"""Parts of which features are made: what a query and a key go through, token by token, before they weigh.

A list of parts is a pipeline.  Each says how wide its result is, whether that can be negative, and what
parameters it has.  `emit/features.py` prints it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

from .fields import Choice, Expression, Flag, Integer, Number, Several, Tagged, spec_field

WIDEST = 256
"""The most features that a part may give."""


@dataclass(frozen=True)
class Parameter:
    """A tensor that a part reads, [H, ...] of every head or, if it is not `learned`, of all."""

    name: str
    shape: tuple[int, ...]
    """Without heads."""
    start: str
    """How it begins: zeros, ones, identity, normal (of variance 1 / first extent) or orthogonal."""
    seed: int | None = None
    """Of a tensor that is drawn once and for all; None where it is learned."""

    @property
    def learned(self) -> bool:
        return self.seed is None


class Part(Protocol):
    """What every part answers."""

    kind: ClassVar[str]

    def width(self, before: int) -> int:
        """Features after it."""

    def nonnegative(self, before: bool) -> bool:
        """Whether none of them is ever below 0, given whether none is before it."""

    def parameters(self, before: int) -> tuple[Parameter, ...]:
        """What it reads besides the features."""

    def problem(self, before: int) -> str | None:
        """Why features of that width do not suit it."""


class _Plain:
    """A part that keeps the width and reads nothing."""

    def width(self, before: int) -> int:
        return before

    def nonnegative(self, before: bool) -> bool:
        return before

    def parameters(self, before: int) -> tuple[Parameter, ...]:
        return ()

    def problem(self, before: int) -> str | None:
        return None


@dataclass(frozen=True)
class Projection(_Plain):
    """W x + b with a learned matrix for each head."""

    kind: ClassVar[str] = "projection"
    features: int = spec_field(Integer(8, WIDEST), "Width after the projection.")
    bias: bool = spec_field(Flag(), "Whether b is added.", False)
    start: str = spec_field(Choice(("identity", "normal")), "What W is before training.", "normal")

    def width(self, before: int) -> int:
        return self.features

    def nonnegative(self, before: bool) -> bool:
        return False

    def parameters(self, before: int) -> tuple[Parameter, ...]:
        weight = Parameter("weight", (before, self.features), self.start)
        return (weight, Parameter("bias", (self.features,), "zeros")) if self.bias else (weight,)

    def problem(self, before: int) -> str | None:
        if self.start == "identity" and before != self.features:
            return f"an identity needs as many features after it as before it, {before}; or `start: normal`"
        return None


@dataclass(frozen=True)
class RandomProjection(_Plain):
    """Ω x with random rows, orthogonal in blocks, of the lengths of Gaussian vectors; the same in all heads.

    With `half_squares` |x|²/2 is subtracted: then exp gives positive features whose mean product is exp(q·k)
    (FAVOR+, Performer, arXiv 2009.14794, equation 5 and lemma 1).
    """

    kind: ClassVar[str] = "random_projection"
    features: int = spec_field(Integer(8, WIDEST), "Width after the projection.")
    seed: int = spec_field(Integer(0, 2**31 - 1), "From which Ω is drawn.", 0)
    half_squares: bool = spec_field(Flag(), "Whether |x|²/2 is subtracted.", False)

    def width(self, before: int) -> int:
        return self.features

    def nonnegative(self, before: bool) -> bool:
        return False

    def parameters(self, before: int) -> tuple[Parameter, ...]:
        return (Parameter("random", (before, self.features), "orthogonal", self.seed),)


@dataclass(frozen=True)
class Affine(_Plain):
    """γ x + β, component by component, learned for each head."""

    kind: ClassVar[str] = "affine"
    bias: bool = spec_field(Flag(), "Whether β is added.", True)

    def nonnegative(self, before: bool) -> bool:
        return False

    def parameters(self, before: int) -> tuple[Parameter, ...]:
        gain = Parameter("gain", (before,), "ones")
        return (gain, Parameter("shift", (before,), "zeros")) if self.bias else (gain,)


@dataclass(frozen=True)
class Mapped(_Plain):
    """φ(x) of every component."""

    kind: ClassVar[str] = "elementwise"
    expression: str = spec_field(Expression(), "The map φ as an expression in x, such as relu(x).")

    def nonnegative(self, before: bool) -> bool:
        from .feature_map import parse, to_tree
        from .signs import objection  # sympy takes a third of a second
        from .tree import value_at

        parsed = parse(self.expression)
        found = objection(parsed)
        return (found is None or not found.grave) and value_at(to_tree(parsed), 1.0) >= 0.0


@dataclass(frozen=True)
class Softmax(_Plain):
    """exp(x) over its sum, over all features or in groups of neighbours."""

    kind: ClassVar[str] = "softmax"
    groups: int = spec_field(Integer(1, WIDEST), "In how many groups, each with a sum of 1.", 1)

    def nonnegative(self, before: bool) -> bool:
        return True

    def problem(self, before: int) -> str | None:
        return f"{self.groups} groups do not divide {before} features" if before % self.groups else None


@dataclass(frozen=True)
class L2Norm(_Plain):
    """x / max(|x|, eps)."""

    kind: ClassVar[str] = "l2_norm"
    eps: float = spec_field(Number(0.0, 1.0, above=True), "The least length that is divided by.", 1e-6)


@dataclass(frozen=True)
class LayerNorm(_Plain):
    """(x − mean) / √(variance + eps) over the features of a token."""

    kind: ClassVar[str] = "layer_norm"
    eps: float = spec_field(Number(0.0, 1.0), "Added to the variance.", 1e-5)

    def nonnegative(self, before: bool) -> bool:
        return False


@dataclass(frozen=True)
class Signs(_Plain):
    """[x, −x]: twice as many features."""

    kind: ClassVar[str] = "signs"

    def width(self, before: int) -> int:
        return 2 * before

    def nonnegative(self, before: bool) -> bool:
        return False


@dataclass(frozen=True)
class Products(_Plain):
    """Every product of `order` components once, times the root of how often it occurs in (Σ x)^order.

    The product of two such lists of features is (q·k)^order.  `feature_map: {kind: power}` computes the same
    without features in memory; this is for what other parts follow.
    """

    kind: ClassVar[str] = "products"
    order: int = spec_field(Integer(2, 3), "How many components are multiplied.")

    def width(self, before: int) -> int:
        return math.comb(before + self.order - 1, self.order)


@dataclass(frozen=True)
class RolledProducts(_Plain):
    """Products x_i x_{i+r} of components r = 1 … `rolls` apart, in a circle (DPFP, arXiv 2102.11174)."""

    kind: ClassVar[str] = "rolled_products"
    rolls: int = spec_field(Integer(1, 8), "The largest distance.", 1)

    def width(self, before: int) -> int:
        return self.rolls * before

    def problem(self, before: int) -> str | None:
        return f"{before} features have no two that lie {self.rolls} apart" if before <= self.rolls else None


@dataclass(frozen=True)
class Positions(_Plain):
    """[x cos θ, x sin θ] with θ = π t / (2 `period`) at token t: q·k times cos(π (i − j) / (2 `period`)).

    cosFormer's weights (arXiv 2202.08791, equation 10) with a fixed length, so that they can be streamed.
    They are negative between tokens that are more than `period` apart.
    """

    kind: ClassVar[str] = "positions"
    period: int = spec_field(Integer(1, 2**24), "The distance at which weights have fallen to 0.")

    def width(self, before: int) -> int:
        return 2 * before

    def nonnegative(self, before: bool) -> bool:
        return False


_SINGLE: dict[str, type[_Plain]] = {
    cls.kind: cls
    for cls in (
        Projection,
        RandomProjection,
        Affine,
        Mapped,
        Softmax,
        L2Norm,
        LayerNorm,
        Signs,
        Products,
        RolledProducts,
        Positions,
    )
}


@dataclass(frozen=True)
class Branches(_Plain):
    """Several pipelines of the same features, side by side, added or multiplied."""

    kind: ClassVar[str] = "branches"
    join: str = spec_field(Choice(("concatenate", "add", "multiply")), "What becomes of their results.")
    of: tuple[tuple[Part, ...], ...] = spec_field(
        Several(Several(Tagged("kind", _SINGLE, "part_of_a_branch"), 0, 8), 2, 8),
        "The pipelines; an empty one is x itself.",
    )

    def _widths(self, before: int) -> list[int]:
        return [width_after(parts, before) for parts in self.of]

    def width(self, before: int) -> int:
        widths = self._widths(before)
        return sum(widths) if self.join == "concatenate" else widths[0]

    def nonnegative(self, before: bool) -> bool:
        return all(is_nonnegative(parts, before) for parts in self.of)

    def parameters(self, before: int) -> tuple[Parameter, ...]:
        return tuple(x for parts in self.of for x in parameters_of(parts, before))

    def problem(self, before: int) -> str | None:
        if found := next((x for parts in self.of for _, x in problems(parts, before)), None):
            return found
        widths = self._widths(before)
        if self.join != "concatenate" and len(set(widths)) > 1:
            return f"branches of {' and '.join(map(str, widths))} features cannot be joined so"
        if any(isinstance(part, Positions) for parts in self.of for part in parts):
            return "positions are the last part, outside of branches"
        return None


PARTS: dict[str, type[_Plain]] = {**_SINGLE, Branches.kind: Branches}
PIPELINE = Several(Tagged("kind", PARTS, "part"), 1, 16)
"""What a spec's field holds that is a pipeline."""


def width_after(parts: Iterable[Part], width: int) -> int:
    """Features after a pipeline."""
    for part in parts:
        width = part.width(width)
    return width


def is_nonnegative(parts: Iterable[Part], before: bool = False) -> bool:
    """Whether no feature after a pipeline is ever below 0."""
    for part in parts:
        before = part.nonnegative(before)
    return before


def parameters_of(parts: Iterable[Part], width: int) -> Iterator[Parameter]:
    """What the parts of a pipeline read, in their order; names repeat."""
    for part in parts:
        yield from part.parameters(width)
        width = part.width(width)


def problems(parts: Iterable[Part], width: int) -> Iterator[tuple[int, str]]:
    """The part that does not suit those before it, and why; and the first that grows too wide."""
    for i, part in enumerate(parts := tuple(parts)):
        if found := part.problem(width):
            yield i, found
            return
        width = part.width(width)
        if width > WIDEST:
            yield i, f"gives {width} features, at most {WIDEST} are allowed"
            return
        if isinstance(part, Positions) and i + 1 < len(parts):
            yield i, "positions are the last part"
            return
