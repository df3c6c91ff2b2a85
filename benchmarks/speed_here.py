"""How fast everything is on this machine, as the Markdown table of the README and as JSON.

    python benchmarks/speed_here.py [--json FILE] [--device cpu|cuda]

Times are medians over many runs, after warming up, on random inputs; on a GPU between device events
(`triton.testing.do_bench`).  A row is left out where what it measures cannot run, and the reason is printed.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import based_ops

TAYLOR = "taylor2_qk16_v64"
WINDOW = "window64_d64"
GPU_BACKENDS = ("triton", "tilelang", "torch")
HEAD = 64
"""Width of the heads of full attention that layers are compared with."""


@dataclass(frozen=True)
class Row:
    """One number: what was run, at which size, by what."""

    what: str
    size: str
    by: str
    value: float
    unit: str


class Table:
    """The rows so far, and what could not be measured."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.missing: list[str] = []

    def add(self, what: str, size: str, by: str, unit: str, measure: Callable[[], float]) -> None:
        """Measures one row; a failure costs this row alone."""
        try:
            row = Row(what, size, by, measure(), unit)
        except Exception as error:  # another library's limits, memory, a backend that cannot serve
            lines = str(error).strip().splitlines() or [""]
            self.missing.append(f"{what}, {by}: {type(error).__name__}: {lines[0]}")
            print(f"left out: {self.missing[-1]}", file=sys.stderr, flush=True)
            return
        self.rows.append(row)
        print(f"{row.what} | {row.size} | {row.by} | {_number(row)}", file=sys.stderr, flush=True)

    def markdown(self) -> str:
        """The rows as a Markdown table."""
        lines = ["| what | size | by | measured |", "|---|---|---|---|"]
        lines += [f"| {row.what} | {row.size} | {row.by} | {_number(row)} |" for row in self.rows]
        return "\n".join(lines)


def _number(row: Row) -> str:
    digits = 3 if row.value < 10 else 1
    return f"{row.value:.{digits}f} {row.unit}"


def inputs(batch: int, length: int, heads: int, qk: int, v: int, grad: bool = False) -> list[Tensor]:
    """Random bfloat16 q, k, v on the GPU."""
    shape = (batch, length, heads)
    tensors = [torch.randn(*shape, width, device="cuda", dtype=torch.bfloat16) for width in (qk, qk, v)]
    return [x.requires_grad_(grad) for x in tensors]


def gpu_ms(run: Callable[[], object]) -> float:
    """Median milliseconds of a call."""
    from triton.testing import do_bench

    return float(do_bench(run, warmup=50, rep=300, return_mode="median"))


def gpu_graph_ms(run: Callable[[], object]) -> float:
    """Median milliseconds of a call that is replayed from a CUDA graph: without the launches' overhead."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return gpu_ms(graph.replay)


def peak_mib(run: Callable[[], object]) -> float:
    """MiB of device memory that a call needs on top of what is there before it."""
    run()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def gpu(table: Table) -> None:
    """Everything that is measured on a GPU, in bfloat16."""
    torch.manual_seed(0)
    size = "B16 H16 T8192"
    q, k, v = inputs(16, 8192, 16, 16, 64)
    op = based_ops.get(TAYLOR)
    for backend in GPU_BACKENDS:
        run = _forward(op, (q, k, v), backend)
        table.add("Taylor forward, qk 16, v 64", size, backend, "ms", lambda run=run: gpu_ms(run))
    table.add(
        "Taylor forward, qk 16, v 64",
        size,
        "fla fused_chunk_based",
        "ms",
        lambda: gpu_ms(_fla(q, k, v)),
    )
    full = [x.transpose(1, 2) for x in inputs(16, 8192, 16, HEAD, HEAD)]
    table.add("causal attention forward, width 64", size, "SDPA", "ms", lambda: gpu_ms(_sdpa(*full)))

    for name in (TAYLOR, WINDOW):
        _both_ways(table, name)
    for length in (8192, 16384):
        q, k, v = inputs(4, length, 16, 16, 64, grad=True)
        for backend in ("triton", "tilelang"):
            run = _forward_backward(op, (q, k, v), backend)
            size = f"B4 H16 T{length}"
            table.add(
                "Taylor forward + backward, peak memory", size, backend, "MiB", lambda run=run: peak_mib(run)
            )

    for name in (TAYLOR, WINDOW):
        op = based_ops.get(name)
        token = inputs(128, 1, 16, op.qk, op.v)
        state = op.init_state(128, 16, device="cuda", dtype=torch.bfloat16)
        for backend in ("triton", "tilelang"):
            run = _step(op, token, state, backend)
            table.add(f"step, {name}", "B128 H16", backend, "ms", lambda run=run: gpu_graph_ms(run))


def _both_ways(table: Table, name: str) -> None:
    """Forward alone, and forward with backward, of one layer and of full attention."""
    op = based_ops.get(name)
    size = "B8 H16 T2048"
    plain, grad = inputs(8, 2048, 16, op.qk, op.v), inputs(8, 2048, 16, op.qk, op.v, grad=True)
    for backend in GPU_BACKENDS:
        run, both = _forward(op, plain, backend), _forward_backward(op, grad, backend)
        table.add(f"{name} forward", size, backend, "ms", lambda run=run: gpu_ms(run))
        table.add(f"{name} forward + backward", size, backend, "ms", lambda run=both: gpu_ms(run))
    if name == TAYLOR:
        q, k, v = grad
        weight = torch.randn_like(v)
        table.add(
            f"{name} forward + backward",
            size,
            "fla fused_chunk_based",
            "ms",
            lambda: gpu_ms(_with_backward(_fla(q, k, v), (q, k, v), weight)),
        )
    else:
        full = [x.detach().transpose(1, 2).requires_grad_() for x in inputs(8, 2048, 16, HEAD, HEAD)]
        weight = torch.randn_like(full[2])
        both = _with_backward(_sdpa(*full), full, weight)
        table.add("causal attention forward + backward, width 64", size, "SDPA", "ms", lambda: gpu_ms(both))


def _forward(
    op: based_ops.Variant, qkv: list[Tensor] | tuple[Tensor, ...], backend: str
) -> Callable[[], Tensor]:
    return lambda: op(*qkv, backend=backend)[0]


def _forward_backward(op: based_ops.Variant, qkv: list[Tensor], backend: str) -> Callable[[], object]:
    return _with_backward(_forward(op, qkv, backend), qkv, torch.randn_like(qkv[2]))


def _with_backward(
    run: Callable[[], Tensor], leaves: list[Tensor] | tuple[Tensor, ...], weight: Tensor
) -> Callable[[], object]:
    return lambda: torch.autograd.grad(run(), leaves, weight)


def _step(op: based_ops.Variant, token: list[Tensor], state: object, backend: str) -> Callable[[], object]:
    @torch.no_grad()
    def run() -> Tensor:
        return op.step(*token, state, backend=backend)

    return run


def _fla(q: Tensor, k: Tensor, v: Tensor) -> Callable[[], Tensor]:
    from fla.ops.based import fused_chunk_based

    def run() -> Tensor:
        result = fused_chunk_based(q, k, v)
        return result[0] if isinstance(result, tuple) else result

    return run


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Callable[[], Tensor]:
    return lambda: scaled_dot_product_attention(q, k, v, is_causal=True)


def cpu(table: Table) -> None:
    """Everything that is measured on the host, in float32."""
    torch.manual_seed(0)
    batch, length, heads = 1, 8192, 8
    size = f"B{batch} H{heads} T{length}, CPU, float32"
    for name in (TAYLOR, WINDOW):
        op = based_ops.get(name)
        q, k, v = (torch.randn(batch, length, heads, width) for width in (op.qk, op.qk, op.v))
        run = _forward(op, (q, k, v), "torch")
        table.add(f"{name} forward", size, "torch", "ms", lambda run=run: cpu_ms(run))
    full = [torch.randn(batch, heads, length, HEAD) for _ in range(3)]
    table.add("causal attention forward, width 64", size, "SDPA", "ms", lambda: cpu_ms(_sdpa(*full)))
    table.add("based-ops generate, all shipped specs", "a new process", "codegen", "s", generate_seconds)
    table.add("import based_ops, after torch", "a new process", "Python", "s", import_seconds)


def cpu_ms(run: Callable[[], object], repeats: int = 7) -> float:
    """Median milliseconds of a call on the host."""
    run()
    return 1000 * statistics.median(_seconds(run) for _ in range(repeats))


def generate_seconds() -> float:
    """Seconds of `based-ops generate` into an empty directory, Python's start included."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "based_ops", "generate", "--out", str(Path(directory) / "kernels")]
        return _seconds(lambda: subprocess.run(command, check=True, capture_output=True))


def import_seconds() -> float:
    """Median seconds that `import based_ops` adds to `import torch`."""
    program = (
        "import time, torch; start = time.perf_counter(); "
        "import based_ops; print(time.perf_counter() - start)"
    )
    command = [sys.executable, "-c", program]
    runs = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(5)]
    return statistics.median(map(float, runs))


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def machine(device: str) -> dict[str, str]:
    """What was measured on."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for package in ("torch", "triton", "tilelang", "fla-core"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    chip = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return {"device": chip, "python": platform.python_version(), **versions}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    options = parser.parse_args()
    table = Table()
    (gpu if options.device == "cuda" else cpu)(table)
    about = machine(options.device)
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(f"\n{table.markdown()}")
    if options.json:
        report = {"machine": about, "rows": [asdict(row) for row in table.rows], "missing": table.missing}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
