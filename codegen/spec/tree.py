"""Expressions as nested tuples, the neutral scalar form that lowering takes.

    ("x",)  ("const", 0.5)  ("exp", a)  ("add", a, b)  ("where", ("gt", a, b), c, d)

A comparison is the condition of a where, and does not hold of NaN; min and max of NaN are NaN.  Named
functions such as softplus are written out here, in forms that stay finite wherever their value is and keep
the digits of small values.  Derivatives are in `slope.py`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import reduce
from typing import Any, TypeAlias

import sympy
from sympy import Expr, Function

from ..errors import ExpressionError
from . import functions as f
from .ordering import ordered_factors, ordered_terms

Tree: TypeAlias = tuple[Any, ...]

X: Tree = ("x",)


def const(value: float) -> Tree:
    return ("const", float(value))


ZERO, ONE = const(0.0), const(1.0)

UNARY: dict[str, Callable[[float], float]] = {
    "neg": operator.neg,
    "exp": math.exp,
    "expm1": math.expm1,
    "log": math.log,
    "log1p": math.log1p,
    "sqrt": math.sqrt,
    "abs": abs,
    "relu": lambda u: max(u, 0.0),
    "tanh": math.tanh,
    "sigmoid": lambda u: 1.0 / (1.0 + math.exp(-u)) if u >= 0 else math.exp(u) / (1.0 + math.exp(u)),
    "sin": math.sin,
    "cos": math.cos,
    "erf": math.erf,
    "erfc": math.erfc,
}
BINARY: dict[str, Callable[[float, float], float]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "max": max,
    "min": min,
    "if_positive": lambda u, a: a if u > 0 else 0.0,
}
COMPARISONS: dict[str, Callable[[float, float], bool]] = {"gt": operator.gt, "lt": operator.lt}
"""What each operation gives of numbers.

relu is max with 0 but for its slope at 0, which is 0; if_positive of a NaN that it asks about is NaN.
"""


def _fold(text: str, function: Callable[..., float], *values: float) -> Tree:
    try:
        result = function(*values)
    except (ValueError, ZeroDivisionError, OverflowError):
        result = math.nan
    if not math.isfinite(result):
        raise ExpressionError(f"{text} of {', '.join(f'{v:g}' for v in values)} is not a finite number")
    return const(result)


def unary(op: str, a: Tree) -> Tree:
    """One operation, done at once when its operand is a constant."""
    if a[0] == "const":
        return _fold(op, UNARY[op], a[1])
    return (op, a)


def binary(op: str, a: Tree, b: Tree) -> Tree:
    """One operation, done at once when both operands are constants, and left out when it changes nothing.

    A constant stands first in a product and last in min and max; a constant divisor becomes a factor.
    """
    if a[0] == b[0] == "const":
        return _fold(op, BINARY[op], a[1], b[1])
    if op in ("min", "max") and a[0] == "const":
        return (op, b, a)
    if op == "div" and b[0] == "const":
        return binary("mul", _fold(op, operator.truediv, 1.0, b[1]), a)
    if (op in ("add", "sub") and b == ZERO) or (op == "mul" and b == ONE):
        return a
    if (op == "add" and a == ZERO) or (op == "mul" and a == ONE):
        return b
    return (op, a, b)


def where(comparison: str, a: Tree, b: Tree, chosen: Tree, otherwise: Tree) -> Tree:
    """`chosen` where the comparison of a and b holds, else `otherwise`, also of NaN."""
    if a[0] == b[0] == "const":
        return chosen if COMPARISONS[comparison](a[1], b[1]) else otherwise
    return ("where", (comparison, a, b), chosen, otherwise)


def _power(base: Tree, exponent: int) -> Tree:
    """A whole power, 1 or more, by repeated squaring."""
    if exponent == 1:
        return base
    half = _power(base, exponent // 2)
    square = binary("mul", half, half)
    return binary("mul", square, base) if exponent % 2 else square


def _elu(u: Tree, factor: Tree = ONE, added: Tree = ZERO) -> Tree:
    """factor · elu(u) + added.

    A constant near the factor meets the -1 first: elu(u) + 1 stays positive for large negative u.  The branch
    of 0 is that of u, whose slope autograd takes there, too.
    """
    held = binary("min", u, ZERO)
    rest = binary("sub", added, factor)
    if abs(rest[1]) < abs(added[1]):
        below = binary("add", binary("mul", factor, unary("exp", held)), rest)
    else:
        below = binary("add", binary("mul", factor, unary("expm1", held)), added)
    return where("lt", u, ZERO, below, binary("add", binary("mul", factor, u), added))


def _softplus(u: Tree) -> Tree:
    tail = unary("log1p", unary("exp", unary("neg", unary("abs", u))))
    return binary("add", binary("max", u, ZERO), tail)


def _gelu(u: Tree) -> Tree:
    half = binary("mul", const(0.5), u)
    return binary("mul", half, unary("erfc", binary("mul", const(-math.sqrt(0.5)), u)))


def _sign(u: Tree) -> Tree:
    """1, 0 or -1, and NaN of NaN."""
    return where("gt", u, ZERO, ONE, where("lt", u, ZERO, const(-1.0), u))


_EXPANSIONS: dict[type[Function], Callable[[Tree], Tree]] = {
    f.Elu: _elu,
    f.Softplus: _softplus,
    f.Silu: lambda u: binary("mul", u, unary("sigmoid", u)),
    f.Gelu: _gelu,
    f.Sign: _sign,
}


def _sum(expr: Expr) -> Tree:
    terms = ordered_terms(expr)
    result: Tree | None = None
    if terms[-1].is_Rational:
        first = next((t for t in terms if isinstance(t.as_coeff_Mul()[1], f.Elu)), None)
        if first is not None:
            factor, elu = first.as_coeff_Mul()
            result = _elu(to_tree(elu.args[0]), const(factor), to_tree(terms[-1]))
            terms = [term for term in terms[:-1] if term is not first]
    if result is None:
        result, terms = to_tree(terms[0]), terms[1:]
    for term in terms:
        negative = term.as_coeff_Mul()[0].is_negative
        result = binary("sub", result, to_tree(-term)) if negative else binary("add", result, to_tree(term))
    return result


def _product(expr: Expr) -> Tree:
    coefficient, above, below = ordered_factors(expr)
    top = [to_tree(factor) for factor in above]
    if coefficient not in (1, -1) or not top:
        top.insert(0, const(coefficient if not top else abs(coefficient)))
    result = reduce(lambda a, b: binary("mul", a, b), top)
    if below:
        result = binary("div", result, reduce(lambda a, b: binary("mul", a, b), map(to_tree, below)))
    return unary("neg", result) if above and coefficient < 0 else result


def to_tree(expr: Expr) -> Tree:
    """The expression as nested tuples in one fixed order of arguments.

    Raises ExpressionError where a constant part has no finite value.  Common subtrees are shared objects.
    """
    if expr.is_Symbol:
        return X
    if expr.is_Rational or expr is sympy.pi:
        return const(expr)
    if expr.is_Add:
        return _sum(expr)
    if expr.is_Mul or (expr.is_Pow and expr.exp.is_negative):
        return _product(expr)
    if expr.is_Pow:
        return _power(to_tree(expr.base), int(expr.exp))
    arguments = [to_tree(argument) for argument in expr.args]
    if type(expr) in _EXPANSIONS:
        return _EXPANSIONS[type(expr)](*arguments)
    if isinstance(expr, f.Minimum | f.Maximum):
        return binary("min" if isinstance(expr, f.Minimum) else "max", *arguments)
    return unary(expr.text, *arguments)


def value_at(tree: Tree, x: float) -> float:
    """The number that `tree` gives for one `x`; NaN where it gives none."""
    op, *operands = tree
    if op == "x":
        return x
    if op == "const":
        return float(operands[0])
    if op == "where":
        (comparison, *compared), chosen, otherwise = operands
        holds = COMPARISONS[comparison](*(value_at(operand, x) for operand in compared))
        return value_at(chosen if holds else otherwise, x)
    values = [value_at(operand, x) for operand in operands]
    try:
        return BINARY[op](*values) if op in BINARY else UNARY[op](*values)
    except (ArithmeticError, ValueError):
        return math.nan


def tree_size(tree: Tree) -> int:
    """The number of nodes when nothing is shared."""
    sizes: dict[int, int] = {}

    def size(node: Tree) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = 1 + sum(size(child) for child in node[1:] if isinstance(child, tuple))
        return sizes[id(node)]

    return size(tree)
