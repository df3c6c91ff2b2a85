"""The host side of a long convolution: lag by lag or by Fourier transforms, also of packed sequences."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..dtypes import ACC, IO
from ..ir.host import (
    Call,
    Constant,
    Delegate,
    LayOut,
    Name,
    Operand,
    Pass,
    Plan,
    Present,
    ReadSizes,
    Steps,
    allocate,
    launch,
)
from ..ir.kernels import INTEGER, TRUTH, LaunchPlan
from ..ir.nodes import Comment
from ..mixers.long_conv import TAPS, LongConv
from ..names import by_fourier, packed
from ..spec.signature import SEQUENCES
from . import steps
from .long_conv_parts import PARTS
from .parameters import over_sequences, parameters
from .ragged import BOUNDS, TABLE

SKIP, GATE, BEFORE = (Present(name) for name in ("skip", "gate", "before"))
RESULTS = ("du", "dfilters", "dskip", "dgate", "dbefore")


def passes(spec: LongConv) -> tuple[Pass, ...]:
    """forward, backward and step of a layer; the first two also by transforms, and of packed sequences."""
    several, one = Passes(spec, True), Passes(spec, False)
    return (
        one.forward_by_fourier(),
        one.backward_by_fourier(),
        several.forward(),
        one.forward(),
        several.backward(),
        one.backward(),
        one.step(),
    )


@dataclass(frozen=True)
class Passes:
    """Those of one layer, of `several` packed sequences or of one a batch entry."""

    spec: LongConv
    several: bool

    @property
    def tokens(self) -> tuple[Operand, ...]:
        return ("B", "T", *self.spec.units)

    @property
    def flags(self) -> dict[str, Operand]:
        return {"SKIP": SKIP, **self.gated}

    @property
    def gated(self) -> dict[str, Operand]:
        return {"GATED": GATE} if self.spec.gate else {}

    @property
    def sequences(self) -> str | None:
        return SEQUENCES.name if self.several else None

    def forward(self) -> Pass:
        body: Steps = (
            *self.begin("forward", "outputs"),
            allocate("y", self.tokens, IO, apart_from=self.sequences),
            launch(self.name("outputs"), {**self.flags, "INITIAL": BEFORE}),
        )
        return self.called("forward", "Outputs.", body, ("y",))

    def backward(self) -> Pass:
        spec, unit = self.spec, self.spec.units[0]
        count = "N" if self.several else "B"
        initial: dict[str, Operand] = {"INITIAL": BEFORE}
        of_gate: Steps = (
            allocate("dgate", self.tokens, IO, GATE, apart_from=self.sequences),
            *((launch(self.name("gate_gradients"), {"SKIP": SKIP, **initial}, GATE),) if spec.gate else ()),
        )
        body: Steps = (
            *self.begin("backward", "input_gradients"),
            allocate("du", self.tokens, IO, apart_from=self.sequences),
            launch(self.name("input_gradients"), self.flags),
            *of_gate,
            allocate("dbefore", (count, spec.length, *spec.units), IO, BEFORE),
            launch(self.name("earlier_gradients"), self.gated, BEFORE),
            Comment("Parts of the tokens are summed up side by side."),
            *self.parts(),
            allocate("filter_parts", ("B", "parts", TAPS, unit), ACC),
            launch(self.name("filter_gradients"), self.gated | initial),
            allocate("dfilters", (TAPS, unit), ACC),
            launch("filter_sums", {}),
            allocate("skip_parts", ("B", "parts", *spec.units), ACC, SKIP),
            launch(self.name("skip_gradients"), self.gated, SKIP),
            allocate("dskip", spec.units, ACC, SKIP),
            launch("skip_sums", {}, SKIP),
        )
        summary = "Gradients of u, of the filters, of skip and gate, and of the inputs before the first."
        return self.called("backward", summary, body, RESULTS)

    def forward_by_fourier(self) -> Pass:
        body: Steps = (
            self.size,
            Call("convolution_forward", ("sums",)),
            allocate("y", self.tokens, IO),
            launch("finished", self.flags),
        )
        return self.by_fourier("forward", body, ("y",))

    def backward_by_fourier(self) -> Pass:
        return self.by_fourier("backward", (Call("convolution_backward", RESULTS),), RESULTS)

    def by_fourier(self, part: str, body: Steps, results: tuple[str, ...]) -> Pass:
        """A pass by Fourier transforms, which the one of its part calls."""
        found = self.called(part, f"`{part}` by Fourier transforms.", body, results)
        return replace(found, name=by_fourier(part), instead_of=part)

    def step(self) -> Pass:
        return Pass(
            "step",
            "Tokens one after the other; `history` and `oldest` are updated in place.",
            parameters(self.spec.signature(), "step"),
            "u",
            (*self.sizes, allocate("y", self.tokens, IO), steps.launch_step("history", self.flags)),
            ("y",),
        )

    # Steps

    @property
    def size(self) -> ReadSizes:
        """That of what is convolved."""
        shared = (None,) if self.spec.shared else ()
        return ReadSizes("u", ("B", "T", str(self.spec.units[0]), *shared))

    @property
    def sizes(self) -> Steps:
        return self.size, ReadSizes("filters", (TAPS, None))

    def begin(self, part: str, program: str) -> Steps:
        """Sizes, and which of the ways is taken; segments of packed sequences are tiles of a program."""
        if self.several:
            counted = ReadSizes(SEQUENCES.name, ("N", None))
            names = ("segments", "places", TABLE.name, BOUNDS.name)
            tile = Constant(packed(program), "CHUNK")
            return *self.sizes, counted, LayOut(SEQUENCES.name, Name("T"), tile, names)
        plan = LaunchPlan(part, part, "transform_plan", (("T",), (TAPS,)), ("LEAST",))
        return (
            Delegate(packed(part), Present(SEQUENCES.name)),
            *self.sizes,
            Plan({"fourier": TRUTH}, plan),
            Delegate(by_fourier(part), Name("fourier")),
        )

    def parts(self) -> Steps:
        """Into how many parts gradients that are sums over all tokens cut them, and where those lie."""
        name = packed("parts") if self.several else "parts"
        sizes = (("T",), ("B", str(self.spec.units[0])))
        plan = LaunchPlan(name, "backward", "sum_plan", sizes, ("LENGTH", "LANES"))
        if not self.several:
            return (Plan({"parts": INTEGER, "length": INTEGER}, plan),)
        names = ("parts", "part_places", PARTS.name, "part_bounds")
        lay_out = LayOut(SEQUENCES.name, Name("T"), Name("length"), names)
        return Plan({"most": INTEGER, "length": INTEGER}, plan), lay_out

    def name(self, program: str) -> str:
        return packed(program) if self.several else program

    def called(self, part: str, summary: str, body: Steps, results: tuple[str, ...]) -> Pass:
        if self.several:
            summary = f"`{part}` of packed sequences, which `sequences` [N,2] says where to find."
        found = Pass(part, summary, parameters(self.spec.signature(), part), "u", body, results)
        return over_sequences(found) if self.several else found
