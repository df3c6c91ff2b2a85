"""The programs of a pipeline of parts, and the passes that launch them."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import TYPE_CHECKING

from ..dtypes import ACC, IO, OPERAND
from ..ir.host import Pass, Plan, Present, ReadSizes, Step, allocate, launch
from ..ir.kernels import INTEGER, LaunchPlan
from ..ir.nodes import INDEX, Cast, Full, Load, Span, Sum, Var, cdiv, minimum, wrap
from ..ir.program import Axis, Program, Tensor
from ..ir.traits import FEATURES, GRADIENTS
from ..lower.parameters import parameters
from ..spec.parts import Parameter, Projection, RandomProjection
from . import matrices as matrices  # parts that are registered there
from . import norms as norms
from .pieces import BATCH, HEAD, TOKENS, Notes, Piece, Pieces, padded, placed
from .through import NUMBERED, pipeline

if TYPE_CHECKING:
    from .layer import FeatureLayer

MAKE, BACK, TOTALS = "make_features", "feature_gradients", "parameter_gradients"
ROWS = ("B", "T", "H")
AXES = (Axis("b", Var("B"), batch=True), Axis("h", Var("H"), batch=True))
CHUNKS, SEGMENTS = Axis("chunk", cdiv("T", "CHUNK")), Axis("segment", Var("segments"))
TOKENS_AND_ROWS = (("T",), ("B", "H"))
PLAN = LaunchPlan("backward", "backward", "segment_plan", TOKENS_AND_ROWS, ("SHORTEST", "PROGRAMS", "FEWEST"))
"""In how many segments a backward pass goes through a sequence."""


def programs(layer: FeatureLayer) -> tuple[Program, ...]:
    """Raises `NoTile` where a pipeline has none."""
    return (forward(layer), backward(layer), *((totals(layer),) if layer.learned else ()))


def forward(layer: FeatureLayer) -> Program:
    notes = Notes(layer.parameters)
    _chunk(notes)
    y, _ = pipeline(layer.parts, notes, _inputs(layer, notes))
    _store(notes, "y", y)
    return Program(
        MAKE,
        "Features of a tile of tokens.",
        (*AXES, CHUNKS),
        (*_read(layer), Tensor("y", (*ROWS, layer.features), IO)),
        ROWS,
        (),
        _flags(layer),
        ("CHUNK",),
        notes.b.body,
        does=frozenset({FEATURES}),
    )


def backward(layer: FeatureLayer) -> Program:
    """A tile of tokens, or where parameters are learned a segment of them, to have fewer sums."""
    notes, learned = Notes(layer.parameters), layer.learned
    if learned:
        start, stop = _segment(notes)
        with notes.b.loop("t0", start, stop, "CHUNK", ahead=True) as t0:
            notes.b.let(TOKENS.name, Span(t0, "CHUNK"))
            _gradients(layer, notes)
        _store_totals(notes)
    else:
        _chunk(notes)
        _gradients(layer, notes)
    results = Tensor("dy", (*ROWS, layer.features), IO, strided=True), Tensor("dx", (*ROWS, layer.width), IO)
    return Program(
        BACK,
        "Gradients of what features are made of, and sums over a segment for the parameters."
        if learned
        else "Gradients of what features are made of.",
        (*AXES, SEGMENTS if learned else CHUNKS),
        (*_read(layer), *results, *map(_sums, learned)),
        (*ROWS, *(("segments",) if learned else ())),
        (),
        _flags(layer),
        ("CHUNK",),
        notes.b.body,
        does=frozenset({FEATURES, GRADIENTS}),
    )


def totals(layer: FeatureLayer) -> Program:
    """A row of each parameter, of those that have several, summed over batch and segments."""
    notes = Notes(())
    b, at = notes.b, Var("row")
    rows = {x.name: math.prod(x.shape[:-1]) for x in layer.learned}
    most, places, sums = max(rows.values()), {}, {}
    for x in layer.learned:
        *above, width = x.shape
        places[x.name] = (*(at if n == most else minimum(at, n - 1) for n in above), notes.span(width))
        sums[x.name] = b.let(f"sums_{x.name}", Full(("PARTS", padded(width)), 0.0))
    with b.loop("i", 0, "B") as i, b.loop("s0", 0, "segments", "PARTS") as s0:
        s = b.let("s", Span(s0, "PARTS"))
        for name, total in sums.items():
            part = Load(f"{name}_sums", (i, s, HEAD, *places[name]), ACC)
            b.add(total, b.let(f"part_{name}", part))
    for x in layer.learned:
        total = b.let(f"total_{x.name}", Sum(sums[x.name], 0))
        with b.when(at < rows[x.name]) if rows[x.name] < most else nullcontext():
            b.store(f"d{x.name}", (HEAD, *places[x.name]), Cast(total, layer.role(x)))
    return Program(
        TOTALS,
        "The gradients of the parameters, from what segments add to them.",
        (AXES[1], *((Axis("row", wrap(most)),) if most > 1 else ())),
        (
            *map(_sums, layer.learned),
            *(Tensor(f"d{x.name}", ("H", *x.shape), layer.role(x)) for x in layer.learned),
        ),
        ("B", "H", "segments"),
        (),
        (),
        ("PARTS",),
        b.body,
        does=frozenset({FEATURES}),
    )


def _chunk(notes: Notes) -> None:
    notes.b.let("t0", Var("chunk") * "CHUNK")
    notes.b.let(TOKENS.name, Span(Var("t0"), "CHUNK"))


def _segment(notes: Notes) -> tuple[Var, Var]:
    """The first token of a program's segment, which has whole tiles, and that after its last."""
    b, chunk = notes.b, Var("CHUNK")
    length = b.let("length", cdiv(cdiv("T", chunk), "segments") * chunk)
    start = b.let("start", minimum(Var("segment") * length, "T"))
    return start, b.let("stop", minimum(start + length, "T"))


def _inputs(layer: FeatureLayer, notes: Notes) -> Pieces:
    """The tile that a pipeline begins with; as an operand where a product reads it first."""
    index = (BATCH, TOKENS, HEAD, notes.span(layer.width))
    if not _begins_in_product(layer.parts):
        return (Piece(notes.let("X", Load("x", index, ACC)), layer.width),)
    loaded = notes.let("X", Load("x", index, OPERAND))
    return (Piece(notes.let("X", Cast(loaded, ACC)), layer.width, loaded),)


def _begins_in_product(parts: object) -> bool:
    """Whether a pipeline, or a branch that it begins with, begins in a product with a matrix."""
    first = next(iter(parts), None)  # type: ignore[call-overload]
    branches = getattr(first, "of", ())
    return isinstance(first, Projection | RandomProjection) or any(map(_begins_in_product, branches))


def _gradients(layer: FeatureLayer, notes: Notes) -> None:
    y, back = pipeline(layer.parts, notes, _inputs(layer, notes))
    d = tuple(
        Piece(notes.let("d_y", Load("dy", (BATCH, TOKENS, HEAD, notes.span(x.width, start)), ACC)), x.width)
        for x, start in placed(y)
    )
    _store(notes, "dx", back(d))


def _store(notes: Notes, tensor: str, pieces: Pieces) -> None:
    for x, start in placed(pieces):
        notes.b.store(tensor, (BATCH, TOKENS, HEAD, notes.span(x.width, start)), Cast(x.tile, IO))


def _store_totals(notes: Notes) -> None:
    for total in notes.totals:
        sums = notes.let("total", Sum(total.sums, 0)) if total.by_token else total.sums
        place = (BATCH, Var("segment"), *total.index)
        notes.b.store(f"{total.parameter.name}_sums", place, sums)


def _flags(layer: FeatureLayer) -> tuple[str, ...]:
    return (NUMBERED,) if layer.turns else ()


def _read(layer: FeatureLayer) -> tuple[Tensor, ...]:
    """What programs read of tokens and of parameters."""
    found = [Tensor("x", (*ROWS, layer.width), IO, strided=True)]
    for x in layer.parameters:
        found.append(Tensor(x.name, layer.dims(x), layer.role(x), strided=layer.role(x) == IO))
    if layer.turns:
        found.append(Tensor("tokens", ("B", "T"), INDEX, optional=NUMBERED))
    return tuple(found)


def _sums(x: Parameter) -> Tensor:
    return Tensor(f"{x.name}_sums", ("B", "segments", "H", *x.shape), ACC)


def passes(layer: FeatureLayer) -> tuple[Pass, Pass]:
    numbered = {NUMBERED: Present("tokens")} if layer.turns else {}
    signature = layer.signature()
    sizes = ReadSizes("x", (*ROWS, None))
    make = Pass(
        "forward",
        "Features.",
        parameters(signature, "forward"),
        "x",
        (sizes, allocate("y", (*ROWS, layer.features), IO), launch(MAKE, numbered)),
        ("y",),
    )
    steps: list[Step] = [sizes, allocate("dx", (*ROWS, layer.width), IO)]
    if layer.learned:
        steps.append(Plan({"segments": INTEGER}, PLAN))
        steps += [allocate(_sums(x).name, _sums(x).dims, ACC) for x in layer.learned]
    steps.append(launch(BACK, numbered))
    if layer.learned:
        steps += [allocate(f"d{x.name}", ("H", *x.shape), layer.role(x)) for x in layer.learned]
        steps.append(launch(TOTALS))
    back = Pass(
        "backward",
        "Gradients of what features are made of, and of the parameters.",
        parameters(signature, "backward"),
        "x",
        tuple(steps),
        ("dx", *(f"d{x.name}" for x in layer.learned)),
    )
    return make, back
