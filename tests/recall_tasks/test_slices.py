"""Recall slices: which tokens are hits, against a plain reading of the definition, and what they cost."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from based_ops.errors import ArgumentValueError, ShapeError
from based_ops.recall.tasks import recall_slices
from based_ops.recall.tasks.slices import of_contexts

TOKENS = st.lists(st.integers(0, 3), min_size=2, max_size=30)


def naive(row: list[int], train: list[int], order: int, frequent: int) -> list[bool]:
    """A token at a time."""
    counts = Counter(tuple(train[i : i + order]) for i in range(len(train) - order + 1))
    found = []
    for t in range(1, len(row)):
        end = tuple(row[t - order + 1 : t + 1]) if t + 1 >= order else None
        earlier = {tuple(row[s - order + 1 : s + 1]) for s in range(order - 1, t)}
        found.append(end is not None and end in earlier and counts[end] <= frequent)
    return found


@given(TOKENS, TOKENS, st.integers(2, 4), st.integers(0, 4))
def test_hits(row: list[int], train: list[int], order: int, frequent: int) -> None:
    got = of_contexts(torch.tensor([row, row[::-1]]), torch.tensor(train), 4, order, frequent)
    assert got.tolist() == [naive(x, train, order, frequent) for x in (row, row[::-1])]


def test_what_they_cost() -> None:
    """A model that is right about one token and nothing else."""
    rows = torch.tensor([[1, 2, 3, 1, 2, 1, 2, 0]])
    logits = torch.log(torch.tensor([0.1, 0.1, 0.7, 0.1]))

    def model(ids: Tensor) -> Tensor:
        return logits.expand(*ids.shape, 4)

    found = recall_slices(model, rows, torch.tensor([3, 3, 3]), 4)
    # 1 2 again, 2 1 for the first time, 1 2 again; then 2 0 is new.
    assert found.hits.tokens == 2 and found.others.tokens == 5
    assert found.hits.perplexity == pytest.approx(1 / 0.7)
    assert found.others.nats == pytest.approx(-math.log(0.7) - 4 * math.log(0.1))
    assert found.all.tokens == 7 and found.all.nats == pytest.approx(found.hits.nats + found.others.nats)
    none = recall_slices(model, rows, torch.tensor([1, 2] * 9), 4, frequent=8)
    assert none.hits.tokens == 0 and math.isnan(none.hits.loss), "what the training text is full of is no hit"


def test_batches_are_one() -> None:
    torch.manual_seed(0)
    rows, table = torch.randint(9, (7, 40)), torch.randn(9, 9)
    train = torch.randint(9, (100,))
    one, several = (recall_slices(lambda ids: table[ids], rows, train, 9, batch=n) for n in (7, 2))
    assert one.hits.tokens == several.hits.tokens and one.hits.nats == pytest.approx(several.hits.nats)


def test_bad_calls() -> None:
    tokens = torch.tensor([1, 2, 3])
    with pytest.raises(ArgumentValueError, match="^order: got 8, must be from 2 to 7, with 256 tokens"):
        of_contexts(tokens.unsqueeze(0), tokens, 256, 8)
    assert of_contexts(tokens.unsqueeze(0), tokens, 256, 7).tolist() == [[False, False]]
    with pytest.raises(ShapeError, match=r"^rows: got \[3\], must be of shape \[N, T \+ 1\]"):
        of_contexts(tokens, tokens, 256)
