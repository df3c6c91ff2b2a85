"""Which backend serves a call.  Exactly one does, and nothing falls back in silence.

Order of choice: the argument `backend`; else the environment variable `BASED_OPS_BACKEND`; else `torch` for
float64, which no other backend computes; else what the variant's generated package says is best for the
device (`SERVES`, from the schedule records); else `triton` on CUDA and `torch` elsewhere.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from based_ops.codegen.names import BACKENDS

from .errors import ArgumentTypeError, BackendUnavailable, fail_text
from .tracing import run_while_tracing

if TYPE_CHECKING:
    from .registry import Record

VARIABLE = "BASED_OPS_BACKEND"


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend can serve a variant on a device, and if not, why."""

    name: str
    device: str
    available: bool
    default: bool
    reason: str | None

    def __str__(self) -> str:
        if self.available:
            return f"{self.name} on {self.device}: available" + (", the default" if self.default else "")
        return f"{self.name} on {self.device}: not available: {self.reason}"


def module_name(backend: str, device_type: str) -> str:
    """The generated module that holds the kernels of `backend` for such a device."""
    return "tilelang_cpu" if backend == "tilelang" and device_type == "cpu" else backend


def why_not(backend: str, device_type: str) -> str | None:
    """Why this machine cannot run kernels of `backend` on such a device; None if it can."""
    if backend == "torch":
        return None
    if importlib.util.find_spec(backend) is None:
        return f"the package {backend} is not installed"
    if device_type == "cuda":
        return None if torch.cuda.is_available() else "PyTorch sees no CUDA device"
    if device_type != "cpu":
        return f"{backend} kernels run on CUDA devices, not on {device_type}"
    if backend == "triton":
        if os.environ.get("TRITON_INTERPRET") == "1":
            return None
        return "Triton runs on a CPU only as an interpreter: set TRITON_INTERPRET=1 before Python starts"
    if shutil.which("gcc") is None:
        return "TileLang kernels run on a CPU as compiled C, and there is no gcc on the PATH"
    return None


def why_not_here(record: Record, backend: str, device_type: str, dtype: torch.dtype) -> str | None:
    """Why `backend` cannot serve such a call of a variant; None if it can."""
    if dtype == torch.float64 and backend != "torch":
        return "float64 is computed by the torch backend only"
    module = module_name(backend, device_type)
    if importlib.util.find_spec(f"{record.package}.{record.name}.{module}") is None:
        return f"{record.package}.{record.name} was generated without a module {module}"
    return why_not(backend, device_type)


def preferred(record: Record, device_type: str, dtype: torch.dtype) -> str:
    """The default backend for such a call, whether or not it can serve here."""
    if dtype == torch.float64:
        return "torch"
    serves = getattr(importlib.import_module(f"{record.package}.{record.name}"), "SERVES", {})
    return serves.get(device_type, "triton" if device_type == "cuda" else "torch")


# `os.environ.get` raises and catches where the name is absent, which is 1 µs of each call.
_DICTIONARY = getattr(os.environ, "_data", None)
_KEY = getattr(os.environ, "encodekey", str)(VARIABLE)


def asked(backend: str | None) -> str | None:
    """What a call asks for: by its argument, or by the environment variable, now."""
    return backend if backend is not None else _environment() or None


def _environment() -> str | None:
    if _DICTIONARY is not None and _KEY not in _DICTIONARY:
        return None
    return os.environ.get(VARIABLE)


@run_while_tracing
def kernel(name: str, backend: str | None, device: torch.device, dtype: torch.dtype) -> str:
    """The kernel string of the one backend that serves such a call; raises `BackendUnavailable` if it cannot.

    Under `torch.compile` this runs while tracing: a later change of the environment does not reach compiled
    code.
    """
    return _kernel(name, asked(backend), backend is None, device, dtype)


@functools.cache  # errors are not cached
def _kernel(
    name: str, asked: str | None, from_environment: bool, device: torch.device, dtype: torch.dtype
) -> str:
    from .registry import record as registered

    record, device_type = registered(name), device.type
    origin = VARIABLE if from_environment else "backend"
    if asked is not None and asked not in BACKENDS:
        kind = BackendUnavailable if isinstance(asked, str) else ArgumentTypeError
        fail_text(
            kind, f"{origin}: got {asked!r}, must be one of {', '.join(BACKENDS)}, or None for the default"
        )
    chosen = asked or preferred(record, device_type, dtype)
    reason = why_not_here(record, chosen, device_type, dtype)
    if reason is not None:
        what = f"{origin}: got {asked!r}" if asked else f"backend: the default here is {chosen!r}"
        others = [b for b in BACKENDS if b != chosen and why_not_here(record, b, device_type, dtype) is None]
        fail_text(
            BackendUnavailable,
            f"{what}, which cannot serve {record.name} on {device_type}: {reason}; "
            f"must be one that can: {', '.join(others) or 'none here'}",
        )
    return f"{module_name(chosen, device_type)}-{record.build}"


def statuses(record: Record, device_type: str, dtype: torch.dtype) -> list[BackendStatus]:
    """One status a backend, for `Variant.backends` and the command line."""
    default = preferred(record, device_type, dtype)
    result = []
    for backend in BACKENDS:
        reason = why_not_here(record, backend, device_type, dtype)
        result.append(BackendStatus(backend, device_type, reason is None, backend == default, reason))
    return result
