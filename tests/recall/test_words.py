"""Word problems of groups: what is drawn, and what turns out to be right."""

from __future__ import annotations

from itertools import permutations, product
from math import factorial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from based_ops.errors import ArgumentValueError
from based_ops.recall.recipe import RECIPES
from based_ops.recall.words import GROUPS, Words, products, running_products


@pytest.mark.parametrize("group", GROUPS)
def test_a_table_is_that_of_a_group(group: str) -> None:
    table = products(group)
    everything = torch.arange(factorial(GROUPS[group]))
    assert torch.equal(table[0], everything) and torch.equal(table[:, 0], everything)
    assert all(torch.equal(row.sort().values, everything) for row in (*table, *table.T))
    some = everything[:: max(1, len(everything) // 12)].tolist()
    for a, b, c in product(some, repeat=3):
        assert table[table[a, b], c] == table[a, table[b, c]]
    assert (len(table) == 2) == torch.equal(table, table.T), "of these only the parities commute"


@given(group=st.sampled_from(sorted(GROUPS)), length=st.integers(1, 40), seed=st.integers(0, 1 << 30))
def test_targets_are_the_products_of_what_came(group: str, length: int, seed: int) -> None:
    count = factorial(GROUPS[group])
    ids, places, targets = Words(length, group, 3).draw(count, seed)
    elements = list(permutations(range(GROUPS[group])))
    assert ids.shape == places.shape == targets.shape == (3, length) and ids.dtype == torch.int32
    for word, at, wanted in zip(ids.tolist(), places.tolist(), targets.tolist(), strict=True):
        assert at == list(range(length))
        so_far = tuple(range(GROUPS[group]))
        for token, target in zip(word, wanted, strict=True):
            so_far = tuple(elements[token][x] for x in so_far)  # the first acts first
            assert elements[target] == so_far
    again = Words(length, group, 3).draw(count, seed)
    assert torch.equal(again.ids, ids)


def test_parity_is_the_sum_of_bits() -> None:
    ids = torch.randint(0, 2, (5, 33))
    assert torch.equal(running_products(ids, products("parity")), ids.cumsum(1) % 2)


def test_a_group_is_drawn_from_evenly() -> None:
    ids = Words(100, "s3", 600).draw(6, 0).ids
    counts = ids.flatten().bincount(minlength=6)
    assert ((counts - 10_000).abs() < 500).all()


@pytest.mark.parametrize(
    ("words", "vocabulary", "message"),
    [
        (Words(4, "s4", 1), 24, "words.group: got 's4', must be one of parity, s3, s5"),
        (Words(4, "s3", 1), 5, "vocabulary: got 5, must be 6 or more, of s3"),
        (Words(0, "s3", 1), 6, "words: got \\(0, 's3', 1\\), must be of 1 or more examples"),
        (Words(4, "s3", 0), 6, "words: got \\(4, 's3', 0\\), must be of 1 or more examples"),
    ],
)
def test_bad_words(words: Words, vocabulary: int, message: str) -> None:
    with pytest.raises(ArgumentValueError, match=message):
        words.draw(vocabulary, 0)


def test_recipes_have_room_for_the_group() -> None:
    for group, things in GROUPS.items():
        assert RECIPES[group].vocabulary == factorial(things)
