"""What the programs of hybrid layers share: names, parameters, and their memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ..ir.build import Builder
from ..ir.flags import Chosen
from ..ir.nodes import ACC, IO, Expr, Span, Var, maximum, wrap
from ..ir.program import Axis, Program, Tensor
from ..memory.hybrid import GIVEN, WINDOW_FACTOR, Older, Recent
from ..memory.hybrid import Hybrid as Memory
from ..memory.hybrid_added import Added
from ..memory.hybrid_singles import Singles
from ..memory.hybrid_windowed import AGE, SHIFT, Windowed
from ..memory.normalizer import Matrix
from ..memory.sums_singles import Chunk
from ..mixers.hybrid import Hybrid
from . import linear_attention_parts
from .features import FeatureMap
from .hybrid_tokens import COUNT, FIRSTS, PADDED, Segments, Tokens
from .ragged import BEGUN, LENGTH, RAGGED, Dense, Segment
from .sequence import Sequence

KEY_ROWS = ("B", "Tk", "H")
BY_GRADIENTS = (WINDOW_FACTOR,)
"""The factors that gradients need besides what queries have stored."""


class Layer(linear_attention_parts.Layer):
    """The widths of one layer, and the pieces that several of its programs need."""

    sizes = ("B", "T", "Tk", "H", "segments")

    def __init__(self, spec: Hybrid, features: FeatureMap) -> None:
        super().__init__(spec, features)
        self.window, self.state_dtype = spec.window, spec.state_dtype
        self.adds, self.windowed = spec.combine == "sum", spec.rescale == "window"
        self.names, self.own_qk = spec.factors, spec.window_qk
        self.dense = Tokens.dense(spec.window)
        self.tokens = self.dense.or_packed(spec.window)

    # Parameters

    def queries(self, name: str) -> Tensor:
        return Tensor(name, (*(KEY_ROWS if name == "k" else ("B", "T", "H")), self.qk), IO, strided=True)

    def values(self, name: str, strided: bool = True) -> Tensor:
        return Tensor(name, (*(KEY_ROWS if name in ("v", "dv") else ("B", "T", "H")), self.v), IO, strided)

    def keys(self) -> tuple[Tensor, ...]:
        return (*super().keys(), *FIRSTS)

    def own(self, key_rows: tuple[str, ...] = KEY_ROWS) -> tuple[Tensor, ...]:
        """Queries and keys that the window has for itself."""
        if not self.own_qk:
            return ()
        rows = {"q_window": linear_attention_parts.ROWS, "k_window": key_rows}
        return tuple(Tensor(name, (*dims, self.own_qk), IO, strided=True) for name, dims in rows.items())

    def gradients_of(self, name: str, rows: tuple[str, ...]) -> tuple[Tensor, ...]:
        """dq or dk, and that of the window's own."""
        gradient = Tensor(name, (*rows, self.qk), IO)
        return (gradient, Tensor(f"{name}_window", (*rows, self.own_qk), IO)) if self.own_qk else (gradient,)

    def factors(self, stored: bool = False) -> tuple[Tensor, ...]:
        """Those that a call may give; `stored`: of a program that finds what queries have stored."""
        names = (name for name in self.names if name in BY_GRADIENTS or not stored)
        return tuple(Tensor(name, ("H",), ACC, optional=GIVEN[name]) for name in names)

    def owed(self) -> tuple[Tensor, ...]:
        """What they are owed by each query."""
        rows = linear_attention_parts.NUMBERS
        return tuple(Tensor(f"{name}_rows", rows, ACC, optional=GIVEN[name]) for name in self.names)

    def highest(self) -> tuple[Tensor, ...]:
        """What the highest key of each query is owed for its window, and which it is."""
        numbers = linear_attention_parts.NUMBERS
        return tuple(Tensor(name, numbers, ACC) for name in (SHIFT, AGE)) if self.windowed else ()

    def results(self) -> tuple[Tensor, ...]:
        """What a forward pass keeps of each query besides o."""
        lse = Tensor("lse", linear_attention_parts.NUMBERS, ACC)
        if self.windowed:
            return (lse, *self.row_sums("n"))
        if not self.adds:
            return (lse,)
        parts = (self.values(name, strided=False) for name in ("o_window", "o_linear"))
        return (lse, *self.row_sums("n"), *parts)

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
        tensors = tuple(tensor for tensor in tensors if ragged or tensor != FIRSTS[1])
        optional = (
            tensor.optional for tensor in tensors if tensor.optional in (PADDED, BEGUN, *GIVEN.values())
        )
        flags = (*flags, *dict.fromkeys(flag for flag in optional if flag))
        own = self.bounds if any(tensor in tensors for tensor in self.own()) else {}
        constants = (*constants, *own)
        program = super().program(
            name, summary, axes, tensors, b, constants, whole_values, flags, scaled, does, ragged
        )
        if FIRSTS[1] in tensors:
            program = replace(program, sizes=(*program.sizes, COUNT), under=program.under | {COUNT: RAGGED})
        return replace(program, bounds=program.bounds | own)

    @property
    def bounds(self) -> dict[str, int]:
        """What the constant of the window's own width must cover."""
        return {"WINDOW_QK": self.own_qk} if self.own_qk else {}

    # Pieces

    def columns(self, b: Builder, first: Expr = linear_attention_parts.FIRST) -> Var:
        """The index tiles of columns; returns that of values."""
        b.let("d", Span(wrap(0), "QK"))
        if self.own_qk:
            b.let("w", Span(wrap(0), "WINDOW_QK"))
        return b.let("u", Span(first, "VALUES"))

    def sequence(self, of_queries: bool) -> Sequence:
        return self.dense.late if of_queries else self.dense.older

    def sequence_of(self, segment: Segment, of_queries: bool) -> Sequence:
        return self.tokens.late if of_queries else self.tokens.older

    def ends_of(self, b: Builder, segment: Segment, of_queries: bool) -> tuple[Expr, Expr]:
        sequence, late = self.sequence_of(segment, of_queries), self.window if of_queries else 0
        return Segments(b, self.dense).ends(segment, sequence, late, self.sequence(of_queries))

    def memory(
        self,
        b: Builder,
        size: str | None = None,
        products: type[Matrix] | None = None,
        fades: bool = True,
        sequence: Sequence | None = None,
    ) -> Older:
        sequence = sequence or self.dense.older
        return Older(b, self.features, sequence, self.dense.queries, self.spec.eps, size)

    def summing(self, b: Builder, of_queries: bool, sequence: Sequence) -> Older:
        tokens = self.tokens if isinstance(sequence.stop, Chosen) else self.dense
        first = None if of_queries else self.recent(b, tokens).first_key()
        return Older(b, self.features, tokens.older, tokens.queries, self.spec.eps, first=first)

    def recent(self, b: Builder, tokens: Tokens) -> Recent:
        return Recent(b, self.window, tokens.queries, tokens.keys, self.own_qk)

    def both(self, b: Builder, stored: bool = False) -> Memory:
        """The memory of a program over chunks, of which all keys are loaded; see `factors`."""
        tokens, names = self.tokens, tuple(factor.name for factor in self.factors(stored))
        older = Older(b, self.features, tokens.keys, tokens.queries, self.spec.eps)
        return self._together(b, older, names, tokens)

    def both_by_query(self, b: Builder, stored: bool = False) -> Memory:
        """The same of a program over queries, each of which has factors of its own head."""
        memory = self.both(b, stored)
        memory.weigh()
        return memory

    def stepped(self, b: Builder) -> Memory:
        """The memory of a step."""
        return self._together(b, self.memory(b), self.names, self.dense)

    def _together(self, b: Builder, older: Older, names: tuple[str, ...], tokens: Tokens) -> Memory:
        memory = Added if self.adds else Windowed if self.windowed else Memory
        return memory(b, older, self.recent(b, tokens), names)

    # Second looks: what they need is introduced anew, as of linear attention.

    def again_by_query(
        self, b: Builder, first_value: Expr = linear_attention_parts.FIRST, stored: bool = False
    ) -> Singles:
        """The rows of a program over chunks of queries."""
        _, begin = Segment.of_chunk(b, again=True, ends=False)
        self.columns(b, first_value)
        memory, first = self.both_by_query(b, stored), self.recent(b, self.tokens).first_key()
        place = Segments(b, self.dense).of(memory.youngest(begin))
        stop = b.let("stop_token", self.tokens.keys.until(memory.window.place(begin) + "CHUNK"))
        chunk = Chunk(begin, place.first, stop, self.stateful(place.number), Dense(place.number))
        return Singles(memory, chunk, first)

    def again_by_key(self, b: Builder) -> Singles:
        """The rows of a program over chunks of keys."""
        _, begin = Segment.of_chunk(b, again=True, ends=False)
        self.columns(b)
        tokens, memory = self.tokens, self.both(b, stored=True)
        first = self.recent(b, tokens).first_key()
        place = Segments(b, self.dense).of(begin)
        late = b.let("late_token", tokens.late.until(memory.last_query(place.first + LENGTH) + 1))
        stop = b.let("stop_token", maximum(late, tokens.queries.until(memory.last_query(begin + "CHUNK"))))
        kept, segment = self.stateful(place.number), Dense(place.number)
        return Singles(memory, Chunk(begin, tokens.older.stop, stop, kept, segment), first, late)
