"""Gated causal depthwise convolution over the last few tokens, the third mixer of Based (arXiv 2402.18668).

y_t = gate_t · ψ(bias + Σ_j w[:, j] · x_{t − (W − 1) + j}), with ψ an expression or nothing.  Tokens before
the first are 0, or those of a state.  A tile of tokens and channels is read once for each tap, from caches.

Backward, with p the argument of ψ, which is computed again, and r = dy · gate · ψ'(p):

    dgate = dy · ψ(p)                     dw_j = Σ_t r_t x_{t − (W − 1) + j}
    dx_s = Σ_j w_j r_{s + (W − 1) − j}    dbias = Σ_t r_t
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..dtypes import ACC, DTYPES, IO
from ..ir.build import Builder
from ..ir.host import Name as Value
from ..ir.host import Parameter, Pass, Plan, Present, ReadSizes, allocate, launch
from ..ir.kernels import INTEGER, ForeignKernel, LaunchPlan
from ..ir.nodes import (
    Axis,
    Cast,
    Expr,
    Full,
    Load,
    Program,
    Span,
    Sum,
    Tensor,
    Var,
    cdiv,
    minimum,
    row,
    wrap,
)
from ..ir.traits import GRADIENTS, STREAMS, TOKEN
from ..lower.expression import Function
from ..spec.fields import Choices, Expression, Flag, Integer, Name, spec_field
from ..spec.model import DTYPES_DOC, NAME_DOC, LayerSpec
from ..spec.signature import Argument, Signature

B, T = Var("b"), Var("T")
BATCH = Axis("b", Var("B"), batch=True)
CHANNELS = Axis("channel_block", cdiv("D", "CHANNELS"))
TOKENS = ("B", "T", "D")
SIZES = ("B", "T", "D")


@dataclass(frozen=True)
class ShortConv(LayerSpec):
    """y_t = gate_t · ψ(bias + Σ_j w[:, j] · x_{t − (W − 1) + j}), each channel by itself."""

    mixer: ClassVar[str] = "short_conv"
    summary: ClassVar[str] = "Causal depthwise convolution over a few tokens, with an activation and a gate."
    fact_types: ClassVar[Mapping[str, type]] = {"width": int, "activation": str, "bias": bool, "gate": bool}
    template_options: ClassVar[tuple[str, ...]] = ()

    name: str = spec_field(Name(), NAME_DOC)
    width: int = spec_field(Integer(2, 8), "Number of tokens that an output sees, its own included.")
    activation: str | None = spec_field(
        Expression(optional=True), "ψ as an expression in x; null means none.", "silu(x)"
    )
    bias: bool = spec_field(Flag(), "Whether calls may add a bias before the activation.", True)
    gate: bool = spec_field(Flag(), "Whether calls may multiply by a gate after it.", True)
    dtypes: tuple[str, ...] = spec_field(Choices(DTYPES), DTYPES_DOC, DTYPES)

    def describe(self) -> str:
        return f"{self.width} taps, {self.activation or 'no activation'}"

    def facts(self) -> dict[str, Any]:
        activation = self.activation or "none"
        return {"width": self.width, "activation": activation, "bias": self.bias, "gate": self.gate}

    @classmethod
    def template(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        return {"width": 4}

    @property
    def extents(self) -> dict[str, int]:
        return {}

    def signature(self) -> Signature:
        before = self.width - 1
        return Signature(
            inputs=(
                Argument("x", TOKENS, "inputs"),
                Argument("weight", ("D", self.width), "taps of each channel, that of the newest token last"),
                Argument("bias", ("D",), "added before the activation", optional=True, present=self.bias),
                Argument("gate", TOKENS, "multiplies the result", optional=True, present=self.gate),
            ),
            output=Argument("y", TOKENS, "outputs"),
            state=(Argument("state", ("B", "D", before), "the last inputs, the newest last", IO),),
            carried=(Argument("before", ("B", before, "D"), "the inputs before the first", optional=True),),
            keeps_output=False,
        )

    def programs(self) -> tuple[Program, ...]:
        programs = _Programs(self)
        return (
            programs.outputs(),
            programs.gradients(),
            programs.input_gradients("input_gradients", "dx", None),
            programs.input_gradients("earlier_gradients", "dbefore", self.width - 1),
            programs.tap_gradients(),
            programs.token(),
        )

    def passes(self, faster: Mapping[str, ForeignKernel]) -> tuple[Pass, ...]:
        bias, gate, before = (Present(name) for name in ("bias", "gate", "before"))
        taps = (Parameter("weight"), Parameter("bias", when=bias), Parameter("gate", when=gate))
        inputs, earlier = (Parameter("x"), *taps), Parameter("before", when=before)
        biased = {"BIAS": bias} if self.bias else {}
        flags = biased | ({"GATED": gate} if self.gate else {})
        sizes = ReadSizes("x", SIZES)
        forward = Pass(
            "forward",
            "Outputs.",
            (*inputs, earlier),
            "x",
            (sizes, allocate("y", TOKENS, IO), launch("outputs", flags | {"INITIAL": before})),
            ("y",),
        )
        plan = LaunchPlan("backward", "backward", "segment_plan", ("SHORTEST", "PROGRAMS", "FEWEST"))
        parts = ("B", "segments", self.width, "D")
        backward = Pass(
            "backward",
            "Gradients of x, of the taps, the bias and the gate, and of the inputs before the first.",
            (Parameter("dy"), *inputs, earlier),
            "x",
            (
                sizes,
                Plan({"segments": INTEGER}, plan, (Value("T"), Value("B"))),
                allocate("r", TOKENS, IO),
                allocate("dgate", TOKENS, IO, gate),
                allocate("tap_sums", parts, ACC),
                *((allocate("bias_sums", ("B", "segments", "D"), ACC, bias),) if self.bias else ()),
                launch("gradients", flags | {"INITIAL": before}),
                allocate("dx", TOKENS, IO),
                launch("input_gradients"),
                allocate("dbefore", ("B", self.width - 1, "D"), IO, before),
                launch("earlier_gradients", when=before),
                allocate("dweight", ("D", self.width), IO),
                allocate("dbias", ("D",), IO, bias),
                launch("tap_gradients", biased),
            ),
            ("dx", "dweight", "dbias", "dgate", "dbefore"),
        )
        step = Pass(
            "step",
            "One token; `state` is updated in place.",
            (*inputs, Parameter("state")),
            "x",
            (sizes, allocate("y", TOKENS, IO), launch("token", flags)),
            ("y",),
        )
        return forward, backward, step


class _Programs:
    """The programs of one layer.

    All but the step's take tiles of CHUNK tokens and CHANNELS channels.  Backward sums over a segment tile by
    tile, each element by itself, and over the tokens of a tile only at the end.
    """

    def __init__(self, spec: ShortConv) -> None:
        self.spec, self.width = spec, spec.width
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
        earlier = (Tensor("before", ("B", self.width - 1, "D"), IO, optional="INITIAL"),) if before else ()
        return x, weight, *bias, *earlier

    def gates(self, *names: str) -> tuple[Tensor, ...]:
        gated = (Tensor(name, TOKENS, IO, name == "gate", optional="GATED") for name in names)
        return tuple(gated) if self.spec.gate else ()

    # Pieces

    def channels(self, b: Builder) -> Var:
        """The index tile of a program's channels, and the taps of each."""
        d = b.let("d", Span(Var("channel_block") * "CHANNELS", "CHANNELS"))
        for j in range(self.width):
            b.let(f"w{j}", Load("weight", (d, wrap(j)), ACC))
        return d

    def argument(self, b: Builder, t0: Expr, d: Var) -> Var:
        """The argument of ψ for the tokens from `t0` on; x0, x1, ... are what each tap sees."""
        p = b.let("p", Full(("CHUNK", "CHANNELS"), 0.0))
        if self.spec.bias:
            with b.when("BIAS"):
                b.add(p, row(b.let("offset", Load("bias", (d,), ACC))))
        for j in range(self.width):
            seen = b.let(f"seen{j}", Span(t0 + (j - self.width + 1), "CHUNK", before=True))
            x = b.let(f"x{j}", Load("x", (B, seen, d), ACC))
            if j < self.width - 1:
                with b.when("INITIAL"):
                    earlier = b.let(f"earlier{j}", Span(t0 + j, "CHUNK"))
                    b.add(x, b.let(f"x{j}_before", Load("before", (B, earlier, d), ACC)))
            b.add(p, x * row(Var(f"w{j}")))
        return p

    def activated(self, p: Expr) -> Expr:
        """ψ(p)."""
        return p if self.activation is None else self.activation.of(p)

    # Programs

    def outputs(self) -> Program:
        b = Builder()
        d = self.channels(b)
        t0 = b.let("t0", Var("chunk") * "CHUNK")
        t = b.let("t", Span(t0, "CHUNK"))
        y = b.let("Y", self.activated(self.argument(b, t0, d)))
        if self.spec.gate:
            with b.when("GATED"):
                b.set(y, y * b.let("G", Load("gate", (B, t, d), ACC)))
        b.store("y", (B, t, d), Cast(y, IO))
        return Program(
            "outputs",
            "The outputs of a tile of tokens and channels.",
            (BATCH, Axis("chunk", cdiv("T", "CHUNK")), CHANNELS),
            (*self.inputs(), *self.gates("gate"), Tensor("y", TOKENS, IO)),
            SIZES,
            (),
            (*self.flags, "INITIAL"),
            ("CHUNK", "CHANNELS"),
            b.body,
            does=frozenset({STREAMS}),
        )

    def gradients(self) -> Program:
        """r, dgate, and for one segment the sums over tokens."""
        b = Builder()
        d = self.channels(b)
        tile = ("CHUNK", "CHANNELS")
        for j in range(self.width):
            b.let(f"dw{j}", Full(tile, 0.0))
        r_sum = b.let("r_sum", Full(tile, 0.0)) if self.spec.bias else None
        length = b.let("length", cdiv(cdiv("T", "CHUNK"), "segments") * "CHUNK")
        start = b.let("start", Var("segment") * length)
        with b.loop("t0", start, minimum(start + length, T), "CHUNK") as t0:
            t = b.let("t", Span(t0, "CHUNK"))
            p = self.argument(b, t0, d)
            r = b.let("R", Load("dy", (B, t, d), ACC))
            if self.spec.gate:
                with b.when("GATED"):
                    b.store("dgate", (B, t, d), Cast(r * self.activated(p), IO))
                    b.set(r, r * b.let("G", Load("gate", (B, t, d), ACC)))
            if self.activation is not None:
                b.set(r, self.activation.gradient(p, r))
            b.store("r", (B, t, d), Cast(r, IO))
            for j in range(self.width):
                b.add(Var(f"dw{j}"), r * Var(f"x{j}"))
            if r_sum:
                b.add(r_sum, r)
        for j in range(self.width):
            total = b.let(f"dw{j}_total", Sum(Var(f"dw{j}"), 0))
            b.store("tap_sums", (B, Var("segment"), wrap(j), d), total)
        if r_sum:
            with b.when("BIAS"):
                b.store("bias_sums", (B, Var("segment"), d), b.let("r_total", Sum(r_sum, 0)))
        sums = [Tensor("tap_sums", ("B", "segments", self.width, "D"), ACC)]
        if self.spec.bias:
            sums.append(Tensor("bias_sums", ("B", "segments", "D"), ACC, optional="BIAS"))
        return Program(
            "gradients",
            "r and the gradient of the gate, and sums over a segment for the taps and the bias.",
            (BATCH, Axis("segment", Var("segments")), CHANNELS),
            (
                *self.inputs(),
                *self.gates("gate", "dgate"),
                Tensor("dy", TOKENS, IO, strided=True),
                Tensor("r", TOKENS, IO),
                *sums,
            ),
            (*SIZES, "segments"),
            (),
            (*self.flags, "INITIAL"),
            ("CHUNK", "CHANNELS"),
            b.body,
            does=frozenset({STREAMS, GRADIENTS}),
        )

    def input_gradients(self, name: str, result: str, rows: int | None) -> Program:
        """dx of a tile of tokens, or of the `rows` tokens before the first."""
        b = Builder()
        d = self.channels(b)
        t0 = b.let("t0", Var("chunk") * "CHUNK")
        first = t0 if rows is None else t0 - rows
        dx = b.let("dX", Full(("CHUNK", "CHANNELS"), 0.0))
        for j in range(self.width):
            after = b.let(f"after{j}", Span(first + (self.width - 1 - j), "CHUNK", before=rows is not None))
            b.add(dx, b.let(f"r{j}", Load("r", (B, after, d), ACC)) * row(Var(f"w{j}")))
        b.store(result, (B, b.let("t", Span(t0, "CHUNK")), d), Cast(dx, IO))
        return Program(
            name,
            "The gradients of a tile of inputs." if rows is None else "Those of the inputs before the first.",
            (BATCH, Axis("chunk", cdiv("T" if rows is None else rows, "CHUNK")), CHANNELS),
            (
                Tensor("weight", ("D", self.width), IO, strided=True),
                Tensor("r", TOKENS, IO),
                Tensor(result, TOKENS if rows is None else ("B", rows, "D"), IO),
            ),
            SIZES,
            (),
            (),
            ("CHUNK", "CHANNELS"),
            b.body,
            does=frozenset({STREAMS}),
        )

    def tap_gradients(self) -> Program:
        """Sums over batch and segments."""
        b = Builder()
        d = b.let("d", Span(Var("channel_block") * "CHANNELS", "CHANNELS"))
        names = [f"dw{j}" for j in range(self.width)]
        for name in (*names, *(("db",) if self.spec.bias else ())):
            b.let(name, Full(("PARTS", "CHANNELS"), 0.0))
        with b.loop("i", 0, "B") as i, b.loop("s0", 0, "segments", "PARTS") as s0:
            s = b.let("s", Span(s0, "PARTS"))
            for j, name in enumerate(names):
                b.add(Var(name), b.let(f"{name}_part", Load("tap_sums", (i, s, wrap(j), d), ACC)))
            if self.spec.bias:
                with b.when("BIAS"):
                    b.add(Var("db"), b.let("db_part", Load("bias_sums", (i, s, d), ACC)))
        for j, name in enumerate(names):
            b.store("dweight", (d, wrap(j)), Cast(b.let(f"{name}_total", Sum(Var(name), 0)), IO))
        if self.spec.bias:
            with b.when("BIAS"):
                b.store("dbias", (d,), Cast(b.let("db_total", Sum(Var("db"), 0)), IO))
        tensors = [
            Tensor("tap_sums", ("B", "segments", self.width, "D"), ACC),
            Tensor("dweight", ("D", self.width), IO),
        ]
        if self.spec.bias:
            tensors.append(Tensor("bias_sums", ("B", "segments", "D"), ACC, optional="BIAS"))
            tensors.append(Tensor("dbias", ("D",), IO, optional="BIAS"))
        return Program(
            "tap_gradients",
            "The gradients of the taps and of the bias, from what segments add to them.",
            (CHANNELS,),
            tuple(tensors),
            ("B", "D", "segments"),
            (),
            ("BIAS",) if self.spec.bias else (),
            ("PARTS", "CHANNELS"),
            b.body,
            does=frozenset({STREAMS, GRADIENTS}),
        )

    def token(self) -> Program:
        b = Builder()
        d = self.channels(b)
        zero, last = wrap(0), self.width - 1
        p = b.let("p", Full(("CHANNELS",), 0.0))
        if self.spec.bias:
            with b.when("BIAS"):
                b.add(p, b.let("offset", Load("bias", (d,), ACC)))
        seen = [b.let(f"x{j}", Load("state", (B, d, wrap(j)), ACC)) for j in range(last)]
        seen.append(b.let(f"x{last}", Load("x", (B, zero, d), ACC)))
        for j, x in enumerate(seen):
            b.add(p, x * Var(f"w{j}"))
        for j, x in enumerate(seen[1:]):
            b.store("state", (B, d, wrap(j)), Cast(x, IO))
        y = b.let("Y", self.activated(p))
        if self.spec.gate:
            with b.when("GATED"):
                b.set(y, y * b.let("G", Load("gate", (B, zero, d), ACC)))
        b.store("y", (B, zero, d), Cast(y, IO))
        return Program(
            "token",
            "One token: it is put behind the last inputs, and the oldest of them goes.",
            (BATCH, CHANNELS),
            (
                *self.inputs(before=False),
                Tensor("state", ("B", "D", last), IO),
                *self.gates("gate"),
                Tensor("y", TOKENS, IO),
            ),
            SIZES,
            (),
            self.flags,
            ("CHANNELS",),
            b.body,
            does=frozenset({STREAMS, TOKEN}),
        )


MIXER = ShortConv
