"""Steps come in another order only where each reads what it read before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from based_ops.codegen.ir.check import Type
from based_ops.codegen.ir.nodes import ACC, OPERAND, Add, Cast, Dot, Full, Let, Set, Stmt, Store, Var
from based_ops.codegen.ir.steps import OutOfOrder, begun, names, reordered

A, K, OUT, S, S_OPERAND, V = map(Var, ("A", "K", "O", "S", "S_operand", "V"))
SHAPE = ("CHUNK", "CHUNK")
TYPES = {name: Type(ACC, SHAPE) for name in ("A", "K", "O", "S", "S_operand", "V")}
ROUND: tuple[Stmt, ...] = (
    Let("O", Dot(A, V)),
    Let("S_operand", Cast(S, OPERAND)),
    Add("O", Dot(K, S_OPERAND)),
    Add("S", Dot(K, V)),
    Set("O", OUT * 2.0),
    Store("o", (Var("t"),), OUT),
)
ORDER = ["O+A", "S_operand", "O+K", "S+K", "O=", ">o"]


def test_steps_have_names() -> None:
    assert names(ROUND, TYPES) == ORDER


def test_a_sum_begins_with_what_comes_first() -> None:
    found = reordered(ROUND, ["S_operand", "O+K", "S+K", "O+A", "O=", ">o"], TYPES)
    assert found == (ROUND[1], Let("O", Dot(K, S_OPERAND)), ROUND[3], Add("O", Dot(A, V)), *ROUND[4:])


def test_an_order_may_name_what_is_not_there() -> None:
    assert reordered(ROUND, ["z", *ORDER], TYPES) == ROUND


@given(st.permutations(ORDER))
def test_no_order_lets_a_step_read_something_else(order: list[str]) -> None:
    place = {name: i for i, name in enumerate(order)}
    same = (
        place["S_operand"] < place["O+K"]
        and place["S_operand"] < place["S+K"]
        and max(place["O+A"], place["O+K"]) < place["O="] < place[">o"]
    )
    if same:
        assert {type(stmt) for stmt in reordered(ROUND, order, TYPES)} == {Let, Add, Set, Store}
    else:
        with pytest.raises(OutOfOrder, match="reads something else"):
            reordered(ROUND, order, TYPES)


def test_an_order_is_complete() -> None:
    with pytest.raises(OutOfOrder, match="no place for >o"):
        reordered(ROUND, ORDER[:-1], TYPES)


def test_a_sum_that_is_changed_first_begins_from_nothing() -> None:
    zeros = Let("O", Full(SHAPE, 0.0))
    body = zeros, Let("A", K), Set("O", OUT * 2.0), Add("O", Dot(A, V))
    assert begun(body) == (body[1], zeros, *body[2:])
