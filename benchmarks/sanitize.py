"""Every kernel under NVIDIA's compute-sanitizer: ``python -m based_ops.benchmarks.sanitize --minutes 60``.

Each layer in each dtype is a process of its own under each tool (memcheck, racecheck, synccheck), in which
every way to call its generated module runs once, on small ragged shapes: `FORMS`, and those of the launch
plans that would need long sequences otherwise.  What is found stands in `results/sanitizer.json` after each
process, with the machine, the versions and the date.  A run that was out of time goes on with ``--resume``,
on another day too: what was found of a module stands for as long as its kernels have the same text.
The first minutes meet each kind of layer once: ``--minutes 3 --tool memcheck --jobs 8`` is a look at all.
Needs a GPU, and compute-sanitizer of the CUDA toolkit.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import based_ops
from based_ops import slots
from based_ops.benchmarks.ops.results import machine
from based_ops.benchmarks.sanitizer_report import Found, parsed, summary, write
from based_ops.codegen.names import RECURRENCE, variant_of
from based_ops.codegen.schedule.legal import ALL_TOKENS
from based_ops.codegen.spec.signature import OF_KEYS, OF_QUERIES, OF_VALUES, POOLED, Argument
from based_ops.extras import installed
from based_ops.operands import dtype_of
from based_ops.record import Record, record
from based_ops.variant import dtype_named

RESULTS = Path(__file__).resolve().parent / "results" / "sanitizer.json"
TOOLS = ("memcheck", "racecheck", "synccheck")
BACKENDS = ("triton", "tilelang")
BATCH, UNITS, TOKENS, CUT = 2, 2, 70, 300
"""A batch, heads (or channels, of which there are more), and tokens: few, and so many that plans cut them."""
CHANNELS = 67
EDGES = (0, 33, 33, 34, 70)
"""Packed sequences: one of no token, and one of one."""
POOL = (3, -1)
"""Slots of the batch in a pool of five."""
SECONDS = 900
"""The longest that a process may take."""
PLANS = {
    "direct": {"LONGEST": ALL_TOKENS, "TOKENS": ALL_TOKENS, "LEAST": ALL_TOKENS},
    "cut": {"LONGEST": 1, "SHORTEST": 1, "PROGRAMS": 10, "FEWEST": 1, "LEAST": 1},
}
"""Constants of launch plans: scores directly, and segments of few tokens; and of those that choose by length,
what goes token by token or lag by lag, and what does not.
"""
KEPT_EVERY = {"direct": 1, "cut": 128}
"""Tokens between the states that a backward pass keeps: each tile, or several."""
GROUPS = {"queries": (4, 2, 2), "values": (2, 2, 4)}
"""Heads of q, k and v."""


@dataclass(frozen=True)
class Form:
    """A way to call a module."""

    name: str
    tokens: int = TOKENS
    begun: bool = False
    """From states to states."""
    plans: str = ""
    warpgroups: bool = True
    packed: bool = False
    groups: str = ""
    step: bool = False
    slots: bool = False


FORMS = (
    Form("short"),
    Form("from states", begun=True),
    Form("one token", tokens=1, begun=True),
    *(
        Form(f"{plans}{begun * ' from states'}{(not fast) * ' portable'}", CUT, begun, plans, fast)
        for plans in PLANS
        for begun in (False, True)
        for fast in (True, False)
    ),
    Form("packed", packed=True),
    Form("packed from states", packed=True, begun=True),
    Form("one packed token", tokens=1, packed=True, begun=True),
    *(Form(f"shared {name}", groups=name) for name in ("values", "queries")),
    Form("packed shared queries", packed=True, groups="queries"),
    Form("step", tokens=1, step=True),
    Form("steps", tokens=5, step=True),
    Form("slots", tokens=2, step=True, slots=True),
    Form("steps of shared queries", tokens=2, step=True, groups="queries"),
)


@dataclass(frozen=True)
class Case:
    """One process: a layer's module of one backend, with inputs of one dtype."""

    backend: str
    layer: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.layer} {self.backend} {self.dtype}"

    @property
    def record(self) -> Record:
        """Whose kernels these are: of a layer, of its features where it has parts, or of what makes those."""
        whole = record(variant_of(self.layer))
        return next((x for x in whole.makers.values() if x.name == self.layer), whole.core)

    @property
    def kind(self) -> tuple[Any, ...]:
        """What its programs are like: its mixer, whether it fades or corrects, or that it makes features."""
        layer = self.record.layer
        further = getattr(layer, "decay", ""), getattr(layer, "update", "")
        return self.backend, getattr(layer, "mixer", "features"), *further

    @property
    def signature(self) -> Any:
        return self.record.layer.signature()

    @property
    def module(self) -> ModuleType:
        return self.record.module(self.backend)

    @property
    def forms(self) -> list[Form]:
        """Those that the layer has."""
        signature = self.signature
        packs = signature.packs
        every = FORMS if signature.state else [x for x in FORMS if not x.step]
        return [x for x in every if (packs or not x.packed) and (signature.groups or not x.groups)]


def cases(backends: Sequence[str] = BACKENDS) -> list[Case]:
    """All of them: first one of each kind of layer, by each backend, then another of each, so that a run of a
    few minutes has met all kinds.
    """
    found = [
        Case(backend, layer, dtype)
        for backend in backends
        for name in based_ops.names()
        for layer in (name, *(x.name for x in record(name).makers.values()))
        for dtype in based_ops.get(name).spec.dtypes
    ]
    found = [case for case in found if dtype_named(case.dtype) != torch.float64]
    met: Counter[tuple[Any, ...]] = Counter()
    rounds = {}
    for case in found:
        rounds[case] = met[case.kind]
        met[case.kind] += 1
    return sorted(found, key=rounds.__getitem__)


# The calls


def calls(case: Case, device: str, forms: Sequence[str] = ()) -> Iterator[tuple[Form, Callable[[], Any]]]:
    """A call for each form, or for those named: forward and backward, or a step."""
    for form in case.forms:
        if not forms or form.name in forms:
            yield form, _Call(case, form, device).run


class _Call:
    """One call of the functions of a generated module."""

    def __init__(self, case: Case, form: Form, device: str) -> None:
        self.case, self.form, self.device = case, form, device
        self.signature, self.module = case.signature, case.module
        units = UNITS if self.signature.unit == "H" else CHANNELS
        heads: dict[str, int] = dict(self.signature.alike(units))
        if form.groups:
            q, k, v = GROUPS[form.groups]
            most = max(q, v)
            heads |= {OF_QUERIES: q, OF_KEYS: k, OF_VALUES: v, "H": most, "HS": max(k, v)}
        batch = 1 if form.packed else BATCH
        count = len(EDGES) - 1 if form.packed else batch
        longer = form.tokens + getattr(case.record.layer, "window", 0) * form.begun * (not form.packed)
        self.sizes = heads | {"B": batch, "N": count, "T": form.tokens, "Tk": longer, POOLED: 5}

    def run(self) -> None:
        with ExitStack() as stack:
            for name, plan in self.plans():
                stack.enter_context(patch.dict(self.module.SCHEDULE[name], plan))
            if not self.form.warpgroups and hasattr(self.module, "on_warpgroups"):
                stack.enter_context(patch.object(self.module, "on_warpgroups", lambda *_: False))
            if self.form.step:
                self.step()
            else:
                self.pass_through()

    def plans(self) -> Iterator[tuple[str, dict[torch.dtype, dict[str, int]]]]:
        """The tables of launch plans, as the form wants them."""
        dtype, tables = dtype_named(self.case.dtype), self.module.SCHEDULE
        recurs = dtype in tables.get(RECURRENCE, {})
        for name, table in tables.items() if self.form.plans else ():
            part, constants = name.partition("_")[0], table.get(dtype, {})
            if part not in ("forward", "backward") or not {"PROGRAMS", "LEAST"} & constants.keys():
                continue
            wanted = PLANS[self.form.plans]
            never = {"LONGEST"} if not recurs else set()
            if constants.get("LEAST", 0) >= ALL_TOKENS:
                never.add("LEAST")
            other = {key: wanted[key] for key in constants.keys() & wanted.keys() - never}
            if part == "backward" and "LENGTH" in constants:
                other["LENGTH"] = KEPT_EVERY[self.form.plans]
            yield name, {dtype: constants | other}

    def pass_through(self) -> None:
        signature, begun = self.signature, self.form.begun
        inputs = [self.drawn(x) for x in signature.inputs]
        numbers = [*signature.numbers.values()]
        carried = [self.drawn(x) if begun else None for x in signature.carried]
        places = []
        if self.form.packed:
            edges = torch.tensor(EDGES, dtype=torch.int32, device=self.device)
            places = [torch.stack((edges[:-1], edges[1:]), 1)]
        asked = [begun] if signature.final else []
        results = self.module.forward(*inputs, *numbers, *carried, *asked, *places)
        output, *others = results if isinstance(results, tuple) else (results,)
        kept, final = others[: len(signature.kept)], others[len(signature.kept) :]
        read = [output, *kept] if signature.keeps_output else kept
        d_final = [torch.ones_like(x) if begun and x.numel() else None for x in final]
        self.module.backward(torch.ones_like(output), *d_final, *inputs, *read, *numbers, *carried, *places)

    def step(self) -> None:
        signature = self.signature
        inputs = [self.drawn(x) for x in signature.stepped]
        before = [*inputs, *signature.numbers.values()]
        states = [self.drawn(x) for x in (signature.pools if self.form.slots else signature.state)]
        indices = torch.tensor(POOL, dtype=torch.int32, device=self.device) if self.form.slots else None
        where = slice(len(before), len(before) + len(states))
        slots.step(self.module.step, where, *before, *states, indices)

    def drawn(self, x: Argument) -> Tensor | None:
        """Numbers for an argument: of the size of one, which rates may be, and decays of a half."""
        if not x.present:
            return None
        shape = [self.sizes[dim] if isinstance(dim, str) else dim for dim in x.dims]
        dtype = dtype_of(self.case.record.layer, x.dtype, dtype_named(self.case.dtype))
        if not dtype.is_floating_point:
            return torch.zeros(shape, dtype=dtype, device=self.device)
        numbers = torch.rand(shape, device=self.device) + 0.5
        return (-numbers if x.fades else numbers).to(dtype)


def work(case: Case, forms: Sequence[str]) -> None:
    """What a process does under a tool: all its calls, each of which is named before it runs."""
    for form, run in calls(case, "cuda", forms):
        print(f"form: {form.name}", flush=True)
        run()
        torch.cuda.synchronize()


# The tools


def sanitizer() -> str | None:
    """Where compute-sanitizer is."""
    beside = Path("/usr/local/cuda/bin/compute-sanitizer")
    return shutil.which("compute-sanitizer") or (str(beside) if beside.exists() else None)


def why_not() -> str | None:
    """Why nothing can run here."""
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    return None if sanitizer() else "no compute-sanitizer: it comes with the CUDA toolkit; put it on the PATH"


def under(tool: str, case: Case, seconds: float) -> Found | None:
    """Runs one process under a tool; None if it would take longer."""
    command = [sanitizer() or "compute-sanitizer", "--tool", tool, "--print-limit", "20", sys.executable]
    command += ["-m", "based_ops.benchmarks.sanitize", "--case", case.backend, case.layer, case.dtype]
    # PyTorch keeps memory that was freed, in which an access past a tensor's end would be right.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    run = subprocess.Popen(
        command,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = run.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)  # with what the tool itself has started
        run.communicate()
        return None
    found = parsed(output)
    if run.returncode and not found.errors and not found.failed:
        return Found(found.errors, found.forms, f"ended with {run.returncode}")
    return found


# The record


def key(tool: str, case: Case) -> str:
    return f"{tool} {case}"


@functools.cache
def text(case: Case) -> str:
    """A digest of what a process runs: a generated module, and what kernels call of the package."""
    package = Path(based_ops.__file__).parent / "support"
    beside = sorted(path for path in package.glob("*.py") if path.name != "host.py")
    found = [Path(str(case.module.__file__)), *beside]
    lines = [x for path in found for x in path.read_bytes().splitlines() if not x.startswith(b"# build: ")]
    return hashlib.sha256(b"\n".join(lines)).hexdigest()[:12]


def read(about: dict[str, Any], wanted: Iterable[tuple[str, Case]], path: Path) -> dict[str, Any]:
    """What earlier runs with these versions on such a machine have found of the same kernels."""
    if not path.exists():
        return {}
    document = json.loads(path.read_text(encoding="utf-8"))
    if any(document["machine"].get(x) != about.get(x) for x in about if x not in ("date", "compiler")):
        return {}
    texts = {key(*each): text(each[1]) for each in wanted}
    return {name: x for name, x in document["found"].items() if x.get("text") == texts.get(name, "")}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="when it ends: what is not done then is cut off"
    )
    parser.add_argument("--resume", action="store_true", help="keep what an earlier run has found")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument(
        "--backend", choices=BACKENDS, action="append", help="all that are installed unless given"
    )
    parser.add_argument("--tool", choices=TOOLS, action="append", help="all unless given")
    parser.add_argument("--only", default="", help="layers whose names hold this")
    parser.add_argument("--case", nargs=3, metavar=("BACKEND", "LAYER", "DTYPE"), help="in this process")
    parser.add_argument("--form", action="append", default=[], help="of a --case; all unless given")
    given = parser.parse_args(arguments)
    if given.case:
        return work(Case(*given.case), given.form)
    if reason := why_not():
        parser.error(reason)
    about = machine("cuda")
    end = time.monotonic() + 60 * given.minutes
    here = [backend for backend in BACKENDS if installed(backend)]
    if missing := set(given.backend or ()) - {*here}:
        parser.error(f"not installed: {', '.join(sorted(missing))}")
    chosen = [case for case in cases(given.backend or here) if given.only in case.layer]
    tools = given.tool or TOOLS
    wanted = [(tool, case) for case in chosen for tool in tools]
    every = [(tool, case) for case in cases() for tool in TOOLS]
    found = read(about, every, RESULTS) if given.resume else {}

    def run(tool: str, case: Case) -> Found | None:
        """What a process has found; None of one that the run's own end has cut off, or that did not begin."""
        left = end - time.monotonic()
        result = under(tool, case, min(SECONDS, left)) if left > 0 else None
        if result is None and left >= SECONDS:
            return Found(None, failed=f"took longer than {SECONDS} s")
        return result

    recording = threading.Lock()

    def run_all(case: Case) -> None:
        """One tool after the other: the first finds kernels to compile, and the others find them compiled."""
        for tool in tools:
            name = key(tool, case)
            if name in found:
                continue
            if (result := run(tool, case)) is None:
                return
            with recording:
                found[name] = asdict(result) | {"text": text(case), "date": about.get("date")}
                write(about, found, RESULTS)
                print(f"{name}: {result.failed or f'{result.errors} errors'}", flush=True)

    with ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(run_all, chosen))
    left_out = [key(*each) for each in wanted if key(*each) not in found]
    print("\n".join(summary(found, TOOLS)))
    if left_out:
        print(f"not done: {len(left_out)}; go on with --resume")


if __name__ == "__main__":
    main()
