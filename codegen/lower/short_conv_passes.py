"""The host side of a short convolution: in tiles or in walks, of batches or of packed sequences."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..dtypes import ACC, IO
from ..ir.host import (
    Delegate,
    Name,
    Operand,
    Pass,
    Plan,
    Present,
    ReadSizes,
    Step,
    Steps,
    allocate,
    launch,
)
from ..ir.kernels import INTEGER, TENSOR, TRUTH, LaunchPlan
from ..mixers.short_conv import ShortConv
from ..names import packed
from ..spec.signature import SEQUENCES
from . import steps
from .parameters import over_sequences, parameters
from .ragged import TABLE
from .short_conv_parts import SIZES, TOKENS
from .short_conv_tokens import DENSE, PACKED, STATES, Tokens

STREAM_PLAN = ("TILED", "SHORTEST", "LANES")
"""Constants of `based_ops.support.host.stream_plan`."""
WALKS = Name("walks")
BIAS, GATE, BEFORE = (Present(name) for name in ("bias", "gate", "before"))


def passes(spec: ShortConv) -> tuple[Pass, ...]:
    """forward, backward and step of a layer, and the first two of packed sequences."""
    dense, several = Passes(spec, DENSE), Passes(spec, PACKED)
    return (
        over_sequences(several.forward()),
        dense.forward(),
        over_sequences(several.backward()),
        dense.backward(),
        dense.step(),
    )


@dataclass(frozen=True)
class Passes:
    """Those over some tokens."""

    spec: ShortConv
    tokens: Tokens

    @property
    def biased(self) -> dict[str, Operand]:
        return {"BIAS": BIAS} if self.spec.bias else {}

    @property
    def flags(self) -> dict[str, Operand]:
        return self.biased | ({"GATED": GATE} if self.spec.gate else {})

    def forward(self) -> Pass:
        tokens, flags = self.tokens, self.flags | {"INITIAL": BEFORE}
        body: Steps = (
            *self.begin("forward"),
            allocate("y", TOKENS, IO),
            launch(tokens.name("walk"), flags, WALKS),
            launch(tokens.name("outputs"), flags, ~WALKS),
        )
        return self.function("forward", "Outputs.", body, ("y",))

    def backward(self) -> Pass:
        tokens, flags, width = self.tokens, self.flags | {"INITIAL": BEFORE}, self.spec.width
        # Before a sequence without tokens no segment stores any.
        zeros = tokens is PACKED
        body: Steps = (
            *self.begin("backward"),
            allocate("dx", TOKENS, IO),
            allocate("dgate", TOKENS, IO, GATE),
            allocate("dbefore", (tokens.states, width - 1, "D"), IO, BEFORE, zeros=zeros),
            allocate("tap_sums", ("B", "segments", width, "D"), ACC),
            *((allocate("bias_sums", ("B", "segments", "D"), ACC, BIAS),) if self.spec.bias else ()),
            launch(tokens.name("walk_back"), flags, WALKS),
            allocate("r", TOKENS, IO, ~WALKS),
            launch(tokens.name("gradients"), flags, ~WALKS),
            launch(tokens.name("input_gradients"), {}, ~WALKS),
            launch(tokens.name("earlier_gradients"), {}, ~WALKS & BEFORE),
            allocate("dweight", ("D", width), IO),
            allocate("dbias", ("D",), IO, BIAS),
            launch("tap_gradients", self.biased),
        )
        summary = "Gradients of x, of the taps, the bias and the gate, and of the inputs before the first."
        return self.function("backward", summary, body, ("dx", "dweight", "dbias", "dgate", "dbefore"))

    def step(self) -> Pass:
        return Pass(
            "step",
            "Tokens one after the other; `state` is updated in place.",
            parameters(self.spec.signature(), "step"),
            "x",
            (
                ReadSizes("x", SIZES),
                allocate("y", TOKENS, IO),
                steps.launch_step("state", self.flags),
            ),
            ("y",),
        )

    def function(self, part: str, summary: str, body: Steps, results: tuple[str, ...]) -> Pass:
        if self.tokens is PACKED:
            summary = f"`{part}` of packed sequences, which `sequences` [N,2] says where to find."
        return Pass(part, summary, parameters(self.spec.signature(), part), "x", body, results)

    def begin(self, part: str) -> tuple[Step, ...]:
        """In how many segments a pass goes through the tokens, and in which of the two forms."""
        sizes, tokens_and_lanes = ReadSizes("x", SIZES), (("T",), ("B", "D"))
        plan = LaunchPlan(self.tokens.name(part), part, "stream_plan", tokens_and_lanes, STREAM_PLAN)
        results = {"segments": INTEGER, "walks": TRUTH}
        if self.tokens is DENSE:
            delegate = Delegate(packed(part), Present(SEQUENCES.name))
            return delegate, sizes, Plan(results, plan)
        given = (SEQUENCES.name,), *tokens_and_lanes
        plan = replace(plan, function="packed_stream_plan", sizes=given)
        counted = ReadSizes(SEQUENCES.name, (STATES, None))
        return sizes, counted, Plan(results | {TABLE.name: TENSOR}, plan)
