"""What is to be done when a module is imported, by whomever, and not before.

PyTorch takes rules for operators in modules that are slow to import, and that few processes need: the counter
of operations imports Triton, and distributed tensors take a second.  So a rule waits for its module.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_waiting: dict[str, list[Callable[[], None]]] = {}
_running: set[str] = set()
_lock = threading.Lock()


def when_imported(module: str, function: Callable[[], None]) -> None:
    """Calls `function` now if `module` is imported, else as soon as it is."""
    with _lock:
        if module not in sys.modules or module in _running:
            _waiting.setdefault(module, []).append(function)
            return
    function()


class _Finder:
    """Finds modules as everybody else does, and has their loaders say when they are done."""

    def __init__(self) -> None:
        self._finding = threading.local()

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if name not in _waiting or getattr(self._finding, "name", None) == name:
            return None
        self._finding.name = name
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._finding.name = None
        if spec is not None and spec.loader is not None:
            _tell(spec)
        return spec


def _tell(spec: ModuleSpec) -> None:
    loader: Any = spec.loader
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        _running.add(spec.name)
        try:
            execute(module)
        except BaseException:
            _running.discard(spec.name)
            raise
        while functions := _taken(spec.name):
            for function in functions:
                function()

    loader.exec_module = exec_module


def _taken(module: str) -> list[Callable[[], None]]:
    """What waits for a module that has run; when nothing does, the module is ready."""
    with _lock:
        functions = _waiting.pop(module, [])
        if not functions:
            _running.discard(module)
        return functions


sys.meta_path.insert(0, _Finder())
