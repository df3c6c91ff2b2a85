"""Index tiles with a stop: what belongs to one sequence is kept from the next."""

from __future__ import annotations

import functools
from dataclasses import replace
from types import ModuleType

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from based_ops.codegen import pipeline
from based_ops.codegen.emit.layer import ScheduledLayer, ScheduledProgram
from based_ops.codegen.ir.build import Builder
from based_ops.codegen.ir.host import Parameter, Pass, ReadSizes, launch
from based_ops.codegen.ir.nodes import (
    ACC,
    INDEX,
    IO,
    OPERAND,
    Axis,
    Cast,
    Const,
    Dot,
    Full,
    Load,
    Program,
    Span,
    Sum,
    Tensor,
    Transpose,
    Var,
)
from based_ops.codegen.schedule.model import HOST_C, Schedule, Setting
from tests.kernels.runners import Runner
from tests.layers import LINEAR, import_text

TILE, WIDTH = 16, 16
NAMES = ("x", "first", "end", "y", "filled", "products", "numbers")


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


@functools.cache
def module(target: str) -> ModuleType:
    """The program, printed and imported."""
    setting = Setting({"TILE": TILE, "WIDTH": WIDTH}, warps=1, stages=1)
    scheduled = ScheduledProgram.of(sequences(), Schedule("sequences", target, {"float32": setting}))
    parameters = tuple(map(Parameter, NAMES))
    body = (ReadSizes("x", ("T", None)), ReadSizes("first", ("N",)), launch("sequences"))
    function = Pass("forward", "A sample.", parameters, "x", body, ("y",))
    layer = ScheduledLayer(replace(LINEAR[0], dtypes=("float32",)), target, (scheduled,), (function,))
    return import_text(pipeline.emit(layer), f"sequences_{target}")


@given(data=st.data())
def test_a_sequence_ends_where_it_stops(runner: Runner, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(0, 2 * TILE + 3), min_size=1, max_size=4))
    gaps = data.draw(st.lists(st.integers(0, 3), min_size=len(lengths) + 1, max_size=len(lengths) + 1))
    first, end, total = [], [], gaps[0]
    for length, gap in zip(lengths, gaps[1:], strict=True):
        first.append(total)
        end.append(total + length)
        total += length + gap
    assume(total)
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
    target = HOST_C if (runner.backend, runner.device) == ("tilelang", "cpu") else runner.backend
    module(target).forward(*passed)
    for found, wanted in zip(
        passed[3:], (wanted_y, wanted_filled, wanted_products, wanted_numbers), strict=True
    ):
        torch.testing.assert_close(found.cpu(), wanted, rtol=0, atol=0)
