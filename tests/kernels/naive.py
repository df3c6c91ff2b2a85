"""A second oracle, independent of `based_ops.reference`: attention weight by weight, in NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

MAPS: dict[str, Callable[[Array], Array]] = {
    "x": lambda x: x,
    "x**2": np.square,
    "relu(x)": lambda x: np.maximum(x, 0.0),
    "elu(x) + 1": lambda x: np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))),
    "sigmoid(x) + 0.1": lambda x: 1 / (1 + np.exp(-x)) + 0.1,
}


def taylor(order: int, scale: float) -> Callable[[Array, Array], float]:
    """The weight of one query and one key: the start of the series of exp(scale · q·k)."""
    return lambda q, k: sum((scale * float(q @ k)) ** n / math.factorial(n) for n in range(order + 1))


def power(degree: int, scale: float) -> Callable[[Array, Array], float]:
    """The same of (scale · q·k) to a power."""
    return lambda q, k: (scale * float(q @ k)) ** degree


def mapped(text: str, scale: float) -> Callable[[Array, Array], float]:
    """The weight of one query and one key under an elementwise map."""
    return lambda q, k: scale * float(MAPS[text](q) @ MAPS[text](k))


def linear_attention(
    weight: Callable[[Array, Array], float],
    eps: float | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Array | None = None,
) -> Array:
    """o [T, V] of one head, q, k [T, D], v [T, V]; `eps` is None where there is no denominator.

    Weights fade by exp(g), [T], at every later token.
    """
    rows_q, rows_k, rows_v = (x.detach().double().cpu().numpy() for x in (q, k, v))
    out = np.zeros_like(rows_v)
    for i, query in enumerate(rows_q):
        weights = np.array([weight(query, key) for key in rows_k[: i + 1]])
        if g is not None:
            weights = weights * np.exp([g[j + 1 : i + 1].sum() for j in range(i + 1)])
        out[i] = weights @ rows_v[: i + 1]
        if eps is not None:
            out[i] /= weights.sum() + eps
    return out


def softmax_attention(scale: float, window: int, q: Tensor, k: Tensor, v: Tensor) -> Array:
    """o [T, V] of one head, each query with the `window` keys that end at its own."""
    rows_q, rows_k, rows_v = (x.detach().double().cpu().numpy() for x in (q, k, v))
    out = np.zeros_like(rows_v)
    for i, query in enumerate(rows_q):
        near = slice(max(0, i + 1 - window), i + 1)
        weights = np.exp(scale * (rows_k[near] @ query))
        out[i] = weights @ rows_v[near] / weights.sum()
    return out
