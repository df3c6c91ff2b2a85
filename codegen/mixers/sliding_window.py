"""Softmax attention over the last keys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..dtypes import ACC, DTYPES
from ..spec.fields import Choices, Integer, Name, Number, Record, spec_field
from ..spec.model import DTYPES_DOC, NAME_DOC, HeadDims, LayerSpec
from ..spec.signature import GROUPS, OF_KEYS, OF_QUERIES, OF_STATES, OF_VALUES, Argument, Signature

if TYPE_CHECKING:
    from ..ir.host import Pass
    from ..ir.kernels import ForeignKernel
    from ..ir.program import Program

MAX_WINDOW = 4096


@dataclass(frozen=True)
class SlidingWindow(LayerSpec):
    """Causal softmax attention over the last `window` keys, the query's own included."""

    mixer: ClassVar[str] = "sliding_window"
    summary: ClassVar[str] = "Causal softmax attention in which a query sees the last keys only."
    fact_types: ClassVar[Mapping[str, type]] = {"window": int, "qk": int, "v": int}
    calls: ClassVar[Mapping[str, tuple[int, int, int]]] = {
        "forward": (8, 16, 2048),
        "backward": (8, 16, 2048),
        "step": (128, 16, 1),
    }
    template_options: ClassVar[tuple[str, ...]] = ("window", "qk", "v")

    name: str = spec_field(Name(), NAME_DOC)
    window: int = spec_field(Integer(1, MAX_WINDOW), "Number of keys that a query sees, its own included.")
    head_dims: HeadDims = spec_field(
        Record(HeadDims, {"qk": Integer(8, 128), "v": Integer(16, 256)}), "Widths of one head."
    )
    scale: float | None = spec_field(
        Number(0.0, 1e6, above=True, optional=True), "Factor on q·k; null means 1/sqrt(qk).", None
    )
    dtypes: tuple[str, ...] = spec_field(Choices(DTYPES), DTYPES_DOC, DTYPES)

    def default_scale(self) -> float:
        """The factor on q·k that is used when a call gives none."""
        return self.scale if self.scale is not None else 1.0 / math.sqrt(self.head_dims.qk)

    def describe(self) -> str:
        return f"softmax over {self.window} keys"

    def facts(self) -> dict[str, Any]:
        return {"window": self.window, "qk": self.head_dims.qk, "v": self.head_dims.v}

    @classmethod
    def template(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        widths = {"qk": given.get("qk", 64), "v": given.get("v", 64)}
        return {"window": given.get("window", 64), "head_dims": widths}

    @property
    def extents(self) -> dict[str, int]:
        return {"QK": self.head_dims.qk, "VALUES": self.head_dims.v, "KEYS": self.window}

    def signature(self) -> Signature:
        qk, v, window = self.head_dims.qk, self.head_dims.v, self.window
        # Keys and values of an initial state are put in front of the call's own: Tk tokens.
        return Signature(
            inputs=(
                Argument("q", ("B", "T", OF_QUERIES, qk), "queries", weighs=True),
                Argument("k", ("B", "Tk", OF_KEYS, qk), "keys", weighs=True),
                Argument("v", ("B", "Tk", OF_VALUES, v), "values"),
            ),
            output=Argument("o", ("B", "T", "H", v), "means of the values in the window of each query"),
            state=(
                Argument("ring_k", ("B", OF_STATES, window, qk), "the last keys; position p lies at p mod W"),
                Argument("ring_v", ("B", OF_STATES, window, v), "the last values"),
                Argument("position", ("B", OF_STATES), "tokens seen", "int32", differentiable=False),
            ),
            numbers={"scale": self.default_scale()},
            carried=(
                Argument(
                    "first",
                    ("N", OF_STATES),
                    "the first key that is a token",
                    "int32",
                    True,
                    differentiable=False,
                ),
            ),
            packs=True,
            kept=(Argument("lse", ("B", "H", "T"), "logarithms of sums of exponentials", ACC),),
            longer={"Tk": "T"},
            groups=GROUPS,
        )

    def programs(self) -> tuple[Program, ...]:
        from ..lower import sliding_window

        return sliding_window.programs(self)

    def passes(self, faster: Mapping[str, ForeignKernel]) -> tuple[Pass, ...]:
        from ..lower import sliding_window_passes

        return sliding_window_passes.passes(self, faster)


MIXER = SlidingWindow
