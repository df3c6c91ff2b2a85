"""Names of models and their dials; the states of their layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from based_ops.errors import ArgumentTypeError, ArgumentValueError, BackendUnavailable, BasedOpsError
from based_ops.recall.catalogue import MODELS
from based_ops.recall.designs import Design
from based_ops.recall.maps import MAPS
from based_ops.recall.model import information_bytes, state_bytes
from based_ops.recall.peers import PEERS


@given(st.sampled_from(sorted(MODELS)), st.integers(16, 512), st.data())
def test_a_design_reads_as_it_is_written(model: str, d: int, data: st.DataObject) -> None:
    def value(default: Any) -> Any:
        if isinstance(default, bool):
            return data.draw(st.booleans())
        return data.draw(st.integers(0, 999)) if isinstance(default, int) else default

    design = Design.of(model, d, **{name: value(x) for name, x in MODELS[model].dials.items()})
    assert Design.read(str(design)) == design
    assert Design.read(f"{model} d={d}") == Design.of(model, d)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("bassed d=64", ArgumentValueError, "model: 'bassed' is none; did you mean based?"),
        ("based", ArgumentValueError, "d_model: got None, must be an int of 16 or more"),
        ("based d=8", ArgumentValueError, "d_model: got 8, must be an int of 16 or more"),
        (
            "based d=64 feature=3",
            ArgumentValueError,
            "a dial of based: got 'feature', must be one of features, ",
        ),
        (
            "attention d=64 window=3",
            ArgumentValueError,
            "a dial of attention: got 'window', must be left out",
        ),
        ("based d=64 features=x", ArgumentTypeError, "features: got 'x', must be of type int"),
        ("based d=64 features=True", ArgumentTypeError, "features: got True, must be of type int"),
    ],
)
def test_what_is_no_design(text: str, error: type[BasedOpsError], message: str) -> None:
    with pytest.raises(error) as raised:
        Design.read(text)
    assert str(raised.value).startswith(message)


def test_a_map_that_is_none() -> None:
    with pytest.raises(ArgumentValueError, match="map: got 'gelu', must be one of identity, relu"):
        Design.of("map", 32, map="gelu").layers()


@pytest.mark.skipif(torch.cuda.is_available(), reason="peers may be there")
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_that_cannot_run(name: str) -> None:
    with pytest.raises(BackendUnavailable, match=f"^{name}: "):
        Design.of(name, 32).layers()


def _nbytes(state: Any) -> int:
    if isinstance(state, torch.Tensor):
        return state.nbytes
    return sum(_nbytes(part) for part in state) if isinstance(state, tuple) else 0


@pytest.mark.parametrize(
    "text",
    [
        "based d=32 features=8 window=8",
        "hybrid d=32 features=8 window=8",
        "fading d=16",
        "window d=16 window=4",
    ]
    + [
        "map d=16 map=relu",
        "delta d=16 features=8 fades=True",
        "mamba2 d=32 state=8 head=32",
        "based d=16 order=1",
        "based d=16 order=3 features=8",
    ],
)
def test_bytes_of_a_state_are_those_of_its_tensors(text: str) -> None:
    """Layers begin with their states; a BaseConv keeps the two inputs before a token."""
    design = Design.read(text)
    found = 0
    for make in design.layers():
        layer: Any = make.make(1)
        state = layer.init_state(1) if hasattr(layer, "init_state") else layer.conv.init_state(1)
        found += _nbytes(state)
    assert found == state_bytes(design)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("based d=64 features=16 conv=0", 4 * 65 * 153),  # (d + 1) · (1 + 16 + 136) numbers
        ("based d=48 features=24 conv=0", 4 * 49 * 325),
        ("attention d=64", 4 * (2 * 64 * 1024 + 2 * 64)),
        ("sinks d=64 window=60 sinks=4", 4 * (2 * 64 * 64 + 2 * 64)),
        ("mamba2 d=64 state=16", 2 * 4 * (128 * 16 + 3 * (128 + 32))),
        ("delta d=64 features=16", 4 * (64 * 153 + 2 * 64)),
        ("delta_net d=64", 4 * (64 * 64 + 3 * 192 + 2 * 64)),
        ("hyena d=64", 2 * (4 * (64 * 1024 + 2 * 192) + 16)),  # and how many tokens there are
        ("h3 d=64 state=16", 2 * 4 * 64 * 32),
        ("base_conv d=64", 4 * (64 * 1024 + 2 * 64) + 16),
    ],
)
def test_bytes_of_a_state(text: str, expected: int) -> None:
    assert state_bytes(Design.read(text)) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", MAPS)
def test_every_map_compiles_at_another_width(name: str) -> None:
    design = Design.of("map", 32, map=name, features=16)
    layer = design.layers()[-1].make(2)
    y = layer(torch.randn(2, 8, 64))[0]
    assert y.shape == (2, 8, 64) and torch.isfinite(y).all()


@given(st.sampled_from(sorted(MAPS)), st.integers(2, 16).map(lambda n: 8 * n))
def test_every_map_has_a_spec_at_every_width(name: str, d: int) -> None:
    features = 16 if name in ("power2", "rebased") else 0
    assert Design.of("map", d, map=name, features=features).layers()[-1].state_bytes > 4 * d


def test_what_pairs_take() -> None:
    """Of 3 keys two, and of 4 values in order: 3 · 12 sets."""
    assert information_bytes(2, 8) * 8 == pytest.approx(5.169925)
    assert information_bytes(256, 8192) < 256 * 24 / 8
