"""Passes as text: every step and value, of a layer that has no heads, no queries and no parameter q."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from textwrap import dedent

import pytest

from based_ops.codegen import pipeline
from based_ops.codegen.emit.host import emit_passes, host_helpers, used_helpers
from based_ops.codegen.emit.layer import ScheduledForeign, ScheduledKernel, ScheduledLayer
from based_ops.codegen.emit.writer import Writer
from based_ops.codegen.ir.check_host import check_passes
from based_ops.codegen.ir.host import (
    Bind,
    Constant,
    Delegate,
    Either,
    Extent,
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
    allocate,
    launch,
)
from based_ops.codegen.ir.kernels import INTEGER, NUMBER, TRUTH, ForeignKernel, LaunchPlan
from based_ops.codegen.ir.nodes import ACC, IO, OPERAND, STATE, Comment, Var
from based_ops.codegen.ir.program import Axis, Tensor
from based_ops.codegen.mixers.linear_attention import LinearAttention
from based_ops.codegen.schedule.model import Schedule
from based_ops.codegen.spec.model import HeadDims, TaylorExp
from tests.conftest import SPECS

SPEC = LinearAttention("sample", TaylorExp(1), HeadDims(16, 16), state_dtype="bfloat16")
KERNEL = ForeignKernel(
    "convolve",
    "A sample.",
    "",
    "",
    (Axis("b", Var("B")),),
    (
        Tensor("x", ("B", "T", "D"), IO, strided=True),
        Tensor("gate", ("B", "T", "D"), IO, optional="GATED"),
        Tensor("y", ("B", "T", "D"), IO),
    ),
    ("B", "T", "D"),
    ("scale",),
    ("GATED",),
    ("CHUNK",),
    decides=True,
)
SIZES = (("T",), ("B", "D"))
PLAN = LaunchPlan("forward", "forward", "convolution_plan", SIZES, ("SHORTEST",))
FAST = LaunchPlan("forward_fast", "forward", "convolution_plan", SIZES, ("SHORTEST",), KERNEL)
PARAMETERS = (
    Parameter("x"),
    Parameter("gate", when=Present("gate")),
    Parameter("scale", NUMBER),
    Parameter("output_final_state", TRUTH),
)
GATED, WANTED, T = Present("gate"), Name("output_final_state"), Name("T")
BODY: tuple[Step | Comment, ...] = (
    ReadSizes("x", ("B", "T", "D")),
    Bind({"long": T > 64, "gated": GATED}),
    Bind({"fast": (Name("gated") | "long") & Serves("convolve", ("x",))}),
    Plan({"segments": INTEGER, "recurrent": TRUTH}, PLAN, (Name("fast"), FAST)),
    Plan({"rounds": INTEGER}, PLAN, when=Name("fast")),
    Comment("What it returns, and what it needs."),
    allocate("y", ("B", "T", "D"), IO),
    allocate("final", ("B", "D", 2), STATE, WANTED),
    allocate("none", ("B",), STATE, Literal(False)),
    allocate("sums", ("B", Extent("x", 1)), ACC, Some(Name("rounds"))),
    allocate("operands", ("B", 3), OPERAND, Some(Name("rounds"))),
    launch("convolve", {"GATED": GATED}, Some(Name("rounds"))),
    launch("convolve", {"GATED": False, "gate": None, "T": T}, ~Some(Name("rounds")) & (WANTED | "long")),
    Bind({"tiles": Constant("convolve", "CHUNK") * "T"}),
    Bind({"wanted": Either(GATED, ~(WANTED & "long"), Name("tiles").equals(Extent("x", 1)))}),
)
RESULTS = ("y", "final", "none")
CALLED = Pass("forward_fast", "Called.", PARAMETERS, "x", BODY, RESULTS, instead_of="forward")
CALLING = Pass("forward", "Calls.", PARAMETERS, "x", (Delegate("forward_fast", GATED), *BODY), RESULTS)


def text(backend: str) -> str:
    def run(w: Writer, scheduled: ScheduledKernel, arguments: Mapping[str, str], settings: str) -> None:
        w.call(f"{scheduled.kernel.name}(", [*arguments.values(), settings])

    kernel = ScheduledForeign(KERNEL, Schedule("convolve", backend, {}))
    check_passes((CALLED, CALLING), (KERNEL,))
    w = Writer()
    layer = ScheduledLayer(SPEC, backend, (kernel,), (CALLED, CALLING))
    emit_passes(w, layer, run)
    assert used_helpers(w.text(), host_helpers(layer)).split(", ")[0] == "convolution_plan"
    return w.text()


def test_every_step_and_value() -> None:
    called, calling = text("triton").split("\n\n\n")
    assert called + "\n" == dedent('''\
        def forward_fast(x, gate, scale, output_final_state):
            """Called."""
            B, T, D = x.shape
            long, gated = T > 64, gate is not None
            fast = (gated or long) and x.dtype in SCHEDULE["convolve"] and on_warpgroups(x)
            segments, recurrent = convolution_plan(
                T, B * D, **SCHEDULE["forward_fast" if fast else "forward"][x.dtype],
            )
            rounds = convolution_plan(T, B * D, **SCHEDULE["forward"][x.dtype]) if fast else 0
            # What it returns, and what it needs.
            y = x.new_empty(B, T, D)
            final = x.new_empty((B, D, 2) if output_final_state else 0, dtype=torch.bfloat16)
            none = x.new_empty(0, dtype=torch.bfloat16)
            sums = operands = None
            if rounds:
                sums = x.new_empty(B, x.shape[1], dtype=torch.float32)
                operands = x.new_empty(B, 3, dtype=operand_dtype(x))
                convolve(x, gate, y, B, T, D, scale, gate is not None, SCHEDULE["convolve"][x.dtype])
            if not rounds and (output_final_state or long):
                convolve(x, None, y, B, T, D, scale, False, SCHEDULE["convolve"][x.dtype])
            tiles = SCHEDULE["convolve"][x.dtype]["CHUNK"] * T
            wanted = not (output_final_state and long) if gate is not None else tiles == x.shape[1]
            return y, final, none
    ''')
    head, _, rest = calling.partition("    B, T, D = x.shape\n")
    assert head == dedent('''\
        def forward(x, gate, scale, output_final_state):
            """Calls."""
            if gate is not None:
                return forward_fast(x, gate, scale, output_final_state)
    ''')
    assert rest == called.partition("    B, T, D = x.shape\n")[2] + "\n"


@pytest.mark.parametrize("backend", ["torch", "triton", "tilelang", "c"])
def test_the_leading_tensor_says_dtype_and_device(backend: str) -> None:
    assert "q." not in text(backend) and "(q" not in text(backend)
    wide = "torch.float64 if x.dtype == torch.float64 else torch.float32"
    assert (f"operands = x.new_empty(B, 3, dtype={wide})" in text(backend)) == (backend == "torch")


@pytest.mark.parametrize("name", pipeline.load(SPECS))
def test_kernels_that_copy_rows_are_asked_about_all_of_them(name: str) -> None:
    """Where what a call gives does not lie as copies need it, another kernel has to serve."""
    lowered = pipeline.lower(pipeline.load(SPECS, [name])[name])
    copying = {k.name: k for k in pipeline.kernels(lowered, "triton") if isinstance(k, ForeignKernel)}
    passes = pipeline.schedule(lowered, "triton").passes
    asked = {part.name: {x for found in served(part) for x in found.tensors} for part in passes}
    for part in passes:
        for step in part.body:
            if isinstance(step, Delegate):
                asked[step.to] |= {x for found in served(step.when) for x in found.tensors}
    for part in passes:
        for kernel in {*part.launches} & copying.keys():
            given = {tensor.name for tensor in copying[kernel].tensors if tensor.strided}
            assert given <= asked[part.name], f"{part.name} launches {kernel}"


def served(x: object) -> Iterator[Serves]:
    """What is asked in a pass, a step or a value."""
    if isinstance(x, Serves):
        yield x
    parts = x.values() if isinstance(x, dict) else x if isinstance(x, tuple) else ()
    for part in (getattr(x, f.name) for f in fields(x)) if is_dataclass(x) else parts:
        yield from served(part)
