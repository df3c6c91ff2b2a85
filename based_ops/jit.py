"""Layers that are compiled just in time: from a user's spec file, from a pickle, or for an exported program.

Their packages lie in the private cache (`cache.py`).  What is loaded there is what was verified: Python's own
cache of bytecode is not used.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cache import cache_directory, entry, entry_spec, same_modules
from .errors import ArgumentTypeError, CacheError, UnknownVariant, VersionError, message
from .extras import require
from .record import names, record
from .registry import LOCK as _lock
from .registry import get

if TYPE_CHECKING:
    from based_ops.codegen.spec.model import LayerSpec

    from .variant import Variant

_NAME = re.compile(r"[a-z][a-z0-9_]*_[0-9a-f]{8}", re.ASCII)


def load(path: str | os.PathLike[str]) -> Variant:
    """The variant that a spec file describes; equal specs give the same object.

    Its operators are called `<name>_<key>_forward` and so on, so a user's spec never meets a shipped one of
    the same name. Raises `based_ops.errors.SpecErrors` with every fault of the spec, `CacheError` if
    the cache directory cannot be used, or `MissingExtra` where the compiler's packages are not installed.
    """
    require("compile", "compiling a spec")
    from based_ops.codegen.spec.load import load_file

    if not isinstance(path, (str, os.PathLike)):
        raise ArgumentTypeError(message("path", type(path).__name__, "the path of a spec file"))
    return _of_spec(load_file(Path(path)))


def meaning(spec: LayerSpec) -> Variant:
    """A variant that computes what `spec` says: a registered one, whatever its name, or one compiled now."""
    for known in names():
        if replace(record(known).layer, name=spec.name) == spec:
            return get(known)
    require("compile", "compiling a spec")
    return _of_spec(spec)


def pickled(name: str, spec: str) -> Variant:
    """The variant that a pickle holds: as it was called, and the text of its spec.

    It is the registered one of that name, else a registered one of the same meaning, else it is compiled.
    """
    from based_ops.codegen.spec.model import dump_yaml

    if name in names() and dump_yaml(record(name).layer) == spec:
        return get(name)
    require("compile", "a pickled variant")
    from based_ops.codegen.spec.load import parse_spec

    wanted = parse_spec(spec, f"<the spec of a pickled variant, {name}>")
    for known in (name, *names()):
        if known in names() and record(known).layer == wanted:
            return get(known)
    return _of_spec(wanted)


def operators(name: str) -> None:
    """Registers the operators of a variant that lies in the cache: an exported program asks for them.

    Names of no such variant are left alone. Raises `UnknownVariant` if the cache does not have it, and
    `VersionError` if this compiler makes something else of its spec.
    """
    if not _NAME.fullmatch(name) or name in names():
        return
    spec = entry_spec(name)
    if spec is None:
        raise UnknownVariant(
            f"{name}: a program calls its operators, but it is not loaded and not in the cache; "
            f"load its spec first, with based_ops.load"
        )
    require("compile", "a layer from the cache")
    from based_ops.codegen.spec.load import parse_spec

    found = _of_spec(parse_spec(spec, f"<the spec of {name} in the cache>"))
    if found.name == name:
        return
    place, present = cache_directory() / name, _package(found.name)
    if not same_modules(place / name, Path(sys.modules[present].__path__[0]) / found.name):
        raise VersionError(
            f"{name}: a program calls its operators, but was exported with another build of this layer; "
            f"the present one is {found.name}: export the program again"
        )
    with _lock:
        if name not in names():  # another compiler, but it prints the same
            import_package(name, place)


def _of_spec(spec: LayerSpec) -> Variant:
    from based_ops.codegen.pipeline import cache_key, generate_one
    from based_ops.codegen.spec.model import dump_yaml

    name = f"{spec.name}_{cache_key(spec)}"
    with _lock:
        if name not in names():
            place = entry(name, dump_yaml(spec), lambda out: generate_one(spec, out, name))
            import_package(name, place)
    if record(name).layer != spec:
        raise CacheError(f"{name}: another package registered this name for another spec")
    return get(name)


class _FromSource(importlib.machinery.SourceFileLoader):
    """Python's loader of source files, without its cache of bytecode, which nobody verifies."""

    def path_stats(self, path: Any) -> Mapping[str, Any]:
        raise OSError("no bytecode")


def _package(name: str) -> str:
    return f"based_ops_jit_{name}"


def import_package(name: str, directory: Path) -> None:
    """Imports a package directory under a name of its own, which registers its variant."""
    package = _package(name)
    init = directory / "__init__.py"
    loader = _FromSource(package, str(init))
    found = importlib.util.spec_from_file_location(
        package, init, loader=loader, submodule_search_locations=[str(directory)]
    )
    if found is None or not init.is_file():
        raise CacheError(f"{directory}: not a generated package; delete this directory")
    for inner in (directory, directory / name):
        finder = importlib.machinery.FileFinder(str(inner), (_FromSource, [".py"]))
        sys.path_importer_cache[str(inner)] = finder
    module = importlib.util.module_from_spec(found)
    sys.modules[package] = module
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[package]
        raise
