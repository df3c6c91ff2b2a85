"""Fixtures of the kernel tests."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from tests.kernels.runners import Runner, runners


@pytest.fixture(scope="session", params=runners())
def runner(request: pytest.FixtureRequest) -> Runner:
    """Every backend on every device it runs on."""
    reason = request.param.why_not()
    if reason is not None:
        pytest.skip(f"{request.param.id}: {reason}")
    return request.param


def compiles_to_c(item: pytest.Item) -> bool:
    """Whether a test runs TileLang's kernels on the host."""
    found = getattr(item, "callspec", None)
    runner = found.params.get("runner") if found else None
    return isinstance(runner, Runner) and runner.id == "tilelang-cpu"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--all-kernels"):
        return
    for item in items:
        if item.get_closest_marker("slow_in_c") and compiles_to_c(item):
            item.add_marker(pytest.mark.skip(reason="takes C minutes to compile; --all-kernels runs it"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """A quarter of the examples where each new combination of flags takes several seconds to compile.

    Hypothesis has no setting for one parameter of a test.
    """
    test: Any = getattr(item, "obj", None)
    own = getattr(test, "_hypothesis_internal_use_settings", None)
    if own is None or not compiles_to_c(item):
        return (yield)
    test._hypothesis_internal_use_settings = settings(own, max_examples=max(1, own.max_examples // 4))
    try:
        return (yield)
    finally:
        test._hypothesis_internal_use_settings = own


@pytest.fixture(scope="module", autouse=True)
def poisoned() -> Iterator[None]:
    """Fill uninitialised memory with NaN: what no kernel writes, or one reads too early, then shows."""
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((torch.Tensor, "new_empty"), (torch, "empty"), (torch, "empty_like")):
            patch.setattr(owner, name, _poisoning(getattr(owner, name)))
        yield


def _poisoning(allocate: Any) -> Any:
    def poisoned_allocate(*args: Any, **kwargs: Any) -> Tensor:
        tensor = allocate(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    return poisoned_allocate


def pytest_report_header() -> str:
    return f"TRITON_INTERPRET: {os.environ.get('TRITON_INTERPRET', 'unset')}"
