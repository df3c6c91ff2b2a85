"""What the programs of a short convolution have in common: parameters, and steps of a tile or a token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..dtypes import ACC, IO
from ..ir.build import Builder
from ..ir.nodes import Dim, Expr, Full, Load, Span, Var, cdiv, row, wrap
from ..ir.program import Axis, Tensor
from .expression import Function
from .short_conv_tokens import DENSE, Tokens

if TYPE_CHECKING:
    from ..mixers.short_conv import ShortConv

CHANNELS = Axis("channel_block", cdiv("D", "CHANNELS"))
TOKENS = ("B", "T", "D")
SIZES = ("B", "T", "D")
TILE, VECTOR = ("CHUNK", "CHANNELS"), ("CHANNELS",)
"""The shapes of what is computed at once: for a tile of tokens, or for one."""

Index = tuple[Expr, ...]


class Layer:
    """One layer as its programs see it."""

    def __init__(self, spec: ShortConv, tokens: Tokens = DENSE) -> None:
        self.spec, self.width, self.tokens = spec, spec.width, tokens
        self.activation = None if spec.activation is None else Function(spec.activation)
        self.flags = tuple(flag for flag, there in (("BIAS", spec.bias), ("GATED", spec.gate)) if there)

    # Parameters

    def inputs(self, before: bool = True) -> tuple[Tensor, ...]:
        """x, the taps, and what else enters the argument of ψ."""
        x, weight = (
            Tensor("x", TOKENS, IO, strided=True),
            Tensor("weight", ("D", self.width), IO, strided=True),
        )
        bias = (Tensor("bias", ("D",), IO, optional="BIAS"),) if self.spec.bias else ()
        return x, weight, *bias, *((self.earlier("before"),) if before else ())

    def earlier(self, name: str, optional: str | None = "INITIAL") -> Tensor:
        """The inputs before the first, or their gradients."""
        return Tensor(name, (self.tokens.states, self.width - 1, "D"), IO, optional=optional)

    def gates(self, *names: str) -> tuple[Tensor, ...]:
        gated = (Tensor(name, TOKENS, IO, name == "gate", optional="GATED") for name in names)
        return tuple(gated) if self.spec.gate else ()

    def sums(self) -> tuple[Tensor, ...]:
        """What each segment adds to the gradients of the taps and of the bias."""
        taps = Tensor("tap_sums", ("B", "segments", self.width, "D"), ACC)
        bias = Tensor("bias_sums", ("B", "segments", "D"), ACC, optional="BIAS")
        return (taps, bias) if self.spec.bias else (taps,)

    # Pieces

    def channels(self, b: Builder) -> Var:
        """The index tile of a program's channels, and the taps of each."""
        d = b.let("d", Span(Var("channel_block") * "CHANNELS", "CHANNELS"))
        for j in range(self.width):
            b.let(f"w{j}", Load("weight", (d, wrap(j)), ACC))
        return d

    def offset(self, b: Builder, d: Var) -> Var | None:
        """The bias, if there may be any: 0 where there is none."""
        if not self.spec.bias:
            return None
        offset = b.let("offset", Full(VECTOR, 0.0))
        with b.when("BIAS"):
            b.set(offset, Load("bias", (d,), ACC))
        return offset

    def argument(self, b: Builder, seen: Sequence[Expr], offset: Var | None, shape: tuple[Dim, ...]) -> Var:
        """The argument of ψ, given what each tap sees."""
        p = b.let("p", Full(shape, 0.0))
        if offset:
            b.add(p, _along(offset, shape))
        for j, x in enumerate(seen):
            b.add(p, x * _along(Var(f"w{j}"), shape))
        return p

    def activated(self, p: Expr) -> Expr:
        """ψ(p)."""
        return p if self.activation is None else self.activation.of(p)

    def output(self, b: Builder, p: Var, place: Index) -> Var:
        """y = ψ(p), gated."""
        y = b.let("Y", self.activated(p))
        if self.spec.gate:
            with b.when("GATED"):
                b.set(y, y * b.let("G", Load("gate", place, ACC)))
        return y

    def slope(self, b: Builder, p: Var, place: Index, store: Callable[[str, Expr], None] | None) -> Var:
        """r, with which the gradients of x and of the taps are made; that of the gate may be stored."""
        r = b.let("R", Load("dy", place, ACC))
        if self.spec.gate:
            with b.when("GATED"):
                if store:
                    store("dgate", r * self.activated(p))
                b.set(r, r * b.let("G", Load("gate", place, ACC)))
        if self.activation is not None:
            b.set(r, self.activation.gradient(p, r))
        return r

    def totals(self, b: Builder, shape: tuple[Dim, ...]) -> tuple[list[Var], Var | None]:
        """Sums over tokens: one for each tap, and one for the bias if there may be any."""
        return self.tap_totals(b, shape), self.bias_total(b, shape) if self.spec.bias else None

    def tap_totals(self, b: Builder, shape: tuple[Dim, ...]) -> list[Var]:
        return [b.let(f"dw{j}", Full(shape, 0.0)) for j in range(self.width)]

    def bias_total(self, b: Builder, shape: tuple[Dim, ...]) -> Var:
        return b.let("db", Full(shape, 0.0))


def _along(x: Expr, shape: tuple[Dim, ...]) -> Expr:
    """A vector of channels, to meet tiles of a shape."""
    return row(x) if len(shape) == 2 else x
