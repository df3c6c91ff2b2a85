"""The states of passes with sums of features: the buffers that keep them, and how programs get them."""

from __future__ import annotations

from dataclasses import replace

from ..ir.host import Allocate, Literal, Name, Operand, Value, allocate
from ..ir.nodes import ACC, OPERAND, STATE

SPLIT = Name("split")
"""Whether a sequence is cut into several spans."""
NEVER, ON = Literal(False), Literal(True)


class StateSteps:
    """The states of a layer: `rows` of `v` values for each of its `heads`, and z if it normalises."""

    def __init__(self, rows: int, v: int, heads: str, normalize: bool) -> None:
        self.rows, self.v, self.heads, self.normalize = rows, v, heads, normalize

    def segment_sums(self, places: tuple[str, ...], when: Value | None) -> tuple[Allocate, ...]:
        """What each segment, or span of them, adds to the state."""
        return self._kept("sums", "normalizer_sums", places, ACC, when)

    def segment_states(
        self, prefix: str, places: tuple[str, ...], when: Value | None
    ) -> tuple[Allocate, ...]:
        """The state before (or after) each of them, to be read by products."""
        return self._kept(f"{prefix}state", f"{prefix}normalizer", places, OPERAND, when)

    def _kept(
        self, state: str, normalizer: str, places: tuple[str, ...], dtype: str, when: Value | None
    ) -> tuple[Allocate, ...]:
        states = allocate(state, (*places, self.rows, self.v), dtype, when)
        return (states, allocate(normalizer, (*places, self.rows), ACC, when))[: 1 + self.normalize]

    def mirrored(self, alike: Value, places: tuple[str, ...], when: Value | None) -> tuple[Allocate, ...]:
        """Sums and states of later queries, in the memory of those of earlier keys where all is `alike`."""
        sums = self._kept("mirrored_sums", "mirrored_normalizer_sums", places, ACC, when)
        states = self.segment_states("mirrored_", places, when)
        earlier = {"sums": "sums", "normalizer_sums": "normalizer_sums"}
        earlier |= {"state": "segment_state", "normalizer": "segment_normalizer"}
        return tuple(
            replace(made, instead=(alike, earlier[made.name.removeprefix("mirrored_")]))
            for made in (*sums, *states)
        )

    def user_states(
        self, prefix: str, when: Value, batch: str = "B", heads: str | None = None
    ) -> tuple[Allocate, ...]:
        """A state that the user gets; a layer that does not normalise returns an empty normaliser."""
        places = batch, heads or self.heads
        state = allocate(f"{prefix}state", (*places, self.rows, self.v), STATE, when)
        wanted = when if self.normalize else NEVER
        return state, allocate(f"{prefix}normalizer", (*places, self.rows), ACC, wanted)

    def state(self, parameter: str, value: str | None) -> dict[str, Operand]:
        """A state and its normaliser, by the prefixes of the parameters and of the values."""
        parts = ("state", "normalizer") if self.normalize else ("state",)
        return {f"{parameter}{part}": None if value is None else f"{value}{part}" for part in parts}

    def over_segments(self, initial: str, total: str | None, states: str = "segment_") -> dict[str, Operand]:
        """Of running sums over all segments."""
        kept = self.state("", states) | self.state("initial_", initial) | self.state("total_", total)
        return kept | {"H": self.heads}

    def over_spans(self, initial: str, total: str | None) -> dict[str, Operand]:
        """The same over all spans."""
        return self.over_segments(initial, total, "span_") | {"segments": "spans"}

    def walk(self, initial: str) -> dict[str, Operand]:
        """Of a program over each span; a single span starts and ends with what is passed."""
        states = self.state("", "segment_") | self.state("initial_", initial) | self.state("start_", "span_")
        return states | {"SEGMENTED": SPLIT, "LONG": Name("long")}
