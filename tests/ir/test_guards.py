"""Rows past the end are kept out of tiles where something stored would show them, and nowhere else."""

from __future__ import annotations

from based_ops.codegen.ir.flags import Chosen
from based_ops.codegen.ir.guards import guards_where_shown
from based_ops.codegen.ir.nodes import (
    ACC,
    IO,
    OPERAND,
    Add,
    Cast,
    Dot,
    Doubt,
    Expr,
    For,
    Full,
    Let,
    Load,
    Span,
    Stmt,
    Store,
    Transpose,
    Var,
    When,
    Where,
    column,
    row,
    wrap,
)
from based_ops.codegen.ir.program import Program, Tensor

Q, K, R, A, OUT, S, T = map(Var, ("Q", "K", "R", "A", "O", "S", "t"))
INSIDE = column(T) < "T"
SEEN = column(T) >= row(T)


def guarded(x: Expr) -> Expr:
    return Cast(Where(INSIDE, x, wrap(0.0)), OPERAND)


def result(*steps: Stmt, after: tuple[Stmt, ...] = ()) -> tuple[Stmt, ...]:
    """What the first steps of a loop become, its index tile left out."""
    tensors = tuple(Tensor(name, ("T", 64), IO) for name in ("x", "o", "s"))
    body = Let("t", Span(Var("t0"), "CHUNK")), *steps
    loop = For("t0", wrap(0), Var("T"), Var("CHUNK"), body)
    start = Let("S", Full(("QK", "QK"), 0.0))
    program = Program("p", "", (), tensors, ("T",), (), ("FINAL",), ("CHUNK", "QK"), (start, loop, *after))
    found = guards_where_shown(program).body[1]
    assert isinstance(found, For)
    return found.body[1:]


X = Load("x", (T, Var("d")), ACC)
STORE = Store("o", (T, Var("d")), Cast(OUT, IO))


def test_rows_that_stay_rows_need_no_guard() -> None:
    found = result(Let("X", X), Let("Q", guarded(Var("X"))), Let("O", Dot(Q, S)), STORE)
    assert found[1] == Let("Q", Cast(Var("X"), OPERAND))


def test_columns_that_only_they_see_need_none() -> None:
    pairs = Let("R", Dot(Q, Transpose(K))), Let("A", Where(SEEN, R, wrap(0.0))), Let("O", Dot(A, Var("V")))
    assert result(Let("K", guarded(Var("X"))), *pairs, STORE)[0] == Let("K", Cast(Var("X"), OPERAND))


def test_columns_that_others_see_need_one() -> None:
    keys = Let("K", guarded(Var("X")))
    assert result(keys, Let("O", Dot(Q, Transpose(K))), STORE)[0] == keys


def test_a_sum_needs_one_where_it_is_stored() -> None:
    store = Store("s", (Var("f"), Var("d")), Cast(S, IO))
    steps = Let("K", guarded(Var("X"))), Add("S", Dot(Transpose(K), Var("V")))
    plain, under = result(*steps, after=(When(Var("FINAL"), (store,)),))[:2]
    assert plain == Let("K_plain", Var("X"))
    again = Where(INSIDE, Var("K_plain"), wrap(0.0))
    assert under == Let("K", Cast(Chosen("FINAL", again, Var("K_plain")), OPERAND))
    assert result(*steps, after=(store,))[0] == steps[0]
    assert result(*steps, after=(When(Doubt(Var("doubt")), (store,)),))[0] == Let(
        "K", Cast(Var("X"), OPERAND)
    )


def test_a_sum_that_the_same_round_reads_needs_one() -> None:
    keys = Let("K", guarded(Var("X")))
    steps = keys, Add("S", Dot(Transpose(K), Var("V"))), Let("O", Dot(Q, S)), STORE
    assert result(*steps)[0] == keys
