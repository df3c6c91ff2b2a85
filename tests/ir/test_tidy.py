"""Copies go where they are copies throughout, and nowhere else."""

from __future__ import annotations

import pytest
from hypothesis import given

from based_ops.codegen.ir.check import check
from based_ops.codegen.ir.flags import Only
from based_ops.codegen.ir.fuse import expressions, statements
from based_ops.codegen.ir.nodes import (
    ACC,
    Add,
    Const,
    Expr,
    For,
    Full,
    Let,
    Load,
    Set,
    Stmt,
    Store,
    Var,
    wrap,
)
from based_ops.codegen.ir.program import Axis, Program, Tensor
from based_ops.codegen.ir.rewrite import drop_unused
from based_ops.codegen.ir.tidy import folded, tidy
from based_ops.codegen.spec.model import LayerSpec
from tests.strategies import layer_specs

X, Y, Z, N = Var("X"), Var("Y"), Var("Z"), Var("n")
ZEROS = Full(("M",), 0.0)


def tidied(*body: Stmt) -> tuple[Stmt, ...]:
    tensor = Tensor("t", ("T",), ACC)
    axes = (Axis("c", Var("T"), batch=True),)
    return tidy(Program("sample", "A sample.", axes, (tensor,), ("T",), (), (), ("M",), body)).body


def test_a_copy_goes() -> None:
    store = Store("t", (N,), Y)
    assert tidied(Let("X", ZEROS), Let("Y", X), store) == (Let("X", ZEROS), Store("t", (N,), X))


def test_a_copy_goes_from_conditions_too() -> None:
    body = Let("X", wrap(1)), Let("Y", X), Only("FLAG", Y > 0), Store("t", (N,), ZEROS)
    assert tidied(*body)[1] == Only("FLAG", X > 0)


@pytest.mark.parametrize(
    "changes", [(Add("X", Const(1.0)),), (Set("Y", Const(1.0)),), (Let("X", ZEROS),), (Let("Y", ZEROS),)]
)
def test_a_copy_of_what_changes_stays(changes: tuple[Stmt, ...]) -> None:
    body = Let("X", ZEROS), Let("Y", X), *changes, Store("t", (N,), Y)
    assert tidied(*body) == body


def test_what_is_made_to_be_handed_on_is_made_there() -> None:
    loaded = Load("t", (N,), ACC)
    body = Let("X", ZEROS), For("n", wrap(0), Var("T"), Var("M"), (Let("Y", loaded), Set("X", Y)))
    assert tidied(*body)[1] == For("n", wrap(0), Var("T"), Var("M"), (Set("X", loaded),))
    used_again = Let("X", ZEROS), Let("Y", loaded), Set("X", Y), Add("X", Y)
    assert tidied(*used_again) == used_again


@pytest.mark.parametrize(
    ("expr", "same"),
    [(X + 0, X), (0 + X, X), (X - 0, X), (X * 1, X), (1 * X, X), (X // 1, X), ((X + 0) * 1 + Y, X + Y)],
)
def test_what_changes_nothing_goes(expr: Expr, same: Expr) -> None:
    assert folded(expr) == same


@pytest.mark.parametrize("expr", [X + 0.0, X * 1.0, 0 - X, wrap(1) // X, X * 0, X + 1, X * True])
def test_what_may_change_something_stays(expr: Expr) -> None:
    assert folded(expr) == expr


@given(spec=layer_specs())
def test_programs_stay_well_formed_and_have_nothing_more_to_tidy(spec: LayerSpec) -> None:
    for program in spec.programs():
        once = tidy(drop_unused(program))
        check(once)
        assert tidy(once) == once
        before, after = (sum(1 for s in statements(p.body) for _ in expressions(s)) for p in (program, once))
        assert after <= before
