"""Copies of the checkout, and environments in which they are installed as pip would."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_COMMITTED = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "build", "*.egg-info"
)


@dataclass(frozen=True)
class Installed:
    """An interpreter, and the directory to run it in: one that a clone called `based_ops` lies in."""

    python: Path
    directory: Path

    def run(self, *words: str, code: int = 0, **environment: str) -> str:
        """Standard output of the interpreter with these words."""
        done = subprocess.run(
            [str(self.python), *words],
            cwd=self.directory,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, f"{done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout


def environment(directory: Path) -> tuple[Path, Path]:
    """A virtual environment that sees the packages of this one, but for its editable installs: its
    interpreter, and where it keeps packages."""
    venv.create(directory, symlinks=True)
    python = directory / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
    # A path in a .pth is put on sys.path; the .pth files that lie there are not read.
    seen = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (Path(site) / "outer.pth").write_text("\n".join(seen) + "\n")
    return python, Path(site)


def built(kind: str, source: Path, out: Path) -> Path:
    """The wheel that pip asks the build backend for; `kind` is "wheel" or "editable"."""
    out.mkdir()
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, in a directory of its own, under the name that `git clone` gives it."""
    return Path(
        shutil.copytree(
            ROOT, tmp_path_factory.mktemp("parent") / "based_ops", symlinks=True, ignore=NOT_COMMITTED
        )
    )


@pytest.fixture(scope="module")
def editable(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The clone installed as by `pip install -e`, seen from the directory that it lies in."""
    python, site = environment(tmp_path_factory.mktemp("editable") / "venv")
    with zipfile.ZipFile(built("editable", clone, clone.parent / "wheels")) as wheel:
        wheel.extractall(site)
    return Installed(python, clone.parent)


@pytest.fixture(scope="module")
def wheel(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel of the clone installed; the directory to run in holds nothing."""
    python, site = environment(tmp_path_factory.mktemp("wheel") / "venv")
    with zipfile.ZipFile(built("wheel", clone, tmp_path_factory.mktemp("built") / "wheels")) as archive:
        archive.extractall(site)
    return Installed(python, tmp_path_factory.mktemp("elsewhere"))
