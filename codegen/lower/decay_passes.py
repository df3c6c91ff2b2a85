"""The host side of decays: what a pass of linear attention does besides where its state fades."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..dtypes import ACC, WIDE
from ..ir.host import Name, Operand, Steps, Value, allocate, launch
from .decay import OWED_SUMS
from .groups import OVER_GROUPS, OVER_STATES, STATES, of_each

STATEFUL, HAS_INITIAL = Name("stateful"), Name("has_initial")
BY_SEGMENT = ("B", STATES, "segments")


@dataclass(frozen=True)
class Decays:
    """The steps of a layer whose spec has that `decay`; none of one whose state does not fade."""

    decay: str

    @property
    def present(self) -> bool:
        """Whether the state fades."""
        return self.decay != "none"

    def running(self, when: Value | None = None) -> Steps:
        """G after every token, where each has a decay of its own; a recurrence alone needs none."""
        if self.decay != "token":
            return ()
        places = ("B", STATES, "T")
        buffers = allocate("scan", places, WIDE, when), allocate("running_decay", places, WIDE, when)
        return (*buffers, launch("decay_sums", OVER_STATES, when), launch("decays", OVER_STATES, when))

    def owed(self) -> Steps:
        """Buffers of what the weights of every token owe to G: of each query, and of groups of them."""
        if not self.present:
            return ()
        made = allocate("r", ("B", STATES, "T"), ACC, instead=(Name("H").equals(STATES), of_each("r")))
        return allocate(of_each("r"), ("B", "H", "T"), ACC), made

    def sum_owed(self) -> Steps:
        """The one summed to the other."""
        if not self.present:
            return ()
        parts = {"parts": of_each("r"), "sums": "r"}
        return (launch(OWED_SUMS, OVER_GROUPS | parts, Name("H") > STATES),)

    def gradients(self, states: Mapping[str, Operand]) -> Steps:
        """dg, from what is owed, and from the `states` of segments and their mirrored ones."""
        if not self.present:
            return ()
        dims = (STATES,) if self.decay == "head" else ("B", "T", STATES)
        return (
            allocate("edge", BY_SEGMENT, ACC, STATEFUL),
            launch("edges", {**states, **OVER_STATES}, STATEFUL),
            launch("first_edge", OVER_STATES, HAS_INITIAL),
            *((launch("gradient_sums", OVER_STATES),) if self.decay == "token" else ()),
            allocate("d_log_decay", dims, ACC),
            launch("decay_gradients", OVER_STATES | {"STATEFUL": STATEFUL}),
        )
