"""The host side of decays: what a pass of linear attention does besides where its state fades."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..dtypes import ACC, WIDE
from ..ir.host import Launch, Literal, Name, Operand, Steps, Value, allocate, launch
from ..names import packed
from ..spec.signature import SEQUENCES
from .decay import OWED_SUMS
from .groups import OVER_GROUPS, OVER_STATES, STATES, of_each
from .ragged import DENSE, SEVERAL

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

    def running(
        self, when: Value | None = None, given: Mapping[str, Operand] = DENSE, scans: bool = False
    ) -> Steps:
        """G after every token, where each has a decay of its own; a recurrence alone needs none.

        `scans`: what is owed to G will be scanned in any case, in the same memory.
        """
        if self.decay != "token":
            return ()
        places, given = ("B", STATES, "T"), {**OVER_STATES, **given}
        scanned = allocate("scan", places, WIDE, None if scans else when)
        buffers = scanned, allocate("running_decay", places, WIDE, when)
        return (*buffers, launch("decay_sums", given, when), launch("decays", given, when))

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

    def gradients(
        self, states: Mapping[str, Operand], several: bool = False, kept: Value = STATEFUL
    ) -> Steps:
        """dg, from what is owed, and from the `states` of segments and their mirrored ones.

        `several`: of packed sequences, of which some programs have a form of their own; of others states are
        `kept` under that condition.
        """
        if not self.present:
            return ()

        def of(program: str, arguments: Mapping[str, Operand], when: Value | None = None) -> Launch:
            return launch(packed(program) if several else program, {**OVER_STATES, **arguments}, when)

        given, when = (SEVERAL, None) if several else (DENSE, STATEFUL)
        stateful: Value = Literal(True) if several else STATEFUL
        flagged = {name: x for name, x in given.items() if name != "places"}
        edges = (
            allocate("edge", BY_SEGMENT, ACC, when),
            launch("edges", {**states, **OVER_STATES, **flagged}, None if several else kept),
            of("first_edge", {}, HAS_INITIAL),
        )
        if self.decay == "head":
            return (
                *edges,
                allocate("d_log_decay", (STATES,), ACC),
                of("decay_gradients", {"STATEFUL": stateful}),
            )
        return (
            *edges,
            launch("gradient_sums", {**OVER_STATES, **given}),
            allocate("d_log_decay", ("B", "T", STATES), ACC, apart_from=SEQUENCES.name if several else None),
            launch("decay_gradients", {**OVER_STATES, **given, "STATEFUL": stateful}),
        )
