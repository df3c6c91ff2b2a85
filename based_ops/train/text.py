"""Text of a folder as tokens: bytes, or byte-level pairs that are learned from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ..errors import ArgumentValueError, CheckpointError, fail
from ..extras import require

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PIECE = 2**16
"""Characters that are trained on or held out together: a long file has parts of both."""
HELD_OUT = 20
"""One piece of so many is held out."""
END = "<|endoftext|>"
FILE = "tokenizer.json"


class Bytes:
    """A token is a byte, and byte 0, which text does not have, ends a file.

    Examples:
        >>> from based_ops.train import Bytes
        >>> Bytes().decode(Bytes().encode("Based"))
        'Based'
    """

    vocabulary, end = 256, 0

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_all(self, texts: Sequence[str]) -> Iterable[Tensor]:
        """The tokens of each text, int64."""
        for text in texts:
            # PyTorch refuses an empty buffer.
            yield torch.frombuffer(bytearray(text.encode() + b"\0"), dtype=torch.uint8)[:-1].long()

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(tokens).decode(errors="replace")

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json, as the library `tokenizers` has it, where a token is a byte too."""
        (folder / FILE).write_text(json.dumps(_bytes_of_tokenizers()), encoding="utf-8")


class Pairs:
    """Byte-level BPE of the library `tokenizers`, which the extra `hf` brings.

    Args:
        tokenizer: One of `tokenizers`, with a token that ends a text; `Pairs.learned` makes one.

    Raises:
        MissingExtra: by `learned`, where `tokenizers` is not installed.

    Examples:
        >>> from based_ops.train import Pairs
        >>> pairs = Pairs.learned(["to be or not to be"] * 9, vocabulary=300)
        >>> pairs.decode(pairs.encode("not to be"))
        'not to be'
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.vocabulary: int = tokenizer.get_vocab_size()
        self.end = cast(int, tokenizer.token_to_id(END))  # which every one of these has

    @classmethod
    def learned(cls, texts: Iterable[str], vocabulary: int) -> Pairs:
        """That of the most frequent pairs of `texts`, with `vocabulary` tokens or, of little text, fewer."""
        require("hf", "a tokenizer of pairs", "tokenizers")
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        if vocabulary < 257:
            fail(ArgumentValueError, "vocabulary", vocabulary, "257 or more: bytes, and the end of a file")
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
        )
        made.train_from_iterator(texts, trainer)
        return cls(made)

    def encode(self, text: str) -> list[int]:
        found: list[int] = self._tokenizer.encode(text).ids
        return found

    def encode_all(self, texts: Sequence[str]) -> Iterable[Tensor]:
        """The tokens of each text, int64."""
        for found in self._tokenizer.encode_batch(list(texts)):
            yield torch.tensor(found.ids, dtype=torch.int64)

    def decode(self, tokens: Sequence[int]) -> str:
        found: str = self._tokenizer.decode(list(tokens))
        return found

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json."""
        self._tokenizer.save(str(folder / FILE))


@dataclass(frozen=True)
class Text:
    """Tokens to train on and tokens held out, int32 [N] each, of files one after the other.

    Examples:
        >>> import tempfile, pathlib
        >>> from based_ops.train import read
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for i in range(40):
        ...     _ = (folder / f"{i}.txt").write_text(f"The file of number {i}. " * 9)
        >>> text = read(folder)
        >>> text.tokenizer.vocabulary, len(text.train) > len(text.held_out)
        (256, True)
    """

    train: Tensor
    held_out: Tensor
    tokenizer: Bytes | Pairs
    bytes_of_token: float
    """Bytes that a held out token stands for, on average: perplexities of two tokenizers compare a byte."""

    @property
    def fingerprint(self) -> str:
        """Tells one text from another."""
        digest = hashlib.sha256(self.train.numpy().tobytes())
        digest.update(self.held_out.numpy().tobytes())
        return digest.hexdigest()[:16]


def read(
    folder: str | Path | Sequence[str | Path],
    vocabulary: int | None = None,
    tokenizer: Bytes | Pairs | None = None,
) -> Text:
    """The text of all files below a folder, or several, in UTF-8: as bytes, or pairs of a `vocabulary`.

    With a `tokenizer` it is that one's tokens.

    Files are cut into pieces of 64 Ki characters, and of twenty the one with the lowest hash is held out: the
    same on every machine, wherever files lie, and a piece that is there twice is on one side.  Raises
    `ArgumentValueError` where there is no text, or too little to hold any out.

    Args:
        folder: One or several; files that are no UTF-8 are left out.
        vocabulary: How many tokens pairs are learned for; None means bytes.
        tokenizer: Whose tokens to use instead.

    Raises:
        ArgumentValueError: there is no text, or too little to hold any out.
        MissingExtra: pairs need the extra `hf`.

    Examples:
        >>> import tempfile, pathlib
        >>> from based_ops.train import read
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for i in range(40):
        ...     _ = (folder / f"{i}.txt").write_text(f"The file of number {i}. " * 9)
        >>> len(read(folder).held_out) > 0
        True
    """
    folders = [Path(x) for x in ([folder] if isinstance(folder, str | Path) else folder)]
    pieces = [piece for x in folders for file in _files(x) for piece in file]
    hashes = [hashlib.sha256(piece.encode()).digest() for piece in pieces]
    last = sorted(hashes)[-(-len(pieces) // HELD_OUT) - 1] if pieces else b""
    train = [piece for piece, digest in zip(pieces, hashes, strict=True) if digest > last]
    held_out = [piece for piece, digest in zip(pieces, hashes, strict=True) if digest <= last]
    if not train:
        got = f"{', '.join(map(str, folders))} with {len(pieces)} pieces of text"
        what = "a folder of text in UTF-8 that has two pieces or more, one to be held out"
        fail(ArgumentValueError, "folder", got, what)
    if tokenizer is None:
        tokenizer = Bytes() if vocabulary is None else Pairs.learned(train, vocabulary)
    held = _joined(held_out, tokenizer)
    size = sum(len(x.encode()) for x in held_out)
    return Text(_joined(train, tokenizer), held, tokenizer, size / len(held))


def tokenizer_of(folder: Path) -> Bytes | Pairs:
    """The tokenizer that `save` wrote to a folder; bytes where there is none.  Raises `CheckpointError`."""
    if not (folder / FILE).is_file():
        return Bytes()
    require("hf", "a tokenizer on disk", "tokenizers")
    from tokenizers import Tokenizer

    try:
        found = Tokenizer.from_file(str(folder / FILE))
    except Exception as error:  # which has no type of its own
        raise CheckpointError(f"{folder / FILE}: cannot be read: {error}") from error
    if found.get_vocab_size() == Bytes.vocabulary:
        return Bytes()
    if found.token_to_id(END) is None:
        raise CheckpointError(f"{folder / FILE}: has no token {END}, which ends a file")
    return Pairs(found)


def rows_of(tokens: Tensor, length: int, most: int) -> Tensor:
    """Sequences [N,length+1] spread over tokens evenly, `most` at the most, as far as they need not overlap.

    Raises `ArgumentValueError` where there is not even one.
    """
    room = len(tokens) - length - 1
    if room < 0:
        fail(ArgumentValueError, "length", length, f"below the {len(tokens)} tokens of held out text")
    starts = torch.linspace(0, room, min(most, room // length + 1), dtype=torch.float64).long()
    return tokens[starts.unsqueeze(1) + torch.arange(length + 1)]


def _files(folder: Path) -> Iterable[list[str]]:
    """The pieces of each file of text, in the order of their names."""
    if not folder.is_dir():
        fail(ArgumentValueError, "folder", str(folder), "a folder that is there")
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        try:
            text = path.read_bytes().decode()
        except (UnicodeDecodeError, PermissionError):
            continue
        if text and "\0" not in text:
            yield [text[i : i + PIECE] for i in range(0, len(text), PIECE)]


def _joined(pieces: Sequence[str], tokenizer: Bytes | Pairs) -> Tensor:
    end = torch.tensor([tokenizer.end])
    parts = [x for found in tokenizer.encode_all(pieces) for x in (found, end)]
    return torch.cat(parts).to(torch.int32)


def _bytes_of_tokenizers() -> dict[str, Any]:
    """A model of pairs without any, in which each byte has its own number."""
    require("hf", "a tokenizer of bytes for Transformers", "tokenizers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    signs = _signs()
    made = Tokenizer(models.BPE({sign: byte for byte, sign in enumerate(signs)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    found: dict[str, Any] = json.loads(made.to_str())
    return found


def _signs() -> list[str]:
    """The sign that byte-level tokenizers write for each byte: itself where it prints, else a later one."""
    prints = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in prints]
    number = {byte: byte for byte in prints} | {byte: 256 + i for i, byte in enumerate(others)}
    return [chr(number[byte]) for byte in range(256)]
