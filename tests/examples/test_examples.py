"""Every example, as its line in examples/README.md starts it, at sizes of seconds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from based_ops import models

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
README = (EXAMPLES / "README.md").read_text(encoding="utf-8")
ELSEWHERE = {"serve.py": "tests/generate/test_serve.py", "train_lm.py": "tests/train/test_example.py"}
"""Examples that other tests run."""


def run(name: str, *words: object, directory: Path, ranks: int = 1, code: int = 0) -> str:
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if ranks == 2 else []
    done = subprocess.run(
        [sys.executable, *start, str(EXAMPLES / name), *map(str, words)],
        cwd=directory,
        env={**os.environ, "OMP_NUM_THREADS": "1", "BASED_OPS_CACHE": str(directory / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A folder of text that can be learned."""
    folder = tmp_path / "text"
    folder.mkdir()
    words = "the state of a layer has a fixed size, and so it never grows with the text that it has read. "
    (folder / "a.md").write_text("\n\n".join(words * n for n in (1, 3, 2, 8, 5, 1, 9)))
    return folder


def numbers(pattern: str, output: str) -> list[float]:
    return [float(x) for x in re.findall(pattern, output)]


def test_a_feature_map(tmp_path: Path) -> None:
    plot = tmp_path / "curves.png"
    out = run(
        "feature_map.py", "--beside", "relu_qk64_v64", "--steps", 24, "--plot", plot, directory=tmp_path
    )
    assert re.findall(r"^\w+$", out, re.MULTILINE) == ["my_map", "relu_qk64_v64"]
    losses = numbers(r"loss (\S+)", out)
    assert len(losses) == 12 and losses[5] < losses[0] and losses[11] < losses[6]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_recall(tmp_path: Path) -> None:
    words = ("based d=16 features=8", "window d=16 window=8", "--epochs", 1, "--examples", 128)
    out = run("recall.py", *words, directory=tmp_path)
    sizes = [int(x.replace(",", "")) for x in re.findall(r": ([\d,]+) bytes of state", out)]
    assert len(sizes) == 2 and min(sizes) > 0 and len(numbers(r"loss (\S+)", out)) == 2
    assert len(re.findall(r"recalled .* %, .* %, .* %", out)) == 2


def test_attention_is_transferred(tmp_path: Path, text: Path) -> None:
    """The errors of both layers fall, and what is written is as long as was asked for."""
    pytest.importorskip("transformers")
    out = run("lolcats.py", text, "--teach", 4, "--steps", 10, "--length", 96, directory=tmp_path)
    errors = [[float(x) for x in line.split()] for line in re.findall(r"error of each layer (.*)", out)]
    assert all(last < first for first, last in zip(errors[0], errors[-1], strict=True))
    before, after = numbers(r"loss (\S+) before", out)[0], numbers(r"swap, (\S+) after", out)[0]
    assert abs(before - after) < 0.2
    assert len(eval(re.findall(r"^writes: (.*)$", out, re.MULTILINE)[0])) == 40


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without distributed")
def test_packed_documents_and_shards(tmp_path: Path, text: Path) -> None:
    out = run("packed_fsdp.py", text, "--steps", 4, "--tokens", 128, directory=tmp_path, ranks=2)
    losses = numbers(r"loss (\S+)", out)
    assert len(losses) == 2 and losses[1] < losses[0]
    kept, every = (int(x.replace(",", "")) for x in re.findall(r"keeps ([\d,]+) of ([\d,]+)", out)[0])
    assert every / 2 <= kept < 0.6 * every


def test_batching(tmp_path: Path) -> None:
    out = run("batching.py", "--slots", 2, "--most", 20, directory=tmp_path)
    assert ("CUDA graph" in out) and ("no GPU" in out) == (not torch.cuda.is_available())
    asked = [int(x) for x in re.findall(r"asks for up to (\d+)", out)]
    assert len(asked) == 6 == len(re.findall(r"ends \((?:length|stop)\)", out))
    assert numbers(r"^(\d+) tokens in", out.splitlines()[-1])[0] <= sum(asked)


@pytest.mark.slow
def test_a_package_runs_without_compilers(tmp_path: Path) -> None:
    run("aot_package.py", "make", "layer.pt2", directory=tmp_path)
    out = run("aot_package.py", "run", "layer.pt2", directory=tmp_path)
    errors = numbers(r": (\S+) from where", out)
    assert len(errors) == 3 and max(errors) < 1e-5
    assert out.endswith("modules of compilers 0 are loaded\n")


def test_a_published_checkpoint(tmp_path: Path) -> None:
    """A folder as the paper's code writes it, of a model with all three mixers and drawn weights."""
    folder = published(tmp_path / "based-Drawn")
    out = run("published.py", folder, "--most", 5, "--save", tmp_path / "ours", directory=tmp_path)
    assert "GatedShortConv" in out and "LinearAttention" in out and "SlidingWindowAttention" in out
    tokens = json.loads(re.findall(r"goes on with (\[.*\])", out)[0])
    net = models.load(tmp_path / "ours")
    ids = [1, 2, 3]
    for token in tokens:  # greedily, from the whole sequence anew each time
        with torch.no_grad():
            assert int(net(torch.tensor([ids]))[0][0, -1].argmax()) == token
        ids.append(token)


def test_what_is_not_there_is_a_line(tmp_path: Path) -> None:
    for name in ("published.py", "feature_map.py", "long_document.py"):
        error = run(name, "nowhere", directory=tmp_path, code=1)
        assert "nowhere" in error and error.count("\n") == 1, error


def published(folder: Path) -> Path:
    width, heads, inner, vocabulary = 128, 2, 256, 104
    mixer = "based.models.mixers"
    config = {
        "n_embd": width,
        "n_head": heads,
        "n_layer": 3,
        "n_inner": inner,
        "vocab_size": 97,
        "pad_vocab_size_multiple": 8,
        "layer_norm_epsilon": 1e-5,
        "rms_norm": True,
        "activation_function": "swiglu",
        "rotary_emb_fraction": 1,
        "residual_in_fp32": True,
        "alt_mixer_layers": [1],
        "alt_mixer_2_layers": [2],
        "mixer": {"_target_": f"{mixer}.convolution.BaseConv", "expand_proj": 4, "kernel_sizes": 3},
        "alt_mixer": {
            "_target_": f"{mixer}.linear_attention.LinearAttention",
            "feature_dim": 16,
            "num_heads": heads,
        },
        "alt_mixer_2": {
            "_target_": f"{mixer}.slide_attention.SlidingAttention",
            "window_size": 12,
            "num_heads": heads,
        },
    }
    torch.manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(3):
        at = f"transformer.layers.{i}"
        shapes |= {f"{at}.mlp.fc1.weight": (2 * inner, width), f"{at}.mlp.fc2.weight": (width, inner)}
        shapes |= {f"{at}.norm{n}.weight": (width,) for n in (1, 2)}
    shapes |= {
        "transformer.layers.0.mixer.in_proj.weight": (4 * width, width),
        "transformer.layers.0.mixer.in_proj.bias": (4 * width,),
        "transformer.layers.0.mixer.conv.conv.weight": (2 * width, 1, 3),
        "transformer.layers.0.mixer.out_proj.weight": (width, 2 * width),
        "transformer.layers.0.mixer.out_proj.bias": (width,),
        "transformer.layers.1.mixer.proj_q.weight": (16 * heads, width),
        "transformer.layers.1.mixer.proj_k.weight": (16 * heads, width),
        "transformer.layers.1.mixer.proj_v.weight": (width, width),
        "transformer.layers.1.mixer.out_proj.weight": (width, width),
        "transformer.layers.2.mixer.Wqkv.weight": (3 * width, width),
        "transformer.layers.2.mixer.out_proj.weight": (width, width),
        "transformer.ln_f.weight": (width,),
        "transformer.embeddings.word_embeddings.weight": (vocabulary, width),
    }
    made = {name: torch.randn(shape) / shape[-1] ** 0.5 for name, shape in shapes.items()}
    made["lm_head.weight"] = made["transformer.embeddings.word_embeddings.weight"]
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(made, folder / "pytorch_model.bin")
    return folder


def test_a_document_is_gone_on_with(tmp_path: Path, text: Path) -> None:
    """In two sittings as in one: the same prediction of the whole, and a state that has not grown."""
    document = text / "a.md"
    run("long_document.py", document, "--length", 300, "--pieces", 3, directory=tmp_path)
    size = (tmp_path / "reading.pt").stat().st_size
    again = run("long_document.py", document, "--length", 300, directory=tmp_path)
    assert "goes on at token 900 of" in again
    assert abs((tmp_path / "reading.pt").stat().st_size - size) < 512
    whole = run("long_document.py", document, "--length", 300, "--state", "whole.pt", directory=tmp_path)
    assert numbers(r": (\S+) bits", again)[-1] == numbers(r": (\S+) bits", whole)[-1]


def test_all_are_in_the_table_and_short() -> None:
    """The table of examples/README.md; somebody reads an example in one sitting, and a test runs it."""
    names = {path.name for path in EXAMPLES.glob("*.py")}
    assert set(re.findall(r"^\| \[`(\w+\.py)`\]", README, re.MULTILINE)) == names
    here = re.findall(r'run\(\s*"(\w+\.py)"', Path(__file__).read_text(encoding="utf-8"))
    for name in names:
        assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) <= 150
        assert name in here or name in (ROOT / ELSEWHERE[name]).read_text(encoding="utf-8")
