"""Columns of values along rows: what becomes of a program, and what has no such form."""

from __future__ import annotations

import pytest

from based_ops.codegen.ir.check import check
from based_ops.codegen.ir.nodes import (
    ACC,
    IO,
    OPERAND,
    Add,
    Cast,
    Columns,
    Dot,
    Full,
    Let,
    Load,
    Set,
    Span,
    Stmt,
    Store,
    Sum,
    Transpose,
    Var,
    column,
    row,
    wrap,
)
from based_ops.codegen.ir.printer import print_program
from based_ops.codegen.ir.program import Axis, Program, Tensor
from based_ops.codegen.ir.turn import CannotTurn, turn

T, U = Var("t"), Var("u")
TILES: tuple[Stmt, ...] = (
    Let("t", Span(wrap(0), "CHUNK")),
    Let("u", Span(wrap(0), "VALUES")),
    Let("Y", Load("v", (T, U), OPERAND)),
    Let("W", Load("w", (T, T), ACC)),
    Let("O", Full(("CHUNK", "VALUES"), 0.0)),
)


def program(*body: Stmt) -> Program:
    tensors = Tensor("v", ("T", 8), IO), Tensor("w", ("T", "T"), ACC), Tensor("o", ("T", 8), IO)
    axes = (Axis("c", Var("T")),)
    sizes, constants = ("T",), ("CHUNK", "VALUES")
    return Program("sample", "A sample.", axes, tensors, sizes, (), (), constants, (*TILES, *body))


def turned(*body: Stmt) -> list[str]:
    """The lines of what comes of a body, after those of its tiles."""
    found = turn(program(*body))
    check(found)
    assert turn(found) == found
    lines = [line.strip() for line in print_program(found).splitlines()]
    start = lines.index("let O = full([VALUES, CHUNK], 0.0, acc)")
    assert lines[start - 3 : start - 1] == ["let Y_lying = load v[t, u] as operand", "let Y = Y_lying.T"]
    return lines[start + 1 :]


def test_a_product_has_its_sides_swapped_and_what_is_rounded_turned_before() -> None:
    body = Let("W_operand", Cast(Var("W"), OPERAND)), Add("O", Dot(Var("W_operand"), Var("Y")))
    assert turned(*body) == ["let W_across = W.T", "let W_operand = operand(W_across)", "O += Y @ W_operand"]


def test_what_is_rounded_of_a_larger_expression_has_a_name_first() -> None:
    body = Let("W_operand", Cast(Var("W") * 2.0, OPERAND)), Add("O", Dot(Var("W_operand"), Var("Y")))
    assert turned(*body) == [
        "let W_operand_sums = W * 2.0",
        "let W_operand_across = W_operand_sums.T",
        "let W_operand = operand(W_operand_across)",
        "O += Y @ W_operand",
    ]


def test_what_others_read_too_is_turned_as_it_is() -> None:
    body = (
        Let("W_operand", Cast(Var("W"), OPERAND)),
        Add("O", Dot(Var("W_operand"), Var("Y"))),
        Add("O", Dot(Transpose(Var("W_operand")), Var("Y"))),
    )
    assert turned(*body)[1:] == ["O += Y @ W_operand.T", "O += Y @ W_operand"]


def test_pairs_stay_those_of_the_side_that_has_them() -> None:
    body = (
        Let("W_operand", Cast(Var("W"), OPERAND)),
        Add("O", Dot(Var("W_operand"), Var("Y"), among=column(T) >= row(T))),
    )
    assert turned(*body)[-1] == "O += Y @ W_operand among t[:, None] >= t[None, :] on the right"


def test_vectors_meet_the_other_axis() -> None:
    body = (
        Let("rows", Sum(Var("O"), 1)),
        Let("columns", Sum(Var("O"), 0)),
        Set("O", Var("O") * column(Var("rows")) + row(Var("columns"))),
    )
    assert turned(*body) == [
        "let rows = sum(O, axis=0)",
        "let columns = sum(O, axis=1)",
        "O = O * rows[None, :] + columns[:, None]",
    ]


def test_values_that_others_sum_over_are_read_across() -> None:
    assert turned(Let("A", Dot(Var("Y"), Transpose(Var("Y"))))) == ["let A = Y.T @ Y"]


def test_a_store_is_turned_back_and_rounds_as_it_did() -> None:
    assert turned(Store("o", (T, U), Cast(Var("O"), IO))) == [
        "let O_lying = O.T",
        "store o[t, u] = io(O_lying)",
    ]
    assert turned(Store("o", (T, U), Cast(Var("O"), OPERAND))) == [
        "let o_stored = operand(O)",
        "let o_stored_lying = o_stored.T",
        "store o[t, u] = o_stored_lying",
    ]


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ((Let("Z", Columns(Var("Y"), T, 8)),), "a Columns of values"),
        ((Let("Z", Columns(Var("W"), U, 8)),), "a Columns of values"),
        ((Let("A", Dot(Var("O"), Transpose(Var("O")), among=Var("O") > 0.0)),), "a Dot of values"),
        ((Let("Z", Load("w", (T, Span(wrap(0), 1)), ACC)), Add("O", Var("Z"))), "Z, beside values,"),
    ],
)
def test_what_has_no_turned_form_is_refused(body: tuple[Stmt, ...], what: str) -> None:
    with pytest.raises(CannotTurn, match=f"sample: {what} cannot be turned along VALUES"):
        turn(program(*body))
