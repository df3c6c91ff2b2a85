"""The host side of linear attention: which kernels run, on which buffers, and under which condition.

Some layers have faster kernels for some programs (`ir/kernels.py`); a pass then chooses at every call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..ir.host import (
    Allocate,
    Bind,
    Delegate,
    Either,
    Launch,
    Name,
    Operand,
    Pass,
    Plan,
    Present,
    Serves,
    Step,
    Steps,
    Value,
    allocate,
    launch,
)
from ..ir.kernels import INTEGER, TRUTH, ForeignKernel, LaunchPlan
from ..ir.nodes import ACC, IO, OPERAND, Comment
from ..mixers.linear_attention import LinearAttention
from ..names import RECURRENCE, on_warpgroups, packed
from ..spec.signature import SEQUENCES
from . import steps
from .decay_passes import BY_SEGMENT, HAS_INITIAL, STATEFUL, Decays
from .feature_maps import feature_map
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
from .parameters import parameters
from .ragged import ALL, ALONE, DENSE
from .state_steps import NEVER, ON, SPLIT, StateSteps

Arguments = Mapping[str, Operand]

FAST, RECURRENT, SUMMED = Name("fast"), Name("recurrent"), Name("summed")
MIRRORED, FINAL = Name("mirrored"), Name("output_final_state")
ONE_SEGMENT = "A recurrence over one segment starts from the initial state and ends with the final one."
TOKENS = ("B", "T")
TOKENS_AND_ROWS = (("T",), ("B", "H"))
TOKENS_AND_STATES = (("T",), ("B", STATES))
FORWARD_PLAN = ("LONGEST", "TOKENS", "LENGTH", "SHORTEST", "PROGRAMS", "FEWEST")
BACKWARD_PLAN = ("SEGMENT", "LENGTH", "SHORTEST", "PROGRAMS")
SEGMENTS_OF_ALL = ("SHORTEST", "PROGRAMS", "FEWEST")


def passes(spec: LinearAttention, faster: Mapping[str, ForeignKernel]) -> tuple[Pass, ...]:
    """forward, backward and step of a layer, and what these call; `faster` are kernels by their programs."""
    from . import linear_attention_packed as of_sequences
    from . import linear_attention_recurrent_backward as recurrent

    layer = Passes(spec, faster)
    called = [recurrent.backward(layer, several) for several in (True, False) if layer.recurs_back()]
    forward = of_sequences.forward(layer), layer.forward()
    return *forward, *called, of_sequences.backward(layer), layer.backward(), layer.step()


class Passes(StateSteps):
    """The extents of one layer's buffers, and the steps that its passes share."""

    def __init__(self, spec: LinearAttention, faster: Mapping[str, ForeignKernel]) -> None:
        super().__init__(feature_map(spec).rows, spec.head_dims.v, STATES, spec.normalize)
        self.qk, self.faster, self.signature = spec.head_dims.qk, faster, spec.signature()
        self.decays = Decays(spec.decay)
        self.fades = self.decays.present

    # Passes

    def forward(self) -> Pass:
        recurrence, serves = self.faster.get(RECURRENCE), self.serves()
        plan = Plan(
            {"segments": INTEGER, "recurrent": TRUTH},
            LaunchPlan("forward", "forward", "forward_plan", TOKENS_AND_ROWS, FORWARD_PLAN),
        )
        before: tuple[Step, ...] = ()
        after: tuple[Step, ...] = ()
        if serves and "states" in self.faster:
            after = (Bind({"fast": (RECURRENT | SUMMED) & serves}),)
        elif serves:  # only a recurrence has a faster kernel, so a plan of its own says when to recur
            before = (Bind({"fast": serves}),)
            name = on_warpgroups("forward")
            own = LaunchPlan(name, "forward", "forward_plan", TOKENS_AND_ROWS, FORWARD_PLAN, recurrence)
            plan = replace(plan, instead=(FAST, own))
        body: Steps = (
            Delegate(packed("forward"), Present(SEQUENCES.name)),
            *SIZES,
            *before,
            plan,
            Bind({"split": Name("segments") > 1, "has_initial": Present("initial_state")}),
            Comment(ONE_SEGMENT),
            Bind({"summed": Either(RECURRENT, SPLIT, SPLIT | HAS_INITIAL | FINAL)}),
            *after,
            *self.decays.running(SUMMED | ~RECURRENT),
            allocate("o", ("B", "T", "H", self.v), IO),
            allocate("n", ("B", "H", "T"), ACC, None if self.normalize else NEVER),
            *self.user_states("final_", FINAL),
            *self.segment_sums(BY_SEGMENT, SUMMED),
            *self.segment_states("segment_", BY_SEGMENT, SUMMED),
            *self.either("states", OVER_STATES | ALONE, SUMMED, DENSE | {ALL: ON}, ALL=FINAL),
            launch(
                "prefix",
                self.over_segments("initial_", "final_")
                | {"INITIAL": Present("initial_state"), "TOTAL": FINAL},
                SUMMED,
            ),
            *self.either(
                RECURRENCE,
                self.state("", "segment_")
                | ALONE
                | {"INITIAL": HAS_INITIAL & ~SPLIT, "SEGMENTED": SPLIT, "FINAL": FINAL & ~SPLIT},
                RECURRENT,
            ),
            launch(
                "outputs", self.state("", "segment_") | DENSE | {"STATEFUL": SPLIT | HAS_INITIAL}, ~RECURRENT
            ),
        )
        summary = "Outputs, row sums of A, and the state after the last token if it is asked for."
        return self.forward_pass("forward", summary, body)

    def serves(self) -> Value | None:
        """Whether the faster recurrence serves a call, if there is one."""
        recurrence = self.faster.get(RECURRENCE)
        return None if recurrence is None else Serves(recurrence.name, ("q", "k", "v"))

    def forward_pass(self, name: str, summary: str, body: Steps) -> Pass:
        results = ("o", "n", "final_state", "final_normalizer")
        return Pass(name, summary, parameters(self.signature, "forward"), "q", body, results)

    def backward(self) -> Pass:
        by_span = ("B", STATES, "spans")
        has_initial, has_final = Present("initial_state"), Present("d_final_state")
        mirrored = "mirrored_" if self.fades else "segment_"
        owed = {"r": of_each("r")} if self.fades else {}
        dq, sum_dq = summed("dq", TOKENS, "H", QUERIES, self.qk)
        dk, sum_dk = summed("dk", TOKENS, STATES, KEYS, self.qk)
        dv, sum_dv = summed("dv", TOKENS, STATES, VALUES, self.v)
        body: Steps = (
            Delegate(packed("backward"), Present(SEQUENCES.name)),
            *SIZES,
            *self.handed_over("backward"),
            Plan(
                {"segments": INTEGER, "long": TRUTH, "spans": INTEGER},
                LaunchPlan("backward", "backward", "backward_plan", TOKENS_AND_STATES, BACKWARD_PLAN),
            ),
            *self.decays.running(),
            Bind({"has_initial": has_initial}),
            Bind({"stateful": (Name("segments") > 1) | HAS_INITIAL}),
            Bind({"mirrored": STATEFUL | has_final}),
            Bind({"split": MIRRORED & (Name("spans") > 1)}),
            allocate(of_each("dq"), ("B", "T", "H", self.qk), IO),
            dq,
            *self.gradient_buffers(),
            *self.decays.owed(),
            *self.segment_sums(by_span, SPLIT),
            *self.segment_states("span_", by_span, SPLIT),
            launch("states", OVER_STATES | DENSE | {"segments": "spans", ALL: ON}, SPLIT),
            launch(
                "prefix",
                self.over_spans("initial_", None) | {"INITIAL": has_initial, "TOTAL": NEVER},
                SPLIT,
            ),
            *self.segment_states("segment_", BY_SEGMENT, MIRRORED),
            launch(
                "states_before",
                self.walk("initial_") | OVER_STATES | {"INITIAL": has_initial & ~SPLIT},
                STATEFUL,
            ),
            launch(
                "query_gradients",
                self.state("", "segment_") | DENSE | {"STATEFUL": STATEFUL, "dq": of_each("dq")} | owed,
            ),
            sum_dq,
            *self.decays.sum_owed(),
            Comment("The keys' side needs the mirrored state: the sum over the queries of later segments."),
            allocate(of_each("dk"), ("B", "T", STATES, self.qk), IO),
            dk,
            allocate(of_each("dv"), ("B", "T", STATES, self.v), IO),
            dv,
            *self.user_states("d_initial_", HAS_INITIAL),
            *(self.segment_states("mirrored_", BY_SEGMENT, MIRRORED) if self.fades else ()),
            launch("query_states", OVER_GROUPS | DENSE | {"segments": "spans", ALL: ON}, SPLIT),
            launch(
                "suffix",
                self.over_spans("d_final_", "d_initial_") | {"INITIAL": has_final, "TOTAL": HAS_INITIAL},
                SPLIT,
            ),
            launch(
                "states_after",
                self.walk("d_final_")
                | self.state("", mirrored)
                | self.state("total_", "d_initial_")
                | OVER_GROUPS
                | {"INITIAL": has_final & ~SPLIT, "TOTAL": HAS_INITIAL & ~SPLIT},
                MIRRORED,
            ),
            launch(
                "key_gradients",
                self.state("", mirrored)
                | OVER_GROUPS
                | DENSE
                | {"STATEFUL": MIRRORED, "dk": of_each("dk"), "dv": of_each("dv")},
            ),
            sum_dk,
            sum_dv,
            *self.decays.gradients(self.state("", "segment_") | self.state("mirrored_", "mirrored_")),
        )
        what = "Gradients of q, k, v and of the initial state"
        return self.backward_pass("backward", f"{what}; the states of the segments are computed again.", body)

    def recurs_back(self) -> bool:
        """Whether gradients have faster kernels, which are recurrences."""
        return "query_gradients" in self.faster

    def handed_over(self, part: str) -> Steps:
        """Hand over to those, where they serve a call and states, if any, have as many heads as outputs.

        Decays are shared by a group as states are, and owed by all its queries.
        """
        if not self.recurs_back():
            return ()
        rows = ("q", "k", "v", "do", "o") if self.normalize else ("q", "k", "v", "do")
        alike: Value = Name(STATES).equals("H")
        if not self.fades:
            alike = alike | ~(Present("initial_state") | Present("d_final_state"))
        serves = Serves(self.faster["query_gradients"].name, rows)
        return (Delegate(on_warpgroups(part), serves & alike),)

    def backward_pass(self, name: str, summary: str, body: Steps) -> Pass:
        of_decays = ("d_log_decay",) if self.fades else ()
        results = ("dq", "dk", "dv", *of_decays, "d_initial_state", "d_initial_normalizer")
        return Pass(name, summary, parameters(self.signature, "backward"), "q", body, results)

    def step(self) -> Pass:
        *most, last = (f"`{part.name}`" for part in self.signature.state)
        return Pass(
            "step",
            f"Tokens one after the other; {', '.join(most)} and {last} are updated in place.",
            parameters(self.signature, "step"),
            "q",
            (
                *SIZES,
                allocate("o", ("B", "T", "H", self.v), IO),
                steps.launch_step(self.signature.state[0].name, OVER_GROUPS),
            ),
            ("o",),
        )

    # Buffers

    def gradient_buffers(self) -> tuple[Allocate, ...]:
        """g and e, which only a normalised layer has."""
        if not self.normalize:
            return ()
        return allocate("g", ("B", "T", "H", self.v), OPERAND), allocate("e", ("B", "H", "T"), ACC)

    # Arguments

    def either(
        self,
        program: str,
        arguments: Arguments,
        when: Value | None = None,
        own: Mapping[str, Operand] = {},
        **more: Operand,
    ) -> tuple[Launch, ...]:
        """A launch, or where the program has a faster kernel, one of two; `own` and `more` are for each."""
        kernel, plain = self.faster.get(program), {**arguments, **own}
        if kernel is None:
            return (launch(program, plain, when),)
        return (
            launch(kernel.name, {**arguments, **more}, when & FAST if when else FAST),
            launch(program, plain, when & ~FAST if when else ~FAST),
        )
