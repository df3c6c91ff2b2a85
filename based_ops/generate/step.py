"""One token for a batch of a fixed size; on a GPU a CUDA graph of everything, sampling included."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ..models import LanguageModel, inference
from .sampling import Sampling, chosen, uniform


class Board:
    """What the next token of each slot takes, on the device: its last token, and how it is chosen.

    The last row is nobody's, for the rows of a batch that have no slot.
    """

    def __init__(self, slots: int, device: torch.device) -> None:
        def column(dtype: torch.dtype) -> Tensor:
            return torch.zeros(slots + 1, dtype=dtype, device=device)

        self.slots = slots
        self.last, self.top_k = column(torch.int64), column(torch.int64)
        self.temperature, self.top_p = column(torch.float32), column(torch.float32).add_(1.0)
        self.start, self.drawn = column(torch.int64), column(torch.int64)

    def put(self, slots: Sequence[int], how: Sequence[Sampling]) -> None:
        """Begins with other requests in these slots."""
        index = torch.tensor(slots, device=self.last.device)
        for column, values in (
            (self.temperature, [x.temperature for x in how]),
            (self.top_k, [min(x.top_k, 2**31) for x in how]),
            (self.top_p, [x.top_p for x in how]),
            (self.start, [x.start() for x in how]),
            (self.drawn, [0 for _ in how]),
        ):
            column[index] = torch.tensor(values, dtype=column.dtype, device=index.device)

    def rows(self, indices: Tensor) -> Tensor:
        """The row of each slot, int64; that of nobody where there is none."""
        return torch.where(indices >= 0, indices, self.slots).long()

    def choose(self, logits: Tensor, rows: Tensor, sampled: bool) -> Tensor:
        """A token [B] for each row of logits [B,V], kept as its last; without `sampled` the likeliest."""
        if sampled:
            number = uniform(self.start[rows], self.drawn[rows])
            tokens = chosen(logits, self.temperature[rows], self.top_k[rows], self.top_p[rows], number)
        else:
            tokens = logits.argmax(-1)
        self.drawn.index_add_(0, rows, torch.ones_like(rows))
        self.last.index_copy_(0, rows, tokens)
        return tokens


class Step:
    """The step of a batch of `size`; on a GPU recorded at its first call, and replayed from then on.

    Models that cannot be recorded, see `LanguageModel.records`, are called anew for every token.
    """

    def __init__(
        self, model: LanguageModel, pool: Any, board: Board, size: int, sampled: bool, compiled: bool
    ) -> None:
        self.model, self.pool, self.board, self.size, self.sampled = model, pool, board, size, sampled
        self.indices = torch.full((size,), -1, dtype=torch.int32, device=board.last.device)
        self._steps: list[Any] | None = None
        if compiled:
            self._steps = [inference.compiled(step, size) for step in model.block_steps()]
        self._slots: list[int] = []
        self._graph: Any = None
        self._tokens: Tensor | None = None

    def run(self, slots: list[int], memory: Any = None) -> list[int]:
        """The next token of each slot.  `memory` is what the graphs of an engine share."""
        if slots != self._slots:
            rows = [*slots, *[-1] * (self.size - len(slots))]
            self.indices.copy_(torch.tensor(rows, dtype=torch.int32))
            self._slots = list(slots)
        if self.indices.device.type != "cuda" or not self.model.records:
            return self._next()[: len(slots)].tolist()
        if self._graph is None:
            self._record(memory)
        self._graph.replay()
        assert self._tokens is not None
        return self._tokens[: len(slots)].tolist()

    def _next(self) -> Tensor:
        rows = self.board.rows(self.indices)
        with inference.room_to_compile() if self._steps else nullcontext():
            logits = self.model.step(self.board.last[rows].unsqueeze(1), self.pool, self.indices, self._steps)
        return self.board.choose(logits[:, -1], rows, self.sampled)

    def _record(self, memory: Any) -> None:
        """Kernels are compiled by two calls without slots, which change no state."""
        kept = self.indices.clone()
        self.indices.fill_(-1)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._next()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=memory):
            self._tokens = self._next()
        self._graph = graph
        self.indices.copy_(kept)
