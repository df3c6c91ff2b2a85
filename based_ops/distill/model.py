"""Models whose long convolutions become state spaces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from based_ops.codegen.spec.language_model import Hyena, Mixer, ModelSpec, MultiHyena, Placement

from ..errors import ArgumentValueError, fail
from ..layers import ModalConv
from ..models import LanguageModel
from .filters import TOLERANCE, Fitted, Norm, fitted


@dataclass(frozen=True)
class Layer:
    """One long convolution, and what it became.

    Examples:
        >>> from based_ops.distill import distil
        >>> from based_ops.models import LanguageModel
        >>> distil(LanguageModel("hyena-tiny"), order=4)[1][0].block
        0
    """

    block: int
    kind: str
    fit: Fitted


def distil(
    model: LanguageModel,
    order: int | Literal["auto"] = "auto",
    norm: Norm = "l2",
    tolerance: float = TOLERANCE,
    told: Callable[[str], None] | None = None,
) -> tuple[LanguageModel, list[Layer]]:
    """`model` with every long filter as a state space (Laughing Hyena, arXiv 2310.18780), and the fits.

    A layer has one order for all of its filters; options are those of `fitted`.  Other weights are copies.

    Args:
        model: A model with long convolutions.
        order: An even number, or `auto`.
        norm: `l2` or `hinf`.
        tolerance: Of `auto`.
        told: Called with a line after each step.

    Raises:
        ArgumentValueError: there is no long convolution, or one cannot be fitted, which it names.

    Examples:
        >>> from based_ops.distill import distil
        >>> from based_ops.models import LanguageModel
        >>> model, layers = distil(LanguageModel("hyena-tiny"), order=4)
        >>> [layer.kind for layer in layers]
        ['hyena', 'hyena']
    """
    layers, mixers = [], list(model.spec.mixers())
    weights = dict(model.state_dict())
    for i, mixer in enumerate(mixers):
        if not isinstance(mixer, Hyena | MultiHyena) or mixer.modes:
            continue
        if told:
            told(f"block {i}")
        long: Any = cast(Any, model.blocks[i]).mixer.long
        where = f"blocks.{i}.mixer.long"
        with torch.no_grad():
            filters = long.filters(long.length).t()
        each = None if told is None else (lambda text, i=i: told(f"block {i}, {text}"))
        fit = fitted(filters, order, norm, tolerance, each, f"{where}.filters")
        layers.append(Layer(i, mixer.kind, fit))
        mixers[i] = replace(mixer, modes=fit.modes.rate.shape[1])
        for name in [name for name in weights if name.startswith(f"{where}.")]:
            del weights[name]
        for name, x in _modal(fit, long.bias).state_dict().items():
            weights[f"{where}.{name}"] = x
    if not layers:
        kinds = ", ".join(sorted({mixer.kind for mixer in mixers}))
        what = "a model with long convolutions, hyena or multi_hyena"
        fail(ArgumentValueError, "checkpoint", f"{model.spec.name}, of {kinds}", what)
    weight = model.embedding.weight
    made = LanguageModel(placed(model.spec, mixers), device=weight.device, dtype=weight.dtype)
    made.load_state_dict(weights)
    return made.eval(), layers


def placed(spec: ModelSpec, mixers: list[Mixer]) -> ModelSpec:
    """The spec of a model with these mixers, one a layer, the most frequent as the default."""
    usual = Counter(mixers).most_common(1)[0][0]
    others: dict[Mixer, list[int]] = {}
    for i, mixer in enumerate(mixers):
        if mixer != usual:
            others.setdefault(mixer, []).append(i)
    placement = tuple(Placement(tuple(where), mixer) for mixer, where in others.items())
    name = spec.name if spec.name.endswith("-distilled") else f"{spec.name}-distilled"
    return replace(spec, name=name, mixer=usual, placement=placement)


def _modal(fit: Fitted, bias: Tensor) -> ModalConv:
    poles = fit.modes.log_poles.exp()
    made = ModalConv.of(poles, fit.modes.residues, fit.skip.to(bias) + bias.detach())
    # Poles so near to 1 that their magnitude rounds to it keep the decay that was fitted.
    with torch.no_grad():
        made.rate.copy_(fit.modes.rate.t())
    return made
