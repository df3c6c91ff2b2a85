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

from ..dtypes import DTYPES, IO
from ..ir.host import Pass
from ..ir.kernels import ForeignKernel
from ..ir.program import Program
from ..lower.short_conv import programs
from ..lower.short_conv_parts import TOKENS, Layer
from ..lower.short_conv_tokens import PACKED
from ..spec.fields import Choices, Expression, Flag, Integer, Name, spec_field
from ..spec.model import DTYPES_DOC, NAME_DOC, LayerSpec
from ..spec.signature import Argument, Signature


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
            carried=(Argument("before", ("N", before, "D"), "the inputs before the first", optional=True),),
            packs=True,
            keeps_output=False,
        )

    def programs(self) -> tuple[Program, ...]:
        return programs(Layer(self), Layer(self, PACKED))

    def passes(self, faster: Mapping[str, ForeignKernel]) -> tuple[Pass, ...]:
        from ..lower import short_conv_passes

        return short_conv_passes.passes(self)


MIXER = ShortConv
