"""Types of a tile program, and the check that it is well formed.

`check` walks a program once, in order, and returns the type of every variable; emitters rely on what it has
proved: names are defined before use, shapes agree without implicit broadcasting, and data moves, products and
reductions stand alone on the right of a statement.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .exchange import WIDTH, Exchanged
from .flags import Chosen, Only
from .nodes import (
    ACC,
    ARITHMETIC,
    BOOL,
    COMPARISONS,
    INDEX,
    OPERAND,
    STATE,
    UNARY,
    Add,
    Binary,
    Blocks,
    Cast,
    Columns,
    Comment,
    Const,
    Dim,
    Dithered,
    Dot,
    Doubt,
    Expand,
    Expr,
    For,
    Full,
    Head,
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
)
from .program import GROUPED, HAS_SLOT, SLOT, Program
from .resized import Resized

ALONE = (Load, Dot, Sum, Max, RunningSum, Columns, Exchanged, Transpose)
"""Nodes that only stand as the whole right side of a statement."""


class IllFormed(Exception):
    """A program that breaks the rules of the tile language: a bug in a lowering, never a user's error."""


@dataclass(frozen=True)
class Type:
    """Role of the elements, static shape, and whether the value differs between programs of a batch axis."""

    dtype: str
    shape: tuple[Dim, ...] = ()
    batched: bool = False


Types = dict[str, Type]


def check(program: Program) -> Types:
    """Types of all variables of `program`; raises `IllFormed`."""
    known: Types = {name: Type(INDEX) for name in (*program.sizes, *program.constants)}
    known |= {axis.name: Type(INDEX) for axis in program.grid}
    known |= {name: Type(ACC) for name in program.scalars}
    known |= {name: Type(BOOL) for name in program.flags}
    if any(tensor.slots for tensor in program.tensors):
        known |= {SLOT: Type(INDEX, batched=True), HAS_SLOT: Type(BOOL, batched=True)}
    _Checker(program, known).statements(program.body)
    return known


def infer(expr: Expr, known: Types, program: Program) -> Type:
    """The type of one expression whose variables are all known."""
    return _Checker(program, known).infer(expr)


def right_side(value: Expr, known: Types, program: Program) -> Type:
    """The same of what stands alone on the right of a statement."""
    return _Checker(program, known).right_side(value)


class _Checker:
    def __init__(self, program: Program, known: Types) -> None:
        self.program, self.known = program, known

    def fail(self, what: str) -> IllFormed:
        return IllFormed(f"{self.program.name}: {what}")

    # Statements

    def statements(self, body: tuple[Stmt, ...]) -> None:
        for stmt in body:
            self.statement(stmt)

    def statement(self, stmt: Stmt) -> None:
        match stmt:
            case Let(name, value):
                self.known[name] = self._let(name, self.right_side(value))
            case Set(name, value) | Add(name, value):
                self._assign(name, self.right_side(value))
            case Store(tensor, index, value):
                place = self._index(tensor, index)
                if shared := self._shared(tensor):
                    raise self.fail(f"store to {tensor}, which programs along {', '.join(shared)} share")
                self._only_elementwise(value)
                stored = self.infer(value)
                if not _broadcasts(stored.shape, place):
                    raise self.fail(f"store to {tensor} of a tile of shape {stored.shape} at {place}")
            case For(var, start, stop, step, body, _, several):
                if several is not None and (several not in self.program.flags or start != Const(0)):
                    raise self.fail(f"loop over {var} has rounds of a flag {several} or start, not of 0")
                for bound in (start, stop, step):
                    if self.infer(bound) != Type(INDEX):
                        raise self.fail(f"loop over {var} has a bound that is no plain integer")
                self.known[var] = self._let(var, Type(INDEX))
                self.statements(body)
            case Blocks(var, _, step, body):
                if step not in self.program.constants:
                    raise self.fail(f"blocks of {step}, which is no constant of the program")
                self.known[var] = self._let(var, Type(INDEX))
                self.statements(body)
            case When(condition, body, each):
                if self.infer(condition) not in (Type(BOOL), Type(BOOL, batched=each)):
                    raise self.fail("statements under a condition that is no plain truth value")
                self.statements(body)
            case Only(flag, condition):
                if flag not in self.program.flags or self.infer(condition) != Type(BOOL):
                    raise self.fail(f"what follows is only for {condition}, under {flag}")
            case Comment():
                pass
            case _:
                raise self.fail(f"unknown statement {stmt!r}")

    def _let(self, name: str, new: Type) -> Type:
        if any(tensor.name == name for tensor in self.program.tensors):
            raise self.fail(f"{name} is introduced although it names a tensor")
        old = self.known.get(name)
        if old is not None and (old.dtype, old.shape) != (new.dtype, new.shape):
            raise self.fail(f"{name} is introduced twice, as {old} and as {new}")
        return new

    def _assign(self, name: str, new: Type) -> None:
        old = self.known.get(name)
        if old is None:
            raise self.fail(f"{name} is assigned before it is introduced")
        if new.shape not in (old.shape, ()) and not _broadcasts(new.shape, old.shape):
            raise self.fail(f"{name} has shape {old.shape} and is assigned {new.shape}")
        if new.dtype != old.dtype:
            raise self.fail(f"{name} is {old.dtype} and is assigned {new.dtype}")
        if new.batched and not old.batched:
            self.known[name] = replace(old, batched=True)

    def right_side(self, value: Expr) -> Type:
        match value:
            case Load(tensor, index, dtype):
                shape = self._index(tensor, index)
                return Type(dtype, shape, batched=bool(self._shared(tensor, False)))
            case Dot(x, y, among, right):
                return self._dot(x, y, among, right)
            case Sum(x, axis) | Max(x, axis):
                tile = self.infer(x)
                if axis >= len(tile.shape):
                    raise self.fail(f"reduction of {x.name} along axis {axis}")
                return Type(tile.dtype, tile.shape[:axis] + tile.shape[axis + 1 :], tile.batched)
            case RunningSum(x):
                if len(self.infer(x).shape) != 1:
                    raise self.fail(f"running sum of {x.name}, which is no vector")
                return self.infer(x)
            case Exchanged(x, exchange, transposed):
                tile = self.infer(x)
                if tile.dtype != OPERAND or tile.shape[1:] != (WIDTH,):
                    raise self.fail(f"exchange of {tile}")
                shape = (tile.shape[0], exchange.columns)
                return replace(tile, shape=shape[::-1] if transposed else shape)
            case Columns(x, index, transposed=transposed, weight=weight):
                tile = self.infer(x)
                if weight is not None and self.infer(weight).shape != self.infer(index).shape:
                    raise self.fail(f"columns {index.name} with weights {weight.name} of another length")
                shape = (tile.shape[0], *self.infer(index).shape)
                return Type(tile.dtype, shape[::-1] if transposed else shape, tile.batched)
            case Transpose(x):
                if len(self.infer(x).shape) != 2:
                    raise self.fail(f"{x.name}, which is no matrix, turned")
                return self.infer(value)
            case _:
                self._only_elementwise(value)
                return self.infer(value)

    def _dot(self, x: Var | Transpose, y: Var | Transpose, among: Expr | None, of_right: bool) -> Type:
        left, right = self.infer(x), self.infer(y)
        if among is not None:
            pairs = self.infer(among)
            side = replace(right, shape=right.shape[::-1]) if of_right else left
            if pairs.dtype != BOOL or pairs.shape != side.shape:
                raise self.fail(f"product of {side} among {pairs}")
        if len(left.shape) != 2 or len(right.shape) != 2 or left.shape[1] != right.shape[0]:
            raise self.fail(f"product of {left} and {right}")
        if left.dtype != right.dtype or left.dtype not in (OPERAND, ACC):
            raise self.fail(f"product of {left} and {right}")
        return Type(ACC, (left.shape[0], right.shape[1]), left.batched or right.batched)

    def _only_elementwise(self, value: Expr) -> None:
        for node in walk(value):
            if isinstance(node, ALONE):
                raise self.fail(f"{type(node).__name__} inside a larger expression")

    def _index(self, tensor: str, index: tuple[Expr, ...]) -> tuple[Dim, ...]:
        dims = next((t.dims for t in self.program.tensors if t.name == tensor), None)
        if dims is None or len(dims) != len(index):
            raise self.fail(f"{len(index)} indices into {tensor} {dims}")
        if self.program.tensor(tensor).slots and index[0] != Var(self.program.grid[0].name):
            raise self.fail(f"{tensor}, which is in slots, by another index than that of the batch")
        shape: tuple[Dim, ...] = ()
        for place, entry in enumerate(index):
            kind = self.infer(entry)
            matrix = len(kind.shape) == 2 and not shape and place == len(index) - 1
            if kind.dtype != INDEX or len(kind.shape) > 1 and not matrix:
                raise self.fail(f"index of {tensor} is {kind}")
            shape += kind.shape
        return shape

    def _shared(self, tensor: str, which: bool = True) -> list[str]:
        """The batch axes along which programs share a tensor; or else those along which each has its own."""
        dims = self.program.tensor(tensor).dims
        return [axis for axis, extent in self.program.batch.items() if (extent not in dims) == which]

    # Expressions

    def infer(self, expr: Expr) -> Type:
        match expr:
            case Const(value):
                return Type(INDEX if isinstance(value, int) else ACC)
            case Var(name):
                if name not in self.known:
                    raise self.fail(f"{name} is used before it is introduced")
                return self.known[name]
            case Span(start, size, first, stop):
                if self.infer(start) != Type(INDEX):
                    raise self.fail("an index tile starts at something that is no plain integer")
                if any(edge is not None and self.infer(edge) != Type(INDEX) for edge in (first, stop)):
                    raise self.fail("an edge of an index tile is no plain integer")
                return Type(INDEX, (size,))
            case Unary(op, x):
                if op not in UNARY:
                    raise self.fail(f"unknown operation {op}")
                return self.infer(x)
            case Binary(op, x, y):
                if op not in (*ARITHMETIC, *COMPARISONS):
                    raise self.fail(f"unknown operation {op}")
                return self._elementwise(op, self.infer(x), self.infer(y))
            case Where(condition, x, y):
                chosen, chooser = (
                    self._elementwise("where", self.infer(x), self.infer(y)),
                    self.infer(condition),
                )
                if chooser.dtype != BOOL:
                    raise self.fail(f"choice by {chooser}")
                return self._elementwise("where", chosen, replace(chooser, dtype=chosen.dtype))
            case Chosen(flag, x, y):
                if flag not in self.program.flags:
                    raise self.fail(f"choice by {flag}, which is no flag of the program")
                if self.infer(x) != self.infer(y):
                    raise self.fail(f"choice of {self.infer(x)} or {self.infer(y)}")
                return self.infer(x)
            case Cast(x, dtype):
                return replace(self.infer(x), dtype=dtype)
            case Resized(x, shape):
                if len(self.infer(x).shape) != len(shape):
                    raise self.fail(f"{self.infer(x)} with sides {shape}")
                return replace(self.infer(x), shape=shape)
            case Dithered(x, _, token, value, place):
                tile, row = self.infer(x), self._elementwise("dithered", self.infer(token), self.infer(value))
                if not _broadcasts(row.shape, tile.shape) or not _broadcasts(
                    self.infer(place).shape, tile.shape
                ):
                    raise self.fail(f"rounding of a tile of shape {tile.shape} by others")
                return replace(tile, dtype=STATE)
            case Expand(x, axis):
                vector = self.infer(x)
                if len(vector.shape) != 1:
                    raise self.fail(f"expansion of a tile of shape {vector.shape}")
                if axis not in (0, 1):
                    raise self.fail(f"expansion of a vector along axis {axis}")
                return replace(vector, shape=(1, *vector.shape) if axis == 0 else (*vector.shape, 1))
            case Head(heads, member):
                if heads not in self.program.sizes or GROUPED not in self.program.flags:
                    raise self.fail(f"head of {heads}, which the program does not know")
                if member is not None and self.infer(member) != Type(INDEX):
                    raise self.fail("a member of a group of heads that is no plain integer")
                return Type(INDEX)
            case Full(shape, _, dtype):
                return Type(dtype, shape)
            case Doubt(x):
                if self.infer(x).shape or self.infer(x).dtype != ACC:
                    raise self.fail(f"doubt of {self.infer(x)}")
                return Type(BOOL)
            case Transpose(x):
                tile = self.infer(x)
                return replace(tile, shape=tile.shape[::-1])
            case _:
                raise self.fail(f"{type(expr).__name__} where an elementwise expression belongs")

    def _elementwise(self, op: str, x: Type, y: Type) -> Type:
        if x.dtype != y.dtype or (op == "and") != (x.dtype == BOOL):
            raise self.fail(f"{op} of {x} and {y}")
        if x.shape and y.shape and len(x.shape) != len(y.shape):
            raise self.fail(f"{op} of {x} and {y}")
        shape = x.shape or y.shape
        if x.shape and y.shape:
            for a, c in zip(x.shape, y.shape, strict=True):
                if a != c and 1 not in (a, c):
                    raise self.fail(f"{op} of {x} and {y}")
            shape = tuple(c if a == 1 else a for a, c in zip(x.shape, y.shape, strict=True))
        dtype = BOOL if op in COMPARISONS else x.dtype
        return Type(dtype, shape, x.batched or y.batched)


def _broadcasts(new: tuple[Dim, ...], old: tuple[Dim, ...]) -> bool:
    return len(new) == len(old) and all(a in (1, c) for a, c in zip(new, old, strict=True))


def children(expr: Expr) -> tuple[Expr, ...]:
    """Direct subexpressions."""
    match expr:
        case Span(start, _, first, stop):
            return tuple(part for part in (start, first, stop) if part is not None)
        case Unary(_, x) | Cast(x, _) | Expand(x, _) | Transpose(x) | Resized(x):
            return (x,)
        case Sum(x, _) | Max(x, _) | RunningSum(x) | Doubt(x) | Exchanged(x):
            return (x,)
        case Head(_, member):
            return () if member is None else (member,)
        case Binary(_, x, y) | Chosen(_, x, y):
            return (x, y)
        case Dot(x, y, among):
            return (x, y) if among is None else (x, y, among)
        case Where(condition, x, y):
            return (condition, x, y)
        case Dithered(x, _, token, value, place):
            return (x, token, value, place)
        case Load(_, index):
            return index
        case Columns(x, index, weight=weight):
            return (x, index) if weight is None else (x, index, weight)
        case _:
            return ()


def walk(expr: Expr) -> Iterator[Expr]:
    """The expression and all its subexpressions."""
    yield expr
    for child in children(expr):
        yield from walk(child)
