"""Kernels for Hopper's warpgroups, as far as they can be tested without one: see `gluon.py` for how."""

from __future__ import annotations

import itertools
import re
from copy import copy
from dataclasses import replace
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from based_ops.aot import compile_triton
from based_ops.codegen import pipeline
from based_ops.codegen.emit.warpgroups.wide import ROUNDS
from based_ops.codegen.ir.kernels import ForeignKernel
from based_ops.codegen.mixers.linear_attention import LinearAttention
from based_ops.codegen.names import RECURRENCE, on_warpgroups
from based_ops.codegen.spec.model import Elementwise, HeadDims, TaylorExp
from based_ops.state import LinearAttentionState
from based_ops.support import exchange, exchange_wide, warpgroups
from based_ops.support.host import cdiv, packed_plan
from tests.covering import pairs
from tests.kernels.gluon import LOGICAL, meanings
from tests.kernels.linear import expected_gradients
from tests.kernels.runners import interpreting
from tests.kernels.warpgroups import GRAIN, SCALE, Call, fails_without_any_wait, passes
from tests.layers import build
from tests.tolerance import BACKWARD, FORWARD, assert_close

LAYERS = (
    LinearAttention("taylor2", TaylorExp(2), HeadDims(16, 64)),
    LinearAttention("two_blocks", TaylorExp(2), HeadDims(8, 72)),
    LinearAttention("plain", TaylorExp(2), HeadDims(16, 40), normalize=False, state_dtype="bfloat16"),
)
NARROW = (
    LinearAttention("narrow", TaylorExp(2), HeadDims(8, 40), state_dtype="bfloat16"),
    LinearAttention("plain", TaylorExp(2), HeadDims(16, 64), normalize=False),
)
WIDE = (
    LinearAttention("wide24", TaylorExp(2), HeadDims(24, 64)),
    LinearAttention("wide32", TaylorExp(2), HeadDims(32, 64)),
    LinearAttention("wide24_two_blocks", TaylorExp(2), HeadDims(24, 72), state_dtype="bfloat16"),
    LinearAttention("wide32_plain", TaylorExp(2), HeadDims(32, 40), normalize=False, state_dtype="bfloat16"),
)
MAPS = (
    LinearAttention("elu", Elementwise("elu(x) + 1"), HeadDims(64, 64)),
    LinearAttention(
        "sigmoid_two_blocks", Elementwise("sigmoid(x)"), HeadDims(48, 72), state_dtype="bfloat16"
    ),
    LinearAttention("relu", Elementwise("relu(x)"), HeadDims(32, 40)),
    LinearAttention("identity", Elementwise("x"), HeadDims(64, 64), normalize=False),
    LinearAttention(
        "infinite_at_0", Elementwise("log(x**2)"), HeadDims(24, 40), normalize=False, state_dtype="bfloat16"
    ),
)
FADING = (
    LinearAttention("head", Elementwise("x"), HeadDims(64, 64), normalize=False, decay="head"),
    LinearAttention("token", Elementwise("x"), HeadDims(64, 64), normalize=False, decay="token"),
    LinearAttention("elu_head", Elementwise("elu(x) + 1"), HeadDims(48, 72), decay="head"),
    LinearAttention("elu_token", Elementwise("elu(x) + 1"), HeadDims(64, 40), decay="token"),
)
OBLONG = (
    LinearAttention("identity128", Elementwise("x"), HeadDims(128, 128), normalize=False),
    LinearAttention("identity72", Elementwise("x"), HeadDims(72, 40), normalize=False),
    LinearAttention("head128", Elementwise("x"), HeadDims(128, 128), normalize=False, decay="head"),
    LinearAttention("token104", Elementwise("x"), HeadDims(104, 72), normalize=False, decay="token"),
)
OF_MAPS = (
    MAPS[3],
    LinearAttention(
        "silu", Elementwise("silu(x)"), HeadDims(32, 40), normalize=False, state_dtype="bfloat16"
    ),
    LinearAttention("three_blocks", Elementwise("x**2"), HeadDims(48, 136), normalize=False),
    OBLONG[0],
    MAPS[0],
    MAPS[2],
    LinearAttention("exp", Elementwise("exp(x)"), HeadDims(48, 64), state_dtype="bfloat16"),
)
"""Those whose gradients are recurrences: of one block of values, of several, and of what is divided."""
OF_FADING = (
    *FADING[:2],
    LinearAttention("silu_token", Elementwise("silu(x)"), HeadDims(48, 40), normalize=False, decay="token"),
)
"""The same of states that fade."""
LENGTHS = (1, 64, 65, 333, 640)
DTYPES = (torch.bfloat16, torch.float16)
GROUPS = ((4, 2, 2), (2, 2, 4), (6, 3, 2), (1, 2, 2))
"""Heads of q, k and v."""


def name_of(x: Any) -> str:
    return x.name if isinstance(x, LinearAttention) else str(x)


@pytest.mark.parametrize(
    ("spec", "length", "continued", "dtype"),
    pairs(LAYERS + WIDE + MAPS + FADING + OBLONG, LENGTHS, (False, True), DTYPES),
    ids=name_of,
)
def test_one_segment(spec: LinearAttention, dtype: torch.dtype, length: int, continued: bool) -> None:
    call = Call(spec, dtype, length)
    initial = call.earlier(7) if continued else None
    parts = () if initial is None else tuple(x for x in initial if x is not None)
    found, state, normalizer = call.launch(1, parts, (), final=True)
    o, final = call.expected(initial)
    assert_close("o", found, o, FORWARD[dtype])
    tolerance = max(FORWARD[dtype], FORWARD[call.kept], key=lambda t: t.norm)
    assert_close("final state", state, final.state, tolerance)
    if final.normalizer is not None:
        assert_close("final normalizer", normalizer, final.normalizer, tolerance)


@pytest.mark.parametrize(
    ("spec", "stages", "segments"), pairs(LAYERS + WIDE + MAPS + FADING, (2, 3, 4), (2, 3)), ids=name_of
)
def test_several_segments(spec: LinearAttention, segments: int, stages: int) -> None:
    call = Call(spec, torch.bfloat16, 333)
    found, _, _ = call.launch(segments, (), call.states_before(segments), final=False, STAGES=stages)
    assert_close("o", found, call.expected(None)[0], FORWARD[torch.bfloat16])


@pytest.mark.parametrize(
    "spec", (*LAYERS, *WIDE[:2], MAPS[0], MAPS[3], *FADING[:2], OBLONG[0]), ids=lambda spec: spec.name
)
@given(data=st.data())
@settings(max_examples=3)
def test_packed_segments(spec: LinearAttention, data: st.DataObject) -> None:
    """Bit for bit as calls of their own, whatever the other sequences hold; tokens of none are left alone."""
    length = data.draw(st.integers(1, 400), "length")
    cuts = sorted(data.draw(st.lists(st.integers(0, length), min_size=2, max_size=8), "cuts"))
    edges = list(zip(cuts[::2], cuts[1::2], strict=False))
    call = Call(spec, torch.bfloat16, length, batch=1)
    segments, _, table, _ = packed_plan(torch.tensor(edges), length, GRAIN, GRAIN)
    before = call.states_of(table)
    for x in before:  # of segments without tokens nobody reads
        x[:, :, table[:, 0] == table[:, 1]] = float("nan")
    spoilt = data.draw(st.sampled_from((None, *range(len(edges)))), "which holds what is not finite")
    nobodys = torch.ones(length, dtype=torch.bool)
    for n, (start, stop) in enumerate(edges):
        nobodys[start:stop] = False
        if n == spoilt:
            for x in call.qkv:
                x[:, start:stop] = float("nan")
    for x in call.qkv:
        x[:, nobodys] = float("inf")
    found = call.launch(segments, (), before, False, table=table.int())[0]
    assert found[:, nobodys].isnan().all()
    for n, (start, stop) in enumerate(edges):
        if start < stop and n != spoilt:
            part, of_part = call.part(start, stop), cdiv(stop - start, GRAIN)
            alone = part.launch(of_part, (), part.states_before(of_part), False)[0]
            assert torch.equal(found[:, start:stop], alone), f"sequence {n}"


@pytest.mark.parametrize(
    ("spec", "heads", "segments"),
    pairs((*LAYERS[:2], WIDE[0], WIDE[3], *MAPS[:2], MAPS[3], *FADING[1:3], OBLONG[0]), GROUPS, (1, 2)),
    ids=name_of,
)
def test_heads_in_groups(spec: LinearAttention, segments: int, heads: tuple[int, int, int]) -> None:
    call = Call(spec, torch.bfloat16, 200, heads)
    initial = call.earlier(7) if segments == 1 else None
    parts = () if initial is None else tuple(x for x in initial if x is not None)
    before = call.states_before(segments) if segments > 1 else ()
    found, state, normalizer = call.launch(segments, parts, before, segments == 1)
    o, final = call.expected(initial)
    assert_close("o", found, o, FORWARD[torch.bfloat16])
    if segments == 1:
        tolerance = max(FORWARD[torch.bfloat16], FORWARD[call.kept], key=lambda t: t.norm)
        assert_close("final state", state, final.state, tolerance)
        if final.normalizer is not None:
            assert_close("final normalizer", normalizer, final.normalizer, tolerance)


# Whole passes: what they launch runs as Python.


WITH_TOKENS = ((1, 1), (64, 1), (333, 1), (333, 2), (333, 3))
"""Lengths and segments; portable programs of decays have no segments without tokens."""
WITHOUT_TOKENS = ((1, 2), (1, 3), (64, 2), (64, 3))


@pytest.mark.parametrize(
    ("spec", "shape", "continued", "dtype"),
    [
        *pairs((LAYERS[0], *NARROW, *OF_MAPS), WITH_TOKENS + WITHOUT_TOKENS, (False, True), DTYPES),
        *pairs(OF_FADING, WITH_TOKENS, (False, True), DTYPES),
    ],
    ids=name_of,
)
def test_gradients(
    spec: LinearAttention, shape: tuple[int, int], continued: bool, dtype: torch.dtype
) -> None:
    length, segments = shape
    gradients_are_right(Call(spec, dtype, length), segments, continued)


@pytest.mark.parametrize(
    ("spec", "heads", "segments"), pairs((LAYERS[0], *NARROW, *OF_MAPS), GROUPS, (1, 2)), ids=name_of
)
def test_gradients_of_groups(spec: LinearAttention, segments: int, heads: tuple[int, int, int]) -> None:
    call = Call(spec, torch.bfloat16, 200, heads)
    gradients_are_right(call, segments, continued=call.of_states == call.every)


@pytest.mark.parametrize("continued", [False, True], ids=["from nothing", "between states"])
@pytest.mark.parametrize("spec", OF_FADING, ids=lambda spec: spec.name)
def test_gradients_of_shared_queries_that_fade(spec: LinearAttention, continued: bool) -> None:
    gradients_are_right(Call(spec, torch.bfloat16, 200, (1, 2, 2)), 2, continued)


@pytest.mark.parametrize("spec", [LAYERS[0], *NARROW, *OF_MAPS, *OF_FADING], ids=lambda spec: spec.name)
@given(data=st.data())
@settings(max_examples=5)
def test_gradients_of_packed_sequences(spec: LinearAttention, data: st.DataObject) -> None:
    """Those of each sequence by itself, whatever else is there; tokens of none have gradients of 0."""
    shared = [(2, 2, 2), (1, 2, 2)] if spec in OF_FADING else [(2, 2, 2), (1, 2, 2), (4, 2, 1)]
    heads = data.draw(st.sampled_from(shared), "heads")
    length = data.draw(st.integers(1, 400), "length")
    cuts = sorted(data.draw(st.lists(st.integers(0, length), min_size=2, max_size=8), "cuts"))
    edges = list(zip(cuts[::2], cuts[1::2], strict=False))
    call = Call(spec, torch.bfloat16, length, heads, batch=1)
    continued = call.of_states == call.every and data.draw(st.booleans(), "between states")
    nobodys = torch.ones(length, dtype=torch.bool)
    for start, stop in edges:
        nobodys[start:stop] = False
    spoilt = data.draw(st.sampled_from((None, *range(len(edges)))), "which holds what is not finite")
    for x in call.qkv:
        x[:, nobodys] = float("nan")
        if spoilt is not None:
            x[:, slice(*edges[spoilt])] = float("inf")
    q, k, v = call.qkv
    do = torch.randn(1, length, call.every, v.shape[3]).to(q.dtype)
    several = Call(spec, q.dtype, 1, heads, batch=len(edges))
    initial = several.earlier(100) if continued else None
    d_final = LinearAttentionState(*map(noise_like, initial)) if initial else None
    before, owed = initial or (None, None), d_final or (None, None)

    forward, backward = passes(build(spec, "triton"), 1, spec)
    sequences, g = torch.tensor(edges), call.decays
    if spec.decay == "token":
        g[0][:, nobodys] = float("nan")
    o, n, *_ = forward(q, k, v, *g, SCALE, *before, continued, sequences)
    *found, d_state, d_normalizer = backward(do, *owed, q, k, v, *g, o, n, SCALE, *before, sequences)
    of_tokens = found[:4] if spec.decay == "token" else found[:3]
    for name, got in zip(("q", "k", "v", "g"), of_tokens, strict=False):
        assert not got[:, nobodys].any(), f"d{name} of tokens of no sequence"
    for i, (start, stop) in enumerate(edges):
        if start == stop or i == spoilt:
            continue
        state, owes = (
            None if x is None else LinearAttentionState(*(y if y is None else y[i : i + 1] for y in x))
            for x in (initial, d_final)
        )
        parts = [x[:, start:stop] for x in (do, q, k, v)]
        wanted = expected_gradients(of_call(call, start, stop), parts[0], owes, *parts[1:], state)
        mine = [x[:, start:stop] for x in of_tokens[:3]]
        mine += [x[i : i + 1] for x in (d_state, d_normalizer) if x.numel()]
        mine += [x[:, start:stop] for x in of_tokens[3:]]
        names = ("dq", "dk", "dv", *("state", "z")[: len(mine) - len(of_tokens)], "dg")
        for name, got, (want, part) in zip(names, mine, wanted, strict=False):
            assert_close(f"{name} of sequence {i}", got, want, BACKWARD[q.dtype], floor=part)


def gradients_are_right(call: Call, segments: int, continued: bool) -> None:
    """The passes of a generated module, held against the reference in float64."""
    spec, dtype, (q, k, v) = call.spec, call.dtype, call.qkv
    do = torch.randn(*v.shape[:2], call.every, v.shape[3]).to(dtype)
    initial = call.earlier(100) if continued else None
    d_final = LinearAttentionState(*map(noise_like, initial)) if initial else None
    wanted = expected_gradients(of_call(call), do, d_final, q, k, v, initial)
    if spec.decay == "head":  # tokens owe it what may cancel
        each = copy(call)
        each.spec, each.decay = replace(spec, decay="token"), call.decay.expand(*q.shape[:2], -1)
        owed = expected_gradients(of_call(each), do, d_final, q, k, v, initial)[-1][0]
        wanted[-1] = wanted[-1][0], owed.abs().sum((0, 1))

    forward, backward = passes(build(spec, "triton"), segments, spec)
    before, g = initial or (None, None), call.decays
    o, n, *after = forward(q, k, v, *g, SCALE, *before, continued)
    if initial:
        for name, got, want in zip(
            LinearAttentionState._fields, after, call.expected(initial)[1], strict=True
        ):
            if want is not None:
                assert_close(name, got, want, FORWARD[dtype])
    *found, d_state, d_normalizer = backward(
        do, *(d_final or (None, None)), q, k, v, *g, o, n, SCALE, *before
    )
    found = {
        **dict(zip(("dq", "dk", "dv"), found, strict=False)),
        **{"state": d_state, "normalizer": d_normalizer},
        **({"dg": found[3]} if g else {}),
    }
    there = {name: x for name, x in found.items() if x.numel()}
    for (name, got), (want, part) in zip(there.items(), wanted, strict=True):
        assert_close(name, got, want, BACKWARD[dtype], floor=part)


def of_call(call: Call, start: int = 0, stop: int | None = None) -> Any:
    """Some tokens of a call, as `expected_gradients` asks about its layer."""
    g = call.decay_of(start, call.length if stop is None else stop)
    return SimpleNamespace(
        spec=call.spec, call=SimpleNamespace(scale=SCALE), decays=lambda *_: () if g is None else (g,)
    )


@pytest.mark.parametrize(
    "program", ["states", "recurrence", "query_states", "query_gradients", "key_gradients"]
)
def test_no_wait_is_forgotten_and_none_too_many(program: str) -> None:
    module = build(LAYERS[0], "triton")
    fails_without_any_wait(
        module, on_warpgroups(program), 5, lambda mutant: compute_gradients(LAYERS[0], mutant)
    )


@pytest.mark.parametrize(
    "spec", [OF_MAPS[0], OF_MAPS[3], OF_MAPS[4], OF_FADING[1]], ids=lambda spec: spec.name
)
@pytest.mark.parametrize("program", ["query_gradients", "key_gradients"])
def test_no_wait_of_gradients_of_maps_is_forgotten(spec: LinearAttention, program: str) -> None:
    kernel = on_warpgroups(program)
    module = build(spec, "triton")
    fails_without_any_wait(module, kernel, 7, lambda mutant: compute_gradients(spec, mutant, torch.float16))


@pytest.mark.parametrize(
    ("spec", "least"),
    [
        (WIDE[0], 10),
        (WIDE[1], 10),
        (MAPS[0], 7),
        (MAPS[3], 7),
        (FADING[0], 8),
        (FADING[3], 8),
        (OBLONG[0], 7),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_no_wait_of_other_recurrences_is_forgotten(spec: LinearAttention, least: int) -> None:
    def compute(module: ModuleType) -> None:
        call = Call(spec, torch.float16, 400)
        assert call.launch(1, (), (), final=True, module=module)[0].isfinite().all()

    module = build(spec, "triton")
    fails_without_any_wait(module, on_warpgroups(RECURRENCE), least, compute)


def compute_gradients(
    spec: LinearAttention, module: ModuleType, dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, ...]:
    """Forward and backward in two segments; fails unless all that is found is finite."""
    call = Call(spec, dtype, 200)
    forward, backward = passes(module, 2, spec)
    o, n, *_ = forward(*call.qkv, *call.decays, SCALE, None, None, False)
    found = (o, *backward(o, None, None, *call.qkv, *call.decays, o, n, SCALE, None, None))
    assert all(tensor.isfinite().all() for tensor in found)
    return found


def noise_like(x: Tensor | None) -> Tensor | None:
    return None if x is None else torch.randn(x.shape).to(x.dtype)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Layers that are compiled, each once, unless ``--all-kernels`` asks for every way in every dtype."""
    if metafunc.function is test_rows_of_16_bytes_suffice:
        specs = LAYERS[1], *NARROW, *WIDE[2:], *MAPS, *FADING, *OBLONG
        ways = [
            (torch.bfloat16, True),
            (torch.float16, False),
            (torch.float16, True),
            (torch.bfloat16, False),
        ]
        every = [(spec, *way) for spec, way in itertools.product(specs, ways)]
        some = [(spec, *way) for spec, way in zip(specs, itertools.cycle(ways), strict=False)]
        chosen = every if metafunc.config.getoption("--all-kernels") else some
        metafunc.parametrize(("spec", "dtype", "flag"), chosen, ids=name_of)


@pytest.mark.skipif(interpreting(), reason="under the interpreter nothing is compiled")
def test_rows_of_16_bytes_suffice(spec: LinearAttention, dtype: torch.dtype, flag: bool) -> None:
    """Kernels compile with strides of which Triton knows nothing, in the middle or from nothing."""
    module = build(spec, "triton")
    for program in pipeline.kernels(pipeline.lower(spec), "triton"):
        if not isinstance(program, ForeignKernel) or dtype not in module.SCHEDULE[program.name]:
            continue
        flags = dict.fromkeys(program.flags, flag)
        compile_triton(spec, module, program.name, dtype, strides_of_16=False, **flags)


# What is made of PTX, on the thirty-two lanes of a warp: each holds, of a left operand with sixteen columns,
# four registers of two elements.

LANE = np.arange(32)
ROWS = np.stack([LANE // 4 + 8 * (register % 2) for register in range(4)])
COLUMNS = np.stack([2 * (LANE % 4) + 8 * (register // 2) for register in range(4)])


def registers(x: Tensor) -> np.ndarray:
    """[4, 32] packed registers of a tile [16, 16]."""
    bits = x.view(torch.int16).numpy().astype(np.int64) & 0xFFFF
    return bits[ROWS, COLUMNS] | bits[ROWS, COLUMNS + 1] << 16


def tile(packed: np.ndarray) -> Tensor:
    bits = np.zeros((16, 16), np.int64)
    bits[ROWS, COLUMNS], bits[ROWS, COLUMNS + 1] = packed & 0xFFFF, packed >> 16
    return torch.from_numpy(bits.astype(np.uint16).view(np.int16)).view(torch.bfloat16)


def wide_tile(numbers: np.ndarray) -> Tensor:
    """The same of float32, two registers for each that was packed."""
    bits = np.zeros((16, 16), np.int64)
    bits[ROWS, COLUMNS], bits[ROWS, COLUMNS + 1] = numbers[0::2], numbers[1::2]
    return torch.from_numpy(bits.astype(np.uint32).view(np.float32))


def halves(packed: np.ndarray) -> tuple[Tensor, Tensor]:
    def float_of(bits: np.ndarray) -> Tensor:
        return torch.from_numpy((bits & 0xFFFF).astype(np.uint16).view(np.int16)).view(torch.bfloat16)

    return float_of(packed), float_of(packed >> 16)


def pack(low: Tensor, high: Tensor) -> np.ndarray:
    first, second = (x.view(torch.int16).numpy().astype(np.int64) & 0xFFFF for x in (low, high))
    return first | second << 16


def execute(text: str, inputs: list[np.ndarray], outputs: int) -> list[np.ndarray]:
    """Run PTX on all lanes at once; operands are numbered, outputs first."""
    values: dict[str, Any] = {f"${outputs + i}": x for i, x in enumerate(inputs)} | {"%laneid": LANE}

    def get(name: str) -> Any:
        return values[name] if name in values else np.full(32, int(name, 0))

    for line in re.split(r";|\{|\}", text):
        words = line.replace(",", " ").split()
        if not words or words[0] == ".reg":
            continue
        op, into, *arguments = words
        x = [get(argument) for argument in arguments]
        if op.startswith("mov"):
            values[into] = x[0]
        elif op == "and.b32":
            values[into] = x[0] & x[1]
        elif op == "shl.b32":
            values[into] = x[0] << x[1] & 0xFFFFFFFF
        elif op in ("setp.ne.u32", "setp.eq.u32"):
            values[into] = (x[0] != x[1]) if "ne" in op else (x[0] == x[1])
        elif op == "selp.b32":
            values[into] = np.where(x[2], x[0], x[1])
        elif op == "shfl.sync.bfly.b32":
            values[into] = x[0][LANE ^ x[1]]
        elif op == "prmt.b32":
            both = x[0] | x[1] << 32
            chosen = [both >> (8 * (x[2] >> 4 * i & 7)) & 0xFF for i in range(4)]
            values[into] = sum(byte << 8 * i for i, byte in enumerate(chosen))
        elif op == "mul.bf16x2":
            (a, b), (c, d) = halves(x[0]), halves(x[1])
            values[into] = pack(a * c, b * d)
        else:
            raise NotImplementedError(op)
    return [values[f"${i}"] for i in range(outputs)]


def inline(text: str, constraints: str, args: list[Tensor], dtype: Any, is_pure: bool, pack: int) -> Tensor:
    """`inline_asm_elementwise` on bfloat16 tiles [16, 16], as a warp holds a left operand."""
    outputs, given = constraints.count("="), [registers(x) for x in args]
    assert len(constraints.split(",")) == outputs + len(args) * pack // 2
    found: list[np.ndarray] = []
    for first in range(0, 4, pack // 2):
        found += execute(text, [x[first + i] for x in given for i in range(pack // 2)], outputs)
    return (wide_tile if dtype == torch.float32 else tile)(np.stack(found))


@pytest.mark.parametrize(
    ("name", "operands", "more"),
    [
        ("exchanged", 1, [(1,), (2,), (3,)]),
        ("partners_by_lane", 1, [(1,), (2,)]),
        ("partners_of_halves", 1, [()]),
        ("product", 2, [()]),
        ("neighbours_and_constant", 1, [()]),
        ("swapped", 1, [()]),
        ("flipped", 1, [()]),
        ("doubled", 1, [()]),
        ("in_float32", 1, [()]),
        ("where_bits", 2, [()]),
    ],
)
def test_ptx_does_what_it_says(name: str, operands: int, more: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    tiles = [torch.randn(16, 16).bfloat16() for _ in range(operands)]
    if name == "where_bits":
        tiles[1] = torch.where(tiles[1] > 0, -1, 0).to(torch.int16)
    language = SimpleNamespace(inline_asm_elementwise=inline, bfloat16=torch.bfloat16, float32=torch.float32)
    names: dict[str, Any] = {"gl": language}
    names |= {key: getattr(exchange, key) for key in ("_shuffle", "_neighbour_where")}
    kernel = (vars(warpgroups) | vars(exchange) | vars(exchange_wide))[name].fn
    function = FunctionType(kernel.__code__, names, name, kernel.__defaults__)
    for extra in more:
        assert torch.equal(function(*tiles, *extra), LOGICAL[name](*tiles, *extra)), extra


def test_exponential() -> None:
    language = SimpleNamespace(
        inline_asm_elementwise=lambda text, _, x, **__: {"ex2.approx.ftz.f32 $0, $1;": torch.exp2}[text](*x),
        float32=torch.float32,
    )
    names: dict[str, Any] = {"gl": language, "LOG2_E": warpgroups.LOG2_E.value}
    x = torch.linspace(-20, 20, 100)
    torch.testing.assert_close(FunctionType(warpgroups.exponential.fn.__code__, names)(x), torch.exp(x))


def wide_columns(names: dict[str, Any], x: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """All features of `d` columns that the kernel makes, and the state's rows where it puts their sums."""
    low, high = x[:, :16], x[:, 16:]
    known = names | {"low": low, "high": high, "LEFT": None}
    found, places = [], []
    for part in (part for parts in ROUNDS[d] for part in parts):
        found += [eval(piece, known) for piece in part.pieces]
        places.append(eval(part.rows.format(f="f"), names | {"f": torch.arange(part.columns)}))
    return torch.cat(found, 1), torch.cat(places)


def columns(names: dict[str, Any], x: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """The same for up to 16 columns."""
    wide, narrow = torch.arange(128), torch.arange(32)
    places = [names["rows_of_wide"](wide, d), names["rows_of_narrow"](narrow, d)]
    return torch.cat(names["features"](x, None), 1), torch.cat(places)


@pytest.mark.parametrize("d", [8, 16, 24, 32])
def test_every_feature_has_one_column(d: int) -> None:
    """The sums of a column stand in the row of the state that its features belong to."""
    torch.manual_seed(0)
    x = torch.zeros(64, 16 if d <= 16 else 32).bfloat16()
    x[:, :d] = torch.randn(64, d).bfloat16()
    found, places = (columns if d <= 16 else wide_columns)(meanings(), x, d)
    rows = (d + 1) * (d + 2) // 2
    inside = places < rows
    assert sorted(places[inside].tolist()) == list(range(rows))
    assert (found[:, ~inside] == found[:, ~inside].round()).all()  # nothing, or the constant again
    products, f = d * (d + 1) // 2, places[inside]
    with_one = torch.cat([x[:, :d], torch.ones(64, 1).bfloat16()], 1)
    first = torch.where(f < products, f % d, f - products)
    second = torch.where(f < products, (f % d + f // d) % d, d)
    assert torch.equal(found[:, inside], with_one[:, first] * with_one[:, second])
