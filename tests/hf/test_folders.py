"""Folders and names: what is saved is loaded, in every format, and what is wrong is said by its key."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from based_ops import errors, models
from based_ops.cli import main
from based_ops.hf import BasedConfig, BasedForCausalLM, BasedModel
from tests.models.test_published import ATTENTION, BASED, weights, written

from .tiny import TINY, model

IDS = torch.tensor([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]])


def same(one: Any, two: Any) -> None:
    with torch.no_grad():
        a, b = (x(IDS) for x in (one, two))
    a, b = (x[0] if isinstance(x, tuple) else x.logits for x in (a, b))
    assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("shard", ["1GB", "60KB"])
def test_saved_and_loaded(name: str, shard: str, tmp_path: Path) -> None:
    net = model(name, dtype=torch.float32)
    net.save_pretrained(tmp_path / "a", max_shard_size=shard)
    files = {x.name for x in (tmp_path / "a").iterdir()}
    assert ("model.safetensors.index.json" in files) == (shard == "60KB")
    assert [x.name for x in tmp_path.iterdir()] == ["a"]
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert type(again) is BasedForCausalLM and not again.training
    assert again.config.spec() == net.config.spec()
    assert again.lm_head.weight is again.model.embedding.weight
    same(again, net)
    same(models.load(tmp_path / "a"), net)
    body = AutoModel.from_pretrained(tmp_path / "a")
    assert type(body) is BasedModel
    with torch.no_grad():
        assert_close(body(IDS).last_hidden_state @ net.lm_head.weight.T, net(IDS).logits)
    body.save_pretrained(tmp_path / "b")
    same(BasedForCausalLM.from_pretrained(tmp_path / "b"), net)  # the head is the embedding


def test_an_older_save_is_replaced(tmp_path: Path) -> None:
    net = model(dtype=torch.float32)
    net.save_pretrained(tmp_path, max_shard_size="60KB")
    (tmp_path / "trainer_state.json").write_text("{}")
    net.to(torch.bfloat16).save_pretrained(tmp_path)
    names = sorted(x.name for x in tmp_path.iterdir())
    assert names == ["config.json", "generation_config.json", "model.safetensors", "trainer_state.json"]
    net.save_pretrained(tmp_path, is_main_process=False)  # another rank
    assert names == sorted(x.name for x in tmp_path.iterdir())
    again = BasedForCausalLM.from_pretrained(tmp_path)
    assert again.dtype == torch.bfloat16
    same(again, net)
    same(BasedForCausalLM.from_pretrained(tmp_path, dtype=torch.float32), net.float())


def test_a_save_that_breaks_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = model(dtype=torch.float32)
    net.save_pretrained(tmp_path / "a")
    before = {x.name: x.read_bytes() for x in (tmp_path / "a").iterdir()}

    def broken(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", broken)
    for name in ("a", "new"):
        with pytest.raises(OSError, match="no space left"):
            model("mamba2-tiny", dtype=torch.float32).save_pretrained(tmp_path / name)
    assert {x.name: x.read_bytes() for x in (tmp_path / "a").iterdir()} == before
    assert [x.name for x in tmp_path.iterdir()] == ["a"]


def test_heads_that_are_no_embedding(tmp_path: Path) -> None:
    config = BasedConfig.of("based-tiny", tie_word_embeddings=False)
    net = BasedForCausalLM(config).eval()
    assert net.lm_head.weight is not net.model.embedding.weight
    net.save_pretrained(tmp_path / "a")
    same(BasedForCausalLM.from_pretrained(tmp_path / "a"), net)
    same(models.load(tmp_path / "a"), net)
    net.model.save_pretrained(tmp_path / "b")
    with pytest.raises(errors.CheckpointError, match=r"^lm_head.weight: missing from the weights"):
        BasedForCausalLM.from_pretrained(tmp_path / "b")


def test_a_new_model_begins_as_ours() -> None:
    torch.manual_seed(0)
    made, ours = BasedForCausalLM(BasedConfig.of("based-tiny")), models.LanguageModel("based-tiny")
    for (name, x), y in zip(
        made.language_model().state_dict().items(), ours.state_dict().values(), strict=True
    ):
        assert x.shape == y.shape
        assert abs(float(x.std() - y.std())) < 0.1 * float(y.std()) + 1e-6, name


def test_embeddings_are_resized(tmp_path: Path) -> None:
    net = model(dtype=torch.float32)
    with torch.no_grad():
        want = net(IDS).logits
        net.resize_token_embeddings(260)
        assert_close(net(IDS).logits[..., :256], want)
    net.save_pretrained(tmp_path / "a")
    assert BasedForCausalLM.from_pretrained(tmp_path / "a").config.spec().vocabulary == 260


# Formats


@pytest.mark.parametrize("config", [BASED, ATTENTION])
def test_converted_there_and_back(config: dict[str, Any], tmp_path: Path) -> None:
    folder = written(tmp_path / "published", config | {"eos_token_id": 7}, weights(config))
    net = models.load(folder)
    models.convert(folder, tmp_path / "a", transformers=True)
    same(AutoModelForCausalLM.from_pretrained(tmp_path / "a"), net)
    for place in (folder, tmp_path / "a"):
        assert BasedForCausalLM.from_pretrained(place).generation_config.eos_token_id == 7
    models.convert(tmp_path / "a", tmp_path / "b")
    same(models.load(tmp_path / "b"), net)
    for place in (folder, tmp_path / "b"):
        found = BasedForCausalLM.from_pretrained(place)
        same(found, net)
        same(found.language_model(), net)
    assert BasedModel.from_pretrained(folder, dtype=torch.bfloat16).norm.weight.dtype == torch.bfloat16
    with pytest.raises(errors.ArgumentTypeError, match="^quantization_config: got one, must be left out"):
        BasedForCausalLM.from_pretrained(folder, quantization_config={})


def test_layers_that_no_package_has(tmp_path: Path) -> None:
    """They come with the model, into a process and a cache that have never seen them."""
    folder = written(tmp_path / "published", BASED, weights(BASED))
    models.convert(folder, tmp_path / "a")
    models.convert(folder, tmp_path / "b", transformers=True)
    code = f"""
import torch, sys
from based_ops import models
one, two = (models.load(x) for x in ({str(tmp_path / "a")!r}, {str(tmp_path / "b")!r}))
ids = torch.tensor([[1, 2, 3]])
torch.save([one(ids)[0], two(ids)[0]], {str(tmp_path / "logits")!r})
assert "transformers" not in sys.modules
"""
    environment = {"BASED_OPS_CACHE": str(tmp_path / "cache"), "PATH": "", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    with torch.no_grad():
        want = models.load(folder)(torch.tensor([[1, 2, 3]]))[0]
    for logits in torch.load(tmp_path / "logits"):
        assert_close(logits, want)


def test_the_command_line(tmp_path: Path) -> None:
    folder = written(tmp_path / "published", BASED, weights(BASED))
    run = CliRunner().invoke(
        main, ["models", "convert", str(folder), str(tmp_path / "a"), "--to", "transformers"]
    )
    assert run.exit_code == 0 and "keys without effect: fixed_decay" in run.output
    run = CliRunner().invoke(main, ["models", "info", str(tmp_path / "a")])
    assert run.exit_code == 0 and "layers: 4" in run.output
    same(AutoModelForCausalLM.from_pretrained(tmp_path / "a"), models.load(folder))


# Wrong folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model(dtype=torch.float32).save_pretrained(tmp_path / "bad")
    return tmp_path / "bad"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda w: w.pop("model.blocks.1.norm2.weight"),
            r"^(model\.)?blocks.1.norm2.weight: missing from the",
        ),
        (
            lambda w: w.update({"model.blocks.9.x": torch.ones(1)}),
            r"^(model\.)?blocks.9.x: of no layer of based-tiny",
        ),
        (
            lambda w: w.update({"model.norm.weight": torch.ones(7)}),
            r"^(model\.)?norm.weight: got shape \[7\], must be of shape \[64\]",
        ),
    ],
)
def test_wrong_weights(change: Any, text: str, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for load in (BasedForCausalLM.from_pretrained, AutoModelForCausalLM.from_pretrained, models.load):
        with pytest.raises(errors.CheckpointError, match=text):
            load(folder)


def test_damaged_files(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    for load in (BasedForCausalLM.from_pretrained, models.load):
        with pytest.raises(errors.CheckpointError, match="model.safetensors: cannot be read"):
            load(folder)
    model(dtype=torch.float32).save_pretrained(folder, max_shard_size="60KB")
    next(folder.glob("model-00002-of-*.safetensors")).write_bytes(b"x")
    for load in (BasedForCausalLM.from_pretrained, models.load):
        with pytest.raises(errors.CheckpointError, match=r"model-\d+-of-\d+.safetensors: cannot be read"):
            load(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text()[:99])
    for load in (BasedForCausalLM.from_pretrained, models.load):
        with pytest.raises(errors.CheckpointError, match="model.safetensors.index.json: cannot be read"):
            load(folder)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"mixer": {"kind": "hyenas"}}, "`mixer.kind` cannot be hyenas"),
        ({"mixer": {"kind": "gated_conv", "expend": 2}}, "unknown field `mixer.expend`"),
        ({"placement": [{"layers": [9], "mixer": {"kind": "gated_conv"}}]}, "names 9, the last layer is 3"),
        ({"norm_eps": -1.0}, "`norm_eps` must be"),
        ({"layer_specs": {"mine": "name: mine"}}, "the spec of a pickled variant, mine"),
        ({"mixer": {"kind": "gated_conv", "variant": "conv_nine"}}, "conv_nine"),
    ],
)
def test_wrong_configs(change: dict[str, Any], text: str, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    for load in (AutoModelForCausalLM.from_pretrained, models.load):
        with pytest.raises((errors.SpecErrors, errors.UnknownVariant), match=text):
            load(folder)


def test_configs_on_disk(tmp_path: Path) -> None:
    config = BasedConfig.of("hybrid-tiny", bos_token_id=3)
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is BasedConfig and again.spec() == config.spec() and again.bos_token_id == 3
    assert BasedConfig().spec() == models.load_spec("based-360m")
    made = AutoModelForCausalLM.from_config(again)
    assert type(made) is BasedForCausalLM


# The hub


def test_names_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = written(tmp_path / "published", BASED, weights(BASED))
    model(dtype=torch.float32).save_pretrained(tmp_path / "ours")
    asked = []

    def download(name: str, allow_patterns: list[str], **options: Any) -> str:
        asked.append((name, options))
        assert "pytorch_model*.bin" in allow_patterns
        return str({"hazyresearch/based-360m": published, "me/mine": tmp_path / "ours"}[name])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    want = models.load(published)
    same(models.load("hazyresearch/based-360m"), want)
    same(BasedForCausalLM.from_pretrained("hazyresearch/based-360m", revision="v1"), want)
    same(BasedForCausalLM.from_pretrained("me/mine", local_files_only=True), model(dtype=torch.float32))
    models.convert("hazyresearch/based-360m", "out")
    same(models.load("out"), want)
    options = [{}, {"revision": "v1"}, {"local_files_only": True}, {}]
    names = ["hazyresearch/based-360m", "hazyresearch/based-360m", "me/mine", "hazyresearch/based-360m"]
    assert asked == list(zip(names, options, strict=True))


def test_what_the_hub_does_not_give(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise ConnectionError("no network\n  here")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    text = "^hazyresearch/nope: no folder, and not to be had from the hub: no network here"
    for load in (models.load, BasedForCausalLM.from_pretrained):
        with pytest.raises(errors.CheckpointError, match=text):
            load("hazyresearch/nope")
    with pytest.raises(errors.CheckpointError, match="no model: neither"):
        models.load("no-such-folder")
    monkeypatch.setattr("based_ops.extras.installed", lambda module: module != "huggingface_hub")
    with pytest.raises(errors.MissingExtra, match=r"huggingface_hub; run: pip install 'based-ops\[hf\]'"):
        models.load("hazyresearch/nope")
