"""The well-formedness check: shipped programs pass, each kind of bad one is refused with its message."""

from __future__ import annotations

import pytest

from based_ops.codegen import pipeline
from based_ops.codegen.ir.blocks import write_out
from based_ops.codegen.ir.build import Builder
from based_ops.codegen.ir.check import IllFormed, Type, check
from based_ops.codegen.ir.flags import Chosen, Only
from based_ops.codegen.ir.fuse import statements
from based_ops.codegen.ir.nodes import (
    ACC,
    INDEX,
    IO,
    OPERAND,
    Add,
    Binary,
    Blocks,
    Cast,
    Columns,
    Comment,
    Const,
    Dot,
    Doubt,
    Expand,
    Expr,
    For,
    Full,
    Let,
    Load,
    Max,
    RunningSum,
    Set,
    Span,
    Stmt,
    Store,
    Sum,
    Transpose,
    Unary,
    Var,
    When,
    Where,
    column,
    row,
    wrap,
)
from based_ops.codegen.ir.program import Axis, Program, Tensor
from based_ops.codegen.ir.resized import Resized
from based_ops.codegen.ir.rewrite import REWRITES
from based_ops.codegen.spec.model import LayerSpec
from tests.conftest import SPECS

X, Y, V = Var("X"), Var("Y"), Var("V")
TILES: tuple[Stmt, ...] = (
    Let("i", Span(Var("c") * "M", "M")),
    Let("j", Span(wrap(0), "N")),
    Let("X", Load("x", (Var("i"), Var("j")), ACC)),
    Let("XO", Load("x", (Var("i"), Var("j")), OPERAND)),
    Let("Y", Full(("N", "M"), 0.0)),
    Let("YO", Cast(Var("Y"), OPERAND)),
    Let("V", Full(("M",), 0.0)),
)


def program(*body: Stmt) -> Program:
    """A program with a matrix X, a matrix Y of the transposed shape, and a vector V at hand."""
    return Program(
        "sample",
        "A sample.",
        (Axis("c", Var("T"), batch=True),),
        (Tensor("x", ("T", 8), IO), Tensor("y", ("T",), ACC), Tensor("w", (8,), IO)),
        ("T",),
        ("scale",),
        ("FLAG",),
        ("M", "N"),
        (*TILES, *body),
    )


def let(value: Expr) -> Stmt:
    return Let("Z", value)


GOOD = (
    let(Dot(Var("XO"), Var("YO"))),
    let(Dot(X, Y)),
    let(Dot(Transpose(Var("XO")), Transpose(Var("YO")))),
    let(Dot(Var("XO"), Var("YO"), among=column(Var("i")) < row(Var("j")))),
    let(Dot(Var("XO"), Var("YO"), among=column(Var("i")) < row(Var("j")), right=True)),
    let(Transpose(X)),
    let(Resized(X, ("M", 8))),
    let(Sum(X, 1)),
    let(X + column(V)),
    let(X * Var("scale") + 1.0),
    let(Where(column(Var("i")) < row(Var("j")), X, wrap(0.0))),
    let(Columns(X, Var("j"), 8)),
    Add("X", column(V)),
    Set("V", wrap(0.0)),
    When(Var("FLAG"), (Set("V", V * 2.0),)),
    When(Var("c").equals(Var("T")), (Set("V", V * 2.0),)),
    When(Doubt(Var("scale")), (Set("V", V * 2.0),)),
    For("k", wrap(0), Var("T"), Var("M"), (Add("V", Sum(X, 1)), Comment("a note"))),
    Store("y", (Var("i"),), V),
    Let("sums", RunningSum(V)),
    Store("x", (Var("i"), Var("j")), Cast(X, IO)),
)

BAD = (
    (let(Var("nowhere")), "nowhere is used before it is introduced"),
    (let(X + V), "add of .* and .*"),
    (let(X + Y), "add of .* and .*"),
    (let(X + Var("i")), "add of .* and .*"),
    (let(X + 1), "add of .* and .*"),
    (let(Sum(X, 1) + V), "Sum inside a larger expression"),
    (let(Max(X, 1) + V), "Max inside a larger expression"),
    (let(RunningSum(V) + V), "RunningSum inside a larger expression"),
    (let(RunningSum(X)), "running sum of X, which is no vector"),
    (let(Unary("exp", Load("y", (Var("i"),), ACC))), "Load inside a larger expression"),
    (let(Cast(Dot(Var("XO"), Var("YO")), OPERAND)), "Dot inside a larger expression"),
    (let(Columns(X, Var("j"), 8) * 2.0), "Columns inside a larger expression"),
    (let(Sum(X, 2)), "reduction of X along axis 2"),
    (let(Dot(Var("XO"), Var("XO"))), "product of .* and .*"),
    (let(Dot(Var("XO"), Y)), "product of .* and .*"),
    (let(Dot(Var("XO"), V)), "product of .* and .*"),
    (let(Dot(Var("XO"), Var("YO"), among=column(Var("j")) < row(Var("i")))), "product of .* among .*"),
    (let(Dot(Var("XO"), Var("YO"), among=X)), "product of .* among .*"),
    (let(Dot(Y, X, among=column(Var("i")) < row(Var("j")), right=True)), "product of .* among .*"),
    (let(Transpose(X) + Y), "Transpose inside a larger expression"),
    (let(Transpose(V)), "V, which is no matrix, turned"),
    (let(Resized(X, ("M",))), ".* with sides .*"),
    (let(Expand(X, 0)), "expansion of a tile of shape .*"),
    (let(Expand(V, 2)), "expansion of a vector along axis 2"),
    (let(Where(X, X, X)), "choice by .*"),
    (let(Span(wrap(0.5), "M")), "an index tile starts at something that is no plain integer"),
    (let(Span(Var("i"), "M")), "an index tile starts at something that is no plain integer"),
    (let(Span(wrap(0), "M", stop=Var("i"))), "an edge of an index tile is no plain integer"),
    (let(Span(wrap(0), "M", first=Var("i"))), "an edge of an index tile is no plain integer"),
    (let(Unary("cosh", X)), "unknown operation cosh"),
    (let(Binary("pow", X, X)), "unknown operation pow"),
    (let(Binary("and", X, X)), "and of .* and .*"),
    (let(Load("z", (Var("i"),), ACC)), "1 indices into z None"),
    (let(Load("x", (Var("i"),), ACC)), r"1 indices into x \('T', 8\)"),
    (let(Load("x", (Var("i"), V), ACC)), "index of x is .*"),
    (let(Load("x", (column(Var("i")), Var("j")), ACC)), "index of x is .*"),
    (Let("X", V), "X is introduced twice, as .* and as .*"),
    (Let("x", V), "x is introduced although it names a tensor"),
    (Set("new", V), "new is assigned before it is introduced"),
    (Add("new", V), "new is assigned before it is introduced"),
    (Set("V", X), "V has shape .* and is assigned .*"),
    (Add("X", Sum(X, 1)), "X has shape .* and is assigned .*"),
    (Set("V", Cast(V, OPERAND)), "V is acc and is assigned operand"),
    (Store("y", (Var("i"),), X), "store to y of a tile of shape .* at .*"),
    (Store("y", (Var("j"),), V), "store to y of a tile of shape .* at .*"),
    (Store("z", (Var("i"),), V), "1 indices into z None"),
    (Store("w", (Var("j"),), Full(("N",), 0.0)), "store to w, which programs along c share"),
    (Store("y", (Var("i"),), Unary("exp", Sum(X, 1))), "Sum (inside a larger expression|where .*)"),
    (When(Var("OTHER"), ()), "OTHER is used before it is introduced"),
    (When(Var("T"), ()), "statements under a condition that is no plain truth value"),
    (Let("k", Chosen("T", wrap(0), wrap(1))), "choice by T, which is no flag of the program"),
    (Let("k", Chosen("FLAG", wrap(0), wrap(1.0))), "choice of .* or .*"),
    (Only("T", Var("T") > 0), "what follows is only for .*, under T"),
    (Only("FLAG", V > 0.0), "what follows is only for .*, under FLAG"),
    (When(Doubt(V), ()), "doubt of .*"),
    (When(Doubt(Var("c")), ()), "doubt of .*"),
    (When(V > 0.0, ()), "statements under a condition that is no plain truth value"),
    (For("k", wrap(0), wrap(1.5), wrap(1), ()), "loop over k has a bound that is no plain integer"),
    (For("k", Var("i"), Var("T"), wrap(1), ()), "loop over k has a bound that is no plain integer"),
    (For("X", wrap(0), Var("T"), wrap(1), ()), "X is introduced twice, as .* and as .*"),
    (Stmt(), "unknown statement .*"),
    (let(Expr()), "Expr where an elementwise expression belongs"),
)


@pytest.mark.parametrize("stmt", GOOD, ids=lambda stmt: type(stmt).__name__)
def test_good_programs_pass(stmt: Stmt) -> None:
    check(program(stmt))


@pytest.mark.parametrize(("stmt", "message"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_bad_programs_are_refused(stmt: Stmt, message: str) -> None:
    with pytest.raises(IllFormed, match=f"^sample: {message}$"):
        check(program(stmt))


@pytest.mark.parametrize(
    ("stmt", "message"), BAD[:3], ids=lambda value: value if isinstance(value, str) else ""
)
def test_blocks_are_checked_too(stmt: Stmt, message: str) -> None:
    for block in (When(Var("FLAG"), (stmt,)), For("k", wrap(0), Var("T"), wrap(1), (stmt,))):
        with pytest.raises(IllFormed, match=message):
            check(program(block))


def test_types() -> None:
    """Dtype, static shape, and what differs between programs of a batch axis."""
    types = check(program(let(Dot(Var("XO"), Var("YO")))))
    assert types["i"] == Type(INDEX, ("M",))
    assert types["X"] == Type(ACC, ("M", "N"), batched=True)
    assert types["Y"] == Type(ACC, ("N", "M"))
    assert types["Z"] == Type(ACC, ("M", "M"), batched=True)
    assert check(program(let(column(V) * 2.0)))["Z"] == Type(ACC, ("M", 1))


def test_what_all_programs_of_a_batch_axis_share_is_not_batched() -> None:
    types = check(program(Let("W", Load("w", (Var("j"),), ACC)), let(X * row(Var("W")))))
    assert types["W"] == Type(ACC, ("N",))
    assert types["Z"] == Type(ACC, ("M", "N"), batched=True)


def test_a_variable_becomes_batched_by_what_is_added() -> None:
    assert not check(program())["V"].batched
    assert check(program(Add("V", Sum(X, 1))))["V"].batched


def _specs() -> list[LayerSpec]:
    return list(pipeline.load(SPECS).values())


@pytest.mark.parametrize("spec", _specs(), ids=lambda spec: spec.name)
def test_shipped_programs_are_well_formed(spec: LayerSpec) -> None:
    """As lowered, and after every rewrite."""

    def size(constant: str) -> int:
        return 32

    for lowered in pipeline.lower(spec).programs:
        check(lowered)
        program = write_out(lowered, size)
        check(program)
        assert not any(isinstance(stmt, Blocks) for stmt in statements(program.body))
        for rewrite in REWRITES.values():
            rewritten = rewrite(program, size)
            check(rewritten)
            assert rewrite(rewritten, size) == rewritten


def test_the_builder_nests_blocks() -> None:
    b = Builder()
    total = b.let("total", Const(0.0))
    with b.loop("k", 0, "T") as k:
        with b.when("FLAG"):
            b.set(total, total + 1.0)
        b.comment("here")
    assert b.body == (
        Let("total", Const(0.0)),
        For(
            "k",
            Const(0),
            Var("T"),
            Const(1),
            (When(Var("FLAG"), (Set("total", Binary("add", Var("total"), Const(1.0))),)), Comment("here")),
        ),
    )
    assert k == Var("k")
