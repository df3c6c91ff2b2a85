"""What the programs of linear attention share: names, parameters, and pieces of their bodies."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager

from ..ir.build import Builder
from ..ir.nodes import (
    ACC,
    IO,
    OPERAND,
    STATE,
    Axis,
    Expr,
    Load,
    Program,
    Span,
    Tensor,
    Var,
    cdiv,
    maximum,
    row,
)
from ..mixers.linear_attention import LinearAttention
from .feature_maps import FeatureMap

B, H, T = Var("b"), Var("h"), Var("T")
ROWS = ("B", "T", "H")
NUMBERS = ("B", "H", "T")
"""One number a token and head: a head's lie side by side, for the program that has them."""
BATCH_AXES = (Axis("b", Var("B"), batch=True), Axis("h", Var("H"), batch=True))
CHUNK_AXIS = Axis("chunk", cdiv("T", "CHUNK"))
SIZES = ("B", "T", "H", "segments")


class Layer:
    """The widths and the feature map of one layer, and the pieces that several of its programs need."""

    def __init__(self, spec: LinearAttention, features: FeatureMap) -> None:
        self.spec, self.features = spec, features
        self.qk, self.v = spec.head_dims.qk, spec.head_dims.v

    # Parameters

    def queries(self, name: str) -> Tensor:
        """q or k, as the user passes it."""
        return Tensor(name, (*ROWS, self.qk), IO, strided=True)

    def values(self, name: str, strided: bool = True) -> Tensor:
        """v or do as the user passes it, or an output of its shape."""
        return Tensor(name, (*ROWS, self.v), IO, strided)

    def segment_sums(self) -> tuple[Tensor, ...]:
        """What every segment adds to the state and, where the layer normalises, to its normaliser."""
        sums = Tensor("sums", ("B", "H", "segments", self.features.rows, self.v), ACC)
        normalizer = Tensor("normalizer_sums", ("B", "H", "segments", self.features.rows), ACC)
        return (sums, normalizer) if self.spec.normalize else (sums,)

    def segment_states(self, flag: str | None = None) -> tuple[Tensor, ...]:
        """The state before (or after) every segment, a matrix operand, and its normaliser."""
        state = Tensor("state", ("B", "H", "segments", self.features.rows, self.v), OPERAND, optional=flag)
        normalizer = Tensor("normalizer", ("B", "H", "segments", self.features.rows), ACC, optional=flag)
        return (state, normalizer) if self.spec.normalize else (state,)

    def span_states(self, flag: str) -> tuple[Tensor, ...]:
        """`segment_states`, of spans of segments."""
        state = Tensor("start_state", ("B", "H", "spans", self.features.rows, self.v), OPERAND, optional=flag)
        normalizer = Tensor("start_normalizer", ("B", "H", "spans", self.features.rows), ACC, optional=flag)
        return (state, normalizer) if self.spec.normalize else (state,)

    def user_states(self, prefix: str, flag: str | None = None) -> tuple[Tensor, ...]:
        """A state as the user passes or gets it."""
        state = Tensor(f"{prefix}state", ("B", "H", self.features.rows, self.v), STATE, optional=flag)
        normalizer = Tensor(f"{prefix}normalizer", ("B", "H", self.features.rows), ACC, optional=flag)
        return (state, normalizer) if self.spec.normalize else (state,)

    def row_sums(self, *names: str) -> tuple[Tensor, ...]:
        """Vectors with one number a token, which only a normalised layer has."""
        return tuple(Tensor(name, NUMBERS, ACC) for name in names) if self.spec.normalize else ()

    def gradients(self) -> Tensor:
        """g, which is do where the layer does not normalise."""
        return Tensor("g", (*ROWS, self.v), OPERAND) if self.spec.normalize else self.values("do")

    def program(
        self,
        name: str,
        summary: str,
        axes: tuple[Axis, ...],
        tensors: tuple[Tensor, ...],
        b: Builder,
        constants: tuple[str, ...],
        whole_values: bool,
        flags: tuple[str, ...] = (),
        scaled: bool = True,
        does: Iterable[str] = (),
    ) -> Program:
        """A program over chunks or segments, with the constants that all of them have."""
        bounds = {"QK": self.qk} | ({"VALUES": self.v} if whole_values else {})
        block = () if self.features.block == "QK" else ("FEATURES",)
        return Program(
            name,
            summary,
            (*BATCH_AXES, *axes),
            tensors,
            (*SIZES, "spans") if any("spans" in tensor.dims for tensor in tensors) else SIZES,
            ("scale",) if scaled else (),
            flags,
            (*constants, "QK", *block, "VALUES"),
            b.body,
            bounds,
            frozenset(does),
        )

    # Pieces

    def gradient_tile(self, b: Builder, t: Var, u: Var) -> Var:
        """g as a matrix operand, one row a token."""
        return b.let("G", Load(self.gradients().name, (B, t, H, u), OPERAND))

    def weighted_features(
        self, b: Builder, name: str, operand: Var, f: Var, selection: tuple[Var, ...]
    ) -> Var:
        """The query-side features of the block `f`: the map's own times their weights."""
        plain = self.features.features(b, f"{name}_plain", operand, selection)
        weight = self.features.weights(b, f)
        return b.let(name, plain * row(weight))

    def feature_loop(self, b: Builder) -> AbstractContextManager[Var]:
        """A loop over all features, one block at a time."""
        return b.loop("f0", 0, self.features.rows, self.features.block)

    def features_at(self, b: Builder, f0: Expr) -> Var:
        """The index tile of one block of features."""
        return b.let("f", Span(f0, self.features.block))

    def rows_past_end(self, b: Builder, t0: Expr, size: str) -> Var:
        """How many of `size` tokens from `t0` on lie past the end of the sequence."""
        return b.let("past", maximum(t0 + size - T, 0))

    def segment_length(self, b: Builder) -> Var:
        """Tokens of a segment: the fewest whole grains of SEGMENT tokens with which `segments` cover T."""
        return b.let("length", cdiv(cdiv(T, "SEGMENT"), "segments") * "SEGMENT")
