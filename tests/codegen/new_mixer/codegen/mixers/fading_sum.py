"""Sums over the tokens seen that fade: s_t = a_h s_{t-1} + x_t + c_d, and y_t = s_t.

Backward, with g_t the gradient of s_t: g_t = dy_t + a g_{t+1}, dx_t = g_t, da = Σ g_t s_{t-1}, dc = Σ g_t.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..dtypes import ACC, DTYPES, IO
from ..ir.build import Builder
from ..ir.host import Name as Value
from ..ir.host import Pass, Present, ReadSizes, allocate, launch
from ..ir.kernels import ForeignKernel
from ..ir.nodes import Cast, Full, Load, Span, Sum, Var, cdiv
from ..ir.program import Axis, Program, Tensor
from ..ir.traits import STREAMS
from ..lower.parameters import parameters
from ..lower.sequence import Sequence
from ..lower.steps import FLAGS, POOLED, answered, in_slots, launch_step, one_by_one
from ..spec.fields import Choices, Integer, Name, spec_field
from ..spec.model import DTYPES_DOC, NAME_DOC, LayerSpec
from ..spec.signature import Argument, Signature

B, T, H = Var("b"), Var("T"), Var("h")
ROWS = (Axis("b", Var("B"), batch=True), Axis("h", Var("H"), batch=True))


@dataclass(frozen=True)
class FadingSum(LayerSpec):
    """s_t = a_h s_{t-1} + x_t + c_d."""

    mixer: ClassVar[str] = "fading_sum"
    summary: ClassVar[str] = "Sums over the tokens seen, which fade by a factor a head."
    fact_types: ClassVar[Mapping[str, type]] = {"width": int}
    template_options: ClassVar[tuple[str, ...]] = ()

    name: str = spec_field(Name(), NAME_DOC)
    width: int = spec_field(Integer(1, 256), "Channels of a head.")
    dtypes: tuple[str, ...] = spec_field(Choices(DTYPES), DTYPES_DOC, DTYPES)

    def describe(self) -> str:
        return f"fading sums of {self.width} channels"

    def facts(self) -> dict[str, Any]:
        return {"width": self.width}

    @classmethod
    def template(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        return {"width": 16}

    @property
    def extents(self) -> dict[str, int]:
        return {}

    def signature(self) -> Signature:
        tokens, sums = ("B", "T", "H", self.width), ("B", "H", self.width)
        return Signature(
            inputs=(
                Argument("x", tokens, "inputs"),
                Argument("a", ("H",), "what is left of a sum after a token"),
                Argument("c", (self.width,), "added to every token"),
            ),
            output=Argument("y", tokens, "the sums after each token"),
            state=(Argument("state", sums, "the last sums", ACC),),
            carried=(Argument("initial", sums, "the sums before the first token", ACC, optional=True),),
            final=(Argument("final", sums, "the sums after the last", ACC),),
        )

    def programs(self) -> tuple[Program, ...]:
        return (self._sums(), self._gradients(), self._of_factors(), self._of_constants(), self._token())

    def passes(self, faster: Mapping[str, ForeignKernel]) -> tuple[Pass, ...]:
        sizes, first, asked = ReadSizes("x", ("B", "T", "H", None)), Present("initial"), "output_final_state"
        tokens, sums = ("B", "T", "H", self.width), ("B", "H", self.width)
        signature = self.signature()
        forward = Pass(
            "forward",
            "Sums after every token.",
            parameters(signature, "forward"),
            "x",
            (
                sizes,
                allocate("y", tokens, IO),
                allocate("final", sums, ACC, Value(asked)),
                launch("sums", {"INITIAL": first, "FINAL": asked}),
            ),
            ("y", "final"),
        )
        last = Present("d_final")
        backward = Pass(
            "backward",
            "Gradients of x, a and c, and of the first sums.",
            parameters(signature, "backward"),
            "x",
            (
                sizes,
                allocate("dx", tokens, IO),
                allocate("dinitial", sums, ACC, first),
                allocate("of_a", sums, ACC),
                allocate("of_c", sums, ACC),
                launch("gradients", {"INITIAL": first, "FINAL": last}),
                allocate("da", ("H",), IO),
                launch("of_factors"),
                allocate("dc", (self.width,), IO),
                launch("of_constants"),
            ),
            ("dx", "da", "dc", "dinitial"),
        )
        step = Pass(
            "step",
            "A few tokens; `state` is updated in place.",
            parameters(signature, "step"),
            "x",
            (sizes, allocate("y", tokens, IO), launch_step("state")),
            ("y",),
        )
        return forward, backward, step

    # Programs: each has a tile of channels, of one head of one sequence unless it sums over them

    def _program(
        self, name: str, summary: str, b: Builder, grid: tuple[Axis, ...], *tensors: Tensor
    ) -> Program:
        return Program(
            name,
            summary,
            grid,
            tensors,
            ("B", "T", "H"),
            (),
            tuple(sorted({x.optional for x in tensors if x.optional})),
            ("CHANNELS",),
            b.body,
            does=frozenset({STREAMS}),
        )

    @property
    def _channels(self) -> Axis:
        return Axis("block", cdiv(self.width, "CHANNELS"))

    def _tile(self, b: Builder) -> Var:
        return b.let("d", Span(Var("block") * "CHANNELS", "CHANNELS"))

    def _tokens(self, name: str) -> Tensor:
        return Tensor(name, ("B", "T", "H", self.width), IO, strided=name != "dx")

    def _held(self, name: str, flag: str | None = None) -> Tensor:
        return Tensor(name, ("B", "H", self.width), ACC, optional=flag)

    def _sums(self) -> Program:
        b = Builder()
        d = self._tile(b)
        a, c = b.let("factor", Load("a", (H,), ACC)), b.let("constant", Load("c", (d,), ACC))
        s = b.let("s", Full(("CHANNELS",), 0.0))
        with b.when("INITIAL"):
            b.add(s, b.let("first", Load("initial", (B, H, d), ACC)))
        with b.loop("t", 0, T) as t:
            x = b.let("token", Load("x", (B, t, H, d), ACC))
            b.set(s, s * a + x + c)
            b.store("y", (B, t, H, d), Cast(s, IO))
        with b.when("FINAL"):
            b.store("final", (B, H, d), s)
        return self._program(
            "sums",
            "Token by token.",
            b,
            (*ROWS, self._channels),
            self._tokens("x"),
            Tensor("a", ("H",), IO),
            Tensor("c", (self.width,), IO),
            self._held("initial", "INITIAL"),
            self._tokens("y"),
            self._held("final", "FINAL"),
        )

    def _gradients(self) -> Program:
        b = Builder()
        d = self._tile(b)
        a = b.let("factor", Load("a", (H,), ACC))
        names = ("g", "later", "for_a", "for_c")
        g, later, for_a, for_c = (b.let(name, Full(("CHANNELS",), 0.0)) for name in names)
        with b.when("FINAL"):
            b.add(later, b.let("last", Load("d_final", (B, H, d), ACC)))
        with b.loop("i", 0, T) as i:
            t = b.let("t", T - 1 - i)
            b.add(for_a, g * b.let("s", Load("y", (B, t, H, d), ACC)))  # g is still that of the token after
            b.set(g, later + b.let("dy_t", Load("dy", (B, t, H, d), ACC)))
            b.store("dx", (B, t, H, d), Cast(g, IO))
            b.add(for_c, g)
            b.set(later, g * a)
        with b.when("INITIAL"):
            b.add(for_a, g * b.let("first", Load("initial", (B, H, d), ACC)))
            b.store("dinitial", (B, H, d), later)
        b.store("of_a", (B, H, d), for_a)
        b.store("of_c", (B, H, d), for_c)
        return self._program(
            "gradients",
            "From the last token to the first; what a and c get of one head of one sequence.",
            b,
            (*ROWS, self._channels),
            Tensor("a", ("H",), IO),
            *map(self._tokens, ("y", "dy", "dx")),
            self._held("d_final", "FINAL"),
            self._held("initial", "INITIAL"),
            self._held("dinitial", "INITIAL"),
            self._held("of_a"),
            self._held("of_c"),
        )

    def _of_factors(self) -> Program:
        b = Builder()
        total = b.let("total", Full(("CHANNELS",), 0.0))
        with b.loop("i", 0, "B") as i, b.loop("d0", 0, self.width, "CHANNELS") as d0:
            d = b.let("d", Span(d0, "CHANNELS"))
            b.add(total, b.let("part", Load("of_a", (i, H, d), ACC)))
        b.store("da", (H,), Cast(b.let("da_h", Sum(total, 0)), IO))
        grid = (Axis("h", Var("H"), batch=True),)
        return self._program("of_factors", "da.", b, grid, self._held("of_a"), Tensor("da", ("H",), IO))

    def _of_constants(self) -> Program:
        b = Builder()
        d = self._tile(b)
        total = b.let("total", Full(("CHANNELS",), 0.0))
        with b.loop("i", 0, "B") as i, b.loop("j", 0, "H") as j:
            b.add(total, b.let("part", Load("of_c", (i, j, d), ACC)))
        b.store("dc", (d,), Cast(total, IO))
        return self._program(
            "of_constants", "dc.", b, (self._channels,), self._held("of_c"), Tensor("dc", (self.width,), IO)
        )

    def _token(self) -> Program:
        b = Builder()
        d = self._tile(b)
        a, c = b.let("factor", Load("a", (H,), ACC)), b.let("constant", Load("c", (d,), ACC))
        s = b.let("s", Load("state", (B, H, d), ACC))
        with one_by_one(b, Sequence("T")) as t:
            b.set(s, s * a + b.let("token", Load("x", (B, t, H, d), ACC)) + c)
            b.store("y", (B, t, H, d), Cast(answered(b, b.let("answer", s)), IO))
        b.store("state", (B, H, d), s)
        program = self._program(
            "token",
            "Token by token.",
            b,
            (*ROWS, self._channels),
            self._tokens("x"),
            Tensor("a", ("H",), IO),
            Tensor("c", (self.width,), IO),
            *in_slots((self._held("state"),)),
            self._tokens("y"),
        )
        return replace(program, sizes=(*program.sizes, POOLED), flags=FLAGS)


MIXER = FadingSum
