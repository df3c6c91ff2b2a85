"""The host side of sliding windows: each pass is one launch."""

from __future__ import annotations

from collections.abc import Mapping

from ..ir.host import (
    Bind,
    Constant,
    Literal,
    Name,
    Operand,
    Parameter,
    Pass,
    Plan,
    Present,
    ReadSizes,
    Serves,
    Some,
    Steps,
    Value,
    allocate,
    launch,
)
from ..ir.kernels import INTEGER, NUMBER, ForeignKernel, LaunchPlan
from ..ir.nodes import ACC, IO
from ..mixers.sliding_window import SlidingWindow
from ..names import WINDOW_PROGRAMS, on_warpgroups
from . import groups, steps
from .groups import GROUPED, OVER_GROUPS, SIZES, STATES, of_each, summed

TOKENS_OF_KEYS = ReadSizes("k", (None, "Tk", None, None))
INPUTS = (Parameter("q"), Parameter("k"), Parameter("v"))
SCALE, FIRST = Parameter("scale", NUMBER), Parameter("first", when=Present("first"))


def passes(spec: SlidingWindow, faster: Mapping[str, ForeignKernel]) -> tuple[Pass, ...]:
    """forward, backward and step of a layer; `faster` are kernels by the programs in whose place they run."""
    qk, v = spec.head_dims.qk, spec.head_dims.v
    gradients = (
        summed("dq", ("B", "T"), "H", groups.QUERIES, qk),
        summed("dk", ("B", "Tk"), "H", groups.KEYS, qk),
        summed("dv", ("B", "Tk"), "H", groups.VALUES, v),
    )
    forward = Pass(
        "forward",
        "Outputs and the logarithm of each row's sum of exponentials.",
        (*INPUTS, SCALE, FIRST),
        "q",
        (
            *SIZES,
            TOKENS_OF_KEYS,
            allocate("o", ("B", "T", "H", v), IO),
            allocate("lse", ("B", "H", "T"), ACC),
            *_run(spec, "forward", ("KEYS",), faster, ("q", "k", "v")),
        ),
        ("o", "lse"),
    )
    backward = Pass(
        "backward",
        "Gradients of q, k and v.",
        (Parameter("do"), *INPUTS, Parameter("o"), Parameter("lse"), SCALE, FIRST),
        "q",
        (
            *SIZES,
            TOKENS_OF_KEYS,
            allocate(of_each("dq"), ("B", "T", "H", qk), IO),
            allocate(of_each("dk"), ("B", "Tk", "H", qk), IO),
            allocate(of_each("dv"), ("B", "Tk", "H", v), IO),
            *(gradient for gradient, _ in gradients),
            *_run(
                spec,
                "backward",
                ("KEYS", "QUERIES"),
                faster,
                ("q", "k", "v", "do", "o"),
                Name("Tk").equals("T"),
                {name: of_each(name) for name in ("dq", "dk", "dv")},
            ),
            *(sums for _, sums in gradients),
        ),
        ("dq", "dk", "dv"),
    )
    step = Pass(
        "step",
        "Tokens one after the other; the ring and its position are updated in place.",
        (
            *INPUTS,
            SCALE,
            steps.pool("ring_k", STATES, spec.window, qk),
            Parameter("ring_v"),
            Parameter("position"),
            steps.PARAMETER,
        ),
        "q",
        (
            *SIZES,
            allocate("o", ("B", "T", "H", v), IO),
            steps.launch_step("ring_k", OVER_GROUPS),
        ),
        ("o",),
    )
    return forward, backward, step


def _run(
    spec: SlidingWindow,
    part: str,
    tiles: tuple[str, ...],
    faster: Mapping[str, ForeignKernel],
    rows: tuple[str, ...],
    suits: Value | None = None,
    results: Mapping[str, Operand] = {},
) -> Steps:
    """Run a pass's program over chunks; windows that reach past its tiles before and after them need a loop.

    Where there is a faster kernel, that `suits`, it runs over segments instead.
    """
    program = WINDOW_PROGRAMS[part]
    arguments: dict[str, Operand] = {**results, "PADDED": Present("first")}
    further = [Literal(spec.window - 1) > Constant(program, tile) for tile in tiles]
    reaches = further[0] if len(further) == 1 else further[0] | further[1]
    over_chunks = arguments | {"FURTHER": reaches}
    kernel = faster.get(program)
    if kernel is None:
        return (launch(program, over_chunks),)
    serves = Serves(kernel.name, rows) & ~GROUPED
    plan = LaunchPlan(on_warpgroups(part), part, "window_plan", ("CHUNK", "PROGRAMS"), kernel)
    segments = Some(Name("segments"))
    return (
        Bind({"fast": serves if suits is None else suits & serves}),
        Plan({"segments": INTEGER}, plan, (Name("T"), Name("B") * "H"), when=Name("fast")),
        launch(kernel.name, arguments, segments),
        launch(program, over_chunks, ~segments),
    )
