"""The host side of sliding windows: each pass is one launch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from ..ir.host import (
    Allocate,
    Bind,
    Constant,
    Delegate,
    Either,
    Launch,
    LayOut,
    Literal,
    Name,
    Operand,
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
from ..ir.kernels import INTEGER, ForeignKernel, LaunchPlan
from ..ir.kernels import parameters as kernel_parameters
from ..ir.nodes import ACC, IO, Comment
from ..mixers.sliding_window import SlidingWindow
from ..names import WINDOW_PROGRAMS, on_warpgroups, packed
from ..spec.signature import SEQUENCES
from . import groups, steps
from .groups import OVER_GROUPS, SIZES, of_each, summed
from .parameters import over_sequences, parameters
from .ragged import BEGUN, BOUNDS, RAGGED, TABLE

TOKENS_OF_KEYS = ReadSizes("k", (None, "Tk", None, None))
DENSE: dict[str, Operand] = {
    **dict.fromkeys((RAGGED, BEGUN), Literal(False)),
    **dict.fromkeys((TABLE.name, "first_of_sequences")),
}
"""What programs get where no sequences are packed."""
COPIED = {"forward": ("q", "k", "v"), "backward": ("q", "k", "v", "do", "o")}
"""What faster kernels of each pass copy, and so ask where it lies."""
PACKED: dict[str, Operand] = {
    "PADDED": Literal(False),
    "first_of_sequences": "first",
    RAGGED: Literal(True),
    BEGUN: Present("first"),
}
"""The same where they are."""


def passes(spec: SlidingWindow, faster: Mapping[str, ForeignKernel]) -> tuple[Pass, ...]:
    """forward, backward and step of a layer; `faster` are kernels by the programs in whose place they run."""
    qk, v, signature = spec.head_dims.qk, spec.head_dims.v, spec.signature()
    gradients = (
        summed("dq", ("B", "T"), "H", groups.QUERIES, qk),
        summed("dk", ("B", "Tk"), "H", groups.KEYS, qk),
        summed("dv", ("B", "Tk"), "H", groups.VALUES, v),
    )
    forward = Pass(
        "forward",
        "Outputs and the logarithm of each row's sum of exponentials.",
        parameters(signature, "forward"),
        "q",
        (
            Delegate(packed("forward"), Present(SEQUENCES.name)),
            *SIZES,
            TOKENS_OF_KEYS,
            allocate("o", ("B", "T", "H", v), IO),
            allocate("lse", ("B", "H", "T"), ACC),
            *_run(spec, "forward", ("KEYS",), faster),
        ),
        ("o", "lse"),
    )
    backward = Pass(
        "backward",
        "Gradients of q, k and v.",
        parameters(signature, "backward"),
        "q",
        (
            Delegate(packed("backward"), Present(SEQUENCES.name)),
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
        parameters(signature, "step"),
        "q",
        (
            *SIZES,
            allocate("o", ("B", "T", "H", v), IO),
            steps.launch_step("ring_k", OVER_GROUPS),
        ),
        ("o",),
    )
    kernels = (faster.get(WINDOW_PROGRAMS[part.name]) for part in (forward, backward))
    packed_forward, packed_backward = map(partial(_packed, spec), (forward, backward), kernels)
    return packed_forward, forward, packed_backward, backward, step


def taken(kernel: ForeignKernel, arguments: Mapping[str, Operand]) -> dict[str, Operand]:
    """Those arguments that a kernel takes."""
    return {name: value for name, value in arguments.items() if name in kernel_parameters(kernel)}


def _packed(spec: SlidingWindow, part: Pass, kernel: ForeignKernel | None) -> Pass:
    """A pass over packed sequences: keys are theirs, and a state's are among them, before the tokens.

    Segments are chunks; where there is a faster kernel over segments that takes these, they are longer.
    """
    program, tiles = WINDOW_PROGRAMS[part.name], ("KEYS", "QUERIES")[: 1 + (part.name == "backward")]
    kernel = kernel if kernel and RAGGED in kernel.flags else None
    made = [step for step in part.body if isinstance(step, Allocate)]
    sums = [step for step in part.body if isinstance(step, Launch) and step.kernel == groups.SUMS]
    each = {step.name: of_each(step.name) for step in made if step.instead}
    further = [Literal(spec.window - 1) > Constant(program, tile) for tile in tiles]
    reaches = further[0] if len(further) == 1 else further[0] | further[1]
    names, results = ("segments", "places", TABLE.name, BOUNDS.name), part.results
    chunk: Value = Constant(program, "CHUNK")
    plan: Steps = ()
    if kernel:
        name = packed(part.name)
        sizes = (("T",), ("H",))
        lengths = LaunchPlan(
            on_warpgroups(name), part.name, "packed_window_plan", sizes, ("CHUNK", "PROGRAMS"), kernel
        )
        fast = Name("fast")
        plan = (
            Bind({"fast": Serves(kernel.name, COPIED[part.name])}),
            Plan({"length": INTEGER}, lengths, when=fast),
        )
        chunk = Either(fast, Name("length"), chunk)
    body: Steps = (
        *SIZES,
        TOKENS_OF_KEYS,
        ReadSizes(SEQUENCES.name, ("N", None)),
        *plan,
        LayOut(SEQUENCES.name, Name("T"), chunk, names),
        Comment("Tokens of no sequence have outputs, or gradients, of 0."),
        *(
            replace(x, apart_from=SEQUENCES.name)
            if not x.instead and (x.dtype == IO or x.name in results)
            else x
            for x in made
        ),
        *((launch(kernel.name, each | PACKED, Name("fast")),) if kernel else ()),
        launch(program, each | PACKED | {"FURTHER": reaches}, ~Name("fast") if kernel else None),
        *sums,
    )
    summary = f"`{part.name}` of packed sequences, which `sequences` [N,2] says where to find."
    return over_sequences(replace(part, summary=summary, body=body))


def _run(
    spec: SlidingWindow,
    part: str,
    tiles: tuple[str, ...],
    faster: Mapping[str, ForeignKernel],
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
    over_chunks = arguments | DENSE | {"segments": None, "N": None, "FURTHER": reaches}
    kernel = faster.get(program)
    if kernel is None:
        return (launch(program, over_chunks),)
    serves = Serves(kernel.name, COPIED[part])
    sizes = (("T",), ("B", "H"))
    plan = LaunchPlan(on_warpgroups(part), part, "window_plan", sizes, ("CHUNK", "PROGRAMS"), kernel)
    segments = Some(Name("segments"))
    return (
        Bind({"fast": serves if suits is None else suits & serves}),
        Plan({"segments": INTEGER}, plan, when=Name("fast")),
        launch(kernel.name, arguments | taken(kernel, DENSE), segments),
        launch(program, over_chunks, ~segments),
    )
