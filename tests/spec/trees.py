"""Two ways to evaluate an expression in torch: its tree, and its text by torch's own functions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from based_ops.codegen.spec.tree import Tree

_TREE_OPS: dict[str, Any] = {
    "neg": torch.neg,
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "abs": torch.abs,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "sin": torch.sin,
    "cos": torch.cos,
    "erf": torch.erf,
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "max": torch.maximum,
    "min": torch.minimum,
    "where_positive": lambda condition, a, b: torch.where(condition > 0, a, b),
}


def run_tree(tree: Tree, x: Tensor) -> Tensor:
    """The value of a tree at every element of `x`."""
    if tree[0] == "x":
        return x
    if tree[0] == "const":
        return torch.full_like(x, tree[1])
    return _TREE_OPS[tree[0]](*(run_tree(child, x) for child in tree[1:]))


def run_text(text: str, x: Tensor) -> Tensor:
    """The value of an expression that a test made, at every element of `x`, in torch's arithmetic."""

    def lift(function: Any) -> Any:
        return lambda *values: function(*(torch.as_tensor(value, dtype=x.dtype) for value in values))

    functions = {
        "softplus": lambda u: torch.logaddexp(u, torch.zeros_like(u)),
        "relu": F.relu,
        "elu": F.elu,
        "silu": F.silu,
        "gelu": F.gelu,
        **{n: getattr(torch, n) for n in "exp log sqrt abs tanh sigmoid sin cos erf minimum maximum".split()},
    }
    scope = {name: lift(function) for name, function in functions.items()}
    return torch.as_tensor(eval(text, {"__builtins__": {}}, {"x": x, **scope})).expand_as(x)


def nodes(tree: Tree) -> set[str]:
    """The operations of a tree."""
    found = {tree[0]}
    for child in tree[1:]:
        if isinstance(child, tuple):
            found |= nodes(child)
    return found
