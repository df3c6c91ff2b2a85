"""States as a layer's signature describes them: made, measured, checked and cast, whatever the mixer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from based_ops.codegen.dtypes import ACC, IO, STATE
from based_ops.codegen.spec.signature import Signature

from . import checks
from .errors import StateError, fail
from .state_base import means_the_same, named, variant_of
from .tracing import number, numbers

_FLOAT64 = torch.float64


class Part(NamedTuple):
    """One tensor of a state."""

    field: str
    dims: tuple[int | str, ...]
    dtype: torch.dtype | None
    """Where inputs are not float64; None is that of the inputs."""
    follows: bool
    """Whether float64 inputs make it float64."""
    present: bool

    def of(self, inputs: torch.dtype | None) -> torch.dtype | None:
        """Its dtype for such inputs; None is PyTorch's default."""
        return inputs if self.dtype is None or (self.follows and inputs == torch.float64) else self.dtype


class StateForm:
    """The states of one variant: named tuples of type `kind`.

    Sizes of a state are a batch and so many units, which are heads or channels.
    """

    def __init__(self, name: str, kind: Any, signature: Signature, kept: str, other_dtype: str) -> None:
        self.name, self.kind, self._other_dtype = name, kind, other_dtype
        self.unit = signature.unit_of_state
        self.parts = tuple(
            Part(
                field,
                x.dims,
                None
                if x.dtype == IO
                else getattr(torch, {STATE: kept, ACC: "float32"}.get(x.dtype, x.dtype)),
                x.dtype in (STATE, ACC),
                x.present,
            )
            for field, x in zip(kind._fields, signature.state, strict=True)
        )
        self.complete = all(part.present for part in self.parts)
        # For `_fits`: what takes the shape of a part from all sizes, and its dtype or None for the inputs'.
        widths = [x for part in self.parts for x in part.dims if isinstance(x, int)]
        names: list[Any] = ["B", self.unit, *widths]
        self._widths = tuple(widths)
        self._quick = [
            (itemgetter(*map(names.index, part.dims)) if part.present else None, part.dtype)
            for part in self.parts
        ]
        for part in self.parts:
            numbers(name, {f"{part.field}.{i}": x for i, x in enumerate(part.dims) if isinstance(x, int)})

    def zeros(
        self,
        batch: int,
        units: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        traced: bool,
    ) -> Any:
        """The state before the first token, for inputs of `dtype`."""
        sizes = {"B": batch, self.unit: units}
        parts = [
            torch.zeros(self._shape(part, sizes, traced), device=device, dtype=part.of(dtype))
            if part.present
            else None
            for part in self.parts
        ]
        return named(self.kind(*parts), self.name)

    def bytes(self, batch: int, units: int, dtype: torch.dtype | None) -> int:
        """Bytes of such a state."""
        sizes, default = {"B": batch, self.unit: units}, torch.get_default_dtype()
        return sum(
            math.prod(self._shape(part, sizes, False)) * (part.of(dtype) or default).itemsize
            for part in self.parts
            if part.present
        )

    def check(
        self,
        argument: str,
        state: Any,
        lead: Tensor,
        batch: int,
        units: int,
        traced: bool,
        in_place: bool = False,
        pool: bool = False,
    ) -> None:
        """Raises `StateError` unless a state fits the variant, and a call with `lead` that may update it.

        The entries of a `pool` may lie apart.
        """
        self.check_kind(argument, state)
        if not traced and self._fits(state, lead, batch, units, in_place, pool):
            return
        sizes = {"B": batch, self.unit: units}
        for part, x in zip(self.parts, state, strict=True):
            if not part.present:
                if x is not None:
                    what = f"None, since {self.name} has none"
                    fail(StateError, f"{argument}.{part.field}", "a tensor", what)
                continue
            if x is None:
                fail(StateError, f"{argument}.{part.field}", None, f"a tensor, since {self.name} has one")
            hint = self._other_dtype if part.dtype is None else ""
            shape = torch.Size(self._shape(part, sizes, traced))
            checks.state_part(
                argument, part.field, x, shape, part.of(lead.dtype) or lead.dtype, lead, in_place, hint, pool
            )

    def check_kind(self, argument: str, state: Any) -> None:
        """Raises `StateError` unless it is a state of the variant's mixer, and of no other variant."""
        kind = self.kind
        if not isinstance(state, kind):
            fail(StateError, argument, type(state).__name__, f"a {kind.__name__}, as {self.name} returns it")
        variant = variant_of(state)
        if variant is not None and variant != self.name and not means_the_same(variant, self.name):
            fail(StateError, argument, f"a state of {variant}", f"one of {self.name}")

    def after_nothing(
        self,
        tensors: Sequence[Tensor | None],
        units: int,
        like: Tensor,
        state: Any,
        asked: bool,
        traced: bool,
    ) -> tuple[Tensor, Any]:
        """A call without a batch, a token or a head, whose output is `like` an input.

        The state stays, and comes out if it is `asked` for; every gradient is zero.
        """
        lead: Any = tensors[0]
        if state is None:
            state = self.zeros(lead.shape[0], units, lead.device, lead.dtype, traced)
        parts = [x for x in (*tensors, *state) if x is not None and x.is_floating_point()]
        zero = sum(x[:0].sum() for x in parts)  # of all arguments, as outputs are of all arguments elsewhere
        if not asked:
            return like - zero, None
        ends = [
            x if x is None else (x - zero if x.is_floating_point() else x + 0).contiguous() for x in state
        ]
        return like - zero, named(self.kind(*ends), self.name)

    def _fits(self, state: Any, lead: Tensor, batch: int, units: int, in_place: bool, pool: bool) -> bool:
        """Whether `check` has nothing to say, as in most calls; it looks closer where this is False."""
        sizes, dtype, device = (batch, units, *self._widths), lead.dtype, lead.device
        if dtype is _FLOAT64:
            return False
        for x, (shape_of, kept) in zip(state, self._quick):  # noqa: B905, which would take a tenth of it all
            if shape_of is None:
                if x is not None:
                    return False
            elif not (
                isinstance(x, Tensor)
                and x.shape == shape_of(sizes)
                and x.dtype is (kept or dtype)
                and x.device == device
                and (not in_place or x.is_contiguous() or (pool and checks.dense_entries(x)))
            ):
                return False
        return True

    def cast(self, state: Any, dtype: torch.dtype) -> Any:
        """The state with what it holds of inputs as autocast would cast them."""
        parts = zip(self.parts, state, strict=True)
        cast = [checks.cast(x, dtype) if part.dtype is None else x for part, x in parts]
        return named(self.kind(*cast), variant_of(state))

    def inputs(self, state: Any) -> Tensor | None:
        """The first part of a state that holds inputs, if any does."""
        if type(state) is not self.kind:
            return None
        return next((x for part, x in zip(self.parts, state, strict=True) if part.dtype is None), None)

    def _shape(self, part: Part, sizes: Mapping[Any, int], traced: bool) -> list[int]:
        """The shape of a part; traced code takes its widths as constants."""
        if not traced:
            return [sizes[x] if isinstance(x, str) else x for x in part.dims]
        return [
            sizes[x] if isinstance(x, str) else number(self.name, f"{part.field}.{i}")
            for i, x in enumerate(part.dims)
        ]
