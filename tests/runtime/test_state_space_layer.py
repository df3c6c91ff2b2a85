"""S4D as a layer against its definition: discretised in complex numbers, and convolved by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import gelu, glu
from torch.testing import assert_close

import based_ops
from based_ops import errors, hippo
from based_ops.codegen.mixers.state_space import BASES
from based_ops.layers import StateSpace, parameter_groups
from based_ops.layers.state_space import discretised
from based_ops.layers.timescales import MOST, timescales
from based_ops.train.masters import Masters
from based_ops.train.settings import Settings

WIDTH, TOKENS = 32, 41
F64 = torch.float64
RULES = ("zoh", "bilinear")


@pytest.fixture(params=["s4d_n64", "s4d_n64_h16"])
def s4d(request: pytest.FixtureRequest) -> StateSpace:
    torch.manual_seed(0)
    return StateSpace(WIDTH, request.param, dtype=F64)


def exact(rule: str, a: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Ā and B̄ for B = 1, in complex numbers."""
    if rule == "zoh":
        pole = torch.exp(a * step)
        return pole, (pole - 1) / a
    return (1 + a * step / 2) / (1 - a * step / 2), step / (1 - a * step / 2)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=50)
@given(
    decay=st.floats(1e-3, 50.0),
    frequency=st.floats(-300.0, 300.0),
    step=st.floats(1e-4, 1.0),
    residue=st.tuples(st.floats(-2, 2), st.floats(-2, 2)),
)
def test_discretised(
    rule: str, decay: float, frequency: float, step: float, residue: tuple[float, float]
) -> None:
    """As complex numbers have it, and as the matrix exponential of HiPPO's room has it."""
    given_ = [torch.tensor(x, dtype=F64) for x in (decay, frequency, step)]
    log, angle, found = discretised(
        rule, given_[0].log(), given_[1], torch.tensor(residue, dtype=F64), given_[2].log()
    )
    a = torch.complex(-given_[0], given_[1])
    pole, factor = exact(rule, a, given_[2])
    assert log <= 0
    assert_close(torch.polar(log.exp(), angle), pole, rtol=1e-9, atol=1e-12)
    assert_close(torch.view_as_complex(found), complex(*residue) * factor, rtol=1e-9, atol=1e-11 * step)
    matrix = torch.tensor([[-decay, -frequency], [frequency, -decay]], dtype=F64)
    whole, column = hippo.discretise(matrix, torch.tensor([1.0, 0.0], dtype=F64), step, rule)  # type: ignore[arg-type]
    assert_close(torch.complex(whole[0, 0], whole[1, 0]), pole, rtol=1e-8, atol=1e-10)
    assert_close(torch.complex(column[0], column[1]), factor, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("rule", RULES)
def test_gradients_of_discretised(rule: str) -> None:
    torch.manual_seed(0)
    inputs = [
        torch.randn(shape, dtype=F64, requires_grad=True) for shape in ((3, 2), (3, 2), (3, 2, 2), (2,))
    ]
    assert torch.autograd.gradcheck(lambda *x: discretised(rule, *x), inputs)


def naive(layer: StateSpace, x: Tensor) -> Tensor:
    """The definition with one kernel a channel: y_t = Σ_l 2 Re Σ_n C Ā^l B̄ x_{t-l} + D x_t."""
    pole, factor = exact("zoh", torch.complex(-layer.log_decay.exp(), layer.frequency), layer.log_step.exp())
    weight = torch.view_as_complex(layer.residues) * factor
    powers = pole ** torch.arange(x.shape[1]).view(-1, 1, 1)
    taps = 2 * (weight * powers).sum(1).real.repeat_interleave(layer.op.spec.width, 1)
    places = torch.arange(x.shape[1])
    ages = places[:, None] - places
    matrix = torch.where((ages >= 0)[..., None], taps[ages.clamp(min=0)], 0.0)
    y = torch.einsum("tsd,bsd->btd", matrix, x) + layer.skip * x
    assert layer.mix is not None
    return glu(layer.mix(gelu(y)), -1)


def test_the_layer_is_its_definition(s4d: StateSpace) -> None:
    x = torch.randn(2, TOKENS, WIDTH, dtype=F64, requires_grad=True)
    y, state = s4d(x)
    assert state is None
    wanted = naive(s4d, x)
    assert_close(y, wanted)
    leaves = [x, *s4d.parameters()]
    dy = torch.randn_like(y)
    found, expected = (torch.autograd.grad(out, leaves, dy) for out in (y, wanted))
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_pieces_and_steps_are_the_whole(s4d: StateSpace) -> None:
    x = torch.randn(2, TOKENS, WIDTH, dtype=F64)
    with torch.no_grad():
        want, end = s4d(x, output_state=True)
        head, state = s4d(x[:, :20], output_state=True)
        middle, state = s4d(x[:, 20:30], state, output_state=True)
        steps = [s4d.step(x[:, 30:34], state)]
        steps += [s4d.step(x[:, t : t + 1], state) for t in range(34, TOKENS)]
        assert_close(torch.cat([head, middle, *steps], 1), want)
        assert_close(state.modes, end.modes)
        packed, ends = s4d(x[:1], output_state=True, cu_seqlens=torch.tensor([0, 15, TOKENS]))
        assert_close(packed[:, :15], s4d(x[:1, :15])[0])
        assert_close(packed[:, 15:], s4d(x[:1, 15:])[0])
        assert ends.modes.shape[0] == 2
    assert s4d.init_state(3).modes.nbytes == s4d.state_bytes(3)


@pytest.mark.parametrize("basis", BASES)
def test_every_basis_and_frozen_filters(basis: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BASED_OPS_CACHE", str(tmp_path / "cache"))
    path = tmp_path / f"of_{basis}.yaml"
    lines = f"name: of_{basis}\nmixer: state_space\norder: 8\nbasis: {basis}\ndiscretization: bilinear\n"
    path.write_text(lines + "trainable: false\n")
    layer = StateSpace(6, based_ops.load(path), dtype=F64)
    poles = torch.complex(-layer.log_decay.exp(), layer.frequency)
    if basis != "random":
        assert_close(poles, hippo.poles(basis, 8).unsqueeze(1).expand(-1, 6))
    assert [name for name, _ in layer.named_parameters()] == ["skip", "mix.weight", "mix.bias"]
    assert not timescales(layer)
    y, _ = layer(torch.randn(1, 5, 6, dtype=F64))
    y.sum().backward()


def test_what_sets_timescales_learns_slowly() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), StateSpace(WIDTH))
    names = ["1.log_step", "1.log_decay", "1.frequency"]
    assert timescales(model) == names
    decayed, plain, slow = parameter_groups(model, 4e-3, 0.1)
    parameters = dict(model.named_parameters())
    assert [id(x) for x in slow["params"]] == [id(parameters[name]) for name in names]
    assert (slow["lr"], slow["weight_decay"], plain["weight_decay"]) == (MOST, 0.0, 0.0)
    assert decayed["weight_decay"] == 0.1 and any(x is parameters["1.residues"] for x in decayed["params"])
    assert sum(len(group["params"]) for group in (decayed, plain, slow)) == len(parameters)


def test_training_keeps_to_it() -> None:
    """The recipe of language models: poles neither decay nor take larger steps than theirs."""
    torch.manual_seed(0)
    layer = StateSpace(4, mix=False)
    begun = {name: x.detach().clone() for name, x in layer.named_parameters()}
    masters = Masters(layer, Settings(steps=10, lr=0.5, weight_decay=0.9))
    y, _ = layer(torch.randn(2, 9, 4))
    y.square().sum().backward()
    masters.gather()
    masters.step(0.5)
    moved = {name: float((x.detach() - begun[name]).abs().max()) for name, x in layer.named_parameters()}
    assert all(0 < moved[name] <= 1.01 * MOST for name in layer.timescales)
    assert moved["residues"] > 0.1


def test_parameters_stay_wide() -> None:
    layer = StateSpace(WIDTH, dtype=torch.bfloat16)
    assert {x.dtype for x in (layer.log_decay, layer.residues, layer.skip)} == {torch.float32}
    y, state = layer(torch.randn(1, 5, WIDTH, dtype=torch.bfloat16), output_state=True)
    assert y.dtype == torch.bfloat16 and state.modes.dtype == torch.float32


def test_what_does_not_fit_is_refused() -> None:
    wrong: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (errors.ArgumentTypeError, "^variant: .* must be a state_space", {"variant": "conv4_silu"}),
        (errors.ArgumentValueError, "^d_model: got 30, must be a multiple of 16", {"variant": "s4d_n64_h16"}),
        (errors.ArgumentValueError, "^steps: ", {"steps": (0.1, 0.01)}),
        (errors.ArgumentValueError, "^d_model: ", {"d_model": 0}),
    ]
    for error, match, changed in wrong:
        with pytest.raises(error, match=match):
            StateSpace(**({"d_model": 30} | changed))
    with pytest.raises(errors.ShapeError, match="^x: .*B, T, 32"):
        StateSpace(32)(torch.zeros(2, 32))
    with pytest.raises(errors.ArgumentValueError, match="^rule: "):
        discretised("tustin", *(torch.zeros(1) for _ in range(4)))
