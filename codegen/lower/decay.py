"""Running sums of decays, G, and what the decays owe to it.

With P_ij = dA_ij A_ij, a decay is owed by all pairs that it lies between: dg_t = Σ_{i ≥ t > j} P_ij.  At the
start of a segment that is <S, M>, the product of the state before with the mirrored state after.  From one
token to the next it falls by r_t = Σ_j P_tj - Σ_i P_it.  So errors of r, which is a difference of large
numbers, add up over a segment and no further.
"""

from __future__ import annotations

from collections.abc import Callable

from .. import names
from ..dtypes import ACC, WIDE
from ..ir.build import Builder
from ..ir.flags import Chosen
from ..ir.heads import grouped, members
from ..ir.nodes import (
    Cast,
    Const,
    Expr,
    Full,
    Load,
    RunningSum,
    Span,
    Sum,
    Var,
    Where,
    cdiv,
    maximum,
    minimum,
    wrap,
)
from ..ir.program import Axis, Program, Tensor
from ..ir.traits import SCANS
from ..memory.fade import decay
from ..memory.states import B, H, Kept
from .groups import EVERY
from .linear_attention_parts import BATCH_AXES, NUMBERS, ROWS, SIZES, TOKENS, Layer
from .prefix import bounds
from .ragged import (
    BEGIN,
    BOUNDS,
    FIRST,
    FLAGGED,
    PLACES,
    RAGGED,
    SEQUENCE,
    TABLE,
    UNDER,
    Segment,
    number_of_chunk,
    under,
)

SCANNED = Axis("chunk", cdiv(PLACES, "SCAN"))
T = Var("T")
OWED_SUMS = "owed_sums"


def programs(layer: Layer) -> tuple[Program, ...]:
    """All of a layer whose memory fades."""
    match layer.spec.decay:
        case "token":
            sums = sums_in_chunks("decay_sums", of_gradients=False), running_sums()
            of_r = sums_in_chunks("gradient_sums", of_gradients=True), token_gradients()
            return (*sums, owed_sums(), edges(layer), *_both(first_edge, layer), *of_r)
        case "head":
            return owed_sums(), edges(layer), *_both(first_edge, layer), *_both(head_gradients, layer)
        case _:
            return ()


def sums_in_chunks(name: str, of_gradients: bool) -> Program:
    """Running sums that begin anew in every chunk."""
    b = Builder()
    segment, start = Segment.of_chunk(b, "SCAN")
    t = b.let("t", segment.sequence.tile(start, "SCAN"))
    if of_gradients:
        numbers, tensor = b.let("r_own", Load("r", (B, H, t), ACC)), Tensor("r", NUMBERS, ACC)
    else:
        numbers, tensor = decay(b, "decay", (B, t, H)), Tensor("log_decay", ROWS, ACC)
    b.store("scan", (B, H, t), b.let("sum", RunningSum(b.let("wide", Cast(numbers, WIDE)))))
    tensors = tensor, Tensor("scan", NUMBERS, WIDE), FLAGGED
    grid = (*BATCH_AXES, SCANNED)
    return _program(name, "Running sums, anew in every chunk.", grid, tensors, b, (RAGGED,))


def running_sums() -> Program:
    """G after every token."""
    b = Builder()
    segment, start = Segment.of_chunk(b, "SCAN")
    t = b.let("t", segment.sequence.tile(start, "SCAN"))
    own = b.let("own", Load("scan", (B, H, t), WIDE))
    b.store("running_decay", (B, H, t), own + _chunks_before(b, segment.sequence.begin, start))
    tensors = Tensor("scan", NUMBERS, WIDE), Tensor("running_decay", NUMBERS, WIDE), FLAGGED
    return _program("decays", "Running sums of decays.", (*BATCH_AXES, SCANNED), tensors, b, (RAGGED,))


def token_gradients() -> Program:
    """dg of every token."""
    b = Builder()
    segment, start = Segment.of_chunk(b, "SCAN")
    t = b.let("t", segment.sequence.tile(start, "SCAN"))
    number_of_chunk(b, "SCAN")
    # The token's own number, which may not be finite, is no part of its sum.
    previous = b.let("previous", segment.sequence.tile(start - 1, "SCAN", before=True))
    numbers = b.let("r_previous", Load("r", (B, H, previous), ACC))
    own = b.let("own", RunningSum(b.let("earlier", Where(t > start, numbers, wrap(0.0)))))
    before = _chunks_before(b, segment.first, start)
    b.store("d_log_decay", (B, t, H), _edge(b, segment.number) - (own + Cast(before, ACC)))
    tensors = (
        Tensor("r", NUMBERS, ACC),
        Tensor("scan", NUMBERS, WIDE),
        _edges("STATEFUL"),
        Tensor("d_log_decay", ROWS, ACC),
        FLAGGED,
    )
    summary, flags = "The gradient of each decay.", ("STATEFUL", RAGGED)
    return _program("decay_gradients", summary, (*BATCH_AXES, SCANNED), tensors, b, flags)


def head_gradients(layer: Layer, packed: bool = False) -> Program:
    """dg of every head, the sum of those that its tokens would have."""
    b, i, n = Builder(), Var("i"), Var("n")
    length = None if packed else layer.segment_length(b)
    total = b.let("total", Full(("PARTS",), 0.0))

    def add(t: Expr, stop: Expr) -> None:
        """Add what tokens owe, each times the tokens of its segment after it, which ends at `stop`."""
        b.add(total, b.let("r_own", Load("r", (i, H, t), ACC)) * Cast(stop - 1 - t, ACC))

    def edge(tokens: Expr) -> None:
        b.add(gradient, b.let("edge_own", Load("edge", (i, H, n), ACC)) * Cast(tokens, ACC))

    if length is None:
        b.let("i", 0)
        with b.loop("n", 0, "segments"):
            segment = Segment.of_packed(b, n)
            with b.loop("t0", segment.first, segment.sequence.stop, "PARTS") as t0:
                add(b.let("t", segment.sequence.tile(t0, "PARTS")), segment.sequence.stop)
    else:
        with b.loop("i", 0, "B"), b.loop("t0", 0, T, "PARTS") as t0:
            t = b.let("t", TOKENS.tile(t0, "PARTS"))
            add(t, minimum((t // length + 1) * length, T))
    gradient = b.let("gradient", -b.let("owed", Sum(total, 0)))
    if length is None:
        with b.when("STATEFUL"), b.loop("n", 0, "segments"):
            segment = Segment.of_packed(b, n)
            edge(maximum(segment.sequence.stop - segment.first, 0))
    else:
        with b.when("STATEFUL"), b.loop("i", 0, "B"), b.loop("n", 0, "segments"):
            edge(minimum(n * length + length, T) - minimum(n * length, T))
    b.store("d_log_decay", (H,), gradient)
    tensors: tuple[Tensor, ...] = (
        Tensor("r", NUMBERS, ACC),
        _edges("STATEFUL"),
        Tensor("d_log_decay", ("H",), ACC),
    )
    summary, name = "The gradient of each head's decay.", "decay_gradients"
    if packed:
        tensors, name = (*tensors, TABLE), names.packed(name)
    return _program(name, summary, BATCH_AXES[1:], tensors, b, ("STATEFUL",))


def owed_sums() -> Program:
    """What the pairs of a key's head owe to G: sums over its group of queries."""
    b = Builder()
    t = b.let("t", TOKENS.tile(Var("chunk") * "SCAN", "SCAN"))
    total = b.let("total", Full(("SCAN",), 0.0))
    with members(b):
        b.add(total, b.let("part", Load("parts", (B, H, t), ACC)))
    b.store("sums", (B, H, t), total)
    tensors = Tensor("parts", NUMBERS, ACC), Tensor("sums", NUMBERS, ACC)
    grid = (*BATCH_AXES, Axis("chunk", cdiv("T", "SCAN")))
    sums = _program(OWED_SUMS, "Sums over groups of heads.", grid, tensors, b)
    return grouped(sums, {}, {"parts": EVERY})


def edges(layer: Layer) -> Program:
    """<S, M> at the start of every segment but the first."""
    b, segment = Builder(), Var("segment")
    states, mirrored = layer.segment_states(), layer.segment_states(prefix="mirrored_")
    before = b.let("before", maximum(segment - 1, 0))
    with b.when(RAGGED):
        Segment.of_packed(b, segment)
    total = _products(layer, b, (states, (segment,)), (mirrored, (before,)))
    has_earlier = Chosen(RAGGED, FIRST > BEGIN, segment > 0)
    b.store("edge", (B, H, segment), Where(has_earlier, total, wrap(0.0)))
    tensors = (*states, *mirrored, _edges(None), FLAGGED)
    summary = "What the decays owe at the start of each segment."
    grid = (*BATCH_AXES, Axis("segment", Var("segments")))
    return _program("edges", summary, grid, tensors, b, (RAGGED,), {"VALUES": layer.v})


def first_edge(layer: Layer, packed: bool = False) -> Program:
    """The same at that of the first, with an initial state."""
    b = Builder()
    initial, gradients = (layer.user_states(x, packed=packed) for x in ("initial_", "d_initial_"))
    first, count = bounds(b) if packed else (wrap(0), wrap(1))
    total = _products(layer, b, (initial, ()), (gradients, ()))
    if packed:  # a sequence without tokens has no segment
        with b.when(count > 0):
            b.store("edge", (B, H, first), total)
    else:
        b.store("edge", (B, H, first), total)
    tensors = (*initial, *gradients, _edges(None), *((BOUNDS,) if packed else ()))
    name = names.packed("first_edge") if packed else "first_edge"
    grid = (BATCH_AXES[1], SEQUENCE) if packed else BATCH_AXES
    summary = "What the decays owe to the initial state."
    return _program(name, summary, grid, tensors, b, covers={"VALUES": layer.v})


def _both(program: Callable[..., Program], layer: Layer) -> tuple[Program, Program]:
    """A program of the batch, and of packed sequences."""
    return program(layer), program(layer, packed=True)


def _products(
    layer: Layer, b: Builder, state: tuple[Kept, tuple[Expr, ...]], mirrored: tuple[Kept, tuple[Expr, ...]]
) -> Expr:
    """<S, M> and that of the normalisers: tensors, and the indices in them."""
    u = b.let("u", Span(wrap(0), "VALUES"))
    total = b.let("total", Full(("FEATURES",), 0.0))
    with b.loop("f0", 0, layer.features.rows, "FEATURES") as f0:
        f = b.let("f", Span(f0, "FEATURES"))
        parts = zip(("S", "z"), ((f, u), (f,)), state[0], mirrored[0], strict=False)
        for name, place, one, other in parts:
            x = b.let(name, Load(one.name, (state[0].first, H, *state[1], *place), ACC))
            y_index = (mirrored[0].first, H, *mirrored[1], *place)
            y = b.let(f"{name}_mirrored", Load(other.name, y_index, ACC))
            products = b.let(f"{name}_products", x * y)
            b.add(total, Sum(products, 1) if name == "S" else products)
    return b.let("edge_own", Sum(total, 0))


def _chunks_before(b: Builder, begin: Expr, start: Expr) -> Expr:
    """The sum over the chunks from the token `begin` on, before a program's own, whose first is `start`."""
    own, off = under(begin), under(begin, False)
    first = Const(0) if off == Const(0) else Chosen(RAGGED, Const(0), off // "SCAN")
    chunk = Chosen(RAGGED, (under(start) - own) // "SCAN", Var("chunk"))
    parts = b.let("parts", Full(("PARTS",), 0.0, WIDE))
    with b.loop("i0", first, chunk, "PARTS") as i0:
        i = b.let("i", Span(i0, "PARTS"))
        last = (i + 1) * "SCAN" - 1
        last = b.let("last", Chosen(RAGGED, own + last, last))
        part = b.let("part", Load("scan", (B, H, last), WIDE))
        b.add(parts, Where(i < chunk, part, Full(("PARTS",), 0.0, WIDE)))
    return b.let("chunks_before", Sum(parts, 0))


def _edge(b: Builder, segment: Expr) -> Expr:
    edge = b.let("edge_own", Full((), 0.0))
    with b.when("STATEFUL"):
        b.set(edge, Load("edge", (B, H, segment), ACC))
    return edge


def _edges(flag: str | None) -> Tensor:
    return Tensor("edge", ("B", "H", "segments"), ACC, optional=flag)


def _program(
    name: str,
    summary: str,
    grid: tuple[Axis, ...],
    tensors: tuple[Tensor, ...],
    b: Builder,
    flags: tuple[str, ...] = (),
    covers: dict[str, int] | None = None,
) -> Program:
    used = repr((b.body, grid, tensors))
    wanted = (*SIZES[:3], "segments", "places", "N")
    sizes = tuple(size for size in wanted if size in SIZES[:3] or f"'{size}'" in used)
    constants = tuple(c for c in ("SEGMENT", "SCAN", "PARTS", "FEATURES", "VALUES") if f"'{c}'" in used)
    return Program(
        name,
        summary,
        grid,
        tensors,
        sizes,
        (),
        flags,
        constants,
        b.body,
        covers or {},
        frozenset({SCANS}),
        UNDER if "places" in sizes else {},
    )
