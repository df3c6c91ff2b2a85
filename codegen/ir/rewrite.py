"""Named rewrites: steps that change how a program computes, never what.  A schedule lists those it wants."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from ..names import second_look
from .blocks import write_out
from .check import check, walk
from .fuse import each, expressions, statements
from .nodes import (
    ACC,
    OPERAND,
    Add,
    Blocks,
    Cast,
    Columns,
    Dot,
    Doubt,
    Expr,
    For,
    Full,
    Let,
    Set,
    Span,
    Stmt,
    Transpose,
    Var,
    When,
    Where,
    column,
    row,
    wrap,
)
from .program import Axis, Program
from .resized import Resized
from .static import Known
from .turn import turn


def gather_by_product(program: Program, size: Callable[[str], int]) -> Program:
    """Gather columns on the matrix units: ``columns(x, index)`` becomes ``x @ E``.

    E[d, f] = (index[f] == d), and a product with zeros and ones is exact in every dtype.  E stands where its
    index (or weight) is introduced, outside of loops on which those do not depend.  Columns past the extent
    get their fill afterwards, where there can be any.  All columns as they stand are no product.
    """
    lets = [stmt for stmt in statements(program.body) if isinstance(stmt, Let)]
    gathers = [let.value for let in lets if isinstance(let.value, Columns)]
    known, types = Known(program, lets, size), check(program)
    columns = Span(wrap(0), "QK")

    def all_as_they_stand(value: Columns) -> bool:
        elements = known.elements(value.index)
        return elements == list(range(size("QK"))) and len(elements) <= value.extent

    products = [value for value in dict.fromkeys(gathers) if not all_as_they_stand(value)]
    across = {value.x.name for value in gathers if value.transposed and value not in products}

    def matrices(stmt: Let) -> Iterator[Stmt]:
        """The matrices E of the gathers for which `stmt` introduces the last thing that they need."""
        for value in products:
            if stmt.name == (value.weight or value.index).name:
                yield _selector(value, columns)
                if not value.transposed and known.elements(value.index) is not None and fills(value):
                    first = column(columns).equals(0) & row(value.index >= value.extent)
                    yield Let(f"fill_{_suffix(value)}", Cast(_weighted(first, value), OPERAND))

    def fills(value: Columns) -> bool:
        elements = known.elements(value.index)
        return value.fill != 0.0 and (elements is None or max(elements) >= value.extent)

    def standing(value: Columns) -> Expr:
        """All columns of a tile, in the precision of sums, as a product would give them."""
        shape = (types[value.x.name].shape[0], *types[value.index.name].shape)
        tile = Var(f"{value.x.name}_across") if value.transposed else value.x
        x = Cast(Resized(tile, shape[::-1] if value.transposed else shape), ACC)
        if value.weight is None or set(known.elements(value.weight) or ()) == {1.0}:
            return x
        weight = Cast(Cast(value.weight, OPERAND), ACC)
        return x * (column(weight) if value.transposed else row(weight))

    def rewrite(stmt: Stmt) -> tuple[Stmt, ...]:
        if not isinstance(stmt, Let):
            return (stmt,)
        if not isinstance(value := stmt.value, Columns):
            turned = (Let(f"{stmt.name}_across", Transpose(Var(stmt.name))),) if stmt.name in across else ()
            return (stmt, *turned, *matrices(stmt))
        if value not in products:
            return (Let(stmt.name, standing(value)),)
        fill = value.weight * value.fill if value.weight else wrap(value.fill)
        filled: Expr = Where(value.index >= value.extent, fill, wrap(0.0))
        if value.transposed:
            product = Let(stmt.name, Dot(Var(f"onto_{_suffix(value)}"), Transpose(value.x)))
            past = column(filled)
        else:
            product = Let(stmt.name, Dot(value.x, Var(f"from_{_suffix(value)}")))
            past = row(filled)
        if not fills(value):
            return (product,)
        if known.elements(value.index) is None or value.transposed:
            return product, Add(stmt.name, past)
        # A row of fills that never changes would sit in registers; as a product it waits in shared memory.
        ones = Let("ones", Cast(Full(("CHUNK", "QK"), value.fill), OPERAND))
        return product, ones, Add(stmt.name, Dot(Var("ones"), Var(f"fill_{_suffix(value)}")))

    return drop_unused(replace(program, body=each(program.body, rewrite)))


def _suffix(value: Columns) -> str:
    return f"weighted_{value.index.name}" if value.weight else value.index.name


def _selector(value: Columns, columns: Expr) -> Let:
    """E of one gather, or its transpose."""
    if value.transposed:
        chosen = column(value.index).equals(row(columns))
        return Let(f"onto_{_suffix(value)}", Cast(_weighted(chosen, value), OPERAND))
    chosen = column(columns).equals(row(value.index))
    return Let(f"from_{_suffix(value)}", Cast(_weighted(chosen, value), OPERAND))


def _weighted(chosen: Expr, value: Columns) -> Expr:
    if value.weight is None:
        return chosen
    return Where(chosen, column(value.weight) if value.transposed else row(value.weight), wrap(0.0))


def drop_unused(program: Program) -> Program:
    """Leave out what nothing reads.

    Lowerings are written for every feature map; of a linear kernel, say, they use neither the products nor
    what those are made of.
    """
    while True:
        read = {
            node.name
            for stmt in statements(program.body)
            for expr in expressions(stmt)
            for node in walk(expr)
            if isinstance(node, Var) and not (isinstance(stmt, Set | Add) and node.name == stmt.name)
        }

        def keep(stmt: Stmt, read: set[str] = read) -> tuple[Stmt, ...]:
            if isinstance(stmt, For | Blocks | When):
                return (stmt,) if stmt.body else ()
            return () if isinstance(stmt, Let | Set | Add) and stmt.name not in read else (stmt,)

        body = each(program.body, keep)
        if body == program.body:
            return program
        program = replace(program, body=body)


def without_second_look(program: Program) -> Program:
    """Leave out what stands under a doubt, and what raises it: for backends whose products select."""
    body = tuple(stmt for stmt in program.body if not _is_second_look(stmt))
    once = drop_unused(replace(program, body=body))
    return replace(once, constants=constants_read(once.constants, once.grid, once.body))


def constants_read(names: Iterable[str], grid: tuple[Axis, ...], body: tuple[Stmt, ...]) -> tuple[str, ...]:
    """Those of some constants that a grid or a body names, as a variable or an extent."""
    text = repr((grid, body))
    return tuple(name for name in names if f"'{name}'" in text)


def apart(program: Program) -> tuple[Program, Program | None]:
    """A program, and its second look as a program of its own: for backends that call it as a function.

    Of the second look the first keeps the doubt, with nothing under it.
    """
    looks = [stmt for stmt in program.body if _is_second_look(stmt)]
    if not looks:
        return program, None
    (look,) = looks
    assert isinstance(look, When)
    body = tuple(replace(look, body=()) if stmt is look else stmt for stmt in program.body)
    return replace(program, body=body), replace(
        program, name=second_look(program.name), summary="The rows again, by selects.", body=look.body
    )


def _is_second_look(stmt: Stmt) -> bool:
    return isinstance(stmt, When) and isinstance(stmt.condition, Doubt)


REWRITES: dict[str, Callable[[Program, Callable[[str], int]], Program]] = {
    "gather_by_product": gather_by_product,
    "turn": lambda program, _: turn(program),
}


def rewritten(program: Program, rewrites: Iterable[str], size: Callable[[str], int]) -> Program:
    """The program with its blocks written out and after the named rewrites; `size` binds its constants."""
    program = write_out(program, size)
    for name in rewrites:
        program = REWRITES[name](program, size)
    return program
