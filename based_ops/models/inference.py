"""A model as it generates fastest: fewer products, and steps whose blocks Inductor compiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..layers.projections import has_projections, merge
from .language_model import LanguageModel

MOST_COMPILED = 256
"""Kinds of blocks times sizes of batches for which a process compiles steps."""


def merge_projections(model: LanguageModel) -> LanguageModel:
    """Makes one product of those for queries, keys and values, in place; returns `model`.

    For inference: the merged weights take no gradients, and the model's state dict has `qkv_proj.weight`
    where it had `q_proj.weight`, `k_proj.weight` and `v_proj.weight`, so load and save it before.

    Args:
        model: Whose layers of attention are changed.

    Examples:
        >>> from based_ops import models
        >>> net = models.merge_projections(models.LanguageModel("based-tiny"))
        >>> any("qkv_proj" in name for name in net.state_dict())
        True
    """
    for layer in list(model.modules()):
        if has_projections(layer):
            merge(layer)
    return model


def compiled(call: Callable[..., Any], rows: int, backend: str = "inductor") -> Callable[..., Any]:
    """`call` as `torch.compile` makes it for inputs of one shape, of `rows` tokens in all.

    For a single row Inductor writes the products itself, as sums that take in what stands before and after
    them: it does so where it is asked to tune its tiles too.
    """
    options: dict[str, Any] | None = None
    if backend == "inductor" and rows == 1:
        options = {"coordinate_descent_tuning": True}
    return torch.compile(call, dynamic=False, backend=backend, options=options)


@contextmanager
def room_to_compile() -> Iterator[None]:
    """Blocks of a kind share what is compiled, and PyTorch counts all kinds and sizes as one function."""
    with torch._dynamo.config.patch(recompile_limit=MOST_COMPILED, fail_on_recompile_limit_hit=True):
        yield
