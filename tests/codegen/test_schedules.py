"""A schedule decides how a program runs, never what it computes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from based_ops.codegen import pipeline
from based_ops.codegen.ir.program import Program
from based_ops.codegen.mixers.linear_attention import LinearAttention
from based_ops.codegen.mixers.sliding_window import SlidingWindow
from based_ops.codegen.names import BACKENDS
from based_ops.codegen.schedule import space
from based_ops.codegen.schedule.choose import choose
from based_ops.codegen.schedule.legal import IllegalSchedule, require_legal
from based_ops.codegen.schedule.model import HOST_C
from based_ops.codegen.spec.model import Elementwise, HeadDims, LayerSpec, TaylorExp
from tests.conftest import SPECS
from tests.kernels import linear, window
from tests.kernels.inputs import Call
from tests.layers import FORMS, Sizes, build
from tests.tolerance import BACKWARD, FORWARD, assert_close

DIMS = HeadDims(9, 20)
LINEAR = (
    LinearAttention("taylor2", TaylorExp(2), DIMS),
    LinearAttention("taylor1", TaylorExp(1), DIMS, normalize=False),
    LinearAttention("elementwise", Elementwise("elu(x) + 1"), DIMS),
)
REWRITES: tuple[tuple[str, ...], ...] = ((), ("gather_by_product",), ("gather_by_product", "turn"))


@st.composite
def legal_sizes(draw: st.DrawFn, spec: LayerSpec) -> Sizes:
    """Tile sizes that a schedule may choose: whole segments of whole tiles, widths that cover the heads."""
    qk, v = spec.head_dims.qk, spec.head_dims.v
    segment = draw(st.sampled_from((2, 12, 30, 64)))
    divisors = st.sampled_from([size for size in range(1, segment + 1) if segment % size == 0])
    return (
        ("SEGMENT", segment),
        ("LENGTH", segment * draw(st.integers(1, 3))),
        *FORMS[draw(st.sampled_from(list(FORMS)))],
        ("CHUNK", draw(divisors)),
        ("QUERIES", draw(divisors)),
        ("KEYS", draw(divisors)),
        ("FEATURES", draw(st.integers(3, 70))),
        ("QK", qk + draw(st.integers(0, 5))),
        ("VALUES", v + draw(st.integers(0, 9))),
    )


def call(spec: LayerSpec, length: int, seed: int) -> Call:
    return Call(2, 2, length, torch.float64, "cpu", "dense", seed, 1 / spec.head_dims.qk**0.5)


@given(data=st.data())
def test_every_schedule_of_linear_attention_computes_the_same(data: st.DataObject) -> None:
    spec = data.draw(st.sampled_from(LINEAR), "spec")
    sizes = data.draw(legal_sizes(spec), "sizes")
    module = build(spec, "torch", sizes, data.draw(st.sampled_from(REWRITES), "rewrites"))
    made = call(spec, data.draw(st.integers(1, 60), "length"), 1)
    layers = [linear.Layer(spec, chosen, made) for chosen in (module, build(spec, "torch"))]
    stateful = data.draw(st.booleans(), "initial state and gradient of the final state")
    results = []
    for layer in layers:
        (q, k, v), do = layer.qkv(), layer.output_gradient()
        initial = layer.earlier() if stateful else None
        forward = layer.forward(q, k, v, initial)
        d_final = layer.random_like(initial, 6) if initial else None
        gradients = layer.backward(do, d_final, q, k, v, forward, initial)
        state = layer.earlier()
        step = layer.step(q[:, :1], k[:, :1], v[:, :1], state)
        results.append([*forward, *gradients, step, *(x for x in state if x is not None)])
    for i, (found, wanted) in enumerate(zip(*results, strict=True)):
        assert_close(
            f"result {i}", found, wanted, (FORWARD if i < 4 else BACKWARD)[torch.float64], torch.ones(1)
        )


@given(data=st.data())
def test_every_plan_computes_the_same(data: st.DataObject) -> None:
    """Whatever the numbers that plans may have, on a sequence of a few segments."""
    spec = data.draw(st.sampled_from(LINEAR), "spec")
    names = [
        f"{plan.name}.{name}"
        for plan in pipeline.lower(spec).plans
        for name in plan.constants
        if name != "SEGMENT"
    ]
    options = {name: st.sampled_from(space.SIZES[name.partition(".")[2]]) for name in names}
    sizes = tuple(data.draw(st.fixed_dictionaries(options), "sizes").items())
    made = call(spec, data.draw(st.integers(257, 1100), "length"), 4)
    results = []
    for module in (build(spec, "torch", sizes), build(spec, "torch")):
        layer = linear.Layer(spec, module, made)
        (q, k, v), do, initial = layer.qkv(), layer.output_gradient(), layer.earlier()
        forward = layer.forward(q, k, v, initial)
        results.append(
            [*forward, *layer.backward(do, layer.random_like(initial, 6), q, k, v, forward, initial)]
        )
    for i, (found, wanted) in enumerate(zip(*results, strict=True)):
        assert_close(f"result {i}", found, wanted, BACKWARD[torch.float64], torch.ones(1))


@given(data=st.data())
def test_value_blocks_compute_the_same(data: st.DataObject) -> None:
    """Programs that need not hold whole rows of values may cut them."""
    spec = data.draw(st.sampled_from(LINEAR), "spec")
    block = data.draw(st.integers(3, 30), "values in a block")
    lowered = pipeline.lower(spec)
    free = {p.name for p in lowered.programs if "VALUES" in p.constants and "VALUES" not in p.bounds}
    sums = {"states", "query_states", "states_before", "states_after"}
    assert free == {*sums, "outputs", "recurrence"}
    form = FORMS[data.draw(st.sampled_from(list(FORMS)), "form")]
    module = build(spec, "torch", (*((f"{name}.VALUES", block) for name in sorted(free)), *form))
    assert all(module.SCHEDULE[name][torch.float64]["VALUES"] == block for name in free)
    layers = [linear.Layer(spec, chosen, call(spec, 70, 2)) for chosen in (module, build(spec, "torch"))]
    results = []
    for layer in layers:
        (q, k, v), do, initial = layer.qkv(), layer.output_gradient(), layer.earlier()
        forward = layer.forward(q, k, v, initial)
        results.append(
            [*forward, *layer.backward(do, layer.random_like(initial, 6), q, k, v, forward, initial)]
        )
    for i, (found, wanted) in enumerate(zip(*results, strict=True)):
        assert_close(f"result {i}", found, wanted, BACKWARD[torch.float64], torch.ones(1))


@given(data=st.data())
def test_every_schedule_of_a_window_computes_the_same(data: st.DataObject) -> None:
    spec = SlidingWindow("window", data.draw(st.integers(1, 50), "window"), DIMS)
    module = build(spec, "torch", data.draw(legal_sizes(spec), "sizes"))
    made = call(spec, data.draw(st.integers(1, 60), "length"), 3)
    past = data.draw(st.integers(0, 30), "keys before the queries")
    results = []
    for chosen in (module, build(spec, "torch")):
        layer = window.Layer(spec, chosen, made, past)
        (q, k, v), do, ring = layer.qkv(), layer.output_gradient(), layer.ring()
        first = layer.first()
        o, lse = layer.forward(q, k, v, first)
        steps = [layer.step(q[:, :1], k[:, :1], v[:, :1], ring) for _ in range(2)]
        results.append([o, lse, *layer.backward(do, q, k, v, o, lse, first), *steps, *ring])
    for i, (found, wanted) in enumerate(zip(*results, strict=True)):
        assert_close(
            f"result {i}", found, wanted, (FORWARD if i < 2 else BACKWARD)[torch.float64], torch.ones(1)
        )


def _specs() -> list[LayerSpec]:
    return list(pipeline.load(SPECS).values())


@pytest.mark.parametrize("target", [*BACKENDS, HOST_C])
@pytest.mark.parametrize("spec", _specs(), ids=lambda spec: spec.name)
def test_chosen_schedules_are_legal(spec: LayerSpec, target: str) -> None:
    """What the policy and the records choose binds every constant and keeps the programs' own conditions."""
    segments: dict[str, set[int]] = {}
    lowered = pipeline.lower(spec)
    programs = (kernel for kernel in pipeline.kernels(lowered, target) if isinstance(kernel, Program))
    for program in (*programs, *lowered.plans):
        schedule = choose(spec, program, target)
        require_legal(program, schedule)
        on_gpu = target in ("triton", "tilelang")
        unserved = {"float32"} if program.name == "recurrence" and on_gpu else set()
        assert (
            set(schedule.settings) == {*spec.dtypes, *(("float64",) if target == "torch" else ())} - unserved
        )
        for dtype, setting in schedule.settings.items():
            sizes = setting.constants
            assert list(sizes) == list(program.constants)
            if "SEGMENT" in sizes:
                segments.setdefault(dtype, set()).add(sizes["SEGMENT"])
            if target == "triton" and isinstance(program, Program):
                assert all(size & (size - 1) == 0 for size in sizes.values()), sizes
                assert setting.warps in (1, 2, 4, 8, 16)
    assert all(len(chosen) == 1 for chosen in segments.values()), (
        "all programs and plans of a layer share one segment length"
    )


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"KEYS": 48}, "SEGMENT=64 is no multiple of KEYS=48"),
        ({"CHUNK": 128}, "SEGMENT=64 is no multiple of CHUNK=128"),
        ({"QUERIES": 3}, "SEGMENT=64 is no multiple of QUERIES=3"),
        ({"VALUES": 16}, "VALUES=16 does not cover 20"),
        ({"QK": 8}, "QK=8 does not cover 9"),
        ({"FEATURES": 0}, "no size for FEATURES"),
    ],
    ids=str,
)
def test_illegal_schedules_are_refused(size: dict[str, int], message: str) -> None:
    sizes = {"SEGMENT": 64, "CHUNK": 16, "KEYS": 16, "QUERIES": 16} | size
    with pytest.raises(IllegalSchedule, match=message):
        build(LINEAR[0], "torch", tuple(sizes.items()))
