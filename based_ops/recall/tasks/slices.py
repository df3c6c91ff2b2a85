"""Perplexity of real text in two parts: tokens that the context has the answer to, and all others.

A *hit* is a token that ends a bigram which stood earlier in the same context, unless the bigram is so
frequent in the training text that a model can know it by heart (Zoology, arXiv 2312.04927, section 3: more
than 1250 times).  A model without recall pays for hits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import ArgumentValueError, ShapeError, fail

FREQUENT = 1250


@dataclass(frozen=True)
class Slice:
    """Some of a text's tokens."""

    tokens: int
    nats: float
    """Of all of them together."""

    @property
    def loss(self) -> float:
        """Nats a token; NaN of none."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)


@dataclass(frozen=True)
class Slices:
    """Hits, the other tokens, and all of them."""

    hits: Slice
    others: Slice

    @property
    def all(self) -> Slice:
        return Slice(self.hits.tokens + self.others.tokens, self.hits.nats + self.others.nats)


def recall_slices(
    logits: Callable[[Tensor], Tensor],
    rows: Tensor,
    train: Tensor,
    vocabulary: int,
    order: int = 2,
    frequent: int = FREQUENT,
    device: torch.device | str = "cpu",
    batch: int = 8,
) -> Slices:
    """What a model makes of contexts [N,T+1], whose last T tokens it predicts.

    `logits` gives [B,T,vocabulary] of ids [B,T]; `train` [M] is the text that the model was trained on.
    `order` is 2 for bigrams, as in the paper; of bytes, of which two say little, it can be more.
    """
    hits = of_contexts(rows, train, vocabulary, order, frequent)
    sums = torch.zeros(2, dtype=torch.float64)
    with torch.no_grad():
        for ids, hit in zip(rows.split(batch), hits.split(batch), strict=True):
            ids = ids.to(device, torch.int64)
            found = logits(ids[:, :-1]).float().flatten(0, 1)
            nats = torch.nn.functional.cross_entropy(found, ids[:, 1:].flatten(), reduction="none").cpu()
            sums += torch.stack([nats[hit.flatten()].double().sum(), nats[~hit.flatten()].double().sum()])
    count = int(hits.sum())
    return Slices(Slice(count, float(sums[0])), Slice(hits.numel() - count, float(sums[1])))


def of_contexts(
    rows: Tensor, train: Tensor, vocabulary: int, order: int = 2, frequent: int = FREQUENT
) -> Tensor:
    """Which of the last T tokens of contexts [N,T+1] are hits, bool [N,T]."""
    if order < 2 or vocabulary**order >= 2**63:
        most = int(63 / math.log2(vocabulary))
        fail(ArgumentValueError, "order", order, f"from 2 to {most}, with {vocabulary} tokens")
    if rows.dim() != 2 or rows.shape[1] < 2:
        fail(ShapeError, "rows", list(rows.shape), "of shape [N, T + 1] with a token to predict")
    found = torch.zeros(rows.shape[0], rows.shape[1] - 1, dtype=torch.bool)
    if rows.shape[1] < order:
        return found
    numbers = _numbers(rows, vocabulary, order)
    ordered, place = numbers.sort(dim=1, stable=True)
    again = torch.zeros_like(ordered, dtype=torch.bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]  # the first of each kind stands first
    found[:, order - 2 :] = torch.zeros_like(again).scatter_(1, place, again)
    known = _numbers(train.unsqueeze(0), vocabulary, order)[0].sort()[0]
    count = torch.searchsorted(known, numbers, right=True) - torch.searchsorted(known, numbers)
    found[:, order - 2 :] &= count <= frequent
    return found


def _numbers(rows: Tensor, vocabulary: int, order: int) -> Tensor:
    """One number for each run of `order` tokens, [N,T] to [N,T-order+1]."""
    length = max(rows.shape[1] - order + 1, 0)
    found = torch.zeros(rows.shape[0], length, dtype=torch.int64)
    for i in range(order):
        found = found * vocabulary + rows[:, i : i + length].long()
    return found
