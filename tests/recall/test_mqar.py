"""Examples of recall: what stands where, and how often."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from based_ops.errors import ArgumentValueError
from based_ops.recall.examples import batches
from based_ops.recall.mqar import POWER, Segment, draw


@st.composite
def segments(draw_: st.DrawFn) -> tuple[Segment, int]:
    vocabulary = 2 * draw_(st.integers(2, 64))
    pairs = draw_(st.integers(1, min(8, vocabulary // 2 - 1)))
    length = 4 * pairs + 2 * draw_(st.integers(0, 20))
    return Segment(length, pairs, draw_(st.integers(1, 9)), draw_(st.booleans())), vocabulary


@given(segments(), st.integers(0, 2**32))
def test_every_key_comes_again_once_and_asks_for_its_value(case: tuple[Segment, int], seed: int) -> None:
    (length, pairs, examples, _), vocabulary = case
    ids, places, targets = draw(case[0], vocabulary, seed)
    assert ids.shape == (examples, length) and places.shape == targets.shape == (examples, pairs)
    half = vocabulary // 2
    assert 0 <= ids.min() and ids.max() < vocabulary
    for row, at, wanted in zip(ids.tolist(), places.tolist(), targets.tolist(), strict=True):
        keys, values = row[0 : 2 * pairs : 2], row[1 : 2 * pairs : 2]
        assert all(1 <= x < half for x in keys) and len(set(keys)) == pairs
        assert all(half <= x < vocabulary for x in values) and len(set(values)) == pairs
        assert [row[x] for x in at] == keys and wanted == values
        assert len(set(at)) == pairs and all(x >= 2 * pairs and x % 2 == 0 for x in at)


def test_equal_seeds_give_equal_examples() -> None:
    segment = Segment(32, 4, 5000)
    first, again, other = (draw(segment, 64, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.ids, other.ids)


def test_at_the_least_length_every_slot_is_asked() -> None:
    places = draw(Segment(64, 16, 50), 128, 0).places
    assert torch.equal(places.sort(1).values, (32 + 2 * torch.arange(16)).expand(50, -1))


def test_frequencies_are_those_of_zoology() -> None:
    """Slots of the first key by i^(POWER - 1), of the second given the first; the rest uniform."""
    count = 40_000
    ids, places, targets = draw(Segment(28, 4, count), 64, 3)
    slots = (places - 8) // 2
    p = torch.arange(1, 11, dtype=torch.float64) ** (POWER - 1)
    p /= p.sum()
    after = p * (p / (1 - p)).sum() - p * p / (1 - p)  # the second is not the first
    for number, expected in enumerate((p, after)):
        found = torch.bincount(slots[:, number], minlength=10) / count
        assert (found - expected).abs().max() < 5 * (0.25 / count) ** 0.5
    for tokens, low, high in ((ids[:, 0], 1, 32), (targets[:, 3], 32, 64), (ids[:, 9], 0, 64)):
        found = torch.bincount(tokens.long(), minlength=64) / count
        assert (found[low:high] - 1 / (high - low)).abs().max() < 5 * (1 / (high - low) / count) ** 0.5
        assert found[:low].sum() == found[high:].sum() == 0


@given(st.integers(1, 20), st.integers(1, 20))
def test_batches_have_one_shape_and_lose_nothing(examples: int, size: int) -> None:
    given_ = draw(Segment(16, 2, examples), 32, 0)
    found = list(batches(given_, size))
    assert all(x.ids.shape == (size, 16) and x.targets.shape == (size, 2) for x in found)
    joined = [torch.cat(x) for x in zip(*found, strict=True)]
    assert all(torch.equal(x[:examples], y) for x, y in zip(joined, given_, strict=True))
    assert (joined[2][examples:] == -1).all()


@pytest.mark.parametrize(
    ("segment", "vocabulary", "message"),
    [
        (Segment(30, 8, 1), 64, "segment.length: got 30, must be even and at least four times the pairs, 32"),
        (Segment(33, 8, 1), 64, "segment.length: got 33, must be even and at least four times the pairs, 32"),
        (Segment(64, 4, 1), 8, "segment.pairs: got 4, must be from 1 to 3, of a vocabulary of 8"),
        (Segment(64, 4, 0), 64, "segment.examples: got 0, must be 1 or more"),
    ],
)
def test_what_cannot_be_drawn(segment: Segment, vocabulary: int, message: str) -> None:
    with pytest.raises(ArgumentValueError, match=f"(?m)^{message}$"):
        draw(segment, vocabulary, 0)


def test_quiet_examples_have_nothing_between() -> None:
    loud, quiet = (draw(Segment(64, 4, 50, quiet=x), 64, 0) for x in (False, True))
    asked = torch.zeros_like(quiet.ids, dtype=torch.bool).scatter(1, quiet.places, True)
    between = ~asked
    between[:, :8] = False
    assert not quiet.ids[between].any() and loud.ids[:, 8:].bool().float().mean() > 0.9
    assert (quiet.ids.gather(1, quiet.places) > 0).all()
