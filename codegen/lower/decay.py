"""Running sums of decays, G, and what the decays owe to it.

With P_ij = dA_ij A_ij, a decay is owed by all pairs that it lies between: dg_t = Σ_{i ≥ t > j} P_ij.  At the
start of a segment that is <S, M>, the product of the state before with the mirrored state after.  From one
token to the next it falls by r_t = Σ_j P_tj - Σ_i P_it.  So errors of r, which is a difference of large
numbers, add up over a segment and no further.
"""

from __future__ import annotations

from ..dtypes import ACC, WIDE
from ..ir.build import Builder
from ..ir.heads import grouped, members
from ..ir.nodes import (
    Cast,
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

SCANNED = Axis("chunk", cdiv("T", "SCAN"))
T = Var("T")
OWED_SUMS = "owed_sums"


def programs(layer: Layer) -> tuple[Program, ...]:
    """All of a layer whose memory fades."""
    match layer.spec.decay:
        case "token":
            sums = sums_in_chunks("decay_sums", of_gradients=False), running_sums()
            of_r = sums_in_chunks("gradient_sums", of_gradients=True), token_gradients(layer)
            return (*sums, owed_sums(), edges(layer), first_edge(layer), *of_r)
        case "head":
            return owed_sums(), edges(layer), first_edge(layer), head_gradients(layer)
        case _:
            return ()


def sums_in_chunks(name: str, of_gradients: bool) -> Program:
    """Running sums that begin anew in every chunk."""
    b = Builder()
    t = b.let("t", TOKENS.tile(Var("chunk") * "SCAN", "SCAN"))
    if of_gradients:
        numbers, tensor = b.let("r_own", Load("r", (B, H, t), ACC)), Tensor("r", NUMBERS, ACC)
    else:
        numbers, tensor = decay(b, "decay", (B, t, H)), Tensor("log_decay", ROWS, ACC)
    b.store("scan", (B, H, t), b.let("sum", RunningSum(b.let("wide", Cast(numbers, WIDE)))))
    tensors = tensor, Tensor("scan", NUMBERS, WIDE)
    return _program(name, "Running sums, anew in every chunk.", (*BATCH_AXES, SCANNED), tensors, b)


def running_sums() -> Program:
    """G after every token."""
    b = Builder()
    t = b.let("t", TOKENS.tile(Var("chunk") * "SCAN", "SCAN"))
    own = b.let("own", Load("scan", (B, H, t), WIDE))
    b.store("running_decay", (B, H, t), own + _chunks_before(b))
    tensors = Tensor("scan", NUMBERS, WIDE), Tensor("running_decay", NUMBERS, WIDE)
    return _program("decays", "Running sums of decays.", (*BATCH_AXES, SCANNED), tensors, b)


def token_gradients(layer: Layer) -> Program:
    """dg of every token."""
    b = Builder()
    place = Var("chunk") * "SCAN"
    t = b.let("t", TOKENS.tile(place, "SCAN"))
    length = layer.segment_length(b)
    segment = b.let("segment", place // length)
    # The token's own number, which may not be finite, is no part of its sum.
    previous = b.let("previous", TOKENS.tile(place - 1, "SCAN", before=True))
    numbers = b.let("r_previous", Load("r", (B, H, previous), ACC))
    own = b.let("own", RunningSum(b.let("earlier", Where(t > place, numbers, wrap(0.0)))))
    before = _chunks_before(b, b.let("first", segment * length // "SCAN"))
    b.store("d_log_decay", (B, t, H), _edge(b, segment) - (own + Cast(before, ACC)))
    tensors = (
        Tensor("r", NUMBERS, ACC),
        Tensor("scan", NUMBERS, WIDE),
        _edges("STATEFUL"),
        Tensor("d_log_decay", ROWS, ACC),
    )
    summary = "The gradient of each decay."
    return _program("decay_gradients", summary, (*BATCH_AXES, SCANNED), tensors, b, ("STATEFUL",))


def head_gradients(layer: Layer) -> Program:
    """dg of every head, the sum of those that its tokens would have."""
    b, i, n = Builder(), Var("i"), Var("n")
    length = layer.segment_length(b)
    total = b.let("total", Full(("PARTS",), 0.0))
    with b.loop("i", 0, "B"), b.loop("t0", 0, T, "PARTS") as t0:
        t = b.let("t", TOKENS.tile(t0, "PARTS"))
        later = minimum((t // length + 1) * length, T) - 1 - t  # tokens of its segment after it
        b.add(total, b.let("r_own", Load("r", (i, H, t), ACC)) * Cast(later, ACC))
    gradient = b.let("gradient", -b.let("owed", Sum(total, 0)))
    with b.when("STATEFUL"), b.loop("i", 0, "B"), b.loop("n", 0, "segments"):
        tokens = minimum(n * length + length, T) - minimum(n * length, T)
        b.add(gradient, b.let("edge_own", Load("edge", (i, H, n), ACC)) * Cast(tokens, ACC))
    b.store("d_log_decay", (H,), gradient)
    tensors = Tensor("r", NUMBERS, ACC), _edges("STATEFUL"), Tensor("d_log_decay", ("H",), ACC)
    heads = (Axis("h", Var("H"), batch=True),)
    summary = "The gradient of each head's decay."
    return _program("decay_gradients", summary, heads, tensors, b, ("STATEFUL",))


def owed_sums() -> Program:
    """What the pairs of a key's head owe to G: sums over its group of queries."""
    b = Builder()
    t = b.let("t", TOKENS.tile(Var("chunk") * "SCAN", "SCAN"))
    total = b.let("total", Full(("SCAN",), 0.0))
    with members(b):
        b.add(total, b.let("part", Load("parts", (B, H, t), ACC)))
    b.store("sums", (B, H, t), total)
    tensors = Tensor("parts", NUMBERS, ACC), Tensor("sums", NUMBERS, ACC)
    sums = _program(OWED_SUMS, "Sums over groups of heads.", (*BATCH_AXES, SCANNED), tensors, b)
    return grouped(sums, {}, {"parts": EVERY})


def edges(layer: Layer) -> Program:
    """<S, M> at the start of every segment but the first."""
    b, segment = Builder(), Var("segment")
    states, mirrored = layer.segment_states(), layer.segment_states(prefix="mirrored_")
    before = b.let("before", maximum(segment - 1, 0))
    total = _products(layer, b, (states, (segment,)), (mirrored, (before,)))
    b.store("edge", (B, H, segment), Where(segment > 0, total, wrap(0.0)))
    tensors = (*states, *mirrored, _edges(None))
    summary = "What the decays owe at the start of each segment."
    grid = (*BATCH_AXES, Axis("segment", Var("segments")))
    return _program("edges", summary, grid, tensors, b, bounds={"VALUES": layer.v})


def first_edge(layer: Layer) -> Program:
    """The same at that of the first, with an initial state."""
    b = Builder()
    initial, gradients = layer.user_states("initial_"), layer.user_states("d_initial_")
    b.store("edge", (B, H, wrap(0)), _products(layer, b, (initial, ()), (gradients, ())))
    tensors = (*initial, *gradients, _edges(None))
    summary = "What the decays owe to the initial state."
    return _program("first_edge", summary, BATCH_AXES, tensors, b, bounds={"VALUES": layer.v})


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
            x = b.let(name, Load(one.name, (B, H, *state[1], *place), ACC))
            y = b.let(f"{name}_mirrored", Load(other.name, (B, H, *mirrored[1], *place), ACC))
            products = b.let(f"{name}_products", x * y)
            b.add(total, Sum(products, 1) if name == "S" else products)
    return b.let("edge_own", Sum(total, 0))


def _chunks_before(b: Builder, first: Expr | int = 0) -> Expr:
    """The sum over the chunks from `first` on, before a program's own."""
    chunk = Var("chunk")
    parts = b.let("parts", Full(("PARTS",), 0.0, WIDE))
    with b.loop("i0", first, chunk, "PARTS") as i0:
        i = b.let("i", Span(i0, "PARTS"))
        last = b.let("last", (i + 1) * "SCAN" - 1)
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
    bounds: dict[str, int] | None = None,
) -> Program:
    used = repr((b.body, grid, tensors))
    sizes = SIZES if "'segments'" in used else SIZES[:-1]
    constants = tuple(c for c in ("SEGMENT", "SCAN", "PARTS", "FEATURES", "VALUES") if f"'{c}'" in used)
    bounds = bounds or {}
    return Program(
        name, summary, grid, tensors, sizes, (), flags, constants, b.body, bounds, frozenset({SCANS})
    )
