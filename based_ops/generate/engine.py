"""Generation for many requests at once: prompts in one packed call, then a token a step for all of them.

States have a constant size, so a request is a slot of a pool from its prompt to its last token.  Requests
join and leave between steps.  On a GPU a step is one CUDA graph a size of batch, sampling included.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentTypeError, ArgumentValueError, fail
from ..models import LanguageModel
from ..models.blocks import over_tensors
from .sampling import Sampling, chosen

Decode = Callable[[list[int]], str]


@dataclass
class Request:
    """A prompt, and what becomes of it."""

    number: int
    prompt: list[int]
    sampling: Sampling
    most: int
    """Tokens that it may have besides the prompt."""
    stop_tokens: frozenset[int]
    stop: tuple[str, ...]
    """Texts that end it; the tokens that make one are left out."""
    tokens: list[int] = field(default_factory=list)
    """What was generated so far."""
    ended: str | None = None
    """Why it ended: `stop`, `length` or `cancelled`; None while it goes on."""
    stop_token: int | None = None
    """The token that ended it, if one of `stop_tokens` did; it is not among `tokens`."""


class Engine:
    """Generates with a model whose layers have states of constant size, for up to `slots` requests at a time.

    `decode` makes text of tokens, for stop strings.  A prompt waits until a slot is free.  The same request
    has the same tokens whatever others there are, as far as kernels give a row the same bits in every batch.
    """

    def __init__(
        self, model: LanguageModel, slots: int = 16, decode: Decode | None = None, most: int = 2048
    ) -> None:
        """`most` is how many tokens a request may have in a model with full attention."""
        if slots < 1:
            fail(ArgumentValueError, "slots", slots, "1 or more")
        self.model, self.slots, self.decode = model.eval(), slots, decode
        self.device = model.embedding.weight.device
        with torch.no_grad():
            self.pool = model.init_state(slots, most)
        self._free = deque(range(slots))
        self._running: dict[int, tuple[Request, torch.Generator]] = {}
        self._waiting: deque[Request] = deque()
        self._numbers = itertools.count()
        self._steps: dict[int, _Step] = {}
        self._told: list[Request] = []

    # Requests

    def submit(
        self,
        prompt: Sequence[int],
        sampling: Sampling | None = None,
        most: int = 128,
        stop_tokens: Sequence[int] = (),
        stop: Sequence[str] = (),
    ) -> Request:
        """A request for up to `most` tokens after `prompt`, which must have one at least."""
        if isinstance(prompt, str) or not all(isinstance(x, int) for x in prompt):
            fail(ArgumentTypeError, "prompt", type(prompt).__name__, "a list of tokens, whole numbers")
        if not prompt:
            fail(ArgumentValueError, "prompt", "no tokens", "one token or more")
        for token in prompt:
            if not 0 <= token < self.model.spec.vocabulary:
                fail(ArgumentValueError, "prompt", token, f"from 0 to {self.model.spec.vocabulary - 1}")
        if most < 1:
            fail(ArgumentValueError, "most", most, "1 or more")
        if stop and self.decode is None:
            fail(ArgumentValueError, "stop", "texts", "given to an engine with `decode`")
        request = Request(
            next(self._numbers),
            list(prompt),
            sampling or Sampling(),
            most,
            frozenset(stop_tokens),
            tuple(stop),
        )
        self._waiting.append(request)
        return request

    def cancel(self, request: Request) -> None:
        """Ends a request; its slot is free for another."""
        if request.ended is None:
            request.ended = "cancelled"
            if request in self._waiting:
                self._waiting.remove(request)
            for slot, (running, _) in list(self._running.items()):
                if running is request:
                    self._release(slot)

    @property
    def busy(self) -> bool:
        """Whether any request has not ended."""
        return bool(self._running or self._waiting)

    @torch.no_grad()
    def step(self) -> list[Request]:
        """Prompts of waiting requests as far as slots are free, and a token for all others; who got one."""
        self._told = []
        older = list(self._running)
        self._admit()
        if older:
            self._decode(older)
        return self._told

    def stream(self, request: Request) -> Iterator[int]:
        """The tokens of a request as they come; the others go on meanwhile."""
        told = 0
        while True:
            safe = len(request.tokens) if request.ended else self._safe(request)
            yield from request.tokens[told:safe]
            told = max(told, safe)
            if request.ended:
                return
            self.step()

    def generate(self, prompts: Sequence[Sequence[int]], **options: Any) -> list[list[int]]:
        """The tokens after each of several prompts, all with the same options of `submit`."""
        requests = [self.submit(prompt, **options) for prompt in prompts]
        while self.busy:
            self.step()
        return [request.tokens for request in requests]

    # Inside

    def _admit(self) -> None:
        """Gives slots to waiting requests, and their first tokens from one packed call of all prompts."""
        requests = []
        while self._free and self._waiting:
            request = self._waiting.popleft()
            slot = self._free.popleft()
            self._running[slot] = request, request.sampling.draws()
            requests.append((slot, request))
        if not requests:
            return
        slots = [slot for slot, _ in requests]
        lengths = [len(request.prompt) for _, request in requests]
        ids = torch.tensor([[x for _, request in requests for x in request.prompt]], device=self.device)
        if self.model.packs and len(requests) > 1:
            ends = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=self.device)
            logits, states = self.model(ids, output_state=True, cu_seqlens=ends)
            last = logits[0].index_select(0, ends[1:] - 1)
            self._put(slots, states)
        else:
            rows = []
            for (slot, _), part in zip(requests, ids.split(lengths, 1), strict=True):
                logits, state = self.model(part, output_state=True)
                rows.append(logits[0, -1:])
                self._put([slot], state)
            last = torch.cat(rows)
        tokens = chosen(last, *self._controls(slots, len(slots)))
        self._append(slots, tokens.tolist())

    def _put(self, slots: list[int], states: Any) -> None:
        """Writes states into slots of the pool."""
        index = torch.tensor(slots, device=self.device)

        def write(pool: Tensor, x: Tensor) -> Tensor:
            if x.shape[1:] == pool.shape[1:]:
                return pool.index_copy_(0, index, x)
            pool[index, :, : x.shape[2]] = x  # a cache with room for more
            return pool

        over_tensors(write, self.pool, states)

    def _decode(self, slots: list[int]) -> None:
        size = 1 << (len(slots) - 1).bit_length()
        step = self._steps.get(size)
        if step is None:
            step = self._steps[size] = _Step(self, size)
        last = [self._running[slot][0].tokens[-1] for slot in slots]
        tokens = step.run(slots, last, self._controls(slots, size))
        self._append(slots, tokens[: len(slots)].tolist())

    def _controls(self, slots: list[int], size: int) -> tuple[Tensor, ...]:
        """Temperature, top k, top p and a drawn number of each request, and of nobody up to `size`."""
        rows = []
        for slot in slots:
            request, generator = self._running[slot]
            how = request.sampling
            drawn = float(torch.rand((), generator=generator, dtype=torch.float64))
            rows.append((how.temperature, how.top_k, how.top_p, drawn))
        rows += [(0.0, 0, 1.0, 0.0)] * (size - len(slots))
        return tuple(torch.tensor(column, device=self.device) for column in zip(*rows, strict=True))

    def _append(self, slots: list[int], tokens: list[int]) -> None:
        for slot, token in zip(slots, tokens, strict=True):
            request, _ = self._running[slot]
            self._told.append(request)
            if token in request.stop_tokens:
                request.ended, request.stop_token = "stop", token
            else:
                request.tokens.append(token)
                if self._stopped(request):
                    request.ended = "stop"
                elif len(request.tokens) >= request.most:
                    request.ended = "length"
            if request.ended:
                self._release(slot)

    def _release(self, slot: int) -> None:
        del self._running[slot]
        self._free.append(slot)

    def _stopped(self, request: Request) -> bool:
        """Whether a stop string is there; the tokens from which it begins are cut off then."""
        if not request.stop or self.decode is None:
            return False
        text = self.decode(request.tokens)
        found = [place for word in request.stop if (place := text.find(word)) >= 0]
        if not found:
            return False
        while request.tokens and len(self.decode(request.tokens)) > min(found):
            request.tokens.pop()
        return True

    def _safe(self, request: Request) -> int:
        """How many tokens no stop string can cut off any more."""
        if not request.stop or self.decode is None:
            return len(request.tokens)
        longest = max(map(len, request.stop))
        whole = len(self.decode(request.tokens))
        count = len(request.tokens)
        while count and len(self.decode(request.tokens[:count])) > whole - longest + 1:
            count -= 1
        return count


class _Step:
    """One token for a batch of a fixed size: on a GPU a CUDA graph, whose inputs are written before."""

    def __init__(self, engine: Engine, size: int) -> None:
        self.engine, self.size = engine, size
        device = engine.device
        self.ids = torch.zeros(size, 1, dtype=torch.int64, device=device)
        self.indices = torch.full((size,), -1, dtype=torch.int32, device=device)
        self.controls: tuple[Tensor, ...] | None = None
        self.graph: Any = None
        self.tokens: Tensor | None = None

    def run(self, slots: list[int], last: list[int], controls: tuple[Tensor, ...]) -> Tensor:
        """The next token [size] of each request; what is past them means nothing."""
        empty = self.size - len(slots)
        self.ids.copy_(torch.tensor([*last, *[0] * empty]).unsqueeze(1))
        self.indices.copy_(torch.tensor([*slots, *[-1] * empty], dtype=torch.int32))
        if self.controls is None:
            self.controls = controls
        else:
            for mine, given in zip(self.controls, controls, strict=True):
                mine.copy_(given)
        if self.engine.device.type != "cuda":
            return self._tokens()
        if self.graph is None:
            self._capture()
        self.graph.replay()
        assert self.tokens is not None
        return self.tokens

    def _tokens(self) -> Tensor:
        assert self.controls is not None
        logits = self.engine.model.step(self.ids, self.engine.pool, self.indices)
        return chosen(logits[:, -1], *self.controls)

    def _capture(self) -> None:
        """Kernels are compiled by two calls without slots, which change no state."""
        kept = self.indices.clone()
        self.indices.fill_(-1)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._tokens()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.tokens = self._tokens()
        self.indices.copy_(kept)
