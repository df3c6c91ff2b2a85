"""Checkpoints in the format of the paper's code, against its mathematics written out, and on disk."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import silu, softmax
from torch.testing import assert_close

from based_ops import errors, models
from based_ops.codegen.spec.language_model import Attention, GatedConv, SlidingWindow
from based_ops.models import checkpoint, published

WIDTH, HEADS, LAYERS, INNER = 128, 2, 4, 256

BASED = {
    "n_embd": WIDTH,
    "n_head": HEADS,
    "n_layer": LAYERS,
    "n_inner": 200,  # rounded up to 256
    "vocab_size": 97,
    "pad_vocab_size_multiple": 8,
    "layer_norm_epsilon": 1e-5,
    "rms_norm": True,
    "activation_function": "swiglu",
    "rotary_emb_fraction": 1,
    "fixed_decay": True,
    "special_initializer": True,
    "residual_in_fp32": True,
    "alt_mixer_layers": [1, 2],
    "alt_mixer_2_layers": [2],
    "mixer": {"_target_": "based.models.mixers.convolution.BaseConv", "expand_proj": 4, "kernel_sizes": 9},
    "alt_mixer": {
        "_target_": "based.models.mixers.linear_attention.LinearAttention",
        "feature_dim": 16,
        "num_heads": HEADS,
        "parallel_implementation": "fla_parallel",
    },
    "alt_mixer_2": {
        "_target_": "based.models.mixers.slide_attention.SlidingAttention",
        "window_size": 12,
        "num_heads": 77,  # the model's count
    },
}
ATTENTION: dict[str, Any] = {
    "n_embd": 140,
    "n_head": 2,
    "n_layer": 2,
    "n_inner": None,
    "vocab_size": 97,
    "pad_vocab_size_multiple": 16,
    "rms_norm": True,
    "activation_function": "swiglu",
    "rotary_emb_fraction": 0.5,  # 35 of 70, an odd number
}


def weights(config: dict[str, Any]) -> dict[str, Tensor]:
    """Random weights by the names that the paper's code gives them."""
    torch.manual_seed(0)
    d, multiple = config["n_embd"], config["pad_vocab_size_multiple"]
    inner = -(-(config["n_inner"] or int(8 * d / 3)) // 256) * 256
    vocabulary = -(-config["vocab_size"] // multiple) * multiple
    made: dict[str, Tensor] = {"transformer.embeddings.word_embeddings.weight": torch.randn(vocabulary, d)}

    def draw(name: str, *shape: int) -> None:
        made[name] = torch.randn(shape) / (shape[-1] ** 0.5 if len(shape) > 1 else 5.0)

    for i in range(config["n_layer"]):
        at = f"transformer.layers.{i}"
        for name in ("norm1", "norm2"):
            made[f"{at}.{name}.weight"] = 1 + 0.2 * torch.randn(d)
        draw(f"{at}.mlp.fc1.weight", 2 * inner, d)
        draw(f"{at}.mlp.fc2.weight", d, inner)
        if "mixer" not in config or i in config["alt_mixer_2_layers"]:
            draw(f"{at}.mixer.Wqkv.weight", 3 * d, d)
            draw(f"{at}.mixer.out_proj.weight", d, d)
        elif i in config["alt_mixer_layers"]:
            for name in ("q", "k"):
                draw(f"{at}.mixer.proj_{name}.weight", 16 * HEADS, d)
            draw(f"{at}.mixer.proj_v.weight", d, d)
            draw(f"{at}.mixer.out_proj.weight", d, d)
        else:
            draw(f"{at}.mixer.in_proj.weight", 4 * d, d)
            draw(f"{at}.mixer.in_proj.bias", 4 * d)
            made[f"{at}.mixer.conv.conv.weight"] = torch.randn(2 * d, 1, 3) / 2
            draw(f"{at}.mixer.out_proj.weight", d, 2 * d)
            draw(f"{at}.mixer.out_proj.bias", d)
    made["transformer.ln_f.weight"] = 1 + 0.2 * torch.randn(d)
    made["lm_head.weight"] = made["transformer.embeddings.word_embeddings.weight"]
    return made


def rotated(x: Tensor, width: int) -> Tensor:
    """[T,H,D] with the first of its components turned in pairs that are half of them apart."""
    length, half = x.shape[0], -(-width // 2)
    for t in range(length):
        for i in range(half):
            angle = t / 10000 ** (2 * i / width)
            a, b = x[t, :, i].clone(), x[t, :, half + i].clone()
            x[t, :, i] = a * math.cos(angle) - b * math.sin(angle)
            x[t, :, half + i] = a * math.sin(angle) + b * math.cos(angle)
    return x


def by_hand(config: dict[str, Any], w: dict[str, Tensor], ids: list[int]) -> Tensor:
    """Logits of one sequence, as the paper's code computes them, in float64."""
    w = {name: x.double() for name, x in w.items()}
    d, heads = config["n_embd"], config["n_head"]
    x, length = w["transformer.embeddings.word_embeddings.weight"][ids], len(ids)

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"]

    def attend(u: Tensor, at: str, back: int) -> Tensor:
        q, k, v = (u @ w[f"{at}.Wqkv.weight"].T).view(length, 3, heads, d // heads).unbind(1)
        turned = int(config["rotary_emb_fraction"] * (d // heads))
        q, k = rotated(q.clone(), turned), rotated(k.clone(), turned)
        out = torch.zeros(length, heads, d // heads, dtype=torch.float64)
        for i in range(length):
            first = max(0, i - back)
            s = torch.einsum("hd,jhd->hj", q[i], k[first : i + 1]) / (d // heads) ** 0.5
            out[i] = torch.einsum("hj,jhd->hd", softmax(s, -1), v[first : i + 1])
        return out.flatten(1) @ w[f"{at}.out_proj.weight"].T

    for i in range(config["n_layer"]):
        at = f"transformer.layers.{i}"
        u, m = norm(x, f"{at}.norm1"), f"{at}.mixer"
        if "mixer" not in config:
            y = attend(u, m, length)
        elif i in config["alt_mixer_2_layers"]:
            y = attend(u, m, config["alt_mixer_2"]["window_size"] // 2)
        elif i in config["alt_mixer_layers"]:
            q, k = ((u @ w[f"{m}.proj_{n}.weight"].T).view(length, heads, 16) for n in "qk")
            v = (u @ w[f"{m}.proj_v.weight"].T).view(length, heads, -1)
            s = torch.einsum("ihd,jhd->hij", q, k) / 4
            a = (1 + s + s * s / 2).tril()
            y = torch.einsum("hij,jhd->ihd", a, v) / (a.sum(-1).T + 1e-12).unsqueeze(-1)
            y = y.flatten(1) @ w[f"{m}.out_proj.weight"].T
        else:
            u1, u2 = (u @ w[f"{m}.in_proj.weight"].T + w[f"{m}.in_proj.bias"]).chunk(2, -1)
            taps = w[f"{m}.conv.conv.weight"][:, 0]
            padded = torch.cat([torch.zeros(2, u1.shape[1], dtype=torch.float64), u1])
            conv = sum(taps[:, j] * padded[j : j + length] for j in range(3))
            y = (silu(conv) * u2) @ w[f"{m}.out_proj.weight"].T + w[f"{m}.out_proj.bias"]
        x = x + y
        a, b = (norm(x, f"{at}.norm2") @ w[f"{at}.mlp.fc1.weight"].T).chunk(2, -1)
        x = x + (a * silu(b)) @ w[f"{at}.mlp.fc2.weight"].T
    return norm(x, "transformer.ln_f") @ w["lm_head.weight"].T


@pytest.fixture(params=["based", "attention"])
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(BASED if request.param == "based" else ATTENTION)


@pytest.fixture
def folder(config: dict[str, Any], tmp_path: Path) -> Path:
    return written(tmp_path / "based-Test", config, weights(config))


def written(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder


def test_logits(config: dict[str, Any], folder: Path) -> None:
    net = models.load(folder)
    assert not net.training and net.embedding.weight.dtype == torch.float32
    ids = torch.randint(97, (1, 40)).tolist()
    want = by_hand(config, weights(config), ids[0])
    with torch.no_grad():
        got = net(torch.tensor(ids))[0][0]
        assert_close(got.double(), want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
        wide = models.load(folder, dtype=torch.float64)
        assert_close(wide(torch.tensor(ids))[0][0], want, rtol=1e-5, atol=1e-5)
        state = net.init_state(1, 40)
        _, state = net(torch.tensor(ids)[:, :30], state, output_state=True)
        assert_close(net.step(torch.tensor(ids)[:, 30:], state)[0], got[30:], rtol=1e-3, atol=1e-3)


def test_what_a_config_means() -> None:
    report = published.Report()
    spec = published.spec_of(BASED | {"surprise": 1}, "Based_Test", report)
    assert (
        spec.name == "based-test"
        and spec.vocabulary == 104
        and spec.mlp is not None
        and spec.mlp.inner == 256
    )
    first, second, third, _ = spec.mixers()
    assert first == GatedConv("conv3_silu", 2) and second.kind == "linear_attention"
    assert (
        isinstance(third, SlidingWindow) and third.heads == HEADS and third.variant.startswith("window7_d64")
    )
    assert report.unknown == ["surprise"]
    assert "fixed_decay" in report.without_effect
    spec = published.spec_of(ATTENTION, "attn", report)
    assert spec.mixer == Attention(2, 0, 0.5) and not spec.placement


def test_names_with_a_prefix_and_scalars_that_are_no_weights(config: dict[str, Any], tmp_path: Path) -> None:
    plain = written(tmp_path / "plain", config, weights(config))
    named = {f"model.{name}": x for name, x in weights(config).items()}
    extra = {"train_metrics.num-tokens.count": torch.tensor(3), "transformer.decay.decay": torch.ones(3)}
    other = written(tmp_path / "other", config, named | extra)
    ids = torch.randint(97, (1, 9))
    assert_close(models.load(other)(ids)[0], models.load(plain)(ids)[0])
    _, _, report = checkpoint.read(other)
    assert sorted(report.dropped) == sorted(extra)


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_weights_in_shards(kind: str, config: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    tensors = {name: x.clone() for name, x in weights(config).items() if name != "lm_head.weight"}
    other = written(tmp_path / "other", config, {})
    (other / "pytorch_model.bin").unlink()
    places = {name: f"shard-{i % 3}.{kind}" for i, name in enumerate(tensors)}
    for file in set(places.values()):
        part = {name: x for name, x in tensors.items() if places[name] == file}
        save_file(part, other / file) if kind == "safetensors" else torch.save(part, other / file)
    index = other / ("model.safetensors" if kind == "safetensors" else "pytorch_model.bin")
    index = index.with_name(f"{index.name}.index.json")
    index.write_text(json.dumps({"weight_map": places}))
    ids = torch.randint(97, (1, 9))
    assert_close(models.load(other)(ids)[0], models.load(folder)(ids)[0], rtol=0, atol=0)
    index.write_text(json.dumps({"weight_map": places | {"extra": f"shard-0.{kind}"}}))
    with pytest.raises(errors.CheckpointError, match="^extra: missing from .*shard-0"):
        models.load(other)
    index.write_text(json.dumps({"weight_map": []}))
    with pytest.raises(errors.CheckpointError, match="index.json: its weight_map is not a mapping"):
        models.load(other)


def test_converted_saved_and_loaded(config: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    report = models.convert(folder, tmp_path / "out")
    assert not report.unknown
    one, two = models.load(folder), models.load(tmp_path / "out")
    ids = torch.randint(97, (2, 11))
    assert_close(one(ids)[0], two(ids)[0], rtol=0, atol=0)
    assert two.spec == one.spec
    models.save(two.to(torch.bfloat16), tmp_path / "out")  # in the place of the other
    three = models.load(tmp_path / "out")
    assert three.embedding.weight.dtype == torch.bfloat16
    assert three.head.weight is three.embedding.weight
    assert sorted(x.name for x in (tmp_path / "out").iterdir()) == ["model.safetensors", "model.yaml"]
    assert sorted(x.name for x in tmp_path.iterdir()) == ["based-Test", "out"]


@pytest.mark.parametrize("name", [n for n in models.shipped() if n.endswith("tiny")])
def test_every_kind_of_model_is_saved(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = models.LanguageModel(name)
    models.save(net, tmp_path / "a")
    other = models.load(tmp_path / "a")
    ids = torch.randint(256, (1, 9))
    assert_close(net(ids)[0], other(ids)[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda w: w.pop("transformer.layers.1.norm2.weight"), "transformer.layers.1.norm2.weight: missing"),
        (
            lambda w: w.update({"transformer.layers.9.x": torch.ones(1)}),
            "transformer.layers.9.x: of no layer",
        ),
        (
            lambda w: w.update({"transformer.ln_f.weight": torch.ones(7)}),
            r"norm.weight: got shape \[7\], must be of shape \[",
        ),
        (
            lambda w: w.update({"lm_head.weight": torch.ones(2, 2)}),
            "lm_head.weight: differs from the embedding",
        ),
    ],
)
def test_wrong_weights(change: Any, text: str, config: dict[str, Any], tmp_path: Path) -> None:
    tensors = weights(config)
    change(tensors)
    with pytest.raises(errors.CheckpointError, match=text):
        models.load(written(tmp_path / "bad", config, tensors))
    with pytest.raises(errors.CheckpointError, match=text):
        models.convert(tmp_path / "bad", tmp_path / "out")
    assert sorted(x.name for x in tmp_path.iterdir()) == ["bad"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"rms_norm": False}, "rms_norm is False"),
        ({"activation_function": "gelu"}, "activation_function is 'gelu'"),
        ({"n_head": 3}, "no multiple of n_head 3"),
        ({"n_layer": "many"}, "n_layer is 'many'"),
        ({"mixer": {"_target_": "based.models.mixers.hyena.Hyena"}}, "mixer is a Hyena; known are BaseConv"),
        ({"rotary_emb_fraction": 0.5}, "a window turns all of a head"),
    ],
)
def test_wrong_configs(change: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(errors.CheckpointError, match=text):
        models.load(written(tmp_path / "bad", BASED | change, weights(BASED)))


def test_damaged_files(tmp_path: Path) -> None:
    bad = written(tmp_path / "bad", BASED, weights(BASED))
    (bad / "pytorch_model.bin").write_bytes((bad / "pytorch_model.bin").read_bytes()[:5000])
    with pytest.raises(errors.CheckpointError, match="pytorch_model.bin: cannot be read"):
        models.load(bad)
    (bad / "config.json").write_text("{")
    with pytest.raises(errors.CheckpointError, match="config.json: cannot be read"):
        models.load(bad)
    with pytest.raises(errors.CheckpointError, match="no model: neither model.yaml nor config.json"):
        models.load(tmp_path / "nowhere")
    models.save(models.LanguageModel("based-tiny"), tmp_path / "ours")
    (tmp_path / "ours" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(errors.CheckpointError, match="model.safetensors: cannot be read"):
        models.load(tmp_path / "ours")
    with pytest.raises(errors.CheckpointError, match="exists, and is no model"):
        models.save(models.LanguageModel("based-tiny"), bad)
