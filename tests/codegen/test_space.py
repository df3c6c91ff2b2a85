"""The search space: what is offered is legal and fits, and what the budget turns down does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml

from based_ops.aot import compile_triton
from based_ops.codegen import pipeline
from based_ops.codegen.emit.layer import ScheduledLayer, ScheduledProgram
from based_ops.codegen.ir.kernels import ForeignKernel, LaunchPlan
from based_ops.codegen.ir.program import Program
from based_ops.codegen.lower.short_conv_passes import STREAM_PLAN
from based_ops.codegen.mixers.linear_attention import LinearAttention
from based_ops.codegen.names import RECURRENCE, on_warpgroups
from based_ops.codegen.schedule import budget, orders, space
from based_ops.codegen.schedule.choose import choose
from based_ops.codegen.schedule.legal import ALL_TOKENS, DIRECT, IllegalSchedule, miscompiled, require_legal
from based_ops.codegen.schedule.model import Schedule, Setting
from based_ops.codegen.schedule.policy import policy
from based_ops.codegen.spec.model import HeadDims, LayerSpec, TaylorExp
from based_ops.record import record
from tests.conftest import ROOT, SPECS
from tests.kernels.runners import interpreting
from tests.layers import import_text, never_recurs

LAYERS = pipeline.load(SPECS)
ORDERED = (
    LAYERS["taylor2_qk16_v64"],
    LinearAttention("plain", TaylorExp(2), HeadDims(16, 64), normalize=False),
    LinearAttention("wide", TaylorExp(2), HeadDims(32, 64)),
)
BACKENDS = ("triton", "tilelang", "torch")
MEASURED: dict[str, Any] = yaml.safe_load((ROOT / "tests/budgets/sm_90.yaml").read_text(encoding="utf-8"))


def find(name: str, program: str) -> tuple[LayerSpec, Program]:
    spec = LAYERS[name]
    return spec, next(p for p in pipeline.lower(spec).programs if p.name == program)


# Candidates


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["taylor2_qk16_v64", "pos_elu_qk64_v64", "window64_d112"])
def test_candidates_are_legal_distinct_and_nearest_first(name: str, backend: str) -> None:
    spec, lowered = LAYERS[name], pipeline.lower(LAYERS[name])
    keep = space.fixed(lowered.programs)
    for program in pipeline.kernels(lowered, backend):
        if not isinstance(program, Program):
            continue
        start = policy(spec, program, backend).only("bfloat16")
        found = list(space.candidates(program, start, keep, most_changes=1))
        assert found[0] == start
        assert len({(str(s.settings), s.rewrites) for s in found}) == len(found)
        options = space.choices(program, start, keep)
        for schedule in found[1:]:
            require_legal(program, schedule)
            before, after = start.settings["bfloat16"], schedule.settings["bfloat16"]
            changed = [n for n, size in after.constants.items() if size != before.constants[n]]
            changed += [what for what in ("warps", "stages") if getattr(after, what) != getattr(before, what)]
            changed += ["rewrites"] if schedule.rewrites != start.rewrites else []
            assert len(changed) == 1 and changed[0] in options
            assert not {*changed} & {*program.bounds, *keep}
        assert not options or len(found) > 1, f"{program.name} has choices {options} and no candidate"


def test_two_changes_come_after_one() -> None:
    spec, program = find("taylor2_qk16_v64", "states")
    start = policy(spec, program, "triton").only("bfloat16")
    single = list(space.candidates(program, start, most_changes=1))
    double = list(space.candidates(program, start, most_changes=2))
    assert double[: len(single)] == single and len(double) > 2 * len(single)


@pytest.mark.parametrize("spec", ORDERED, ids=lambda spec: spec.name)
def test_the_order_of_a_printed_kernel_is_a_choice(spec: LinearAttention) -> None:
    kernels = pipeline.kernels(pipeline.lower(spec), "triton")
    program = next(k for k in kernels if isinstance(k, ForeignKernel) and k.instead_of == RECURRENCE)
    start = policy(spec, program, "triton").only("bfloat16")
    now, pieces = orders.chosen(program, start.rewrites), orders.pieces(program)
    assert ("sums" in pieces) == (spec.normalize and spec.head_dims.qk <= 16)
    assert orders.names(program, now) == start.rewrites
    found = {schedule.rewrites for schedule in space.candidates(program, start, most_changes=1)}
    for piece, options in pieces.items():
        for place in options:
            assert orders.names(program, now | {piece: place}) in found
    assert len(found) == 1 + sum(len(options) - 1 for options in pieces.values())


def test_an_order_of_nothing_is_illegal() -> None:
    spec = LAYERS["taylor2_qk16_v64"]
    for program in pipeline.kernels(pipeline.lower(spec), "triton"):
        if program.name == on_warpgroups("states"):
            with pytest.raises(IllegalSchedule, match="has no copies_in_flight"):
                require_legal(
                    program, replace(policy(spec, program, "triton"), rewrites=("copies_in_flight",))
                )


def test_sizes_end_where_a_tile_covers_its_dimension() -> None:
    spec, program = find("taylor2_qk16_v64", "states")
    options = space.choices(program, policy(spec, program, "triton").only("bfloat16"))
    assert options["FEATURES"] == (16, 32, 64, 128, 256)  # of 153 rows, and sides of products
    assert options["VALUES"] == (16, 32, 64)
    torch_options = space.choices(program, policy(spec, program, "torch").only("bfloat16"))
    assert torch_options["FEATURES"] == (16, 32, 64, 128, 153)


def test_constants_of_a_whole_layer_stay_where_several_programs_share_them() -> None:
    programs = pipeline.lower(LAYERS["taylor2_qk16_v64"]).programs
    sharing = [program for program in programs if "SEGMENT" in program.constants]
    assert space.fixed(sharing[:1]) == frozenset()
    assert space.fixed(sharing * 2) == ({"SEGMENT"} if sharing else frozenset())


@pytest.mark.parametrize(
    ("name", "deciding"),
    [
        ("taylor2_qk16_v64", {RECURRENCE, "query_gradients"}),
        ("window64_d64", {"outputs", "gradients"}),
        ("window128_d64", {"outputs"}),
        ("pos_elu_qk64_v64", {RECURRENCE, "query_gradients"}),
        ("taylor1_qk16_v64", set()),
    ],
)
def test_warpgroups_are_a_choice_where_a_layer_suits_them(name: str, deciding: set[str]) -> None:
    spec = LAYERS[name]
    offered = set()
    for program in pipeline.kernels(pipeline.lower(spec), "triton"):
        start = policy(spec, program, "triton").only("bfloat16")
        if "used" in space.choices(program, start):
            offered.add(program.name)
            found = list(space.candidates(program, start, most_changes=1))
            assert [s.settings["bfloat16"].used for s in found].count(False) == 1
    assert offered == {on_warpgroups(program) for program in deciding}


# Launch plans


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", sorted(LAYERS))
def test_plans_have_few_legal_choices_of_their_own(name: str, backend: str) -> None:
    """Not tiles, which their kernels have too, nor warps and stages, nor numbers that a pass never reads."""
    spec, lowered = LAYERS[name], pipeline.lower(LAYERS[name])
    kernels = pipeline.kernels(lowered, backend)
    for plan in pipeline.plans_of(lowered, backend):
        chosen = policy(spec, plan, backend)
        for dtype in chosen.settings:
            start = chosen.only(dtype)
            keep = space.fixed_in_plan(plan, kernels, start)
            options = space.choices(plan, start, keep)
            assert options and all(1 < len(values) <= 12 for values in options.values())
            own = {*DIRECT, *STREAM_PLAN, "LENGTH", "SHORTEST", "PROGRAMS", "FEWEST", "LEAST"}
            assert options.keys() <= own
            if {*DIRECT} <= {*plan.constants} and all(start.values(name) == {ALL_TOKENS} for name in DIRECT):
                assert options.keys() == {"LENGTH"}
            for schedule in space.candidates(plan, start, keep, most_changes=1):
                require_legal(plan, schedule)
                after = schedule.settings[dtype].constants
                assert all(
                    size == start.settings[dtype].constants[name] or name in options
                    for name, size in after.items()
                )


def test_a_plan_may_compute_all_sequences_directly_or_none() -> None:
    spec = LAYERS["taylor2_qk16_v64"]
    plan = next(x for x in pipeline.plans_of(pipeline.lower(spec), "triton") if x.name == "forward")
    options = space.choices(plan, policy(spec, plan, "triton").only("bfloat16"))
    assert options["LONGEST"] == (1, *(1 << n for n in range(8, 14)), ALL_TOKENS)
    assert options["TOKENS"] == (*(1 << n for n in range(12, 19)), ALL_TOKENS)
    assert options["FEWEST"] == (1, 2, 3, 4, 6, 8)


def test_an_unknown_constant_has_choices() -> None:
    plan = LaunchPlan("plan", "forward", "forward_plan", (("T",), ("B", "H")), ("CONSUMERS",))
    start = Schedule("plan", "triton", {"bfloat16": replace(policy_setting(), constants={"CONSUMERS": 3})})
    found = [s.settings["bfloat16"].constants["CONSUMERS"] for s in space.candidates(plan, start)]
    assert found[0] == 3 and {1, 2, 4, 4096} < set(found)
    assert {"warps", "stages"}.isdisjoint(space.choices(plan, start))


def policy_setting() -> Setting:
    spec, program = find("window64_d64", "outputs")
    return policy(spec, program, "triton").settings["bfloat16"]


def dots(program: Program, setting: Setting, dtype: str) -> Iterator[tuple[int, int]]:
    """M and N of every product, read from the printed program's own types."""
    from based_ops.codegen.ir.check import check
    from based_ops.codegen.schedule.legal import products, resolve

    for m, _, n in products(program, check(program)):
        yield resolve(m, setting.constants), resolve(n, setting.constants)


@pytest.mark.parametrize("name", ["taylor2_qk16_v64", "pos_elu_qk64_v64", "window64_d64"])
def test_small_warpgroup_products_are_never_offered_to_triton(name: str) -> None:
    spec, lowered = LAYERS[name], pipeline.lower(LAYERS[name])
    turned_down = 0
    for program in lowered.programs:
        chosen = policy(spec, program, "triton")
        rewritten = ScheduledProgram.of(program, chosen).program
        start = chosen.only("bfloat16")
        for schedule in space.candidates(program, start, most_changes=2):
            setting = schedule.settings["bfloat16"]
            if setting.warps % 4 == 0:
                small = [(m, n) for m, n in dots(rewritten, setting, "bfloat16") if m % 64 == 0 and n < 64]
                assert not small, (program.name, setting)
        scheduled = ScheduledProgram.of(program, chosen)
        wide = replace(chosen.settings["bfloat16"], warps=4)
        turned_down += miscompiled(scheduled.program, scheduled.types, wide, "bfloat16")
        assert not miscompiled(scheduled.program, scheduled.types, wide, "float32")
    assert turned_down or name != "taylor2_qk16_v64", "products with 16 columns"


# Budget


@pytest.mark.parametrize("backend", ["triton", "tilelang"])
@pytest.mark.parametrize("name", sorted(LAYERS))
def test_the_estimate_accepts_what_is_committed_and_is_below_what_was_measured(
    name: str, backend: str
) -> None:
    spec, module = LAYERS[name], record(name).module(backend)
    for program in pipeline.lower(spec).programs:
        if program.name == RECURRENCE and never_recurs(module, torch.bfloat16):
            continue
        scheduled = ScheduledProgram.of(program, choose(spec, program, backend))
        for dtype, setting in scheduled.schedule.settings.items():
            arguments = (scheduled.program, scheduled.types, backend, dtype, setting)
            assert budget.fits(*arguments), f"{program.name} {dtype}"
            measured = MEASURED[backend].get(name, {}).get(dtype, {}).get(program.name)
            if measured is None:
                continue
            found = budget.needs(*arguments)
            assert found.shared <= measured["shared"], f"{program.name} {dtype}"
            assert found.registers <= measured["registers"] + measured["stack"], f"{program.name} {dtype}"


ABSURD = [
    ("taylor2_qk16_v64", "outputs", {"CHUNK": 256, "SEGMENT": 256}, 1, 3),
    ("pos_elu_qk64_v64", "key_gradients", {"CHUNK": 256, "SEGMENT": 256}, 2, 2),
    pytest.param(
        *("window256_d64", "outputs", {"CHUNK": 256, "KEYS": 128}, 2, 3), marks=pytest.mark.all_kernels
    ),
    ("window64_d64", "outputs", {"KEYS": 256}, 2, 6),
]
"""Layer, program, sizes, warps and stages of settings that cannot work: too many registers, or bytes."""


@pytest.mark.skipif(interpreting(), reason="under the interpreter nothing is compiled")
@pytest.mark.parametrize(("name", "program", "sizes", "warps", "stages"), ABSURD, ids=str)
def test_what_the_budget_turns_down_spills_or_does_not_fit(
    name: str, program: str, sizes: dict[str, int], warps: int, stages: int
) -> None:
    spec, lowered = LAYERS[name], pipeline.lower(LAYERS[name])
    programs = []
    for part in lowered.programs:
        chosen = policy(spec, part, "triton")
        if part.name == program:
            setting = chosen.settings["bfloat16"]
            setting = replace(setting, constants=setting.constants | sizes, warps=warps, stages=stages)
            chosen = replace(chosen, settings={"bfloat16": setting})
            rewritten = ScheduledProgram.of(part, chosen)
            assert not budget.fits(rewritten.program, rewritten.types, "triton", "bfloat16", setting)
        programs.append(ScheduledProgram.of(part, chosen))
    layer = ScheduledLayer(spec, "triton", tuple(programs), lowered.passes)
    module = import_text(pipeline.emit(layer), f"absurd_{name}")
    found = compile_triton(spec, module, program, torch.bfloat16)
    assert found.stack > 128 or found.shared > budget.SHARED_MEMORY["sm_90"], found
