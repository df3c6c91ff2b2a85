"""Print expressions as Triton or Gluon, which have the same functions under their own names."""

from __future__ import annotations

from ..ir.flags import Chosen
from ..ir.nodes import (
    ACC,
    INDEX,
    IO,
    OPERAND,
    STATE,
    WIDE,
    Binary,
    Cast,
    Const,
    Dithered,
    Expand,
    Expr,
    Full,
    Head,
    Span,
    Transpose,
    Unary,
    Var,
    Where,
)
from ..ir.printer import PRECEDENCE, SYMBOLS, TIGHT
from ..ir.program import ALL_HEADS, GROUPED, HEADS
from ..ir.resized import Resized

RENAMED = {"min": "minimum", "max": "maximum"}
OURS = {
    "erfc": "erfc",
    "expm1": "expm1",
    "if_positive": "if_positive",
    "log1p": "log1p",
    "max_or_nan": "maximum_or_nan",
    "min_or_nan": "minimum_or_nan",
    "tanh": "tanh",
}
"""Functions of `based_ops.support.elementary`, in either language."""


def formula(expr: Expr, outer: int = 0, language: str = "tl") -> str:
    """The expression as text, parenthesised where what surrounds it binds tighter."""

    def part(x: Expr, outer: int = 0) -> str:
        return formula(x, outer, language)

    match expr:
        case Const(value):
            return repr(value)
        case Var(name):
            return name
        case Span(start, size):
            offset = "" if start == Const(0) else f"{part(start, PRECEDENCE['add'])} + "
            return f"{offset}{language}.arange(0, {size})"
        case Unary("neg", Unary("neg", x)):
            return part(x, outer)
        case Unary("neg", x):
            return f"-{part(x, TIGHT)}"
        case Unary("nothing", x):
            return part(x * 0.0, outer)
        case Unary(op, x) if op in OURS:
            return f"{OURS[op]}({part(x)})"
        case Binary(op, x, y) if op in OURS:
            return f"{OURS[op]}({part(x)}, {part(y)})"
        case Unary("sigmoid", x) if language == "gl":  # which has none
            return part(Const(1.0) / (1.0 + Unary("exp", Unary("neg", x))), outer)
        case Unary("exp", x) if language == "gl":
            return f"exponential({part(x)})"
        case Unary(op, x):
            return f"{language}.{op}({part(x)})"
        case Binary(op, x, y) if op in SYMBOLS:
            level = PRECEDENCE[op]
            # Python's & binds tighter than its comparisons, and comparisons do not chain here.
            inside = PRECEDENCE["add"] if level <= PRECEDENCE["lt"] else level
            inner = f"{part(x, inside)} {SYMBOLS[op]} {part(y, max(inside, level + 1))}"
            return f"({inner})" if level < outer else inner
        case Binary(op, x, y):
            return f"{language}.{RENAMED.get(op, op)}({part(x)}, {part(y)})"
        case Where(condition, x, y):
            return f"{language}.where({part(condition)}, {part(x)}, {part(y)})"
        case Chosen(flag, x, y):
            inner = f"{part(x, 1)} if {flag} else {part(y, 1)}"
            return f"({inner})" if outer else inner
        case Cast(x, dtype) if dtype in (IO, STATE):
            return part(x, outer)  # a store converts to the tensor's own dtype
        case Cast(x, dtype) if dtype == INDEX:
            return f"{part(x, TIGHT)}.to({language}.int32)"
        case Cast(x, dtype):
            return f"{part(x, TIGHT)}{cast_suffix(dtype, language)}"
        case Resized(x):
            return part(x, outer)
        case Dithered(x, dtype, token, value, place):
            return f"dithered({part(x)}, tl.{dtype}, {part(token)}, {part(value)}, {part(place)})"
        case Expand(x, axis):
            return f"{part(x, TIGHT)}[{'None, :' if axis == 0 else ':, None'}]"
        case Head(heads, None):
            return f"h // ({HEADS} // {heads}) if {GROUPED} else h"
        case Head(heads, member) if member is not None:
            first = f"h * ({ALL_HEADS} // {HEADS})"
            return f"({first} + {part(member)}) // ({ALL_HEADS} // {heads}) if {GROUPED} else h"
        case Full((), value, _):
            return repr(value)
        case Full(shape, value, dtype):
            sizes = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
            return f"tl.full(({sizes}), {value!r}, tl.{'float64' if dtype == WIDE else 'float32'})"
        case Transpose(x):
            return f"tl.trans({x.name})"
        case _:
            raise TypeError(f"no Triton for {type(expr).__name__}")


def cast_suffix(dtype: str, language: str = "tl") -> str:
    """What converts a tile to a dtype."""
    return {
        OPERAND: ".to(OPERAND)",
        ACC: f".to({language}.float32)",
        WIDE: f".to({language}.float64)",
        INDEX: "",
    }[dtype]
