"""Measures points of one model in a process of its own: a kernel that kills the device costs one point.

    python -m based_ops.benchmarks.models.worker < job.json

A job is `{"device": ..., "model": ..., "until": seconds since 1970, "ceilings": ..., "points": [...]}`;
without points it asks for the machine and its ceilings.  Answers go to standard output, a JSON each line.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from based_ops.models.attention import FullAttention

from ..ops import measure
from . import hub, results
from .clock import blocks_compiled, made, ms_of
from .contenders import Contender, Ours, Transformer
from .points import LARGEST, Point
from .results import Line

RESERVE = 3 * 2**30
"""Bytes that libraries and intermediate results take on a GPU."""
SMALLER = (1.0, 0.94, 0.88, 0.8)
"""Of the computed largest batch: what is tried until one fits."""


def run_job(job: dict[str, Any]) -> None:
    """Says what there is to say about a job, point by point, and begins none after its time."""
    device, points = job["device"], [Point(**fields) for fields in job["points"]]
    if not points:
        found = {"machine": results.here(device), "ceilings": asdict(measure.ceilings(device))}
        _say(found)
        return
    contender: Contender | None = None
    for point in points:
        if time.time() > job["until"]:
            return
        _say({"begin": str(point)})
        try:
            contender = contender or make(job["model"], device)
            _say({"line": asdict(line_of(contender, point, measure.Ceilings(**job["ceilings"])))})
        except Exception as error:  # memory, a compiler's, a capture's, another library's
            full = _is_memory(error)
            _say({"missing": "does not fit" if full else _in_one_line(error), "final": full})
            if point.way.startswith("graph"):
                return  # others begin in a process to which no capture that failed has left anything
        _forget()


def make(name: str, device: str) -> Contender:
    """The contender of a name: a model of this library, or one of another."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.manual_seed(0)
    if name in hub.LLAMAS:
        return hub.Llama(name, device, dtype)
    if name in hub.FLA:
        return hub.Fla(name, device, dtype)
    ours = Ours(name, device, dtype)
    attends = all(isinstance(block.mixer, FullAttention) for block in ours.net.blocks)
    return Transformer(name, device, dtype) if attends else ours


@torch.no_grad()
def line_of(contender: Contender, point: Point, ceilings: measure.Ceilings) -> Line:
    """Measures one point."""
    if point.batch != LARGEST:
        return _measured(contender, point, point.batch, ceilings)
    free = torch.cuda.mem_get_info()[0] - RESERVE
    largest = contender.largest(point.prompt + point.new, free)
    for share in SMALLER:
        try:
            return _measured(contender, point, max(1, int(share * largest)), ceilings)
        except Exception as error:
            if not _is_memory(error):
                raise
        _forget()
    raise torch.OutOfMemoryError


def _measured(contender: Contender, point: Point, batch: int, ceilings: measure.Ceilings) -> Line:
    generates = point.task == "generate"
    at: dict[str, float] = {}
    what, rows = ("step", batch) if generates else ("prompt", batch * point.prompt)
    with attention(contender, point.way), blocks_compiled(contender, what, point.way, rows):
        if generates:
            lengths = _lengths(contender, point)
            costs, held = [], 0
            for length in lengths:
                step, cost, bytes_held = contender.step(batch, length)
                at[str(length)] = ms_of(made(step, point.way, rows), contender.device)
                costs.append(cost)
                held = max(held, bytes_held)
                del step
                _forget()
            cost = costs[len(costs) // 2]
            ms = _mean([at[str(length)] for length in sorted(lengths)])
        else:
            cost = contender.prompt_cost(batch, point.prompt)
            held = round(batch * contender.sequence_bytes(point.prompt))
            prompt = made(contender.prompt(batch, point.prompt), point.way, rows)
            ms = at[str(point.prompt)] = ms_of(prompt, contender.device)
    return Line(
        point,
        batch,
        contender.parameters,
        ms,
        1000 * batch * (1 if generates else point.prompt) / ms,
        cost.bytes,
        cost.flops,
        cost.limit_ms(ceilings.copy_gb_s, ceilings.matmul_tflop_s),
        held / 1e6,
        at,
        generates and contender.constant,
    )


def attention(contender: Contender, way: str) -> AbstractContextManager[Any]:
    """On a GPU flash kernels, or cuDNN's, or an error; what is slower serves nobody unnoticed."""
    if contender.device.type == "cpu":
        return nullcontext()
    return sdpa_kernel(SDPBackend.CUDNN_ATTENTION if way.endswith("cudnn") else SDPBackend.FLASH_ATTENTION)


def _lengths(contender: Contender, point: Point) -> list[int]:
    """Tokens of a sequence at the steps that are timed: of an even span its last, middle and first."""
    first, last = point.prompt + 1, point.prompt + point.new
    return [first] if contender.constant else sorted({last, (first + last) // 2, first}, reverse=True)


def _mean(times: list[float]) -> float:
    """By Simpson's rule, of one or three; two are the ends of a span."""
    if len(times) == 3:
        return (times[0] + 4 * times[1] + times[2]) / 6
    return sum(times) / len(times)


def _forget() -> None:
    """Gives back what a point has held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def _say(found: dict[str, Any]) -> None:
    print(json.dumps(found), flush=True)


def _is_memory(error: BaseException | None) -> bool:
    """Whether it comes of too little memory: a capture or a compiler that ends so says something else."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _in_one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'without a message'}"[:300]


if __name__ == "__main__":
    run_job(json.load(sys.stdin))
