"""``based-ops report``: one file with what a bug report needs, and nothing that is private."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import click

from ..log import VARIABLE as LOG
from .completion import layer_names
from .console import fail, json_option, progress, table
from .specs import STAGES

SENT = ("BASED_OPS_", "TRITON_INTERPRET")
"""Beginnings of the names of environment variables that go in."""
SUFFIX = {"spec": "yaml", "program": "txt", "schedule": "txt"}
CONTENTS = "contents.json"


@click.command(short_help="Write what a bug report needs into one file.")
@click.argument("name", required=False, shell_complete=layer_names)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default="based-ops-report.zip",
    show_default=True,
    help="File to write; it must not be there.",
)
@click.option(
    "--log",
    "logs",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="A log of yours to add; may be repeated.",
)
@json_option
def report(name: str | None, out: Path, logs: tuple[Path, ...], as_json: bool) -> None:
    """Write a file to send along with a bug report: versions and backends, and of the layer NAME all stages.

    NAME is a layer's name or the path of a spec file.  Into the file go the answer of `based-ops doctor`, the
    spec, what is generated from it, a verification on the torch backend with its log, variables of the
    environment that begin with BASED_OPS_ or TRITON_INTERPRET, and logs that you name.  A command that fails
    has its error in place of its answer.  Your home directory is written `~`; nothing else is looked at.
    """
    if out.exists():
        fail(f"--out: {out} is there already; name another file, or remove it", code=1)
    texts: dict[str, str] = {}
    wanted = dict(_wanted(name))
    with progress("reporting", len(wanted)) as begin:
        for file, words in wanted.items():
            begin(file)
            texts |= _answer(file, words)
    given = {key: value for key, value in sorted(os.environ.items()) if key.startswith(SENT)}
    texts["environment.json"] = json.dumps(given, indent=2)
    texts |= {f"logs/{path.name}": path.read_text(encoding="utf-8", errors="replace") for path in logs}
    _write(out, {file: _without_home(text) for file, text in texts.items()}, as_json)


def _wanted(name: str | None) -> Iterator[tuple[str, list[str]]]:
    """The file of each command's answer, and the command."""
    yield "doctor.json", ["doctor", "--json"]
    if name is None:
        return
    for stage in STAGES:
        yield f"stages/{stage}.{SUFFIX.get(stage, 'py')}", ["show", name, "--stage", stage]
    quick = ["--backend", "torch", "--device", "cpu", "--dtype", "float32"]
    yield "verify.json", ["verify", name, *quick, "--json"]


def _answer(file: str, words: list[str]) -> dict[str, str]:
    """What a command answers in a process of its own, and what it says on standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "based_ops", *words],
        env=os.environ | {LOG: "debug", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    answer = {file: done.stdout}
    if done.returncode or done.stderr:
        ended = f"\nexit code {done.returncode}\n" if done.returncode else ""
        answer[f"{file}.log"] = done.stderr + ended
    return answer


def _without_home(text: str) -> str:
    """The text without the name of this user's directory."""
    home = os.path.expanduser("~")
    return text if home in ("~", "/") else text.replace(home, "~")


def _write(out: Path, texts: Mapping[str, str], as_json: bool) -> None:
    """Writes the archive, with a list of its files, and shows that."""
    sizes = {file: len(text.encode()) for file, text in texts.items() if text}
    with zipfile.ZipFile(out, "x", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(CONTENTS, json.dumps(sizes, indent=2))
        for file in sizes:
            archive.writestr(file, texts[file])
    table(("file", "bytes"), list(sizes.items()), as_json)
    click.echo(f"{out}: written; look into it before you send it", err=as_json)
