"""Which backend serves a call.  Exactly one does, and nothing falls back in silence.

Order of choice: the argument `backend`; else the environment variable `BASED_OPS_BACKEND`; else `torch` for
float64, which no other backend computes; else what the variant's generated package says is best for the
device (`SERVES`, from the schedule records); else `triton` on CUDA and `torch` elsewhere.

Operators are told by a *kernel string*, `"<what is asked for>-<build>"`.  In compiled code and in exported
programs it holds what was asked for while they were traced, a backend or `default`, and is resolved where
they run, by the device and the dtype of the call.  The build is that of the layer's generated modules: what
was traced with another one is refused, and the compile caches, which key on arguments, tell them apart.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
import shutil
from dataclasses import dataclass
from typing import Literal

import torch

from based_ops.codegen.names import BACKENDS

from .errors import ArgumentTypeError, BackendUnavailable, VersionError, fail_text
from .extras import command, installed
from .log import LOGGER
from .record import Record
from .record import record as record_of
from .tracing import run_while_tracing

Backend = Literal["triton", "tilelang", "torch"]
"""What a call may ask for: `codegen.names.BACKENDS`, as type checkers and editors read them."""
VARIABLE = "BASED_OPS_BACKEND"
DEFAULT = "default"
"""What a kernel string asks for if a call asked for nothing."""


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
    if not installed(backend):
        install = command("tilelang") if backend == "tilelang" else f"pip install {backend}"
        return f"the package {backend} is not installed; run: {install}"
    if device_type == "cuda":
        return None if torch.cuda.is_available() else "PyTorch sees no CUDA device"
    if device_type != "cpu":
        return f"{backend} kernels run on CUDA devices, not on {device_type}"
    if backend == "triton":
        if os.environ.get("TRITON_INTERPRET") == "1":
            return None if installed("numpy") else f"Triton's interpreter needs NumPy; run: {command('cli')}"
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


_HOSTED = {module_name(backend, "cpu"): backend for backend in BACKENDS}
"""Backends by their modules for the host."""

# `os.environ.get` raises and catches where the name is absent, which is 1 µs of each call.
_ENVIRONMENT = os.environ
_DICTIONARY = getattr(os.environ, "_data", None)
_KEY = getattr(os.environ, "encodekey", str)(VARIABLE)


def asked(backend: str | None) -> str | None:
    """What a call asks for: by its argument, or by the environment variable, now."""
    if backend is not None:
        return backend
    if os.environ is _ENVIRONMENT and _DICTIONARY is not None and _KEY not in _DICTIONARY:
        return None
    return os.environ.get(VARIABLE) or None


@run_while_tracing
def kernel(
    name: str, backend: str | None, device: torch.device, dtype: torch.dtype, traced: bool = False
) -> str:
    """The kernel string of such a call; raises `BackendUnavailable` if no backend can serve it here.

    It names a generated module, or if `traced` what the call asks for.  Under `torch.compile` this runs while
    tracing: a later change of the environment does not reach compiled code.
    """
    wanted = asked(backend)
    found = _kernel(name, wanted, VARIABLE if backend is None else "backend", device, dtype)
    return f"{wanted or DEFAULT}-{found.rpartition('-')[2]}" if traced else found


def served(record: Record, kernel: str, device: torch.device, dtype: torch.dtype) -> str:
    """The kernel string of the generated module that serves a call of an operator with this one."""
    wanted = read(record, kernel)
    return _kernel(record.variant, None if wanted == DEFAULT else wanted, "kernel", device, dtype)


def read(record: Record, kernel: str) -> str:
    """The backend that a kernel string asks for, or `DEFAULT`.

    It may leave out the build. Raises `VersionError` if it is another one.
    """
    wanted, _, build = kernel.partition("-")
    wanted = _HOSTED.get(wanted, wanted)
    if wanted not in (DEFAULT, *BACKENDS):
        allowed = ", ".join((DEFAULT, *BACKENDS))
        fail_text(
            BackendUnavailable,
            f"kernel: got {kernel!r}, must be one of {allowed}, each with or without -{record.build}",
        )
    if build not in ("", record.build):
        fail_text(
            VersionError,
            f"kernel: got {kernel!r}, must be of build {record.build}, which {record.name} has here: "
            f"this program was made with other kernels; export or compile it again",
        )
    return wanted


@functools.cache  # errors are not cached
def _kernel(name: str, asked: str | None, origin: str, device: torch.device, dtype: torch.dtype) -> str:
    record, device_type = record_of(name), device.type
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
    why = f"{origin} asks for it" if asked else "the default"
    for other in BACKENDS if LOGGER.isEnabledFor(logging.INFO) else ():
        if not asked and other != chosen:
            reason = why_not_here(record, other, device_type, dtype)
            why += f"; {other} " + ("could too" if reason is None else f"cannot: {reason}")
    LOGGER.info("backend: %s serves %s on %s in %s (%s)", chosen, record.name, device, dtype, why)
    return f"{module_name(chosen, device_type)}-{record.build}"


def statuses(record: Record, device_type: str, dtype: torch.dtype) -> list[BackendStatus]:
    """One status a backend, for `Variant.backends` and the command line."""
    default = preferred(record, device_type, dtype)
    result = []
    for backend in BACKENDS:
        reason = why_not_here(record, backend, device_type, dtype)
        result.append(BackendStatus(backend, device_type, reason is None, backend == default, reason))
    return result
