"""Running sums of decays, G, and what the decays owe to it.

With P_ij = dA_ij A_ij, G after token t gets r_t = Σ_j P_tj - Σ_i P_it, and a decay the sum of what all later
moments get.  Nothing changes if all moments do by the same number, and what was there before the first by its
exponential: so r sums to <dS_0, S_0>, and instead of r after a token, and of what the final state gets, those
before it count: dg_t = <dS_0, S_0> - Σ_{s<t} r_s.
"""

from __future__ import annotations

from ..dtypes import ACC, WIDE
from ..ir.build import Builder
from ..ir.nodes import Cast, Expr, Full, Load, Span, Sum, Var, Where, cdiv, column, row, wrap
from ..ir.program import Axis, Program, Tensor
from ..ir.traits import SCANS
from ..memory.fade import decay
from ..memory.states import B, H
from .linear_attention_parts import BATCH_AXES, NUMBERS, ROWS, TOKENS, Layer

SCANNED = Axis("chunk", cdiv("T", "SCAN"))
T = Var("T")


def programs(layer: Layer) -> tuple[Program, ...]:
    """All of a layer whose memory fades."""
    match layer.spec.decay:
        case "token":
            sums = sums_in_chunks("decay_sums", of_gradients=False), running_sums()
            return (*sums, edge(layer), sums_in_chunks("gradient_sums", of_gradients=True), token_gradients())
        case "head":
            return edge(layer), head_gradients()
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
    earlier = b.let("earlier", Where(column(t) >= row(t), row(numbers), wrap(0.0)))
    b.store("scan", (B, H, t), Cast(b.let("sum", Sum(earlier, 1)), WIDE))
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


def token_gradients() -> Program:
    """dg of every token."""
    b = Builder()
    t = b.let("t", TOKENS.tile(Var("chunk") * "SCAN", "SCAN"))
    own = b.let("own", Load("scan", (B, H, t), WIDE))
    before = b.let("before", Cast(own + _chunks_before(b), ACC) - b.let("r_own", Load("r", (B, H, t), ACC)))
    b.store("d_log_decay", (B, t, H), _edge(b) - before)
    tensors = (
        Tensor("r", NUMBERS, ACC),
        Tensor("scan", NUMBERS, WIDE),
        _edges("INITIAL"),
        Tensor("d_log_decay", ROWS, ACC),
    )
    summary = "The gradient of each decay."
    return _program("decay_gradients", summary, (*BATCH_AXES, SCANNED), tensors, b, ("INITIAL",))


def head_gradients() -> Program:
    """dg of every head, the sum of those that its tokens would have."""
    b, i = Builder(), Var("i")
    total = b.let("total", Full(("PARTS",), 0.0))
    with b.loop("i", 0, "B"), b.loop("t0", 0, T, "PARTS") as t0:
        t = b.let("t", TOKENS.tile(t0, "PARTS"))
        b.add(total, b.let("r_own", Load("r", (i, H, t), ACC)) * Cast(t + 1 - T, ACC))
    dg = b.let("dg_own", Sum(total, 0))
    with b.when("INITIAL"), b.loop("i", 0, "B"):
        b.add(dg, b.let("edge_own", Load("edge", (i, H), ACC)) * Cast(T, ACC))
    b.store("d_log_decay", (H,), dg)
    tensors = Tensor("r", NUMBERS, ACC), _edges("INITIAL"), Tensor("d_log_decay", ("H",), ACC)
    heads = (Axis("h", Var("H"), batch=True),)
    return _program("decay_gradients", "The gradient of each head's decay.", heads, tensors, b, ("INITIAL",))


def edge(layer: Layer) -> Program:
    """<dS_0, S_0>, with that of the normaliser: what the moment before the first token would get."""
    b = Builder()
    u = b.let("u", Span(wrap(0), "VALUES"))
    initial, gradients = layer.user_states("initial_"), layer.user_states("d_initial_")
    total = b.let("total", Full(("FEATURES",), 0.0))
    with b.loop("f0", 0, layer.features.rows, "FEATURES") as f0:
        f = b.let("f", Span(f0, "FEATURES"))
        for place, pair in zip(((f, u), (f,)), zip(initial, gradients, strict=True), strict=False):
            names = "S" if len(place) > 1 else "z", "dS" if len(place) > 1 else "dz"
            state, gradient = (
                b.let(name, Load(tensor.name, (B, H, *place), ACC))
                for name, tensor in zip(names, pair, strict=True)
            )
            products = b.let(f"{state.name}_products", state * gradient)
            b.add(total, Sum(products, 1) if len(place) > 1 else products)
    b.store("edge", (B, H), b.let("edge_own", Sum(total, 0)))
    tensors = (*initial, *gradients, _edges(None))
    summary = "What the decays owe to the initial state."
    return _program("edges", summary, BATCH_AXES, tensors, b, bounds={"VALUES": layer.v})


def _chunks_before(b: Builder) -> Expr:
    """The sum over all chunks before a program's own."""
    chunk = Var("chunk")
    parts = b.let("parts", Full(("PARTS",), 0.0, WIDE))
    with b.loop("i0", 0, chunk, "PARTS") as i0:
        i = b.let("i", Span(i0, "PARTS"))
        last = b.let("last", (i + 1) * "SCAN" - 1)
        part = b.let("part", Load("scan", (B, H, last), WIDE))
        b.add(parts, Where(i < chunk, part, Full(("PARTS",), 0.0, WIDE)))
    return b.let("chunks_before", Sum(parts, 0))


def _edge(b: Builder) -> Expr:
    edge = b.let("edge_own", Full((), 0.0))
    with b.when("INITIAL"):
        b.set(edge, Load("edge", (B, H), ACC))
    return edge


def _edges(flag: str | None) -> Tensor:
    return Tensor("edge", ("B", "H"), ACC, optional=flag)


def _program(
    name: str,
    summary: str,
    grid: tuple[Axis, ...],
    tensors: tuple[Tensor, ...],
    b: Builder,
    flags: tuple[str, ...] = (),
    bounds: dict[str, int] | None = None,
) -> Program:
    text = repr(b.body) + repr(grid)
    constants = tuple(c for c in ("SCAN", "PARTS", "FEATURES", "VALUES") if f"'{c}'" in text)
    does = frozenset({SCANS})
    return Program(
        name, summary, grid, tensors, ("B", "T", "H"), (), flags, constants, b.body, bounds or {}, does
    )
