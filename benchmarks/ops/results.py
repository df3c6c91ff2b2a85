"""What a run found, as data: `Report` and its JSON."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .measure import Ceilings
from .works import Work

PACKAGES = ("torch", "triton", "tilelang", "fla-core", "numpy")
METHOD = (
    "Medians of triton.testing.do_bench on random inputs, the second-level cache emptied before every run; "
    "clock graph: a CUDA graph of calls on inputs that together exceed that cache, divided by their number; "
    "clock host: time until a call returns, batches of calls that nothing waits for. On a CPU wall time. "
    "Every result of this library is held against naive float64 mathematics before it is timed. "
    "GB/s and TFLOP/s count the least bytes and products of the work (benchmarks/ops/floors.py)."
)


@dataclass(frozen=True)
class Time:
    """One contender on one line.  `percent` is of the limit; it, `gb_s` and `tflop_s` are of the line's work,
    and None for who does another; `speedup` is over each peer, for this library's backends."""

    by: str
    ours: bool
    same: bool
    ms: float
    gb_s: float | None = None
    tflop_s: float | None = None
    percent: float | None = None
    peak_mib: float | None = None
    speedup: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """One piece of work: its floor and the limit that follows, its target, and everybody's time.

    `default` is the backend that a call gets which names none; by its time a target is `met`.  `missing` says
    of everybody else why there is no time.
    """

    group: str
    sweep: bool
    work: Work
    bytes: int
    flops: int
    limit_ms: float
    default: str
    times: list[Time]
    missing: dict[str, str]
    target_ms: float | None = None

    def time(self, by: str) -> Time | None:
        return next((time for time in self.times if time.by == by), None)

    @property
    def own(self) -> Time | None:
        """The time of a call that names no backend."""
        return self.time(self.default)

    @property
    def over_target(self) -> float | None:
        """The time over its target; None without one, or without a time."""
        return None if self.target_ms is None or self.own is None else self.own.ms / self.target_ms

    @property
    def met(self) -> bool | None:
        """Whether the target is reached, which takes a time; None without a target."""
        if self.target_ms is None:
            return None
        return self.over_target is not None and self.over_target <= 1

    @property
    def faster_peers(self) -> list[str]:
        """Who beats a call that names no backend."""
        own = self.own
        return [] if own is None else [t.by for t in self.times if not t.ours and t.ms < own.ms]


@dataclass(frozen=True)
class Report:
    """A run: where, with what, the ceilings, the lines, and the lines it did not come to."""

    machine: dict[str, Any]
    ceilings: Ceilings
    lines: list[Line]
    not_measured: list[str]
    seconds: float

    def write(self, path: Path) -> None:
        """Writes JSON; a reader finds the old file or the new one."""
        lines = [{**asdict(x), "met": x.met, "faster_peers": x.faster_peers} for x in self.lines]
        document = {"method": METHOD, **asdict(self), "lines": lines}
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_text(_json(document), encoding="utf-8")
        temporary.replace(path)


def _json(document: dict[str, Any]) -> str:
    """JSON with a row for each entry of a list, numbers to five figures."""
    parts = []
    for key, value in document.items():
        text = json.dumps(_rounded(value))
        if isinstance(value, list):
            text = "[\n" + ",\n".join(json.dumps(_rounded(entry)) for entry in value) + "\n]"
        parts.append(f"{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list) else value


def read(path: Path) -> Report:
    """The report in a JSON file; `ValueError` if the file holds none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return Report(
            document["machine"],
            Ceilings(**document["ceilings"]),
            [_line(x) for x in document["lines"]],
            document["not_measured"],
            document["seconds"],
        )
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a result of `based-ops bench ops`: {error!r}") from error


def _line(data: dict[str, Any]) -> Line:
    derived = ("met", "faster_peers")
    fields = {key: value for key, value in data.items() if key not in derived}
    return Line(**{**fields, "work": Work(**data["work"]), "times": [Time(**t) for t in data["times"]]})


def with_speedups(times: Iterable[Time]) -> list[Time]:
    """The times, each of ours with its speed-up over each peer."""
    times = list(times)
    peers = [time for time in times if not time.ours]
    return [replace(t, speedup={p.by: p.ms / t.ms for p in peers}) if t.ours else t for t in times]


def machine(device: str) -> dict[str, Any]:
    """Hardware, versions, and the hash of the compiler whose kernels are measured."""
    from based_ops import __version__
    from based_ops.codegen.pipeline import compiler_hash

    about: dict[str, Any] = {"device": f"{torch.get_num_threads()} CPU threads"}
    if device == "cuda":
        properties = torch.cuda.get_device_properties()
        about = {
            "device": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "l2_mib": round(properties.L2_cache_size / 2**20, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    about |= {"python": platform.python_version(), "based-ops": __version__, "compiler": compiler_hash()[:8]}
    for package in PACKAGES:
        try:
            about[package] = version(package)
        except PackageNotFoundError:
            about[package] = None
    return about | {"date": date.today().isoformat()}
