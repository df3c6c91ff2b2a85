"""What every state can do, whatever its mixer: move, be copied, picked from and put together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor

from based_ops.codegen.dtypes import ACC, IO, STATE

from .errors import ArgumentTypeError, DeviceError, DtypeError, ShapeError, StateError, fail
from .record import RECORDS
from .tracing import run_while_tracing

S = TypeVar("S", bound="State")
_in_dynamo = torch.compiler.is_dynamo_compiling


class State:
    """The methods of states, which are named tuples of tensors; a part that a layer lacks is None.

    A state knows which variant's call made it, and its copies do; one that compiled code, a user, `_replace`
    or a pytree put together does not, and is judged by its shapes alone.  All methods can be traced and
    mapped.
    """

    variant: str | None = None
    """The name of the variant whose call made it, if that is known."""
    roles: ClassVar[tuple[str, ...]] = ()
    """The dtype of each field (`codegen.dtypes`), as in the mixer's signature; set by `storable`."""
    if TYPE_CHECKING:  # of the named tuple

        def __init__(self, *parts: Any) -> None: ...
        def __iter__(self) -> Iterator[Any]: ...

    def to(
        self: S,
        device: torch.device | str | torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        *,
        non_blocking: bool = False,
    ) -> S:
        """The state on `device`, and for inputs of `dtype`; like `Tensor.to` the same tensors if they fit.

        `state.to(torch.bfloat16)` asks for a dtype alone.  Only what holds inputs takes it: a window's keys
        and values, a convolution's inputs.  Positions stay integers, sums and normalisers stay in float32 and
        in the spec's `state_dtype`; for float64 inputs all but integers are float64, and back.  Raises
        `DtypeError` if `dtype` is not floating.
        """
        if isinstance(device, torch.dtype):
            if dtype is not None:
                fail(ArgumentTypeError, "device", str(device), "a device where a dtype follows")
            device, dtype = None, device
        if dtype is not None and not dtype.is_floating_point:
            fail(DtypeError, "dtype", str(dtype), "a floating dtype, that of inputs")
        kept = _kept_dtype(variant_of(self))
        parts: list[Tensor | None] = []
        for role, x in zip(self.roles, self, strict=True):
            if x is not None:
                wanted = x.dtype if dtype is None else _dtype(role, x.dtype, dtype, kept)
                x = x.to(device=device, dtype=wanted, non_blocking=non_blocking)
            parts.append(x)
        return self._of(parts)

    def detach(self: S) -> S:
        """The same memory, without the history that gradients would flow through."""
        return self._of([None if x is None else x.detach() for x in self])

    def clone(self: S) -> S:
        """A copy in memory of its own, contiguous, as a step asks for: to come back to, or to branch off."""
        form = torch.contiguous_format
        return self._of([None if x is None else x.clone(memory_format=form) for x in self])

    def index_select(self: S, index: Tensor) -> S:
        """The states of the sequences that `index` names, int32 or int64 [B'], in memory of their own.

        A sequence may be named several times: the beams that a search goes on with.  As of
        `torch.index_select(part, 0, index)`.
        """
        if not isinstance(index, Tensor) or index.dtype not in (torch.int32, torch.int64):
            got = str(index.dtype) if isinstance(index, Tensor) else type(index).__name__
            fail(ArgumentTypeError, "index", got, "a tensor of int32 or int64")
        if index.dim() != 1:
            fail(ShapeError, "index", f"{index.dim()} dimensions", "of shape [B'], one dimension")
        return self._of([None if x is None else x.index_select(0, index) for x in self])

    @classmethod
    def cat(cls: type[S], states: Iterable[S]) -> S:
        """One state of all sequences of `states`, in their order.

        Raises `StateError` unless there is one at least, and all are of one type, of one variant as far as
        that is known, and of equal dtypes and shapes behind the batch; `DeviceError` unless of one device.
        """
        given = list(states)
        if not given:
            fail(StateError, "states", "none", "one state at least")
        first = given[0]
        for i, state in enumerate(given):
            _check_alike(cls, f"states[{i}]", state, first)
        parts = [None if rows[0] is None else torch.cat(rows) for rows in zip(*given, strict=True)]
        variants = [variant_of(x) for x in given]
        return named(cls(*parts), next((x for x in variants if x is not None), None))

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(x.nbytes for x in self if x is not None)

    def _of(self: S, parts: Sequence[Tensor | None]) -> S:
        """A state of the same variant."""
        return named(type(self)(*parts), variant_of(self))


def named(state: S, variant: str | None) -> S:
    """The state, which now knows the variant whose call made it."""
    if not _in_dynamo():
        state.variant = variant
    return state


def variant_of(state: Any) -> str | None:
    """What a state knows of its variant.

    Code that Dynamo traces knows nothing: that of PyTorch 2.11 takes a named tuple for its fields alone, and
    the class's None for the attribute.
    """
    return None if _in_dynamo() else state.variant


@run_while_tracing
def means_the_same(variant: str | None, other: str | None) -> bool:
    """Whether states of two variants mean the same, as far as is known.

    Names say little: a layer that was compiled just in time has another one after each change of the
    compiler.  So what is not registered here passes, and what is registered passes if only its name differs.
    """
    if variant is None or other is None or variant == other:
        return True
    known = [replace(RECORDS[name].layer, name="") for name in (variant, other) if name in RECORDS]
    return len(known) < 2 or known[0] == known[1]


@run_while_tracing
def _kept_dtype(variant: str | None) -> torch.dtype | None:
    """The dtype in which a variant keeps sums, where inputs are not float64; None if it is not known."""
    return getattr(torch, RECORDS[variant].layer.kept_dtype) if variant in RECORDS else None


def _dtype(role: str, now: torch.dtype, inputs: torch.dtype, kept: torch.dtype | None) -> torch.dtype:
    """The dtype of a part for other inputs."""
    if role == IO:
        return inputs
    if role not in (ACC, STATE):
        return now
    if inputs == torch.float64:
        return inputs
    if role == ACC:
        return torch.float32
    return kept or (torch.float32 if now == torch.float64 else now)


def _check_alike(kind: Any, name: str, state: Any, first: Any) -> None:
    """Raises a typed error unless a state can stand in one batch with the `first`."""
    if type(state) is not kind:
        fail(StateError, name, type(state).__name__, f"a {kind.__name__}, as all others")
    variant, other = variant_of(state), variant_of(first)
    if not means_the_same(variant, other):
        fail(StateError, name, f"a state of {variant}", f"of {other}, as states[0]")
    for field, x, like in zip(kind._fields, state, first, strict=True):
        if (x is None) != (like is None):
            there = [None if y is None else "a tensor" for y in (x, like)]
            fail(StateError, f"{name}.{field}", there[0], f"{there[1]}, as of states[0]")
        if x is None:
            continue
        if x.shape[1:] != like.shape[1:]:
            sizes = [[*y.shape[1:]] for y in (x, like)]
            what = f"{sizes[1]}, as of states[0]"
            fail(StateError, f"{name}.{field}", f"{sizes[0]} behind the batch", what)
        if x.dtype != like.dtype:
            fail(StateError, f"{name}.{field}", str(x.dtype), f"{like.dtype}, as of states[0]")
        if x.device != like.device:
            fail(DeviceError, f"{name}.{field}", str(x.device), f"on {like.device}, as of states[0]")
