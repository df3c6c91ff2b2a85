"""What is published: one version, the same bytes from every builder, and a fresh install that runs."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from importlib.metadata import metadata
from pathlib import Path

import pytest
import yaml

import based_ops

from .conftest import NOT_COMMITTED, ROOT, Installed, environment

EPOCH = "1700000000"


def publish(source: Path, out: Path) -> dict[str, Path]:
    """A source distribution and a wheel, as a builder without the network makes them, by their kinds."""
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--sdist", "--wheel", "--outdir", str(out)],
        cwd=source,
        env=os.environ | {"SOURCE_DATE_EPOCH": EPOCH},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.suffix: path for path in out.iterdir()}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def published(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return publish(clone, tmp_path_factory.mktemp("published") / "dist")


def test_the_version_stands_in_one_place() -> None:
    version = based_ops.__version__
    assert metadata("based-ops")["Version"] == version
    assert str(yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"]) == version
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.optional")[0]
    assert f'"{version}"' not in project and 'dynamic = ["version"]' in project


def test_the_changelog_knows_the_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    titles = re.findall(r"^## \[(.+?)\](?: - \d{4}-\d{2}-\d{2})?$", text, re.MULTILINE)
    assert titles[0] == "Unreleased" and re.findall(r"^## ", text, re.MULTILINE) == ["## "] * len(titles)
    assert based_ops.__version__ in titles or f"will be {based_ops.__version__}," in text


def test_every_builder_makes_the_same_bytes(published: dict[str, Path], tmp_path: Path) -> None:
    """Other times, another directory, another order of files, what an earlier build left."""
    other = Path(shutil.copytree(ROOT, tmp_path / "elsewhere", symlinks=True, ignore=NOT_COMMITTED))
    for number, path in enumerate(sorted(other.rglob("*.py"), reverse=True)):
        os.utime(path, (time.time() - number, time.time() - number))
    (other / "based_ops.egg-info").mkdir()
    (other / "based_ops.egg-info" / "SOURCES.txt").write_text("README.md\n")
    again = publish(other, tmp_path / "dist")
    assert {kind: digest(path) for kind, path in again.items()} == {
        kind: digest(path) for kind, path in published.items()
    }


def test_the_sources_make_the_wheel(published: dict[str, Path], tmp_path: Path) -> None:
    """A wheel made of the source distribution is the one made of the checkout."""
    with tarfile.open(published[".gz"]) as archive:
        names = archive.getnames()
        archive.extractall(tmp_path, filter="data")
        assert {member.mtime for member in archive.getmembers()} == {int(EPOCH)}
        assert {member.uname + member.gname for member in archive.getmembers()} == {""}
    (source,) = tmp_path.iterdir()
    assert names == sorted(names, key=Path) and not any("egg-info" in name for name in names)
    for name in ("CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md", "build_commands.py"):
        assert (source / name).is_file(), name
    assert (source / "based_ops" / "generated" / "window64_d64" / "triton.py").is_file()
    assert digest(publish(source, tmp_path / "dist")[".whl"]) == digest(published[".whl"])


def test_the_wheel_has_what_editors_and_checkers_read(published: dict[str, Path]) -> None:
    with zipfile.ZipFile(published[".whl"]) as wheel:
        names = set(wheel.namelist())
        (about,) = (wheel.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    assert {
        "based_ops/py.typed",
        "based_ops/specs/schema.json",
        "based_ops/specs/models/schema.json",
    } <= names
    assert any(name.endswith("licenses/LICENSE") for name in names) and "License-Expression: MIT" in about
    assert not [name for name in names if name.startswith(("tests", "examples", "build_commands"))]


def test_a_fresh_install_runs_and_verifies(published: dict[str, Path], tmp_path: Path) -> None:
    """pip installs the wheel into an environment of its own, whose torch is that of this one."""
    python, _ = environment(tmp_path / "venv")
    words = ["-m", "pip", "--disable-pip-version-check", "--python", str(python), "install"]
    words += ["--quiet", "--no-index", "--no-deps", str(published[".whl"])]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    there = tmp_path / "elsewhere"
    there.mkdir()
    fresh = Installed(python, there)
    about = "import based_ops, importlib.metadata as m; print(based_ops.__file__, m.version('based-ops'))"
    place, version = fresh.run("-c", about).split()
    assert Path(place).is_relative_to(tmp_path / "venv") and version == based_ops.__version__
    cache = {"BASED_OPS_CACHE": str(tmp_path / "cache")}
    assert fresh.run("-m", "based_ops", "--version", **cache).split()[-1] == version
    words = ["verify", "window16_d64", "--backend", "torch", "--device", "cpu", "--dtype", "float32"]
    assert "window16_d64" in fresh.run("-m", "based_ops", *words, **cache)
