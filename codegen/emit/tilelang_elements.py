"""One element of a tile as a TileLang expression."""

from __future__ import annotations

from ..ir.check import infer, walk
from ..ir.flags import Chosen
from ..ir.nodes import (
    ACC,
    BOOL,
    INDEX,
    OPERAND,
    Binary,
    Cast,
    Columns,
    Const,
    Dim,
    Dithered,
    Doubt,
    Expand,
    Expr,
    Full,
    Head,
    Load,
    Span,
    Transpose,
    Unary,
    Var,
    Where,
    wrap,
)
from ..ir.printer import PRECEDENCE, SYMBOLS, TIGHT
from ..ir.program import ALL_HEADS, GROUPED, HAS_SLOT, HEADS, SLOT
from ..ir.resized import Resized
from ..schedule.scopes import EXPRESSION, SCALAR
from .bounds import Bounds
from .layer import ScheduledProgram
from .tilelang_places import children
from .tilelang_target import FUNCTIONS, Target, c_name

LARGEST = 3.4028234663852886e38
"""The largest finite number in float32."""


class Elements:
    """The text of elements of one program's tiles and tensors."""

    def __init__(self, scheduled: ScheduledProgram, scopes: dict[str, str], target: Target) -> None:
        self.program, self.types = scheduled.program, scheduled.types
        self.scopes, self.target = scopes, target
        self.bounds = Bounds(scheduled.program, scheduled.schedule)

    def expr(self, expr: Expr, places: tuple[str, ...] = (), outer: int = 0) -> str:
        """One element of an expression: `places` are the loop variables of its axes."""
        match expr:
            case Const(value) | Full(_, value):
                return repr(value)
            case Var(name):
                return self._variable(name, places)
            case Span(start, _):
                if start == Const(0):
                    return places[0]
                text = f"{self.expr(start, (), PRECEDENCE['add'])} + {places[0]}"
                return f"({text})" if outer > PRECEDENCE["add"] else text
            case Head(heads, member):
                among = "" if member is None else f", {ALL_HEADS}, {self.expr(member)}"
                return f"head_of({GROUPED}, h, {HEADS}, {heads}{among})"
            case Unary("neg", x):
                return f"-{self.expr(x, places, TIGHT)}"
            case Unary("nothing", x):  # TileLang takes x * 0 for 0, and x - x
                return self.expr(Where(Unary("abs", x) <= LARGEST, wrap(0.0), wrap(1.0)), places)
            case Doubt(x):
                return f"{self.expr(x)} != 0.0"
            case Unary("abs", x):  # the C target has no absolute value
                return f"tl.max({self.expr(x, places)}, -{self.expr(x, places, TIGHT)})"
            case Unary(op, x):
                return f"{FUNCTIONS.get(op, f'tl.{op}')}({self.expr(x, places)})"
            case Binary("and", x, y):
                text = f"{self.expr(x, places)} and {self.expr(y, places)}"
                return f"({text})" if outer else text
            case Binary(op, x, y) if op in FUNCTIONS:
                return f"{FUNCTIONS[op]}({self.expr(x, places)}, {self.expr(y, places)})"
            case Binary(op, x, y):
                level = PRECEDENCE[op]
                text = f"{self.expr(x, places, level)} {SYMBOLS[op]} {self.expr(y, places, level + 1)}"
                return f"({text})" if level < outer else text
            case Chosen(flag, x, y):
                text = f"{self.expr(x, places, 1)} if {flag} else {self.expr(y, places, 1)}"
                return f"({text})" if outer else text
            case Where(condition, x, y):
                parts = (self.expr(part, places) for part in (condition, x, y))
                return f"tl.if_then_else({', '.join(parts)})"
            case Cast(x, _) if self._is(x, BOOL):
                return f"tl.if_then_else({self.expr(x, places)}, 1.0, 0.0)"
            case Cast(Columns() as gather, dtype):
                return self._columns(gather, places, dtype)
            case Cast(x, dtype):
                return f"tl.cast({self.expr(x, places)}, {self.target.dtype(dtype)})"
            case Expand(x, axis):
                return self.expr(x, (places[1 - axis],), outer)
            case Resized(x):
                return self.expr(x, places, outer)
            case Transpose(x):
                return self._variable(x.name, places[::-1])
            case Dithered(x, dtype, token, value, place):
                chance = (self.expr(part, places) for part in (token, value, place))
                return f'dithered({self.expr(x, places)}, "{dtype}", {", ".join(chance)})'
            case Columns():
                return self._columns(expr, places, None)
            case Load():
                return self._load(expr, places)
            case _:
                raise TypeError(f"no TileLang for {type(expr).__name__}")

    def _variable(self, name: str, places: tuple[str, ...]) -> str:
        kind, scope = self.types[name], self.scopes.get(name, SCALAR)
        if scope in (SCALAR, EXPRESSION):
            return name
        return f"{name}[{', '.join(places) if kind.shape else 0}]"

    def _load(self, load: Load, places: tuple[str, ...]) -> str:
        element = self._element(load.tensor, load.index, places)
        tensor = self.program.tensor(load.tensor)
        if load.dtype == ACC and tensor.dtype != ACC:
            element = f'tl.cast({element}, "float32")'
        # TileLang reads 0 outside a tensor.
        inside = self._inside(load, places, outside_tensor=load.fill != 0)
        fill = 0 if load.dtype == INDEX and not load.fill else load.fill
        return f"tl.if_then_else({inside}, {element}, {fill!r})" if inside else element

    def _inside(self, access: Load, places: tuple[str, ...], outside_tensor: bool) -> str:
        """Whether an element of an access is inside, as far as that needs checking ("": not at all)."""
        tensor = self.program.tensor(access.tensor)
        tests = [
            self.expr(test, inner, 1)
            for (entry, inner), extent in zip(children(access, places, self._rank), tensor.dims, strict=True)
            if inner
            for test in self.bounds.conditions(entry, extent, outside_tensor)
        ]
        return " and ".join([HAS_SLOT, *tests] if tensor.slots else tests)

    def _element(self, name: str, index: tuple[Expr, ...], places: tuple[str, ...]) -> str:
        if self.program.tensor(name).slots:
            index = (Var(SLOT), *index[1:])
        entries = children(Load(name, index, ACC), places, self._rank)
        return f"{c_name(name)}[{', '.join(self.expr(entry, inner) for entry, inner in entries)}]"

    def _columns(self, gather: Columns, places: tuple[str, ...], dtype: str | None) -> str:
        row, column = places[::-1] if gather.transposed else places
        index = self.expr(gather.index, (column,))
        element = f"{gather.x.name}[{row}, tl.min({index}, {gather.extent - 1})]"
        if dtype is not None:
            element = f"tl.cast({element}, {self.target.dtype(dtype)})"
        fill = (
            repr(gather.fill)
            if dtype == ACC
            else f"tl.cast({gather.fill!r}, {self.target.dtype(dtype or OPERAND)})"
        )
        chosen = f"tl.if_then_else({index} < {gather.extent}, {element}, {fill})"
        if gather.weight is None:
            return chosen
        weight = self.expr(gather.weight, (column,))
        return f"{chosen} * tl.cast({weight}, {self.target.dtype(dtype or OPERAND)})"

    def _shape(self, expr: Expr) -> tuple[Dim, ...]:
        return infer(expr, self.types, self.program).shape

    def _rank(self, expr: Expr) -> int:
        return len(self._shape(expr))

    def _is(self, expr: Expr, dtype: str) -> bool:
        return _plain(expr) and infer(expr, self.types, self.program).dtype == dtype


def _plain(expr: Expr) -> bool:
    """Whether the expression holds no data movement, which has no type inside an expression."""
    return not any(isinstance(node, Load | Columns) for node in walk(expr))
