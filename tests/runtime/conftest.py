"""Variants and inputs for the tests of the runtime."""

from __future__ import annotations

import pytest
import torch

import based_ops
from based_ops.variant import Variant


def kind(name: str) -> str:
    """The mixer of a variant, with the kind of its feature map."""
    spec = based_ops.get(name).spec
    if spec.mixer != "linear_attention":
        return spec.mixer
    return f"{spec.feature_map.kind}{getattr(spec.feature_map, 'order', '')}"


def representatives() -> list[str]:
    """One registered variant of each kind, the smallest; of elementwise maps not the identity."""

    def size(name: str) -> tuple[bool, int, str]:
        return "identity" in name, based_ops.get(name).state_bytes(1, 1), name

    chosen: dict[str, str] = {}
    for name in sorted(based_ops.names(), key=size):
        chosen.setdefault(kind(name), name)
    return sorted(chosen.values())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for fixture, choose in (("variant", representatives), ("any_variant", based_ops.names)):
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, choose(), indirect=True)


@pytest.fixture
def variant(request: pytest.FixtureRequest) -> Variant:
    """One variant of each kind."""
    return based_ops.get(request.param)


@pytest.fixture
def any_variant(request: pytest.FixtureRequest) -> Variant:
    """Every registered variant."""
    return based_ops.get(request.param)


@pytest.fixture
def linear() -> Variant:
    return based_ops.get(next(name for name in representatives() if kind(name) == "taylor_exp2"))


@pytest.fixture
def window() -> Variant:
    return based_ops.get(next(name for name in representatives() if kind(name) == "sliding_window"))


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
