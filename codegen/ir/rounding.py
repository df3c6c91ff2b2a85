"""Operands that are rounded once, and products that are added at once: for printers that decide themselves
where a tile lives.

No rewrite changes what a program stores, but for the order of sums in float32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import replace

from .check import Types, walk
from .fuse import each, expressions, mapped, statements, substitute
from .nodes import (
    ACC,
    OPERAND,
    Add,
    Blocks,
    Cast,
    Const,
    Dot,
    Expr,
    For,
    Let,
    Load,
    Set,
    Stmt,
    Var,
    When,
    Where,
)
from .program import Program
from .rewrite import drop_unused


def operands_once(program: Program, types: Types) -> Program:
    """The program without operands of operands: what is one already is not widened and rounded again.

    P = acc(Q_features)
    P_operand = operand(P)         becomes
    O += P_operand @ S_operand                 O += Q_features @ S_operand
    """
    every = [stmt for stmt in statements(program.body) if isinstance(stmt, Let)]
    widened: dict[str, Expr] = {}
    same: dict[str, Expr] = {}
    for stmt in every:
        match stmt.value:
            case Cast(Var(name) as x, dtype) if dtype == ACC and types[name].dtype == OPERAND:
                widened[stmt.name] = x
    for stmt in every:
        match stmt.value:
            case Cast(Var(name), dtype) if dtype == OPERAND and name in widened:
                same[stmt.name] = widened[name]
    return drop_unused(replace(program, body=mapped(program.body, lambda x: substitute(x, same))))


def loads_once(program: Program) -> Program:
    """The program in which what is loaded for products alone is loaded as their operand.

    K = load k[...] as acc
    K_features = operand(K)        becomes     K_features = load k[...] as operand
    """
    every = list(statements(program.body))
    read = [node for stmt in every for expr in expressions(stmt) for node in walk(expr)]
    loads = {s.name: s.value for s in every if isinstance(s, Let) and isinstance(s.value, Load)}
    once = {name for name, load in loads.items() if load.dtype == ACC and read.count(Var(name)) == 1}

    def loaded(value: Expr) -> Expr:
        match value:
            case Cast(Var(name), dtype) if dtype == OPERAND and name in once:
                return replace(loads[name], dtype=OPERAND)
        return value

    return drop_unused(replace(program, body=mapped(program.body, loaded)))


def masked_late(program: Program, masks: Collection[str]) -> Program:
    """The program in which what these masks leave out is left out of what is rounded.

    A = where(seen, x, 0.0)                    A = x
    A_operand = operand(A)         becomes     A_operand = where(seen, operand(A), 0.0)
    """
    every, read = _with_readings(program)
    masked: dict[str, Where] = {}
    for stmt in every:
        match stmt:
            case Let(name, Where(Var(mask), _, Const(0.0)) as value) if mask in masks and read[name] == 1:
                masked[name] = value

    def late(stmt: Stmt) -> tuple[Stmt, ...]:
        match stmt:
            case Let(name, _) if name in masked:
                return (Let(name, masked[name].x),)
            case Let(_, Cast(Var(name), dtype) as value) if name in masked and dtype == OPERAND:
                zero = Cast(Const(0.0), dtype)
                return (replace(stmt, value=Where(masked[name].condition, value, zero)),)
        return (stmt,)

    return replace(program, body=each(program.body, late))


def added_at_once(program: Program) -> Program:
    """The program in which products that are only added to a sum are added as they are made.

    x = a @ y
    x += b                                     S += a @ y
    S += x                         becomes     S += b
    """
    _, read = _with_readings(program)

    def block(body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        body = tuple(
            replace(stmt, body=block(stmt.body)) if isinstance(stmt, For | Blocks | When) else stmt
            for stmt in body
        )
        parts: dict[str, list[tuple[int, Expr]]] = {}
        for place, stmt in enumerate(body):
            match stmt:
                case Let(name, Dot() as value) if read[name] == 1:
                    parts[name] = [(place, value)]
                case Add(name, value) if name in parts:
                    parts[name].append((place, value))
        moved: dict[int, tuple[Stmt, ...]] = {}
        for end, stmt in enumerate(body):
            if isinstance(stmt, Add) and isinstance(stmt.value, Var) and stmt.value.name in parts:
                terms = parts[stmt.value.name]
                if all(place < end and _stays(value, body[place + 1 : end]) for place, value in terms):
                    moved |= dict.fromkeys((place for place, _ in terms), ())
                    moved[end] = tuple(Add(stmt.name, value) for _, value in terms)
        return tuple(part for place, stmt in enumerate(body) for part in moved.get(place, (stmt,)))

    return replace(program, body=block(program.body))


def _stays(value: Expr, body: tuple[Stmt, ...]) -> bool:
    """Whether no statement introduces anew or changes what an expression reads."""
    read = {node.name for node in walk(value) if isinstance(node, Var)}
    return not any(stmt.name in read for stmt in statements(body) if isinstance(stmt, Let | Set | Add))


def _with_readings(program: Program) -> tuple[list[Stmt], Counter[str]]:
    """All statements, and how often they read each variable."""
    every = list(statements(program.body))
    nodes = (node for stmt in every for expr in expressions(stmt) for node in walk(expr))
    return every, Counter(node.name for node in nodes if isinstance(node, Var))
