"""A recall task of text that any machine has: fields of package metadata, and options of manual pages.

A document is a text with keys and values; the question repeats a key, and the value has to follow:

    Name: click
    Version: 8.1.7
    Requires-Python: >=3.7
    ...

    Version:

Whether a document is asked about or trained on follows from its name alone, so that all versions of a package
are on one side, on every machine.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from email.parser import HeaderParser
from pathlib import Path

from ...errors import ArgumentValueError
from .examples import Example, write

HELD_OUT = 5
"""One document of so many is asked about."""
MOST = 1000
"""Characters of a document."""
SHORT = 32
"""Characters of a value, at most; of a longer one its first words."""
QUESTIONS = 4
"""To a document, at most."""
MANUALS = Path("/usr/share/man")
SEVERAL = ("Classifier", "Requires-Dist", "Provides-Extra", "License-File", "Project-URL", "Dynamic")
"""Fields that a package may have several times."""


@dataclass(frozen=True)
class Document:
    """A text of lines `key: value`, and those of its fields that can be asked for."""

    name: str
    text: str
    fields: tuple[tuple[str, str], ...]

    @property
    def held_out(self) -> bool:
        digest = hashlib.sha256(self.name.encode()).digest()
        return int.from_bytes(digest[:4], "big") % HELD_OUT == 0

    def without(self, values: Mapping[str, int]) -> Document:
        """The same, asked for what no other document has: who has not read it cannot guess that."""
        return replace(self, fields=tuple(x for x in self.fields if values[x[1]] == 1))

    def examples(self) -> list[Example]:
        """Questions about fields all over the document."""
        step = max(1, -(-len(self.fields) // QUESTIONS))
        return [Example(f"{self.text}\n\n{key}:", value, self.name) for key, value in self.fields[::step]]

    def answered(self) -> str:
        """The questions with their answers: what a model learns the form from."""
        return "".join(f"{x.text} {x.value}\n\n" for x in self.examples())


@dataclass(frozen=True)
class Made:
    """What was written: how many documents of each kind, and examples of both sides."""

    packages: int
    pages: int
    train: int
    validation: int


def make(out: Path, packages: Sequence[Path] | None = None, manuals: Path = MANUALS) -> Made:
    """Writes train.jsonl, validation.jsonl and text/, documents that are not asked about, to train on.

    Packages are those below the folders given, else those that Python finds.  Raises `ArgumentValueError`
    where there are too few for both sides.
    """
    places = [Path(x) for x in sys.path if x] if packages is None else packages
    documents = [*metadata(places), *pages(manuals)]
    values = Counter(value for document in documents for _, value in document.fields)
    documents = [x for document in documents if (x := document.without(values)).fields]
    train = [x for document in documents if not document.held_out for x in document.examples()]
    validation = [x for document in documents if document.held_out for x in document.examples()]
    if not train or not validation:
        what = "enough for both sides: install packages, or name a folder that has some"
        raise ArgumentValueError(f"packages: got {len(documents)} documents, must be {what}")
    (out / "text").mkdir(parents=True, exist_ok=True)
    write(out / "train.jsonl", train)
    write(out / "validation.jsonl", validation)
    for document in documents:
        if not document.held_out:
            (out / "text" / f"{document.name}.txt").write_text(document.answered(), encoding="utf-8")
    kinds = Counter(document.name.partition("-")[0] for document in documents)
    return Made(kinds["package"], kinds["page"], len(train), len(validation))


def metadata(folders: Iterable[Path]) -> Iterator[Document]:
    """The packages that are installed in some folders, each once."""
    seen = set()
    for path in sorted(path for folder in folders for path in folder.glob("*.dist-info/METADATA")):
        header = HeaderParser().parsestr(path.read_text(encoding="utf-8", errors="replace"))
        name = re.sub(r"[^a-z0-9]+", "-", str(header.get("Name", "")).lower())
        lines = [(key, _line(str(value))) for key, value in header.items() if key not in SEVERAL]
        if name not in seen and (made := _document(f"package-{name}", lines)):
            seen.add(name)
            yield made


def pages(folder: Path) -> Iterator[Document]:
    """Manual pages of commands, as far as they have options in `.TP` paragraphs."""
    seen = set()
    for path in sorted(folder.glob("man[18]/*")):
        name = path.name.partition(".")[0].lower()
        try:
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        except (OSError, EOFError):
            continue  # a link to nowhere, or no archive
        lines = list(_options(data.decode(errors="replace").splitlines()))
        if name not in seen and (made := _document(f"page-{re.sub('[^a-z0-9]+', '-', name)}", lines)):
            seen.add(name)
            yield made


def _options(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The options of a page in roff, and what they do."""
    for i, line in enumerate(lines[:-2]):
        if line.startswith(".TP"):
            option, text = _plain(lines[i + 1]), _plain(lines[i + 2])
            if option.startswith("-"):
                yield option, text


def _plain(line: str) -> str:
    """A line of roff without its fonts and escapes."""
    line = re.sub(r"^\.(B|I|BR|RB|IR|RI|BI|IB|SM)\s+", "", line)
    line = re.sub(r"\\f(\(..|\[[^]]*\]|.)", "", line)
    line = line.replace("\\-", "-").replace("\\&", "").replace('"', "")
    return _line("" if line.startswith(".") else re.sub(r"\\\(..|\\.", " ", line))


def _line(text: str) -> str:
    return " ".join(text.split())


def _document(name: str, lines: Sequence[tuple[str, str]]) -> Document | None:
    """The document of these fields as far as there is room, if any can be asked for."""
    kept: list[tuple[str, str]] = []
    room = MOST
    for key, value in lines:
        room -= len(key) + len(value) + 3
        if room < 0:
            break
        if key and value:
            kept.append((key, value))
    keys, values = [key for key, _ in kept], [value for _, value in kept]
    text = "\n".join(f"{key}: {value}" for key, value in kept)
    asked = []
    for key, value in kept:
        short = _first_words(value)
        if keys.count(key) == 1 and values.count(value) == 1 and len(short) > 1 and ":" not in key:
            asked.append((key, short))
    return Document(name, text, tuple(asked)) if asked else None


def _first_words(value: str) -> str:
    """As many words as are short enough; nothing if the first is too long."""
    if len(value) <= SHORT:
        return value
    return value[: SHORT + 1].rpartition(" ")[0]
