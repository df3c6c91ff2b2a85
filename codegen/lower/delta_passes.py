"""The host side of the delta rule: of a batch of sequences, and of packed ones in one token axis.

Both launch the same programs but for the walks, of which packed sequences have some of their own.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..ir.host import (
    Bind,
    Constant,
    Delegate,
    Launch,
    Literal,
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
from ..ir.kernels import INTEGER, ForeignKernel, LaunchPlan
from ..ir.nodes import ACC, IO, OPERAND, Comment
from ..mixers.linear_attention import LinearAttention
from ..names import packed
from ..spec.signature import SEQUENCES
from .decay_passes import BY_SEGMENT, HAS_INITIAL, STATEFUL
from .groups import KEYS, OVER_GROUPS, OVER_STATES, QUERIES, SIZES, STATES, VALUES, of_each, summed
from .linear_attention_packed import COUNTED, plan_of
from .linear_attention_passes import FINAL, NEVER, TOKENS, Passes
from .parameters import over_sequences, parameters
from .ragged import DENSE, SEVERAL

CORRECTED: dict[str, Operand] = {"v": "corrected_values", VALUES: STATES}
"""What plain linear attention takes for values: each head of states has its own."""
ROWS = ("B", "T", STATES)


def passes(spec: LinearAttention, faster: Mapping[str, ForeignKernel]) -> tuple[Pass, ...]:
    """forward, backward and step of a layer, and what these call; no kernel is printed by hand."""
    several, one = (DeltaPasses(spec, several) for several in (True, False))
    return several.forward(), one.forward(), several.backward(), one.backward(), one.step()


class DeltaPasses(Passes):
    """The passes of one layer, of `several` packed sequences or of one a batch entry."""

    def __init__(self, spec: LinearAttention, several: bool) -> None:
        super().__init__(spec, {})
        self.several, self.count = several, "N" if several else "B"
        self.sequences = SEQUENCES.name if several else None
        self.given = SEVERAL if several else DENSE
        self.kept: Value | None = None if several else STATEFUL
        self.stateful: Value = Literal(True) if several else STATEFUL

    # Passes

    def forward(self) -> Pass:
        body: Steps = (
            *self.begin("forward", HAS_INITIAL),
            *self.user_states("final_", FINAL, self.count),
            *self.corrections({"ERRORS": NEVER, "x": None, "FINAL": FINAL} | self.state("final_", "final_")),
            allocate("o", ("B", "T", "H", self.v), IO, apart_from=self.sequences),
            launch(
                "outputs",
                self.state("", "segment_") | CORRECTED | self.given | {"STATEFUL": self.stateful},
            ),
        )
        summary = "Outputs, and the state after the last token if it is asked for."
        return self.called("forward", summary, body, ("o", "final_state", "final_normalizer"))

    def backward(self) -> Pass:
        has_final = Present("d_final_state")
        owed = {"r": of_each("r")} if self.fades else {}
        dq, sum_dq = summed("dq", TOKENS, "H", QUERIES, self.qk)
        dk, sum_dk = summed("dk", TOKENS, STATES, KEYS, self.qk)
        dv, sum_dv = summed("dv", TOKENS, STATES, VALUES, self.v)
        z = of_each("dv")
        states = self.state("", "segment_") | self.state("mirrored_", "mirrored_")
        body: Steps = (
            *self.begin("backward", HAS_INITIAL | has_final),
            Comment("What the forward pass has corrected, again."),
            allocate("x", (*ROWS, self.v), IO, apart_from=self.sequences),
            *self.corrections({"ERRORS": Literal(True), "FINAL": NEVER} | self.state("final_", None)),
            allocate(of_each("dq"), ("B", "T", "H", self.qk), IO, apart_from=self.sequences),
            dq,
            *self.decays.owed(),
            launch(
                "query_gradients",
                self.state("", "segment_")
                | CORRECTED
                | self.given
                | {"STATEFUL": self.stateful, "dq": of_each("dq")}
                | owed,
            ),
            sum_dq,
            *self.decays.sum_owed(),
            Comment("What is owed to values, from the last token to the first."),
            allocate("back", (*ROWS, self.v), IO, apart_from=self.sequences),
            allocate(z, (*ROWS, self.v), IO, apart_from=self.sequences),
            dv,
            *self.user_states("d_initial_", HAS_INITIAL, self.count),
            *self.segment_states("mirrored_", BY_SEGMENT, self.kept),
            self.inverses(of_gradients=True),
            launch(
                self.walked("errors_back"),
                OVER_GROUPS
                | self.state("mirrored_", "mirrored_")
                | {"z": z, "FINAL": has_final, "INITIAL": HAS_INITIAL, "KEPT": self.stateful},
            ),
            sum_dv,
            allocate("d_beta", ROWS, ACC),
            launch("rate_gradients", OVER_STATES),
            allocate(of_each("dk"), (*ROWS, self.qk), IO, apart_from=self.sequences),
            dk,
            launch(
                "key_gradients",
                states
                | OVER_GROUPS
                | CORRECTED
                | self.given
                | {"z": z, "STATEFUL": self.stateful, "dk": of_each("dk")},
            ),
            sum_dk,
            *self.decays.gradients(states, self.several),
        )
        of_decays = ("d_log_decay",) if self.fades else ()
        results = ("dq", "dk", "dv", *of_decays, "d_beta", "d_initial_state", "d_initial_normalizer")
        return self.called("backward", "Gradients of all inputs and of the initial state.", body, results)

    # Steps

    def begin(self, part: str, stateful: Value) -> Steps:
        """Sizes, segments, and running sums of decays; `stateful` is what needs states of a lone segment."""
        if self.several:
            planned: Steps = (COUNTED, plan_of(part), Bind({"has_initial": Present("initial_state")}))
        else:
            plan = LaunchPlan(part, part, "kept_plan", (("T",),), ("LENGTH",))
            planned = (
                Plan({"segments": INTEGER}, plan),
                Bind({"has_initial": Present("initial_state")}),
                Bind({"stateful": (Name("segments") > 1) | stateful}),
            )
        delegate = () if self.several else (Delegate(packed(part), Present(SEQUENCES.name)),)
        return (*delegate, *SIZES, *planned, *self.decays.running(given=self.given))

    def corrections(self, more: dict[str, Operand]) -> Steps:
        """The corrected values, and the state before every segment."""
        return (
            Bind({"solved": Constant("inverses", "CHUNK")}),
            allocate("inverse", (*ROWS, "solved"), OPERAND),
            self.inverses(of_gradients=False),
            allocate("corrected_values", (*ROWS, self.v), IO),
            *self.segment_states("segment_", BY_SEGMENT, self.kept),
            launch(
                self.walked("corrections"),
                OVER_STATES
                | self.state("", "segment_")
                | {"INITIAL": HAS_INITIAL, "KEPT": self.stateful}
                | more,
            ),
        )

    def inverses(self, of_gradients: bool) -> Launch:
        return launch("inverses", OVER_STATES | self.given | {"OF_GRADIENTS": Literal(of_gradients)})

    def walked(self, program: str) -> str:
        """The program that walks over these sequences."""
        return packed(program) if self.several else program

    def called(self, part: str, summary: str, body: Steps, results: tuple[str, ...]) -> Pass:
        """A pass; that of packed sequences is one that the other calls."""
        if self.several:
            summary = f"`{part}` of packed sequences, which `sequences` [N,2] says where to find."
        found = Pass(part, summary, parameters(self.signature, part), "q", body, results)
        return over_sequences(found) if self.several else found
