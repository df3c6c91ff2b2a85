"""Hypothesis strategies for layer specs and for elementwise expressions."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from based_ops.codegen.dtypes import DTYPES
from based_ops.codegen.errors import ExpressionError
from based_ops.codegen.mixers.hybrid import Hybrid, WindowDims
from based_ops.codegen.mixers.linear_attention import MOST_REPLAYED, LinearAttention
from based_ops.codegen.mixers.long_conv import LongConv
from based_ops.codegen.mixers.short_conv import ShortConv
from based_ops.codegen.mixers.sliding_window import MAX_WINDOW, SlidingWindow
from based_ops.codegen.mixers.state_space import BASES, DISCRETIZATIONS, StateSpace
from based_ops.codegen.names import name_problem
from based_ops.codegen.spec import parts
from based_ops.codegen.spec.feature_map import canonical_text, parse
from based_ops.codegen.spec.model import (
    Elementwise,
    FeatureMap,
    HeadDims,
    LayerSpec,
    Power,
    TaylorExp,
    too_wide,
)
from based_ops.codegen.spec.parts import Part

POLYNOMIALS = (*(TaylorExp(order) for order in (1, 2, 3)), *(Power(degree) for degree in (2, 3, 4)))
"""Every feature map that is one."""
_SMOOTH = ("tanh", "sigmoid", "softplus", "silu", "gelu", "sin", "cos", "erf")
_KINKED = ("relu", "elu", "abs")


def _constants() -> st.SearchStrategy[str]:
    return st.integers(1, 300).map(lambda n: f"{n / 100:g}")


def _grow(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """One more operation around smaller expressions; none leaves its domain or grows without bound."""
    pair = st.tuples(inner, inner)
    return st.one_of(
        st.tuples(st.sampled_from(_SMOOTH + _KINKED), inner).map(lambda t: f"{t[0]}({t[1]})"),
        st.tuples(st.sampled_from((" + ", " - ", "*")), pair).map(lambda t: f"({t[1][0]}){t[0]}({t[1][1]})"),
        st.tuples(st.sampled_from(("minimum", "maximum")), pair).map(
            lambda t: f"{t[0]}({t[1][0]}, {t[1][1]})"
        ),
        st.tuples(inner, st.integers(2, 3)).map(lambda t: f"({t[0]})**{t[1]}"),
        inner.map(lambda u: f"-({u})"),
        inner.map(lambda u: f"exp(minimum({u}, 1))"),
        inner.map(lambda u: f"log(1 + ({u})**2)"),
        inner.map(lambda u: f"(1 + ({u})**2)**0.5"),
        pair.map(lambda t: f"({t[0]})/(1 + ({t[1]})**2)"),
    )


def _is_valid(text: str) -> bool:
    try:
        parse(text)
    except ExpressionError:
        return False
    return True


def expressions(max_leaves: int = 5) -> st.SearchStrategy[str]:
    """Texts of elementwise expressions in x that are finite, with finite slopes, for moderate x."""
    leaves = st.one_of(st.just("x"), st.just("x"), _constants())
    return st.recursive(leaves, _grow, max_leaves=max_leaves).filter(_is_valid)


def wild_expressions() -> st.SearchStrategy[str]:
    """Texts of elementwise expressions with kinks, whose values and slopes may be infinite or NaN."""
    kinked = st.sampled_from(("relu({})", "abs({})", "elu({})", "maximum({}, 0)", "minimum({}, 1)"))
    steep = st.sampled_from(("sqrt({})", "1/({})", "({})**-0.5", "log({})", "({})**-2", "log1p({})"))
    smooth = st.sampled_from(("softplus({})", "silu({})", "tanh({})", "exp({})", "expm1({})", "gelu({})"))
    leaves = st.one_of(st.just("x"), st.just("x"), st.just("-x"), _constants())

    def grow(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        pair = st.tuples(inner, inner)
        return st.one_of(
            *(st.tuples(shape, inner).map(lambda t: t[0].format(t[1])) for shape in (kinked, kinked, steep)),
            st.tuples(smooth, inner).map(lambda t: t[0].format(t[1])),
            st.tuples(
                st.sampled_from(("({})*({})", "({}) + ({})", "maximum({}, {})", "minimum({}, {})")), pair
            ).map(lambda t: t[0].format(*t[1])),
        )

    return st.recursive(leaves, grow, max_leaves=4).filter(_is_valid)


def positive_expressions() -> st.SearchStrategy[str]:
    """Feature maps whose weights cannot cancel: every value is above zero, and moderate for moderate x."""
    return (
        st.tuples(expressions(3), _constants()).map(lambda t: f"sigmoid({t[0]}) + {t[1]}").filter(_is_valid)
    )


def layer_names() -> st.SearchStrategy[str]:
    return st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True).filter(
        lambda name: name_problem(name) is None
    )


def dtype_sets() -> st.SearchStrategy[tuple[str, ...]]:
    """Non-empty sets of dtypes, in the order in which specs keep them."""
    chosen = st.sets(st.sampled_from(DTYPES), min_size=1)
    return chosen.map(lambda names: tuple(dtype for dtype in DTYPES if dtype in names))


def scales() -> st.SearchStrategy[float | None]:
    return st.none() | st.floats(1e-3, 4.0)


def linear_attentions(max_qk: int = 256, max_v: int = 256) -> st.SearchStrategy[LinearAttention]:
    """Linear attention layers of any feature map; narrower ones for tests that run them."""
    elementwise = expressions(3).map(lambda text: Elementwise(canonical_text(parse(text))))
    pairs = [(st.just(x), min(max_qk, x.widest)) for x in POLYNOMIALS] + [(elementwise, max_qk)]
    drawn = st.one_of(_linear_attentions(maps, widest, max_v) for maps, widest in pairs)
    # What divides by sums that can vanish must say so.
    return drawn.map(
        lambda spec: replace(spec, signed_weights=spec.signed_weights or bool(spec.feature_map.signs()))
    )


def _linear_attentions(
    maps: st.SearchStrategy[FeatureMap], max_qk: int, max_v: int
) -> st.SearchStrategy[LinearAttention]:
    return st.builds(
        LinearAttention,
        name=layer_names(),
        feature_map=maps,
        head_dims=st.builds(HeadDims, qk=st.integers(8, max_qk), v=st.integers(16, max_v)),
        normalize=st.booleans(),
        signed_weights=st.booleans(),
        eps=st.floats(0.0, 1.0),
        scale=scales(),
        state_dtype=st.sampled_from(("float32", "bfloat16", "float16")),
        decay=st.sampled_from(("none", "head", "token")),
        replay=st.just(0) | st.integers(1, MOST_REPLAYED),
        dtypes=dtype_sets(),
    ).map(lambda spec: spec if spec.decay == "none" else replace(spec, replay=0))


def sliding_windows(
    max_window: int = MAX_WINDOW, max_qk: int = 128, max_v: int = 256
) -> st.SearchStrategy[SlidingWindow]:
    """Sliding-window layers; narrower ones for tests that run them."""
    return st.builds(
        SlidingWindow,
        name=layer_names(),
        window=st.integers(1, max_window),
        head_dims=st.builds(HeadDims, qk=st.integers(8, max_qk), v=st.integers(16, max_v)),
        scale=scales(),
        dtypes=dtype_sets(),
    )


def hybrids(max_window: int = MAX_WINDOW, max_qk: int = 64, max_v: int = 256) -> st.SearchStrategy[Hybrid]:
    """Hybrid layers of any feature map of one sign; narrower ones for tests that run them."""
    elementwise = positive_expressions().map(lambda text: Elementwise(canonical_text(parse(text))))
    drawn = st.builds(
        Hybrid,
        name=layer_names(),
        window=st.integers(1, max_window),
        feature_map=st.sampled_from((TaylorExp(2), Power(2), Power(4))) | elementwise,
        head_dims=st.builds(HeadDims, qk=st.integers(8, max_qk), v=st.integers(16, max_v)),
        window_dims=st.none() | st.builds(WindowDims, qk=st.integers(8, 2 * max_qk)),
        combine=st.sampled_from(("normalizer", "sum")),
        rescale=st.sampled_from(("shared", "window")),
        window_factor=st.booleans(),
        linear_factor=st.booleans(),
        eps=st.floats(0.0, 1.0),
        scale=scales(),
        state_dtype=st.sampled_from(("float32", "bfloat16", "float16")),
        dtypes=dtype_sets(),
    )
    # What divides by sums that can vanish is no hybrid, nor what has too large a state; and parts of their
    # own have nothing to share.
    return drawn.filter(
        lambda spec: (
            not spec.feature_map.signs()
            and not [*too_wide(spec.feature_map, spec.head_dims.qk)]
            and (spec.combine == "normalizer" or spec.rescale == "shared")
        )
    )


def short_convs(activations: st.SearchStrategy[str] | None = None) -> st.SearchStrategy[ShortConv]:
    """Short convolutions, with any activation unless some are given."""
    canonical = (activations or expressions(3)).map(lambda text: canonical_text(parse(text)))
    return st.builds(
        ShortConv,
        name=layer_names(),
        width=st.integers(2, 8),
        activation=st.none() | st.just("silu(x)") | canonical,
        bias=st.booleans(),
        gate=st.booleans(),
        dtypes=dtype_sets(),
    )


def long_convs(most: int = 1 << 20) -> st.SearchStrategy[LongConv]:
    """Long convolutions of up to so many taps, whose channels have filters of their own or share them."""
    fields = {
        "name": layer_names(),
        "length": st.integers(2, most),
        "gate": st.booleans(),
        "dtypes": dtype_sets(),
    }
    shared = st.builds(LongConv, filters=st.just("head"), width=st.integers(2, 40), **fields)
    return st.builds(LongConv, **fields) | shared


def state_spaces(most: int = 96) -> st.SearchStrategy[StateSpace]:
    """State spaces of up to that order, whose channels have filters of their own or share them."""
    fields = {
        "name": layer_names(),
        "order": st.integers(1, most // 2).map(lambda modes: 2 * modes),
        "basis": st.sampled_from(BASES),
        "discretization": st.sampled_from(DISCRETIZATIONS),
        "trainable": st.booleans(),
        "dtypes": dtype_sets(),
    }
    shared = st.builds(StateSpace, filters=st.just("head"), width=st.integers(2, 40), **fields)
    return st.builds(StateSpace, **fields) | shared


@st.composite
def pipelines(
    draw: st.DrawFn, width: int, widest: int = parts.WIDEST, single: bool = False
) -> tuple[Part, ...]:
    """Parts that suit `width` components, each other, and layers of up to `widest` features."""
    texts = positive_expressions() | st.sampled_from(("relu(x)", "x**2", "exp(minimum(x, 1))"))
    maps = texts.map(lambda text: parts.Mapped(canonical_text(parse(text))))
    count = st.integers(8, max(8, widest // 2))
    learned = st.builds(parts.Projection, features=count, bias=st.booleans())
    random = st.builds(
        parts.RandomProjection, features=count, seed=st.integers(0, 99), half_squares=st.booleans()
    )
    norms = st.sampled_from((parts.Softmax(), parts.Softmax(2), parts.L2Norm(), parts.LayerNorm(eps=1e-3)))
    others = st.sampled_from(
        (parts.Affine(), parts.Affine(bias=False), parts.Signs(), parts.Products(2), parts.RolledProducts(2))
    )
    found: list[Part] = []
    for _ in range(draw(st.integers(0 if single else 1, 2 if single else 3))):
        now = parts.width_after(found, width)
        kinds = [learned, random, maps, norms, others]
        if not single:
            branch = pipelines(now, widest, single=True)
            join = st.sampled_from(("concatenate", "add", "multiply"))
            kinds.append(st.builds(parts.Branches, join=join, of=st.tuples(branch, branch)))
        part = draw(st.one_of(kinds))
        if not any(parts.problems((part,), now)) and part.width(now) <= widest:
            found.append(part)
    return tuple(found)


@st.composite
def with_parts(draw: st.DrawFn, max_qk: int = 40, max_v: int = 40, widest: int = 64) -> LinearAttention:
    """Linear attention layers of features made by parts."""
    plain = draw(linear_attentions(max_qk, max_v))
    qk = plain.head_dims.qk
    chosen = draw(pipelines(qk, min(widest, plain.feature_map.widest)))
    keys = draw(st.none() | pipelines(qk, min(widest, plain.feature_map.widest)))
    if keys is not None and parts.width_after(keys, qk) != parts.width_after(chosen, qk):
        keys = None
    tied = keys is None and draw(st.booleans())
    if not chosen and not keys:
        chosen = (parts.Affine(),)
    return replace(plain, parts=chosen, key_parts=keys, tied=tied, signed_weights=True)


def deltas(max_qk: int = 256, max_v: int = 256) -> st.SearchStrategy[LinearAttention]:
    """Linear attention layers that learn by the delta rule, of all maps that are a function of q·k."""
    plain = st.one_of(
        _linear_attentions(st.just(x), min(max_qk, x.widest), max_v) for x in (*POLYNOMIALS, Elementwise("x"))
    )
    chosen = {"normalize": False, "state_dtype": "float32", "update": "delta", "replay": 0}
    first = st.sampled_from(((), (parts.Signs(),), (parts.Mapped("relu(x)"), parts.L2Norm())))

    def completed(spec: LinearAttention, found: tuple[Part, ...]) -> LinearAttention:
        unit = not (found and isinstance(found[-1], parts.L2Norm))
        fits = parts.width_after(found, spec.head_dims.qk) <= spec.feature_map.widest
        return replace(spec, **chosen, parts=found if fits else (), unit_keys=unit or not fits)

    return st.builds(completed, plain, first)


def layer_specs() -> st.SearchStrategy[LayerSpec]:
    """Every spec that a file can hold."""
    return (
        linear_attentions()
        | sliding_windows()
        | short_convs()
        | long_convs()
        | hybrids()
        | with_parts()
        | deltas()
        | state_spaces()
    )
