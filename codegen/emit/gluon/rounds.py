"""The loop over tokens: what is copied ahead, when products see what, and where they are waited for."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import groupby
from typing import TYPE_CHECKING, TypeGuard

from ...ir.check import walk
from ...ir.exchange import Exchanged
from ...ir.fuse import expressions, rebuilt
from ...ir.nodes import (
    ACC,
    Add,
    Binary,
    Cast,
    Expand,
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
from .rings import SLOT, Rings
from .steps import Steps
from .transfers import stored

if TYPE_CHECKING:
    from .kernel import GluonKernel


NOWHERE = ""
"""The layout of a vector that no registers hold."""


class Rounds:
    """Prints the loop of one kernel."""

    def __init__(self, kernel: GluonKernel, loop: For, steps: Steps) -> None:
        self.kernel, self.loop, self.steps = kernel, loop, steps
        self.plan, self.layouts, self.spelling = kernel.plan, kernel.layouts, kernel.spelling
        self.body = [stmt for stmt in loop.body if not self._is_tile(stmt)]
        self.rings = Rings(kernel, loop, steps, self.body)
        self.through = dict(self.plan.through)
        self.machine = kernel.machine(steps, self.body)
        self.rows: list[Store] = []
        """Stores of rows that are in shared tiles, and not written yet."""
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
            step = self.rings.step
            lines.append(f"last = start + (gl.cdiv(stop - start, {step}) - 1) * {step}")
        self.spelling.names |= {self.loop.start: Var("start"), self.loop.stop: Var("stop")}
        return [*lines, *self.rings.bounds()]

    def memory(self) -> list[str]:
        """Shared tiles: rings of what is copied ahead, operands that rounds store, results on their way."""
        element = next(t.name for t in self.kernel.kernel.tensors if t.strided)
        lines = [f"IO: gl.constexpr = {element}.dtype.element_ty", *self.rings.memory()]
        elsewhere = {*self.through, *self.plan.shared}
        for stmt in self.body:
            if isinstance(stmt, Let) and stmt.name in self.plan.shared and not isinstance(stmt.value, Load):
                dims = self.kernel.types[stmt.name].shape
                dims = dims[::-1] if stmt.name in self.plan.turned else dims
                hidden = stmt.name in self.plan.hidden
                tile = self.rings.allocate(self.kernel.operands, dims, *("1",) * hidden)
                lines.append(f"{stmt.name}{'_memory' * hidden} = {tile}")
            if self._of_rows(stmt) and not {stmt.tensor, stored(stmt.value)} & elsewhere:
                dims = self.kernel.types[stored(stmt.value)].shape
                lines.append(f"{stmt.tensor}_tile = {self.rings.allocate('IO', dims)}")
        return lines

    def first_copies(self) -> list[str]:
        """Begin to copy the first rounds' tokens."""
        w = Writer()
        for tensor in self.kernel.program.tensors:
            if where := self.steps.rows.get(tensor.name):
                w.line(f"{tensor.name}_from = {where}")
        self.rings.first_copies(w)
        return w.text().splitlines()

    def masks(self) -> list[str]:
        """Shared tiles of masks of pairs, which are the same in each round."""
        lines = []
        for stmt in self.body:
            if isinstance(stmt, Let) and stmt.name in self.plan.bits:
                name, columns = stmt.name, self.kernel.size(self.kernel.types[stmt.name].shape[1])
                seen = self.spelling.matrix(stmt.value, self.layouts.sums(columns), False)
                tile = self.rings.allocate("gl.int16", self.kernel.types[name].shape).removesuffix(")")
                lines.append(f"{name} = gl.where({seen}, -1, 0).to(gl.int16)")
                lines.append(f"{name}_bits = {tile}, {name})")
        return lines

    # Inside

    def text(self) -> list[str]:
        """The loop."""
        w, machine = self.w, self.machine
        touched = [machine.touched(place) for place in range(len(self.body))]
        shown = shown_after(touched, self.rings.ahead.keys() & {*self.plan.shared})
        last = max(i for i, stmt in enumerate(self.body) if self.steps.issues(stmt))
        self.rings.begin(w)
        var = "back" if self.loop.backwards else self.loop.var
        w.line(f"for {var} in range(start, stop, {self.rings.step}):")
        with w.indented():
            if self.loop.backwards:
                w.line(f"{self.loop.var} = last - (back - start)")
            w.line("async_copy.wait_group(STAGES - 2)")
            if -1 in shown:
                w.line("fence_async_shared()")
            w.line("barrier()  # this round has arrived, and all warps are done with the one before it")
            self.rings.places_before(w)
            self._copy("arrived")
            self._hide()
            for place, stmt in enumerate(self.body):
                begun = self._begun_at(place)
                for step in begun:
                    machine.before(w, step)
                if any(getattr(self.body[step], "tensor", None) in self.through for step in begun):
                    w.line("barrier()  # all warps have multiplied what is overwritten now")
                self._step_text(stmt)
                machine.after(w, place)
                if self._of_rows(stmt) and not any(map(self._of_rows, self.body[place + 1 : place + 2])):
                    self._write_rows()
                if place in shown:
                    if shown[place] & {*self.plan.shared}:
                        w.line("fence_async_shared()")
                    w.line("barrier()  # products see what has been stored")
                    self._copy("shown", max(shown) == place)
                    w.blank()
                if place == last:
                    self._copy("in_flight")
            machine.before(w, len(self.body))
            self.rings.advance(w)
        w.line("async_copy.wait_group(0)")
        return w.text().splitlines()

    def _begun_at(self, place: int) -> range:
        """The steps that begin with one: it alone, or all whose rows are written at once with its own."""
        rows = [*map(self._of_rows, self.body), False]
        if rows[place] and place and rows[place - 1]:
            return range(0)
        return range(place, rows.index(False, place) if rows[place] else place + 1)

    def _step_text(self, stmt: Stmt) -> None:
        w = self.w
        match stmt:
            case Let(name, Load() as load) if name in self.rings.ahead:
                self._arrived(name, load)
            case Let(name, Load()) if name in self.rings.kept:
                w.line(f"{name} = {self.rings.tile(name)}")
                self.spelling.operands[name] = name, ()  # who calculates with it reads it again
            case Let(name, Load(tensor, index, dtype)) if name in self.plan.by_rows:
                like = next(x for x in self.rings.ahead if self._alike(x, name))
                place = self.rings.place(tensor, index, name, self.loop.var, self.rings.limit(index))
                widened = ".to(gl.float32)" if dtype == ACC else ""
                w.line(f"{name} = read({like}_ahead.index(0), {place}){widened}")
            case Let(name, Load() as load):
                (size,) = self.kernel.types[name].shape
                if not self.steps.meets_a_tile(name):
                    self.spelling.vectors[name] = self.layouts.tokens(self.kernel.size(size))
                pointer, mask = self._numbers_at(name, load.tensor, load.index)
                w.line(f"{name} = gl.load({pointer}, mask={mask}, other={load.fill!r})")
            case Store(tensor, _, value) if self._of_rows(stmt):
                if stored(value) not in self.plan.shared:
                    w.line(f"{self._tile_of(tensor)}.store({stored(value)}.to(IO))")
                self.rows.append(stmt)
            case Store(tensor, index, value):
                pointer, mask = self._numbers_at(stored(value), tensor, index)
                w.line(f"gl.store({pointer}, {stored(value)}, mask={mask})")
            case Let() | Add() if self.steps.issues(stmt):
                w.line(self.machine.product(stmt, *self.steps.sides(stmt)))
            case Let(name, _) if name in self.plan.bits:
                pass
            case Let(name, Cast() as value) if name in self.plan.left:
                self._left(name, value)
            case Let(name, Where(Var(mask), Cast() as value, _)) if mask in self.plan.bits:
                self._left(name, value)
                layout = self.layouts.left(self.steps.columns(name))
                w.line(f"{name} = where_bits({name}, {mask}_bits.load({layout}))")
            case Let(name, Where() as value) if name in self.plan.left:
                self._to_left(name, self.spelling.matrix(value, self.steps.home(name), False))
            case Let(name, Exchanged() as value) if name in self.plan.left:
                w.line(f"{name} = {self.steps.exchanged(value)}")
            case _:
                self.steps.inside(w, stmt)

    def _write_rows(self) -> None:
        """Write the rows that have been stored in shared tiles."""
        w = self.w
        if any(stored(stmt.value) not in self.plan.shared for stmt in self.rows):
            w.line("barrier()")
        token = Var(self.loop.var)
        for start, stores in groupby(self.rows, lambda stmt: self.rings.span(stmt.index).start):
            if start != token:  # an earlier round's, in the first another program's
                w.line(f"if {token.name} > start:")
            with w.indented() if start != token else nullcontext():
                for stmt in stores:
                    name, limit = stored(stmt.value), self.rings.limit(stmt.index)
                    t = self.spelling.scalar(start)
                    place = self.rings.place(stmt.tensor, stmt.index, name, t, limit)
                    tile = name if name in self.plan.shared else self._tile_of(stmt.tensor)
                    w.line(f"write({tile}, {place})")
        self.rows.clear()

    def _tile_of(self, tensor: str) -> str:
        """The shared tile through which rows of a tensor are stored."""
        if tensor not in self.through:
            return f"{tensor}_tile"
        tile = self.through[tensor]
        return tile if self.kernel.operands == "IO" else f"as_dtype({tile}, IO)"

    def _alike(self, name: str, other: str) -> bool:
        return self.kernel.types[name].shape == self.kernel.types[other].shape

    def _numbers_at(self, name: str, tensor: str, index: tuple[Expr, ...]) -> tuple[str, str]:
        """The pointers of one number a token, and the mask of those that there are."""
        self.rings.rows(tensor, index)
        pointer, mask = self.steps.vector_at(name, tensor, index)
        return pointer.replace(self.steps.rows[tensor], f"{tensor}_from"), mask

    def _left(self, name: str, value: Cast) -> None:
        """What a product reads on its left."""
        self._to_left(name, self.steps.rounded(value, name))

    def _to_left(self, name: str, text: str) -> None:
        for line in self.machine.left(name, text):
            self.w.line(line)

    def _arrived(self, name: str, load: Load) -> None:
        """A tile of this round's tokens."""
        w, tile, shape = self.w, self.rings.tile(name), self.kernel.types[name].shape
        if len(shape) == 1:
            self.spelling.rings[name], self.spelling.vectors[name] = tile, NOWHERE
            if self._stands_alone(name):
                self.spelling.vectors[name] = layout = self.layouts.tokens(self.kernel.size(shape[0]))
                w.line(f"{name} = {tile}.load({layout})")
            return
        columns = self.kernel.size(shape[1])
        if load.dtype == ACC:
            loaded = f"{tile}.load({self.layouts.sums(columns)})"
            converted = name in self.plan.converted
            w.line(f"{name} = {f'{loaded}.to(gl.float32)' if converted else f'in_float32({loaded})'}")
            return
        w.line(f"{name} = {tile}")
        if not self.steps.converts(load):
            if self._calculated_with(name):
                self.spelling.operands[name] = name, ()
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
        if names := [name for name in self.plan.hidden if name not in self.rings.ahead]:
            self.w.line(
                f"zero = gl.where({SLOT} == STAGES, 1, 0)  # 0, but of that the compiler knows nothing"
            )
            for name in names:
                self.w.line(f"{name} = {name}_memory.index(zero)")

    def _stands_alone(self, name: str) -> bool:
        """Whether a vector is read elsewhere than along a tile, where it is read from its ring."""

        def read(expr: Expr) -> bool:
            parts = [part for part in vars(expr).values() if isinstance(part, Expr)]
            return expr == Var(name) or not isinstance(expr, Expand) and any(map(read, parts))

        return any(read(expr) for stmt in self.body for expr in expressions(stmt))

    def _calculated_with(self, name: str) -> bool:
        """Whether a tile for products is also widened to be calculated with."""
        widened = Cast(Var(name), ACC)
        return any(widened in walk(expr) for stmt in self.body for expr in expressions(stmt))

    def _copy(self, place: str, here: bool = True) -> None:
        """Begin to copy a later round's tokens, if the order says that it is now."""
        if self.kernel.copies == place and here:
            self.rings.fetch_ahead(self.w)

    def _of_rows(self, stmt: Stmt) -> TypeGuard[Store]:
        return isinstance(stmt, Store) and len(self.steps.addresses.tiles(stmt.index)) == 2


def _put(expr: Expr, what: Expr, name: Var) -> Expr:
    """An expression with a name for a part of it."""
    return name if expr == what else rebuilt(expr, lambda part: _put(part, what, name))
