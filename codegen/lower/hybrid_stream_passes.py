"""The host side of hybrids on Hopper's warpgroups: one launch, and what it needs of states.

A single segment goes on from the initial state, and leaves the final one where its chunks end with a whole
one; else a walk over the keys finds that.  Several begin with states that are summed up before, and so is the
final one then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..ir.host import Bind, Name, Pass, Plan, Present, Steps, allocate, launch
from ..ir.kernels import INTEGER, TRUTH, ForeignKernel, LaunchPlan
from ..ir.nodes import IO
from ..names import on_warpgroups, packed
from . import hybrid_packed
from .groups import OVER_STATES, SIZES
from .hybrid_passes import BY_SEGMENT, FINAL, FIRST_KEYS, HAS_INITIAL, OF_KEYS, Passes
from .ragged import ALL
from .sliding_window_passes import TOKENS_OF_KEYS, taken
from .state_steps import NEVER, ON, SPLIT

PLAN = ("CHUNK", "SHORTEST", "PROGRAMS", "FEWEST")


def forward(layer: Passes, faster: Mapping[str, ForeignKernel]) -> Pass:
    """Outputs, logarithms of the sums of weights, and the state of the keys that have left."""
    kernel, sums = faster["outputs"], faster["states"]
    name = on_warpgroups("forward")
    plan = LaunchPlan(name, "forward", "hybrid_plan", (("T",), ("B", "H")), PLAN, kernel)
    has_initial = Present("initial_state")
    walk = Name("walks")
    body: Steps = (
        *SIZES,
        TOKENS_OF_KEYS,
        Plan({"segments": INTEGER, "whole": TRUTH}, plan),
        Bind({"has_initial": has_initial, "split": Name("segments") > 1}),
        Bind({"walks": FINAL & ~SPLIT & ~Name("whole")}),
        allocate("o", ("B", "T", "H", layer.v), IO),
        *layer.kept(),
        *layer.user_states("final_", FINAL),
        *layer.segment_sums(BY_SEGMENT, SPLIT),
        *layer.segment_states("segment_", BY_SEGMENT, SPLIT | walk),
        launch(sums.name, taken(sums, OF_KEYS) | OVER_STATES | {ALL: FINAL}, SPLIT),
        launch(
            "prefix",
            layer.over_segments("initial_", "final_") | {"INITIAL": has_initial, "TOTAL": FINAL},
            SPLIT,
        ),
        launch(
            "states_before",
            FIRST_KEYS
            | layer.over_segments("initial_", "final_")
            | layer.state("start_", None)
            | {"INITIAL": HAS_INITIAL, "TOTAL": ON, "SEGMENTED": NEVER, "LONG": ON, "spans": "segments"},
            walk,
        ),
        launch(
            kernel.name,
            layer.state("", "segment_")
            | taken(kernel, OF_KEYS)
            | {
                "INITIAL": HAS_INITIAL & ~SPLIT,
                "SEGMENTED": SPLIT,
                "FINAL": FINAL & ~SPLIT & Name("whole"),
            },
        ),
    )
    return replace(layer.forward_pass(body), name=name, instead_of="forward")


def several(layer: Passes, faster: Mapping[str, ForeignKernel]) -> Pass:
    """The same of packed sequences, whose segments have always the same length."""
    kernel = faster["outputs"]
    body: Steps = (
        *hybrid_packed.begin("forward", kernel),
        *hybrid_packed.results(layer),
        *hybrid_packed.states(layer, "final_", faster["states"]),
        launch(
            kernel.name,
            layer.state("", "segment_")
            | taken(kernel, hybrid_packed.OF_KEYS)
            | layer.state("final_", None)
            | {"INITIAL": NEVER, "SEGMENTED": ON, "FINAL": NEVER},
        ),
    )
    made = hybrid_packed.of_sequences(layer.forward_pass(body))
    return replace(made, name=on_warpgroups(packed("forward")), instead_of="forward")
