"""The states of passes with sums of features: the buffers that keep them, and how programs get them."""

from __future__ import annotations

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
        state = allocate("sums", (*places, self.rows, self.v), ACC, when)
        normalizer = allocate("normalizer_sums", (*places, self.rows), ACC, when)
        return (state, normalizer) if self.normalize else (state,)

    def segment_states(
        self, prefix: str, places: tuple[str, ...], when: Value | None
    ) -> tuple[Allocate, ...]:
        """The state before (or after) each of them, to be read by products."""
        state = allocate(f"{prefix}state", (*places, self.rows, self.v), OPERAND, when)
        normalizer = allocate(f"{prefix}normalizer", (*places, self.rows), ACC, when)
        return (state, normalizer) if self.normalize else (state,)

    def user_states(self, prefix: str, when: Value, batch: str = "B") -> tuple[Allocate, ...]:
        """A state that the user gets; a layer that does not normalise returns an empty normaliser."""
        state = allocate(f"{prefix}state", (batch, self.heads, self.rows, self.v), STATE, when)
        wanted = when if self.normalize else NEVER
        return state, allocate(f"{prefix}normalizer", (batch, self.heads, self.rows), ACC, wanted)

    def state(self, parameter: str, value: str | None) -> dict[str, Operand]:
        """A state and its normaliser, by the prefixes of the parameters and of the values."""
        parts = ("state", "normalizer") if self.normalize else ("state",)
        return {f"{parameter}{part}": None if value is None else f"{value}{part}" for part in parts}

    def over_spans(self, initial: str, total: str | None) -> dict[str, Operand]:
        """Of running sums over all spans."""
        states = self.state("", "span_") | self.state("initial_", initial) | self.state("total_", total)
        return states | {"H": self.heads, "segments": "spans"}

    def walk(self, initial: str) -> dict[str, Operand]:
        """Of a program over each span; a single span starts and ends with what is passed."""
        states = self.state("", "segment_") | self.state("initial_", initial) | self.state("start_", "span_")
        return states | {"SEGMENTED": SPLIT, "LONG": Name("long")}
