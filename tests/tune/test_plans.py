"""Tuning launch plans: over several shapes, by what a plan launches at each."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import date
from inspect import signature
from math import prod
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from based_ops.cli import main
from based_ops.codegen import pipeline
from based_ops.codegen.names import on_warpgroups
from based_ops.codegen.schedule import record_file, records
from based_ops.codegen.schedule.model import Schedule
from based_ops.codegen.schedule.policy import policy
from based_ops.support import host
from based_ops.tune import results, worker
from based_ops.tune.journal import Journal
from based_ops.tune.measure import Shape
from based_ops.tune.plans import SLOWER, Launched, PlanRun, has_plan
from based_ops.tune.pool import Pool, Worker
from based_ops.tune.search import Search
from based_ops.tune.trials import GAIN, Job, Outcome
from tests.conftest import SPECS
from tests.kernels.runners import interpreting

pytestmark = pytest.mark.skipif(interpreting(), reason="tunes the torch backend, which is not interpreted")

LAYERS = pipeline.load(SPECS)
MACHINE = {"bandwidth": 1e12, "architecture": "cpu", "device": "here", "torch": "2.0", "triton": "3.6"}
SHAPES = (Shape(1, 1, 700), Shape(2, 4, 2000), Shape(8, 16, 2000), Shape(2, 4, 9000))
TAYLOR, LINEAR, WINDOW = "taylor2_qk16_v64", "taylor1_qk16_v64", "window64_d64"
DELTA, CONV = "delta_qk64_v64", "conv4_silu"
WHEN = {
    TAYLOR: ("triton", "bfloat16", "cuda"),
    LINEAR: ("torch", "float32", "cpu"),
    WINDOW: ("triton", "float16", "cuda"),
    DELTA: ("torch", "float32", "cpu"),
    CONV: ("triton", "bfloat16", "cuda"),
}
"""Layers that are tuned here: on which backend, in which dtype and on which device."""
FUNCTIONS: dict[tuple[str, ...], Callable[..., Any]] = {
    tuple(name for name in signature(function).parameters if name.isupper() and name != "T"): function
    for function in (
        host.forward_plan,
        host.segment_plan,
        host.window_plan,
        host.backward_plan,
        host.kept_plan,
        host.stream_plan,
    )
}
"""The functions of plans by the constants that they take after the tokens and the rows."""
Time = Callable[[Launched], float]


def job(name: str, which: str, shapes: tuple[Shape, ...] = SHAPES) -> Job:
    backend, dtype, device = WHEN[name]
    return Job(LAYERS[name], backend, which, dtype, device, shapes, plan=True)


class Stub(Pool):
    """Finds every plan right at once, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(4)
        self.checked: list[str] = []

    def answers(self, tasks: Any, timeout: float, deadline: float) -> Iterator[tuple[int, Any]]:
        for number, task in enumerate(tasks):
            self.checked.append(f"{task['name']} {task['plans']}")
            yield number, {}


class Clock(Worker):
    """Says how long what a plan launches takes, and keeps what that was."""

    def __init__(self, plan: str, time: Time) -> None:
        super().__init__()
        self.plan, self.time = plan, time
        self.asked: list[Launched] = []
        self.modules: set[str] = set()

    def ask(self, task: Any, timeout: float) -> Any:
        constants, (batch, heads, length) = task["plans"][self.plan], task["shape"]
        function = FUNCTIONS[tuple(constants)]
        rows = (batch * heads * (64 if function is host.stream_plan else 1),)
        numbers = function(length, *(() if function is host.kept_plan else rows), **constants)
        self.asked.append((task["shape"], numbers))
        self.modules.add(task["name"])
        return {"ms": self.time(self.asked[-1]), "bytes": 1000}


def run(
    made: Job, plan: str, time: Time, where: Path, found: dict[str, Schedule] | None = None
) -> tuple[list[Outcome], Clock, Stub]:
    clock, stub = Clock(plan, time), Stub()
    tools = Search(stub, clock, Journal(where / "journal.jsonl"), MACHINE, where)
    outcomes = list(tools.run(made, monotonic() + 600, lambda progress: None, found or {}))
    return outcomes, clock, stub


def chosen(outcome: Outcome) -> dict[str, int]:
    (schedule,) = outcome.schedules.values()
    return schedule.settings[outcome.job.dtype].constants


def by_form(limit: int) -> Time:
    """A sequence of up to `limit` tokens takes a millisecond directly, a longer one recurrently; else two."""

    def time(launched: Launched) -> float:
        (_, _, length), (_, recurrent) = launched
        return 1.0 if (length > limit) == recurrent else 2.0

    return time


def test_a_plan_learns_when_to_recur_and_then_knows(tmp_path: Path) -> None:
    made = job(TAYLOR, "forward")
    outcomes, clock, stub = run(made, "forward", by_form(600), tmp_path)
    last, default = outcomes[-1], chosen(outcomes[0])
    longest = chosen(last)["LONGEST"]
    assert longest < SHAPES[0].length <= default["LONGEST"]
    assert chosen(last) == default | {"LONGEST": longest}, "others stay"
    assert "float32" in last.schedules["forward"].settings, "other dtypes stay"
    assert last.ms == pytest.approx(1.0) and last.policy_ms > 1.1 and last.bytes == pytest.approx(1000)
    once, confirmed = clock.asked[: last.progress.tried], clock.asked[last.progress.tried :]
    assert len(set(once)) == len(once), "what is launched alike is timed once"
    assert 2 <= len(confirmed) <= 2 * len(SHAPES) and set(confirmed) <= set(once)
    assert len(stub.checked) == len(set(stub.checked)) <= len(once), "a plan is checked once"
    assert len(clock.modules) == 1

    again, clock, _ = run(made, "forward", by_form(600), tmp_path)
    assert chosen(again[-1]) == chosen(last)
    assert clock.asked == confirmed, "only the confirmation is timed again"


@pytest.mark.parametrize("takes", [SLOWER - 0.01, SLOWER + 0.01])
def test_no_shape_pays_for_another(tmp_path: Path, takes: float) -> None:
    """Segments halve the time of one call and lengthen that of another, which no plan can tell from it."""
    one, other = shapes = Shape(1, 8, 250), Shape(2, 4, 250)

    def time(launched: Launched) -> float:
        shape, segments = launched
        return 1.0 if segments == 1 else {one: 0.5, other: takes}[shape]

    outcomes, _, _ = run(job(TAYLOR, "backward", shapes), on_warpgroups("backward"), time, tmp_path)
    first, last = chosen(outcomes[0]), chosen(outcomes[-1])
    if takes > SLOWER:
        assert len(outcomes) == 1
    else:
        assert outcomes[-1].ms == pytest.approx((0.5 * takes) ** 0.5)
        assert first | {"FEWEST": 2} == last, "as near as can be"


def test_a_gain_by_chance_is_not_confirmed(tmp_path: Path) -> None:
    """What was fast once and is not when it is measured again beside the policy's plan."""
    shape = Shape(1, 8, 250)
    seen: set[Launched] = set()

    def time(launched: Launched) -> float:
        again = launched in seen
        seen.add(launched)
        segments = launched[1]
        return 1.0 if segments == 1 and not again else 0.9

    outcomes, clock, _ = run(job(TAYLOR, "backward", (shape,)), on_warpgroups("backward"), time, tmp_path)
    assert chosen(outcomes[-1]) == chosen(outcomes[0]) != chosen(outcomes[1])
    assert (outcomes[-1].ms, outcomes[-1].policy_ms) == (pytest.approx(0.9), pytest.approx(0.9))


def test_a_spent_budget_leaves_what_was_found(tmp_path: Path) -> None:
    made = job(TAYLOR, "forward")
    clock = Clock("forward", by_form(600))
    tools = Search(Stub(), clock, Journal(tmp_path / "journal.jsonl"), MACHINE, tmp_path)
    (outcome,) = tools.run(made, monotonic() - 1, lambda progress: None)
    assert len(clock.asked) == len(SHAPES) and outcome.ms == outcome.policy_ms


def test_a_policy_plan_that_fails_is_told(tmp_path: Path) -> None:
    class Broken(Clock):
        def ask(self, task: Any, timeout: float) -> Any:
            return {"why": "Unsteady: today"}

    tools = Search(Stub(), Broken("", by_form(0)), Journal(tmp_path / "j"), MACHINE, tmp_path)
    (outcome,) = tools.run(job(LINEAR, "forward"), monotonic() + 60, lambda progress: None)
    assert outcome.why == "Unsteady: today"


@settings(max_examples=15)
@given(
    seed=st.integers(0, 1 << 30),
    choice=st.sampled_from(
        [(LINEAR, "backward"), (WINDOW, "forward"), (DELTA, "forward"), (CONV, "backward")]
    ),
)
def test_the_choice_is_the_best_of_all_legal_plans(
    tmp_path_factory: pytest.TempPathFactory, seed: int, choice: tuple[str, str]
) -> None:
    """Whatever the times: as good as the best, none slower, and no constant changed without need."""
    made = job(*choice)
    plan = on_warpgroups(choice[1]) if choice[0] == WINDOW else choice[1]

    def time(launched: Launched) -> float:
        return random.Random(f"{seed} {launched}").choice((0.5, 0.98, 0.995, 1.0, 1.02, 1.5))

    where = tmp_path_factory.mktemp("plans")
    last = run(made, plan, time, where)[0][-1]
    plans = list(started(made, where)._candidates.items())
    first = plans[0][0]

    def score(launched: tuple[Launched, ...]) -> float:
        ratios = [time(now) / time(before) for now, before in zip(launched, first, strict=True)]
        return prod(ratios) ** (1 / len(ratios)) if max(ratios) <= SLOWER else float("inf")

    least = min(score(launched) for launched, _ in plans)
    wanted = next(schedule for launched, schedule in plans if GAIN * score(launched) <= least)
    assert chosen(last) == wanted.settings[made.dtype].constants


def test_plans_that_are_tuned_alone_are_checked_together(tmp_path: Path) -> None:
    """Others start from programs that are not found yet."""
    stub, plans = Stub(), [job(TAYLOR, "forward"), job(TAYLOR, "backward"), job(WINDOW, "forward")]
    tools = Search(stub, Worker(), Journal(tmp_path / "j"), MACHINE, tmp_path)
    tools.prepare(plans, monotonic() + 60)
    assert len(stub.checked) == 3
    program = replace(plans[0], plan=False, shapes=SHAPES[:1])
    stub.checked.clear()
    Search(stub, Worker(), Journal(tmp_path / "j"), MACHINE, tmp_path).prepare(
        [program, *plans], monotonic() + 60
    )
    assert len(stub.checked) == 2, "the program's, and that of the plan of the other layer"


# Which plan is tuned


@pytest.mark.parametrize(
    ("name", "which", "backend", "dtype", "plan"),
    [
        (TAYLOR, "forward", "triton", "bfloat16", "forward"),
        (TAYLOR, "backward", "triton", "bfloat16", on_warpgroups("backward")),
        (TAYLOR, "backward", "triton", "float32", "backward"),
        (TAYLOR, "backward", "tilelang", "bfloat16", "backward"),
        (TAYLOR, "step", "triton", "bfloat16", None),
        (WINDOW, "forward", "triton", "bfloat16", on_warpgroups("forward")),
        (WINDOW, "backward", "triton", "float32", None),
        (WINDOW, "forward", "torch", "bfloat16", None),
        ("window128_d64", "backward", "triton", "bfloat16", None),
    ],
)
def test_the_plan_that_is_in_force_is_tuned(
    tmp_path: Path, name: str, which: str, backend: str, dtype: str, plan: str | None
) -> None:
    spec = LAYERS[name]
    assert has_plan(spec, which, backend, dtype) == (plan is not None)
    made = Job(spec, backend, which, dtype, "cuda", SHAPES, plan=True)
    assert started(made, tmp_path).tuned == ((plan,) if plan else ())


@pytest.mark.parametrize(
    ("name", "which", "decides", "plan"),
    [
        (TAYLOR, "backward", "query_gradients", ("backward",)),
        (TAYLOR, "forward", "recurrence", ("forward",)),
        (WINDOW, "forward", "outputs", ()),
    ],
)
def test_a_plan_for_warpgroups_goes_with_their_programs(
    tmp_path: Path, name: str, which: str, decides: str, plan: tuple[str, ...]
) -> None:
    made = job(name, which)
    program = on_warpgroups(decides)
    kernels = pipeline.kernels(pipeline.lower(made.spec), made.backend)
    schedule = policy(made.spec, next(p for p in kernels if p.name == program), made.backend)
    unused = {dtype: replace(setting, used=False) for dtype, setting in schedule.settings.items()}
    found = {program: replace(schedule, settings=unused)}
    assert started(made, tmp_path, found).tuned == plan
    if not plan:
        assert run(made, "", by_form(0), tmp_path, found)[0] == []


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_a_plan_reaches_launches_only_through_its_function(name: str) -> None:
    """Which is why plans that give the same numbers at a shape take the same time there."""
    lowered = pipeline.lower(LAYERS[name])
    for target in ("triton", "tilelang", "torch"):
        text = pipeline.emit(pipeline.schedule(lowered, target))
        for plan in pipeline.plans_of(lowered, target):
            entry = rf'SCHEDULE\[[^]]*"{plan.name}"[^]]*\]'
            sizes = re.escape(", ".join(map(" * ".join, plan.sizes)))
            call = rf"{plan.function}\(\s*{sizes}, \*\*{entry}\[\w+\.dtype\],?\s*\)"
            assert len(re.findall(call, text)) == len(re.findall(entry, text)) == 1


# Records


def test_a_worker_launches_by_the_plan_of_its_task(tmp_path: Path) -> None:
    """Checked and timed are a module's passes with the constants at hand, whatever is printed."""
    search = started(job(LINEAR, "forward", (Shape(1, 1, 300),)), tmp_path)
    (trial,) = search.first()
    asked, task = Worker(), search.task(trial, "clock")
    try:
        assert asked.ask(task, 120.0)["ms"] > 0
        wrong = task | {"plans": {"forward": {"GONE": 1}}}
        assert "forward_plan() got an unexpected keyword argument 'GONE'" in asked.ask(wrong, 120.0)["why"]
        assert asked.ask(task | {"do": "check"}, 120.0) == {}

        # Cases are short: those that would be computed directly recur as well, if longer ones do.
        broken = f"{task['name']}_broken"
        files = {path.replace(task["name"], broken): text for path, text in task["files"].items()}
        files["__init__.py"] = files["__init__.py"].replace(task["name"], broken)
        files[f"{broken}/torch.py"] += (
            "\n\ndef recurrence(*arguments, **sizes):\n    raise ValueError('recurs')\n"
        )
        task |= {"do": "check", "name": broken, "directory": f"{task['directory']}_broken", "files": files}
        assert asked.ask(task, 120.0) == {}
        often = {"forward": task["plans"]["forward"] | {"LONGEST": 1 << 40, "TOKENS": 1 << 40}}
        assert asked.ask(task | {"plans": often}, 120.0) == {"why": "ValueError: recurs"}
    finally:
        asked.close()


def test_no_task_replays_calls_of_the_one_before(tmp_path: Path) -> None:
    """They may be by another plan, or of another function that stands in a generated one's place."""
    search = started(job(LINEAR, "forward", (Shape(1, 1, 300),)), tmp_path)
    (trial,) = search.first()
    task = search.task(trial, "clock")
    variant, _ = worker._variant(task)
    variant._replays.known["a call"] = []
    assert worker._variant(task)[0] is variant
    assert not variant._replays.known


def test_from_the_command_to_the_host_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record of a plan stands beside those of programs, and changes by what the pass is launched."""
    path = tmp_path / "cpu.yaml"
    spec = LAYERS[LINEAR]
    facts = records.layer_facts(spec) | {"backend": "torch", "pass": "forward", "dtype": "float32"}
    program = record_file.Entry(facts | {"program": "outputs"}, {"CHUNK": 16})
    old = record_file.Entry(facts | {"program": "forward"}, {"LENGTH": 256})
    path.write_text(record_file.text(record_file.Book({}, (program, old))), encoding="utf-8")
    places = ["--records", str(tmp_path), "--journal", str(tmp_path / "journal.jsonl")]
    small = ["--device", "cpu", "--dtype", "float32", "--shape", "1,1,300", "--shape", "2,1,600"]
    words = ["tune", LINEAR, "--pass", "forward", "--plans-only", *small, *places, "--jobs", "1"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert "forward plan" in done.stdout and "2 shapes" in done.stdout

    plan, kept = record_file.load(path).entries
    assert kept == program and plan.facts == old.facts and list(plan.sizes) == ["LENGTH"]
    assert plan.measured["shapes"] == ["B1 H1 T300", "B2 H1 T600"] and "shape" not in plan.measured
    assert 0 < plan.measured["ms"] <= plan.measured["policy_ms"]

    other = replace(plan, sizes={"LENGTH": 4096})
    path.write_text(record_file.text(record_file.Book({}, (other,))), encoding="utf-8")
    monkeypatch.setattr(records, "DIRECTORY", tmp_path)
    monkeypatch.setattr(records, "book", records.book.__wrapped__)
    layer = pipeline.schedule(pipeline.lower(spec), "torch")
    assert "LENGTH=4096" in pipeline.emit(layer)
    (setting,) = (s.settings["float32"] for s in layer.plans if s.program == "forward")
    assert setting.origin.startswith("record cpu: ") and "ms over 2 shapes" in setting.origin
    shown = CliRunner().invoke(main, ["show", LINEAR, "--stage", "schedule"]).stdout
    assert setting.origin in shown


def test_what_is_recorded_are_the_choices(tmp_path: Path) -> None:
    """And not tiles that the kernels have, which would be stale as soon as those change."""
    for name, which, plan, sizes in (
        (TAYLOR, "backward", on_warpgroups("backward"), ["SHORTEST", "PROGRAMS", "FEWEST"]),
        (WINDOW, "forward", on_warpgroups("forward"), ["PROGRAMS"]),
    ):
        outcomes = run(job(name, which), plan, lambda launched: 1.0, tmp_path / name)[0]
        (entry,) = results.entries(outcomes[-1], MACHINE, date(2026, 1, 2))
        assert list(entry.sizes) == sizes and (entry.warps, entry.stages, entry.rewrites) == (
            None,
            None,
            None,
        )
        assert entry.facts["program"] == plan and entry.measured["shapes"] == list(map(str, SHAPES))


def started(made: Job, where: Path, found: Mapping[str, Schedule] | None = None) -> PlanRun:
    tools = Search(Stub(), Worker(), Journal(where / "j"), MACHINE, where)
    return PlanRun(tools, made, 0.0, lambda progress: None, found or {})
