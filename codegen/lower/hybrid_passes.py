"""The host side of hybrid layers: which kernels run, on which buffers, and under which condition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..ir.host import (
    Allocate,
    Bind,
    Delegate,
    Launch,
    Name,
    Operand,
    Pass,
    Plan,
    Present,
    Serves,
    Steps,
    Value,
    allocate,
    launch,
)
from ..ir.kernels import INTEGER, TRUTH, ForeignKernel, LaunchPlan
from ..ir.nodes import ACC, IO, OPERAND, Comment
from ..memory.hybrid import GIVEN, Recent
from ..memory.hybrid_windowed import AGE, SHIFT
from ..mixers.hybrid import Hybrid
from ..names import on_warpgroups, packed
from ..spec.signature import SEQUENCES
from . import groups, steps
from .feature_maps import feature_map
from .groups import OVER_GROUPS, OVER_STATES, SIZES, STATES, of_each, summed
from .hybrid_parts import BY_GRADIENTS
from .hybrid_tokens import COUNT, FIRSTS, PADDED
from .linear_attention_passes import BACKWARD_PLAN
from .parameters import parameters
from .ragged import ALL, BEGUN, DENSE
from .sliding_window_passes import TOKENS_OF_KEYS
from .state_steps import NEVER, ON, SPLIT, StateSteps

RING_START = Recent.first
STATEFUL, MIRRORED = Name("stateful"), Name("mirrored")
HAS_INITIAL = Name("has_initial")
FINAL = Name("output_final_state")
FIRST_KEYS: dict[str, Operand] = {PADDED: Present(RING_START)}
"""What programs get that read the first key of a sequence, and those that may have several in a batch."""
OF_KEYS = FIRST_KEYS | DENSE | {BEGUN: NEVER, COUNT: None, FIRSTS[1].name: None}
COPIED = ("q", "k", "v")
"""What the faster kernel copies, and so asks where it lies."""
Gradients = tuple[tuple[Allocate, Launch], ...]
BY_SEGMENT, BY_SPAN = ("B", STATES, "segments"), ("B", STATES, "spans")


def passes(spec: Hybrid, faster: Mapping[str, ForeignKernel]) -> tuple[Pass, ...]:
    """forward, backward and step of a layer; `faster` are kernels by the programs in whose place they run."""
    from . import hybrid_packed, hybrid_stream_passes

    layer, kernel = Passes(spec), faster.get("outputs")
    streams = (hybrid_stream_passes.several, hybrid_stream_passes.forward) if kernel else ()
    streamed = [made(layer, faster) for made in streams]
    several = hybrid_packed.forward(layer, kernel), hybrid_packed.backward(layer)
    return *streamed, several[0], layer.forward(kernel), several[1], layer.backward(), layer.step()


class Passes(StateSteps):
    """The extents of one layer's buffers, and the steps that its passes share."""

    def __init__(self, spec: Hybrid) -> None:
        super().__init__(feature_map(spec).rows, spec.head_dims.v, STATES, normalize=True)
        self.qk, self.window = spec.head_dims.qk, spec.window
        self.names, self.adds, self.windowed = spec.factors, spec.combine == "sum", spec.rescale == "window"
        self.own_qk, self.signature = spec.window_qk, spec.signature()
        self.given: dict[str, Operand] = {GIVEN[name]: Present(name) for name in self.names}
        states = self.state("", "segment_")
        self.read = states | self.given
        stored = (name for name in self.names if name in BY_GRADIENTS)
        self.read_by_key = states | {GIVEN[name]: Present(name) for name in stored}

    def forward(self, kernel: ForeignKernel | None = None) -> Pass:
        """By programs over chunks, or one over segments where there is a `kernel` for that."""
        running = STATEFUL | FINAL
        body: Steps = (
            Delegate(packed("forward"), Present(SEQUENCES.name)),
            *SIZES,
            TOKENS_OF_KEYS,
            *(self.handed_over(kernel) if kernel else ()),
            *self.plan("forward"),
            Bind({"running": running}),
            Bind({"split": Name("running") & (Name("spans") > 1)}),
            allocate("o", ("B", "T", "H", self.v), IO),
            *self.kept(),
            *self.user_states("final_", FINAL),
            *self.states(Name("running"), FINAL),
            launch("outputs", self.read | OF_KEYS | {"STATEFUL": STATEFUL}),
        )
        return self.forward_pass(body)

    def handed_over(self, kernel: ForeignKernel) -> Steps:
        """Hand over to the one that goes through segments, of keys that reach back no further than a ring."""
        further = Name("Tk") > Name("T") + self.window
        return (Delegate(on_warpgroups("forward"), Serves(kernel.name, COPIED) & ~further),)

    def forward_pass(self, body: Steps) -> Pass:
        return Pass(
            "forward",
            "Outputs, logarithms of the sums of weights, and the state of the keys that have left.",
            parameters(self.signature, "forward"),
            "q",
            body,
            ("o", *(x.name for x in self.kept()), "final_state", "final_normalizer"),
        )

    def backward(self) -> Pass:
        has_final = Present("d_final_state")
        gradients = self.gradients()
        by_query, by_key = self.of_each(gradients)
        body: Steps = (
            Delegate(packed("backward"), Present(SEQUENCES.name)),
            *SIZES,
            TOKENS_OF_KEYS,
            *self.plan("backward"),
            Bind({"mirrored": STATEFUL | has_final}),
            Bind({"split": MIRRORED & (Name("spans") > 1)}),
            *self.states(STATEFUL, None, room=MIRRORED),
            *self.buffers(gradients),
            allocate("g", ("B", "T", "H", self.v), OPERAND),
            allocate("e", ("B", "H", "T"), ACC),
            *self.of_rows(),
            launch("query_gradients", self.read | OF_KEYS | by_query | {"STATEFUL": STATEFUL}),
            Comment("The keys' side needs the mirrored state: the sum over the queries of later segments."),
            *self.user_states("d_initial_", HAS_INITIAL),
            launch("query_states", OVER_GROUPS | DENSE | {"segments": "spans", ALL: ON}, SPLIT),
            launch(
                "suffix",
                self.over_spans("d_final_", "d_initial_") | {"INITIAL": has_final, "TOTAL": HAS_INITIAL},
                SPLIT,
            ),
            launch(
                "states_after",
                OVER_GROUPS
                | self.walk("d_final_")
                | self.state("total_", "d_initial_")
                | {"INITIAL": has_final & ~SPLIT, "TOTAL": HAS_INITIAL & ~SPLIT},
                MIRRORED,
            ),
            launch(
                "key_gradients",
                OVER_GROUPS | self.read_by_key | OF_KEYS | by_key | {"STATEFUL": MIRRORED},
            ),
            *(sums for _, sums in gradients),
            *self.factor_gradients(),
        )
        return Pass(
            "backward",
            "Gradients of q, k, v and of the initial state; the states of the segments are computed again.",
            parameters(self.signature, "backward"),
            "q",
            body,
            (
                "dq",
                "dk",
                "dv",
                *(("dq_window", "dk_window") if self.own_qk else ()),
                *(f"d_{x}" for x in self.names),
                "d_initial_state",
                "d_initial_normalizer",
            ),
        )

    def step(self) -> Pass:
        return Pass(
            "step",
            "Tokens one after the other; the ring and the state are updated in place.",
            parameters(self.signature, "step"),
            "q",
            (
                *SIZES,
                allocate("o", ("B", "T", "H", self.v), IO),
                steps.launch_step("ring_k", OVER_GROUPS | self.given),
            ),
            ("o",),
        )

    # Pieces

    def plan(self, part: str) -> Steps:
        """Into how many segments a pass cuts the sequence, and whether a chunk reads states of them."""
        plan = LaunchPlan(part, part, "backward_plan", (("T",), ("B", STATES)), BACKWARD_PLAN)
        results = {"segments": INTEGER, "long": TRUTH, "spans": INTEGER}
        several = (Name("segments") > 1) & (Name("T") > self.window)
        return (
            Plan(results, plan),
            Bind({"has_initial": Present("initial_state")}),
            Bind({"stateful": several | HAS_INITIAL}),
        )

    def states(self, when: Value, total: Value | None, room: Value | None = None) -> Steps:
        """The state before each segment of older keys, and after the last of them where `total` asks for it.

        There is `room` for states, if not only `when` they are computed.
        """
        final, asked = (None, NEVER) if total is None else ("final_", total)
        return (
            *self.segment_sums(BY_SPAN, SPLIT),
            *self.segment_states("span_", BY_SPAN, SPLIT),
            launch("states", OF_KEYS | OVER_STATES | {"segments": "spans", ALL: ON}, SPLIT),
            launch(
                "prefix",
                self.over_spans("initial_", final) | {"INITIAL": HAS_INITIAL, "TOTAL": asked},
                SPLIT,
            ),
            *self.segment_states("segment_", BY_SEGMENT, when if room is None else room),
            launch(
                "states_before",
                FIRST_KEYS
                | OVER_STATES
                | self.walk("initial_")
                | self.state("total_", final)
                | {"INITIAL": HAS_INITIAL & ~SPLIT, "TOTAL": asked & ~SPLIT},
                when,
            ),
        )

    # Buffers

    def gradients(self) -> Gradients:
        """Those of inputs with tokens, and their sums over groups of heads."""
        queries, keys = ("B", "T"), ("B", "Tk")
        own = (
            (
                summed("dq_window", queries, "H", groups.QUERIES, self.own_qk),
                summed("dk_window", keys, STATES, groups.KEYS, self.own_qk),
            )
            if self.own_qk
            else ()
        )
        return (
            summed("dq", queries, "H", groups.QUERIES, self.qk),
            summed("dk", keys, STATES, groups.KEYS, self.qk),
            summed("dv", keys, STATES, groups.VALUES, self.v),
            *own,
        )

    def of_each(self, gradients: Gradients) -> tuple[dict[str, Operand], dict[str, Operand]]:
        """What the programs of queries and of keys store in place of these, for each head."""
        each: list[dict[str, Operand]] = [{}, {}]
        for gradient, _ in gradients:
            each[not gradient.name.startswith("dq")][gradient.name] = of_each(gradient.name)
        return each[0], each[1]

    def of_rows(self, apart_from: str | None = None) -> Steps:
        """Numbers of each query that keys, and factors, read."""
        rows = ("B", "H", "T")
        owed = (allocate(f"{x}_rows", rows, ACC, Present(x)) for x in self.names)
        return (
            allocate("delta_rows", rows, ACC),
            *(allocate(x, rows, ACC) for x in (SHIFT, AGE) if self.windowed),
            *(replace(x, apart_from=apart_from) for x in owed),
        )

    def factor_gradients(self) -> Steps:
        """Sums over all queries."""
        return (
            *(allocate(f"d_{x}", ("H",), ACC, Present(x)) for x in self.names),
            *(
                launch("factor_gradients", {"owed_rows": f"{x}_rows", "gradient": f"d_{x}"}, Present(x))
                for x in self.names
            ),
        )

    def buffers(self, gradients: Gradients, apart_from: str | None = None) -> Steps:
        """Gradients of each head, and those of groups."""
        each = (
            allocate(of_each(x.name), (*x.shape[:2], sums.arguments[groups.EVERY], x.shape[3]), IO)
            for x, sums in gradients
        )
        each = (replace(x, apart_from=apart_from) for x in each)
        return (*each, *(x for x, _ in gradients))

    def kept(self) -> tuple[Allocate, ...]:
        """What a forward pass keeps of each query besides o."""
        numbers, rows = ("B", "H", "T"), ("B", "T", "H", self.v)
        lse, n = allocate("lse", numbers, ACC), allocate("n", numbers, ACC)
        if self.windowed:
            return (lse, n)
        if not self.adds:
            return (lse,)
        return (lse, n, *(allocate(name, rows, IO) for name in ("o_window", "o_linear")))
