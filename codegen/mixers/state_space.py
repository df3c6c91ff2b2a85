"""Diagonal linear state spaces in modal form: S4D (arXiv 2206.11893), and filters that were distilled.

A filter is a sum of N/2 conjugate pairs of modes, each with a pole λ and a residue R:

    s_t = λ s_{t-1} + x_t        y_t = 2 Re Σ_n R_n s_t + D x_t

so K_l = 2 Re Σ_n R_n λ_n^l, plus D at l = 0.  Poles are given as log |λ| and the angle, so that whatever is
not above 0 is stable.  A continuous system A, B, C with a step Δ becomes this by λ = Ā and R = C B̄, which
PyTorch does before the operator (`based_ops/layers/state_space.py`).  Programs: `lower/state_space.py`.

Backward, with ȳ_t the gradient of y_t, and an adjoint a from the last token to the first:

    a_t = λ a_{t+1} + 2 R ȳ_t              dx_t = Re Σ_n a_t + D ȳ_t

What is owed to poles and residues needs no adjoint, but w_t = λ (w_{t-1} + s_{t-1}), the derivative of s_t
by log λ:

    d log |λ| = Re 2 R Σ_t ȳ_t w_t         dR = 2 conj Σ_t ȳ_t s_t
    d angle   = -Im 2 R Σ_t ȳ_t w_t        dD = Σ_t ȳ_t x_t
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..dtypes import ACC, DTYPES
from ..spec.fields import Choice, Choices, Flag, Integer, Name, spec_field
from ..spec.model import DTYPES_DOC, NAME_DOC, Conflict, LayerSpec
from ..spec.signature import Argument, Signature

if TYPE_CHECKING:
    from ..ir.host import Pass
    from ..ir.kernels import ForeignKernel
    from ..ir.program import Program

BASES = ("legs", "legt", "fout", "foud", "lin", "inv", "real", "random")
DISCRETIZATIONS = ("zoh", "bilinear")


@dataclass(frozen=True)
class StateSpace(LayerSpec):
    """y_t = 2 Re Σ_n R_n s_t + D x_t with s_t = λ s_{t-1} + x_t, each channel by itself.

    `basis`, `discretization` and `trainable` are for whoever makes parameters; no kernel depends on them.
    """

    mixer: ClassVar[str] = "state_space"
    summary: ClassVar[str] = (
        "Linear state space with a diagonal matrix: a long convolution with a small state."
    )
    fact_types: ClassVar[Mapping[str, type]] = {"order": int, "filters": str, "width": int}
    template_options: ClassVar[tuple[str, ...]] = ()

    name: str = spec_field(Name(), NAME_DOC)
    order: int = spec_field(
        Integer(2, 512), "Real numbers of a channel's state: each of half as many modes is a conjugate pair."
    )
    basis: str = spec_field(Choice(BASES), "Where the poles of new parameters come from.", "legs")
    discretization: str = spec_field(
        Choice(DISCRETIZATIONS), "How a continuous system becomes one of tokens.", "zoh"
    )
    filters: str = spec_field(
        Choice(("channel", "head")),
        "Whether each channel has a filter, or those of a head share one.",
        "channel",
    )
    width: int = spec_field(Integer(1, 256), "Channels of a head, which share a filter; else 1.", 1)
    trainable: bool = spec_field(Flag(), "Whether layers learn poles and residues.", True)
    dtypes: tuple[str, ...] = spec_field(Choices(DTYPES), DTYPES_DOC, DTYPES)

    @property
    def modes(self) -> int:
        """Conjugate pairs of a filter."""
        return self.order // 2

    @property
    def shared(self) -> bool:
        """Whether channels share filters."""
        return self.filters == "head"

    def describe(self) -> str:
        shared = f", {self.width} channels a filter" if self.shared else ""
        return f"order {self.order}, {self.basis}, {self.discretization}{shared}"

    def facts(self) -> dict[str, Any]:
        return {"order": self.order, "filters": self.filters, "width": self.width}

    @classmethod
    def template(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        return {"order": 64}

    @classmethod
    def conflicts(cls, values: Mapping[str, Any]) -> Iterable[Conflict]:
        order, filters, width = (values.get(name) for name in ("order", "filters", "width"))
        if isinstance(order, int) and order % 2:
            yield Conflict(("order",), "must be even: modes come in conjugate pairs", True)
        if filters == "head" and width in (None, 1):
            message = "needs a `width` of 2 or more, the channels of a head that share a filter"
            yield Conflict(("filters",), message, True)
        if filters in (None, "channel") and isinstance(width, int) and width > 1:
            yield Conflict(("width",), "is for `filters: head`: of a channel's own filter it is 1", True)

    @property
    def extents(self) -> dict[str, int]:
        return {"MODES": self.modes} | ({"CHANNELS": self.width} if self.shared else {})

    @property
    def units(self) -> tuple[str | int, ...]:
        """The dimensions that say which channel."""
        return ("H", self.width) if self.shared else ("D",)

    def signature(self) -> Signature:
        units, modes = self.units, self.modes
        filters, tokens = (modes, units[0]), ("B", "T", *units)

        def state(name: str, count: str, doc: str, optional: bool = False) -> Argument:
            return Argument(name, (count, modes, *units, 2), doc, ACC, optional)

        return Signature(
            inputs=(
                Argument("x", tokens, "inputs"),
                Argument("log_decay", filters, "log |λ| of each mode, at most 0", ACC, fades=True),
                Argument("angle", filters, "the angle of λ, in radians", ACC),
                Argument("residues", (*filters, 2), "R as real and imaginary parts", ACC),
                Argument("skip", units, "D, what of a token is its output as it is", ACC, optional=True),
            ),
            output=Argument("y", tokens, "outputs"),
            state=(state("state", "B", "s as real and imaginary parts"),),
            carried=(state("initial_state", "N", "s before the first token", optional=True),),
            packs=True,
            final=(state("final_state", "N", "s after the last token"),),
            keeps_output=False,
        )

    def programs(self) -> tuple[Program, ...]:
        from ..lower import state_space

        return state_space.programs(self)

    def passes(self, faster: Mapping[str, ForeignKernel]) -> tuple[Pass, ...]:
        from ..lower import state_space_passes

        return state_space_passes.passes(self)


MIXER = StateSpace
