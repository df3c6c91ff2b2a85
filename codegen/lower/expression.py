"""From a parsed elementwise expression (`spec.feature_map.to_tree`) to tile expressions."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from ..ir.nodes import Binary, Const, Expr, Unary, Where

_BINARY: dict[str, Callable[[float, float], float]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "max": max,
    "min": min,
}
_UNARY: dict[str, Callable[[float], float]] = {
    "neg": operator.neg,
    "exp": math.exp,
    "log": math.log,
    "sqrt": math.sqrt,
    "abs": abs,
    "tanh": math.tanh,
    "sigmoid": lambda x: 1.0 / (1.0 + math.exp(-x)),
    "sin": math.sin,
    "cos": math.cos,
    "erf": math.erf,
}


class Function:
    """An expression of a spec, and its derivative, to be applied to tiles."""

    def __init__(self, source: str) -> None:
        # Imported here: it takes sympy, and who only asks what a mixer is needs none.
        from ..spec import feature_map

        parsed = feature_map.parse(source)
        self._tree, self._slope = (
            feature_map.to_tree(parsed),
            feature_map.to_tree(feature_map.derivative(parsed)),
        )

    def of(self, x: Expr) -> Expr:
        """The function of x."""
        return expression(self._tree, x)

    def slope(self, x: Expr) -> Expr:
        """Its derivative at x."""
        return expression(self._slope, x)

    @property
    def keeps_zero(self) -> bool:
        """Whether it is 0 at 0."""
        return value_at(self._tree, 0.0) == 0.0


def expression(tree: tuple[Any, ...], x: Expr) -> Expr:
    """The expression `tree` applied to `x`."""
    op, *arguments = tree
    if op == "x":
        return x
    if op == "const":
        return Const(float(arguments[0]))
    operands = [expression(argument, x) for argument in arguments]
    if op == "where_positive":
        condition, positive, otherwise = operands
        return Where(condition > 0.0, positive, otherwise)
    if op in _BINARY:
        return Binary(op, *operands)
    return Unary(op, *operands)


def value_at(tree: tuple[Any, ...], x: float) -> float:
    """The number that `tree` gives for one `x`; NaN where it gives none."""
    op, *arguments = tree
    if op == "x":
        return x
    if op == "const":
        return float(arguments[0])
    values = [value_at(argument, x) for argument in arguments]
    try:
        if op == "where_positive":
            return values[1] if values[0] > 0.0 else values[2]
        return _BINARY[op](*values) if op in _BINARY else _UNARY[op](*values)
    except (ArithmeticError, ValueError):
        return math.nan
