"""The host side of linear attention over packed sequences: one token axis, and a state for each sequence.

Every sequence begins a segment of its own (`ragged.py`), so a pass is that of one sequence in segments, whose
running sums begin anew at each sequence.  How many segments there are follows from how many sequences and
tokens, not from how long any of them is, which only the device knows.

Where programs go through segments side by side, as a recurrence does, segments are as long as the call needs
to fill a device, or, if it is to be `batch_invariant`, always the same.  Where scores are computed directly,
what a token costs follows from the length of its segment, and that is always the same.
"""

from __future__ import annotations

from ..ir.host import (
    Bind,
    LayOut,
    Name,
    Pass,
    Plan,
    Present,
    ReadSizes,
    Steps,
    allocate,
    launch,
)
from ..ir.kernels import INTEGER, TENSOR, TRUTH, ForeignKernel, LaunchPlan
from ..ir.nodes import ACC, IO, Comment
from ..names import RECURRENCE, on_warpgroups, packed
from ..spec.signature import BATCH_INVARIANT, SEQUENCES
from .groups import (
    KEYS,
    OVER_GROUPS,
    OVER_STATES,
    QUERIES,
    SIZES,
    STATES,
    VALUES,
    of_each,
    summed,
)
from .linear_attention_passes import (
    BY_SEGMENT,
    FINAL,
    HAS_INITIAL,
    RECURRENT,
    SEGMENTS_OF_ALL,
    TOKENS,
    Passes,
)
from .parameters import over_sequences
from .ragged import ALL, BOUNDS, SEVERAL, TABLE
from .state_steps import NEVER, ON

SEGMENT_PLAN = ("SEGMENT", "LENGTH")
PACKED_TOKENS = (SEQUENCES.name,), ("T",)
LENGTH_PLAN = (*SEGMENT_PLAN, *SEGMENTS_OF_ALL)
ALL_THERE_IS = ("T",), ("N",), ("H",), (BATCH_INVARIANT.name,)
"""By what the length of segments is chosen through which programs go side by side."""
LAID_OUT = {"segments": INTEGER, "places": INTEGER, TABLE.name: TENSOR, BOUNDS.name: TENSOR}
"""The segments, and where they lie, as plans of packed sequences make them."""
COUNTED = ReadSizes(SEQUENCES.name, ("N", None))
LAY_OUT = LayOut(SEQUENCES.name, Name("T"), Name("length"), ("segments", "places", TABLE.name, BOUNDS.name))


def forward(layer: Passes) -> Pass:
    """Outputs, row sums of A, and the state after each sequence if that is asked for."""
    name, serves = packed("forward"), layer.serves()
    body: Steps = (
        *SIZES,
        COUNTED,
        Plan(
            {"length": INTEGER, "recurrent": TRUTH},
            LaunchPlan(name, "forward", "packed_forward_plan", ALL_THERE_IS, (*LENGTH_PLAN, "LONGEST")),
        ),
        LAY_OUT,
        *((Bind({"fast": serves}),) if serves else ()),
        *layer.decays.running(given=SEVERAL),
        Comment("Tokens of no sequence have outputs of 0."),
        allocate("o", ("B", "T", "H", layer.v), IO, apart_from=SEQUENCES.name),
        allocate(
            "n",
            ("B", "H", "T"),
            ACC,
            None if layer.normalize else NEVER,
            apart_from=SEQUENCES.name if layer.normalize else None,
        ),
        *layer.user_states("final_", FINAL, "N"),
        *layer.segment_sums(BY_SEGMENT, None),
        *layer.segment_states("segment_", BY_SEGMENT, None),
        *layer.either("states", OVER_STATES | SEVERAL | {ALL: FINAL}),
        launch(
            packed("prefix"),
            layer.over_segments("initial_", "final_") | {"INITIAL": Present("initial_state"), "TOTAL": FINAL},
        ),
        Comment("The prefix has what is before and after sequences: a recurrence has segments alone."),
        *layer.either(
            RECURRENCE,
            layer.state("", "segment_")
            | layer.state("final_", None)
            | SEVERAL
            | {"INITIAL": NEVER, "SEGMENTED": ON, "FINAL": NEVER},
            RECURRENT,
        ),
        launch("outputs", layer.state("", "segment_") | SEVERAL | {"STATEFUL": ON}, ~RECURRENT),
    )
    summary = "`forward` of packed sequences, which `sequences` [N,2] says where to find."
    return over_sequences(layer.forward_pass(name, summary, body))


def backward(layer: Passes) -> Pass:
    """Gradients of q, k, v and of the initial state of each sequence."""
    has_final = Present("d_final_state")
    mirrored = "mirrored_" if layer.fades else "segment_"
    owed = {"r": of_each("r")} if layer.fades else {}
    dq, sum_dq = summed("dq", TOKENS, "H", QUERIES, layer.qk)
    dk, sum_dk = summed("dk", TOKENS, STATES, KEYS, layer.qk)
    dv, sum_dv = summed("dv", TOKENS, STATES, VALUES, layer.v)
    body: Steps = (
        *SIZES,
        *layer.handed_over(packed("backward")),
        COUNTED,
        plan_of("backward"),
        Bind({"has_initial": Present("initial_state")}),
        *layer.decays.running(given=SEVERAL),
        Comment("Tokens of no sequence have gradients of 0."),
        allocate(of_each("dq"), ("B", "T", "H", layer.qk), IO, apart_from=SEQUENCES.name),
        dq,
        *layer.gradient_buffers(),
        *layer.decays.owed(),
        *layer.segment_sums(BY_SEGMENT, None),
        *layer.segment_states("segment_", BY_SEGMENT, None),
        launch("states", OVER_STATES | SEVERAL | {ALL: NEVER}),
        launch(
            packed("prefix"),
            layer.over_segments("initial_", None) | {"INITIAL": Present("initial_state"), "TOTAL": NEVER},
        ),
        launch(
            "query_gradients",
            layer.state("", "segment_") | SEVERAL | {"STATEFUL": ON, "dq": of_each("dq")} | owed,
        ),
        sum_dq,
        *layer.decays.sum_owed(),
        Comment("The keys' side needs the mirrored state: the sum over the queries of later segments."),
        allocate(of_each("dk"), ("B", "T", STATES, layer.qk), IO, apart_from=SEQUENCES.name),
        dk,
        allocate(of_each("dv"), ("B", "T", STATES, layer.v), IO, apart_from=SEQUENCES.name),
        dv,
        *layer.user_states("d_initial_", HAS_INITIAL, "N"),
        *(layer.segment_states("mirrored_", BY_SEGMENT, None) if layer.fades else ()),
        launch("query_states", OVER_GROUPS | SEVERAL | {ALL: HAS_INITIAL}),
        launch(
            packed("suffix"),
            layer.over_segments("d_final_", "d_initial_", mirrored)
            | {"INITIAL": has_final, "TOTAL": HAS_INITIAL},
        ),
        launch(
            "key_gradients",
            layer.state("", mirrored)
            | OVER_GROUPS
            | SEVERAL
            | {"STATEFUL": ON, "dk": of_each("dk"), "dv": of_each("dv")},
        ),
        sum_dk,
        sum_dv,
        *layer.decays.gradients(
            layer.state("", "segment_") | layer.state("mirrored_", "mirrored_"), several=True
        ),
    )
    summary = "`backward` of packed sequences, which `sequences` [N,2] says where to find."
    return over_sequences(layer.backward_pass(packed("backward"), summary, body))


def plan_of(part: str, kernel: ForeignKernel | None = None) -> Plan:
    """The segments, and where they lie: by a plan of its own for a faster `kernel`."""
    name = on_warpgroups(packed(part)) if kernel else packed(part)
    plan = LaunchPlan(name, part, "packed_plan", PACKED_TOKENS, SEGMENT_PLAN, kernel)
    return Plan(LAID_OUT, plan)
