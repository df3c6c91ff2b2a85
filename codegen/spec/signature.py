"""What the operators of a layer take and give, as data.

Schema, fake, derivative and argument checks of an operator follow from it, and so do the calls that are told
apart when they are replayed and the inputs that `verify`, `tune` and tests draw.  A new argument of a mixer
is one entry here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..dtypes import ACC, IO

Extent = int | str
"""One dimension of a tensor: a width that the spec fixes, or the name of a size that calls choose."""

MOST_TOKENS = 16
"""Tokens of one step: a longer piece is a call."""
FEW = 64
"""Taps of calls that nobody chose, such as those of `verify`."""
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
    weighs: bool = False
    """Whether it decides on weights, as queries and keys do: their numbers are drawn with care."""
    fades: bool = False
    """Whether it holds decays: numbers that are not above 0."""
    multiplies: bool = False
    """Whether it holds factors: numbers that are not below 0."""
    corrects: bool = False
    """Whether it holds the rates of a delta rule: numbers from 0 to 2."""

    @property
    def wide(self) -> bool:
        """Whether it is as wide as sums, whatever the inputs are."""
        return self.dtype == ACC

    @property
    def shape(self) -> str:
        """Its dimensions as messages and documents write them."""
        return f"[{', '.join(map(str, self.dims))}]"


OF_QUERIES, OF_KEYS, OF_VALUES, OF_STATES = "HQ", "HK", "HV", "HS"
"""Heads of q, k, v and of the state that keys and values make; H are those of the output."""
GROUPS = {"H": (OF_QUERIES, OF_KEYS, OF_VALUES), OF_STATES: (OF_KEYS, OF_VALUES)}
"""How they follow from each other in attention: see `Signature.groups`."""

POOLED = "slots"
"""The size of a pool of states: that of the batch, unless a step is given indices."""
INDICES = Argument(
    "state_indices", ("B",), "slots of pools; -1 is none", "int32", optional=True, differentiable=False
)

SEQUENCES = Argument(
    "sequences",
    ("N", 2),
    "where each of several sequences begins and ends in the tokens of a batch of one",
    "int32",
    optional=True,
    differentiable=False,
)


@dataclass(frozen=True)
class Setting:
    """What an operator takes that is no tensor; `type` is as schemas write it."""

    name: str
    type: str


@dataclass(frozen=True)
class Operand:
    """A tensor that an operator takes."""

    name: str
    argument: Argument
    part_of: str = ""
    """What may be left out, and is given as a whole or not at all."""
    written: bool = False
    returned: bool = False
    """It was returned by an operator: where the layer has no such thing, it is there and empty."""

    @property
    def optional(self) -> bool:
        """Whether it may be None."""
        x = self.argument
        return not self.returned and (x.optional or not x.present or self.part_of == FINAL_GRADIENT)

    @property
    def has_batch(self) -> bool:
        """Whether its first dimension is the batch, or a pool for it."""
        return self.argument.dims[0] in ("B", "N", POOLED)

    @property
    def strided(self) -> bool:
        """Whether kernels take it with any strides but in its last dimension."""
        return not self.part_of and self.argument.dtype == IO


KERNEL = Setting("kernel", "str")
"""The name of the generated module that serves, and of its build."""
ASKED = Setting("output_final_state", "bool")
BATCH_INVARIANT = Setting("batch_invariant", "bool")
"""Whether a sequence is to have the same bits whatever lies beside it, and so is cut as if it were alone."""
INITIAL_STATE, FINAL_GRADIENT = "initial state", "gradient of the final state"


@dataclass(frozen=True)
class Signature:
    """The operators of a layer.

    forward   (inputs, numbers, carried, output_final_state if there is a final state, kernel, sequences,
              batch_invariant) -> output, kept, final
    backward  (d output, d final, inputs, output and kept, numbers, carried, kernel, sequences,
              batch_invariant) -> d inputs, d carried
    step      (inputs, numbers, state, kernel, indices) -> output, for T up to MOST_TOKENS; the state is
              updated in place.  With indices it is a pool of states, of which the batch has the slots that
              they name.

    What stands behind the kernel says where things lie and how they are cut, and may be left out.  In a step
    all inputs have the same tokens, where those of a forward pass may have more keys.
    """

    inputs: tuple[Argument, ...]
    """Tensors that a call mixes; the first one leads: its dtype and device are those of the call."""
    output: Argument
    state: tuple[Argument, ...]
    """The parts of what a user holds between calls; without any there is no step."""
    numbers: dict[str, float] = field(default_factory=dict, hash=False)
    """Factors, and what each of them is unless a call says otherwise."""
    carried: tuple[Argument, ...] = ()
    """What forward reads of earlier tokens, made of a state.  Of several sequences in one batch entry there
    are N, which otherwise is the batch."""
    packs: bool = False
    """Whether one batch entry may have several sequences: SEQUENCES."""
    adapts: bool = False
    """Whether these are cut by how much there is to do in all, unless a call asks for BATCH_INVARIANT."""
    kept: tuple[Argument, ...] = ()
    """What forward keeps for backward."""
    final: tuple[Argument, ...] = ()
    """What forward leaves for a state, if it is asked to."""
    keeps_output: bool = True
    """Whether backward reads the output."""
    longer: dict[str, str] = field(default_factory=dict, hash=False)
    """Sizes that are no smaller than another one."""
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    """Sizes that are the least common multiples of others: heads that share one of a tensor lie in a row.

    Each of those others divides the largest of them.
    """
    free: dict[str, int] = field(default_factory=dict, hash=False)
    """Sizes of inputs that calls choose besides, such as how many taps there are, and the most of a step."""

    @property
    def lead(self) -> Argument:
        return self.inputs[0]

    @property
    def unit(self) -> str:
        """What a call has besides a batch and a length: H for heads, D for channels."""
        return str(self.output.dims[2])

    @property
    def unit_of_state(self) -> str:
        """The same of a state."""
        return OF_STATES if self.groups else self.unit

    @property
    def parts(self) -> tuple[str, ...]:
        """The sizes from which those in `groups` follow."""
        return tuple(dict.fromkeys(part for parts in self.groups.values() for part in parts))

    def alike(self, units: int) -> dict[str, int]:
        """Heads or channels of a call of which all tensors have as many; what is free is as large as it may
        be, up to 64."""
        free = {name: min(most, FEW) for name, most in self.free.items()}
        return dict.fromkeys((self.unit, *self.groups, *self.parts), units) | free

    @property
    def results(self) -> tuple[Argument, ...]:
        """What forward returns."""
        return (self.output, *self.kept, *self.final)

    @property
    def differentiable(self) -> tuple[Argument, ...]:
        """What backward has gradients of."""
        return tuple(x for x in (*self.inputs, *self.carried) if x.differentiable)

    @property
    def stepped(self) -> tuple[Argument, ...]:
        """The inputs of a step."""
        return tuple(replace(x, dims=tuple(self.longer.get(str(d), d) for d in x.dims)) for x in self.inputs)

    @property
    def pools(self) -> tuple[Argument, ...]:
        """The state of a step, which may be a pool."""
        return tuple(replace(x, dims=(POOLED, *x.dims[1:])) for x in self.state)

    def operands(self, which: str) -> tuple[Operand | Setting, ...]:
        """What the operator `which` takes, in order."""
        inputs = [Operand(x.name, x) for x in (self.stepped if which == "step" else self.inputs)]
        numbers = [Setting(name, "float") for name in self.numbers]
        if which == "step":
            state = (Operand(x.name, x, written=True) for x in self.pools)
            return *inputs, *numbers, *state, KERNEL, Operand(INDICES.name, INDICES)
        carried = [Operand(x.name, x, part_of=INITIAL_STATE) for x in self.carried]
        places = (Operand(SEQUENCES.name, SEQUENCES),) if self.packs else ()
        laid = (*places, *((BATCH_INVARIANT,) if self.adapts else ()))
        if which == "forward":
            asked = [ASKED] if self.final else []
            return *inputs, *numbers, *carried, *asked, KERNEL, *laid
        output = self.output
        given = [Operand(f"d_{output.name}", output)]
        given += [Operand(f"d_{x.name}", x, part_of=FINAL_GRADIENT) for x in self.final]
        read = [Operand(output.name, output)] if self.keeps_output else []
        read += [Operand(x.name, x, returned=True) for x in self.kept]
        return *given, *inputs, *read, *numbers, *carried, KERNEL, *laid

    def schemas(self) -> dict[str, str]:
        """The schema of each operator, as `torch.library` reads it."""
        results = {"forward": len(self.results), "backward": len(self.differentiable), "step": 1}
        return {
            which: _schema(self.operands(which), count)
            for which, count in results.items()
            if which != "step" or self.state
        }


def _schema(operands: tuple[Operand | Setting, ...], results: int) -> str:
    """Behind the kernel's name all have a default: calls of older operators, without them, stay valid."""
    letters, found, behind = iter("abcdefgh"), [], False
    for x in operands:
        if isinstance(x, Operand):
            written = f"({next(letters)}!)" if x.written else ""
            found.append(f"Tensor{written}{'?' if x.optional else ''} {x.name}{'=None' if behind else ''}")
        else:
            found.append(f"{x.type} {x.name}{'=False' if behind else ''}")
        behind = behind or x is KERNEL
    result = "Tensor" if results == 1 else f"({', '.join(['Tensor'] * results)})"
    return f"({', '.join(found)}) -> {result}"
