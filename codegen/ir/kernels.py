"""What a layer launches: tile programs, kernels printed by hand, and the plans by which passes choose.

Each is a type of its own.  What they have in common is that a schedule binds their constants.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .program import HEADS, Axis, Program, Tensor


@dataclass(frozen=True)
class ForeignKernel:
    """A kernel for one kind of device in place of a tile program; this is how it is launched."""

    name: str
    summary: str
    instead_of: str
    """The program whose results it computes."""
    printer: str
    """The name of what prints it (`emit/warpgroups/`)."""
    grid: tuple[Axis, ...]
    tensors: tuple[Tensor, ...]
    sizes: tuple[str, ...]
    scalars: tuple[str, ...]
    flags: tuple[str, ...]
    constants: tuple[str, ...]
    bounds: dict[str, int] = field(default_factory=dict, hash=False)
    program: Program | None = None
    """The tile program that it is printed from, by a plan of places; None if it is printed by hand."""
    second_look: Program | None = None
    """What it calls where something is not finite: a tile program, which is printed as a function."""
    decides: bool = False
    """Whether a pass asks this kernel if it serves a call; where it does not, no other of them runs."""


@dataclass(frozen=True)
class LaunchPlan:
    """The numbers by which a pass chooses what it launches."""

    name: str
    part: str
    """The pass: forward, backward or step."""
    function: str
    """What chooses, of `based_ops.support.host`: it takes the sizes and the constants."""
    sizes: tuple[tuple[str, ...], ...]
    """Products of extents of a call, such as its tokens and its rows; or a tensor or a truth by its name."""
    constants: tuple[str, ...]
    kernel: ForeignKernel | None = None
    """The kernel with which the plan is in force, if not with the layer's own programs."""


Kernel = Program | ForeignKernel
"""What can be launched."""
Sized = Kernel | LaunchPlan
"""What a schedule is about."""

TENSOR, INTEGER, NUMBER, TRUTH = "tensor", "integer", "number", "truth"
"""Kinds of values on the host."""


def parameters(kernel: Kernel) -> dict[str, str]:
    """What a launch gives a kernel besides constants: the kind of each, by name and in order."""
    return {
        **{tensor.name: TENSOR for tensor in kernel.tensors},
        **dict.fromkeys(kernel.sizes, INTEGER),
        **dict.fromkeys(kernel.scalars, NUMBER),
        **dict.fromkeys(kernel.flags, TRUTH),
    }


def counts(kernel: Kernel) -> tuple[str, ...]:
    """The sizes that a kernel takes, but for lengths of rows: as the user passes them, or of each head."""
    rows = {x.dims[-1] for x in kernel.tensors if x.strided or x.dims[1:-1] == ("T", HEADS)}
    return tuple(size for size in kernel.sizes if size not in rows)
