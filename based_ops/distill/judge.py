"""What distillation costs and wins: logits and perplexity beside the exact model, tokens a second, bytes."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from based_ops.codegen.spec.language_model import Attention

from ..layers import ModalConv
from ..models import LanguageModel
from .model import placed

ROWS = 4
"""Sequences of text that a call reads."""
HEAD = 64
"""Width of a head of the Transformer of equal size."""


@dataclass(frozen=True)
class Words:
    """How near logits are on text, and the perplexity of both models.

    Examples:
        >>> import torch
        >>> from based_ops.distill import distil, words
        >>> from based_ops.models import LanguageModel
        >>> exact = LanguageModel("hyena-tiny")
        >>> found = words(exact, distil(exact, order=4)[0], torch.randint(256, (2, 33)))
        >>> found.tokens
        64
    """

    tokens: int
    error: float
    """‖logits - exact logits‖ / ‖exact logits‖."""
    worst: float
    """The largest such part of one token's logits."""
    agree: float
    """The part of tokens with the same likeliest successor."""
    perplexity: float
    exact_perplexity: float


@dataclass(frozen=True)
class Pace:
    """How fast a model decodes, and what it keeps.

    Examples:
        >>> from based_ops.distill import distil, paces
        >>> from based_ops.models import LanguageModel
        >>> exact = LanguageModel("hyena-tiny")
        >>> found = paces(exact, distil(exact, order=4)[0], length=16, batch=1, new=2)
        >>> len(found)
        4
    """

    model: str
    parameters: int
    tokens_per_second: float
    state_bytes: int
    """Of one sequence with room for all its tokens; None is kept by a model that reads all again."""


@torch.no_grad()
def words(exact: LanguageModel, distilled: LanguageModel, rows: Tensor) -> Words:
    """Of rows [N,T+1] of text, whose last T tokens are predicted.

    Args:
        exact: The model as it was.
        distilled: What became of it.
        rows: int64 [N,T+1].

    Examples:
        >>> import torch
        >>> from based_ops.distill import distil, words
        >>> from based_ops.models import LanguageModel
        >>> exact = LanguageModel("hyena-tiny")
        >>> found = words(exact, distil(exact, order=4)[0], torch.randint(256, (2, 33)))
        >>> found.tokens
        64
    """
    device = exact.embedding.weight.device
    apart = whole = worst = lost = exact_lost = 0.0
    agree = 0
    for part in rows.long().to(device).split(ROWS):
        ids, targets = part[:, :-1], part[:, 1:].flatten()
        wanted, found = (net(ids)[0].double().flatten(0, 1) for net in (exact, distilled))
        error, size = (found - wanted).norm(dim=1), wanted.norm(dim=1)
        apart, whole = apart + float(error.square().sum()), whole + float(size.square().sum())
        worst = max(worst, float((error / size).max()))
        agree += int((found.argmax(1) == wanted.argmax(1)).sum())
        lost += float(cross_entropy(found, targets, reduction="sum"))
        exact_lost += float(cross_entropy(wanted, targets, reduction="sum"))
    count = rows.shape[0] * (rows.shape[1] - 1)
    return Words(
        count,
        math.sqrt(apart / whole),
        worst,
        agree / count,
        math.exp(lost / count),
        math.exp(exact_lost / count),
    )


@torch.no_grad()
def silenced(distilled: LanguageModel) -> LanguageModel:
    """The model with filters of their first tap alone: how much the others matter.

    Args:
        distilled: A model with state spaces for its long convolutions.

    Examples:
        >>> from based_ops.distill import distil, silenced
        >>> from based_ops.models import LanguageModel
        >>> net = silenced(distil(LanguageModel("hyena-tiny"), order=4)[0])
        >>> isinstance(net, LanguageModel)
        True
    """
    made = copy.deepcopy(distilled)
    for module in made.modules():
        if isinstance(module, ModalConv):
            module.bias.add_(2 * module.residues[..., 0].sum(0))
            module.residues.zero_()
    return made


@torch.no_grad()
def paces(
    exact: LanguageModel,
    distilled: LanguageModel,
    length: int,
    batch: int,
    new: int,
    told: Callable[[str], None] | None = None,
) -> list[Pace]:
    """Decoding the last `new` of `length` tokens for `batch` sequences, behind a prompt that is read at once.

    Beside the distilled model the exact one with relaxed convolutions, the same by transforms of the whole
    sequence for every token, and a Transformer of as many layers and as wide, with random weights.

    Args:
        exact: The model as it was.
        distilled: What became of it.
        length: Tokens of a sequence in all.
        batch: Sequences.
        new: Tokens that are timed.
        told: Called with a line after each model.

    Examples:
        >>> from based_ops.distill import distil, paces
        >>> from based_ops.models import LanguageModel
        >>> exact = LanguageModel("hyena-tiny")
        >>> found = paces(exact, distil(exact, order=4)[0], length=16, batch=1, new=2)
        >>> len(found)
        4
    """
    device, dtype = exact.embedding.weight.device, exact.embedding.weight.dtype
    heads = max(1, exact.spec.d_model // HEAD)
    while exact.spec.d_model % heads:
        heads -= 1
    attention = replace(placed(exact.spec, [Attention(heads)] * exact.spec.layers), name="transformer")
    transformer = LanguageModel(attention, device=device, dtype=dtype).eval()
    ids = torch.randint(exact.spec.vocabulary, (batch, length), device=device)
    found = []
    for name, net, run in (
        ("distilled", distilled, _stepping),
        ("exact, relaxed", exact, _stepping),
        ("exact, transforms of all", exact, _reading_again),
        ("Transformer", transformer, _stepping),
    ):
        if told:
            told(name)
        rate = batch / run(net, ids, new)
        kept = 0 if run is _reading_again else net.state_bytes(1, length)
        found.append(Pace(name, sum(x.numel() for x in net.parameters()), rate, kept))
    return found


def _stepping(net: LanguageModel, ids: Tensor, new: int) -> float:
    """Seconds a token of steps, the first apart: it makes spectra and delivers the prompt."""
    state: Any = net.init_state(ids.shape[0], ids.shape[1])
    first = ids.shape[1] - new
    if first > 1:
        state = net(ids[:, : first - 1], state, output_state=True, logits_to_keep=1)[1]
    net.step(ids[:, first - 1 : first], state)
    begin = _now(ids.device)
    for t in range(first, ids.shape[1]):
        net.step(ids[:, t : t + 1], state)
    return (_now(ids.device) - begin) / new


def _reading_again(net: LanguageModel, ids: Tensor, new: int) -> float:
    """Seconds a token of calls with all tokens so far; of eight at most."""
    few = min(new, 8)
    net(ids, logits_to_keep=1)
    begin = _now(ids.device)
    for t in range(ids.shape[1] - few, ids.shape[1]):
        net(ids[:, : t + 1], logits_to_keep=1)
    return (_now(ids.device) - begin) / few


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
