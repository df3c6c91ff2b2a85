"""Several sequences in one tensor: what belongs to one of them is kept from the next."""

from __future__ import annotations

import functools
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from based_ops.codegen import pipeline
from based_ops.codegen.emit.layer import ScheduledLayer, ScheduledProgram
from based_ops.codegen.ir.build import Builder
from based_ops.codegen.ir.host import Parameter, Pass, ReadSizes, launch
from based_ops.codegen.ir.kernels import NUMBER
from based_ops.codegen.ir.nodes import (
    ACC,
    INDEX,
    IO,
    OPERAND,
    Cast,
    Const,
    Dot,
    Full,
    Load,
    Span,
    Sum,
    Transpose,
    Var,
    column,
    row,
)
from based_ops.codegen.ir.program import Axis, Program, Tensor
from based_ops.codegen.lower.feature_maps import feature_map
from based_ops.codegen.lower.linear_attention_parts import BATCH_AXES
from based_ops.codegen.lower.sequence import Sequence
from based_ops.codegen.memory.states import B, H, Kept
from based_ops.codegen.memory.sums import Sums
from based_ops.codegen.mixers.linear_attention import LinearAttention
from based_ops.codegen.schedule.model import HOST_C, Schedule, Setting
from based_ops.codegen.spec.model import Elementwise, HeadDims, TaylorExp
from tests.kernels import naive
from tests.kernels.runners import Runner
from tests.layers import LINEAR, import_text

TILE, WIDTH, SCALE = 16, 16, 0.3
MAP = "sigmoid(x) + 0.1"
PACKED = (
    LinearAttention("packed_taylor", TaylorExp(2), HeadDims(16, 16)),
    LinearAttention("packed_sigmoid", Elementwise(MAP), HeadDims(16, 16)),
)
"""Layers in which a row of zeros is not nothing: 1, and φ(0), are features of it."""


def sequences() -> Program:
    """Of each sequence: its tokens doubled, sums of tiles filled with ones, sums of products, and places."""
    b = Builder()
    n = Var("n")
    start = b.let("start", Load("first", (n,), INDEX))
    stop = b.let("stop", Load("end", (n,), INDEX))
    d = b.let("d", Span(Const(0), "WIDTH"))
    filled = b.let("F", Full(("WIDTH",), 0.0))
    products = b.let("P", Full(("WIDTH", "WIDTH"), 0.0))
    with b.loop("t0", start, stop, "TILE") as t0:
        t = b.let("t", Span(t0, "TILE", stop=stop))
        tokens = b.let("X", Load("x", (t, d), ACC, fill=1.0))
        b.add(filled, Sum(tokens, 0))
        matrix = b.let("M", Load("x", (t, d), OPERAND))
        b.add(products, Dot(Transpose(matrix), matrix))
        b.store("y", (t, d), Cast(tokens * 2.0, IO))
        b.store("numbers", (t,), Cast(t, ACC))
    b.store("filled", (n, d), filled)
    e = Span(Const(0), "WIDTH", stop=Const(WIDTH - 1))
    b.store("products", (n, e, d), products)
    tensors = (
        Tensor("x", ("T", WIDTH), IO, strided=True),
        Tensor("first", ("N",), INDEX),
        Tensor("end", ("N",), INDEX),
        Tensor("y", ("T", WIDTH), IO),
        Tensor("filled", ("N", WIDTH), ACC),
        Tensor("products", ("N", WIDTH, WIDTH), ACC),
        Tensor("numbers", ("T",), ACC),
    )
    constants = ("TILE", "WIDTH")
    return Program(
        "sequences", "A sample.", (Axis("n", Var("N")),), tensors, ("T", "N"), (), (), constants, b.body, {}
    )


def packed(spec: LinearAttention) -> Program:
    """Linear attention of each sequence, all pairs directly; and the sums that its tokens enter."""
    b, n = Builder(), Var("sequence")
    start = b.let("start", Load("starts", (n,), INDEX))
    sequence = Sequence("T", start, b.let("end", Load("ends", (n,), INDEX)))
    features = feature_map(spec)
    b.let("d", Span(Const(0), "QK"))
    u = b.let("u", Span(Const(0), "VALUES"))
    memory = Sums(b, features, sequence, spec.eps)
    with b.loop("t0", sequence.start, sequence.stop, "CHUNK") as t0:
        t = b.let("t", sequence.tile(t0, "CHUNK"))
        queries, answer = memory.queries(t), memory.answer()
        with b.loop("j0", sequence.start, sequence.until(t0 + "CHUNK"), "CHUNK") as j0:
            j = b.let("j", sequence.tile(j0, "CHUNK"))
            keys, values = memory.keys(j)
            memory.pair(queries, keys, values, column(t) >= row(j), onto=answer)
        memory.finish(answer, t)
        b.store("o", (B, t, H, u), Cast(answer.out, IO))
    dims: tuple[str | int, ...] = ("B", "H", "count", features.rows)
    sums = Kept((Tensor("S_of", (*dims, spec.head_dims.v), ACC), Tensor("z_of", dims, ACC)))
    with memory.blocks() as block:
        state = memory.zeros(block.f)
        with b.loop("j0", sequence.start, sequence.stop, "CHUNK") as j0:
            keys, values = memory.keys(b.let("j", sequence.tile(j0, "CHUNK")))
            memory.enter(state, block, keys, values, sequence.past(j0, "CHUNK"))
        state.store(sums, n)
    rows = ("B", "T", "H")
    widths = {"q": spec.head_dims.qk, "k": spec.head_dims.qk, "v": spec.head_dims.v}
    tensors = (
        *(Tensor(name, (*rows, width), IO, strided=True) for name, width in widths.items()),
        *(Tensor(name, ("count",), INDEX) for name in ("starts", "ends")),
        Tensor("o", (*rows, spec.head_dims.v), IO),
        Tensor("n", ("B", "H", "T"), ACC),
        *sums,
    )
    return Program(
        "packed",
        "A sample.",
        (*BATCH_AXES, Axis("sequence", Var("count"))),
        tensors,
        ("B", "T", "H", "count"),
        ("scale",),
        (),
        tuple(dict.fromkeys(("CHUNK", "QK", memory.size, "VALUES"))),
        b.body,
        {"QK": spec.head_dims.qk, "VALUES": spec.head_dims.v},
    )


def printed(program: Program, target: str, sizes: dict[str, int], *read: ReadSizes) -> ModuleType:
    """A module whose forward pass launches the program; it takes its tensors and scalars."""
    setting = Setting({name: sizes[name] for name in program.constants}, warps=1, stages=1)
    rewrites = ("gather_by_product",) if target == "triton" else ()
    schedule = Schedule(program.name, target, {"float32": setting}, rewrites)
    scheduled = ScheduledProgram.of(program, schedule)
    tensors = [tensor.name for tensor in program.tensors]
    parameters = (*map(Parameter, tensors), *(Parameter(name, NUMBER) for name in program.scalars))
    function = Pass(
        "forward", "A sample.", parameters, tensors[0], (*read, launch(program.name)), (tensors[-1],)
    )
    layer = ScheduledLayer(replace(LINEAR[0], dtypes=("float32",)), target, (scheduled,), (function,))
    return import_text(pipeline.emit(layer), f"{program.name}_{target}")


@functools.cache
def sequences_module(target: str) -> ModuleType:
    sizes = ReadSizes("x", ("T", None)), ReadSizes("first", ("N",))
    return printed(sequences(), target, {"TILE": TILE, "WIDTH": WIDTH}, *sizes)


@functools.cache
def packed_module(spec: LinearAttention, target: str) -> ModuleType:
    constants = {"CHUNK": TILE, "QK": spec.head_dims.qk, "VALUES": spec.head_dims.v, "FEATURES": 32}
    sizes = ReadSizes("q", ("B", "T", "H", None)), ReadSizes("starts", ("count",))
    return printed(packed(spec), target, constants, *sizes)


def target_of(runner: Runner) -> str:
    return HOST_C if (runner.backend, runner.device) == ("tilelang", "cpu") else runner.backend


def drawn(data: st.DataObject, longest: int = 2 * TILE + 3) -> tuple[list[int], list[int], int]:
    """Where sequences begin and end in a tensor, with tokens of nobody between them, and its length."""
    lengths = data.draw(st.lists(st.integers(0, longest), min_size=1, max_size=3))
    gaps = data.draw(st.lists(st.integers(0, 3), min_size=len(lengths) + 1, max_size=len(lengths) + 1))
    first, end, total = [], [], gaps[0]
    for length, gap in zip(lengths, gaps[1:], strict=True):
        first.append(total)
        end.append(total + length)
        total += length + gap
    assume(total)
    return first, end, total


@given(data=st.data())
def test_a_sequence_ends_where_it_stops(runner: Runner, data: st.DataObject) -> None:
    first, end, total = drawn(data)
    tile = min(TILE, total) if runner.backend == "torch" else TILE  # which cuts tiles to what there is
    generator = torch.Generator().manual_seed(total)
    x = torch.randint(-3, 4, (total, WIDTH), generator=generator).float()
    y, numbers = torch.full_like(x, -5.0), torch.full((total,), -5.0)
    filled, products = torch.zeros(len(first), WIDTH), torch.full((len(first), WIDTH, WIDTH), -5.0)
    wanted_y, wanted_numbers = y.clone(), numbers.clone()
    wanted_filled, wanted_products = filled.clone(), products.clone()
    for n, (a, z) in enumerate(zip(first, end, strict=True)):
        wanted_y[a:z] = 2.0 * x[a:z]
        wanted_numbers[a:z] = torch.arange(a, z).float()
        wanted_filled[n] = x[a:z].sum(0) + (-(z - a)) % tile
        wanted_products[n, :-1] = (x[a:z].mT @ x[a:z])[:-1]
    tensors = (
        x, torch.tensor(first, dtype=torch.int32), torch.tensor(end, dtype=torch.int32),
        y, filled, products, numbers,
    )  # fmt: skip
    passed = [tensor.to(runner.device) for tensor in tensors]
    sequences_module(target_of(runner)).forward(*passed)
    for found, wanted in zip(
        passed[3:], (wanted_y, wanted_filled, wanted_products, wanted_numbers), strict=True
    ):
        torch.testing.assert_close(found.cpu(), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("spec", PACKED, ids=lambda spec: spec.name)
@given(data=st.data())
def test_a_memory_knows_one_sequence(runner: Runner, spec: LinearAttention, data: st.DataObject) -> None:
    first, end, total = drawn(data, TILE + 3)
    heads, qk, v = 2, spec.head_dims.qk, spec.head_dims.v
    generator = torch.Generator().manual_seed(total)
    inputs = [torch.randn(1, total, heads, width, generator=generator) for width in (qk, qk, v)]
    nobodys = torch.ones(total, dtype=torch.bool)
    for a, z in zip(first, end, strict=True):
        nobodys[a:z] = False
    for x in inputs:
        x[:, nobodys] = torch.nan
    module = packed_module(spec, target_of(runner))

    def run(qkv: list[torch.Tensor], first: list[int], end: list[int]) -> list[torch.Tensor]:
        places = [torch.tensor(x, dtype=torch.int32) for x in (first, end)]
        rows = feature_map(spec).rows
        o, n = torch.zeros_like(qkv[2]), torch.zeros(1, heads, qkv[2].shape[1])
        sums = torch.zeros(1, heads, len(first), rows, v), torch.zeros(1, heads, len(first), rows)
        passed = [x.to(runner.device) for x in (*qkv, *places, o, n, *sums)]
        module.forward(*passed, SCALE)
        return [x.cpu() for x in passed[-4:]]

    o, _, sums, normalizers = run(inputs, first, end)
    assert not o[:, nobodys].any()
    weight = naive.taylor(2, SCALE) if isinstance(spec.feature_map, TaylorExp) else naive.mapped(MAP, SCALE)
    for i, (a, z) in enumerate(zip(first, end, strict=True)):
        if a == z:
            assert not sums[:, :, i].any() and not normalizers[:, :, i].any()
            continue
        own = [x[:, a:z] for x in inputs]
        for h in range(heads):
            wanted = naive.linear_attention(weight, spec.eps, *(x[0, :, h] for x in own))
            torch.testing.assert_close(o[0, a:z, h].double(), torch.from_numpy(wanted), rtol=2e-4, atol=2e-4)
        _, _, alone, normalizer_alone = run(own, [0], [z - a])
        torch.testing.assert_close(sums[:, :, i], alone[:, :, 0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(normalizers[:, :, i], normalizer_alone[:, :, 0], rtol=1e-4, atol=1e-4)
