"""Tasks of long range: what is drawn is what is asked, and the answers are right."""

from __future__ import annotations

from statistics import median
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from based_ops.errors import ArgumentValueError
from based_ops.recall.examples import Task
from based_ops.recall.long_range import TOKENS, Copying, Delay, Digits, ListOps
from based_ops.recall.pathfinder import DISC, EMPTY, Pathfinder
from based_ops.recall.recipe import BRIEF, LONG_RANGE, RECIPES

SEEDS = st.integers(0, 1 << 30)


@given(st.integers(1, 60), st.data(), SEEDS)
def test_delay(length: int, data: st.DataObject, seed: int) -> None:
    lag = data.draw(st.integers(0, length - 1))
    ids, places, targets = Delay(length, lag, 3).draw(16, seed)
    assert places.shape == targets.shape == (3, length - lag)
    assert torch.equal(targets, ids.long().gather(1, places - lag))


@given(st.integers(1, 12), st.integers(0, 40), st.booleans(), SEEDS)
def test_copying(items: int, more: int, selective: bool, seed: int) -> None:
    length = 2 * items + more
    task = Copying(length, items, 4, selective)
    ids, places, targets = task.draw(10, seed)
    assert ids.shape == (4, length) and targets.shape == (4, items) and (targets > 0).all()
    for row, at, wanted in zip(ids.tolist(), places.tolist(), targets.tolist(), strict=True):
        assert at == list(range(length - items, length))
        body, end = row[: length - items], row[length - items :]
        assert [x for x in body if x] == wanted, "in their order"
        assert selective or body[:items] == wanted
        assert end == ([9] * items if selective else [9] + [0] * (items - 1))


def evaluated(words: list[str]) -> int:
    """An expression's value, by a stack."""
    stack: list[Any] = []
    for word in words:
        if word != "]":
            stack.append(word)
            continue
        values: list[int] = []
        while not str(stack[-1]).startswith("["):
            values.append(int(stack.pop()))
        name = stack.pop()[1:]
        assert len(values) >= 2
        found = {"MIN": min, "MAX": max, "MED": lambda x: int(median(x)), "SM": lambda x: sum(x) % 10}[name]
        stack.append(found(values))
    (value,) = stack
    return int(value)


@given(st.integers(8, 90), st.integers(1, 5), st.integers(2, 6), SEEDS)
def test_listops(length: int, deepest: int, widest: int, seed: int) -> None:
    task = ListOps(length, 3, deepest, widest)
    if deepest * widest < length:  # such expressions may never be long enough
        task = ListOps(length, 3)
    ids, places, targets = task.draw(len(TOKENS), seed)
    assert places.tolist() == [[length - 1]] * 3
    for row, (wanted,) in zip(ids.tolist(), targets.tolist(), strict=True):
        words = [TOKENS[x] for x in row]
        blanks = words.count(" ")
        assert words[:blanks] == [" "] * blanks and 2 * blanks < length
        assert evaluated(words[blanks:]) == wanted


def pieces(image: list[list[int]], reach: int) -> list[set[tuple[int, int]]]:
    """What is connected, pixels up to `reach` away from each other counting as neighbours."""
    left = {(y, x) for y, row in enumerate(image) for x, value in enumerate(row) if value != EMPTY}
    found = []
    while left:
        edge = [left.pop()]
        piece = set(edge)
        while edge:
            y, x = edge.pop()
            near = {(b, a) for b, a in left if max(abs(b - y), abs(a - x)) <= reach}
            left -= near
            piece |= near
            edge += near
        found.append(piece)
    return found


@given(st.integers(14, 24), st.integers(0, 1), SEEDS)
def test_pathfinder(side: int, distractors: int, seed: int) -> None:
    ids, places, targets = Pathfinder(side, distractors, 4).draw(3, seed)
    assert places.tolist() == [[side**2 - 1]] * 4 and set(targets.flatten().tolist()) <= {0, 1}
    for row in ids.view(4, side, side).tolist():
        discs = [{p for p in piece if row[p[0]][p[1]] == DISC} for piece in pieces(row, 1)]
        assert 5 <= sum(map(len, discs)) <= 10, "two discs of five pixels, which may touch"


def test_both_answers_of_pathfinder_are_drawn() -> None:
    targets = Pathfinder(16, 1, 300).draw(3, 0).targets.float()
    assert 0.4 < targets.mean() < 0.6


def test_digits_are_those_of_two_sets() -> None:
    train, test = Digits(1437).draw(17, 0), Digits(360, test=True).draw(17, 0)
    assert train.ids.shape == (1437, 64) and test.ids.shape == (360, 64)
    assert 0 <= train.ids.min() and train.ids.max() == 16
    assert test.targets.flatten().bincount(minlength=10).min() > 20
    again = Digits(1437).draw(17, 1)
    assert not torch.equal(again.ids, train.ids) and again.ids.sum() == train.ids.sum()


@pytest.mark.parametrize("name", [*LONG_RANGE, *(f"{task}-quick" for task in BRIEF)])
def test_recipes_have_room_for_their_tokens(name: str) -> None:
    recipe = RECIPES[name]
    for task in (*recipe.train, *recipe.tests):
        ids, places, targets = task.of(5).draw(recipe.vocabulary, 0)
        assert ids.shape == (5, task.length) and places.shape == targets.shape == (5, task.asked)
        assert int(ids.max()) < recipe.vocabulary and int(targets.max()) < recipe.vocabulary
        assert int(places.max()) < task.length and ids.dtype == torch.int32


@pytest.mark.parametrize(
    ("task", "vocabulary", "message"),
    [
        (Delay(8, 8, 1), 16, "delay.lag: got 8, must be from 0 to below the length, 8"),
        (Delay(8, 1, 1), 15, "vocabulary: got 15, must be 16 or more"),
        (Copying(8, 5, 1), 10, "copying.items: got 5, must be from 1 to 4"),
        (ListOps(7, 1), 16, "listops.length: got 7, must be 8 or more"),
        (Digits(361, test=True), 17, "digits.examples: got 361, must be from 1 to 360"),
        (Pathfinder(8, 0, 1), 3, "pathfinder.side: got 8, must be 12 or more"),
        (Pathfinder(16, 0, 1), 2, "vocabulary: got 2, must be 3 or more"),
    ],
)
def test_bad_tasks(task: Task, vocabulary: int, message: str) -> None:
    with pytest.raises(ArgumentValueError, match=message):
        task.draw(vocabulary, 0)
