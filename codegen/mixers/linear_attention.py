"""Linear attention with any feature map."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..dtypes import ACC, DTYPES, STATE
from ..errors import ExpressionError
from ..spec import delta, featured, replay
from ..spec.featured import Featured
from ..spec.fields import Choice, Choices, Flag, Integer, Name, Number, Record, Tagged, spec_field
from ..spec.model import (
    DTYPES_DOC,
    FEATURE_MAPS,
    NAME_DOC,
    Conflict,
    Elementwise,
    FeatureMap,
    HeadDims,
    Power,
    TaylorExp,
    too_wide,
)
from ..spec.parts import L2Norm, Part
from ..spec.signature import GROUPS, OF_KEYS, OF_QUERIES, OF_STATES, OF_VALUES, Argument, Signature

if TYPE_CHECKING:
    from ..ir.host import Pass
    from ..ir.kernels import ForeignKernel
    from ..ir.program import Program

MOST_REPLAYED = 64
"""The most steps after which a state is written: the ring is read in each of them."""
_POLYNOMIAL = re.compile(r"(taylor|power)([0-9]+)", re.ASCII)
_POLYNOMIALS: dict[str, type[TaylorExp | Power]] = {"taylor": TaylorExp, "power": Power}
"""By their names in `template`, which a number follows."""
_REMEDY = (
    "choose a map of one sign, such as elu(x) + 1, or `normalize: false`, "
    "or accept it: `signed_weights: true`"
)


@dataclass(frozen=True)
class LinearAttention(Featured):
    """o_i = Σ_{j ≤ i} A_ij v_j / (Σ_{j ≤ i} A_ij + eps), or without the denominator.

    A `state_dtype` of two bytes halves what a step reads and writes; sums and the normaliser stay in float32.
    A sequence rounds its final state once.  At every token that would not do: a state would stand still as
    soon as a token adds less than half of its last digit.  So a step rounds at random, up with the
    probability of what is cut off, which is right on average (stochastic rounding: Croci et al., Royal
    Society Open Science 9, 2022).  Chance follows from the numbers, so equal calls give equal bits.  The
    error that is left grows with the steps: docs/states.md has it in numbers.  float16 ends at 65504, beyond
    which a state is infinite.

    With `update: delta` a value is corrected by what the state already answers before it enters, at a rate β
    that each token gives (the delta rule: Widrow and Hoff 1960; Schlag et al., arXiv 2102.11174, equation 24;
    with a decay first: Yang et al., arXiv 2412.06464, equation 10).  `lower/delta.py` has the mathematics.

    With `replay` a step reads the state and writes it every so many steps.  Inputs of the tokens that are not
    in it yet are in a ring of twice as many, and meet queries directly.  `memory/replay.py` has that.
    """

    mixer: ClassVar[str] = "linear_attention"
    summary: ClassVar[str] = (
        "Causal linear attention: a recurrent state of fixed size instead of a key-value cache."
    )
    fact_types: ClassVar[Mapping[str, type]] = {
        "map": str,
        "normalize": bool,
        "decay": str,
        "qk": int,
        "v": int,
        "replay": int,
    }
    calls: ClassVar[Mapping[str, tuple[int, int, int]]] = {
        "forward": (16, 16, 8192),
        "backward": (8, 16, 2048),
        "step": (128, 16, 1),
    }
    template_options: ClassVar[tuple[str, ...]] = ("feature_map", "qk", "v")
    without_parts: ClassVar[Mapping[str, Any]] = {**Featured.without_parts, "unit_keys": False}

    name: str = spec_field(Name(), NAME_DOC)
    feature_map: FeatureMap = spec_field(
        Tagged("kind", FEATURE_MAPS), "How a query and a key become a weight."
    )
    head_dims: HeadDims = spec_field(
        Record(HeadDims, {"qk": Integer(8, 256), "v": Integer(16, 256)}), "Widths of one head."
    )
    parts: tuple[Part, ...] = featured.parts_field()
    key_parts: tuple[Part, ...] | None = featured.key_parts_field()
    tied: bool = featured.tied_field()
    normalize: bool = spec_field(Flag(), "Divide by the sum of the weights.", True)
    signed_weights: bool = spec_field(
        Flag(), "Divide by the sum of the weights also where weights of both signs can make it vanish.", False
    )
    eps: float = spec_field(Number(0.0, 1.0), "Added to the sum of the weights before the division.", 1e-6)
    scale: float | None = spec_field(
        Number(0.0, 1e6, above=True, optional=True),
        "Factor on q·k; null means 1/sqrt(qk) for taylor_exp and power, and 1 for elementwise.",
        None,
    )
    decay: str = spec_field(
        Choice(("none", "head", "token")),
        "Whether the state fades, by one number a head or by one a token and head.",
        "none",
    )
    update: str = spec_field(
        Choice(("add", "delta")),
        "How a token enters the state: its value as it is, or less what the state answers to its key.",
        "add",
        quiet=True,
    )
    unit_keys: bool = spec_field(
        Flag(), "Whether queries and keys are divided by their lengths, after `parts`.", False, quiet=True
    )
    replay: int = spec_field(
        Integer(0, MOST_REPLAYED),
        "Steps after which the state is written, the last tokens' inputs being kept until then; 0 for each.",
        0,
        quiet=True,
    )
    state_dtype: str = spec_field(
        Choice(("float32", "bfloat16", "float16")),
        "Dtype of the recurrent state; two bytes lose digits token by token.",
        "float32",
    )
    dtypes: tuple[str, ...] = spec_field(Choices(DTYPES), DTYPES_DOC, DTYPES)

    def default_scale(self) -> float:
        """The factor on q·k that is used when a call gives none."""
        if self.scale is not None:
            return self.scale
        return 1.0 if isinstance(self.feature_map, Elementwise) else 1.0 / math.sqrt(self.core.head_dims.qk)

    @property
    def kept_dtype(self) -> str:
        return self.state_dtype

    def operand_dtype(self, dtype: str) -> str:
        """There is no softmax: kernel values and states of long sequences leave float16's range."""
        return "bfloat16" if dtype == "float16" else dtype

    @property
    def corrects(self) -> bool:
        """Whether values are corrected before they enter."""
        return self.update == "delta"

    @property
    def pipelines(self) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
        last = (L2Norm(),) if self.unit_keys else ()
        queries, keys = super().pipelines
        return queries + last, keys + last

    def describe(self) -> str:
        more = ", delta rule" if self.corrects else f", replay of {self.replay}" if self.replay else ""
        return f"{self.feature_map.weight}{self.after_parts}{more}"

    def facts(self) -> dict[str, Any]:
        widths = {"qk": self.head_dims.qk, "v": self.head_dims.v}
        rule = " by the delta rule" if self.corrects else ""
        label = f"{self.feature_map.label}{self.after_parts}{rule}"
        replays = {"replay": self.replay} if self.replay else {}  # of a step alone: records of others apply
        return {"map": label, "normalize": self.normalize, "decay": self.decay} | widths | replays

    @classmethod
    def template(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """`feature_map` is ``taylor2`` (the default), another order, ``power2``, ... or an expression in x.

        Where weights have both signs, the layer does not normalise unless `signed_weights` is given.
        """
        text = given.get("feature_map", "taylor2")
        named = _POLYNOMIAL.fullmatch(text.strip())
        feature_map = _POLYNOMIALS[named[1]](int(named[2])) if named else Elementwise(text)
        qk = 64 if named is None else 16 if feature_map.widest >= 16 else 8
        fields: dict[str, Any] = {
            "feature_map": {"kind": feature_map.kind, **asdict(feature_map)},
            "head_dims": {"qk": given.get("qk", qk), "v": given.get("v", 64)},
        }
        try:
            signs = feature_map.signs()
        except ExpressionError:  # which is told with its place when the spec is read
            signs = None
        refused = signs is not None and signs.grave and not given.get("signed_weights")
        return fields | ({"normalize": False} if refused else {})

    @classmethod
    def conflicts(cls, values: Mapping[str, Any]) -> Iterable[Conflict]:
        """What a map cannot have: too wide a state; a normaliser that can vanish, unless that is known."""
        divides = values.get("normalize", True) is True and values.get("signed_weights", False) is False
        feature_map, widths = values.get("feature_map"), values.get("head_dims")
        if not isinstance(feature_map, FeatureMap):
            return
        yield from featured.conflicts(values, feature_map.widest, streams=True)
        yield from delta.conflicts(values, feature_map)
        yield from replay.conflicts(values)
        if isinstance(widths, HeadDims) and not featured.has_parts(values):
            yield from too_wide(feature_map, widths.qk)
        if not divides or featured.weights_of_one_sign(values):
            return
        if found := feature_map.signs():
            message = f"`normalize` divides by {found.message}; {_REMEDY}"
            yield Conflict(("feature_map", *found.path), message, found.grave)

    @property
    def features(self) -> int:
        """Rows of the state."""
        return self.feature_map.features(self.core.head_dims.qk)

    @property
    def extents(self) -> dict[str, int]:
        ring = {"RING": 2 * self.replay} if self.replay else {}
        return {"QK": self.core.head_dims.qk, "VALUES": self.head_dims.v, "FEATURES": self.features} | ring

    def signature(self) -> Signature:
        if self.has_parts:
            return self.core.signature()
        qk, v, rows, normalize = self.head_dims.qk, self.head_dims.v, self.features, self.normalize

        def state(prefix: str, optional: bool = False, count: str = "N") -> tuple[Argument, ...]:
            sums = "Σ_j Φ(k_j) v_jᵀ over the tokens seen"
            of_keys = "Σ_j Φ(k_j) over the tokens seen"
            return (
                Argument(f"{prefix}state", (count, OF_STATES, rows, v), sums, STATE, optional),
                Argument(
                    f"{prefix}normalizer", (count, OF_STATES, rows), of_keys, ACC, optional, present=normalize
                ),
            )

        rate = "how much of the error each token takes back, from 0 to 2"
        rates = (Argument("beta", ("B", "T", OF_STATES), rate, ACC, corrects=True),) if self.corrects else ()
        decays = {"none": (), "head": ((OF_STATES,),), "token": (("B", "T", OF_STATES),)}[self.decay]
        of_state = "logarithm of what is left of the state, at most 0"
        return Signature(
            inputs=(
                Argument("q", ("B", "T", OF_QUERIES, qk), "queries", weighs=True),
                Argument("k", ("B", "T", OF_KEYS, qk), "keys", weighs=True),
                Argument("v", ("B", "T", OF_VALUES, v), "values"),
                *(Argument("log_decay", dims, of_state, ACC, fades=True) for dims in decays),
                *rates,
            ),
            output=Argument("o", ("B", "T", "H", v), "what is read for each query"),
            state=(*self._ring(), *state("", count="B")),
            numbers={"scale": self.default_scale()},
            carried=state("initial_", optional=True),
            packs=True,
            adapts=not self.corrects,
            kept=(Argument("n", ("B", "H", "T"), "sums of weights", ACC, present=normalize),)
            if not self.corrects
            else (),
            final=state("final_"),
            keeps_output=not self.corrects,
            groups=GROUPS,
        )

    def _ring(self) -> tuple[Argument, ...]:
        """What a state has of the tokens that are not in its sums yet."""
        if not self.replay:
            return ()
        ring, tokens = ("B", OF_STATES, 2 * self.replay), ("B", OF_STATES)
        return (
            Argument("ring_k", (*ring, self.head_dims.qk), "the last keys"),
            Argument("ring_v", (*ring, self.head_dims.v), "the last values"),
            Argument("position", tokens, "tokens since the sums had all", "int32", differentiable=False),
            Argument("entered", tokens, "those of them that are in the sums", "int32", differentiable=False),
        )

    def programs(self) -> tuple[Program, ...]:
        from ..lower import delta, linear_attention

        return (delta if self.corrects else linear_attention).programs(self.core)

    def passes(self, faster: Mapping[str, ForeignKernel]) -> tuple[Pass, ...]:
        from ..lower import delta_passes, linear_attention_passes

        return (delta_passes if self.corrects else linear_attention_passes).passes(self.core, faster)


MIXER = LinearAttention
