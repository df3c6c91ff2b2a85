"""Rewrites for printers that decide where a tile lives: what is rounded, masked and added, and when."""

from __future__ import annotations

from based_ops.codegen.ir.build import Builder
from based_ops.codegen.ir.check import check
from based_ops.codegen.ir.nodes import OPERAND, Cast, Dot, Full, Transpose, Where, wrap
from based_ops.codegen.ir.printer import print_program
from based_ops.codegen.ir.program import Program
from based_ops.codegen.ir.rounding import added_at_once, masked_late

SHAPE = ("CHUNK", "CHUNK")


def program(b: Builder) -> Program:
    found = Program("p", "P.", (), (), (), (), (), ("CHUNK",), b.body)
    check(found)
    return found


def masked(b: Builder, again: bool) -> None:
    x, seen = b.let("x", Full(SHAPE, 2.0)), b.let("seen", Full(SHAPE, 1.0).equals(1.0))
    weights = b.let("A", Where(seen, x, wrap(0.0)))
    matrix = b.let("A_operand", Cast(weights, OPERAND))
    total = b.let("O", Full(SHAPE, 0.0))
    b.add(total, Dot(matrix, Transpose(matrix)))
    if again:
        b.add(total, weights)


def test_masks_leave_out_what_is_rounded_already() -> None:
    b = Builder()
    masked(b, again=False)
    found = masked_late(program(b), ("seen",))
    check(found)
    assert "let A = x\n" in print_program(found)
    assert "let A_operand = where(seen, operand(A), operand(0.0))" in print_program(found)
    assert masked_late(program(b), ("other",)) == program(b)


def test_what_is_read_again_is_masked_as_it_was() -> None:
    b = Builder()
    masked(b, again=True)
    assert masked_late(program(b), ("seen",)) == program(b)


def test_products_are_added_as_they_are_made() -> None:
    b = Builder()
    x = b.let("X", Cast(Full(SHAPE, 1.0), OPERAND))
    once, twice = b.let("once", Dot(x, x)), b.let("twice", Dot(x, x))
    total = b.let("O", Full(SHAPE, 0.0))
    b.add(total, once)
    b.add(total, twice)
    b.add(total, twice * 2.0)
    found = added_at_once(program(b))
    check(found)
    text = print_program(found)
    assert "O += X @ X" in text and "let once" not in text
    assert "let twice = X @ X" in text and "O += twice" in text


def test_products_of_what_changes_before_they_are_added_stay() -> None:
    b = Builder()
    x = b.let("X", Cast(Full(SHAPE, 1.0), OPERAND))
    product, total = b.let("product", Dot(x, x)), b.let("O", Full(SHAPE, 0.0))
    b.set(x, Cast(Full(SHAPE, 2.0), OPERAND))
    b.add(total, product)
    assert added_at_once(program(b)) == program(b)


def test_products_that_change_before_they_are_added_stay() -> None:
    b = Builder()
    x = b.let("X", Cast(Full(SHAPE, 1.0), OPERAND))
    product, total = b.let("product", Dot(x, x)), b.let("O", Full(SHAPE, 0.0))
    b.set(product, product * 2.0)
    b.add(total, product)
    assert added_at_once(program(b)) == program(b)


def test_what_products_grow_by_is_added_too() -> None:
    b = Builder()
    x, y = b.let("X", Cast(Full(SHAPE, 1.0), OPERAND)), b.let("Y", Full(SHAPE, 1.0))
    total, product = b.let("O", Full(SHAPE, 0.0)), b.let("product", Dot(x, x))
    b.add(product, y * 2.0)
    b.add(total, product)
    found = added_at_once(program(b))
    check(found)
    text = print_program(found)
    assert "O += X @ X" in text and "O += Y * 2.0" in text and "product" not in text


def test_products_that_grow_by_what_changes_before_they_are_added_stay() -> None:
    b = Builder()
    x, y = b.let("X", Cast(Full(SHAPE, 1.0), OPERAND)), b.let("Y", Full(SHAPE, 1.0))
    total, product = b.let("O", Full(SHAPE, 0.0)), b.let("product", Dot(x, x))
    b.add(product, y * 2.0)
    b.set(y, y * 3.0)
    b.add(total, product)
    assert added_at_once(program(b)) == program(b)
