"""The check of passes: shipped ones pass, each kind of bad one is refused with its message."""

from __future__ import annotations

from dataclasses import replace

import pytest

from based_ops.codegen import pipeline
from based_ops.codegen.ir.check import IllFormed
from based_ops.codegen.ir.check_host import check_pass, check_passes
from based_ops.codegen.ir.host import (
    Bind,
    Comment,
    Constant,
    Delegate,
    Either,
    Extent,
    Launch,
    LayOut,
    Literal,
    Name,
    Parameter,
    Pass,
    Plan,
    Present,
    ReadSizes,
    Serves,
    Some,
    Step,
    Steps,
    Value,
    allocate,
    launch,
)
from based_ops.codegen.ir.implies import Facts
from based_ops.codegen.ir.kernels import INTEGER, NUMBER, TRUTH, ForeignKernel, Kernel, LaunchPlan
from based_ops.codegen.ir.nodes import ACC, INDEX, IO, STATE, Var
from based_ops.codegen.ir.program import Axis, Program, Tensor
from based_ops.codegen.lower.groups import SUMS
from based_ops.codegen.spec.model import LayerSpec
from tests.conftest import SPECS

# A layer without heads and queries: y[b, t, d] from x, a weight, a gate that may be left out, and a state.

CONVOLVE = Program(
    "convolve",
    "A sample.",
    (Axis("b", Var("B")), Axis("d", Var("D"))),
    (
        Tensor("x", ("B", "T", "D"), IO, strided=True),
        Tensor("weight", ("D", 3), IO),
        Tensor("gate", ("B", "T", "D"), IO, strided=True, optional="GATED"),
        Tensor("y", ("B", "T", "D"), IO),
        Tensor("total", ("B", "D", 2), STATE, optional="TOTAL"),
    ),
    ("B", "T", "D"),
    ("scale",),
    ("GATED", "TOTAL"),
    ("CHUNK",),
    (),
)
FAST = ForeignKernel(
    "convolve_fast",
    "The same.",
    "convolve",
    "fast",
    CONVOLVE.grid,
    CONVOLVE.tensors,
    (*CONVOLVE.sizes, "segments"),
    CONVOLVE.scalars,
    CONVOLVE.flags,
    ("CHUNK",),
    decides=True,
)
KERNELS: dict[str, Kernel] = {kernel.name: kernel for kernel in (CONVOLVE, FAST)}
PLAN = LaunchPlan("forward", "forward", "convolution_plan", (("T",), ("B", "D")), ("SHORTEST",))
OTHER = LaunchPlan("forward_fast", "forward", "convolution_plan", (("T",), ("B", "D")), ("SHORTEST",), FAST)

GATE, WANTED = Present("gate"), Name("output_final_state")
SIZES = ReadSizes("x", ("B", "T", "D"))
Y = allocate("y", ("B", "T", "D"), IO)
TOTAL = allocate("total", ("B", "D", 2), STATE, WANTED)
LAUNCH = launch("convolve", {"GATED": GATE, "TOTAL": WANTED})
NAMES = ("segments", "places", "table", "bounds")
GOOD: Steps = (SIZES, Y, TOTAL, LAUNCH)


def forward(*body: Step | Comment) -> Pass:
    parameters = (
        Parameter("x"),
        Parameter("weight"),
        Parameter("gate", when=GATE),
        Parameter("scale", NUMBER),
        Parameter("output_final_state", TRUTH),
    )
    return Pass("forward", "A sample.", parameters, "x", body, ("y", "total"))


def with_launch(step: Step, *before: Step) -> Pass:
    return forward(SIZES, *before, Y, TOTAL, step)


def bound(value: Value) -> Pass:
    return forward(*GOOD, Bind({"z": value}))


def planned(plan: Plan) -> Pass:
    return forward(*GOOD, plan)


def test_a_layer_without_heads_passes() -> None:
    check_pass(forward(*GOOD), KERNELS, {})


@pytest.mark.parametrize(
    "function",
    [
        bound(Extent("x", 1) > 3),
        bound(Constant("convolve", "CHUNK") * 2),
        bound(Some(Name("T")) & ~GATE | WANTED),
        bound(Either(GATE, WANTED, Literal(False))),
        bound(Serves("convolve_fast", ("x", "weight"))),
        planned(Plan({"segments": INTEGER, "z": TRUTH}, PLAN)),
        planned(Plan({"segments": INTEGER}, PLAN, (GATE, OTHER), WANTED)),
        with_launch(launch("convolve", {"gate": None, "GATED": False, "TOTAL": WANTED})),
        with_launch(launch("convolve", {"gate": "x", "GATED": True, "TOTAL": WANTED & GATE})),
        with_launch(launch("convolve_fast", {"segments": 1, "GATED": GATE, "TOTAL": WANTED}, GATE)),
        forward(*GOOD, Comment("here")),
        # A gate and a shift are given together, so each is there if the other is.
        replace(
            with_launch(launch("convolve", {"GATED": Present("shift"), "TOTAL": WANTED})),
            parameters=(*forward().parameters, Parameter("shift", when=GATE)),
        ),
    ],
)
def test_good_passes_pass(function: Pass) -> None:
    check_pass(function, KERNELS, {})


BAD = (
    # Names
    (bound(Name("nowhere") > 1), "nowhere is read before it is there"),
    (forward(Y, SIZES, TOTAL, LAUNCH), "B is read before it is there"),
    (bound(Present("nowhere")), "nowhere is read before it is there"),
    (forward(*GOOD, Bind({"T": Literal(1)})), "T is named twice"),
    (forward(*GOOD, Y), "y is named twice"),
    (forward(*GOOD, ReadSizes("weight", ("D", None))), "D is named twice"),
    (forward(*GOOD, Bind({"z": Literal(1), "u": Name("z")})), "z is read before it is there"),
    (replace(forward(*GOOD), parameters=(Parameter("x"), Parameter("x"))), "x is named twice"),
    # Kinds
    (bound(Name("scale") > 1), ".*'scale'.* is of the kind number, where integer is wanted"),
    (bound(Name("T") & GATE), ".*'T'.* is of the kind integer, where truth is wanted"),
    (bound(~Name("x")), ".*'x'.* is of the kind tensor, where truth is wanted"),
    (bound(Some(WANTED)), ".* is of the kind truth, where integer is wanted"),
    (bound(Either(Name("T"), GATE, GATE)), ".* is of the kind integer, where truth is wanted"),
    (forward(*GOOD, allocate("z", (WANTED,), IO)), ".* is of the kind truth, where integer is wanted"),
    (forward(*GOOD, allocate("z", (), IO, Name("T"))), ".* is of the kind integer, where truth is wanted"),
    (forward(*GOOD, ReadSizes("T", ("z",))), ".*'T'.* is of the kind integer, where tensor is wanted"),
    (bound(Value()), "unknown value .*"),
    (forward(*GOOD, Step()), "unknown step .*"),
    # Tensors that are there, or not
    (replace(forward(*GOOD), leading="gate"), "reads of gate, which may be absent"),
    (replace(forward(*GOOD), leading="scale"), ".* is of the kind number, where tensor is wanted"),
    (bound(Present("x")), "asks whether x is there, which always is"),
    (bound(Extent("gate", 1)), "reads of gate, which may be absent"),
    (forward(*GOOD, ReadSizes("gate", ("z",))), "reads of gate, which may be absent"),
    (bound(Serves("convolve_fast", ("gate",))), "reads of gate, which may be absent"),
    (
        with_launch(launch("convolve", {"x": "gate", "GATED": GATE, "TOTAL": WANTED})),
        "gives convolve a x that may be absent",
    ),
    (
        with_launch(launch("convolve", {"GATED": WANTED, "TOTAL": WANTED})),
        "gives convolve a gate that may be absent",
    ),
    (
        with_launch(launch("convolve", {"gate": None, "GATED": GATE, "TOTAL": WANTED})),
        "gives convolve a gate that may be absent",
    ),
    (
        with_launch(launch("convolve", {"GATED": GATE, "TOTAL": WANTED | GATE})),
        "gives convolve a total that may be absent",
    ),
    # Launches
    (with_launch(launch("gone")), "launches gone, which is no kernel of the layer"),
    (with_launch(launch("convolve", {"TOTAL": WANTED})), "gives convolve no GATED"),
    (
        with_launch(launch("convolve_fast", {"GATED": GATE, "TOTAL": WANTED})),
        "gives convolve_fast no segments",
    ),
    (
        with_launch(replace(LAUNCH, arguments=LAUNCH.arguments | {"H": Literal(1), "ALL": GATE})),
        "gives convolve ALL, H, which it does not have",
    ),
    (
        with_launch(replace(LAUNCH, arguments=LAUNCH.arguments | {"T": Name("weight")})),
        ".*'weight'.* is of the kind tensor, where integer is wanted",
    ),
    (with_launch(replace(LAUNCH, when=Name("T"))), ".* is of the kind integer, where truth is wanted"),
    (
        forward(SIZES, allocate("y", ("B", "D", "T"), IO), TOTAL, LAUNCH),
        "gives convolve as y y, of another shape or dtype",
    ),
    (
        forward(SIZES, allocate("y", ("B", "T", "D"), ACC), TOTAL, LAUNCH),
        "gives convolve as y y, of another shape or dtype",
    ),
    (
        forward(SIZES, Y, allocate("total", ("B", "D", 3), STATE, WANTED), LAUNCH),
        "gives convolve as total total, of another shape or dtype",
    ),
    (
        with_launch(replace(LAUNCH, arguments=LAUNCH.arguments | {"T": Name("B")})),
        "gives convolve as y y, of another shape or dtype",
    ),
    (forward(*GOOD, allocate("z", (), INDEX)), "z has no dtype index"),
    (forward(*GOOD, allocate("z", ("B", "D"), IO, apart_from="x")), "z has no tokens to be apart from x"),
    # Plans, choices, constants
    (
        planned(Plan({"z": INTEGER}, replace(PLAN, part="step"))),
        "is planned by forward, which is for the pass step",
    ),
    (
        planned(Plan({"z": INTEGER}, PLAN, (GATE, replace(OTHER, constants=())))),
        "forward_fast is no plan like forward",
    ),
    (
        planned(Plan({"z": INTEGER}, PLAN, (GATE, replace(OTHER, function="f")))),
        "forward_fast is no plan like forward",
    ),
    (
        planned(Plan({"z": INTEGER}, replace(PLAN, sizes=(("x", "T"),)))),
        "is planned by .*, which is no integer, tensor or truth",
    ),
    (
        planned(Plan({"z": INTEGER}, PLAN, when=Name("T"))),
        ".* is of the kind integer, where truth is wanted",
    ),
    (bound(Constant("convolve", "KEYS")), "reads the constant KEYS of convolve, which is not there"),
    (bound(Constant("gone", "CHUNK")), "reads the constant CHUNK of gone, which is not there"),
    (bound(Serves("convolve", ("x",))), "asks whether convolve serves, which decides nothing"),
    (forward(*GOOD, LayOut("gate", Name("T"), Literal(16), NAMES)), "reads of gate, which may be absent"),
    (forward(*GOOD, LayOut("x", Name("scale"), Literal(16), NAMES)), ".* where integer is wanted"),
    (forward(*GOOD, LayOut("x", Name("T"), Literal(16), ("x", *NAMES[1:]))), "x is named twice"),
    # Results and other passes
    (forward(SIZES, Y), "returns total, which it does not allocate"),
    (replace(forward(*GOOD), results=("y", "x")), "returns x, which it does not allocate"),
    (forward(Delegate("gone", GATE), *GOOD), "calls gone, which is no pass before it"),
    (forward(Delegate("fewer", GATE), *GOOD), "calls fewer, which has other results"),
    (forward(Delegate("other", GATE), *GOOD), "calls other, which has other part"),
    (forward(Delegate("called", Name("scale")), *GOOD), ".* is of the kind number, where truth is wanted"),
)
OTHERS = {
    "called": replace(forward(*GOOD), name="called", instead_of="forward"),
    "fewer": replace(forward(*GOOD), name="fewer", instead_of="forward", results=("y",)),
    "other": replace(forward(*GOOD), name="other"),
}


@pytest.mark.parametrize(
    ("function", "message"), BAD, ids=lambda value: value if isinstance(value, str) else ""
)
def test_bad_passes_are_refused(function: Pass, message: str) -> None:
    with pytest.raises(IllFormed, match=f"^forward: {message}$"):
        check_pass(function, KERNELS, OTHERS)


def test_a_pass_stands_after_those_that_it_calls() -> None:
    calling = forward(Delegate("called", GATE), *GOOD)
    check_passes((OTHERS["called"], calling), KERNELS.values())
    with pytest.raises(IllFormed, match="calls called, which is no pass before it"):
        check_passes((calling, OTHERS["called"]), KERNELS.values())


A, B, C = Name("a"), Name("b"), Name("c")


@pytest.mark.parametrize(
    ("wanted", "given", "follows"),
    [
        (A, (A,), True),
        (A, (A & B,), True),
        (A, (A | B,), False),
        (A, (), False),
        (A | B, (B,), True),
        (A & B, (B,), False),
        (A & B, (B, A), True),
        (A | C, ((A & B) | C,), True),
        (A, (B | A, ~B), True),
        (A, (Literal(False),), True),
        (A, (B, ~B), True),
        (Literal(True), (), True),
        (Literal(False), (A,), False),
        (Either(A, B, C), (B, C), True),
        (Either(A, B, C), (A, B), True),
        (Either(A, B, C), (B,), False),
        (B | C, (Either(A, B, C),), True),
        (B, (Either(A, B, C), A), True),
        (~A, (A,), False),
        (~A, (~A & B,), True),
    ],
    ids=str,
)
def test_what_follows(wanted: Value, given: tuple[Value, ...], follows: bool) -> None:
    assert Facts().follows(wanted, given) == follows
    named = Facts(meanings={"wanted": wanted, "both": Literal(True)})
    assert named.follows(Name("wanted"), given) == follows
    assert named.follows(Name("wanted") & "both", given) == follows


def _specs() -> list[LayerSpec]:
    return list(pipeline.load(SPECS).values())


@pytest.mark.parametrize("spec", _specs(), ids=lambda spec: spec.name)
def test_every_step_of_a_shipped_pass_is_needed(spec: LayerSpec) -> None:
    """Without an allocation, an argument, or a name a pass is refused: the check sees them all.

    But for two: a layer that corrects its values gives these to programs that would take `v` itself as well,
    and parts of a head are added up as a group, whether heads are in groups or not.
    """
    either = "v" if getattr(spec, "corrects", False) else ""
    lowered = pipeline.lower(spec)
    kernels = {kernel.name: kernel for kernel in pipeline.kernels(lowered, "triton")}
    passes = pipeline.passes_of(lowered, "triton")
    check_passes(passes, kernels.values())
    others = {part.name: part for part in passes}
    for part in passes:
        for i, step in enumerate(part.body):
            fewer = [(*part.body[:i], *part.body[i + 1 :])]
            if isinstance(step, Launch):
                arguments = step.arguments
                fewer = [
                    (*part.body[:i], replace(step, arguments=less), *part.body[i + 1 :])
                    for less in (
                        {k: v for k, v in arguments.items() if k != name}
                        for name in arguments
                        if name != either and (step.kernel, name) != (SUMS, "GROUPED")
                    )
                    if any(value != Name(name) for name, value in arguments.items() if name not in less)
                ]
            elif isinstance(step, Comment | Delegate):
                continue
            for body in fewer:
                with pytest.raises(IllFormed):
                    check_pass(replace(part, body=body), kernels, others)
