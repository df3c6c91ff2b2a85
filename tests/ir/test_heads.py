"""The rewrite that tells heads in groups apart."""

from __future__ import annotations

from dataclasses import replace

import pytest

from based_ops.codegen.ir.build import Builder
from based_ops.codegen.ir.check import IllFormed, check
from based_ops.codegen.ir.heads import grouped, members, ungrouped
from based_ops.codegen.ir.nodes import ACC, Full, Head, Let, Load, Var
from based_ops.codegen.ir.printer import print_program
from based_ops.codegen.ir.program import Axis, Program, Tensor

B, H = Var("b"), Var("h")


def sums() -> Program:
    """s of each head: the sum of x, of its members, times k."""
    b = Builder()
    total = b.let("total", Full((), 0.0))
    with members(b):
        b.add(total, b.let("part", Load("x", (B, H), ACC)))
    b.store("s", (B, H), total * b.let("factor", Load("k", (B, H), ACC)))
    axes = Axis("b", Var("B"), batch=True), Axis("h", Var("H"), batch=True)
    tensors = tuple(Tensor(name, ("B", "H"), ACC) for name in ("x", "k", "s"))
    return Program("sums", "Sums.", axes, tensors, ("B", "H"), (), (), (), b.body)


def test_accesses_name_the_heads_of_their_tensors() -> None:
    program = grouped(sums(), {"k": "HK", "absent": "HV"}, {"x": "HO"})
    check(program)
    assert (program.sizes, program.flags) == (("B", "H", "HK", "HO"), ("GROUPED",))
    assert [tensor.stored for tensor in program.tensors] == [("B", "HO"), ("B", "HK"), ("B", "H")]
    text = print_program(program)
    for line in (
        "let head_k = head of HK",
        "for member in 0 .. HO // H step 1, one round unless GROUPED:",
        "let head_o = head of HO for member",
        "let part = load x[b, head_o] as acc",
        "let factor = load k[b, head_k] as acc",
        "store s[b, h] = total * factor",
    ):
        assert line in text


def test_without_groups_a_kernel_is_launched_as_ever() -> None:
    plain, same = sums(), ungrouped(grouped(sums(), {"k": "HK"}, {"x": "HO"}))
    assert (same.tensors, same.sizes, same.flags) == (plain.tensors, plain.sizes, plain.flags)


def test_heads_of_a_size_that_is_not_there() -> None:
    program = grouped(sums(), {"k": "HK"}, {"x": "HO"})
    with pytest.raises(IllFormed, match="head of HV, which the program does not know"):
        check(replace(program, body=(Let("other", Head("HV")), *program.body)))
    with pytest.raises(IllFormed, match="head of HK"):
        check(replace(program, flags=()))
    with pytest.raises(IllFormed, match="no plain integer"):
        check(replace(program, body=(Let("other", Head("HK", Full((), 0.0))), *program.body)))
