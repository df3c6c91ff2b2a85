"""Generation for many requests at once: prompts in one packed call, then a token a step for all of them.

States have a constant size, so a request is a slot of a pool from its prompt to its last token.  Requests
join and leave between steps.  On a GPU a step is one CUDA graph a size of batch, sampling included.
"""

from __future__ import annotations

import itertools
import operator
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentTypeError, ArgumentValueError, BasedOpsError, fail
from ..models import LanguageModel
from ..models.blocks import over_tensors
from .sampling import Sampling
from .step import Board, Step
from .text import Decode, Text

PIECE = 2**14
"""Tokens of prompts that one call of the model reads; a longer prompt is read in pieces, so that memory for
what a call makes does not grow with it."""


@dataclass(eq=False)
class Request:
    """A prompt, and what becomes of it.

    `Engine.submit` makes it, and steps of the engine go on with it.

    Examples:
        >>> from based_ops import models
        >>> from based_ops.generate import Engine
        >>> engine = Engine(models.LanguageModel("based-tiny"), slots=1)
        >>> request = engine.submit([1, 2, 3], most=2)
        >>> while request.ended is None:
        ...     _ = engine.step()
        >>> len(request.tokens), request.ended
        (2, 'length')
    """

    number: int
    prompt: list[int]
    sampling: Sampling
    most: int
    """Tokens that it may have besides the prompt."""
    stop_tokens: frozenset[int]
    stop: tuple[str, ...]
    """Texts that end it."""
    tokens: list[int] = field(default_factory=list)
    """What was generated so far; without those that a stop string begins in or comes after."""
    ended: str | None = None
    """Why it ended: `stop`, `length`, `cancelled` or `error`; None while it goes on."""
    stop_token: int | None = None
    """The token that ended it, if one of `stop_tokens` did; it is not among `tokens`."""
    error: BaseException | None = None
    """What went wrong in its batch."""
    _text: Text | None = None

    @property
    def text(self) -> str:
        """The text of its tokens, up to a stop string; while it goes on, as far as none can begin in it."""
        if self._text is None:
            fail(ArgumentValueError, "decode", "None", "given to the engine for requests to have text")
        self._text.advance(self.ended is not None)
        return self._text.found if self.ended else self._text.found[: self._text.safe]

    def _take(self, token: int) -> None:
        """One more token; ends the request if it is the last."""
        if token in self.stop_tokens:
            self.ended, self.stop_token = "stop", token
            return
        self.tokens.append(token)
        last = len(self.tokens) >= self.most
        if self.stop and self._text is not None and self._text.advance(last):
            self.ended = "stop"
        elif last:
            self.ended = "length"

    @property
    def _safe(self) -> int:
        """How many of its tokens no stop string can cut off any more."""
        return self._text.safe_tokens if self._text and self.stop and not self.ended else len(self.tokens)


class Engine:
    """Generates with a model whose layers have states of constant size, for up to `slots` requests at a time.

    `decode` makes text of tokens, for stop strings and `Request.text`.  A prompt waits until a slot is free.
    What a request draws follows from its seed alone, so it has the same tokens whatever others there are, as
    far as the same row of another batch has the same bits.  `batch_invariant` sees to that: prompts are read
    one by one, and a step always has as many rows as there are slots.  It is slower where few are taken.  On
    a CPU, where a row's bits may hang on its place among the others, requests take their steps one by one.

    With `compiled`, steps are of blocks that `torch.compile` made: they fuse what lies between the products.
    That takes some tens of seconds when steps of a size of batch (a power of two) are first wanted.

    One thread at a time may call an engine.

    Args:
        model: Put into evaluation mode.
        slots: How many requests run at a time.
        decode: Text of tokens.
        most: Tokens that a request may have, its prompt included, in a model with full attention.
        batch_invariant: Whether tokens are the same to the bit whatever else runs.
        compiled: Whether blocks of a step go through `torch.compile`.

    Raises:
        ArgumentValueError: `slots` is below 1, or more than there is memory for.

    Examples:
        >>> from based_ops import models
        >>> from based_ops.generate import Engine
        >>> engine = Engine(models.LanguageModel("based-tiny"), slots=2)
        >>> [len(tokens) for tokens in engine.generate([[1, 2, 3], [4]], most=5)]
        [5, 5]
    """

    def __init__(
        self,
        model: LanguageModel,
        slots: int = 16,
        decode: Decode | None = None,
        most: int = 2048,
        batch_invariant: bool = False,
        compiled: bool = False,
    ) -> None:
        """`most` is how many tokens a request may have, its prompt included, in a model with full attention.

        Raises `ArgumentValueError` if there is no memory for so many slots.
        """
        if slots < 1:
            fail(ArgumentValueError, "slots", slots, "1 or more")
        if compiled and not model.records:
            what = f"False: what {model.spec.name} does in a step depends on how many tokens there are"
            fail(ArgumentValueError, "compiled", True, what)
        self.model, self.slots, self.decode, self.most = model.eval(), slots, decode, most
        self.batch_invariant, self.compiled = batch_invariant, compiled
        self.device = model.embedding.weight.device
        try:
            with torch.no_grad():
                self.pool = model.init_state(slots, most)
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, BasedOpsError):
                raise
            what = f"as many as there is memory for, {model.state_bytes(1, most)} bytes each"
            raise ArgumentValueError(f"slots: got {slots}, must be {what}: {error}") from error
        self._board = Board(slots, self.device)
        self._free = deque(range(slots))
        self._running: dict[int, Request] = {}
        self._waiting: deque[Request] = deque()
        self._numbers = itertools.count()
        self._steps: dict[tuple[int, bool], Step] = {}
        self._memory = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None

    # Requests

    def submit(
        self,
        prompt: Sequence[int],
        sampling: Sampling | None = None,
        most: int = 128,
        stop_tokens: Sequence[int] = (),
        stop: Sequence[str] = (),
    ) -> Request:
        """A request for up to `most` tokens after `prompt`, which must have one at least.

        It ends before one of the `stop_tokens`, or where its text has one of the `stop` strings.  Raises
        `ArgumentTypeError` and `ArgumentValueError`.
        """
        request = self._request(prompt, sampling, most, stop_tokens, stop)
        self._waiting.append(request)
        return request

    def cancel(self, request: Request) -> None:
        """Ends a request; its slot is free for another."""
        self._end([request], "cancelled")

    @property
    def busy(self) -> bool:
        """Whether any request has not ended."""
        return bool(self._running or self._waiting)

    @torch.no_grad()
    def step(self) -> list[Request]:
        """Prompts of waiting requests as far as slots are free, and a token for all others; who got one.

        An error ends the requests in whose call it was raised, and no others: these go on at the next step.
        """
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            older = list(self._running)
            return self._admit() + (self._decode(older) if older else [])

    def stream(self, request: Request) -> Iterator[int]:
        """The tokens of a request as they come; the others go on meanwhile.

        An iterator that is closed before its end cancels the request.
        """
        told = 0
        try:
            while True:
                safe = request._safe
                yield from request.tokens[told:safe]
                told = max(told, safe)
                if request.error is not None:
                    raise request.error
                if request.ended:
                    return
                self.step()
        finally:
            self.cancel(request)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | None = None,
        most: int = 128,
        stop_tokens: Sequence[int] = (),
        stop: Sequence[str] = (),
    ) -> list[list[int]]:
        """The tokens after each of several prompts, all with the same options of `submit`."""
        requests = [self._request(prompt, sampling, most, stop_tokens, stop) for prompt in prompts]
        self._waiting.extend(requests)
        try:
            while not all(request.ended for request in requests):
                self.step()
        finally:
            self._end(requests, "cancelled")
        return [request.tokens for request in requests]

    # Inside

    def _request(
        self,
        prompt: Sequence[int],
        sampling: Sampling | None,
        most: int,
        stop_tokens: Sequence[int],
        stop: Sequence[str],
    ) -> Request:
        ids = _whole(prompt, "prompt")
        if not ids:
            fail(ArgumentValueError, "prompt", "no tokens", "one token or more")
        for token in ids:
            if not 0 <= token < self.model.spec.vocabulary:
                fail(ArgumentValueError, "prompt", token, f"from 0 to {self.model.spec.vocabulary - 1}")
        if most < 1:
            fail(ArgumentValueError, "most", most, "1 or more")
        if not self.model.packs and len(ids) + most > self.most:
            got = f"{len(ids)} tokens and {most} more"
            what = f"{self.most} together: full attention has no room for more; `most` of the engine is that"
            fail(ArgumentValueError, "prompt", got, what)
        if isinstance(stop, str) or not all(isinstance(word, str) for word in stop):
            fail(ArgumentTypeError, "stop", type(stop).__name__, "a list of texts")
        if not all(stop):
            fail(ArgumentValueError, "stop", "an empty text", "texts of a character or more")
        if stop and self.decode is None:
            fail(ArgumentValueError, "stop", "texts", "given to an engine with `decode`")
        ends = frozenset(_whole(stop_tokens, "stop_tokens"))
        how = sampling or Sampling()
        made = Request(next(self._numbers), ids, how, most, ends, tuple(stop))
        if self.decode is not None:
            made._text = Text(self.decode, made.tokens, made.stop)
        return made

    def _admit(self) -> list[Request]:
        """Gives slots to waiting requests, and their first tokens from one packed call of all prompts."""
        requests: list[Request] = []
        count = 0
        while self._waiting and len(requests) < len(self._free):
            count += len(self._waiting[0].prompt)
            if requests and (self.batch_invariant or not self.model.packs or count > PIECE):
                break
            requests.append(self._waiting.popleft())
        if not requests:
            return []
        slots = [self._free.popleft() for _ in requests]
        self._running.update(zip(slots, requests, strict=True))
        try:
            last = self._read([request.prompt for request in requests], slots)
            self._board.put(slots, [request.sampling for request in requests])
            sampled = any(request.sampling.temperature for request in requests)
            rows = torch.tensor(slots, device=self.device)
            return self._append(slots, self._board.choose(last, rows, sampled).tolist())
        except BaseException as error:
            self._end(requests, "error", error)
            raise

    def _read(self, prompts: list[list[int]], slots: list[int]) -> Tensor:
        """The logits [B,V] after each prompt; the states go into the slots."""
        ids = torch.tensor([[x for prompt in prompts for x in prompt]], device=self.device)
        if len(prompts) > 1:
            lengths = itertools.accumulate(map(len, prompts))
            ends = torch.tensor([0, *lengths], dtype=torch.int32, device=self.device)
            last = (ends[1:] - 1).long()
            logits, state = self.model(ids, output_state=True, cu_seqlens=ends, logits_to_keep=last)
        else:
            state = None
            for piece in ids.split(PIECE if self.model.packs else ids.shape[1], 1):
                logits, state = self.model(piece, state, output_state=True, logits_to_keep=1)
        self._put(slots, state)
        return logits[0]

    def _put(self, slots: list[int], states: Any) -> None:
        """Writes states into slots of the pool."""
        index = torch.tensor(slots, device=self.device)

        def write(pool: Tensor, x: Tensor) -> Tensor:
            if x.shape[1:] == pool.shape[1:]:
                return pool.index_copy_(0, index, x)
            pool[index, :, : x.shape[2]] = x  # a cache with room for more
            return pool

        over_tensors(write, self.pool, states)

    def _decode(self, slots: list[int]) -> list[Request]:
        if alone := self.batch_invariant and self.device.type == "cpu":
            size = 1
        elif self.batch_invariant:
            size = self.slots
        else:
            size = min(self.slots, 1 << (len(slots) - 1).bit_length())
        requests = [self._running[slot] for slot in slots]
        try:
            key = size, any(request.sampling.temperature for request in requests)
            if key not in self._steps:
                self._steps[key] = Step(self.model, self.pool, self._board, *key, self.compiled)
            step, groups = self._steps[key], [[slot] for slot in slots] if alone else [slots]
            return self._append(slots, [x for group in groups for x in step.run(group, self._memory)])
        except BaseException as error:
            self._end(requests, "error", error)
            raise

    def _append(self, slots: list[int], tokens: list[int]) -> list[Request]:
        requests = [self._running[slot] for slot in slots]
        for slot, request, token in zip(slots, requests, tokens, strict=True):
            request._take(token)
            if request.ended:
                self._release(slot)
        return requests

    def _end(self, requests: Sequence[Request], why: str, error: BaseException | None = None) -> None:
        """Ends those that have not ended, wherever they are."""
        ending = {request for request in requests if request.ended is None}
        for request in ending:
            request.ended, request.error = why, error
        if ending:
            self._waiting = deque(request for request in self._waiting if request not in ending)
        for slot, running in list(self._running.items()):
            if running.ended:
                self._release(slot)

    def _release(self, slot: int) -> None:
        del self._running[slot]
        self._free.append(slot)


def _whole(numbers: Sequence[int], name: str) -> list[int]:
    """Tokens as Python's whole numbers."""
    if isinstance(numbers, str):
        fail(ArgumentTypeError, name, "str", "a list of tokens, whole numbers")
    try:
        return [operator.index(x) for x in numbers]
    except TypeError:
        fail(ArgumentTypeError, name, type(numbers).__name__, "a list of tokens, whole numbers")
