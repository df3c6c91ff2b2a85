"""Gated causal convolution as long as the sequence: the middle of Hyena (arXiv 2302.10866, section 3.1).

    y_t = gate_t · (Σ_{l ≤ t} h_l u_{t−l} + skip · u_t)

Filters h are given as taps, however they were made: as parameters, by a network of the position, or by a
state space (`based_ops/layers/long_conv.py`, `modal.py`).  They may be shared by the channels of a head, as
in MultiHyena (arXiv 2310.18780, section 4).  Tokens before the first are 0, or those of a state.  Programs:
`lower/long_conv.py`; long sequences are transformed (`based_ops/support/convolution.py`).

Backward, with r = dy · gate:

    du_s = Σ_l h_l r_{s+l} + skip · r_s      dh_l = Σ_t r_t u_{t−l}
    dskip = Σ_t r_t u_t                      dgate = dy · (Σ_l h_l u_{t−l} + skip · u_t)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..dtypes import ACC, DTYPES, IO
from ..spec.fields import Choice, Choices, Flag, Integer, Name, spec_field
from ..spec.model import DTYPES_DOC, NAME_DOC, Conflict, LayerSpec
from ..spec.signature import Argument, Signature

if TYPE_CHECKING:
    from ..ir.host import Pass
    from ..ir.kernels import ForeignKernel
    from ..ir.program import Program

TAPS = "L"
"""How many taps a call's filters have."""


@dataclass(frozen=True)
class LongConv(LayerSpec):
    """y_t = gate_t · (Σ_{l ≤ t} h_l u_{t−l} + skip · u_t), each channel by itself."""

    mixer: ClassVar[str] = "long_conv"
    summary: ClassVar[str] = "Causal depthwise convolution with filters as long as the sequence, and a gate."
    fact_types: ClassVar[Mapping[str, type]] = {"length": int, "filters": str, "width": int, "gate": bool}
    template_options: ClassVar[tuple[str, ...]] = ()

    name: str = spec_field(Name(), NAME_DOC)
    length: int = spec_field(
        Integer(2, 1 << 20), "Inputs that a state keeps: the most taps of filters, in calls with a state."
    )
    filters: str = spec_field(
        Choice(("channel", "head")),
        "Whether each channel has a filter, or those of a head share one.",
        "channel",
    )
    width: int = spec_field(Integer(1, 1 << 16), "Channels of a head, which share a filter; else 1.", 1)
    gate: bool = spec_field(Flag(), "Whether calls may multiply by a gate.", True)
    dtypes: tuple[str, ...] = spec_field(Choices(DTYPES), DTYPES_DOC, DTYPES)

    @property
    def shared(self) -> bool:
        """Whether channels share filters."""
        return self.filters == "head"

    def describe(self) -> str:
        shared = f", {self.width} channels a filter" if self.shared else ""
        return f"states of {self.length} inputs{shared}"

    def facts(self) -> dict[str, Any]:
        return {"length": self.length, "filters": self.filters, "width": self.width, "gate": self.gate}

    @classmethod
    def template(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        return {"length": 2048}

    @classmethod
    def conflicts(cls, values: Mapping[str, Any]) -> Iterable[Conflict]:
        filters, width = values.get("filters"), values.get("width")
        if filters == "head" and width in (None, 1):
            message = "needs a `width` of 2 or more, the channels of a head that share a filter"
            yield Conflict(("filters",), message, True)
        if filters in (None, "channel") and isinstance(width, int) and width > 1:
            yield Conflict(("width",), "is for `filters: head`: of a channel's own filter it is 1", True)

    @property
    def extents(self) -> dict[str, int]:
        return {"CHANNELS": self.width} if self.shared else {}

    @property
    def units(self) -> tuple[str | int, ...]:
        """The dimensions that say which channel."""
        return ("H", self.width) if self.shared else ("D",)

    def signature(self) -> Signature:
        units, tokens = self.units, ("B", "T", *self.units)
        return Signature(
            inputs=(
                Argument("u", tokens, "inputs"),
                Argument("filters", (TAPS, units[0]), "taps, that of the token itself first", ACC),
                Argument("skip", units, "what an output has of its own input besides", ACC, optional=True),
                Argument("gate", tokens, "multiplies the result", optional=True, present=self.gate),
            ),
            output=Argument("y", tokens, "outputs"),
            state=(
                Argument("history", ("B", self.length, *units), "the last inputs, a ring of rows", IO),
                Argument(
                    "oldest",
                    ("B", *units),
                    "the row of the oldest, which the next input takes",
                    "int32",
                    differentiable=False,
                ),
            ),
            carried=(
                Argument(
                    "before", ("N", self.length, *units), "the inputs before, the newest last", optional=True
                ),
            ),
            packs=True,
            keeps_output=False,
            free={TAPS: self.length},
        )

    def programs(self) -> tuple[Program, ...]:
        from ..lower import long_conv

        return long_conv.programs(self)

    def passes(self, faster: Mapping[str, ForeignKernel]) -> tuple[Pass, ...]:
        from ..lower import long_conv_passes

        return long_conv_passes.passes(self)


MIXER = LongConv
