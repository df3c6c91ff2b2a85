"""Sliding windows in one pass over a segment, chunk after chunk: each key is read once.

What a window reaches back over is kept beside the chunk (`memory/window_stream.py`).  Where batch and heads
alone do not fill a GPU the sequence is cut into segments, and so are packed sequences (`ragged.py`).  A
segment reads again those keys before its first chunk that this can see.

The gradients of a chunk's keys and values wait for the queries of the next chunk, which is as far as a window
of their program reaches.  So a segment goes on to the chunk after it, for the sake of its own last keys.
"""

from __future__ import annotations

from ..ir.build import Builder
from ..ir.flags import Chosen
from ..ir.nodes import ACC, IO, Cast, Const, Span, Var, wrap
from ..ir.program import Axis, Program, Tensor
from ..ir.traits import GRADIENTS, ROW_SUMS
from ..memory.window import B, H
from ..memory.window_stream import WindowStream
from .ragged import BEGIN, RAGGED, STOP, Segment
from .sequence import Sequence
from .sliding_window_parts import KEY_ROWS, NUMBERS, PACKED_QUERIES, QUERY_ROWS, Layer

SEGMENTS = Axis("segment", Var("segments"))
OWN_QUERIES, OWN_KEYS = (
    Sequence(axis, Chosen(RAGGED, BEGIN, Const(0)), Chosen(RAGGED, STOP, Var(axis))) for axis in ("T", "Tk")
)
"""The tokens of a sequence up to the end of a program's segment."""


def outputs(layer: Layer, chunk: int) -> Program:
    """o and lse of one segment, in chunks of so many tokens."""
    b = Builder()
    segment, memory, first = _begin(b, layer, OWN_QUERIES, OWN_KEYS, chunk)
    with b.loop("t0", segment.first, segment.end, "CHUNK") as t0:
        t = b.let("t", memory.queries.tile(t0, "CHUNK"))
        answer = memory.answer(t0, t, first)
        b.store("lse", (B, H, t), b.let("logarithm", answer.lse()))
        b.set(answer.out, answer.divided())
        b.store("o", (B, t, H, memory.u), Cast(answer.out, IO))
    return layer.program(
        "outputs",
        "The outputs of one segment, with a window's keys in shared memory.",
        SEGMENTS,
        (*layer.inputs(), Tensor("o", (*QUERY_ROWS, layer.v), IO), Tensor("lse", NUMBERS, ACC)),
        b,
        ("CHUNK",),
        streamed=True,
    )


def gradients(layer: Layer, chunk: int) -> Program:
    """dq, dk and dv of one segment, where a window reaches back over one chunk, and all keys have queries."""
    b = Builder()
    segment, memory, first = _begin(b, layer, PACKED_QUERIES, PACKED_QUERIES, chunk)
    stop = b.let("stop_token", segment.end)
    own = Sequence("T", segment.first, stop)
    carried = memory.carried()
    with b.loop("t0", segment.first, stop + "CHUNK", "CHUNK") as t0:
        t = b.let("t", memory.queries.tile(t0, "CHUNK"))
        row, before = b.let("t_own", own.tile(t0, "CHUNK")), own.tile(t0 - "CHUNK", "CHUNK", before=True)
        done = b.let("j_done", before)
        dq, left = memory.gradients(t0, t, first, carried)
        b.set(carried.dk, carried.dk * Var("scale"))
        b.set(dq, dq * Var("scale"))
        b.store("dk", (B, done, H, memory.d), Cast(carried.dk, IO))
        b.store("dv", (B, done, H, memory.u), Cast(carried.dv, IO))
        b.store("dq", (B, row, H, memory.d), Cast(dq, IO))
        b.set(carried.dk, left.dk)
        b.set(carried.dv, left.dv)
    tensors = (
        *layer.inputs(),
        Tensor("do", (*QUERY_ROWS, layer.v), IO, strided=True),
        Tensor("o", (*QUERY_ROWS, layer.v), IO),
        Tensor("lse", NUMBERS, ACC),
        Tensor("dq", (*QUERY_ROWS, layer.qk), IO),
        Tensor("dk", (*KEY_ROWS, layer.qk), IO),
        Tensor("dv", (*KEY_ROWS, layer.v), IO),
    )
    return layer.program(
        "gradients",
        "The gradients of one segment, with a window's keys in shared memory.",
        SEGMENTS,
        tensors,
        b,
        ("CHUNK",),
        (GRADIENTS, ROW_SUMS),
        streamed=True,
    )


def _begin(
    b: Builder, layer: Layer, queries: Sequence, keys: Sequence, chunk: int
) -> tuple[Segment, WindowStream, Var]:
    """The segment of a program, its memory, and the first key that exists."""
    segment = Segment.of_program(b)
    memory = WindowStream(b, layer.window, queries, keys, chunk)
    layer.segment_length(b)
    first = memory.first_key()
    b.let("d", Span(wrap(0), "QK"))
    b.let("u", Span(wrap(0), "VALUES"))
    return segment, memory, first
