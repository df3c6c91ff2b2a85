"""The host side of hybrids over packed sequences: as in `linear_attention_packed.py`.

What a state keeps in its ring lies in front of its sequence, with queries that nobody reads.
"""

from __future__ import annotations

from dataclasses import replace

from ..ir.host import Bind, Delegate, Operand, Pass, Present, Serves, Steps, allocate, launch
from ..ir.kernels import ForeignKernel
from ..ir.nodes import ACC, IO, OPERAND, Comment
from ..names import on_warpgroups, packed
from ..spec.signature import SEQUENCES
from .groups import OVER_GROUPS, OVER_STATES, SIZES
from .hybrid_passes import (
    BY_SEGMENT,
    COPIED,
    FINAL,
    HAS_INITIAL,
    RING_START,
    Passes,
)
from .hybrid_tokens import COUNT, FIRSTS, PADDED
from .linear_attention_packed import COUNTED, plan_of
from .parameters import over_sequences
from .ragged import ALL, BEGUN, SEVERAL
from .sliding_window_passes import TOKENS_OF_KEYS, taken
from .state_steps import NEVER, ON

OF_KEYS: dict[str, Operand] = SEVERAL | {
    PADDED: NEVER,
    BEGUN: Present(RING_START),
    FIRSTS[1].name: RING_START,
    COUNT: "N",
}
"""What programs get that read the first key of a sequence."""


def forward(layer: Passes, kernel: ForeignKernel | None = None) -> Pass:
    """Outputs, what backward needs, and the state of the keys that have left, of each sequence.

    Where there is a faster `kernel` for outputs it hands over to that one's pass.
    """
    body: Steps = (
        *((Delegate(on_warpgroups(packed("forward")), Serves(kernel.name, COPIED)),) if kernel else ()),
        *begin("forward"),
        *results(layer),
        *states(layer, "final_"),
        launch("outputs", layer.read | OF_KEYS | {"STATEFUL": ON}),
    )
    return of_sequences(layer.forward_pass(body))


def backward(layer: Passes) -> Pass:
    """Gradients of all inputs and of the initial state of each sequence."""
    has_final, gradients = Present("d_final_state"), layer.gradients()
    by_query, by_key = layer.of_each(gradients)
    body: Steps = (
        *begin("backward"),
        Bind({"has_initial": Present("initial_state")}),
        *states(layer, None),
        Comment("Tokens of no sequence have gradients of 0."),
        *layer.buffers(gradients, apart_from=SEQUENCES.name),
        allocate("g", ("B", "T", "H", layer.v), OPERAND),
        allocate("e", ("B", "H", "T"), ACC),
        *layer.of_rows(apart_from=SEQUENCES.name),
        launch("query_gradients", layer.read | OF_KEYS | by_query | {"STATEFUL": ON}),
        Comment("The keys' side needs the mirrored state: the sum over the queries of later segments."),
        *layer.user_states("d_initial_", HAS_INITIAL, "N"),
        launch("query_states", OVER_GROUPS | SEVERAL | {ALL: HAS_INITIAL}),
        launch(
            packed("suffix"),
            layer.over_segments("d_final_", "d_initial_") | {"INITIAL": has_final, "TOTAL": HAS_INITIAL},
        ),
        launch("key_gradients", OVER_GROUPS | layer.read_by_key | OF_KEYS | by_key | {"STATEFUL": ON}),
        *(sums for _, sums in gradients),
        *layer.factor_gradients(),
    )
    return of_sequences(replace(layer.backward(), body=body))


def begin(part: str, kernel: ForeignKernel | None = None) -> Steps:
    """The sizes of a call, and where its segments lie: those of a `kernel` that goes through all at once."""
    return *SIZES, TOKENS_OF_KEYS, COUNTED, plan_of(part, kernel)


def results(layer: Passes) -> Steps:
    """What a forward pass gives."""
    return (
        Comment("Tokens of no sequence have outputs of 0."),
        allocate("o", ("B", "T", "H", layer.v), IO, apart_from=SEQUENCES.name),
        *(replace(x, apart_from=SEQUENCES.name) for x in layer.kept()),
        *layer.user_states("final_", FINAL, "N"),
    )


def states(layer: Passes, final: str | None, kernel: ForeignKernel | None = None) -> Steps:
    """The state before each segment, and after the last of a sequence where that is asked for.

    Segments are summed up by a faster `kernel`, if there is one.
    """
    asked = NEVER if final is None else FINAL
    return (
        *layer.segment_sums(BY_SEGMENT, None),
        *layer.segment_states("segment_", BY_SEGMENT, None),
        launch("states", OVER_STATES | OF_KEYS | {ALL: asked})
        if kernel is None
        else launch(kernel.name, OVER_STATES | taken(kernel, OF_KEYS) | {ALL: asked}),
        launch(
            packed("prefix"),
            layer.over_segments("initial_", final) | {"INITIAL": Present("initial_state"), "TOTAL": asked},
        ),
    )


def of_sequences(made: Pass) -> Pass:
    """A pass that another one calls where there are packed sequences."""
    summary = f"`{made.name}` of packed sequences, which `sequences` [N,2] says where to find."
    return over_sequences(replace(made, summary=summary))
