"""Print scheduled programs as PyTorch: batch axes become leading dimensions, other grid axes loops."""

from __future__ import annotations

from collections.abc import Mapping

from ..ir.check import Type, infer, right_side
from ..ir.flags import Chosen, Only
from ..ir.host import TOKENS
from ..ir.nodes import (
    ACC,
    INDEX,
    IO,
    OPERAND,
    STATE,
    WIDE,
    Add,
    Binary,
    Cast,
    Columns,
    Comment,
    Const,
    Dim,
    Dithered,
    Dot,
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
from ..ir.printer import PRECEDENCE, SYMBOLS, TIGHT
from ..ir.program import ALL_HEADS, GROUPED, HAS_SLOT, HEADS, Axis, Tensor
from ..ir.resized import Resized
from ..lower.ragged import RAGGED
from .bounds import Bounds
from .host import emit_passes, emit_schedule, host_helpers, used_helpers
from .layer import ScheduledKernel, ScheduledLayer, ScheduledProgram
from .writer import Writer, header

FUNCTIONS = {
    "exp": "torch.exp",
    "exp2": "torch.exp2",
    "expm1": "torch.expm1",
    "log": "torch.log",
    "log2": "torch.log2",
    "log1p": "torch.log1p",
    "sqrt": "torch.sqrt",
    "abs": "torch.abs",
    "tanh": "torch.tanh",
    "sigmoid": "torch.sigmoid",
    "sin": "torch.sin",
    "cos": "torch.cos",
    "erf": "torch.erf",
    "erfc": "torch.erfc",
}
HELPERS = (
    "columns",
    "cut",
    "dithered",
    "entries",
    "has_slots",
    "heads_of",
    "if_positive",
    "indices",
    "load",
    "maximum",
    "minimum",
    "product",
    "put_back",
    "span",
    "store",
    "where",
    "widen",
)
"""What functions may call of `based_ops.support.tiles`."""


def emit(layer: ScheduledLayer) -> str:
    """The torch module of a layer."""
    body = Writer()
    emit_schedule(
        body,
        layer,
        layer.programs,
        lambda scheduled, dtype: [
            f"{name}={value}" for name, value in scheduled.schedule.settings[dtype].constants.items()
        ],
    )
    for scheduled in layer.programs:
        body.blank(2)
        _Function(body, scheduled).emit()
    body.blank(2)
    emit_passes(body, layer, _launch)

    w = Writer()
    header(w, layer.spec.origin, "torch", f"{layer.spec.name} as batched PyTorch expressions.")
    w.line("import torch")
    w.blank()
    if called := used_helpers(body.text(), host_helpers(layer)):
        w.line(f"from based_ops.support.host import {called}")
    used = [name for name in HELPERS if f"{name}(" in body.text().replace("torch.where", "")]
    w.line(f"from based_ops.support.tiles import {', '.join(used)}")
    w.blank()
    return w.text() + "\n" + body.text()


def _launch(w: Writer, scheduled: ScheduledKernel, arguments: Mapping[str, str], settings: str) -> None:
    w.call(f"{scheduled.kernel.name}(", [*arguments.values(), f"**{settings}"])


class _Function:
    """Prints one program as a Python function."""

    def __init__(self, w: Writer, scheduled: ScheduledProgram) -> None:
        self.w, self.scheduled, self.program, self.types = w, scheduled, scheduled.program, scheduled.types
        self.bounds = Bounds(scheduled.program, scheduled.schedule)
        self.like = next(t.name for t in self.program.tensors if t.optional is None)

    def emit(self) -> None:
        program, w = self.program, self.w
        w.call(
            f"def {program.name}(",
            [
                *(t.name for t in program.tensors),
                *program.sizes,
                *program.scalars,
                *program.flags,
                *program.constants,
            ],
            "):",
        )
        with w.indented():
            w.line(f'"""{program.summary}"""')
            w.line(f"acc = torch.float64 if {self.like}.dtype == torch.float64 else torch.float32")
            self._cut_tiles()
            pooled = [tensor for tensor in program.tensors if tensor.slots]
            if pooled:
                self._take(pooled)
            indices = {tensor.slots for tensor in pooled}
            for tensor in program.tensors:
                if tensor.name in indices:
                    continue
                first, rest = self._batch_first(tensor)
                order, text = first + rest, tensor.name
                if order != sorted(order):
                    text += f".permute({', '.join(map(str, order))})"
                if 0 < len(first) < len(program.batch):  # its axes meet those of the tiles by their places
                    places = (":" if extent in tensor.dims else "None" for extent in program.batch.values())
                    text += f"[{', '.join(places)}]"
                if text != tensor.name:
                    guard = f" if {tensor.optional} else None" if tensor.optional else ""
                    w.line(f"{tensor.name} = {text}{guard}")
            self._loops([axis for axis in program.grid if not axis.batch])
            if pooled:
                w.line(f"if {self._indices(pooled).optional}:")
                with w.indented():
                    w.line(f"put_back(pools, {pooled[0].slots}, taken)")

    def _take(self, pooled: list[Tensor]) -> None:
        """Tensors in slots as tensors of the batch, which are put back at the end."""
        w, indices, names = self.w, self._indices(pooled), ", ".join(tensor.name for tensor in pooled)
        comma = "," if len(pooled) == 1 else ""
        w.line(f"if {indices.optional}:")
        with w.indented():
            w.line(f"{HAS_SLOT} = has_slots({pooled[0].name}, {indices.name}, {len(self.program.batch)})")
            w.line(f"pools = {names}{comma}")
            w.line(f"{names}{comma} = taken = entries(pools, {indices.name})")

    def _indices(self, pooled: list[Tensor]) -> Tensor:
        assert pooled[0].slots is not None
        return self.program.tensor(pooled[0].slots)

    def _cut_tiles(self) -> None:
        """Short calls have short tiles; but how many tokens others have must not change a sequence's bits."""
        tokens, ragged = {name.name for name in TOKENS}, RAGGED in self.program.flags
        always: dict[str, str] = {}
        alone: dict[str, str] = {}
        for size, extents in self.bounds.tiled().items():
            found = alone if ragged and tokens.intersection(extents) else always
            found[size] = f"cut({', '.join([size, *extents])})"
        if always:
            self.w.line(f"{', '.join(always)} = {', '.join(always.values())}")
        if alone:
            self.w.line(f"if not {RAGGED}:")
            with self.w.indented():
                self.w.line(f"{', '.join(alone)} = {', '.join(alone.values())}")

    def _batch_first(self, tensor: Tensor) -> tuple[list[int], list[int]]:
        """The dimensions along which the program is batched, and the others, told apart by their extents."""
        first = [tensor.dims.index(extent) for extent in self.program.batch.values() if extent in tensor.dims]
        return first, [i for i in range(len(tensor.dims)) if i not in first]

    def _loops(self, axes: list[Axis]) -> None:
        if not axes:
            self._block(self.program.body)
            return
        self.w.line(f"for {axes[0].name} in range({self.expr(axes[0].extent)}):")
        with self.w.indented():
            self._loops(axes[1:])

    # Statements

    def _block(self, body: tuple[Stmt, ...]) -> None:
        for stmt in body:
            self._statement(stmt)

    def _statement(self, stmt: Stmt) -> None:
        w = self.w
        match stmt:
            case Let(name, Span() as span):
                w.line(f"{name} = {self._span(span)}")
            case Let(name, value) | Set(name, value):
                w.line(f"{name} = {self._right_side(value)}")
            case Add(name, value):
                w.line(f"{name} = {name} + {self._align(value, self.types[name].shape, PRECEDENCE['mul'])}")
            case Store(tensor, index, value):
                heads = self._heads(tensor, index)
                w.call("store(", [tensor, self._index(tensor, index), self.expr(value), *heads])
            case For(var, start, stop, step, body, several=several, backwards=False):
                end = f"{self.expr(stop)} if {several} else 1" if several else self.expr(stop)
                w.line(f"for {var} in range({self.expr(start)}, {end}, {self.expr(step)}):")
                with w.indented():
                    self._block(body)
            case When(body=body, each=True):
                self._block(body)
            case When(condition, body):
                w.line(f"if {self.expr(condition)}:")
                with w.indented():
                    self._block(body)
            case Only(flag, condition):
                w.line(f"if {flag} and not ({self.expr(condition)}):")
                with w.indented():
                    w.line("continue")
            case Comment(words):
                w.line(f"# {words}")

    def _index(self, name: str, index: tuple[Expr, ...]) -> str:
        _, rest = self._batch_first(self.program.tensor(name))
        texts = [self._entry(index[i]) for i in rest]
        return f"({', '.join(texts)}{',' if len(texts) == 1 else ''})"

    def _heads(self, name: str, index: tuple[Expr, ...]) -> list[str]:
        """How an access is told which heads of a tensor go with those of the batch, if it has others."""
        tensor = self.program.tensor(name)
        return [f"heads={self.expr(index[tensor.dims.index(HEADS)])}"] if tensor.heads else []

    def _entry(self, entry: Expr) -> str:
        match entry:
            case Var(name):
                return name
            case Span():
                return self._span(entry)
            case _:
                return self.expr(entry)

    def _span(self, span: Span) -> str:
        end = "" if span.stop is None else f", {self.expr(span.stop)}"
        begin = "" if span.first in (None, Const(0)) else f", first={self.expr(span.first)}"
        return f"span({self.expr(span.start)}, {span.size}{end}{begin})"

    def _right_side(self, value: Expr) -> str:
        match value:
            case Load(tensor, index, dtype, fill):
                arguments = [tensor, self._index(tensor, index)]
                if dtype != INDEX:
                    arguments.append(_dtype(dtype))
                if fill:
                    arguments.append(f"fill={fill}")
                text = f"load({', '.join([*arguments, *self._heads(tensor, index)])})"
                kind = right_side(value, self.types, self.program)
                # What is no tile is a number of the host, which loops and slices want.
                return f"int({text})" if kind == Type(INDEX) else text
            case Dot(x, y, among, right) if among is not None:
                if right:
                    return f"product({_across(y)}, {_across(x)}, {self.expr(among)}).mT"
                return f"product({self.expr(x)}, {self.expr(y)}, {self.expr(among)})"
            case Dot(x, y):
                return f"{self.expr(x)} @ {self.expr(y)}"
            case Sum(x, axis):
                return f"{x.name}.sum({axis - len(self.types[x.name].shape)})"
            case Max(x, axis):
                return f"{x.name}.amax({axis - len(self.types[x.name].shape)})"
            case RunningSum(x):
                return f"{x.name}.cumsum(-1)"
            case Columns(x, index, extent, fill, transposed, weight):
                factor = f", {weight.name}" if weight else ""
                swapped = ".mT" if transposed else ""
                return f"columns({x.name}, {self.expr(index)}, {extent}, {fill}{factor}){swapped}"
            case _:
                return self.expr(value)

    # Expressions

    def _align(self, expr: Expr, shape: tuple[Dim, ...], outer: int = 0) -> str:
        """An operand; a batched scalar gets the trailing dimensions of the tiles it meets."""
        if isinstance(expr, Dot | Sum | Max | RunningSum):
            return self._right_side(expr)
        kind = infer(expr, self.types, self.program)
        if kind.batched and not kind.shape and shape:
            return f"widen({self.expr(expr)}, {len(shape)})"
        return self.expr(expr, outer)

    def expr(self, expr: Expr, outer: int = 0) -> str:
        match expr:
            case Const(value):
                return repr(value)
            case Var(name):
                return f"indices({name}, {self.like})" if name in self.bounds.spans else name
            case Span():
                return f"indices({self._span(expr)}, {self.like})"
            case Head(heads, member):
                among = "" if member is None else f", {ALL_HEADS}, {self.expr(member)}"
                return f"heads_of({GROUPED}, {self.like}, {HEADS}, {heads}{among})"
            case Unary("neg", x):
                return f"-{self.expr(x, TIGHT)}"
            case Unary(op, x):
                return f"{FUNCTIONS[op]}({self.expr(x)})"
            case Binary(op, x, y):
                return self._binary(op, x, y, outer)
            case Chosen(flag, x, y):
                inner = f"{self.expr(x, 1)} if {flag} else {self.expr(y, 1)}"
                return f"({inner})" if outer else inner
            case Where(condition, x, y):
                shape = infer(expr, self.types, self.program).shape
                arguments = ", ".join(self._align(part, shape) for part in (condition, x, y))
                return f"where({arguments}, acc)"
            case Cast(x, dtype) if dtype == INDEX:
                return f"{self.expr(x, TIGHT)}.long()"
            case Cast(x, dtype) if dtype in (IO, STATE) or (
                dtype != WIDE and infer(x, self.types, self.program).dtype in (ACC, OPERAND)
            ):
                return self.expr(
                    x, outer
                )  # operands are as wide as sums here, and a store converts by itself
            case Cast(x, dtype) if (kind := infer(x, self.types, self.program)).shape or kind.dtype == WIDE:
                return f"{self.expr(x, TIGHT)}.to({_dtype(dtype)})"
            case Cast(x, _):
                return f"float({self.expr(x)})"
            case Resized(x):
                return self.expr(x, outer)
            case Dithered(x, dtype, token, value, place):
                shape = infer(x, self.types, self.program).shape
                chance = [self._align(part, shape) for part in (token, value, place)]
                return f"dithered({', '.join([self.expr(x), f'torch.{dtype}', *chance])})"
            case Expand(x, axis):
                return f"{self.expr(x, TIGHT)}[..., {'None, :' if axis == 0 else 'None'}]"
            case Full(shape, value, dtype):
                extents = [*self.program.batch.values(), *map(str, shape)]
                comma = "," if len(extents) == 1 else ""
                return (
                    f"{self.like}.new_full(({', '.join(extents)}{comma}), {value!r}, dtype={_dtype(dtype)})"
                )
            case Transpose(x):
                return f"{x.name}.mT"
            case _:
                raise TypeError(f"no PyTorch for {type(expr).__name__}")

    def _binary(self, op: str, x: Expr, y: Expr, outer: int) -> str:
        kind = infer(Binary(op, x, y), self.types, self.program)
        if op in ("min", "max", "min_or_nan", "max_or_nan"):  # PyTorch's give NaN
            plain = not kind.shape and not kind.batched
            name = op[:3] if plain else f"{op[:3]}imum"
            if isinstance(x, Const) and not plain:
                x, y = y, x
            return f"{name}({self._align(x, kind.shape)}, {self._align(y, kind.shape)})"
        if op == "if_positive":
            return f"if_positive({self._align(x, kind.shape)}, {self._align(y, kind.shape)})"
        if op == "cdiv":
            return f"cdiv({self.expr(x)}, {self.expr(y)})"
        level = PRECEDENCE[op]
        inside = PRECEDENCE["add"] if level <= PRECEDENCE["lt"] else level
        left, right = self._align(x, kind.shape, inside), self._align(y, kind.shape, max(inside, level + 1))
        inner = f"{left} {SYMBOLS[op]} {right}"
        return f"({inner})" if level < outer else inner


def _across(side: Var | Transpose) -> str:
    """One side of a product, with its axes swapped."""
    return side.x.name if isinstance(side, Transpose) else f"{side.name}.mT"


def _dtype(role: str) -> str:
    """Sums of which only differences matter are in float64 whatever the inputs are."""
    return "torch.float64" if role == WIDE else "acc"
