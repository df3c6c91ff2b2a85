"""The program as text: for people, golden files and `based-ops show --stage program`."""

from __future__ import annotations

from .exchange import Exchanged
from .flags import Chosen, Only
from .nodes import (
    Add,
    Binary,
    Blocks,
    Cast,
    Columns,
    Comment,
    Const,
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
from .program import Program
from .resized import Resized

SYMBOLS = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "div": "/",
    "floordiv": "//",
    "mod": "%",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "eq": "==",
    "and": "&",
    "xor": "^",
}
PRECEDENCE = {
    "and": 1,
    "lt": 2,
    "le": 2,
    "gt": 2,
    "ge": 2,
    "eq": 2,
    "xor": 3,
    "add": 4,
    "sub": 4,
    "mul": 5,
    "div": 5,
    "floordiv": 5,
    "mod": 5,
}
TIGHT = 7


def print_program(program: Program) -> str:
    """The whole program, one statement a line."""
    lines = [f"program {program.name}: {program.summary}"]
    for tensor in program.tensors:
        notes = [
            note
            for note, on in (
                ("strided", tensor.strided),
                (f"when {tensor.optional}", tensor.optional),
                (f"in slots of {tensor.slots}", tensor.slots),
            )
            if on
        ]
        suffix = f"  ({', '.join(notes)})" if notes else ""
        lines.append(f"  tensor {tensor.name}: {tensor.dtype}[{', '.join(map(str, tensor.stored))}]{suffix}")
    for label, names in (
        ("sizes", program.sizes),
        ("scalars", program.scalars),
        ("flags", program.flags),
        ("constants", program.constants),
    ):
        if names:
            lines.append(f"  {label} {', '.join(names)}")
    axes = ", ".join(
        f"{axis.name} < {text(axis.extent)}{' (batch)' if axis.batch else ''}" for axis in program.grid
    )
    lines.append(f"  grid {axes}")
    lines += _block(program.body, 1)
    return "\n".join(lines) + "\n"


def _block(body: tuple[Stmt, ...], depth: int) -> list[str]:
    pad = "  " * depth
    lines: list[str] = []
    for stmt in body:
        match stmt:
            case Let(name, value):
                lines.append(f"{pad}let {name} = {text(value)}")
            case Set(name, value):
                lines.append(f"{pad}{name} = {text(value)}")
            case Add(name, value):
                lines.append(f"{pad}{name} += {text(value)}")
            case Store(tensor, index, value):
                lines.append(f"{pad}store {tensor}[{', '.join(map(text, index))}] = {text(value)}")
            case For(var, start, stop, step, inner, ahead, several):
                how = ", loading ahead" if ahead else f", one round unless {several}" if several else ""
                how += ", last to first" if stmt.backwards else ""
                lines.append(f"{pad}for {var} in {text(start)} .. {text(stop)} step {text(step)}{how}:")
                lines += _block(inner, depth + 1)
            case Blocks(var, extent, step, inner, tiles):
                lines.append(
                    f"{pad}for each {var} in 0 .. {extent} step {step}, with its own {', '.join(tiles)}:"
                )
                lines += _block(inner, depth + 1)
            case When(condition, inner, each):
                lines.append(f"{pad}when {text(condition)}{', each by itself' if each else ''}:")
                lines += _block(inner, depth + 1)
            case Only(flag, condition):
                lines.append(f"{pad}only if {text(condition)}, when {flag}")
            case Comment(words):
                lines.append(f"{pad}# {words}")
    return lines


def text(expr: Expr, outer: int = 0) -> str:
    """One expression, parenthesised only where precedence asks for it."""
    match expr:
        case Const(value):
            return repr(value)
        case Var(name):
            return name
        case Span(start, size, first, stop):
            begin = "" if first in (None, Const(0)) else f", first={text(first)}"
            end = "" if stop is None else f", stop={text(stop)}"
            return f"span({text(start)}, {size}{begin}{end})"
        case Unary("neg", x):
            return f"-{text(x, TIGHT)}"
        case Unary(op, x):
            return f"{op}({text(x)})"
        case Binary(op, x, y) if op in SYMBOLS:
            level = PRECEDENCE[op]
            inner = f"{text(x, level)} {SYMBOLS[op]} {text(y, level + 1)}"
            return f"({inner})" if level < outer else inner
        case Binary(op, x, y):
            return f"{op}({text(x)}, {text(y)})"
        case Where(condition, x, y):
            return f"where({text(condition)}, {text(x)}, {text(y)})"
        case Chosen(flag, x, y):
            inner = f"{text(x, 1)} if {flag} else {text(y, 1)}"
            return f"({inner})" if outer else inner
        case Cast(x, dtype):
            return f"{dtype}({text(x)})"
        case Resized(x, shape):
            return f"{text(x, TIGHT)} as [{', '.join(map(str, shape))}]"
        case Dithered(x, dtype, token, value, place):
            return f"dithered({text(x)}, {dtype}, {text(token)}, {text(value)}, {text(place)})"
        case Expand(x, axis):
            return f"{text(x, TIGHT)}[{'None, :' if axis == 0 else ':, None'}]"
        case Head(heads, member):
            return f"head of {heads}" + (f" for {text(member)}" if member is not None else "")
        case Full(shape, value, dtype):
            return f"full([{', '.join(map(str, shape))}], {value!r}, {dtype})"
        case Transpose(x):
            return f"{x.name}.T"
        case Dot(x, y, among, right):
            side = " on the right" if right else ""
            return f"{text(x)} @ {text(y)}" + (f" among {text(among)}{side}" if among is not None else "")
        case Doubt(x):
            return f"doubt({x.name})"
        case Sum(x, axis):
            return f"sum({x.name}, axis={axis})"
        case Max(x, axis):
            return f"max({x.name}, axis={axis})"
        case RunningSum(x):
            return f"running_sum({x.name})"
        case Load(tensor, index, dtype, fill):
            other = f", fill={fill!r}" if fill else ""
            return f"load {tensor}[{', '.join(map(text, index))}] as {dtype}{other}"
        case Columns(x, index, extent, fill, transposed, weight):
            factor = f" * {weight.name}[None, :]" if weight else ""
            gathered = f"columns({x.name}, {index.name} < {extent}, fill={fill!r}){factor}"
            return f"({gathered}).T" if transposed else gathered
        case Exchanged(x, exchange, transposed):
            return f"exchanged({x.name}, {exchange.name}){'.T' if transposed else ''}"
        case _:
            raise TypeError(f"no text for {type(expr).__name__}")
