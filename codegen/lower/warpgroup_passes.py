"""The host side where programs for Hopper's warpgroups may run in place of portable ones."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ..ir.host import Allocate, Launch, Line, Pass
from ..ir.nodes import ACC, IO, OPERAND, STATE, Program
from ..mixers.linear_attention import LinearAttention
from ..mixers.sliding_window import SlidingWindow
from ..names import RECURRENCE, WINDOW_PROGRAMS, on_warpgroups
from ..spec.model import LayerSpec
from .feature_maps import feature_map

BACKWARD = on_warpgroups("backward")
Steps = tuple[Line | Allocate | Launch, ...]


def passes(spec: LayerSpec, portable: tuple[Pass, ...], names: Collection[str]) -> tuple[Pass, ...]:
    """A layer's passes, where they choose between programs; and those that are only for warpgroups.

    `names` are those of the layer's programs.
    """
    if isinstance(spec, SlidingWindow):
        return tuple(_window(part, names) for part in portable)
    assert isinstance(spec, LinearAttention)
    found = []
    for part in portable:
        body = part.body
        if part.name == "forward" and on_warpgroups("states") not in names:
            body = _faster(_planned_apart(body), names)
        elif part.name == "forward":
            planned = next(i for i, step in enumerate(body) if not isinstance(step, Line))
            choice = _choice("fast = (recurrent or summed) and ", RECURRENCE, "q, k, v")
            body = (*body[:planned], choice, *_faster(body[planned:], names))
        if part.name == "backward" and on_warpgroups("query_gradients") in names:
            rows = "q, k, v, do, o" if spec.normalize else "q, k, v, do"
            choice = _choice("if ", "query_gradients", rows)
            call = f"    return {BACKWARD}({', '.join(part.parameters)})"
            body = (Line(f"{choice.text}:"), Line(call), *body)
            found.append(_backward(spec, part))
        found.append(replace(part, body=body))
    return tuple(found)


def _window(part: Pass, names: Collection[str]) -> Pass:
    """A window's pass, which is one launch."""
    launch = next(step for step in part.body if isinstance(step, Launch))
    fast = on_warpgroups(launch.program)
    if fast not in names:
        return part
    if part.name == "forward":
        choice = _choice("fast = ", launch.program, "q, k, v")
    else:
        choice = _choice("fast = k.shape[1] == T and ", launch.program, "q, k, v, do, o")
    plan = f'window_plan(T, B * H, **SCHEDULE["{on_warpgroups(part.name)}"][q.dtype])'
    body = (
        *(step for step in part.body if step is not launch),
        choice,
        Line(f"segments = {plan} if fast else 0"),
        replace(launch, program=fast, when="segments"),
        replace(launch, when="not segments"),
    )
    return replace(part, body=body)


def _planned_apart(body: Steps) -> Steps:
    """Where only warpgroups run a recurrence: the same steps, with a plan for each case."""
    portable = 'SCHEDULE["forward"][q.dtype]'
    either = f'SCHEDULE["{on_warpgroups("forward")}" if fast else "forward"][q.dtype]'
    return tuple(
        part
        for step in body
        for part in (
            (_choice("fast = ", RECURRENCE, "q, k, v"), Line(step.text.replace(portable, either)))
            if isinstance(step, Line) and portable in step.text
            else (step,)
        )
    )


def _faster(body: Steps, names: Collection[str]) -> Steps:
    """The same steps, with both versions of the launches that have two."""
    found: list[Line | Allocate | Launch] = []
    for step in body:
        if isinstance(step, Launch) and on_warpgroups(step.program) in names:
            found += [
                replace(
                    step,
                    program=on_warpgroups(step.program),
                    arguments=step.arguments | {"ALL": "output_final_state"},
                    when=f"{step.when} and fast",
                ),
                replace(step, when=f"{step.when} and not fast"),
            ]
        else:
            found.append(step)
    return tuple(found)


def plans(spec: LayerSpec, names: Collection[str]) -> tuple[Program, ...]:
    """By what the passes for warpgroups cut a sequence, where the portable ones do not."""
    decides: dict[str, str] = {"backward": "query_gradients"}
    constants: tuple[str, ...] = ("SHORTEST", "PROGRAMS", "FEWEST")
    if on_warpgroups("states") not in names:
        decides, constants = {"forward": RECURRENCE}, ("LONGEST", "TOKENS", "LENGTH", *constants)
    if isinstance(spec, SlidingWindow):
        decides, constants = WINDOW_PROGRAMS, ("CHUNK", "PROGRAMS")
    return tuple(
        Program(on_warpgroups(part), "How it is launched.", (), (), (), (), (), constants, ())
        for part, program in decides.items()
        if on_warpgroups(program) in names
    )


def _choice(before: str, program: str, inputs: str) -> Line:
    return Line(f'{before}q.dtype in SCHEDULE["{on_warpgroups(program)}"] and on_warpgroups({inputs})')


def _backward(spec: LinearAttention, portable: Pass) -> Pass:
    """Two recurrences, each over all segments at once."""
    qk, v, rows = str(spec.head_dims.qk), str(spec.head_dims.v), str(feature_map(spec).rows)
    normalize = spec.normalize
    before = {"state": "segment_state", "normalizer": "segment_normalizer"}

    def both(prefix: str, shape: tuple[str, ...], dtypes: tuple[str, str], when: str) -> Steps:
        """A state and its normaliser."""
        state = Allocate(f"{prefix}state", (*shape, rows, v), dtypes[0], when)
        return (state, *_if(normalize, Allocate(f"{prefix}normalizer", (*shape, rows), dtypes[1], when)))

    def user_states(initial: str, total: str | None) -> dict[str, str]:
        parts = ("state", "normalizer")
        arguments = {f"initial_{part}": f"{initial}{part}" for part in parts}
        return arguments | {f"total_{part}": f"{total}{part}" if total else "None" for part in parts}

    of_segments = ("B", "H", "segments")
    d_initial = Allocate("d_initial_state", ("B", "H", rows, v), STATE, "has_initial")
    d_initial_normalizer = Allocate(
        "d_initial_normalizer", ("B", "H", rows), STATE, "has_initial" if normalize else "False"
    )
    has_final = "d_final_state is not None"
    body = (
        Line("B, T, H, _ = q.shape"),
        Line(f'segments = segment_plan(T, B * H, **SCHEDULE["{BACKWARD}"][q.dtype])'),
        Line("split, has_initial = segments > 1, initial_state is not None"),
        Allocate("sums", (*of_segments, rows, v), ACC, "split"),
        *_if(normalize, Allocate("normalizer_sums", (*of_segments, rows), ACC, "split")),
        *both("segment_", of_segments, (OPERAND, ACC), "split"),
        Launch(on_warpgroups("states"), {"ALL": "False"}, "split"),
        Launch(
            "prefix",
            before | user_states("initial_", None) | {"INITIAL": "has_initial", "TOTAL": "False"},
            "split",
        ),
        Allocate("dq", ("B", "T", "H", qk), IO),
        *_if(normalize, Allocate("g", ("B", "T", "H", v), OPERAND), Allocate("e", ("B", "H", "T"), ACC)),
        Launch(
            on_warpgroups("query_gradients"),
            before | {"INITIAL": "has_initial and not split", "SEGMENTED": "split"},
        ),
        Line("# Backwards: the sum over the queries of later segments."),
        Allocate("dk", ("B", "T", "H", qk), IO),
        Allocate("dv", ("B", "T", "H", v), IO),
        d_initial,
        d_initial_normalizer,
        Launch(on_warpgroups("query_states"), {"ALL": "has_initial"}, "split"),
        Launch(
            "suffix",
            before | user_states("d_final_", "d_initial_") | {"INITIAL": has_final, "TOTAL": "has_initial"},
            "split",
        ),
        Launch(
            on_warpgroups("key_gradients"),
            before
            | user_states("d_final_", "d_initial_")
            | {
                "INITIAL": f"{has_final} and not split",
                "SEGMENTED": "split",
                "TOTAL": "has_initial and not split",
            },
        ),
    )
    summary = "`backward` on Hopper's warpgroups: two recurrences, that keep no states."
    return Pass(BACKWARD, summary, portable.parameters, body, portable.results)


def _if(condition: bool, *steps: Allocate) -> Steps:
    return steps if condition else ()
