"""Distilled models: as the exact ones, with states of constant size; and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from based_ops.cli import main
from based_ops.distill import distil, paces, silenced, words
from based_ops.errors import ArgumentValueError
from based_ops.generate import Engine
from based_ops.models import LanguageModel, load, load_spec, save
from based_ops.train import Settings, Trainer
from based_ops.train.text import Bytes, Text

LENGTH = 64


@torch.enable_grad()
def trained(name: str, steps: int = 12) -> LanguageModel:
    """A model of seconds: it learns to say a sentence again and again."""
    spec = load_spec(name)
    spec = replace(spec, mixer=replace(spec.mixer, length=LENGTH))  # type: ignore[arg-type,call-arg]
    torch.manual_seed(0)
    sentence = torch.tensor(list(b"what a long filter says, a few poles say. ") * 60)
    recipe = Settings(steps, 4, LENGTH, lr=3e-3, warmup=4, dtype="float32")
    trainer = Trainer(LanguageModel(spec), Text(sentence, sentence[:400], Bytes(), 1.0), recipe)
    for _ in trainer.run():
        pass
    trainer.model.load_state_dict(trainer.weights(), strict=False)
    return trainer.model.eval()


@pytest.fixture(scope="module", params=["hyena-tiny", "multihyena-tiny"])
def exact(request: pytest.FixtureRequest) -> LanguageModel:
    return trained(request.param)


@torch.no_grad()
def test_logits_of_a_trained_model_are_met(exact: LanguageModel, tmp_path: Path) -> None:
    model, layers = distil(exact, 12)
    assert [layer.block for layer in layers] == [0, 1]
    ids = torch.randint(256, (2, LENGTH))
    wanted, found = exact(ids)[0], model(ids)[0]
    assert (found - wanted).norm() < 1e-3 * wanted.norm()
    for layer in layers:
        assert (layer.fit.l2.quantile(0.95) < 1e-3).item()
    near = words(exact, model, torch.randint(256, (3, LENGTH + 1)))
    assert near.error < 1e-3 and near.agree > 0.95
    assert near.perplexity == pytest.approx(near.exact_perplexity, rel=1e-3)
    # The filters matter: without them the logits are others.
    without = words(exact, silenced(model), torch.randint(256, (3, LENGTH + 1)))
    assert without.error > 10 * near.error
    # It is a model as any other: on disk, step by step, and in an engine, beyond the filter's end.
    save(model, tmp_path / "model")
    again = load(tmp_path / "model")
    torch.testing.assert_close(again(ids)[0], found)
    state = model.init_state(2)
    steps = [model.step(ids[:, t : t + 1], state) for t in range(LENGTH)]
    torch.testing.assert_close(torch.cat(steps, 1), found, rtol=1e-3, atol=1e-4)
    assert model.packs and model.state_bytes(1, 16) == model.state_bytes(1, 2**16)
    engine = Engine(model, slots=2)
    said = engine.generate([[1, 2, 3], list(range(20))], most=2 * LENGTH)
    assert [len(tokens) for tokens in said] == [2 * LENGTH] * 2


@torch.no_grad()
def test_an_exact_model_generates_as_far_as_its_filter(exact: LanguageModel) -> None:
    engine = Engine(exact, slots=2, most=LENGTH)
    assert not exact.records and distil(exact, 4)[0].records
    with pytest.raises(ArgumentValueError, match="compiled: got True, must be False: what .*hyena-tiny does"):
        Engine(exact, compiled=True)
    prompts = [[1, 2, 3], list(range(20))]
    for prompt, tokens in zip(prompts, engine.generate(prompts, most=LENGTH - 20), strict=True):
        ids = list(prompt)
        for token in tokens:
            logits = exact(torch.tensor([ids]))[0][0, -1]
            assert logits[token] >= logits.max() - 1e-4
            ids.append(token)


@torch.no_grad()
def test_paces_are_of_four_models() -> None:
    exact = trained("hyena-tiny", 1)
    model, _ = distil(exact, 4)
    found = {x.model: x for x in paces(exact, model, 48, 2, 8)}
    assert list(found) == ["distilled", "exact, relaxed", "exact, transforms of all", "Transformer"]
    assert all(x.tokens_per_second > 0 for x in found.values())
    assert found["distilled"].state_bytes < found["exact, relaxed"].state_bytes / 3


def test_some_layers_and_none() -> None:
    spec = load_spec("hyena-tiny")
    other = load_spec("based-tiny")
    mixed = replace(spec, mixer=replace(spec.mixer, length=LENGTH), placement=other.placement[:1])  # type: ignore[call-arg,arg-type]
    model, layers = distil(LanguageModel(mixed), 4)
    assert [layer.block for layer in layers] == [0]
    kinds = [mixer.kind for mixer in model.spec.mixers()]
    assert kinds == ["hyena", "linear_attention"] and model.spec.name == "hyena-tiny-distilled"
    with pytest.raises(ArgumentValueError, match="checkpoint: got based-tiny, of gated_conv, linear_att"):
        distil(LanguageModel("based-tiny"))
    with pytest.raises(ArgumentValueError, match="checkpoint: got hyena-tiny-distilled"):
        distil(model)


def test_filters_that_are_not_finite_and_orders_that_do_not_fit() -> None:
    spec = load_spec("hyena-tiny")
    net = LanguageModel(replace(spec, mixer=replace(spec.mixer, length=LENGTH)))  # type: ignore[call-arg,arg-type]
    with pytest.raises(ArgumentValueError, match="order: got 32, .* blocks.0.mixer.long.filters has 64 taps"):
        distil(net, 32)
    with torch.no_grad():
        net.get_parameter("blocks.1.mixer.long.last").fill_(float("nan"))
    with pytest.raises(
        ArgumentValueError, match="blocks.1.mixer.long.filters: got NaN or infinity in filter 0"
    ):
        distil(net, 4)


def test_the_command(tmp_path: Path) -> None:
    save(trained("hyena-tiny", 2), tmp_path / "exact")
    folder = tmp_path / "text"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.txt").write_text("what a long filter says, a few poles say. " * 40 + str(i))
    words = ("distill", tmp_path / "exact", tmp_path / "out", "--text", folder, "--rows", "2", "--new", "4")
    done = CliRunner().invoke(main, [*map(str, words), "--batch", "1"])
    assert done.exit_code == 0, done.output
    assert "perplexity" in done.output and "Transformer" in done.output and "within 2×" in done.output
    report = json.loads((tmp_path / "out" / "distillation.json").read_text())
    assert (
        len(report["layers"]) == 2
        and report["words"]["error"] < 1e-2
        and "torch" in report["machine"]["versions"]
    )
    assert load(tmp_path / "out").spec.name == "hyena-tiny-distilled"
    wrong = CliRunner().invoke(main, [*map(str, words), "--order", "7"])
    assert wrong.exit_code == 2 and "order: got 7, must be even" in wrong.output
    wrong = CliRunner().invoke(main, ["distill", str(tmp_path / "nope"), str(tmp_path / "o")])
    assert wrong.exit_code == 2
