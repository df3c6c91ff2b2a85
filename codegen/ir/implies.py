"""What follows from the conditions of a pass: above all, that a tensor is there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from .host import Absent, And, Either, Literal, Name, Not, Or, Present, Value


@dataclass
class Facts:
    """What is known of the names of a pass."""

    meanings: dict[str, Value] = field(default_factory=dict)
    """The values of names that were bound."""
    presence: dict[str, Value] = field(default_factory=dict)
    """Under which condition a tensor is there, of those that may be absent."""

    def present(self, tensor: Value, given: Iterable[Value]) -> bool:
        """Whether a tensor is there wherever all of `given` are true."""
        if isinstance(tensor, Absent):
            return self.follows(Literal(False), given)
        if isinstance(tensor, Name) and tensor.name in self.presence:
            return self.follows(self.presence[tensor.name], given)
        return True

    def follows(self, wanted: Value, given: Iterable[Value]) -> bool:
        """Whether a truth follows from others.  What it does not see to follow may follow all the same."""
        return _follows(self._meaning(wanted), frozenset(map(self._meaning, given)))

    def chosen(self, size: Value, given: Iterable[Value]) -> Value:
        """An integer by its first name; of one or another, that which it is where all of `given` are true."""
        while isinstance(size, Name) and isinstance(meaning := self.meanings.get(size.name), Name | Either):
            if isinstance(meaning, Name):
                size = meaning
            elif self.follows(Not(meaning.condition), given):
                size = meaning.no
            else:
                break
        return size

    def _meaning(self, value: Value) -> Value:
        """A truth with the names in it replaced by what they mean."""
        match value:
            case Name(name) if name in self.meanings:
                return self._meaning(self.meanings[name])
            case Present(tensor) if self.presence.get(tensor, value) != value:
                return self._meaning(self.presence[tensor])
            case Not(x):
                return Not(self._meaning(x))
            case And(parts):
                return And(tuple(map(self._meaning, parts)))
            case Or(parts):
                return Or(tuple(map(self._meaning, parts)))
            case Either(condition, yes, no):
                return Either(self._meaning(condition), self._meaning(yes), self._meaning(no))
            case _:
                return value


def _follows(wanted: Value, given: frozenset[Value]) -> bool:
    if wanted in given or Literal(False) in given or any(Not(fact) in given for fact in given):
        return True
    for fact in given:  # one that says several things is taken apart, case by case
        rest = given - {fact}
        match fact:
            case And(parts):
                return _follows(wanted, rest | {*parts})
            case Or(parts):
                return all(_follows(wanted, rest | {part}) for part in parts)
            case Either(condition, yes, no):
                cases = ({condition, yes}, {Not(condition), no})
                return all(_follows(wanted, rest | case) for case in cases)
    match wanted:
        case Literal(value):
            return bool(value)
        case And(parts):
            return all(_follows(part, given) for part in parts)
        case Or(parts):
            return any(_follows(part, given) for part in parts)
        case Either(condition, yes, no):
            return _follows(yes, given | {condition}) and _follows(no, given | {Not(condition)})
        case _:
            return False
