"""Variants and inputs for the tests of the runtime."""

from __future__ import annotations

import pytest
import torch

import based_ops
from based_ops.variant import Variant
from tests.conftest import SPECS

ALL = [name for name in based_ops.names() if SPECS.joinpath(f"{name}.yaml").is_file()]
"""What is shipped: others, which a test has loaded, exist in its process alone."""
DELTA = [name for name in ALL if getattr(based_ops.get(name).spec, "corrects", False)]
"""Of which `test_delta.py` is."""
WITH_PARTS = [
    name for name in ALL if based_ops.get(name).core is not based_ops.get(name) and name not in DELTA
]
"""Of which `test_features.py` is; their kernels are those of layers without parts."""
NAMES = [name for name in ALL if name not in (*WITH_PARTS, *DELTA)]


def attends(name: str) -> bool:
    """Whether calls of a variant take q, k and v, as most tests of the runtime do."""
    return [x.name for x in based_ops.get(name).spec.signature().inputs] == ["q", "k", "v"]


def attentions() -> list[str]:
    """The registered variants whose calls do."""
    return [name for name in NAMES if attends(name)]


def kind(name: str) -> str:
    """The mixer of a variant, with the kind of its feature map and of its decay, and whether it replays."""
    spec = based_ops.get(name).spec
    if spec.mixer != "linear_attention":
        return spec.mixer
    fades = "" if spec.decay == "none" else f", decay of each {spec.decay}"
    replays = ", replay" if spec.replay else ""
    return f"{spec.feature_map.kind}{getattr(spec.feature_map, 'order', '')}{fades}{replays}"


def representatives() -> list[str]:
    """One attention of each kind, the smallest; of elementwise maps not the identity."""
    return [name for name in every_kind() if attends(name)]


def every_kind() -> list[str]:
    """One registered variant of each kind, whatever its calls take."""

    def size(name: str) -> tuple[bool, int, str]:
        return "identity" in name, based_ops.get(name).state_bytes(1, 1), name

    chosen: dict[str, str] = {}
    for name in sorted(NAMES, key=size):
        chosen.setdefault(kind(name), name)
    return sorted(chosen.values())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    fixtures = {
        "variant": representatives,
        "any_variant": attentions,
        "layer": every_kind,
        "any_layer": lambda: NAMES,
    }
    for fixture, choose in fixtures.items():
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, choose(), indirect=True)


@pytest.fixture
def variant(request: pytest.FixtureRequest) -> Variant:
    """One attention of each kind."""
    return based_ops.get(request.param)


@pytest.fixture
def any_variant(request: pytest.FixtureRequest) -> Variant:
    """Every registered attention."""
    return based_ops.get(request.param)


@pytest.fixture
def layer(request: pytest.FixtureRequest) -> Variant:
    """One variant of each kind, for tests that take its inputs from its signature."""
    return based_ops.get(request.param)


@pytest.fixture
def any_layer(request: pytest.FixtureRequest) -> Variant:
    """Every registered variant, likewise."""
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
