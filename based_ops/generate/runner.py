"""An engine in a thread of its own, for callers of `asyncio`."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from .engine import Engine, Request
from .sampling import Sampling


class Progress(NamedTuple):
    """How far a request is.

    Examples:
        >>> from based_ops.generate import Progress
        >>> Progress("so far", 2, None).ended is None
        True
    """

    text: str
    """All so far, as far as no stop string can begin in it; empty without the engine's `decode`."""
    tokens: int
    ended: str | None
    """As `Request.ended`; never `error`, which is raised."""


class Runner:
    """Runs an engine as long as there are requests; those of all callers share its steps.

    Args:
        engine: Which nobody else may call from now on.

    Examples:
        >>> import asyncio
        >>> from based_ops import models
        >>> from based_ops.generate import Engine, Runner
        >>> runner = Runner(Engine(models.LanguageModel("based-tiny"), slots=1))
        >>> async def last():
        ...     return [now async for now in runner.generate([1, 2, 3], most=2)][-1]
        >>> asyncio.run(last()).ended
        'length'
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._tell: dict[Request, Callable[[Any], None]] = {}
        threading.Thread(target=self._run, name="engine", daemon=True).start()

    async def generate(
        self,
        prompt: Sequence[int],
        sampling: Sampling | None = None,
        most: int = 128,
        stop_tokens: Sequence[int] = (),
        stop: Sequence[str] = (),
    ) -> AsyncIterator[Progress]:
        """How far a request for `prompt` is, from its joining until it has ended; options as of `submit`.

        Raises what `submit` raises, and the error that ended its step.  Whoever closes the iterator, as
        `asyncio` does for a task that is cancelled, cancels the request.
        """
        loop, told = asyncio.get_running_loop(), asyncio.Queue[Any]()
        made: list[Request] = []

        def tell(what: Any) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(told.put_nowait, what)

        def join() -> None:
            try:
                made.append(self.engine.submit(prompt, sampling, most, stop_tokens, stop))
            except Exception as error:
                tell(error)
            else:
                self._tell[made[0]] = tell
                tell(Progress("", 0, None))

        def leave() -> None:
            for request in made:
                self._tell.pop(request, None)
                self.engine.cancel(request)

        self._calls.put(join)
        try:
            while True:
                found = await told.get()
                if isinstance(found, BaseException):
                    raise found
                yield found
                if found.ended:
                    return
        finally:
            self._calls.put(leave)

    def _run(self) -> None:
        while True:
            while not self.engine.busy or not self._calls.empty():
                self._calls.get()()
            told: set[Request] = set()
            with suppress(Exception):  # it has ended the requests of its call, which raise it
                told = set(self.engine.step())
            for request, tell in list(self._tell.items()):
                if request.ended:
                    del self._tell[request]
                if request.ended or request in told:
                    text = "" if self.engine.decode is None else request.text
                    tell(request.error or Progress(text, len(request.tokens), request.ended))
