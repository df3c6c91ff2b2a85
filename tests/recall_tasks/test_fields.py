"""The task of packages and manual pages: what is asked, and of whom."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from based_ops.errors import ArgumentValueError
from based_ops.recall.tasks import fields
from based_ops.recall.tasks.examples import read

PAGE = r"""
.TH {NAME} 1
.SH OPTIONS
.TP
\fB\-\-{name}\-all\fR
do not leave out what {name} has found
.TP
.BI \-o " FILE"
write to \fIFILE\fP and not to {name}
.TP
.B \-\-help
show this help
"""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Forty packages and ten pages."""
    for i in range(40):
        place = tmp_path / "packages" / f"p{i}-1.{i}.dist-info"
        place.mkdir(parents=True)
        text = f"Metadata-Version: 2.1\nName: p{i}\nVersion: 1.{i}.7\nSummary: Thing number {i} of a long row"
        text += f" of things that nobody reads to its end\nClassifier: A\nClassifier: B\nLicense: MIT\n\n{i}"
        (place / "METADATA").write_text(text, encoding="utf-8")
    (tmp_path / "man" / "man1").mkdir(parents=True)
    for i in range(10):
        data = PAGE.replace("{name}", f"tool{i}").replace("{NAME}", f"TOOL{i}").encode()
        (tmp_path / "man" / "man1" / f"tool{i}.1.gz").write_bytes(gzip.compress(data))
    (tmp_path / "man" / "man1" / "broken.1.gz").write_bytes(b"no archive")
    return tmp_path


def test_made(machine: Path) -> None:
    out = machine / "out"
    made = fields.make(out, [machine / "packages"], machine / "man")
    assert (made.packages, made.pages) == (40, 10)
    train, asked = read(out / "train.jsonl"), read(out / "validation.jsonl")
    assert (len(train), len(asked)) == (made.train, made.validation) and made.train > made.validation > 5
    assert not {x.document for x in train} & {x.document for x in asked}
    texts = {path.stem for path in (out / "text").iterdir()}
    assert texts == {x.document for x in train}, "what is asked about is not trained on"
    for x in train + asked:
        document, _, key = x.text.rpartition("\n\n")
        (line,) = [y for y in document.splitlines() if y.startswith(key)]
        assert line.removeprefix(key).strip().startswith(x.value), "the value stands there, once"
        assert len(x.value) <= fields.SHORT and len(document) <= fields.MOST
    keys = {x.text.rpartition("\n\n")[2] for x in train + asked}
    assert {"Name:", "Version:", "Summary:", "-o FILE:"} <= keys
    assert not {"License:", "Metadata-Version:", "Classifier:", "--help:"} & keys, "everyone's, so guessed"
    again = machine / "again"
    fields.make(again, [machine / "packages"], machine / "man")
    assert (again / "validation.jsonl").read_bytes() == (out / "validation.jsonl").read_bytes()


def test_all_versions_of_a_package_are_on_one_side(machine: Path) -> None:
    before = {x.name: x.held_out for x in fields.metadata([machine / "packages"])}
    for path in (machine / "packages").glob("*/METADATA"):
        path.write_text(path.read_text().replace("\nVersion: 1.", "\nVersion: 9."))
    after = {x.name: x.held_out for x in fields.metadata([machine / "packages"])}
    assert before == after and 0 < sum(after.values()) < 20


def test_too_little(tmp_path: Path) -> None:
    with pytest.raises(ArgumentValueError, match="^packages: got 0 documents, must be enough for both sides"):
        fields.make(tmp_path / "out", [tmp_path], tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "plain"),
    [
        (r"\fB\-x\fR, \fB\-\-long\fR=\fIN\fR", "-x, --long=N"),
        (r".BR \-q ", "-q"),
        (r".if n .RS", ""),
        (r"a \(em b\&c", "a bc"),
    ],
)
def test_roff(line: str, plain: str) -> None:
    assert fields._plain(line) == plain
