"""What the printer of Gluon derives: waits, fences, and kernels from plans of places."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from based_ops.codegen import pipeline
from based_ops.codegen.emit.gluon.flight import Wait, shown_after, waits
from tests.conftest import SPECS


def test_a_product_is_waited_for_where_it_is_read_and_younger_ones_stay_in_flight() -> None:
    steps = [
        ((), "R"),
        ((), "O"),
        ((), "S"),
        ({"A"}, None),
        ({"R"}, None),
        ({"R"}, None),
        ((), "O"),
        ({"O"}, None),
    ]
    assert waits(steps) == {4: Wait(("R",), 0, 2), 7: Wait(("S", "O"), 6, 0)}


def test_older_products_are_there_with_a_younger_one_and_the_rest_at_the_end() -> None:
    steps = [((), "O"), ((), "N"), ((), "S"), ({"N"}, None)]
    assert waits(steps) == {3: Wait(("O", "N"), 1, 1), 4: Wait(("S",), 2, 0)}


TILES = st.sampled_from(("R", "O", "N", "S"))


@given(st.lists(st.tuples(st.frozensets(TILES, max_size=2), st.none() | TILES), max_size=12))
def test_nothing_is_read_in_flight_and_nothing_is_waited_for_twice(
    steps: list[tuple[frozenset[str], str | None]],
) -> None:
    found, flying = waits(steps), dict[str, int]()
    for place, (read, product) in enumerate([*steps, (frozenset(("R", "O", "N", "S")), None)]):
        assert (place in found) == bool(read & flying.keys())
        if wait := found.get(place):
            assert wait.last == max(flying[tile] for tile in read & flying.keys())
            assert wait.younger == sum(step[1] is not None for step in steps[wait.last + 1 : place])
            assert {*wait.tiles} == {tile for tile, since in flying.items() if since <= wait.last}
            flying = {tile: since for tile, since in flying.items() if since > wait.last}
        if product:
            flying[product] = place


@pytest.mark.parametrize(
    ("steps", "arrived", "found"),
    [
        ([({"K"}, ()), ((), ()), ((), {"K"})], (), {0: {"K"}}),
        ([((), {"V"})], {"V"}, {-1: {"V"}}),
        ([({"K"}, ()), ((), {"V"}), ((), {"K"})], {"V"}, {0: {"K", "V"}}),
        ([({"K"}, ()), ((), {"K"}), ({"A"}, ()), ((), {"A", "K"})], (), {0: {"K"}, 2: {"A"}}),
        ([({"K"}, ()), ((), {"V"})], (), {}),
    ],
)
def test_a_barrier_comes_after_what_is_stored_and_before_who_reads_it(
    steps: list[tuple[set[str], set[str]]], arrived: set[str], found: dict[int, set[str]]
) -> None:
    assert shown_after(steps, arrived) == found


def test_a_plan_is_shown_without_what_a_layer_lacks() -> None:
    layers = pipeline.load(SPECS, ["identity_qk64_v64", "relu_qk64_v64"])
    plain, normalised = (pipeline.places(pipeline.lower(layers[name])) for name in layers)
    assert normalised.keys() == plain.keys() > {"recurrence_warpgroups"}
    assert plain["recurrence_warpgroups"][0] == "ahead: Q, K_features, Y"
    assert "N+A_operand" not in plain["recurrence_warpgroups"][-1]
    assert "N+A_operand" in normalised["recurrence_warpgroups"][-1]
