"""What the programs of linear attention share: names, parameters, and pieces of their bodies."""

from __future__ import annotations

from collections.abc import Iterable

from ..ir.build import Builder
from ..ir.nodes import ACC, IO, OPERAND, STATE, Const, Dim, Expr, Span, Var, cdiv, wrap
from ..ir.program import Axis, Program, Tensor
from ..ir.rewrite import constants_read
from ..memory.fade import FADES, Fade, decay
from ..memory.normalizer import Matrix
from ..memory.states import Kept, Sources
from ..memory.sums import Sums
from ..memory.sums_singles import Chunk, Singles
from ..memory.sums_walk import Walk
from .features import FeatureMap, Meaning
from .ragged import FLAGGED, RAGGED, UNDER, Segment, number_of_chunk, segment_length
from .sequence import Sequence

TOKENS = Sequence("T")
"""The sequence that a program works on."""
ROWS = ("B", "T", "H")
NUMBERS = ("B", "H", "T")
"""One number a token and head: a head's lie side by side, for the program that has them."""
BATCH_AXES = (Axis("b", Var("B"), batch=True), Axis("h", Var("H"), batch=True))
SIZES = ("B", "T", "H", "segments")
FIRST = Const(0)


class Layer:
    """The widths and the feature map of one layer, and the pieces that several of its programs need."""

    sizes: tuple[str, ...] = SIZES
    """Runtime sizes of its programs over chunks and segments."""

    width: Dim = "QK"
    """Columns of a tile of queries or keys."""

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

    def stateful(self, number: Expr) -> Sources:
        """That of a segment, if there is one."""
        return {"STATEFUL": (self.segment_states("STATEFUL"), (number,))}

    def sources(self, number: Expr) -> Sources:
        """What a program over segments goes on from: a user's own state, or that before its segment."""
        initial, before = self.user_states("initial_", "INITIAL"), self.segment_states("SEGMENTED")
        return {"INITIAL": (initial, ()), "SEGMENTED": (before, (number,))}

    def span_states(self, flag: str) -> Kept:
        """`segment_states`, of spans of segments."""
        return self._kept("start_state", "start_normalizer", ("spans",), OPERAND, flag)

    def user_states(self, prefix: str, flag: str | None = None, packed: bool = False) -> Kept:
        """A state as the user passes or gets it: one a batch entry, or a packed sequence."""
        kept = self._kept(f"{prefix}state", f"{prefix}normalizer", (), STATE, flag)
        return kept.of_sequences() if packed else kept

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
        ragged: bool = False,
    ) -> Program:
        """A program over chunks or segments, with the constants that all of them have.

        `ragged`: it takes the segments of several sequences.
        """
        bounds = {"QK": self.qk} | ({"VALUES": self.v} if whole_values else {})
        block = () if self.features.block == "QK" else ("FEATURES",)
        spans = any("spans" in tensor.dims for tensor in tensors)
        places = constants_read(UNDER, axes, b.body) if ragged else ()
        return Program(
            name,
            summary,
            (*BATCH_AXES, *axes),
            (*tensors, FLAGGED) if ragged else tensors,
            (*self.sizes, *places, *(["spans"] if spans else [])),
            ("scale",) if scaled else (),
            (*flags, RAGGED) if ragged else flags,
            (*constants, "QK", *block, "VALUES"),
            b.body,
            bounds,
            frozenset(does),
            {name: UNDER[name] for name in places},
        )

    # Pieces

    def sequence(self, of_queries: bool) -> Sequence:
        """The queries, or the keys, that meet through a state."""
        return TOKENS

    def memory(
        self,
        b: Builder,
        size: str | None = None,
        products: type[Matrix] | None = None,
        fades: bool = True,
        sequence: Sequence = TOKENS,
    ) -> Sums:
        """The memory of a program, as `Sums` takes it."""
        eps = self.spec.eps if self.spec.normalize else None
        fade = self.fade(b, sequence) if fades else None
        return Sums(b, self.features, sequence, eps, size, products, fade)

    def sequence_of(self, segment: Segment, of_queries: bool) -> Sequence:
        """The same of the sequence of a segment."""
        return segment.sequence

    def ends_of(self, b: Builder, segment: Segment, of_queries: bool) -> tuple[Expr, Expr]:
        """The first of these in a segment, and one past the last."""
        segment_length(b)
        return segment.first, segment.end

    def summing(self, b: Builder, of_queries: bool, sequence: Sequence) -> Sums:
        """The memory of a program whose states are sums over keys, or over queries, of a sequence."""
        return self.memory(b, sequence=sequence)

    def fade(self, b: Builder, sequence: Sequence = TOKENS) -> Fade | None:
        """The decay of a program's memory."""
        return FADES[self.spec.decay](b, sequence.begin) if self.spec.decay != "none" else None

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
        segment, start = Segment.of_chunk(b, again=True)
        self._columns(b, first_value)
        memory = self.memory(b, sequence=segment.sequence)
        number_of_chunk(b)
        first, stop = b.let("first_token", segment.first), b.let("stop_token", segment.end)
        return Singles(memory, Chunk(start, first, stop, self.stateful(segment.number), segment))

    def walk(self, b: Builder, first_value: Expr = FIRST) -> Walk:
        """The tokens of a program's segment."""
        segment = Segment.of_program(b, again=True)
        self._columns(b, first_value)
        memory = self.memory(b, sequence=segment.sequence)
        self.segment_length(b)
        first, stop = b.let("first_token", segment.first), b.let("stop_token", segment.end)
        return Walk(memory, first, stop, self.sources(segment.number))

    def _columns(self, b: Builder, first_value: Expr) -> None:
        b.let("d", Span(wrap(0), self.width))
        b.let("u", Span(first_value, "VALUES"))

    def since_segment(self, memory: Sums, t: Var, segment: Segment) -> Var | None:
        """The logarithms of what is left, after tokens of a segment, of the state before it."""
        return memory.since("t_in_segment", t, memory.moment("segment_moment", segment.first))

    def to_end_of_segment(self, memory: Sums, j: Var, segment: Segment) -> Var | None:
        """The logarithms of what is left, at the end of a segment, of its tokens."""
        log = memory.since("j_in_segment", j, memory.moment("segment_moment", segment.end))
        return memory.b.let("j_to_end", -log) if log else None

    def segment_ends(self, segment: Expr, length: Var | None) -> tuple[Expr, Expr]:
        """The first token of a segment of one sequence, and one past its last."""
        assert length is not None
        first = TOKENS.token(segment * length)
        return TOKENS.until(first), TOKENS.until(first + length)

    def segment_length(self, b: Builder) -> Var:
        """Tokens of a segment of one sequence, see `ragged.segment_length`."""
        return b.let("length", cdiv(cdiv(TOKENS.length, "SEGMENT"), "segments") * "SEGMENT")
