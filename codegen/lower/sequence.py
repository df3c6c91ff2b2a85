"""The sequence that a program works on: which tokens of its tensors are its own."""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.nodes import Const, Dim, Expr, Operand, Span, Var, maximum, minimum, wrap


@dataclass(frozen=True)
class Sequence:
    """Tokens `start` to `stop` - 1 along the axis of extent `axis`; by default all of them.

    Programs ask it for their first token, their last and their tiles.  So that several sequences can lie in
    one tensor, a program has only to work on another of these, whose start and stop it has read.  A program
    that counts tokens from the start of the tensor, and works on a part of a sequence, says where that
    begins: `begin`.
    """

    axis: str
    start: Expr = Const(0)
    end: Expr | None = None
    begin: Expr = Const(0)

    @property
    def stop(self) -> Expr:
        """Where the sequence ends."""
        return Var(self.axis) if self.end is None else self.end

    @property
    def length(self) -> Expr:
        """How many tokens it has."""
        return self.stop if self.start == Const(0) else self.stop - self.start

    def token(self, place: Operand) -> Expr:
        """The index of the token that has `place` others before it."""
        return wrap(place) if self.start == Const(0) else self.start + place

    def tile(self, first: Operand, size: Dim, before: bool = False) -> Span:
        """The indices of `size` tokens from `first` on; `before`: that may lie before the sequence.

        What lies before or past the sequence is outside; of a whole tensor's, what lies past the tensor.
        """
        return Span(wrap(first), size, self.start if before else None, self.end)

    def until(self, token: Operand) -> Expr:
        """A token's index, or where the sequence ends if that comes first."""
        return minimum(token, self.stop)

    def holds(self, token: Expr) -> Expr:
        """Whether the sequence has not ended at a token."""
        return token < self.stop

    def past(self, first: Operand, size: Dim) -> Expr:
        """How many of `size` tokens from `first` on lie past its end."""
        return maximum(wrap(first) + size - self.stop, 0)
