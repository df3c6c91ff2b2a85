"""From an elementwise expression as nested tuples (`spec/tree.py`) to tile expressions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..ir.nodes import Binary, Const, Expr, Unary, Where

if TYPE_CHECKING:
    from ..spec.tree import Tree

_RENAMED = {"min": "min_or_nan", "max": "max_or_nan"}


class Function:
    """An expression of a spec, and its derivative, to be applied to tiles."""

    def __init__(self, source: str) -> None:
        # Imported here: it takes sympy, and who only asks what a mixer is needs none.
        from ..spec.feature_map import gradient, parse, to_tree
        from ..spec.tree import value_at

        parsed = parse(source)
        self._tree, self._gradient = to_tree(parsed), gradient(parsed)
        self.keeps_zero = value_at(self._tree, 0.0) == 0.0
        """Whether it is 0 at 0."""

    def of(self, x: Expr) -> Expr:
        """The function of x."""
        return expression(self._tree, x)

    def gradient(self, x: Expr, gradient: Expr) -> Expr:
        """The gradient by x, given the one by the function's value."""
        return expression(self._gradient, x, gradient)


def expression(tree: Tree, x: Expr, gradient: Expr | None = None) -> Expr:
    """The expression `tree` applied to `x`, and where it is a gradient to the one by the function's value."""
    op: str = tree[0]
    arguments = tree[1:]
    if op == "x":
        return x
    if op == "g":
        assert gradient is not None
        return gradient
    if op == "const":
        return Const(float(arguments[0]))
    operands = [expression(argument, x, gradient) for argument in arguments]
    match op, operands:
        case "where", [condition, chosen, otherwise]:
            return Where(condition, chosen, otherwise)
        case "relu", [u]:
            return Binary("max_or_nan", u, Const(0.0))
        case _, [u]:
            return Unary(op, u)
        case _, [a, b]:
            return Binary(_RENAMED.get(op, op), a, b)
    raise ValueError(f"not an expression tree: {tree!r}")
