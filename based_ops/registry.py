"""The variants this process knows, where their kernels live, and how a name becomes a variant."""

from __future__ import annotations

import difflib
import functools
import importlib
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from . import ops
from .errors import RegistrationError, UnknownVariant

if TYPE_CHECKING:
    from .variant import Variant

LOCK = threading.RLock()
"""Held by whoever makes variants known, and by a fork, which therefore waits until none is half known."""

os.register_at_fork(before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=LOCK.release)

_NAME = re.compile(r"[a-z_][a-z0-9_]*", re.ASCII)
_BUILD = re.compile(r"[0-9a-f]{8}", re.ASCII)


@dataclass(frozen=True, eq=False)
class Record:
    """One generated variant: `package.name` holds its modules, `build` hashes its spec and its modules."""

    name: str
    package: str
    build: str
    spec: Mapping[str, Any]

    @functools.cached_property
    def layer(self) -> Any:
        """The spec, as the compiler's model has it."""
        from based_ops.codegen.spec.model import spec_from_dict

        return spec_from_dict(self.spec)

    def module(self, backend: str) -> ModuleType:
        """The generated module of `backend`, imported now (Triton and TileLang are slow to import)."""
        return importlib.import_module(f"{self.package}.{self.name}.{backend}")


_records: dict[str, Record] = {}


def register_package(package: str, variants: Mapping[str, Mapping[str, Any]]) -> None:
    """Registers the variants of a generated package; every generated `__init__` calls this.

    `variants` maps a name to `{"build": <8 hex digits>, "spec": <the spec as plain data>}`.  A name that
    another package registered with the same build is left alone, with another build it is a
    `RegistrationError`.
    """
    with LOCK:
        fresh = []
        for name, entry in variants.items():
            record = Record(name, package, str(entry.get("build")), entry.get("spec", {}))
            if not (_NAME.fullmatch(name) and _BUILD.fullmatch(record.build) and "mixer" in record.spec):
                raise RegistrationError(
                    f"variant {name!r} of package {package!r}: not a description of a variant"
                )
            known = _records.get(name)
            if known is None:
                fresh.append(record)
            elif known.build != record.build:
                raise RegistrationError(
                    f"variant {name!r} of package {package!r} (build {record.build}) is already registered "
                    f"by package {known.package!r} with build {known.build}; give one of them another name"
                )
        for record in fresh:
            ops.register(record.name, record.spec["mixer"], record)
            _records[record.name] = record


def names() -> list[str]:
    """The names that `get` knows, sorted."""
    return sorted(_records)


def record(name: str) -> Record:
    """The record of a registered variant; `UnknownVariant` names the nearest."""
    if name in _records:
        return _records[name]
    if not isinstance(name, str):
        raise UnknownVariant(f"name: got {name!r}, must be the name of a variant, a str")
    near = difflib.get_close_matches(name, _records, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"known are {', '.join(names()) or 'none'}"
    raise UnknownVariant(f"name: got {name!r}, must be the name of a registered variant; {hint}")


@functools.cache
def _variant(name: str) -> Variant:
    from .variant import variant_class

    entry = record(name)
    return variant_class(entry.spec["mixer"])(entry)


def get(name: str) -> Variant:
    """The variant of that name, always the same object; `UnknownVariant` names the nearest."""
    record(name)
    with LOCK:
        return _variant(name)


def _register_generated() -> None:
    try:
        importlib.import_module("based_ops.generated")
    except ModuleNotFoundError as error:
        if error.name != "based_ops.generated":
            raise
        # A checkout in which nothing has been generated yet: `based-ops generate` must still run.


_register_generated()
