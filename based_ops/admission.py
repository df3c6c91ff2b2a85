"""Who may pass an operator: calls that a public function has checked, and others after a check."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from torch import Tensor

from . import checks, dispatch, slots
from .errors import StateError, fail
from .operands import Operands, check, operands
from .overlap import Apart

if TYPE_CHECKING:
    from .record import Record

KEPT = 4096
"""Kinds of calls that are remembered."""


class _Checked:
    """The first tensor of a call that a public function has checked, until its operator takes it from here.

    Threads may take each other's place: an operator that does not find its own tensor checks once more.
    """

    __slots__ = ("tensor",)

    def __init__(self) -> None:
        self.tensor: Tensor | None = None


checked = _Checked()


class Admission:
    """The check before the operators of one variant.

    Calls are checked once for each kind: shapes, dtypes and devices of the tensors, and the kernel string.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._known: dict[tuple[Any, ...], str] = {}
        self.apart = Apart()

    @functools.cached_property
    def operands(self) -> Mapping[str, Operands]:
        """What the operators take, by their passes."""
        return operands(self._record.layer)

    def traced(self, which: str, *arguments: Any) -> dict[str, Any]:
        """The check of a call without data, and its sizes; `arguments` are all that it takes."""
        taken = self.operands[which]
        dispatch.read(self._record, arguments[taken.kernel])
        return check(taken, arguments)

    def kernel(self, which: str, *arguments: Any) -> str:
        """The check of a call; returns the kernel string of the module that serves it."""
        taken = self.operands[which]
        tensors = [arguments[place] for place in taken.places]
        kernel = arguments[taken.kernel]
        kind = (which, kernel, *[None if x is None else (x.shape, x.dtype, x.device) for x in tensors])
        served = self._known.get(kind)
        if served is None:
            check(taken, arguments)
            like = arguments[0]
            served = dispatch.served(self._record, kernel, like.device, like.dtype)
            if len(self._known) >= KEPT:
                self._known.clear()
            self._known[kind] = served
        if taken.writes:
            self._in_place(taken, arguments)
        return served

    def _in_place(self, taken: Operands, arguments: tuple[Any, ...]) -> None:
        """What an operator updates must be dense, and apart from all else that it is given."""
        indices: Any = None if taken.indices is None else arguments[taken.indices]
        pooled = indices is not None
        if pooled:
            pool = next(arguments[place] for place, x in taken.tensors.items() if x.written)
            slots.check_values(indices, pool.shape[0])
        pairs = [
            (operand, arguments[place])
            for place, operand in taken.tensors.items()
            if arguments[place] is not None
        ]
        pairs.sort(key=lambda pair: pair[0].written)
        for operand, tensor in pairs:
            if not operand.written or tensor.is_contiguous() or (pooled and checks.dense_entries(tensor)):
                continue
            wanted = checks.DENSE if pooled else "contiguous"
            fail(StateError, operand.name, "a tensor that is not contiguous", wanted)
        names, tensors = zip(*((operand.name, tensor) for operand, tensor in pairs), strict=True)
        found = self.apart.collision(tensors, sum(not operand.written for operand, _ in pairs))
        if found is not None:
            refuse_overlap(names, found)


def refuse_overlap(names: Sequence[str], found: tuple[int, int]) -> NoReturn:
    """Raises `StateError` for tensors at two places that share memory, the later of which is written."""
    first, second = sorted(found)
    fail(
        StateError,
        names[second],
        f"memory that {names[first]} has too",
        "memory of its own, since a step updates it in place",
        "give the state memory of its own: `state.clone()`",
    )
