"""The loop over tokens: what is copied ahead, when products see what, and where they are waited for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...ir.check import walk
from ...ir.exchange import Exchanged
from ...ir.fuse import expressions, rebuilt
from ...ir.nodes import (
    ACC,
    IO,
    Add,
    Binary,
    Cast,
    Dim,
    Expr,
    For,
    Let,
    Load,
    Span,
    Stmt,
    Store,
    Var,
    Where,
)
from ...lower.ragged import under
from ..writer import Writer
from .flight import shown_after
from .steps import Steps
from .transfers import stored

if TYPE_CHECKING:
    from .kernel import GluonKernel

SLOT = "slot"


class Rounds:
    """Prints the loop of one kernel."""

    def __init__(self, kernel: GluonKernel, loop: For, steps: Steps) -> None:
        self.kernel, self.loop, self.steps = kernel, loop, steps
        self.plan, self.layouts, self.spelling = kernel.plan, kernel.layouts, kernel.spelling
        self.body = [stmt for stmt in loop.body if not self._is_tile(stmt)]
        loads = {
            s.name: s.value
            for s in self.body
            if isinstance(s, Let) and isinstance(s.value, Load) and s.name in self.plan.ahead
        }
        tensors = [tensor.name for tensor in kernel.program.tensors]
        self.ahead = dict(sorted(loads.items(), key=lambda load: tensors.index(load[1].tensor)))
        self.machine = kernel.machine(steps, self.body)
        self.w = Writer()

    def _is_tile(self, stmt: Stmt) -> bool:
        """An index tile: what it is says its statement, and nothing is printed."""
        if not isinstance(stmt, Let) or not isinstance(stmt.value, Span):
            return False
        self.spelling.spans[stmt.name] = stmt.value
        end = under(self.loop.stop, False)
        last = end.y if isinstance(end, Binary) and end.op == "min" else end
        self.spelling.ends[Var(self.loop.var)] = (last, Var("stop"))
        return True

    # Before the loop

    def bounds(self) -> list[str]:
        """The first token of the loop and one past its last."""
        start, stop = self.loop.start, _put(self.loop.stop, self.loop.start, Var("start"))
        ends = {"start": start, "stop": stop}
        lines = [f"{name} = {self.spelling.scalar(end)}" for name, end in ends.items() if end != Var(name)]
        if self.loop.backwards:
            step = self._step()
            lines.append(f"last = start + (gl.cdiv(stop - start, {step}) - 1) * {step}")
        self.spelling.names |= {self.loop.start: Var("start"), self.loop.stop: Var("stop")}
        return lines

    def memory(self) -> list[str]:
        """Shared tiles: rings of what is copied ahead, operands that rounds store, results on their way."""
        element = next(t.name for t in self.kernel.kernel.tensors if t.strided)
        lines = [f"IO: gl.constexpr = {element}.dtype.element_ty"]
        for name in self.ahead:
            dtype = "IO" if self._converted(name) else "gl.bfloat16"
            lines.append(f"{name}_ahead = {self._allocate(dtype, self.kernel.types[name].shape, 'STAGES')}")
        for stmt in self.body:
            if isinstance(stmt, Let) and stmt.name in self.plan.shared and stmt.name not in self.ahead:
                dims = self.kernel.types[stmt.name].shape
                dims = dims[::-1] if stmt.name in self.plan.turned else dims
                if stmt.name in self.plan.hidden:
                    lines.append(f"{stmt.name}_memory = {self._allocate('gl.bfloat16', dims, '1')}")
                else:
                    lines.append(f"{stmt.name} = {self._allocate('gl.bfloat16', dims)}")
            if isinstance(stmt, Store) and self._of_rows(stmt):
                dims = self.kernel.types[stored(stmt.value)].shape
                lines.append(f"{stmt.tensor}_tile = {self._allocate('IO', dims)}")
        return lines

    def first_copies(self) -> list[str]:
        """Begin to copy the first rounds' tokens."""
        w = Writer()
        for tensor in self.kernel.program.tensors:
            if where := self.steps.rows.get(tensor.name):
                w.line(f"{tensor.name}_from = {where}")
        w.line("for i in gl.static_range(STAGES - 1):")
        with w.indented():
            first, further = ("last", "-") if self.loop.backwards else ("start", "+")
            w.line(f"t = {first} {further} i * {self._step()}")
            self._fetch(w, "i", "t")
        return w.text().splitlines()

    def masks(self) -> list[str]:
        """Shared tiles of masks of pairs, which are the same in each round."""
        lines = []
        for stmt in self.body:
            if isinstance(stmt, Let) and stmt.name in self.plan.bits:
                name, columns = stmt.name, self.kernel.size(self.kernel.types[stmt.name].shape[1])
                seen = self.spelling.matrix(stmt.value, self.layouts.sums(columns), False)
                tile = self._allocate("gl.int16", self.kernel.types[name].shape).removesuffix(")")
                lines.append(f"{name} = gl.where({seen}, -1, 0).to(gl.int16)")
                lines.append(f"{name}_bits = {tile}, {name})")
        return lines

    def _allocate(self, dtype: str, shape: tuple[Dim, ...], *times: str) -> str:
        numbers = len(shape) == 1
        layout = self.layouts.numbers() if numbers else self.layouts.shared(self.kernel.size(shape[1]))
        dtype = "gl.float32" if numbers else dtype
        return f"gl.allocate_shared_memory({dtype}, [{', '.join(map(str, (*times, *shape)))}], {layout})"

    def _step(self) -> str:
        return self.spelling.scalar(self.loop.step)

    # Inside

    def text(self) -> list[str]:
        """The loop."""
        w, machine = self.w, self.machine
        touched = [machine.touched(place) for place in range(len(self.body))]
        shown = shown_after(touched, {name for name in self.ahead if name in self.plan.shared})
        last = max(i for i, stmt in enumerate(self.body) if self.steps.issues(stmt))
        w.line(f"{SLOT} = 0")
        var = "back" if self.loop.backwards else self.loop.var
        w.line(f"for {var} in range(start, stop, {self._step()}):")
        with w.indented():
            if self.loop.backwards:
                w.line(f"{self.loop.var} = last - (back - start)")
            w.line("async_copy.wait_group(STAGES - 2)")
            w.line("barrier()  # this round has arrived, and all warps are done with the one before it")
            self._copy("arrived")
            self._hide()
            for place, stmt in enumerate(self.body):
                machine.before(w, place)
                self._step_text(stmt)
                machine.after(w, place)
                if place in shown:
                    if shown[place] & {*self.plan.shared}:
                        w.line("fence_async_shared()")
                    w.line("barrier()  # products see what has been stored")
                    self._copy("shown", max(shown) == place)
                    w.blank()
                if place == last:
                    self._copy("in_flight")
            machine.before(w, len(self.body))
            w.line(f"{SLOT} = gl.where({SLOT} == STAGES - 1, 0, {SLOT} + 1)")
        w.line("async_copy.wait_group(0)")
        return w.text().splitlines()

    def _step_text(self, stmt: Stmt) -> None:
        w = self.w
        match stmt:
            case Let(name, Load() as load) if name in self.ahead:
                self._arrived(name, load)
            case Let(name, Load() as load):
                (size,) = self.kernel.types[name].shape
                self.spelling.vectors[name] = self.layouts.tokens(self.kernel.size(size))
                pointer, mask = self._numbers_at(name, load.tensor, load.index)
                w.line(f"{name} = gl.load({pointer}, mask={mask}, other={load.fill!r})")
            case Store(tensor, index, _) if self._of_rows(stmt):
                name = stored(stmt.value)
                tile, columns = f"{tensor}_tile", index[-1]
                w.line(f"{tile}.store({name}.to(IO))")
                w.line("barrier()")
                where = self._rows(tensor, index)
                stride = self.steps.addresses.stride(tensor, 1)
                wide, layout = self._columns(tensor, columns), self._copied_by(name)
                w.line(f"write({tile}, {where}, {self.loop.var}, {stride}, stop, {wide}, {layout})")
            case Store(tensor, index, value):
                pointer, mask = self._numbers_at(stored(value), tensor, index)
                w.line(f"gl.store({pointer}, {stored(value)}, mask={mask})")
            case Let() | Add() if self.steps.issues(stmt):
                w.line(self.machine.product(stmt, *self.steps.sides(stmt)))
            case Let(name, _) if name in self.plan.bits:
                pass
            case Let(name, Cast() as value) if name in self.plan.left:
                self._left(name, value)
            case Let(name, Where(Var(mask), Cast() as value, _)) if name in self.plan.left:
                self._left(name, value)
                layout = self.layouts.left(self.steps.columns(name))
                w.line(f"{name} = where_bits({name}, {mask}_bits.load({layout}))")
            case Let(name, Exchanged() as value) if name in self.plan.left:
                w.line(f"{name} = {self.steps.exchanged(value)}")
            case _:
                self.steps.inside(w, stmt)

    def _numbers_at(self, name: str, tensor: str, index: tuple[Expr, ...]) -> tuple[str, str]:
        """The pointers of one number a token, and the mask of those that there are."""
        self._rows(tensor, index)
        pointer, mask = self.steps.vector_at(name, tensor, index)
        return pointer.replace(self.steps.rows[tensor], f"{tensor}_from"), mask

    def _left(self, name: str, value: Cast) -> None:
        """What a product reads on its left."""
        for line in self.machine.left(name, self.steps.rounded(value, name)):
            self.w.line(line)

    def _arrived(self, name: str, load: Load) -> None:
        """A tile of this round's tokens."""
        w, tile, shape = self.w, f"{name}_ahead.index({SLOT})", self.kernel.types[name].shape
        self._rows(load.tensor, load.index)
        if len(shape) == 1:
            self.spelling.vectors[name] = layout = self.layouts.tokens(self.kernel.size(shape[0]))
            w.line(f"{name} = {tile}.load({layout})")
            self.spelling.rings[name] = tile
            return
        columns = self.kernel.size(shape[1])
        if load.dtype == ACC:
            loaded = f"{tile}.load({self.layouts.sums(columns)})"
            converted = name in self.plan.converted
            w.line(f"{name} = {f'{loaded}.to(gl.float32)' if converted else f'in_float32({loaded})'}")
            return
        w.line(f"{name} = {tile}")
        if not self._converted(name):
            return
        layout, held = self.layouts.left(columns), "_"
        if name in self.plan.reread:
            self.spelling.operands[name] = name, ()
        elif self._calculated_with(name):
            layout, held = self.layouts.sums(columns), f"{name}_held"
        elif name in self.plan.left:
            held = f"{name}_held"
        if held != "_":
            self.spelling.operands[name] = held, (layout,)
        w.line("if IO == gl.float16:  # sums leave its range, so products are of bfloat16")
        with w.indented():
            w.line(f"{name}, {held} = in_bfloat16({name}, {layout})")
        if held != "_":
            w.line("else:")
            with w.indented():
                w.line(f"{held} = {name}.load({layout})")

    def _hide(self) -> None:
        """Let the addresses of tiles vary with the loop, as far as the compiler can know.

        Those that do not vary it keeps, and there are too many of them: spilled ones cost up to 30 %.
        """
        if names := [name for name in self.plan.hidden if name not in self.ahead]:
            self.w.line(
                f"zero = gl.where({SLOT} == STAGES, 1, 0)  # 0, but of that the compiler knows nothing"
            )
            for name in names:
                self.w.line(f"{name} = {name}_memory.index(zero)")

    def _converted(self, name: str) -> bool:
        """Whether a tile of a call's own dtype is copied."""
        tensor = self.kernel.program.tensor(self.ahead[name].tensor)
        return tensor.dtype == IO

    def _calculated_with(self, name: str) -> bool:
        """Whether a tile for products is also widened to be calculated with."""
        widened = Cast(Var(name), ACC)
        return any(widened in walk(expr) for stmt in self.body for expr in expressions(stmt))

    def _copy(self, place: str, here: bool = True) -> None:
        """Begin to copy a later round's tokens, if the order says that it is now."""
        if self.kernel.copies == place and here:
            w = self.w
            further = "-" if self.loop.backwards else "+"
            w.line(f"ahead = {self.loop.var} {further} (STAGES - 1) * {self._step()}")
            w.line(f"free = gl.where({SLOT} == 0, STAGES - 1, {SLOT} - 1)")
            self._fetch(w, "free", "ahead")

    def _fetch(self, w: Writer, slot: str, t: str) -> None:
        stop = "stop"
        if self.loop.backwards:  # there is nothing before the first
            w.line(f"end = gl.where({t} < start, {t}, stop)")
            stop = "end"
        for name, load in self.ahead.items():
            tokens = self.steps.addresses.tiles(load.index)[0]
            where, stride = (
                self._rows(load.tensor, load.index),
                self.steps.addresses.stride(load.tensor, tokens),
            )
            if len(self.kernel.types[name].shape) == 1:
                tile, layout = f"{name}_ahead.index({slot})", self.layouts.copied()
                w.line(f"fetch_apart({tile}, {where}, {t}, {stride}, {stop}, {layout})")
                continue
            columns = self._columns(load.tensor, load.index[-1])
            w.line(
                f"fetch({name}_ahead.index({slot}), {where}, {t}, {stride}, {stop}, {columns}, "
                f"{self._copied_by(name)})"
            )
        w.line("async_copy.commit_group()")

    def _copied_by(self, name: str) -> str:
        return self.layouts.rows(self.kernel.size(self.kernel.types[name].shape[1]))

    def _rows(self, tensor: str, index: tuple[Expr, ...]) -> str:
        """The variable that says where a tensor's rows begin."""
        self.steps.rows[tensor] = self.steps.addresses.first(tensor, index)
        return f"{tensor}_from"

    def _columns(self, tensor: str, entry: Expr) -> str:
        """How many columns of a tile there are."""
        assert isinstance(entry, Var)
        span, extent = self.spelling.spans[entry.name], self.kernel.program.tensor(tensor).dims[-1]
        if self.spelling.bounds.inside(entry, extent):
            return str(span.size)
        start = self.spelling.scalar(span.start)
        return str(extent) if start == "0" else f"{extent} - {start}"

    def _of_rows(self, stmt: Store) -> bool:
        return len(self.steps.addresses.tiles(stmt.index)) == 2


def _put(expr: Expr, what: Expr, name: Var) -> Expr:
    """An expression with a name for a part of it."""
    return name if expr == what else rebuilt(expr, lambda part: _put(part, what, name))
