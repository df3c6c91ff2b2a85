"""Feature maps evaluated by PyTorch from the spec alone."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..extras import require

if TYPE_CHECKING:
    from based_ops.codegen.mixers.hybrid import Hybrid
    from based_ops.codegen.mixers.linear_attention import LinearAttention
    from based_ops.codegen.spec.model import Power, TaylorExp

    Polynomial = TaylorExp | Power
    Mapped = LinearAttention | Hybrid
    """Layers whose weights are made by a feature map."""

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "neg": torch.neg,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": torch.log,
    "log1p": torch.log1p,
    "sqrt": torch.sqrt,
    "abs": torch.abs,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "sin": torch.sin,
    "cos": torch.cos,
    "erf": torch.erf,
    "erfc": torch.erfc,
}
_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "max": torch.maximum,
    "min": torch.minimum,
    "gt": torch.gt,
    "lt": torch.lt,
    "if_positive": lambda x, y: torch.where(x > 0, y, torch.relu(x)),
}


@functools.cache
def _tree(expression: str) -> tuple[Any, ...]:
    require("compile", "the naive mathematics of an expression", "sympy")
    from based_ops.codegen.spec.feature_map import parse, to_tree

    return to_tree(parse(expression))


def elementwise(expression: str, x: Tensor) -> Tensor:
    """An elementwise map, such as "elu(x) + 1", of every component of x, in x's dtype."""
    done: dict[int, Tensor] = {}

    def value(node: tuple[Any, ...]) -> Tensor:
        if id(node) not in done:
            done[id(node)] = compute(node)
        return done[id(node)]

    def compute(node: tuple[Any, ...]) -> Tensor:
        match node:
            case ("x",):
                return x
            case ("const", number):
                return torch.full((), number, dtype=x.dtype, device=x.device)
            case ("where", condition, chosen, otherwise):
                return torch.where(value(condition), value(chosen), value(otherwise))
            case (name, argument):
                return _UNARY[name](value(argument))
            case (name, left, right):
                return _BINARY[name](value(left), value(right))
        raise ValueError(f"not an expression tree: {node!r}")

    return value(_tree(expression))


def key_features(spec: Mapped, k: Tensor) -> Tensor:
    """Features of keys, [..., D] to [..., F], in the order of a state's rows, without scale."""
    if spec.feature_map.kind == "elementwise":
        return elementwise(spec.feature_map.expression, k)
    with_one = torch.cat([k, torch.ones_like(k[..., :1])], dim=-1)
    first, *others = _coordinates(spec.feature_map, k.shape[-1], k.device)
    features = with_one[..., first]
    for index in others:
        features = features * with_one[..., index]
    return features


def query_features(spec: Mapped, q: Tensor, scale: float) -> Tensor:
    """Features of queries, with scale and weights: their dot product with `key_features` is A_ij."""
    if spec.feature_map.kind == "elementwise":
        return scale * elementwise(spec.feature_map.expression, q)
    d = q.shape[-1]
    indices = torch.stack(_coordinates(spec.feature_map, d, q.device))
    # A component that a product has n times divides its weight by n!.
    counts = (indices.unsqueeze(-1) == torch.arange(d, device=q.device)).sum(0)
    factorials = [math.factorial(n) for n in range(len(indices) + 1)]
    orders = torch.tensor(factorials, device=q.device, dtype=q.dtype)[counts].prod(-1)
    whole = factorials[-1] if spec.feature_map.kind == "power" else 1
    return key_features(spec, scale * q) * (whole / orders)


def weight(feature_map: Polynomial, s: Tensor) -> Tensor:
    """A_ij of s = scale · q_i·k_j."""
    if feature_map.kind == "power":
        return s**feature_map.degree
    term = total = torch.ones_like(s)
    for n in range(1, feature_map.order + 1):
        term = term * s / n
        total = total + term
    return total


def _coordinates(feature_map: Polynomial, d: int, device: torch.device) -> list[Tensor]:
    """The components of (x, 1) whose product is each feature, [F] for each factor."""
    if feature_map.kind == "power":
        return _multisets(d, feature_map.degree, device)
    with_one = torch.arange(d + 1, device=device)
    if feature_map.order == 1:
        return [with_one]
    if feature_map.order == 2:  # pairs of x by rotation, x itself, and 1
        f = torch.arange(d * (d + 1) // 2, device=device)
        a = torch.cat([f % d, with_one])
        b = torch.cat([(f % d + f // d) % d, torch.full_like(with_one, d)])
        return [a, b]
    return _multisets(d + 1, feature_map.order, device)


def _multisets(coordinates: int, degree: int, device: torch.device) -> list[Tensor]:
    """All choices of indices a ≥ b ≥ ..., in lexicographic order: a tensor for each of the indices."""
    choices = itertools.combinations_with_replacement(range(coordinates), degree)
    return list(torch.tensor(sorted(choice[::-1] for choice in choices), device=device).unbind(-1))
