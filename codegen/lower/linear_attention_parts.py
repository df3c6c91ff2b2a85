"""What the programs of linear attention share: names, parameters, and pieces of their bodies."""

from __future__ import annotations

from collections.abc import Iterable

from ..ir.build import Builder
from ..ir.nodes import ACC, IO, OPERAND, STATE, Const, Dim, Expr, Span, Var, cdiv, wrap
from ..ir.program import Axis, Program, Tensor
from ..memory.fade import FADES, Fade, decay
from ..memory.states import Kept
from ..memory.sums import Sums
from ..memory.sums_singles import Chunk, Singles
from ..memory.sums_walk import Walk
from .features import FeatureMap, Meaning
from .sequence import Sequence

TOKENS = Sequence("T")
"""The sequence that a program works on."""
ROWS = ("B", "T", "H")
NUMBERS = ("B", "H", "T")
"""One number a token and head: a head's lie side by side, for the program that has them."""
BATCH_AXES = (Axis("b", Var("B"), batch=True), Axis("h", Var("H"), batch=True))
CHUNK_AXIS = Axis("chunk", cdiv("T", "CHUNK"))
SIZES = ("B", "T", "H", "segments")
FIRST = Const(0)


class Layer:
    """The widths and the feature map of one layer, and the pieces that several of its programs need."""

    sizes: tuple[str, ...] = SIZES
    """Runtime sizes of its programs over chunks and segments."""
    in_groups = True
    """Whether several queries may share the head of a state."""

    def __init__(self, spec: Meaning, features: FeatureMap) -> None:
        self.spec, self.features = spec, features
        self.qk, self.v = spec.head_dims.qk, spec.head_dims.v

    # Parameters

    def queries(self, name: str) -> Tensor:
        """q or k, as the user passes it."""
        return Tensor(name, (*ROWS, self.qk), IO, strided=True)

    def keys(self) -> tuple[Tensor, ...]:
        """What a program that sums over keys reads of them."""
        return self.queries("k"), self.values("v")

    def values(self, name: str, strided: bool = True) -> Tensor:
        """v or do as the user passes it, or an output of its shape."""
        return Tensor(name, (*ROWS, self.v), IO, strided)

    def segment_sums(self) -> Kept:
        """What every segment adds to the state and, where the layer normalises, to its normaliser."""
        return self._kept("sums", "normalizer_sums", ("segments",), ACC)

    def segment_states(self, flag: str | None = None, prefix: str = "") -> Kept:
        """The state before (or after) every segment, a matrix operand, and its normaliser."""
        return self._kept(f"{prefix}state", f"{prefix}normalizer", ("segments",), OPERAND, flag)

    def span_states(self, flag: str) -> Kept:
        """`segment_states`, of spans of segments."""
        return self._kept("start_state", "start_normalizer", ("spans",), OPERAND, flag)

    def user_states(self, prefix: str, flag: str | None = None) -> Kept:
        """A state as the user passes or gets it."""
        return self._kept(f"{prefix}state", f"{prefix}normalizer", (), STATE, flag)

    def _kept(
        self,
        state: str,
        normalizer: str,
        dims: tuple[str, ...],
        dtype: str,
        flag: str | None = None,
    ) -> Kept:
        shape: tuple[Dim, ...] = ("B", "H", *dims, self.features.rows)
        z = Tensor(normalizer, shape, ACC, optional=flag)
        return Kept(
            (Tensor(state, (*shape, self.v), dtype, optional=flag), *((z,) if self.spec.normalize else ()))
        )

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
            (*self.sizes, "spans") if any("spans" in tensor.dims for tensor in tensors) else self.sizes,
            ("scale",) if scaled else (),
            flags,
            (*constants, "QK", *block, "VALUES"),
            b.body,
            bounds,
            frozenset(does),
        )

    # Pieces

    def sequence(self, of_queries: bool) -> Sequence:
        """The queries, or the keys, that meet through a state."""
        return TOKENS

    def memory(self, b: Builder, size: str | None = None, products: bool = False, fades: bool = True) -> Sums:
        """The memory of a program, as `Sums` takes it."""
        eps = self.spec.eps if self.spec.normalize else None
        return Sums(b, self.features, TOKENS, eps, size, products, self.fade(b) if fades else None)

    def summing(self, b: Builder, of_queries: bool) -> Sums:
        """The memory of a program whose states are sums over keys, or over queries."""
        return self.memory(b)

    def fade(self, b: Builder) -> Fade | None:
        """The decay of a program's memory."""
        return FADES[self.spec.decay](b) if self.spec.decay != "none" else None

    def decay_of(self, b: Builder, t: Expr) -> Var | None:
        """The decay of one token."""
        return decay(b, "decay", FADES[self.spec.decay].place(t)) if self.spec.decay != "none" else None

    def given_decays(self) -> tuple[Tensor, ...]:
        """The decays that a call gives."""
        return tuple(
            Tensor(x.name, (*x.dims[:-1], "H"), ACC) for x in self.spec.signature().inputs if x.fades
        )

    def decays(self) -> tuple[Tensor, ...]:
        """What a program reads of the decay."""
        return FADES[self.spec.decay].tensors if self.spec.decay != "none" else ()

    # Second looks.  What they need is introduced anew: what the program had of it would be kept for their
    # sake, through every loop, in registers.

    def singles(self, b: Builder, first_value: Expr = FIRST) -> Singles:
        """The rows of a program's chunk; `first_value` is the first of its columns of values."""
        memory, length = self._again(b, first_value), self.segment_length(b)
        place = Var("chunk") * "CHUNK"
        segment = b.let("segment", place // length)
        first, stop = self._segment(b, segment, length)
        return Singles(
            memory, Chunk(TOKENS.token(place), first, stop, self.segment_states("STATEFUL"), segment)
        )

    def walk(self, b: Builder, first_value: Expr = FIRST) -> Walk:
        """The tokens of a program's segment."""
        memory, segment = self._again(b, first_value), Var("segment")
        first, stop = self._segment(b, segment, self.segment_length(b))
        initial, before = self.user_states("initial_", "INITIAL"), self.segment_states("SEGMENTED")
        return Walk(memory, first, stop, {"INITIAL": (initial, ()), "SEGMENTED": (before, (segment,))})

    def _again(self, b: Builder, first_value: Expr) -> Sums:
        b.let("d", Span(wrap(0), "QK"))
        b.let("u", Span(first_value, "VALUES"))
        return self.memory(b)

    def _segment(self, b: Builder, segment: Var, length: Var) -> tuple[Var, Var]:
        first = b.let("first_token", TOKENS.token(segment * length))
        return first, b.let("stop_token", TOKENS.until(first + length))

    def since_segment(self, memory: Sums, t: Var, segment: Var, length: Var) -> Var | None:
        """The logarithms of what is left, after tokens of a segment, of the state before it."""
        before = memory.moment("segment_moment", TOKENS.token(segment * length))
        return memory.since("t_in_segment", t, before)

    def to_end_of_segment(self, memory: Sums, j: Var, segment: Var, length: Var) -> Var | None:
        """The logarithms of what is left, at the end of a segment, of its tokens."""
        end = memory.moment("segment_moment", TOKENS.until(TOKENS.token(segment * length + length)))
        log = memory.since("j_in_segment", j, end)
        return memory.b.let("j_to_end", -log) if log else None

    def of_segment(self, memory: Sums, segment: Expr, length: Var) -> Var | None:
        """The logarithm of what is left over a segment."""
        first = TOKENS.token(segment * length)
        start, stop = TOKENS.until(first), TOKENS.until(first + length)
        return memory.between("segment_log", memory.moment("start", start), memory.moment("stop", stop))

    def segment_length(self, b: Builder) -> Var:
        """Tokens of a segment: the fewest whole grains of SEGMENT tokens with which `segments` cover all."""
        return b.let("length", cdiv(cdiv(TOKENS.length, "SEGMENT"), "segments") * "SEGMENT")
