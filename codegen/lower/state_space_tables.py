"""What chunks of tokens are multiplied by, where channels of a head share a filter: a table a head.

Of a chunk of L tokens x, with the state s before it and Λ = λ^L, a filter makes

    y = T x + Bᵀ s          T_ij = K_{i-j}            B_l = 2 R λ^{l+1}
    s = Λ s + A x           A_l = λ^{L-1-l}

all of them real matrices, with the real and imaginary part of a mode as two rows; those of B are Re and -Im.
The adjoint has the same ones transposed, so both directions read the same tables.
"""

from __future__ import annotations

from ..dtypes import ACC, WIDE
from ..ir.build import Builder
from ..ir.nodes import Cast, Const, Expr, Full, Load, Span, Sum, Unary, Var, column, row, wrap
from ..ir.program import Axis, Program, Tensor
from ..ir.rewrite import constants_read
from ..ir.traits import CHUNKS
from .state_space_parts import HEADS, Complex, H, Layer, Named

TAPS = "taps"
"""The size of a chunk, as programs know it when they are launched: the constant CHUNK of all of them."""
TOEPLITZ = Tensor("filter_matrix", ("H", TAPS, TAPS), ACC)
LAGS = Tensor("lags", ("H", TAPS), ACC)
"""K of a chunk's lags, the longest first."""
L, M = Var("l"), Var("m")
"""Places in a chunk."""


def of_modes(layer: Layer, name: str) -> Tensor:
    """A table with two rows a mode."""
    return Tensor(name, ("H", 2, layer.modes, TAPS), ACC)


def entering(layer: Layer) -> Tensor:
    """A."""
    return of_modes(layer, "entering")


def leaving(layer: Layer) -> Tensor:
    """B."""
    return of_modes(layer, "leaving")


def powers(layer: Layer) -> Tensor:
    """λ^{l+1}."""
    return of_modes(layer, "powers")


def table(b: Builder, name: str, tensor: str, dtype: str = ACC, place: Expr = L) -> Named:
    """Both rows of each mode."""
    parts = (
        b.let(f"{name}_{part}", Load(tensor, (H, Const(i), Var("n"), place), dtype))
        for i, part in enumerate(("re", "im"))
    )
    return Named(*parts)


def spans(b: Builder) -> None:
    """The indices of modes and of places in a chunk."""
    b.let("n", Span(wrap(0), "MODES"))
    for place in (L, M):
        b.let(place.name, Span(wrap(0), "CHUNK"))


def tables(layer: Layer) -> Program:
    """A, B, powers of λ and the taps of a filter, from powers that are found in float64."""
    b = Builder()
    spans(b)
    given = [layer.given(b, f"{name}_given", name) for name in ("log_decay", "angle")]
    log, turn = (column(b.let(f"{x.name}_wide", Cast(x, WIDE))) for x in given)
    residues = layer.residues(b)

    def power(name: str, exponents: Expr) -> Complex:
        lasting = row(b.let(f"{name}_exponents", Cast(exponents, WIDE)))
        size = b.let(f"{name}_size", Unary("exp", log * lasting))
        turned = b.let(f"{name}_turned", turn * lasting)
        parts = (("re", "cos"), ("im", "sin"))
        return Complex(
            *(b.let(f"{name}_{part}", Cast(size * Unary(function, turned), ACC)) for part, function in parts)
        )

    def store(tensor: str, value: Complex) -> None:
        for i, part in enumerate((value.re, value.im)):
            b.store(tensor, (H, Const(i), Var("n"), L), part)

    after = power("after", L + 1)
    store("powers", after)
    read = residues * after
    store("leaving", Complex(read.re, -read.im))
    before = power("before", Var("CHUNK") - 1 - L)
    store("entering", before)
    taps = b.let("taps_of_modes", (residues * before).re)
    b.store("lags", (H, L), b.let("taps_reversed", Sum(taps, 0)))
    return chunked(
        layer,
        "tables",
        "What chunks are multiplied by: A, B, powers of λ, and taps, the last first.",
        b,
        (HEADS,),
        (
            *layer.given_poles(),
            layer.given_residues(),
            entering(layer),
            leaving(layer),
            powers(layer),
            LAGS,
        ),
        ("H", TAPS),
    )


def toeplitz(layer: Layer) -> Program:
    """T, a row a program: what is in a row before its token is a piece of the taps."""
    b = Builder()
    b.let("l", Span(wrap(0), "CHUNK"))
    own = b.let("own", Span(Var(TAPS) - 1 - Var("i"), "CHUNK"))
    b.store("filter_matrix", (H, Var("i"), L), b.let("taps_of_row", Load("lags", (H, own), ACC)))
    return chunked(
        layer,
        "toeplitz",
        "The filter of a chunk as a matrix.",
        b,
        (HEADS, Axis("i", Var(TAPS))),
        (LAGS, TOEPLITZ),
        ("H", TAPS),
    )


def mode_gradients_of_tables(layer: Layer) -> Program:
    """The gradients of poles and residues, from those of all tables."""
    b = Builder()
    spans(b)
    shape = ("MODES", "CHUNK")
    given = {
        name: [b.let(f"{name}_{part}", Full(shape, 0.0)) for part in ("re", "im")] for name in ("dA", "dB")
    }
    decays = [b.let(f"d_power_{part}", Full(("MODES",), 0.0)) for part in ("re", "im")]
    lags = b.let("d_lags", Full(("CHUNK",), 0.0))
    with b.loop("part", 0, "parts") as part:
        for tensor, name in (("entering_parts", "dA"), ("leaving_parts", "dB")):
            for i, total in enumerate(given[name]):
                added = Load(tensor, (part, H, Const(i), Var("n"), L), ACC)
                b.add(total, b.let(f"{total.name}_part", added))
        for i, total in enumerate(decays):
            added = Load("power_parts", (part, H, Const(i), Var("n")), ACC)
            b.add(total, b.let(f"{total.name}_part", added))
        b.add(lags, b.let("d_lags_part", Load("lag_parts", (part, H, L), ACC)))
    dA, dB = (Complex(*given[name]) for name in ("dA", "dB"))
    b.comment("By log λ each power is itself times its exponent.")
    before, after = table(b, "A", "entering"), table(b, "P", "powers")
    age = b.let("age", Cast(Var("CHUNK") - 1 - L, ACC))
    by_state = before * Complex(dA.re, -dA.im)
    by_read = after * dB
    by_tap = before.times(row(lags))

    def summed(name: str, value: Complex, weight: Expr | None = None) -> Complex:
        parts = (("re", value.re), ("im", value.im))
        tiles = (b.let(f"{name}_{part}", x if weight is None else x * row(weight)) for part, x in parts)
        return Complex(*(b.let(f"{tile.name}_sum", Sum(tile, 1)) for tile in tiles))

    owed = summed("by_residue", by_read + by_tap)
    read = summed("by_read", by_read, b.let("exponent", Cast(L + 1, ACC)))
    direct = summed("by_tap", by_tap, age)
    entered = summed("by_state", by_state, age)
    twice = Complex(*(x * 2.0 for x in _residues(b, layer)))
    of_log = twice * (read + direct) + entered + Complex(*decays)
    b.store("dlog_decay", (Var("n"), H), of_log.re)
    b.store("dangle", (Var("n"), H), -of_log.im)
    for i, value in enumerate((owed.re * 2.0, owed.im * -2.0)):
        b.store("dresidues", (Var("n"), H, Const(i)), value)
    dims = (layer.modes, "H")
    return chunked(
        layer,
        "mode_gradients_of_tables",
        "The gradients of poles and residues, from those of what chunks were multiplied by.",
        b,
        (HEADS,),
        (
            *table_parts(layer)[1:],
            LAG_PARTS,
            entering(layer),
            powers(layer),
            layer.given_residues(),
            Tensor("dlog_decay", dims, ACC),
            Tensor("dangle", dims, ACC),
            Tensor("dresidues", (*dims, 2), ACC),
        ),
        ("H", TAPS, "parts"),
    )


LAG_PARTS = Tensor("lag_parts", ("parts", "H", TAPS), ACC)


def table_parts(layer: Layer) -> tuple[Tensor, ...]:
    """What parts of a call add to the gradients of T, A, B and powers of λ."""
    modes = layer.modes
    return (
        Tensor("toeplitz_parts", ("parts", "H", TAPS, TAPS), ACC),
        Tensor("entering_parts", ("parts", "H", 2, modes, TAPS), ACC),
        Tensor("leaving_parts", ("parts", "H", 2, modes, TAPS), ACC),
        Tensor("power_parts", ("parts", "H", 2, modes), ACC),
    )


def lag_sums(layer: Layer) -> Program:
    """What is owed to taps: sums along the diagonals of what is owed to T, the longest lag first."""
    b = Builder()
    b.let("l", Span(wrap(0), "CHUNK"))
    total = b.let("d_lags", Full(("CHUNK",), 0.0))
    with b.loop("i", 0, TAPS, ahead=True) as i:
        own = b.let("own", Span(i + 1 - Var(TAPS), "CHUNK", wrap(0)))
        b.add(total, b.let("of_row", Load("toeplitz_parts", (Var("part"), H, i, own), ACC)))
    b.store("lag_parts", (Var("part"), H, L), total)
    return chunked(
        layer,
        "lag_sums",
        "What is owed to taps, the last first.",
        b,
        (Axis("part", Var("parts")), HEADS),
        (table_parts(layer)[0], LAG_PARTS),
        ("H", TAPS, "parts"),
    )


def _residues(b: Builder, layer: Layer) -> tuple[Var, Var]:
    re, im = (layer.given(b, f"R_{part}", "residues", Const(i)) for i, part in enumerate(("re", "im")))
    return re, im


def chunked(
    layer: Layer,
    name: str,
    summary: str,
    b: Builder,
    grid: tuple[Axis, ...],
    tensors: tuple[Tensor, ...],
    sizes: tuple[str, ...],
    flags: tuple[str, ...] = (),
    does: frozenset[str] = frozenset(),
    covers: tuple[str, ...] = (),
    under: dict[str, str] | None = None,
) -> Program:
    """A program of chunks, with the constants that it reads; `covers` are those that span a dimension."""
    constants = constants_read(("CHUNK", "MODES", "CHANNELS", "SEGMENT"), grid, b.body)
    extents = {"MODES": layer.modes, "CHANNELS": layer.spec.width}
    bounds = {c: extents[c] for c in ("MODES", *covers) if c in constants}
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
        bounds,
        does | {CHUNKS},
        under or {},
    )
