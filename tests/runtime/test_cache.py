"""Entries of the cache: whole or made again, whatever happened to them; faults of its place have one type."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from based_ops import cache, errors

NAME, SPEC = "mine_00000000", "name: mine\n"
TEXTS = {"__init__.py": "one = 1\n", f"{NAME}/__init__.py": "", f"{NAME}/torch.py": "two = 2\n" * 50}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def generate(out: Path) -> None:
    for path, text in TEXTS.items():
        (out / path).parent.mkdir(exist_ok=True)
        (out / path).write_text(text)


def never(_: Path) -> None:
    raise AssertionError("an entry that is whole was made again")


def is_whole(entry: Path) -> bool:
    return all((entry / path).read_text() == text for path, text in TEXTS.items())


def left(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def entry_of_another_spec(entry: Path) -> None:
    listed = json.loads((entry / cache.LIST).read_text())
    (entry / cache.LIST).write_text(json.dumps(listed | {"spec": "name: other\n"}))


def file_for_the_entry(entry: Path) -> None:
    shutil.rmtree(entry)
    entry.write_text("")


def link_to_nothing(entry: Path) -> None:
    shutil.rmtree(entry)
    entry.symlink_to(entry.with_name("nothing"))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no list": lambda entry: (entry / cache.LIST).unlink(),
    "half a list": lambda entry: (entry / cache.LIST).write_text((entry / cache.LIST).read_text()[:40]),
    "another list": lambda entry: (entry / cache.LIST).write_text("[]"),
    "a list of bytes": lambda entry: (entry / cache.LIST).write_bytes(b"\xff\xfe\x00"),
    "of another spec": entry_of_another_spec,
    "a file more": lambda entry: (entry / "more.py").write_text(""),
    "a file less": lambda entry: (entry / NAME / "torch.py").unlink(),
    "no directory": lambda entry: shutil.rmtree(entry / NAME),
    "empty": lambda entry: [shutil.rmtree(entry), entry.mkdir()],
    "a file for the entry": file_for_the_entry,
    "a link to nothing": link_to_nothing,
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_damaged_is_made_again(place: Path, what: str) -> None:
    entry = cache.entry(NAME, SPEC, generate)
    DAMAGE[what](entry)
    assert cache.entry_spec(NAME) != SPEC
    assert cache.entry(NAME, SPEC, generate) == entry and is_whole(entry)
    assert cache.entry(NAME, SPEC, never) == entry and cache.entry_spec(NAME) == SPEC
    assert left(place) == [NAME]


@given(st.sampled_from(sorted(TEXTS)), st.integers(0, 400), st.binary(max_size=3))
def test_any_other_byte_is_damage(path: str, at: int, replaced: bytes) -> None:
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        patch.setenv(cache.CACHE_VARIABLE, root)
        entry = cache.entry(NAME, SPEC, generate)
        before = (entry / path).read_bytes()
        after = before[:at] + replaced
        (entry / path).write_bytes(after)
        made = []
        cache.entry(NAME, SPEC, lambda out: [made.append(1), generate(out)])
        assert is_whole(entry) and bool(made) == (after != before)


def test_many_mend_one_entry_at_once(place: Path) -> None:
    entry = cache.entry(NAME, SPEC, generate)
    DAMAGE["a file less"](entry)
    start, found = threading.Barrier(8), []

    def mend() -> None:
        start.wait()
        found.append(cache.entry(NAME, SPEC, generate))

    threads = [threading.Thread(target=mend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [entry] * 8 and is_whole(entry) and left(place) == [NAME]


def test_a_full_disk_leaves_nothing(place: Path) -> None:
    def full(out: Path) -> None:
        generate(out)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(errors.CacheError, match=f"No space left.*; set {cache.CACHE_VARIABLE}"):
        cache.entry(NAME, SPEC, full)
    assert left(place) == []


def test_a_fault_of_the_compiler_is_its_own() -> None:
    def wrong(_: Path) -> None:
        raise RuntimeError("a fault of the compiler")

    with pytest.raises(RuntimeError, match="a fault of the compiler") as raised:
        cache.entry(NAME, SPEC, wrong)
    assert not isinstance(raised.value, errors.CacheError)


@pytest.mark.parametrize(
    "chosen", ["~nobody_of_that_name/cache", "/proc/cache", "/dev/null/cache", "x" * 5000]
)
def test_a_place_that_cannot_be_used(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.CACHE_VARIABLE, chosen)
    with pytest.raises(errors.CacheError, match=f"(?m)set {cache.CACHE_VARIABLE}$"):
        cache.cache_directory()


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv(cache.CACHE_VARIABLE)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", staticmethod(no_home))
    with pytest.raises(errors.CacheError, match=f"(?m)home directory; set {cache.CACHE_VARIABLE}$"):
        cache.cache_directory()


def test_an_entry_is_private_under_any_umask(place: Path) -> None:
    before = os.umask(0)
    try:
        entry = cache.entry(NAME, SPEC, generate)
    finally:
        os.umask(before)
    assert entry.stat().st_mode & 0o777 == 0o700 == place.stat().st_mode & 0o777
