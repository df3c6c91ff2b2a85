"""Which bounds checks an access needs, and which a schedule has made unnecessary."""

from __future__ import annotations

from ..ir.flags import Chosen
from ..ir.fuse import expressions, statements
from ..ir.nodes import Binary, Const, Dim, Expr, For, Let, Load, Span, Stmt, Store, Var, When, wrap
from ..ir.program import Program
from ..schedule.model import Schedule


class Bounds:
    """Knows the index tiles of one program and proves, where it can, that they stay inside a dimension."""

    def __init__(self, program: Program, schedule: Schedule) -> None:
        self._program, self._schedule = program, schedule
        self.spans: dict[str, Span] = {}
        self._steps: dict[str, str] = {}  # loop variables that count in whole tiles from 0
        self._stops = {axis.name: _tiled(axis.extent) for axis in program.grid}
        """Up to where loops go, and axes of so many tiles as cover it."""
        self._collect(program.body)

    def _collect(self, body: tuple[Stmt, ...]) -> None:
        for stmt in body:
            match stmt:
                case Let(name, Span() as span):
                    self.spans[name] = span
                case For(var, start, stop, step, inner):
                    if start == Const(0) and isinstance(step, Var):
                        self._steps[var] = step.name
                    self._stops[var] = stop
                    self._collect(inner)
                case When(_, inner):
                    self._collect(inner)

    def tiled(self) -> dict[str, list[str]]:
        """Constants that are sizes of tiles, each with the sizes of tensors that it tiles."""
        lengths: dict[str, set[str]] = {}
        for stmt in statements(self._program.body):
            for access in (stmt, *expressions(stmt)):
                if isinstance(access, Load | Store):
                    dims = self._program.tensor(access.tensor).dims
                    for entry, extent in zip(access.index, dims, strict=True):
                        span = self.span(entry)
                        if span is not None and isinstance(span.size, str) and isinstance(extent, str):
                            lengths.setdefault(span.size, set()).add(extent)
        return {size: sorted(lengths[size]) for size in self._program.constants if size in lengths}

    def span(self, index: Expr) -> Span | None:
        """The index tile behind an index expression, if it is a plain run of indices."""
        if isinstance(index, Var):
            return self.spans.get(index.name)
        return index if isinstance(index, Span) else None

    def inside(self, index: Expr, extent: Dim) -> bool:
        """Whether the index tile can never leave ``0 .. extent - 1``, whatever the dtype."""
        span = self.span(index)
        if span is None or not isinstance(extent, int):
            return False
        match span.start, span.size:
            case Const(int(start)), int(size) if start > 0:
                return start + size <= extent
        if not self._whole_tiles(span.start, span.size):
            return False
        stop = self._stop(span.start)
        if isinstance(stop, Const) and stop.value > extent:  # tiles of something wider
            return False
        sizes = {span.size} if isinstance(span.size, int) else self._schedule.values(span.size)
        return all(extent % size == 0 for size in sizes)

    def conditions(self, index: Expr, extent: Dim, outside_tensor: bool = True) -> list[Expr]:
        """What is true of the elements of an index tile that are inside, where that needs checking.

        Without `outside_tensor` only elements inside the tensor are asked about.
        """
        span = self.span(index)
        found: list[Expr] = []
        first, stop = (None, None) if span is None else (span.first, span.stop)
        # Where compilation chooses between an edge and that of the tensor, the first is never past it.
        begun = first if isinstance(first, Chosen) and first.y == Const(0) else None
        chosen = stop if isinstance(stop, Chosen) and stop.y == wrap(extent) else None
        if begun is not None and not outside_tensor:
            found.append(Chosen(begun.flag, index >= begun.x, Const(True)))
        elif first is not None and (outside_tensor or first != Const(0)):
            found.append(index >= first)
        if outside_tensor:
            if chosen is None and not self.inside(index, extent):
                found.append(index < extent)
        if chosen is not None and not outside_tensor:
            found.append(Chosen(chosen.flag, index < chosen.x, Const(True)))
        elif stop is not None and stop != wrap(extent):
            found.append(index < stop)
        return found

    def _stop(self, start: Expr) -> Expr | None:
        """Up to where the index tiles go that begin so, if they are those of a loop or an axis."""
        match start:
            case Var(name) | Binary("mul", Var(name), Var()):
                return self._stops.get(name)
        return None

    def _whole_tiles(self, start: Expr, size: Dim) -> bool:
        match start:
            case Const(0):
                return True
            case Var(name):
                return self._steps.get(name) == size
            case Binary("mul", _, Var(factor)) | Binary("mul", Var(factor), _):
                return factor == size
            case _:
                return False


def _tiled(extent: Expr) -> Expr | None:
    """What an axis of so many tiles covers."""
    match extent:
        case Binary("cdiv", covered, Var()):
            return covered
    return None
