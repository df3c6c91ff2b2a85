"""Text of folders: what is read, what is held out, and tokens that say the text again."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from based_ops import models
from based_ops.errors import ArgumentValueError
from based_ops.train import Bytes, read, text

from .runs import made

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty files of some words, and some that are no text."""
    place = tmp_path / "words" / "below"
    place.mkdir(parents=True)
    for i in range(40):
        (place / f"{i}.txt").write_text(f"The number {i} is followed by {i + 1}.\n" * 20, encoding="utf-8")
    (place / "picture.bin").write_bytes(b"\xff\xfe\x00\x01" * 10)
    (place / "zeros.txt").write_bytes(b"text\0text")
    (place / "empty.txt").write_text("")
    return place.parent


@pytest.mark.parametrize("vocabulary", [None, 300])
def test_folders(folder: Path, vocabulary: int | None) -> None:
    found = read(folder, vocabulary)
    tokens = torch.cat([found.train, found.held_out])
    files = found.tokenizer.decode(tokens.tolist())
    end = "\0" if vocabulary is None else text.END
    if vocabulary:  # the library leaves out what is no text when it decodes
        assert int((tokens == found.tokenizer.end).sum()) == 40
    else:
        assert sorted(files.split(end)[:-1]) == sorted(
            path.read_text() for path in folder.rglob("[0-9]*.txt")
        )
    assert 0 < len(found.held_out) < 0.3 * len(found.train)
    assert int(tokens.max()) < found.tokenizer.vocabulary
    assert read(folder, vocabulary).fingerprint == found.fingerprint
    assert len(tokens) < 30_000 if vocabulary is None else len(tokens) < 15_000, "pairs are fewer"


def test_held_out_is_the_same_wherever_files_lie_and_once(folder: Path, tmp_path: Path) -> None:
    found = read(folder)
    other = tmp_path / "other"
    (folder / "below").rename(other)
    assert read(other).fingerprint == found.fingerprint
    twice = read([other, other])
    assert len(twice.held_out) == 2 * len(found.held_out), "on one side, both times"


@given(st.lists(st.text("abc", min_size=1, max_size=3), min_size=2, max_size=60))
def test_what_is_held_out(words: list[str]) -> None:
    """One of twenty and at least one, by hash; equal texts are on one side."""
    with tempfile.TemporaryDirectory() as place:
        for i, word in enumerate(words):
            Path(place, f"{i}.txt").write_text(word)
        if len(set(words)) == 1:
            with pytest.raises(ArgumentValueError, match="^folder: got "):
                read(place)
            return
        found = read(place)
    sides = [Bytes().decode(x.tolist()).split("\0")[:-1] for x in (found.train, found.held_out)]
    assert sorted(sides[0] + sides[1]) == sorted(words) and not set(sides[0]) & set(sides[1])
    most = max(words.count(word) for word in words)
    assert -(-len(words) // 20) <= len(sides[1]) < -(-len(words) // 20) + most


def test_a_long_file_has_parts_of_both(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("".join(f"{i} " for i in range(500_000)), encoding="utf-8")
    found = read(tmp_path)
    assert 0 < len(found.held_out) < 0.2 * len(found.train)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_bytes_say_the_text_again(words: str) -> None:
    tokenizer = Bytes()
    assert tokenizer.decode(tokenizer.encode(words)) == words
    assert [x.tolist() for x in tokenizer.encode_all([words])] == [tokenizer.encode(words)]


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_bytes_as_transformers_has_them(words: str) -> None:
    from tokenizers import Tokenizer

    found = Tokenizer.from_str(text.json.dumps(text._bytes_of_tokenizers()))
    assert found.encode(words).ids == Bytes().encode(words)
    assert found.decode(Bytes().encode(words)) == words


def test_export(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    trainer = made("based-tiny", dtype="bfloat16")
    trainer.step()
    trainer.export(tmp_path / "model")
    net = models.load(tmp_path / "model")
    for name, x in net.named_parameters():
        assert torch.equal(x, trainer.weights()[name]), name
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "model" / text.FILE))
    assert tokenizer.encode("ab\n") == [97, 98, 10]


@pytest.mark.parametrize(
    ("files", "vocabulary", "start"),
    [
        ({}, None, "folder: got .* with 0 pieces of text, must be a folder of text in UTF-8"),
        ({"a.bin": b"\xff"}, None, "folder: got .* with 0 pieces of text"),
        ({"a.txt": b"words"}, None, "folder: got .* with 1 pieces of text, must be .* one to be held out"),
    ],
)
def test_bad_folders(tmp_path: Path, files: dict[str, bytes], vocabulary: int | None, start: str) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ArgumentValueError, match=f"^{start}"):
        read(tmp_path, vocabulary)


def test_bad_arguments(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentValueError, match="^folder: got .*/none, must be a folder that is there"):
        read(tmp_path / "none")
    with pytest.raises(ArgumentValueError, match="^vocabulary: got 256, must be 257 or more"):
        read(folder, 256)
