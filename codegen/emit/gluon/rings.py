"""Rings of shared tiles: what rounds of a loop over tokens copy ahead, and what they keep of earlier ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...ir.nodes import IO, Binary, Const, Dim, Expr, For, Let, Load, Span, Stmt, Var
from ..writer import Writer
from .steps import Steps

if TYPE_CHECKING:
    from .kernel import GluonKernel

SLOT, KEPT_SLOT = "slot", "kept_slot"
"""The places of a round's tiles in their rings: of what is gone after it, and of what is kept."""
LIMIT = "limit"
"""One past the last row that is copied, where a loop goes on for a round after its segment."""


class Rings:
    """Those of one kernel."""

    def __init__(self, kernel: GluonKernel, loop: For, steps: Steps, body: Sequence[Stmt]) -> None:
        self.kernel, self.loop, self.steps = kernel, loop, steps
        self.layouts, self.spelling = kernel.layouts, kernel.spelling
        plan = kernel.plan
        loads = {s.name: s.value for s in body if isinstance(s, Let) and isinstance(s.value, Load)}
        tensors = [tensor.name for tensor in kernel.program.tensors]
        ahead = sorted(loads.keys() & {*plan.ahead}, key=lambda name: tensors.index(loads[name].tensor))
        self.ahead = {name: loads[name] for name in ahead}
        """What is copied ahead, tensor by tensor."""
        if filled := [name for name, load in self.ahead.items() if load.fill != 0.0]:
            raise TypeError(f"copies fill with zeros, and not as {', '.join(filled)} does")
        self.kept = {name: self._kept(load) for name, load in loads.items() if name in plan.kept}
        """The rings of tiles that earlier rounds have copied, and how many rounds ago."""
        self.longest = max((back for _, back in self.kept.values()), default=0)

    # Before the loop

    def memory(self) -> list[str]:
        """The tiles."""
        lines = []
        for name, load in self.ahead.items():
            dtype = "IO" if self.kernel.program.tensor(load.tensor).dtype == IO else "gl.bfloat16"
            slots = _stages(self.longest if self._keeps(name) else 0)
            lines.append(f"{name}_ahead = {self.allocate(dtype, self.kernel.types[name].shape, slots)}")
        return lines

    def first_copies(self, w: Writer) -> None:
        """Begin to copy what the first rounds read."""
        if self.longest:
            rings = [name for name in self.ahead if self._keeps(name)]
            (earliest,) = {self._earliest(self.ahead[name]) for name in rings}
            w.line(f"earliest = {earliest}")
            w.line(f"for i in gl.static_range({self.longest}):")
            with w.indented():
                w.line(f"t = start + (i - {self.longest}) * {self.step}")
                for name in rings:
                    w.line(f"fetch_existing({self._rows_of(name, 'i', 't', 'earliest')})")
        w.line("for i in gl.static_range(STAGES - 1):")
        with w.indented():
            first, further = ("last", "-") if self.loop.backwards else ("start", "+")
            w.line(f"t = {first} {further} i * {self.step}")
            self._fetch(w, "i", f"i + {self.longest}", "t")

    def begin(self, w: Writer) -> None:
        """The places of the first round."""
        w.line(f"{SLOT} = 0")
        if self.longest:
            w.line(f"{KEPT_SLOT} = {self.longest}")

    # Inside

    def places_before(self, w: Writer) -> None:
        """The places of what was copied in earlier rounds: of what is read, and of what makes room."""
        read = {back for _, back in self.kept.values()}
        for rounds in sorted(read | {self.longest + 1} if read else ()):
            past = f"{KEPT_SLOT} + {_stages(self.longest - rounds)}"
            found = f"gl.where({KEPT_SLOT} < {rounds}, {past}, {KEPT_SLOT} - {rounds})"
            w.line(f"{_before(rounds)} = {found}")

    def tile(self, name: str) -> str:
        """The tile that a load of a round names."""
        if name in self.kept:
            ring, back = self.kept[name]
            return f"{ring}_ahead.index({_before(back)})"
        return f"{name}_ahead.index({KEPT_SLOT if self._keeps(name) else SLOT})"

    def fetch_ahead(self, w: Writer) -> None:
        """Begin to copy what a later round reads."""
        further = "-" if self.loop.backwards else "+"
        w.line(f"ahead = {self.loop.var} {further} (STAGES - 1) * {self.step}")
        w.line(f"free = gl.where({SLOT} == 0, STAGES - 1, {SLOT} - 1)")
        self._fetch(w, "free", _before(self.longest + 1), "ahead")

    def advance(self, w: Writer) -> None:
        """The places of the next round."""
        w.line(f"{SLOT} = gl.where({SLOT} == STAGES - 1, 0, {SLOT} + 1)")
        if self.longest:
            last = _stages(self.longest - 1)
            w.line(f"{KEPT_SLOT} = gl.where({KEPT_SLOT} == {last}, 0, {KEPT_SLOT} + 1)")

    # Rows of tensors

    def allocate(self, dtype: str, shape: tuple[Dim, ...], *times: str) -> str:
        """A shared tile, or several."""
        numbers = len(shape) == 1
        layout = self.layouts.numbers() if numbers else self.layouts.shared(self.kernel.size(shape[1]))
        dtype = "gl.float32" if numbers else dtype
        return f"gl.allocate_shared_memory({dtype}, [{', '.join(map(str, (*times, *shape)))}], {layout})"

    @property
    def step(self) -> str:
        """How far it is from one round to the next."""
        return self.spelling.scalar(self.loop.step)

    def rows(self, tensor: str, index: tuple[Expr, ...]) -> str:
        """The variable that says where a tensor's rows begin."""
        self.steps.rows[tensor] = self.steps.addresses.first(tensor, index)
        return f"{tensor}_from"

    def place(self, tensor: str, index: tuple[Expr, ...], name: str, t: str, limit: str) -> str:
        """Where the rows of a tile lie from a token on, up to which one, as functions of tiles take it."""
        stride = self.steps.addresses.stride(tensor, self.steps.addresses.tiles(index)[0])
        layout = self.layouts.rows(self.kernel.size(self.kernel.types[name].shape[1]))
        columns = self._columns(tensor, index[-1])
        return f"{self.rows(tensor, index)}, {t}, {stride}, {limit}, {columns}, {layout}"

    def limit(self, index: tuple[Expr, ...]) -> str:
        """One past the last row of a tile that there is, or that is a program's own."""
        match self.loop.stop:
            case Binary("add", last, step) if step == self.loop.step:
                return self.spelling.scalar(last) if self.span(index).stop == last else LIMIT
        return "stop"

    def bounds(self) -> list[str]:
        """That limit, of a loop that goes on for a round after its segment."""
        limited = [load.index for load in self.ahead.values() if self.limit(load.index) == LIMIT]
        ends = {end for index in limited if (end := self.span(index).stop) is not None}
        return [f"{LIMIT} = gl.minimum(stop, {self.spelling.scalar(end)})" for end in ends]

    def _fetch(self, w: Writer, slot: str, kept_slot: str, t: str) -> None:
        if self.loop.backwards:  # there is nothing before the first
            w.line(f"end = gl.where({t} < start, {t}, stop)")
        for name, load in self.ahead.items():
            stop = "end" if self.loop.backwards else self.limit(load.index)
            if len(self.kernel.types[name].shape) == 1:
                tokens = self.steps.addresses.tiles(load.index)[0]
                where = self.rows(load.tensor, load.index)
                stride = self.steps.addresses.stride(load.tensor, tokens)
                tile, layout = f"{name}_ahead.index({slot})", self.layouts.copied()
                w.line(f"fetch_apart({tile}, {where}, {t}, {stride}, {stop}, {layout})")
                continue
            own = kept_slot if self._keeps(name) else slot
            w.line(f"fetch({self._rows_of(name, own, t, stop)})")
        w.line("async_copy.commit_group()")

    def _rows_of(self, name: str, slot: str, t: str, limit: str) -> str:
        load = self.ahead[name]
        return f"{name}_ahead.index({slot}), {self.place(load.tensor, load.index, name, t, limit)}"

    def _kept(self, load: Load) -> tuple[str, int]:
        """The ring that has a tile of an earlier round, and how many rounds ago it was copied."""
        start = self.span(load.index).start
        for name, own in self.ahead.items():
            first, step = self.span(own.index).start, self.loop.step
            if own.tensor == load.tensor:
                match start:
                    case Binary("sub", begin, length) if (begin, length) == (first, step):
                        return name, 1
                    case Binary("sub", begin, Binary("mul", Const(int(back)), length)):
                        if (begin, length) == (first, step):
                            return name, back
        raise TypeError(f"no round copies {load}")

    def _keeps(self, name: str) -> bool:
        """Whether the tiles of a ring are read in later rounds too."""
        return any(ring == name for ring, _ in self.kept.values())

    def _earliest(self, load: Load) -> str:
        """The first token that a tensor's rows have, counted from where the rows of queries begin."""
        span = self.span(load.index)
        behind = self.steps.addresses.behind_token(span.start)
        assert behind is not None
        first = Const(0) if span.first is None else span.first
        return self.spelling.scalar(first if behind == Const(0) else first - behind)

    def span(self, index: tuple[Expr, ...]) -> Span:
        """The tokens of a tile."""
        entry = index[self.steps.addresses.tiles(index)[0]]
        assert isinstance(entry, Var)
        return self.spelling.spans[entry.name]

    def _columns(self, tensor: str, entry: Expr) -> str:
        """How many columns of a tile there are."""
        assert isinstance(entry, Var)
        span, extent = self.spelling.spans[entry.name], self.kernel.program.tensor(tensor).dims[-1]
        if self.spelling.bounds.inside(entry, extent):
            return str(span.size)
        start = self.spelling.scalar(span.start)
        return str(extent) if start == "0" else f"{extent} - {start}"


def _stages(more: int) -> str:
    """As many tiles as are copied ahead, and some more or less."""
    return f"STAGES {'+' if more > 0 else '-'} {abs(more)}" if more else "STAGES"


def _before(rounds: int) -> str:
    """A variable with the place of what was copied so many rounds ago."""
    return f"{KEPT_SLOT}_before_{rounds}"
