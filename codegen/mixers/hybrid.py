"""Softmax over the last keys and linear attention over all older ones, under one normaliser."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..dtypes import ACC, DTYPES, STATE
from ..spec import featured
from ..spec.featured import Featured
from ..spec.fields import Choice, Choices, Flag, Integer, Name, Number, Record, Tagged, spec_field
from ..spec.model import DTYPES_DOC, FEATURE_MAPS, NAME_DOC, Conflict, FeatureMap, HeadDims, too_wide
from ..spec.parts import Part
from ..spec.signature import (
    GROUPS,
    OF_KEYS,
    OF_QUERIES,
    OF_STATES,
    OF_VALUES,
    Argument,
    Signature,
)
from .linear_attention import LinearAttention
from .sliding_window import MAX_WINDOW

if TYPE_CHECKING:
    from ..ir.host import Pass
    from ..ir.kernels import ForeignKernel
    from ..ir.program import Program


WIDEST = 64
"""The widest queries and keys, or features made of them by parts."""


@dataclass(frozen=True)
class WindowDims:
    """Widths of the window's own queries and keys."""

    qk: int = spec_field(Integer(8, 128), "Width of a query and of a key of the window.")


@dataclass(frozen=True)
class Hybrid(Featured):
    """o_i = (Σ_{i-j<W} e^(s_ij) v_j + Σ_{i-j>=W} A_ij v_j) / (the same sums without v + eps).

    s_ij is scale · q_i·k_j, and A_ij the weight that linear attention gives a key.  A key leaves the window
    and enters the state.  A window with `window_dims` has queries and keys of its own, of width D, and s_ij
    is their product over √D whatever the scale.  With `parts`, q and k stand for the features that they make;
    a window with `window_dims` sees queries and keys as they are given.  Where the window alone is rescaled,
    as by LoLCATs (arXiv 2410.10254), e^(s_ij - m_i) stands for e^(s_ij), m_i being the highest in the window.
    """

    mixer: ClassVar[str] = "hybrid"
    summary: ClassVar[str] = "Softmax over the last keys and linear attention over all older ones."
    fact_types: ClassVar[Mapping[str, type]] = {
        "feature_map": str,
        "window": int,
        "combine": str,
        "rescale": str,
        "qk": int,
        "v": int,
        "window_qk": int,
    }
    calls: ClassVar[Mapping[str, tuple[int, int, int]]] = {
        "forward": (8, 16, 2048),
        "backward": (8, 16, 2048),
        "step": (128, 16, 1),
    }
    template_options: ClassVar[tuple[str, ...]] = ("feature_map", "window", "qk", "v")

    normalize: ClassVar[bool] = True
    decay: ClassVar[str] = "none"

    name: str = spec_field(Name(), NAME_DOC)
    window: int = spec_field(
        Integer(1, MAX_WINDOW), "Number of keys that a query sees by softmax, its own included."
    )
    feature_map: FeatureMap = spec_field(
        Tagged("kind", FEATURE_MAPS), "How a query and an older key become a weight."
    )
    head_dims: HeadDims = spec_field(
        Record(HeadDims, {"qk": Integer(8, WIDEST), "v": Integer(16, 256)}), "Widths of one head."
    )
    parts: tuple[Part, ...] = featured.parts_field()
    key_parts: tuple[Part, ...] | None = featured.key_parts_field()
    tied: bool = featured.tied_field()
    window_dims: WindowDims | None = spec_field(
        Record(WindowDims, {}, optional=True),
        "Widths of queries and keys that the window has for itself; null means those of the older keys.",
        None,
    )
    combine: str = spec_field(
        Choice(("normalizer", "sum")),
        "Whether both parts share one normaliser, or each has its own and they are added.",
        "normalizer",
    )
    rescale: str = spec_field(
        Choice(("shared", "window")),
        "Whether the highest score in a window rescales both parts, or the window alone.",
        "shared",
    )
    window_factor: bool = spec_field(
        Flag(), "Whether calls may give a factor on the window's weights, one a head.", False
    )
    linear_factor: bool = spec_field(
        Flag(), "Whether calls may give a factor on the weights of older keys, one a head.", False
    )
    eps: float = spec_field(Number(0.0, 1.0), "Added to the sum of the weights before the division.", 1e-6)
    scale: float | None = spec_field(
        Number(0.0, 1e6, above=True, optional=True),
        "Factor on q·k, and on φ(q)·φ(k) of an elementwise map; null means 1/sqrt(qk).",
        None,
    )
    state_dtype: str = spec_field(
        Choice(("float32", "bfloat16", "float16")),
        "Dtype of the recurrent state; two bytes lose digits token by token.",
        "float32",
    )
    dtypes: tuple[str, ...] = spec_field(Choices(DTYPES), DTYPES_DOC, DTYPES)

    def default_scale(self) -> float:
        """The factor on q·k that is used when a call gives none."""
        return self.scale if self.scale is not None else 1.0 / math.sqrt(self.core.head_dims.qk)

    @property
    def kept_dtype(self) -> str:
        return self.state_dtype

    def operand_dtype(self, dtype: str) -> str:
        """Sums over older keys leave float16's range, as those of linear attention."""
        return "bfloat16" if dtype == "float16" else dtype

    def describe(self) -> str:
        return f"softmax over {self.window} keys, {self.feature_map.weight}{self.after_parts} of older ones"

    def facts(self) -> dict[str, Any]:
        widths = {"qk": self.head_dims.qk, "v": self.head_dims.v, "window_qk": self.window_qk or 0}
        return {
            "feature_map": f"{self.feature_map.label}{self.after_parts}",
            "window": self.window,
            "combine": self.combine,
            "rescale": self.rescale,
        } | widths

    @classmethod
    def template(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """`feature_map` is what linear attention takes."""
        fields = LinearAttention.template(given)
        return {"window": given.get("window", 64)} | {x: fields[x] for x in ("feature_map", "head_dims")}

    @classmethod
    def conflicts(cls, values: Mapping[str, Any]) -> Iterable[Conflict]:
        """Too wide a state; weights of both signs, of whose sum no logarithm could be kept; and a rescaling
        of parts that have sums of their own.
        """
        if values.get("rescale") == "window" and values.get("combine") == "sum":
            message = "a window that is added has a normaliser of its own, which no rescaling changes"
            yield Conflict(("rescale",), f"{message}; choose combine: normalizer, or leave rescale out", True)
        feature_map, widths = values.get("feature_map"), values.get("head_dims")
        if not isinstance(feature_map, FeatureMap):
            return
        yield from featured.conflicts(values, min(WIDEST, feature_map.widest), streams=False)
        if isinstance(widths, HeadDims) and not featured.has_parts(values):
            yield from too_wide(feature_map, widths.qk)
        if not featured.weights_of_one_sign(values) and (found := feature_map.signs()):
            message = f"a hybrid divides by {found.message}; choose a map of one sign, such as elu(x) + 1"
            yield Conflict(("feature_map", *found.path), message, found.grave)

    @property
    def window_qk(self) -> int | None:
        """The width of the window's own queries and keys, if it has any."""
        return self.window_dims.qk if self.window_dims else None

    @property
    def factors(self) -> tuple[str, ...]:
        """The names of the factors that calls may give."""
        given = {"window_factor": self.window_factor, "linear_factor": self.linear_factor}
        return tuple(name for name, is_there in given.items() if is_there)

    @property
    def features(self) -> int:
        """Rows of the state."""
        return self.feature_map.features(self.core.head_dims.qk)

    @property
    def extents(self) -> dict[str, int]:
        widths = {"QK": self.core.head_dims.qk, "VALUES": self.head_dims.v}
        if self.window_qk:
            widths |= {"WINDOW_QK": self.window_qk}
        return widths | {"FEATURES": self.features, "KEYS": self.window}

    def signature(self) -> Signature:
        if self.has_parts:
            return self.core.signature()
        qk, v, window, rows = self.head_dims.qk, self.head_dims.v, self.window, self.features
        own, has_own = self.window_qk or qk, self.window_qk is not None

        def sums(prefix: str, optional: bool = False, count: str = "N") -> tuple[Argument, ...]:
            of_values, of_keys = "Σ_j Φ(k_j) v_jᵀ over the keys that have left", "Σ_j Φ(k_j) over the same"
            return (
                Argument(f"{prefix}state", (count, OF_STATES, rows, v), of_values, STATE, optional),
                Argument(f"{prefix}normalizer", (count, OF_STATES, rows), of_keys, ACC, optional),
            )

        # Keys and values of an initial state are put in front of the call's own: Tk tokens.
        return Signature(
            inputs=(
                Argument("q", ("B", "T", OF_QUERIES, qk), "queries", weighs=True),
                Argument("k", ("B", "Tk", OF_KEYS, qk), "keys", weighs=True),
                Argument("v", ("B", "Tk", OF_VALUES, v), "values"),
                *(
                    (
                        Argument(
                            "q_window", ("B", "T", OF_QUERIES, own), "queries of the window", weighs=True
                        ),
                        Argument("k_window", ("B", "Tk", OF_KEYS, own), "keys of the window", weighs=True),
                    )
                    if has_own
                    else ()
                ),
                *(
                    Argument(name, ("H",), "factor of a part of each head", ACC, True, multiplies=True)
                    for name in self.factors
                ),
            ),
            output=Argument("o", ("B", "T", "H", v), "means of the values of all keys"),
            state=(
                Argument("ring_k", ("B", OF_STATES, window, qk), "the last keys; position p lies at p mod W"),
                Argument("ring_v", ("B", OF_STATES, window, v), "the last values"),
                Argument("position", ("B", OF_STATES), "tokens seen", "int32", differentiable=False),
                *sums("", count="B"),
                Argument(
                    "ring_k_window",
                    ("B", OF_STATES, window, own),
                    "the last keys of a window that has its own",
                    present=has_own,
                ),
            ),
            numbers={"scale": self.default_scale()},
            carried=(
                Argument(
                    "ring_start",
                    ("N", OF_STATES),
                    "the first key that exists",
                    "int32",
                    True,
                    differentiable=False,
                ),
                *sums("initial_", optional=True),
            ),
            packs=True,
            kept=self._kept(),
            final=sums("final_"),
            keeps_output=self.combine == "normalizer",
            longer={"Tk": "T"},
            groups=GROUPS,
        )

    def _kept(self) -> tuple[Argument, ...]:
        """What a forward pass keeps for the backward one besides o, or instead of it."""
        lse = Argument("lse", ("B", "H", "T"), "logarithms of sums of weights", ACC)
        if self.rescale == "window":
            return (lse, Argument("n", ("B", "H", "T"), "sums of weights", ACC))
        if self.combine == "normalizer":
            return (lse,)
        rows = ("B", "T", "H", self.head_dims.v)
        return (
            lse,
            Argument("n", ("B", "H", "T"), "sums of weights of older keys", ACC),
            Argument("o_window", rows, "means of the values in the window of each query"),
            Argument("o_linear", rows, "means of the values of older keys"),
        )

    def programs(self) -> tuple[Program, ...]:
        from ..lower import hybrid

        return hybrid.programs(self.core)

    def passes(self, faster: Mapping[str, ForeignKernel]) -> tuple[Pass, ...]:
        from ..lower import hybrid_passes

        return hybrid_passes.passes(self.core, faster)


MIXER = Hybrid
