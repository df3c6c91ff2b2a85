"""Where tiles lie in memory: the first element of a program's own, and how far it is from there to others."""

from __future__ import annotations

from ...ir.nodes import Binary, Const, Expr, Span, Var
from ...ir.program import Program, Tensor
from ..triton_parameters import product, stride_names
from .spelling import Spelling


class Addresses:
    """Those of one program's tensors."""

    def __init__(self, program: Program, spelling: Spelling, loop: str) -> None:
        self._program, self._spelling, self._token = program, spelling, Var(loop)

    def tiles(self, index: tuple[Expr, ...]) -> list[int]:
        """The dimensions along which an index is a tile."""
        types = self._spelling.types
        return [i for i, entry in enumerate(index) if isinstance(entry, Var) and types[entry.name].shape]

    def span(self, entry: Expr) -> Span | None:
        """The run of indices that an entry of an index is."""
        return self._spelling.spans.get(entry.name) if isinstance(entry, Var) else None

    def first(self, name: str, index: tuple[Expr, ...]) -> str:
        """The element at which tiles begin, but for how far the loop over tokens has come.

        An index may lack its last entries: then it is that of all that these could be.
        """
        tensor = self._program.tensor(name)
        starts = [self._start(entry) for entry in index]
        starts += [""] * (len(tensor.dims) - len(index))
        if tensor.strided:
            terms = [
                start if stride == "1" else f"{start} * {stride}"
                for start, stride in zip(starts, self._strides(tensor), strict=True)
                if start
            ]
            return " + ".join([name, *terms])
        text, is_sum = "", False
        for start, dim in zip(starts, tensor.stored, strict=True):
            if text:
                text, is_sum = f"({text}) * {dim}" if is_sum else f"{text} * {dim}", False
            if start:
                text, is_sum = (f"{text} + {start}", True) if text else (start, False)
        return f"{name} + {text}" if text else name

    def place(self, entry: Expr, run: str) -> str:
        """How far the elements of an index tile are from where it begins."""
        span = self.span(entry)
        follows = span is not None and self.behind_token(span.start) is not None
        return f"{self._token.name} + {run}" if follows else run

    def stride(self, name: str, dimension: int) -> str:
        """How far it is to the next element along a dimension."""
        return self._strides(self._program.tensor(name))[dimension]

    def behind_token(self, start: Expr) -> Expr | None:
        """How far behind the loop's token a tile begins, if it begins with that."""
        match start:
            case Binary("add", token, offset) if token == self._token:
                return offset
        return Const(0) if start == self._token else None

    def _start(self, entry: Expr) -> str:
        span = self.span(entry)
        start = entry if span is None else span.start
        behind = self.behind_token(start)
        if Const(0) in (start, behind):
            return ""
        match start:
            case Binary("sub", token, _) if token == self._token:
                return ""  # an earlier round's rows
        if behind is not None:
            return f"gl.cast({self._spelling.scalar(behind)}, gl.int64)"
        text = self._spelling.scalar(start)
        return f"({text})" if " + " in text else text

    def _strides(self, tensor: Tensor) -> list[str]:
        if tensor.strided:
            return [*(f"{tensor.name}_{axis}" for axis in stride_names(tensor)), "1"]
        stored = tensor.stored
        return [product(stored[i + 1 :]) for i in range(len(stored))]
