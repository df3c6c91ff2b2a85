"""The steps of a round by their names, in another order: as long as each reads what it read before.

A sum grows by steps of its own, which may come in any order: `x = a @ y` that is added to later is `x` from
nothing and `x+a`.  The first of them in the new order is then where x begins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from .check import Types, walk
from .fuse import expressions, statements
from .nodes import Add, Comment, Dot, Expand, Expr, Full, Let, Load, Set, Stmt, Store, Transpose, Var, When

Step = tuple[str, Stmt]


class OutOfOrder(Exception):
    """An order that names other steps than there are, or in which one reads something else."""


def reordered(body: Sequence[Stmt], order: Sequence[str], types: Types) -> tuple[Stmt, ...]:
    """The statements of a round in this order, which may name steps that this round lacks."""
    before = named(_from_nothing(body, types))
    place = {name: i for i, name in enumerate(order)}
    if missing := [name for name, stmt in before if name not in place and not _is_zero(stmt)]:
        raise OutOfOrder(f"no place for {', '.join(missing)}")
    after = sorted(before, key=lambda step: place.get(step[0], -1))
    _require_same(before, after)
    return begun(stmt for _, stmt in after)


def names(body: Sequence[Stmt], types: Types) -> list[str]:
    """The names of the steps of a round, but for sums from nothing."""
    return [name for name, stmt in named(_from_nothing(body, types)) if not _is_zero(stmt)]


def named(body: Sequence[Stmt]) -> list[Step]:
    """The steps: `x` introduces x, `x=` changes it, `x?` under a condition, perhaps with others; `x+a` adds a
    product of a, `>o` stores o.
    """
    found: list[Step] = []
    times: Counter[str] = Counter()
    for stmt in body:
        if isinstance(stmt, Comment):
            continue
        name = _name(stmt)
        times[name] += 1
        found.append((name if times[name] == 1 else f"{name}{times[name]}", stmt))
    return found


def begun(body: Iterable[Stmt]) -> tuple[Stmt, ...]:
    """Statements in which sums begin where something is first added to them, with that."""
    zeros: dict[str, Stmt] = {}
    result: list[Stmt] = []
    for stmt in body:
        if isinstance(stmt, Let) and _is_zero(stmt):
            zeros[stmt.name] = stmt
            continue
        for name in dict.fromkeys(_mentioned(stmt)):
            if zero := zeros.pop(name, None):
                result.append(zero)
        if isinstance(stmt, Add) and result and result[-1] == Let(stmt.name, _nothing(result[-1])):
            along_one_axis = isinstance(stmt.value, Expand)
            result[-1] = Let(stmt.name, result[-1].value + stmt.value if along_one_axis else stmt.value)
        else:
            result.append(stmt)
    return tuple(result)


def _name(stmt: Stmt) -> str:
    match stmt:
        case Let(name, _):
            return name
        case Set(name, _):
            return f"{name}="
        case Add(name, Dot(x, _)):
            return f"{name}+{(x.x if isinstance(x, Transpose) else x).name}"
        case Add(name, _):
            return f"{name}+"
        case Store(tensor, _, _):
            return f">{tensor}"
        case When(_, (Set(name, _), *more)) if all(isinstance(inner, Set) for inner in more):
            return f"{name}?"
    raise OutOfOrder(f"{type(stmt).__name__} is no step")


def _from_nothing(body: Sequence[Stmt], types: Types) -> list[Stmt]:
    grows = {stmt.name for stmt in body if isinstance(stmt, Add)}
    result: list[Stmt] = []
    for stmt in body:
        if isinstance(stmt, Let) and isinstance(stmt.value, Dot) and stmt.name in grows:
            result += Let(stmt.name, Full(types[stmt.name].shape, 0.0)), Add(stmt.name, stmt.value)
        else:
            result.append(stmt)
    return result


def _is_zero(stmt: Stmt) -> bool:
    return isinstance(stmt, Let) and stmt.value == _nothing(stmt)


def _nothing(stmt: Stmt) -> Full:
    """A tile of zeros, of the shape of one that a statement introduces."""
    value = stmt.value if isinstance(stmt, Let) else None
    return Full(value.shape if isinstance(value, Full) else (), 0.0)


def _mentioned(stmt: Stmt) -> list[str]:
    """The variables that a statement, or those inside it, reads or changes."""
    every = list(statements((stmt,)))
    changed = [inner.name for inner in every if isinstance(inner, Add | Set)]
    nodes = (node for inner in every for expr in expressions(inner) for node in walk(expr))
    return [*changed, *(node.name for node in nodes if isinstance(node, Var))]


def _require_same(before: Sequence[Step], after: Sequence[Step]) -> None:
    """Raise unless every step reads, and the round leaves, what it did."""
    was, now = _readings(before), _readings(after)
    for name, reading in was.items():
        if now[name] != reading:
            raise OutOfOrder(f"{name} reads something else in this order")


def _readings(steps: Sequence[Step]) -> dict[str, dict[str, tuple[str, frozenset[str]]]]:
    """What each step reads of what others have made: who introduced or changed it, and who has added."""
    made: dict[str, tuple[str, frozenset[str]]] = {}
    found = {}
    start = ("", frozenset[str]())
    for name, stmt in steps:
        every = [expr for inner in statements((stmt,)) for expr in expressions(inner)]
        read = {x for expr in every for node in walk(expr) for x in _places(node)}
        reading = {x: made.get(x, start) for x in read}
        match stmt:
            case Add(target, _):
                whose, added = made.get(target, start)
                reading[f"+{target}"] = (whose, frozenset())
                made[target] = whose, added | {name}
            case Let(target, _) | Set(target, _):
                if isinstance(stmt, Set):
                    reading[target] = made.get(target, start)
                made[target] = name, frozenset()
            case When(_, body):
                for changed in (inner.name for inner in body if isinstance(inner, Set)):
                    reading[changed] = made.get(changed, start)
                    made[changed] = name, frozenset()
            case Store(tensor, _, _):
                whose, added = made.get(f"@{tensor}", start)
                made[f"@{tensor}"] = whose, added | {name}
        found[name] = reading
    return found | {"": made}


def _places(node: Expr) -> tuple[str, ...]:
    """The variables and tensors that a node reads."""
    match node:
        case Var(name):
            return (name,)
        case Load(tensor):
            return (f"@{tensor}",)
    return ()
