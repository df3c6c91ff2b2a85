"""A sequence chunk by chunk, where channels of a head share a filter: products of tables, for matrix units.

`state_space_tables.py` has the formulas.  Where a chunk has but r tokens, the last of a segment, the last r
columns of A are its own: λ^{r-1-l}.  Backwards (`back`) everything is transposed, and that chunk comes first.
"""

from __future__ import annotations

from ..dtypes import ACC, IO, OPERAND
from ..ir.build import Builder
from ..ir.nodes import Cast, Const, Dot, Expr, Load, Span, Transpose, Var, column, maximum, row
from ..ir.program import Axis, Program, Tensor
from .ragged import FLAGGED, LENGTH, RAGGED, UNDER, Segment, segment_length
from .second_look import doubt_of, mend, second_look
from .state_space_parts import BATCH, B, Complex, H, Layer, Named, Tile, owe_token, take_token
from .state_space_tables import TAPS, TOEPLITZ, L, M, chunked, entering, leaving, powers, spans, table

SEGMENTS = Axis("segment", Var("segments"))
NUMBER = Var("segment")
SIZES = ("B", "T", "H", "segments", TAPS)
N, D = Var("n"), Var("d")


def kept(layer: Layer, name: str, count: str, dtype: str = ACC, optional: str | None = None) -> Tensor:
    """A state of each segment or chunk, real parts before imaginary ones."""
    return Tensor(name, ("B", count, "H", 2, layer.modes, layer.spec.width), dtype, optional=optional)


def held(b: Builder, name: str, tensor: str, number: Expr, dtype: str = ACC, entry: Expr = B) -> Named:
    """One of them."""
    return Named(
        *(
            b.let(f"{name}_{part}", Load(tensor, (entry, number, H, Const(i), N, D), dtype))
            for i, part in enumerate(("re", "im"))
        )
    )


def hold(b: Builder, tensor: str, number: Expr, value: Complex, dtype: str = ACC) -> None:
    """Keep one."""
    for i, part in enumerate((value.re, value.im)):
        b.store(tensor, (B, number, H, Const(i), N, D), part if dtype == ACC else Cast(part, dtype))


def states(layer: Layer, back: bool) -> Program:
    """What a segment adds to the state (`SUMS`), and the state before each of its chunks (`KEPT`)."""
    chunks = Chunks(layer, back, answers=False)
    chunks.run()
    with chunks.b.when("SUMS"):
        hold(chunks.b, "segment_sums", NUMBER, chunks.state.value)
    how = "from the last chunk to the first" if back else "chunk by chunk"
    return chunks.program(
        "chunk_states",
        f"The state of a segment, {how}.",
        (kept(layer, "segment_sums", "segments", optional="SUMS"),),
        ("SUMS",),
    )


def outputs(layer: Layer, back: bool) -> Program:
    """The outputs of a segment; backwards, the gradients of its inputs."""
    chunks = Chunks(layer, back, answers=True)
    b = chunks.b
    chunks.run()
    with b.when("FINAL"):
        layer.store(b, "state_left", B, chunks.state.value)
    # Every value enters the state, so this is finite only if all of them are.
    with second_look(b, doubt_of(b, chunks.state.re)):
        chunks.again()
    return chunks.program(
        "chunk_outputs",
        f"The {'gradients of the inputs' if back else 'outputs'} of a segment, chunk by chunk.",
        (
            TOEPLITZ,
            layer.given_residues(),
            layer.skip(),
            layer.of_tokens(chunks.made, strided=False),
            layer.states("state_left", "B", "FINAL"),
        ),
        ("SKIP", "FINAL"),
    )


class Chunks:
    """The chunks of a segment, the state that goes through them, and perhaps what they answer."""

    def __init__(self, layer: Layer, back: bool, answers: bool) -> None:
        self.layer, self.back, self.answers = layer, back, answers
        self.given, self.made = ("dy", "dx") if back else ("x", "y")
        self.enters, self.leaves = ("leaving", "entering") if back else ("entering", "leaving")
        self.b = b = Builder()
        layer.begin(b)
        spans(b)
        segment_length(b)
        segment = Segment.of_program(b)
        self.first, self.stop = b.let("first", segment.first), b.let("stop", segment.end)
        self.state = self._begun("s")
        self.skip = layer.skipped(b) if answers else None
        self.toeplitz = b.let("taps_of_chunk", Load("filter_matrix", (H, L, M), OPERAND)) if answers else None

    def run(self) -> None:
        """All chunks, each of the tokens from a first one on."""
        b = self.b
        length = b.let("tokens", maximum(self.stop - self.first, 0))
        rest = b.let("rest", self.first + length // "CHUNK" * "CHUNK")
        into = table(b, "into", self.enters, OPERAND)
        out = table(b, "out", self.leaves, OPERAND) if self.answers else None
        decay = self._decay("whole", Var(TAPS))
        if self.back:
            self._last(rest, into, out)
            with b.loop("i0", 0, rest - self.first, "CHUNK") as i0:
                self._chunk("", b.let("t0", rest - "CHUNK" - i0), into, out, decay)
        else:
            with b.loop("t0", self.first, rest, "CHUNK") as t0:
                self._chunk("", t0, into, out, decay)
            self._last(rest, into, out)

    def again(self) -> None:
        """What they answer token by token, as a program of its own."""
        b, layer, back = self.b, self.layer, self.back
        layer.begin(b)
        segment_length(b)
        with b.when(RAGGED):
            Segment.of_packed(b, NUMBER)
        segment = Segment.perhaps(NUMBER)
        first, stop = b.let("first_token", segment.first), b.let("stop_token", segment.end)
        pole = self._decay("token", Const(1))
        residues, skip, state = layer.residues(b), layer.skipped(b), self._begun("s_row")
        with b.loop("i_row", 0, stop - first) as i:
            t = b.let("t_row", stop - 1 - i if back else first + i)
            x = b.let("x_row", Load(self.given, layer.place(B, t), ACC))
            if back:
                y = owe_token(b, state, Complex(residues.re, -residues.im), skip, x)
            else:
                y = take_token(b, state, pole, residues, skip, x)
            mend(b, self.made, layer.place(B, t), y)
            if back:
                state.set(pole * state.value)

    def program(
        self, name: str, summary: str, tensors: tuple[Tensor, ...], flags: tuple[str, ...]
    ) -> Program:
        layer = self.layer
        return chunked(
            layer,
            f"{name}_back" if self.back else name,
            summary,
            self.b,
            (BATCH, *layer.heads, SEGMENTS, layer.channel_block),
            (
                layer.of_tokens(self.given),
                entering(layer),
                leaving(layer),
                powers(layer),
                layer.states("state_given", "B", "INITIAL"),
                kept(layer, "states_before", "segments", optional="SEGMENTED"),
                kept(layer, "states_kept", "chunks", OPERAND, "KEPT"),
                *tensors,
                FLAGGED,
            ),
            (*SIZES, "chunks", "places"),
            ("INITIAL", "SEGMENTED", "KEPT", *flags, RAGGED),
            under=UNDER,
        )

    # Pieces

    def _begun(self, name: str) -> Tile:
        """The state before the segment; backwards, what is owed to it after that."""
        b, state = self.b, Tile.zeros(self.b, name)
        with b.when("INITIAL"):
            state.add(self.layer.load(b, f"{name}_given", "state_given", B))
        with b.when("SEGMENTED"):
            state.add(held(b, f"{name}_before", "states_before", NUMBER))
        return state

    def _decay(self, name: str, count: Expr) -> Complex:
        """λ to the power of so many tokens; backwards its conjugate."""
        found = table(self.b, f"{name}_decay", "powers", ACC, count - 1)
        im = column(found.im)
        return Complex(column(found.re), -im if self.back else im)

    def _last(self, rest: Expr, into: Named, out: Named | None) -> None:
        """What tokens are left, if any, as a chunk."""
        b = self.b
        with b.loop("t1", rest, self.stop, "CHUNK") as t1:
            count = b.let("count", self.stop - t1)
            late = table(b, "late", "entering", OPERAND, b.let("l_late", Span(Var(TAPS) - count, "CHUNK")))
            into, out = (into, out and late) if self.back else (late, out)
            self._chunk("_last", t1, into, out, self._decay("last", count))

    def _chunk(self, which: str, t0: Expr, into: Named, out: Named | None, decay: Complex) -> None:
        """What a chunk answers, and its tokens into the state."""
        b, layer, state = self.b, self.layer, self.state
        t = b.let(f"t{which}", Span(t0, "CHUNK", stop=self.stop if which else None))
        x = b.let(f"X{which}", Load(self.given, layer.place(B, t), OPERAND))
        with b.when("KEPT"):
            number = b.let(f"number{which}", (NUMBER * LENGTH + (t0 - self.first)) // "CHUNK")
            hold(b, "states_kept", number, state.value, OPERAND)
        if out is not None:
            y = self._answer(f"Y{which}", x, out)
            with b.when("SKIP"):
                assert self.skip is not None
                b.add(y, row(self.skip) * Cast(x, ACC))
            b.store(self.made, layer.place(B, t), Cast(y, IO))
        entered = (b.let(f"entered_{m.name}{which}", Dot(m, x)) for m in (into.re, into.im))
        re, im = entered
        faded = decay * state.value
        state.set(Complex(faded.re + re, faded.im + im))

    def _answer(self, name: str, x: Var, out: Named) -> Var:
        b = self.b
        i, j = column(L), row(M)
        assert self.toeplitz is not None
        among = i <= j if self.back else i >= j
        y = b.let(name, Dot(Transpose(self.toeplitz) if self.back else self.toeplitz, x, among=among))
        for part, s in ((out.re, self.state.re), (out.im, self.state.im)):
            read = b.let(f"{s.name}_of_{name}", Cast(s, OPERAND))
            b.add(y, Dot(Transpose(part), read))
        return y
