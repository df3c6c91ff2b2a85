"""Derivatives as trees: the gradient by x of a map whose value has the gradient g.

A derivative is linear in factors that choose (`functions.SELECTORS`): relu's is 1 or 0.  Such a factor never
multiplies.  It becomes a where around g and all other factors, so that a root or a reciprocal whose slope is
infinite makes no NaN of a gradient that is 0.  A where of NaN gives NaN, as the function itself does.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce

from sympy import Add, Expr, Function, Mul

from . import functions as f
from .ordering import ordered_terms
from .tree import ONE, ZERO, Tree, binary, const, to_tree, unary, where

G: Tree = ("g",)

Selectors = tuple[Function, ...]


def gradient(slope: Expr, upstream: Tree = G) -> Tree:
    """upstream · slope, for a derivative by x.

    Raises ExpressionError where a constant part has no finite value.
    """
    groups: dict[Selectors, list[Expr]] = {}
    for selectors, factor in _terms(slope):
        groups.setdefault(selectors, []).append(factor)
    parts = [
        reduce(_chosen, selectors, binary("mul", upstream, to_tree(Add(*factors))))
        for selectors, factors in groups.items()
    ]
    return reduce(lambda a, b: binary("add", a, b), parts)


def _terms(slope: Expr) -> Iterator[tuple[Selectors, Expr]]:
    """The terms of a derivative, each as the factors that choose and the product of the others.

    Sums are multiplied out as far as they choose.
    """
    for term in ordered_terms(slope):
        factors = Mul.make_args(term)
        selectors = tuple(factor for factor in factors if isinstance(factor, f.SELECTORS))
        others = [factor for factor in factors if factor not in selectors]
        mixed = next((factor for factor in others if factor.has(*f.SELECTORS)), None)
        if mixed is None:
            yield selectors, Mul(*others)
            continue
        others.remove(mixed)
        for inner, factor in _terms(mixed):
            yield from ((selectors + inner + more, rest) for more, rest in _terms(Mul(factor, *others)))


def _chosen(product: Tree, selector: Function) -> Tree:
    """selector · product, and NaN where what the selector compares is NaN."""
    if isinstance(selector, f.Step):
        return binary("if_positive", to_tree(selector.args[0]), product)
    a, b = map(to_tree, selector.args)
    half = const(0.5)
    for compared in (a, b):
        if not any(_keeps_nan(factor, compared) for factor in (product, half)):
            half = binary("add", half, _zero_of(compared))
    return where("lt", a, b, ZERO, binary("mul", where("gt", a, b, ONE, half), product))


def _zero_of(tree: Tree) -> Tree:
    """0, and NaN of NaN."""
    return binary("min", unary("relu", tree), ZERO)


def _keeps_nan(tree: Tree, part: Tree) -> bool:
    """Whether `tree` is surely NaN where `part` is."""
    if part[0] == "const" or tree == part:
        return True
    if tree[0] == "where":
        _, condition, chosen, otherwise = tree
        return _keeps_nan(otherwise, part) and (
            _keeps_nan(chosen, part) or any(_keeps_nan(compared, part) for compared in condition[1:])
        )
    return any(_keeps_nan(child, part) for child in tree[1:] if isinstance(child, tuple))
