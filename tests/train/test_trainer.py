"""A run of one process: its recipe, its order, and that it goes on as if it had not been interrupted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as drawn
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from based_ops import models
from based_ops.errors import ArgumentTypeError, ArgumentValueError, CheckpointError
from based_ops.models import LanguageModel
from based_ops.train import Settings, Trainer, flops
from based_ops.train import trainer as trainer_module

from .runs import TINY, made, model, settings, text


def losses(trainer: Trainer, steps: int) -> list[float]:
    return [float(x) for _ in range(steps) for x in trainer.step()]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", TINY)
def test_a_run_goes_on_bit_for_bit(name: str, dtype: str, tmp_path: Path) -> None:
    one = made(name, dtype=dtype, calls=2)
    assert one.resume(tmp_path) == 0, "there is nothing yet"
    losses(one, 2)
    one.save(tmp_path)
    want = losses(one, 2)
    torch.manual_seed(1)
    again = made(name, dtype=dtype, calls=2)
    losses(again, 1)
    assert again.resume(tmp_path) == 2
    assert losses(again, 2) == want
    for x, y in zip(one.weights().values(), again.weights().values(), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("name", TINY)
def test_losses_fall(name: str) -> None:
    trainer = made(name, text(), steps=60, lr=1e-2, dtype="float32")
    before = trainer.evaluate()
    progress = list(trainer.run(every=20))
    assert [x.step for x in progress] == [20, 40, 60]
    assert trainer.evaluate() < before - 1.0
    assert all(x.tokens_per_second > 0 and x.utilisation is None for x in progress)


def test_masters_keep_what_bfloat16_rounds_away() -> None:
    """Steps too small for bfloat16 move the masters, and the model once they have added up."""
    trainer = made("based-tiny", dtype="bfloat16", lr=1e-5, warmup=0, steps=100)
    name = "blocks.0.mlp.fc1.weight"
    before = trainer.weights()[name].clone()
    weight = trainer.model.get_parameter(name)
    assert weight.dtype == torch.bfloat16 and before.dtype == torch.float32
    losses(trainer, 1)
    after = trainer.weights()[name]
    assert not torch.equal(after, before)
    assert torch.equal(weight, after.to(torch.bfloat16))
    assert (weight == before.to(torch.bfloat16)).float().mean() > 0.9


def test_calls_add_up() -> None:
    one, several = made("based-tiny"), made("based-tiny", calls=4)
    assert losses(one, 3) == pytest.approx(losses(several, 3), rel=1e-10)


def test_norms_and_biases_do_not_decay() -> None:
    trainer = made("based-tiny", lr=1e-2, warmup=0, weight_decay=10.0)
    plain = made("based-tiny", lr=1e-2, warmup=0, weight_decay=0.0)
    for x in (trainer, plain):
        losses(x, 1)
    for (name, x), y in zip(trainer.weights().items(), plain.weights().values(), strict=True):
        assert (x.dim() == 1) == torch.equal(x, y), name


def test_the_optimiser_is_pytorchs() -> None:
    """One step of a plain loop with clipped gradients."""
    trainer, net = made("based-tiny", clip=0.1), model("based-tiny")
    ids = trainer.sequences(0).long()
    groups = [[x for x in net.parameters() if (x.dim() > 1) == matrix] for matrix in (True, False)]
    optimizer = torch.optim.AdamW(
        [{"params": x, "weight_decay": decay} for x, decay in zip(groups, (0.1, 0.0), strict=True)],
        lr=trainer.settings.learning_rate(0),
        betas=(0.9, 0.95),
    )
    loss = nn.functional.cross_entropy(net(ids[:, :-1])[0].flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    norm = nn.utils.clip_grad_norm_(net.parameters(), 0.1)
    optimizer.step()
    assert losses(trainer, 1) == pytest.approx([float(loss.detach()), float(norm)])
    for name, x in net.named_parameters():
        assert_close(trainer.weights()[name], x.detach(), msg=name)


@given(st.integers(1, 500), st.integers(0, 200), st.floats(0, 1))
@drawn(deadline=None)
def test_learning_rates(steps: int, warmup: int, lowest: float) -> None:
    recipe = settings(steps=steps, warmup=warmup, lowest=lowest)
    rates = [recipe.learning_rate(step) for step in range(steps)]
    top = min(warmup, steps)
    assert rates[:top] == sorted(rates[:top]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert all(0 <= x <= recipe.lr * (1 + 1e-9) for x in rates)
    if warmup < steps:
        assert rates[warmup] == pytest.approx(recipe.lr)
        assert recipe.learning_rate(steps) == pytest.approx(lowest * recipe.lr)


def test_sequences_follow_from_seed_and_step_alone() -> None:
    one, two, other = made("based-tiny"), made("based-tiny"), made("based-tiny", seed=1)
    losses(one, 1)
    assert torch.equal(one.sequences(5), two.sequences(5))
    assert not torch.equal(one.sequences(5), two.sequences(6))
    assert not torch.equal(one.sequences(5), other.sequences(5))


def test_evaluation_is_the_loss_of_held_out_text() -> None:
    trainer = made("based-tiny", length=99)
    tokens = trainer.text.held_out  # 1000: ten sequences, each but the last of them whole
    with torch.no_grad():
        rows = torch.stack([tokens[s : s + 100] for s in torch.linspace(0, 900, 10).long().tolist()]).long()
        want = nn.functional.cross_entropy(
            trainer.model(rows[:, :-1])[0].flatten(0, 1), rows[:, 1:].flatten()
        )
    assert trainer.evaluate() == pytest.approx(float(want))


@pytest.mark.parametrize("name", TINY)
def test_compiled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `compiled` asks of `torch.compile`, without its code generator."""
    wants = losses(made(name, dtype="float32"), 2)
    compile_ = torch.compile
    monkeypatch.setattr(
        trainer_module.torch, "compile", lambda f: compile_(f, backend="aot_eager", fullgraph=True)
    )
    monkeypatch.setattr(
        nn.Module, "compile", lambda x: setattr(x, "forward", compile_(x.forward, backend="aot_eager"))
    )
    torch._dynamo.reset()
    trainer = Trainer(model(name, torch.float32), text(), settings(dtype="float32"), compiled=True)
    assert losses(trainer, 2) == pytest.approx(wants, rel=1e-4)


@pytest.mark.parametrize("length", [17, 300])
@pytest.mark.parametrize("name", TINY)
def test_operations_are_those_that_pytorch_counts(name: str, length: int) -> None:
    """Forward; attention counts the pairs that it sees, where PyTorch counts all."""
    net = LanguageModel(name, device="meta")
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, length, dtype=torch.int64, device="meta"))
    counted = counter.get_total_flops()
    if name == "transformer-tiny":
        counted -= 2 * 2.0 * 64 * length * (length - 1)
    assert flops.of_token(net, length) * length / 3 == pytest.approx(counted, rel=1e-6)


@pytest.mark.parametrize(
    ("given", "error", "start"),
    [
        ({"steps": 0}, ArgumentValueError, "steps: got 0, must be 1 or more"),
        ({"steps": 1.5}, ArgumentTypeError, "steps: got float"),
        ({"batch": True}, ArgumentTypeError, "batch: got bool"),
        ({"lr": float("nan")}, ArgumentValueError, "lr: got nan"),
        ({"lr": 0.0}, ArgumentValueError, "lr: got 0.0"),
        ({"clip": -1.0}, ArgumentValueError, "clip: got -1.0"),
        ({"warmup": -1}, ArgumentValueError, "warmup: got -1, must be 0 or more"),
        ({"betas": (0.9, 1.0)}, ArgumentValueError, "betas: got"),
        ({"lowest": 2.0}, ArgumentValueError, "lowest: got 2.0, must be from 0 to 1"),
        ({"dtype": "float16"}, ArgumentValueError, "dtype: got 'float16', must be one of bfloat16"),
    ],
)
def test_bad_settings(given: dict[str, object], error: type[Exception], start: str) -> None:
    with pytest.raises(error) as found:
        settings(**given)
    assert str(found.value).startswith(start)


def test_bad_runs() -> None:
    with pytest.raises(ArgumentValueError, match="^length: got 4000, must be below the 3000 tokens"):
        made("based-tiny", length=4000)
    with pytest.raises(ArgumentValueError, match="^calls: got 3, must be a divisor of 4"):
        made("based-tiny", calls=3)


def test_runs_of_others(tmp_path: Path) -> None:
    one = made("based-tiny", dtype="float32")
    losses(one, 1)
    place = one.save(tmp_path)
    assert made("based-tiny", dtype="float32", steps=9).resume(tmp_path) == 1, "a longer run is the same"
    for other, message in (
        (made("hybrid-tiny", dtype="float32"), "model: got a run of layers 4, must be of layers 2"),
        (made("based-tiny", dtype="bfloat16"), "dtype: got a run with 'float32', must be 'bfloat16'"),
        (made("based-tiny", text(2000), dtype="float32"), "text: got a run of"),
    ):
        with pytest.raises(CheckpointError, match=message):
            other.resume(tmp_path)
    wider = dataclasses.replace(models.load_spec("based-tiny"), norm_eps=1e-3)
    with pytest.raises(CheckpointError, match="got a run of norm_eps 1e-05, must be of norm_eps 0.001"):
        made(wider, dtype="float32").resume(tmp_path)
    run = json.loads((tmp_path / "run.json").read_text())
    del run["sizes"]["norm.weight"]
    (tmp_path / "run.json").write_text(json.dumps(run))
    with pytest.raises(CheckpointError, match="sizes: got a run of norm.weight missing"):
        one.resume(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match="run.json: cannot be read"):
        one.resume(tmp_path)
    one.save(tmp_path)
    for file in place.glob("*.distcp"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="step-00000001: cannot be read"):
        one.resume(tmp_path)
    (place / ".metadata").unlink()
    with pytest.raises(CheckpointError, match="step-00000001: cannot be read"):
        one.resume(tmp_path)


def test_a_save_that_is_interrupted_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch.distributed.checkpoint as dcp

    one = made("based-tiny", dtype="float32")
    losses(one, 1)
    one.save(tmp_path)
    losses(one, 1)

    def full(*given: object, **named: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(dcp, "save", full)
        with pytest.raises(CheckpointError, match="cannot be written: OSError.*no space"):
            one.save(tmp_path)
    assert made("based-tiny", dtype="float32").resume(tmp_path) == 1
    one.save(tmp_path)
    assert [x.name for x in sorted(tmp_path.glob("step-*"))] == ["step-00000002"], "the newest one stays"


def test_settings_come_back_from_a_file() -> None:
    from dataclasses import asdict

    recipe = settings()
    assert Settings(**json.loads(json.dumps(asdict(recipe)))) == recipe
