"""Just-in-time compilation of a user's spec file into a private cache.

The cache is `$BASED_OPS_CACHE`, else `based_ops` below `$XDG_CACHE_HOME` (`~/.cache`).  Python imports what
lies there, so the directory must belong to the user and nobody else may write to it.  An entry is one
generated package, `<name>_<key>`, where the key hashes the spec and the compiler; it is generated beside
its place and renamed into it, so it is there completely or not at all, and processes that compile the same
spec at once do no harm: the first to finish wins, the others take what it made.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ArgumentTypeError, CacheError, message
from .registry import get, names, record

if TYPE_CHECKING:
    from based_ops.codegen.spec.model import LayerSpec

    from .variant import Variant

CACHE_VARIABLE = "BASED_OPS_CACHE"
_lock = threading.Lock()


def load(path: str | os.PathLike[str]) -> Variant:
    """The variant that a spec file describes; equal specs give the same object.

    Its operators are called `<name>_<key>_forward` and so on, so a user's spec never meets a shipped one of
    the same name. Raises `based_ops.codegen.errors.SpecErrors` with every fault of the spec, or `CacheError`
    if the cache directory is not private.
    """
    from based_ops.codegen.pipeline import cache_key
    from based_ops.codegen.spec.load import load_file

    if not isinstance(path, (str, os.PathLike)):
        raise ArgumentTypeError(message("path", type(path).__name__, "the path of a spec file"))
    spec = load_file(Path(path))
    name = f"{spec.name}_{cache_key(spec)}"
    with _lock:
        if name not in names():
            import_package(name, _compiled(spec, name))
    if record(name).layer != spec:
        raise CacheError(
            f"{cache_directory() / name}: its content is not that of its name; delete this directory"
        )
    return get(name)


def cache_directory() -> Path:
    """The cache, created if needed; `CacheError` unless it is the user's and others cannot write to it."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        root = Path(chosen).expanduser()
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "based_ops"
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        root.mkdir(mode=0o700, exist_ok=True)
        root = root.resolve(strict=True)
        status = root.stat()
    except OSError as error:
        raise CacheError(
            f"{root}: cannot be used as the cache ({error.strerror}); set {CACHE_VARIABLE}"
        ) from error
    if status.st_uid != os.geteuid():
        raise CacheError(f"{root}: the cache must belong to the user that runs Python; set {CACHE_VARIABLE}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise CacheError(
            f"{root}: the cache holds code, but others can write to it; "
            f"run `chmod go-w {root}` or set {CACHE_VARIABLE}"
        )
    return root


def _compiled(spec: LayerSpec, name: str) -> Path:
    """The package directory of a spec, generated unless it is there."""
    from based_ops.codegen.pipeline import generate_one

    root = cache_directory()
    place = root / name
    if place.is_dir():
        return place
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=root))
    try:
        generate_one(spec, building, name)
        try:
            building.rename(place)
        except OSError:
            # A directory that is not empty cannot be replaced: another process was faster.
            if not place.is_dir():
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return place


def import_package(name: str, directory: Path) -> None:
    """Imports a package directory under a name of its own, which registers its variant."""
    package = f"based_ops_jit_{name}"
    init = directory / "__init__.py"
    found = importlib.util.spec_from_file_location(package, init, submodule_search_locations=[str(directory)])
    if found is None or found.loader is None or not init.is_file():
        raise CacheError(f"{directory}: not a generated package; delete this directory")
    module = importlib.util.module_from_spec(found)
    sys.modules[package] = module
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[package]
        raise
