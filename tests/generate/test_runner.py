"""The engine in a thread of its own, for callers of asyncio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Any

import pytest
import torch

from based_ops import errors
from based_ops.generate import Engine, Progress, Runner, Sampling
from based_ops.models import LanguageModel


def of_bytes(tokens: list[int]) -> str:
    return bytes(tokens).decode(errors="replace")


def engine(slots: int = 2, decode: Any = of_bytes) -> Engine:
    torch.manual_seed(0)
    return Engine(LanguageModel("based-tiny", dtype=torch.float64), slots, decode)


def ended(runner: Runner) -> None:
    for _ in range(500):
        if not runner.engine.busy:
            return
        time.sleep(0.01)
    raise AssertionError("a request goes on")


def run(work: Awaitable[Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))  # type: ignore[arg-type]


async def all_of(runner: Runner, prompt: list[int], **options: Any) -> list[Progress]:
    return [now async for now in runner.generate(prompt, **options)]


def test_many_at_once() -> None:
    prompts = [[n + 1] * (n + 1) for n in range(5)]

    async def work() -> list[list[Progress]]:
        runner = Runner(engine())
        asked = [all_of(runner, x, sampling=Sampling(1.0, seed=n), most=7) for n, x in enumerate(prompts)]
        return await asyncio.gather(*asked)

    for n, found in enumerate(run(work())):
        own = engine(1)
        request = own.submit(prompts[n], Sampling(1.0, seed=n), most=7)
        while own.busy:
            own.step()
        assert found[0] == Progress("", 0, None) and found[-1] == Progress(request.text, 7, "length")
        assert [now.tokens for now in found] == list(range(8))
        assert all(after.text.startswith(now.text) for now, after in zip(found, found[1:], strict=False))


def test_without_text() -> None:
    found = run(all_of(Runner(engine(decode=None)), [1], most=2))
    assert found[-1] == Progress("", 2, "length")


def test_whoever_leaves_frees_a_slot() -> None:
    runner = Runner(engine(1))

    async def leave() -> None:
        parts = runner.generate([1], most=10**6)
        await anext(parts)
        assert (await anext(parts)).tokens == 1
        await parts.aclose()  # type: ignore[attr-defined]

    async def be_cancelled() -> None:
        task = asyncio.create_task(all_of(runner, [1], most=10**6))
        waiting = asyncio.create_task(all_of(runner, [2], most=10**6))
        await asyncio.sleep(0.2)
        task.cancel()
        waiting.cancel()
        await asyncio.gather(task, waiting, return_exceptions=True)

    for work in (leave, be_cancelled):
        run(work())
        ended(runner)
        assert run(all_of(runner, [3], most=2))[-1].tokens == 2


def test_what_is_refused() -> None:
    runner = Runner(engine())
    with pytest.raises(errors.ArgumentValueError, match="^prompt: got no tokens"):
        run(all_of(runner, []))
    with pytest.raises(TypeError, match="surprise"):
        run(all_of(runner, [1], surprise=1))
    assert run(all_of(runner, [1], most=1))[-1].ended == "length"


def test_an_error_of_a_step_reaches_whom_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Runner(engine())

    def fail(*_: object, **__: object) -> None:
        monkeypatch.undo()
        raise ZeroDivisionError

    monkeypatch.setattr(runner.engine.model, "step", fail)
    with pytest.raises(ZeroDivisionError):
        run(all_of(runner, [1], most=5))
    assert run(all_of(runner, [1], most=5))[-1].tokens == 5
