"""The host side of gradients on Hopper's warpgroups: two recurrences, each over all segments at once.

Each query of a group has gradients of its own to keys and values, which are summed afterwards; those of
states are not, so a call with states has one for each head.  So has one of a layer that fades, whose states
of both directions meet in the gradients of decays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..ir.host import (
    Bind,
    Launch,
    Name,
    Operand,
    Pass,
    Plan,
    Present,
    Steps,
    Value,
    allocate,
    launch,
)
from ..ir.kernels import INTEGER, LaunchPlan
from ..ir.nodes import IO, Comment
from ..names import on_warpgroups, packed
from ..spec.signature import SEQUENCES
from .decay_passes import BY_SEGMENT, HAS_INITIAL
from .groups import EVERY, KEYS, OVER_STATES, QUERIES, SIZES, STATES, VALUES, of_each, summed
from .linear_attention_packed import ALL_THERE_IS, COUNTED, LAY_OUT, LENGTH_PLAN
from .linear_attention_passes import SEGMENTS_OF_ALL, TOKENS, TOKENS_AND_ROWS, Passes
from .parameters import over_sequences
from .ragged import ALL, ALONE, DENSE, SEVERAL
from .state_steps import NEVER, ON, SPLIT


def backward(layer: Passes, several: bool) -> Pass:
    """Gradients of q, k, v and of the initial state, for `several` packed sequences or one a batch entry.

    One has a state before its segments where there are several of them; packed sequences always have.
    """
    kernels, decides = layer.faster, layer.faster["query_gradients"]
    part = packed("backward") if several else "backward"
    name = on_warpgroups(part)
    has_final = Present("d_final_state")
    earlier, later = layer.state("", "segment_"), layer.state("", "mirrored_")
    when, segmented = (None, ON) if several else (SPLIT, SPLIT)
    sums: dict[str, Operand] = {}
    owed: dict[str, Operand] = {}
    if layer.fades:
        heads, owed = STATES, {"r": of_each("r")}
        mirrored = layer.segment_states("mirrored_", BY_SEGMENT, when)
    else:
        heads = "H"
        mirrored = layer.mirrored(Name(STATES).equals("H"), ("B", "H", "segments"), when)
        sums = {x: f"mirrored_{x}" for x in ("sums", "normalizer_sums")[: 1 + layer.normalize]}
    apart, batch = (SEQUENCES.name, "N") if several else (None, "B")
    prefix, suffix = (packed(x) if several else x for x in ("prefix", "suffix"))
    where = SEVERAL if several else ALONE
    blocks = -(-layer.v // decides.bounds["VALUES"])  # each of which has parts of dq and dk
    of_queries, of_keys = (Name(x) if blocks == 1 else Name(x) * blocks for x in ("H", heads))
    dq, sum_dq = summed("dq", TOKENS, of_queries, QUERIES, layer.qk)
    dk, sum_dk = summed("dk", TOKENS, of_keys, KEYS, layer.qk)
    dv, sum_dv = summed("dv", TOKENS, heads, VALUES, layer.v)

    def begins(state: str, given: Value) -> dict[str, Operand]:
        """A kernel goes on from a sequence's own state where there is none of a segment."""
        if several:
            return {"INITIAL": NEVER, "SEGMENTED": segmented}
        return layer.state("initial_", state) | {"INITIAL": given & ~SPLIT, "SEGMENTED": segmented}

    def sums_of(program: str, arguments: Mapping[str, Operand]) -> Launch:
        """By a kernel for warpgroups where there is one; every head has sums of its own queries."""
        if program in kernels:
            return launch(kernels[program].name, {**arguments, **where}, when)
        every: Mapping[str, Operand] = {EVERY: "H", "H": heads} if program == "query_states" else {}
        return launch(program, {**arguments, **every, **(SEVERAL if several else DENSE)}, when)

    total = layer.state("total_", None if several else "d_initial_")

    laid_out: Steps
    if several:
        plan = LaunchPlan(name, "backward", "packed_length", ALL_THERE_IS, LENGTH_PLAN, decides)
        flags = Bind({"has_initial": Present("initial_state")})
        laid_out = (COUNTED, Plan({"length": INTEGER}, plan), LAY_OUT, flags)
    else:
        plan = LaunchPlan(name, "backward", "segment_plan", TOKENS_AND_ROWS, SEGMENTS_OF_ALL, decides)
        flags = Bind({"split": Name("segments") > 1, "has_initial": Present("initial_state")})
        laid_out = (Plan({"segments": INTEGER}, plan), flags)
        if layer.fades:
            laid_out += (Bind({"stateful": SPLIT | HAS_INITIAL}),)
    body: Steps = (
        *SIZES,
        *laid_out,
        *layer.decays.running(when, SEVERAL if several else DENSE, scans=True),
        *layer.segment_sums(BY_SEGMENT, when),
        *layer.segment_states("segment_", BY_SEGMENT, when),
        sums_of("states", OVER_STATES | {ALL: NEVER}),
        launch(
            prefix,
            layer.over_segments("initial_", None) | {"INITIAL": HAS_INITIAL, "TOTAL": NEVER},
            when,
        ),
        allocate(of_each("dq"), ("B", "T", of_queries, layer.qk), IO, apart_from=apart),
        dq,
        *layer.gradient_buffers(),
        *layer.decays.owed(),
        launch(
            kernels["query_gradients"].name,
            earlier | where | begins("initial_", HAS_INITIAL) | {"dq": of_each("dq")} | owed,
        ),
        sum_dq,
        Comment("Backwards: the sum over the queries of later segments."),
        allocate(of_each("dk"), ("B", "T", of_keys, layer.qk), IO, apart_from=apart),
        dk,
        allocate(of_each("dv"), ("B", "T", heads, layer.v), IO, apart_from=apart),
        dv,
        *layer.user_states("d_initial_", HAS_INITIAL, batch, heads=heads),
        *mirrored,
        sums_of("query_states", sums | {ALL: HAS_INITIAL}),
        launch(
            suffix,
            later
            | sums
            | layer.state("initial_", "d_final_")
            | layer.state("total_", "d_initial_")
            | {"INITIAL": has_final, "TOTAL": HAS_INITIAL, "H": heads},
            when,
        ),
        launch(
            kernels["key_gradients"].name,
            later
            | where
            | begins("d_final_", has_final)
            | total
            | {"TOTAL": NEVER if several else HAS_INITIAL & ~SPLIT}
            | {"dk": of_each("dk"), "dv": of_each("dv"), "H": heads},
        ),
        sum_dk,
        sum_dv,
        *layer.decays.gradients(earlier | layer.state("mirrored_", "mirrored_"), several, SPLIT),
    )
    what = "of packed sequences, on" if several else "on"
    summary = f"`backward` {what} Hopper's warpgroups: two recurrences, that keep no states."
    made = layer.backward_pass(part, summary, body)
    return replace(over_sequences(made) if several else made, name=name, instead_of="backward")
