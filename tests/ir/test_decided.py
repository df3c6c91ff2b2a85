"""Choices of index tiles that are known beforehand, and blocks of different sizes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from based_ops.codegen.ir.blocks import write_out
from based_ops.codegen.ir.build import Builder
from based_ops.codegen.ir.check import check
from based_ops.codegen.ir.decided import decided
from based_ops.codegen.ir.nodes import Binary, Const, Expr, Full, Let, Set, Span, Var, Where, column, wrap
from based_ops.codegen.ir.printer import text
from based_ops.codegen.ir.program import Program
from based_ops.codegen.ir.static import OPERATIONS, Known


def size(name: str) -> int:
    return {"FEATURES": 16, "VALUES": 8}[name]


def program(b: Builder) -> Program:
    found = Program("p", "P.", (), (), (), (), (), ("FEATURES", "VALUES"), b.body)
    check(found)
    return found


def weighed(first: int, edge: int) -> Program:
    """A matrix times 0.5 in the rows of features below an edge."""
    b = Builder()
    f = b.let("f", Span(wrap(first), "FEATURES"))
    weight = b.let("weight", Where(f < edge, wrap(0.5), wrap(1.0)))
    s = b.let("S", Full(("FEATURES", "VALUES"), 0.0))
    b.set(s, s * column(weight))
    return program(b)


@given(st.integers(0, 40), st.integers(0, 60))
def test_a_choice_is_made_where_all_elements_choose_alike(first: int, edge: int) -> None:
    found = decided(weighed(first, edge), size)
    check(found)
    sets = [stmt.value for stmt in found.body if isinstance(stmt, Set)]
    if first + 16 <= edge:
        assert sets == [Var("S") * 0.5]
    elif first >= edge:
        assert sets == []
    else:
        assert found == weighed(first, edge)


@given(st.integers(0, 40), st.integers(1, 15), st.integers(0, 9))
def test_a_choice_that_turns_over_once_is_made_by_the_index(first: int, edge: int, turn: int) -> None:
    b = Builder()
    place = b.let("place", Span(wrap(first), "FEATURES"))
    f = b.let("f", 100 - (place - first) + turn)  # falls as the place grows
    b.let("weight", Where(f > 100 - edge + turn, wrap(0.5), wrap(1.0)))
    (weight,) = (s.value for s in decided(program(b), size).body if isinstance(s, Let) and s.name == "weight")
    assert isinstance(weight, Where) and "f" not in text(weight.condition)
    known = Known(program(b), [s for s in b.body if isinstance(s, Let)], size)
    before, after = known.elements(Var("weight")), known.elements(weight)
    assert before == after == [0.5] * edge + [1.0] * (16 - edge)


def test_blocks_have_sizes_of_their_own() -> None:
    b = Builder()
    with b.blocks("f0", 40, "FEATURES", ("f", "S"), sizes=(24, 8, 8)) as f0:
        b.let("f", Span(f0, "FEATURES"))
        b.let("half", Full(("FEATURES",), 0.5))
        b.let("S", Full(("FEATURES", "VALUES"), 0.0))
    found = write_out(program(b), size)
    types = check(found)
    known = Known(found, [stmt for stmt in found.body if isinstance(stmt, Let)], size)
    assert [known.elements(Var(f"f_{i}")) for i in range(3)] == [
        list(range(24)),
        list(range(24, 32)),
        list(range(32, 40)),
    ]
    assert [types[f"S_{i}"].shape for i in range(3)] == [(24, "VALUES"), (8, "VALUES"), (8, "VALUES")]
    assert [types[f"half_{i}"].shape for i in range(3)] == [(24,), (8,), (8,)]


OPS = ("add", "sub", "mul", "xor", "floordiv", "mod", "lt", "eq")
leaves: st.SearchStrategy[Expr] = st.integers(0, 9).map(Const)


def longer(parts: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    return st.builds(Binary, st.sampled_from(OPS[:4]), parts, parts)


@given(st.recursive(leaves, longer, max_leaves=8), st.sampled_from(OPS))
def test_text_means_what_the_expression_means(x: Expr, op: str) -> None:
    """Python reads parentheses as printers leave them out."""
    expr = Binary(op, x, Const(7))
    meaning: Callable[[int, int], int | bool] = OPERATIONS[op]
    assert eval(text(expr)) == meaning(eval(text(x)), 7)


@pytest.mark.parametrize(
    ("expr", "printed"),
    [
        (Binary("xor", Var("a"), Var("b") + 1), "a ^ b + 1"),
        (Binary("xor", Var("a"), Var("b")) * 2, "(a ^ b) * 2"),
        (Binary("xor", Var("a"), Var("b")) + 2, "(a ^ b) + 2"),
    ],
)
def test_exclusive_or_is_looser_than_sums(expr: Expr, printed: str) -> None:
    assert text(expr) == printed
