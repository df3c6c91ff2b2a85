"""Compiles layers for tests: from a spec, with any schedule, to an imported module."""

from __future__ import annotations

import functools
import importlib.util
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from based_ops.codegen import pipeline
from based_ops.codegen.emit.layer import ScheduledLayer, scheduled
from based_ops.codegen.ir.program import Program
from based_ops.codegen.ir.rewrite import REWRITES
from based_ops.codegen.mixers.hybrid import Hybrid, WindowDims
from based_ops.codegen.mixers.linear_attention import LinearAttention
from based_ops.codegen.mixers.sliding_window import SlidingWindow
from based_ops.codegen.names import RECURRENCE
from based_ops.codegen.schedule import orders
from based_ops.codegen.schedule.choose import choose
from based_ops.codegen.schedule.legal import ALL_TOKENS, DIRECT
from based_ops.codegen.schedule.model import Schedule
from based_ops.codegen.spec.model import Elementwise, HeadDims, LayerSpec, Power, TaylorExp

Sizes = tuple[tuple[str, int], ...]
"""Tile sizes that replace a schedule's own, by a constant's name or by ``program.CONSTANT``."""
FORMS: dict[str, Sizes] = {
    "direct": (
        ("LONGEST", 1 << 62),
        ("TOKENS", 1 << 62),
        ("backward.LENGTH", 1),
    ),
    "recurrent": (
        ("LONGEST", 1),
        ("forward.PROGRAMS", 10),
        ("forward.FEWEST", 1),
        ("forward_warpgroups.PROGRAMS", 10),
        ("forward_warpgroups.FEWEST", 1),
        *(
            (f"{plan}.{name}", size)
            for plan in ("forward_packed", "backward_packed_warpgroups")
            for name, size in (("SHORTEST", 1), ("PROGRAMS", 2), ("FEWEST", 1))
        ),
        ("backward.SHORTEST", 1),
        ("backward.PROGRAMS", 10),
    ),
}
"""The two forms of a forward pass of linear attention, whatever the length.  The one comes with a backward
pass that keeps the state at every tile, the other with one in spans."""
HYBRID_SPANS = (("LENGTH", 32), ("SHORTEST", 1), ("PROGRAMS", 10))
WINDOW_FORMS: dict[str, Sizes] = {
    "as planned": (),
    "one segment": (("forward_warpgroups.PROGRAMS", 1), ("backward_warpgroups.PROGRAMS", 1)),
    "segments": (("forward_warpgroups.PROGRAMS", 32), ("backward_warpgroups.PROGRAMS", 32)),
}
"""How Hopper's warpgroups go through a window's sequence; what is short enough is not theirs as planned."""
HYBRID_FORMS: dict[str, Sizes] = {
    "as planned": (),
    "small": (
        *((name, 16) for name in ("CHUNK", "KEYS", "QUERIES")),
        ("SEGMENT", 32),
        ("forward.LENGTH", 64),
        ("backward.LENGTH", 64),
    ),
    "in spans": (
        *((name, 16) for name in ("CHUNK", "KEYS", "QUERIES")),
        ("SEGMENT", 32),
        *((f"{part}.{name}", size) for part in ("forward", "backward") for name, size in HYBRID_SPANS),
    ),
}
"""How a hybrid's older keys are cut: as its schedule says, so that short sequences have several long
segments, or segments of one tile in several spans."""

LINEAR = (
    LinearAttention("taylor2", TaylorExp(2), HeadDims(16, 64)),
    LinearAttention("taylor2_wide", TaylorExp(2), HeadDims(8, 112)),
    LinearAttention("taylor2_plain", TaylorExp(2), HeadDims(16, 40), normalize=False, state_dtype="bfloat16"),
    LinearAttention("elu", Elementwise("elu(x) + 1"), HeadDims(20, 40)),
    LinearAttention("taylor2_odd", TaylorExp(2), HeadDims(9, 17), normalize=False, state_dtype="bfloat16"),
    LinearAttention("taylor1", TaylorExp(1), HeadDims(24, 48), eps=1e-3, scale=0.125),
    LinearAttention("square", Elementwise("x**2"), HeadDims(64, 64), normalize=False, scale=0.5),
    LinearAttention("bounded", Elementwise("sigmoid(x) + 0.1"), HeadDims(8, 256), state_dtype="float16"),
    LinearAttention("wide", TaylorExp(2), HeadDims(24, 16)),
    LinearAttention("broad", Elementwise("sigmoid(x) + 0.1"), HeadDims(128, 80)),
    LinearAttention("broadest", Elementwise("x**2"), HeadDims(250, 128), normalize=False, scale=0.1),
    LinearAttention("taylor2_fading", TaylorExp(2), HeadDims(8, 17), decay="token"),
    LinearAttention("retention", Elementwise("x"), HeadDims(20, 40), normalize=False, decay="head"),
    LinearAttention("taylor3", TaylorExp(3), HeadDims(8, 24), signed_weights=True),
    LinearAttention("power2", Power(2), HeadDims(9, 17), eps=0.5, decay="token"),
    LinearAttention("power3", Power(3), HeadDims(8, 64), normalize=False, state_dtype="bfloat16"),
    LinearAttention("power4", Power(4), HeadDims(8, 16), normalize=False),
)
"""Linear attention of every kind, with odd widths, for backends on which compiling takes seconds."""

WINDOWS = (
    SlidingWindow("window16", 16, HeadDims(64, 64)),
    SlidingWindow("window37", 37, HeadDims(24, 50)),
    SlidingWindow("window1", 1, HeadDims(8, 16)),
    SlidingWindow("window64", 64, HeadDims(112, 112)),
    SlidingWindow("window64_narrow", 64, HeadDims(40, 64)),
    SlidingWindow("window100", 100, HeadDims(64, 32)),
)
"""Sliding windows, likewise."""

HYBRIDS = (
    Hybrid("hybrid", 16, TaylorExp(2), HeadDims(16, 64)),
    Hybrid(
        "hybrid_added",
        5,
        Elementwise("elu(x) + 1"),
        HeadDims(20, 40),
        combine="sum",
        window_factor=True,
        linear_factor=True,
    ),
    Hybrid(
        "hybrid_own",
        37,
        TaylorExp(2),
        HeadDims(8, 17),
        window_dims=WindowDims(24),
        window_factor=True,
        linear_factor=True,
        eps=1e-3,
    ),
    Hybrid(
        "hybrid_windowed",
        16,
        Elementwise("exp(minimum(x, 1))"),
        HeadDims(16, 40),
        window_dims=WindowDims(24),
        rescale="window",
        window_factor=True,
        linear_factor=True,
    ),
    Hybrid("hybrid_taylor_windowed", 5, TaylorExp(2), HeadDims(16, 32), rescale="window"),
    Hybrid("hybrid_elu", 1, Elementwise("elu(x) + 1"), HeadDims(8, 112), linear_factor=True, scale=0.5),
    Hybrid("hybrid_power", 16, Power(2), HeadDims(9, 16), eps=1e-3),
    Hybrid(
        "hybrid_long",
        64,
        Elementwise("exp(minimum(x, 1))"),
        HeadDims(16, 32),
        window_dims=WindowDims(16),
        combine="sum",
    ),
)
"""Hybrids, likewise."""


@functools.cache
def build(
    spec: LayerSpec,
    target: str,
    sizes: Sizes = (),
    rewrites: tuple[str, ...] | None = None,
    of: str | None = None,
) -> ModuleType:
    """The generated module of a layer; `rewrites` replaces the schedule's, program by program what it has.

    Given a trait, it does so for the programs that have it alone.
    """
    lowered = pipeline.lower(spec)
    programs = []
    for program in pipeline.kernels(lowered, target):
        chosen = choose(spec, program, target)
        if isinstance(program, Program):  # others are printed by hand, for sizes and dtypes of their own
            chosen = in_every_dtype(spec, resized(chosen, dict(sizes)))
        if rewrites is not None and (of is None or isinstance(program, Program) and of in program.does):
            known = REWRITES if isinstance(program, Program) else orders.known(program)
            chosen = replace(chosen, rewrites=tuple(name for name in rewrites if name in known))
        programs.append(scheduled(program, chosen))
    plans = tuple(
        resized(choose(spec, plan, target), dict(sizes)) for plan in pipeline.plans_of(lowered, target)
    )
    passes = pipeline.passes_of(lowered, target)
    layer = ScheduledLayer(spec, target, tuple(programs), passes, plans)
    return import_text(pipeline.emit(layer), f"{spec.name}_{target}")


@functools.cache
def for_blackwell(spec: LayerSpec) -> ModuleType:
    """The Triton module of a layer with what is printed for Blackwell, and else what Hopper has."""
    layer = pipeline.schedule(pipeline.lower(spec), "triton")
    printed = {kernel.kernel.name: kernel for kernel in pipeline.printed_for(layer, "sm_100").kernels}
    layer = replace(layer, kernels=tuple(printed.get(x.kernel.name, x) for x in layer.kernels))
    return import_text(pipeline.emit(layer), f"{spec.name}_blackwell")


def resized(schedule: Schedule, sizes: Mapping[str, int]) -> Schedule:
    """The schedule with other tile sizes, the same for every dtype."""
    settings = {
        dtype: replace(
            setting,
            constants={
                name: sizes.get(f"{schedule.program}.{name}", sizes.get(name, size))
                for name, size in setting.constants.items()
            },
        )
        for dtype, setting in schedule.settings.items()
    }
    return replace(schedule, settings=settings)


def in_every_dtype(spec: LayerSpec, schedule: Schedule) -> Schedule:
    """The schedule with settings also for the dtypes in which the program would not be chosen."""
    other = next(iter(schedule.settings.values()))
    settings = {
        dtype: schedule.settings.get(dtype, other)
        for dtype in {**dict.fromkeys(spec.dtypes), **schedule.settings}
    }
    return replace(schedule, settings=settings)


def import_text(text: str, name: str) -> ModuleType:
    """Import a generated text from a file of its own: Triton and TileLang read what they compile."""
    directory = _directory()
    name = f"test_{name}_{len(list(directory.iterdir()))}"
    path = directory / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@functools.cache
def _keep() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="based_ops_tests_")


def _directory() -> Path:
    return Path(_keep().name)


def never_recurs(module: ModuleType, dtype: Any) -> bool:
    """Whether a layer has a recurrence that its plan never chooses: registers do not hold so many rows.

    Its blocks are written out, and compiling them takes minutes.
    """
    plan = module.SCHEDULE.get("forward", {}).get(dtype, {})
    return dtype in module.SCHEDULE.get(RECURRENCE, {}) and all(plan.get(x) == ALL_TOKENS for x in DIRECT)
