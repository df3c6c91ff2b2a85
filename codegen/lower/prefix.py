"""Running sums over segments: what lies before (or after) each of them."""

from __future__ import annotations

from ..ir.build import Builder
from ..ir.nodes import (
    ACC,
    STATE,
    Axis,
    Cast,
    Expr,
    Full,
    Load,
    Program,
    Span,
    Tensor,
    Var,
    cdiv,
    minimum,
    wrap,
)


def prefix(name: str, reverse: bool) -> Program:
    """Replace each segment's sum by the sum over all segments before it (after it, if `reverse`), from
    `initial` on.

    ``sums [rows, segments, elements]`` is updated in place; the sum over all segments goes to ``total``.
    """
    b = Builder()
    row = Var("r")
    e = b.let("e", Span(Var("block") * "ELEMENTS", "ELEMENTS"))
    running = b.let("running", Full(("ELEMENTS",), 0.0))
    with b.when("INITIAL"):
        initial = b.let("initial_sum", Load("initial", (row, e), ACC))
        b.set(running, initial)

    def segment(i: Expr) -> Expr:
        return Var("segments") - 1 - i if reverse else i

    b.comment("One segment is read ahead, so that a load need not wait for the store before it.")
    first = b.let("start", segment(wrap(0)))
    ahead = b.let("ahead", Load("sums", (row, first, e), ACC))
    with b.loop("i", 0, "segments") as i:
        current = b.let("current", ahead)
        upcoming = b.let("upcoming", segment(minimum(i + 1, Var("segments") - 1)))
        b.set(ahead, Load("sums", (row, upcoming, e), ACC))
        b.store("sums", (row, segment(i), e), running)
        b.add(running, current)
    with b.when("TOTAL"):
        b.store("total", (row, e), Cast(running, STATE))
    tensors = (
        Tensor("initial", ("rows", "elements"), STATE, optional="INITIAL"),
        Tensor("sums", ("rows", "segments", "elements"), ACC),
        Tensor("total", ("rows", "elements"), STATE, optional="TOTAL"),
    )
    direction = "after" if reverse else "before"
    return Program(
        name,
        f"For each segment, the sum over all segments {direction} it.",
        (Axis("r", Var("rows"), batch=True), Axis("block", cdiv("elements", "ELEMENTS"))),
        tensors,
        ("rows", "segments", "elements"),
        (),
        ("INITIAL", "TOTAL"),
        ("ELEMENTS",),
        b.body,
    )
