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
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "max": torch.maximum,
    "min": torch.minimum,
    "gt": torch.gt,
    "lt": torch.lt,
    "if_positive": lambda x, y: torch.where(x > 0, y, torch.relu(x)),
    "where": torch.where,
}


_OF_TORCH = "exp expm1 log log1p sqrt abs tanh sigmoid sin cos erf minimum maximum".split()


def run_tree(tree: Tree, x: Tensor, g: Tensor | None = None) -> Tensor:
    """The value of a tree at every element of `x`; of a gradient's, with `g` by the map's value."""
    if tree[0] in ("x", "g"):
        return {"x": x, "g": g}[tree[0]]
    if tree[0] == "const":
        return torch.full_like(x, tree[1])
    return _TREE_OPS[tree[0]](*(run_tree(child, x, g) for child in tree[1:]))


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
        **{n: getattr(torch, n) for n in _OF_TORCH},
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
