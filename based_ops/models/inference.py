"""A model as it generates fastest: fewer products, and steps whose blocks Inductor compiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from typing import Any

import torch

from ..layers.projections import has_projections, merge
from .language_model import LanguageModel

MOST_COMPILED = 256
"""Kinds of blocks times sizes of batches for which a process compiles steps."""
LONGEST = 8192
"""Numbers of a tile."""


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
    them: it does so where it is asked to tune its tiles too.  Such a sum is one tile here, not a loop, and
    its kernel is launched before the one ahead of it has ended (programmatic dependent launch, from Hopper
    on): weights come first in a tile, and are on their way while it waits for the row.
    """
    if backend != "inductor" or rows != 1:
        return torch.compile(call, dynamic=False, backend=backend)
    from torch._inductor import config

    # In all directions: two rows of 16 warps each look best until rows and warps change together.
    options: dict[str, Any] = {
        "coordinate_descent_tuning": True,
        "coordinate_descent_check_all_directions": True,
    }
    if hasattr(config.triton, "enable_pdl"):  # PyTorch from 2.10
        options["triton.enable_pdl"] = True
    made, tiles = torch.compile(call, dynamic=False, options=options), _sums_in_one_tile()

    def run(*args: Any, **keywords: Any) -> Any:
        with tiles():
            return made(*args, **keywords)

    return run


@cache
def _sums_in_one_tile() -> Callable[[], AbstractContextManager[Any]]:
    """Within it, Inductor keeps a sum over neighbours in memory in registers, up to `LONGEST` of them."""
    from torch._inductor.choices import InductorChoices
    from torch._inductor.runtime.hints import ReductionHint
    from torch._inductor.virtualized import V

    class Choices(InductorChoices):
        @staticmethod
        def should_use_persistent_reduction(features: Any, cooperative_reduction: bool) -> bool:
            if features.get_reduction_hint() == ReductionHint.INNER and not cooperative_reduction:
                return bool(V.graph.sizevars.statically_known_leq(features.reduction_numel, LONGEST))
            return InductorChoices.should_use_persistent_reduction(features, cooperative_reduction)

    return partial(V.set_choices_handler, Choices())


@contextmanager
def room_to_compile() -> Iterator[None]:
    """Blocks of a kind share what is compiled, and PyTorch counts all kinds and sizes as one function."""
    with torch._dynamo.config.patch(recompile_limit=MOST_COMPILED, fail_on_recompile_limit_hit=True):
        yield
