"""Gated causal depthwise convolution over the last few tokens, the third mixer of Based (arXiv 2402.18668).

y_t = gate_t · ψ(bias + Σ_j w[:, j] · x_{t − (W − 1) + j}), with ψ an expression or nothing.  Tokens before
the first are 0, or those of a state.  The programs are in `lower/short_conv.py`.

Backward, with p the argument of ψ, which is computed again, and r = dy · gate · ψ'(p):

    dgate = dy · ψ(p)                     dw_j = Σ_t r_t x_{t − (W − 1) + j}
    dx_s = Σ_j w_j r_{s + (W − 1) − j}    dbias = Σ_t r_t
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..dtypes import ACC, DTYPES, IO
from ..ir.host import Name as Value
from ..ir.host import Pass, Plan, Present, ReadSizes, Times, allocate, launch
from ..ir.kernels import INTEGER, TRUTH, ForeignKernel, LaunchPlan
from ..ir.program import Program
from ..lower import steps
from ..lower.parameters import parameters
from ..lower.short_conv import programs
from ..lower.short_conv_parts import SIZES, TOKENS, Layer
from ..spec.fields import Choices, Expression, Flag, Integer, Name, spec_field
from ..spec.model import DTYPES_DOC, NAME_DOC, LayerSpec
from ..spec.signature import Argument, Signature

STREAM_PLAN = ("TILED", "SHORTEST", "LANES")
"""Constants of `based_ops.support.host.stream_plan`."""
WALKS = Value("walks")


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
        return programs(Layer(self))

    def passes(self, faster: Mapping[str, ForeignKernel]) -> tuple[Pass, ...]:
        bias, gate, before = (Present(name) for name in ("bias", "gate", "before"))
        signature = self.signature()
        biased = {"BIAS": bias} if self.bias else {}
        flags = biased | ({"GATED": gate} if self.gate else {})
        sizes = ReadSizes("x", SIZES)
        forward = Pass(
            "forward",
            "Outputs.",
            parameters(signature, "forward"),
            "x",
            (
                sizes,
                _plan("forward"),
                allocate("y", TOKENS, IO),
                launch("walk", flags | {"INITIAL": before}, WALKS),
                launch("outputs", flags | {"INITIAL": before}, ~WALKS),
            ),
            ("y",),
        )
        parts = ("B", "segments", self.width, "D")
        backward = Pass(
            "backward",
            "Gradients of x, of the taps, the bias and the gate, and of the inputs before the first.",
            parameters(signature, "backward"),
            "x",
            (
                sizes,
                _plan("backward"),
                allocate("dx", TOKENS, IO),
                allocate("dgate", TOKENS, IO, gate),
                allocate("dbefore", ("B", self.width - 1, "D"), IO, before),
                allocate("tap_sums", parts, ACC),
                *((allocate("bias_sums", ("B", "segments", "D"), ACC, bias),) if self.bias else ()),
                launch("walk_back", flags | {"INITIAL": before}, WALKS),
                allocate("r", TOKENS, IO, ~WALKS),
                launch("gradients", flags | {"INITIAL": before}, ~WALKS),
                launch("input_gradients", {}, ~WALKS),
                launch("earlier_gradients", {}, ~WALKS & before),
                allocate("dweight", ("D", self.width), IO),
                allocate("dbias", ("D",), IO, bias),
                launch("tap_gradients", biased),
            ),
            ("dx", "dweight", "dbias", "dgate", "dbefore"),
        )
        step = Pass(
            "step",
            "Tokens one after the other; `state` is updated in place.",
            parameters(signature, "step"),
            "x",
            (
                sizes,
                allocate("y", TOKENS, IO),
                steps.launch_step("state", flags),
            ),
            ("y",),
        )
        return forward, backward, step


def _plan(part: str) -> Plan:
    """In how many segments a pass goes through the sequence, and in which of the two forms."""
    plan = LaunchPlan(part, part, "stream_plan", STREAM_PLAN)
    return Plan({"segments": INTEGER, "walks": TRUTH}, plan, (Value("T"), Times(Value("B"), Value("D"))))


MIXER = ShortConv
