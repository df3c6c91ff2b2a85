"""The host side of a state space: of a batch of sequences, and of packed ones in one token axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..dtypes import ACC, IO
from ..ir.host import (
    Call,
    Delegate,
    Launch,
    Name,
    Operand,
    Pass,
    Plan,
    Present,
    ReadSizes,
    Steps,
    Value,
    allocate,
    launch,
)
from ..ir.kernels import TRUTH, LaunchPlan
from ..mixers.state_space import StateSpace
from ..names import by_fourier, packed
from ..spec.signature import SEQUENCES
from . import steps
from .parameters import over_sequences, parameters
from .state_space_chunk_passes import CHUNKED, FINAL, INITIAL, LAST, SKIP, ChunkSteps


def passes(spec: StateSpace) -> tuple[Pass, ...]:
    """forward, backward and step of a layer, and the first two of packed sequences."""
    several, one = (Passes(spec, several) for several in (True, False))
    forward, backward = one.forward(), one.backward()
    others = () if spec.shared else (by_fourier_of(forward), by_fourier_of(backward))
    return *others, several.forward(), forward, several.backward(), backward, one.step()


def by_fourier_of(function: Pass) -> Pass:
    """A pass by Fourier transforms, which the one of its part calls."""
    part = function.name
    call = Call(f"fourier_{part}", function.results)
    summary = f"`{part}` by Fourier transforms."
    return replace(function, name=by_fourier(part), summary=summary, body=(call,), instead_of=part)


@dataclass(frozen=True)
class Passes:
    """Those of one layer, of `several` packed sequences or of one a batch entry."""

    spec: StateSpace
    several: bool

    @property
    def count(self) -> str:
        """How many states there are."""
        return "N" if self.several else "B"

    @property
    def sequences(self) -> str | None:
        return SEQUENCES.name if self.several else None

    @property
    def chunks(self) -> ChunkSteps | None:
        """The steps in chunks, which channels that share filters have."""
        return ChunkSteps(self.spec, self.several) if self.spec.shared else None

    @property
    def walks(self) -> Value | None:
        """Where token by token is the way."""
        return ~CHUNKED if self.chunks else None

    @property
    def tokens(self) -> tuple[Operand, ...]:
        return ("B", "T", *self.spec.units)

    @property
    def state(self) -> tuple[Operand, ...]:
        return (self.count, self.spec.modes, *self.spec.units, 2)

    def forward(self) -> Pass:
        body: Steps = (
            *self.begin("forward"),
            allocate("y", self.tokens, IO, apart_from=self.sequences),
            allocate("final_state", self.state, ACC, FINAL),
            self.walked("walk", {"SKIP": SKIP, "INITIAL": INITIAL, "FINAL": FINAL}),
            *(self.chunks.forward() if self.chunks else ()),
        )
        summary = "Outputs, and the state after the last token if it is asked for."
        return self.called("forward", summary, body, ("y", "final_state"))

    def backward(self) -> Pass:
        units, modes = self.spec.units, self.spec.modes
        flags = {"SKIP": SKIP, "INITIAL": INITIAL, "FINAL": LAST}
        body: Steps = (
            *self.begin("backward"),
            allocate("dx", self.tokens, IO, apart_from=self.sequences),
            allocate("d_initial_state", self.state, ACC, INITIAL),
            allocate("dlog_decay", (modes, units[0]), ACC),
            allocate("dangle", (modes, units[0]), ACC),
            allocate("dresidues", (modes, units[0], 2), ACC),
            allocate("dskip", units, ACC, SKIP),
            self.walked("walk_back", flags),
            allocate("mode_parts", (self.count, modes, *units, 4), ACC, self.walks),
            allocate("skip_parts", (self.count, *units), ACC, self.also(SKIP)),
            self.walked("mode_sums", flags),
            launch("mode_gradients", {"N": Name(self.count)}, self.walks),
            launch("skip_gradients", {"N": Name(self.count)}, self.also(SKIP)),
            *(self.chunks.backward() if self.chunks else ()),
        )
        results = ("dx", "dlog_decay", "dangle", "dresidues", "dskip", "d_initial_state")
        return self.called("backward", "Gradients of all inputs and of the initial state.", body, results)

    def step(self) -> Pass:
        return Pass(
            "step",
            "Tokens one after the other; `state` is updated in place.",
            parameters(self.spec.signature(), "step"),
            "x",
            (
                self.sizes,
                allocate("y", self.tokens, IO),
                steps.launch_step("state", {"SKIP": SKIP}),
            ),
            ("y",),
        )

    # Steps

    @property
    def sizes(self) -> ReadSizes:
        shared = (None,) if self.spec.shared else ()
        return ReadSizes("x", ("B", "T", str(self.spec.units[0]), *shared))

    def begin(self, part: str) -> Steps:
        """Sizes, the plan of chunks, and poles of walks."""
        sizes: Steps = (Delegate(packed(part), Present(SEQUENCES.name)), self.sizes)
        if self.several:
            sizes = self.sizes, ReadSizes(SEQUENCES.name, ("N", None))
        plan: Steps = ()
        if self.chunks:
            plan = self.chunks.plan(part)
        elif not self.several:
            by = LaunchPlan(part, part, "fourier_plan", (("T",), ("B", "D")), ("LEAST", "LANES"))
            plan = Plan({"fourier": TRUTH}, by), Delegate(by_fourier(part), Name("fourier"))
        found = allocate("found_poles", (self.spec.modes, self.spec.units[0], 4), ACC, self.walks)
        return *sizes, *plan, found, launch("poles", {}, self.walks)

    def walked(self, program: str, flags: Mapping[str, Operand]) -> Launch:
        return launch(packed(program) if self.several else program, flags, self.walks)

    def also(self, condition: Value) -> Value:
        """A condition of steps that are for walks."""
        return condition if self.walks is None else self.walks & condition

    def called(self, part: str, summary: str, body: Steps, results: tuple[str, ...]) -> Pass:
        """A pass; that of packed sequences is one that the other calls."""
        if self.several:
            summary = f"`{part}` of packed sequences, which `sequences` [N,2] says where to find."
        found = Pass(part, summary, parameters(self.spec.signature(), part), "x", body, results)
        return over_sequences(found) if self.several else found
