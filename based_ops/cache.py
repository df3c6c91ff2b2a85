"""The private cache of layers that were generated just in time.

The cache is `$BASED_OPS_CACHE`, else `based_ops` below `$XDG_CACHE_HOME` (`~/.cache`).  Python imports what
lies there, so the directory must belong to the user and nobody else may write to it.  An entry is one
generated package, `<name>_<key>`, with a list of its files and their hashes.  It is made beside its place
and renamed into it, so it is there completely or not at all, and processes that make the same entry at once
do no harm: the first to finish wins, the others take what it made.  What a full disk, a crash or a cleaner
left of an entry is not what its list says: such an entry is moved away and made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import CacheError
from .log import LOGGER

CACHE_VARIABLE = "BASED_OPS_CACHE"
LIST = "entry.json"
"""The file of an entry that says of which spec it is, and hashes its other files."""


def cache_directory() -> Path:
    """The cache, created if needed; `CacheError` unless it is the user's and others cannot write to it."""
    root = _named()
    with _understood(root):
        root.parent.mkdir(parents=True, exist_ok=True)
        root.mkdir(mode=0o700, exist_ok=True)
        root = root.resolve(strict=True)
        status = root.stat()
    if status.st_uid != os.geteuid():
        raise CacheError(f"{root}: the cache must belong to the user that runs Python; set {CACHE_VARIABLE}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise CacheError(
            f"{root}: the cache holds code, but others can write to it; "
            f"run `chmod go-w {root}` or set {CACHE_VARIABLE}"
        )
    return root


def entry(name: str, spec: str, generate: Callable[[Path], Any]) -> Path:
    """The directory of an entry, whole; where it is not, `generate` fills a new one.

    `spec` is the text of the spec that the entry must be of.
    """
    root = cache_directory()
    place = root / name
    if _spec_of(place) == spec:
        LOGGER.info("cache: %s is there, in %s", name, root)
        return place
    LOGGER.info("cache: %s is not there, in %s; its kernels are printed now", name, root)
    begun = time.perf_counter()
    with _understood(root):
        building = Path(tempfile.mkdtemp(prefix=".building-", dir=root))
        try:
            made = building / name
            made.mkdir(mode=0o700)
            generate(made)
            listed = {"spec": spec, "files": _hashes(made)}
            (made / LIST).write_text(json.dumps(listed, indent=1), encoding="utf-8")
            _put(made, place, spec, building)
            LOGGER.info("cache: %s took %.2f s", name, time.perf_counter() - begun)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return place


def entry_spec(name: str) -> str | None:
    """The text of the spec of an entry, if it is there and whole."""
    return _spec_of(cache_directory() / name)


def same_modules(directory: Path, other: Path) -> bool:
    """Whether two directories of an entry's modules are equal to the byte."""
    return _hashes(directory) == _hashes(other)


def _put(made: Path, place: Path, spec: str, aside: Path) -> None:
    """Moves an entry to its place, and what is damaged there away.

    Neither needs a lock.  A process that finds damage while another mends it may move the mended entry away
    again, and then puts one of the same content there.
    """
    for attempt in range(100):
        try:
            made.rename(place)
            return
        except OSError:
            # A file, or a directory that is not empty, cannot be replaced.
            if not os.path.lexists(place):
                raise
            if _spec_of(place) == spec:
                return  # another process was faster
            with suppress(FileNotFoundError):
                place.rename(aside / f"damaged-{attempt}")
    raise CacheError(f"{place}: is damaged, and something puts it there again; delete it")


def _spec_of(place: Path) -> str | None:
    """The text of the spec of an entry that is whole, None of all else."""
    try:
        listed = json.loads((place / LIST).read_text(encoding="utf-8"))
        return str(listed["spec"]) if listed["files"] == _hashes(place) else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _hashes(place: Path) -> dict[str, str]:
    """The SHA-256 of every Python file of an entry, by its path."""
    return {
        path.relative_to(place).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(place.rglob("*.py"))
    }


def _named() -> Path:
    """Where the cache should be."""
    chosen = os.environ.get(CACHE_VARIABLE)
    try:
        if chosen:
            return Path(chosen).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "based_ops"
    except RuntimeError as error:  # no home: HOME is not set, and there is no such user
        raise CacheError(f"{chosen or '~'}: {str(error).rstrip('.')}; set {CACHE_VARIABLE}") from error


@contextmanager
def _understood(place: Path) -> Iterator[None]:
    """Turns what the file system refuses into a `CacheError`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise CacheError(f"{place}: cannot be used as the cache ({reason}); set {CACHE_VARIABLE}") from error
