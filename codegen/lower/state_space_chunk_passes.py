"""The host side of chunks: tables, the states before segments, and then all segments side by side."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..dtypes import ACC, OPERAND
from ..ir.host import Bind, Constant, Literal, Name, Operand, Plan, Present, Steps, Value, allocate, launch
from ..ir.kernels import INTEGER, TENSOR, TRUTH, LaunchPlan
from ..mixers.state_space import StateSpace
from ..names import packed
from ..spec.signature import SEQUENCES
from .ragged import BOUNDS, DENSE, SEVERAL, TABLE
from .state_space_tables import TAPS

CHUNKED, SPLIT = Name("chunked"), Name("split")
NEVER, ALWAYS = Literal(False), Literal(True)
SKIP, INITIAL, LAST = Present("skip"), Present("initial_state"), Present("d_final_state")
FINAL = Name("output_final_state")
CHUNK_PLAN = ("SEGMENT", "CHUNK", "LEAST", "SHORTEST", "PROGRAMS", "FEWEST")
PACKED_PLAN = ("SEGMENT", "CHUNK", "LENGTH", "LEAST")
PART_PLAN = ("PROGRAMS",)


@dataclass(frozen=True)
class ChunkSteps:
    """Those of one layer, of `several` packed sequences or of one a batch entry."""

    spec: StateSpace
    several: bool

    def plan(self, part: str) -> Steps:
        """Whether there are chunks, in how many segments, and how many."""
        results = {"segments": INTEGER, "chunks": INTEGER, "chunked": TRUTH}
        plan = LaunchPlan(part, part, "chunk_plan", (("T",), ("B", "H")), CHUNK_PLAN)
        split: Value = CHUNKED & (Name("segments") > 1)
        if self.several:
            results |= {"places": INTEGER, TABLE.name: TENSOR, BOUNDS.name: TENSOR}
            sizes = ((SEQUENCES.name,), ("T",))
            plan = replace(
                plan, name=packed(part), function="packed_chunk_plan", sizes=sizes, constants=PACKED_PLAN
            )
            split = CHUNKED
        return Plan(results, plan), Bind({"split": split, TAPS: Constant("tables", "CHUNK")})

    def forward(self) -> Steps:
        """Outputs, and the last state."""
        return (
            *self.tables(),
            *self.before_segments(FINAL, "final_state"),
            launch("chunk_outputs", self.begun() | {"SKIP": SKIP, **self.ended(FINAL)}, CHUNKED),
        )

    def backward(self) -> Steps:
        """The gradients of x and of the first state, then those of tables, and of what made them."""
        modes, units = self.spec.modes, self.spec.units
        by_chunk = ("B", "chunks", "H", 2, modes, units[1])
        parts = LaunchPlan(
            packed("parts") if self.several else "parts",
            "backward",
            "part_plan",
            (("B", "chunks"), ("H",)),
            PART_PLAN,
        )
        of_modes = ("parts", "H", 2, modes)
        skipped: dict[str, Operand] = {"skip_parts": "skip_of_chunks", "N": "parts"}
        return (
            *self.tables(),
            *self.before_segments(NEVER, None),
            allocate("kept_states", by_chunk, OPERAND, CHUNKED, zeros=self.several),
            launch(
                "chunk_states",
                self.begun(kept="kept_states") | {"SUMS": NEVER, "segment_sums": None},
                CHUNKED,
            ),
            *self.after_segments(),
            allocate("kept_owed", by_chunk, OPERAND, CHUNKED, zeros=self.several),
            launch(
                "chunk_outputs_back",
                self.begun("d_final_state", LAST, "kept_owed")
                | {"SKIP": SKIP, **self.ended(INITIAL, "d_initial_state")},
                CHUNKED,
            ),
            Plan({"parts": INTEGER}, parts, when=CHUNKED),
            allocate("toeplitz_parts", ("parts", "H", TAPS, TAPS), ACC, CHUNKED),
            allocate("entering_parts", (*of_modes, TAPS), ACC, CHUNKED),
            allocate("leaving_parts", (*of_modes, TAPS), ACC, CHUNKED),
            allocate("power_parts", of_modes, ACC, CHUNKED),
            allocate("skip_of_chunks", ("parts", *units), ACC, CHUNKED & SKIP),
            launch("table_gradients", self.given | {"SKIP": SKIP, "skip_parts": "skip_of_chunks"}, CHUNKED),
            allocate("lag_parts", ("parts", "H", TAPS), ACC, CHUNKED),
            launch("lag_sums", {}, CHUNKED),
            launch("mode_gradients_of_tables", {}, CHUNKED),
            launch("skip_gradients", skipped, CHUNKED & SKIP),
        )

    # Steps

    def tables(self) -> Steps:
        """What chunks are multiplied by."""
        by_mode = ("H", 2, self.spec.modes, TAPS)
        return (
            *(allocate(name, by_mode, ACC, CHUNKED) for name in ("entering", "leaving", "powers")),
            allocate("lags", ("H", TAPS), ACC, CHUNKED),
            launch("tables", {}, CHUNKED),
            allocate("filter_matrix", ("H", TAPS, TAPS), ACC, CHUNKED),
            launch("toeplitz", {}, CHUNKED),
        )

    def before_segments(self, final: Value, total: str | None) -> Steps:
        """The state before each segment, if there are several."""
        by_segment = ("B", "segments", "H", 2, self.spec.modes, self.spec.units[1])
        return (
            *(allocate(name, by_segment, ACC, SPLIT) for name in ("sums", "segment_states")),
            launch("chunk_states", self.unbegun(), SPLIT),
            launch(
                self.own("chunk_prefix"),
                {"INITIAL": INITIAL, "TOTAL": final, "final_state": total},
                SPLIT,
            ),
        )

    def after_segments(self) -> Steps:
        """What is owed to the state after each of them."""
        return (
            launch("chunk_states_back", self.unbegun(), SPLIT),
            launch(self.own("chunk_prefix_back"), {"INITIAL": LAST, "TOTAL": INITIAL}, SPLIT),
        )

    # Arguments

    @property
    def given(self) -> dict[str, Operand]:
        """Where tokens lie."""
        return SEVERAL if self.several else DENSE

    def own(self, program: str) -> str:
        return packed(program) if self.several else program

    def unbegun(self) -> dict[str, Operand]:
        """For what a segment adds by itself."""
        flags = dict.fromkeys(("INITIAL", "SEGMENTED", "KEPT"), NEVER)
        absent = dict.fromkeys(("state_given", "states_before", "states_kept"))
        return self.given | flags | absent | {"SUMS": ALWAYS, "segment_sums": "sums"}

    def begun(
        self, name: str = "initial_state", there: Value = INITIAL, kept: str | None = None
    ) -> dict[str, Operand]:
        """For a segment that goes on from what is before it, and may keep the state before each chunk."""
        begin: dict[str, Operand] = {"INITIAL": there & ~SPLIT, "state_given": name}
        if self.several:
            begin = {"INITIAL": NEVER, "state_given": None}
        keeps: dict[str, Operand] = {"KEPT": Literal(kept is not None), "states_kept": kept}
        return self.given | begin | keeps | {"SEGMENTED": SPLIT, "states_before": "segment_states"}

    def ended(self, final: Value, name: str = "final_state") -> dict[str, Operand]:
        """For the last state of a sequence in one segment."""
        if self.several:
            return {"FINAL": NEVER, "state_left": None}
        return {"FINAL": final & ~SPLIT, "state_left": name}
