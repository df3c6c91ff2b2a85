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
class Signature:
    """The operators of a layer.

    forward   (inputs, numbers, carried, output_final_state if there is a final state) -> output, kept, final
    backward  (d output, d final, inputs, output and kept, numbers, carried) -> d inputs, d carried
    step      (inputs, numbers, state, indices) -> output, for T up to MOST_TOKENS; the state is updated in
              place.  With indices it is a pool of states, of which the batch has the slots that they name.

    In a step all inputs have the same tokens, where those of a forward pass may have more keys.
    """

    inputs: tuple[Argument, ...]
    """Tensors that a call mixes; the first one leads: its dtype and device are those of the call."""
    output: Argument
    state: tuple[Argument, ...]
    """The parts of what a user holds between calls; without any there is no step."""
    numbers: dict[str, float] = field(default_factory=dict, hash=False)
    """Factors, and what each of them is unless a call says otherwise."""
    carried: tuple[Argument, ...] = ()
    """What forward reads of earlier tokens, made of a state; and last, where it takes several sequences in
    one batch entry, SEQUENCES.  Their states are N, which without them is the batch."""
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
        """Heads or channels of a call of which all tensors have as many."""
        return dict.fromkeys((self.unit, *self.groups, *self.parts), units)

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

    def schemas(self) -> dict[str, str]:
        """The schema of each operator, as `torch.library` reads it.

        `kernel` names the generated module that serves, and its build.
        """
        numbers = [f"float {name}" for name in self.numbers]
        inputs, carried = _parameters(self.inputs), _parameters(self.carried)
        asked = ["bool output_final_state"] if self.final else []
        given = [f"Tensor d_{self.output.name}", *(f"Tensor? d_{x.name}" for x in self.final)]
        read = [f"Tensor {x.name}" for x in (*((self.output,) if self.keeps_output else ()), *self.kept)]
        state = [
            f"Tensor({letter}!){'' if part.present else '?'} {part.name}"
            for letter, part in zip("abcdefgh", self.state, strict=False)
        ]
        found = {
            "forward": _schema([*inputs, *numbers, *carried, *asked], len(self.results)),
            "backward": _schema([*given, *inputs, *read, *numbers, *carried], len(self.differentiable)),
        }
        if self.state:
            found["step"] = _schema([*inputs, *numbers, *state, *_parameters((INDICES,))], 1)
        return found


def _parameters(arguments: tuple[Argument, ...]) -> list[str]:
    return [f"Tensor{'?' if x.optional or not x.present else ''} {x.name}" for x in arguments]


def _schema(parameters: list[str], results: int) -> str:
    result = "Tensor" if results == 1 else f"({', '.join(['Tensor'] * results)})"
    return f"({', '.join([*parameters, 'str kernel'])}) -> {result}"
