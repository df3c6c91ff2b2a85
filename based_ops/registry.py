"""How variants become known to this process, and a name becomes a variant."""

from __future__ import annotations

import functools
import importlib
import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import ops
from .errors import RegistrationError
from .log import LOGGER
from .record import RECORDS, Record, record
from .record import names as names

if TYPE_CHECKING:
    from .state_base import State
    from .variant import Variant

LOCK = threading.RLock()
"""Held by whoever makes variants known, and by a fork, which therefore waits until none is half known."""

os.register_at_fork(before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=LOCK.release)


def register_package(package: str, variants: Mapping[str, Mapping[str, Any]]) -> None:
    """Registers the variants of a generated package; every generated `__init__` calls this.

    `variants` maps a name to `{"build": <8 hex digits>, "schemas": <of each operator>, "spec": <as plain
    data>}`.  A name that another package registered with the same build is left alone, with another build it
    is a `RegistrationError`.
    """
    LOGGER.debug("registry: %s describes %d layers", package, len(variants))
    with LOCK:
        fresh = []
        for name, entry in variants.items():
            found = Record.of(name, package, entry)
            known = RECORDS.get(name)
            if known is None:
                fresh.append(found)
            elif known.build != found.build:
                raise RegistrationError(
                    f"variant {name!r} of package {package!r} (build {found.build}) is already registered "
                    f"by package {known.package!r} with build {known.build}; give one of them another name"
                )
        for found in fresh:
            ops.register(found)
            RECORDS[found.name] = found


@functools.cache
def _variant(name: str) -> Variant[State]:
    from .mixers import variant_class

    entry = record(name)
    made = variant_class(entry.mixer)._class_of(entry.layer)
    if entry.core is entry:
        return made(entry)
    from .featured import FeaturedVariant

    return FeaturedVariant(entry, made)


def get(name: str) -> Variant[State]:
    """The variant of that name, always the same object; `UnknownVariant` names the nearest.

    Args:
        name: That of a layer which is generated or loaded, see `based_ops.names()`.

    Raises:
        UnknownVariant: there is none of that name.

    Examples:
        >>> import based_ops
        >>> based_ops.get("window64_d64")
        <based_ops variant window64_d64: sliding_window, softmax over 64 keys>
    """
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
