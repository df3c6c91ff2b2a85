"""Operands that are rounded once: for printers that decide themselves where a tile lives.

Neither rewrite changes a number that a program stores.
"""

from __future__ import annotations

from dataclasses import replace

from .check import Types, walk
from .fuse import expressions, mapped, statements, substitute
from .nodes import ACC, OPERAND, Cast, Expr, Let, Load, Var
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
