"""``based-ops doctor``: what this machine can run, and why not the rest."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess

import click

from .console import document, json_option, table
from .places import checkout, shipped_specs

PACKAGES = ("based-ops", "torch", "triton", "tilelang", "numpy", "sympy", "pyyaml", "click", "rich")


@click.command(short_help="What can run here, and why not the rest.")
@json_option
def doctor(as_json: bool) -> None:
    """Print versions, devices, and which backends can run here and why the others cannot."""
    import torch

    import based_ops
    from based_ops import dispatch, log

    python = f"{platform.python_version()} on {platform.platform()}"
    versions = [("python", python), *_versions()]
    devices = ["cpu"]
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        devices.append(f"cuda:{index} ({torch.cuda.get_device_name(index)}, sm_{major}{minor})")
    compiler = shutil.which("g++") or shutil.which("clang++") or "none: torch.compile needs one"
    facts = [
        ("devices", ", ".join(devices)),
        ("CUDA of PyTorch", torch.version.cuda or "none"),
        ("CPU threads of PyTorch", str(torch.get_num_threads())),
        ("C++ compiler", compiler),
        ("checkout", str(checkout() or "none, an installed package")),
        ("commit", _commit()),
        ("specs", str(shipped_specs())),
        ("generated layers", str(len(based_ops.names()))),
        ("just-in-time cache", _cache()),
        (dispatch.VARIABLE, os.environ.get(dispatch.VARIABLE, "not set")),
        (log.VARIABLE, os.environ.get(log.VARIABLE, "not set")),
        ("TRITON_INTERPRET", os.environ.get("TRITON_INTERPRET", "not set")),
    ]
    columns, rows = ("backend", "device", "runs here", "why not"), []
    no_cuda = None if torch.cuda.is_available() else "PyTorch sees no CUDA device"
    for device in ("cpu", "cuda"):
        for backend in dispatch.BACKENDS:
            reason = no_cuda if device == "cuda" and no_cuda else dispatch.why_not(backend, device)
            rows.append((backend, device, reason is None, reason or ""))
    if as_json:
        backends = [dict(zip(columns, row, strict=True)) for row in rows]
        document({"versions": dict(versions), "here": dict(facts), "backends": backends})
        return
    table(("what", "version"), versions)
    click.echo()
    table(("what", "here"), facts)
    click.echo()
    table(columns, rows)


def _versions() -> list[tuple[str, str]]:
    rows = []
    for name in PACKAGES:
        try:
            rows.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            rows.append((name, "not installed"))
    return rows


def _commit() -> str:
    """That of the checkout, if git knows it."""
    root = checkout()
    if root is None or shutil.which("git") is None:
        return "unknown"
    words = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(words, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def _cache() -> str:
    from ..cache import cache_directory
    from ..errors import CacheError

    try:
        return str(cache_directory())
    except CacheError as error:
        return str(error)
