"""What the operators of a layer take and give, as data.

Schema, fake, derivative and argument checks of an operator follow from it, and so do the calls that are told
apart when they are replayed and the inputs that `verify`, `tune` and tests draw.  A new argument of a mixer
is one entry here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..dtypes import IO

Extent = int | str
"""One dimension of a tensor: a width that the spec fixes, or the name of a size that calls choose."""

SIZES = {"B": "batch", "T": "length", "H": "heads", "D": "channels"}
"""The sizes that public calls have, and what messages call them."""


@dataclass(frozen=True)
class Argument:
    """One tensor.

    `dtype` is a role (`codegen.dtypes`) or the name of a dtype.  An argument that is not `present` is one of
    the mixer, but not of this layer: None where it is passed, an empty tensor where it is returned.
    """

    name: str
    dims: tuple[Extent, ...]
    doc: str = ""
    dtype: str = IO
    optional: bool = False
    """Whether a call may leave it out."""
    differentiable: bool = True
    present: bool = True

    @property
    def shape(self) -> str:
        """Its dimensions as messages and documents write them."""
        return f"[{', '.join(map(str, self.dims))}]"


@dataclass(frozen=True)
class Signature:
    """The operators of a layer.

    forward   (inputs, numbers, carried, output_final_state if there is a final state) -> output, kept, final
    backward  (d output, d final, inputs, output and kept, numbers, carried) -> d inputs, d carried
    step      (inputs, numbers, state) -> output, for T = 1; the state is updated in place
    """

    inputs: tuple[Argument, ...]
    """Tensors that a call mixes; the first one leads: its dtype and device are those of the call."""
    output: Argument
    state: tuple[Argument, ...]
    """The parts of what a user holds between calls."""
    numbers: dict[str, float] = field(default_factory=dict, hash=False)
    """Factors, and what each of them is unless a call says otherwise."""
    carried: tuple[Argument, ...] = ()
    """What forward reads of earlier tokens, made of a state."""
    kept: tuple[Argument, ...] = ()
    """What forward keeps for backward."""
    final: tuple[Argument, ...] = ()
    """What forward leaves for a state, if it is asked to."""
    keeps_output: bool = True
    """Whether backward reads the output."""

    @property
    def lead(self) -> Argument:
        return self.inputs[0]
