"""Scores of answers by the engine, and the same by lm-evaluation-harness through Transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from based_ops import models
from based_ops.cli import main
from based_ops.errors import ArgumentValueError, CheckpointError
from based_ops.models import LanguageModel
from based_ops.recall.tasks import Example, examples, score
from based_ops.train import Bytes

TEXTS = (
    "Title: The Silence\nYear: 1963\n\nYear: ",
    " Name: abc\nSize: 12 mm\n\nSize:",
    "a" * 290 + "\nName:",
)
"""In the form of the harness's data sets: with spaces around them, and one that is too long."""
LENGTH = 300


def model(name: str = "based-tiny") -> LanguageModel:
    """One that writes different things."""
    torch.manual_seed(0)
    net = LanguageModel(name)
    for x in net.parameters():
        if x.dim() > 1:
            x.data.mul_(5.0)
    return net.eval()


def greedy(net: LanguageModel, text: str) -> str:
    """A token at a time, with all of the text again for each."""
    tokens = Bytes().encode(text.strip())[-(LENGTH - examples.NEW) :]
    start = len(tokens)
    with torch.no_grad():
        for _ in range(examples.NEW):
            tokens.append(int(net(torch.tensor([tokens]))[0][0, -1].argmax()))
            if tokens[-1] == ord("\n"):
                break
    return Bytes().decode(tokens[start:]).partition("\n")[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and examples of which it answers one."""
    place = tmp_path_factory.mktemp("task")
    net = model()
    models.save(net, place / "model")
    Bytes().save(place / "model")
    written = [greedy(net, text) for text in TEXTS]
    values = [" \ud7ff ", written[1][3:9].upper() + "\n", "never"]
    examples.write(
        place / "some.jsonl", [Example(text, value) for text, value in zip(TEXTS, values, strict=True)]
    )
    return place


@pytest.mark.parametrize("name", ["based-tiny", "transformer-tiny"])
def test_answers(name: str) -> None:
    net = model(name)
    given = [Example(text, "") for text in TEXTS]
    assert examples.answers(net, Bytes(), given, LENGTH, slots=2) == [greedy(net, text) for text in TEXTS]


def test_score(folder: Path) -> None:
    found = score("some", model(), Bytes(), examples.read(folder / "some.jsonl"), LENGTH)
    assert found.contains == pytest.approx(1 / 3) and found.examples == 3
    assert (found.cut, found.max_length, found.version, found.truncation) == (1, LENGTH, 1, "left")
    assert found.error == pytest.approx((2 / 9 / 2) ** 0.5)


def test_the_harness_says_the_same(folder: Path) -> None:
    names, file = ("swde", "fda", "squad_completion", "some"), folder / "some.jsonl"
    words = [word for name in names for word in ("--data", f"{name}={file}")]
    words += ["--max-length", str(LENGTH), "--batch", "2", "--out", str(folder / "scores.json")]
    done = CliRunner().invoke(main, ["recall", "tasks", str(folder / "model"), *words, "--device", "cpu"])
    assert done.exit_code == 0, done.output
    found = {x["task"]: x for x in json.loads((folder / "scores.json").read_text())["scores"]}
    assert tuple(found) == names
    for name in names:
        want = vars(score(name, model(), Bytes(), examples.read(file), LENGTH))
        if name == "squad_completion":  # the harness lets answers have 256 tokens there, and several lines
            want |= {"new": 256, "until": "\n\n"}
        assert found[name] == want


def test_bad_calls_of_the_harness(folder: Path, tmp_path: Path) -> None:
    from based_ops.recall.tasks import harness

    with pytest.raises(ArgumentValueError, match="^tasks: got 'swdee', must be one of swde, fda, squad_comp"):
        harness.scores(str(folder / "model"), ["swdee"])
    with pytest.raises(ArgumentValueError, match="^max_length: got 256, must be above 256"):
        harness.scores(str(folder / "model"), max_length=256)
    models.save(model(), tmp_path / "plain")
    with pytest.raises(CheckpointError, match="has no tokenizer; name one, such as gpt2"):
        harness.scores(str(tmp_path / "plain"), ["fda"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has no examples"),
        (b'{"text": "a"}\n', r":1: not an object with `text` and `value`: 'value'"),
        (b'{"text": "a", "value": "b"}\n{\n', r":2: not an object"),
        (b"\xff", "cannot be read"),
    ],
)
def test_bad_files(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(data)
    with pytest.raises(ArgumentValueError, match=message):
        examples.read(path)


def test_bad_scores() -> None:
    with pytest.raises(ArgumentValueError, match="^max_length: got 48"):
        examples.answers(model(), Bytes(), [Example("a", "b")], 48)
    with pytest.raises(ArgumentValueError, match="^examples: got none"):
        examples.answers(model(), Bytes(), [], 96)


def test_commands(folder: Path, tmp_path: Path) -> None:
    made = CliRunner().invoke(main, ["recall", "fields", str(tmp_path / "task")])
    assert made.exit_code == 0 and "examples to train on" in made.output, made.output
    docs = str(Path(__file__).parents[2] / "docs")
    words = ["recall", "slices", str(folder / "model"), docs, "--length", "128", "--order", "6"]
    found = CliRunner().invoke(main, [*words, "--sequences", "4", "--device", "cpu", "--json"])
    assert found.exit_code == 0, found.output
    hits, others, every = json.loads(found.output)
    assert hits["count"] + others["count"] == every["count"] == 4 * 128
    bad = CliRunner().invoke(main, ["recall", "tasks", str(folder / "model"), "--data", "swde"])
    assert bad.exit_code == 2 and "must be TASK=FILE" in bad.output
