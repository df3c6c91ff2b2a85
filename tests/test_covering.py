"""Every two values meet."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from tests.covering import pairs


@given(sizes=st.lists(st.integers(1, 5), min_size=2, max_size=5))
def test_every_two_values_meet_in_few_rows(sizes: list[int]) -> None:
    """Rows are of the grid, each once; more than two parameters take fewer rows than it has."""
    rows = pairs(*map(range, sizes))
    assert len(rows) == len(set(rows)) and set(rows) <= set(itertools.product(*map(range, sizes)))
    for (i, first), (j, second) in itertools.combinations(enumerate(sizes), 2):
        met = {(row[i], row[j]) for row in rows}
        assert met == set(itertools.product(range(first), range(second)))


def test_a_grid_of_four_parameters() -> None:
    assert len(pairs(range(13), range(9), range(2), range(2))) == 13 * 9
