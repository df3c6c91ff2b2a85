"""What the printer of Gluon derives: waits, fences, and kernels from plans of places."""

from __future__ import annotations

import pytest

from based_ops.codegen import pipeline
from based_ops.codegen.emit.gluon.flight import Flight, shown_after
from tests.conftest import SPECS


def test_a_product_is_waited_for_where_it_is_read_and_younger_ones_stay_in_flight() -> None:
    flight = Flight()
    for tile in ("R", "O", "S"):
        flight.issue(tile)
    assert flight.wait({"A"}) is None
    assert flight.wait({"R"}) == "R = warpgroup_mma_wait(2, [R])"
    assert flight.wait({"R"}) is None
    flight.issue("O")
    assert flight.wait({"O"}) == "S, O = warpgroup_mma_wait(0, [S, O])"
    assert flight.wait_for_all() is None


def test_older_products_are_there_with_a_younger_one() -> None:
    flight = Flight()
    for tile in ("O", "N", "S"):
        flight.issue(tile)
    assert flight.wait({"N"}) == "O, N = warpgroup_mma_wait(1, [O, N])"
    assert flight.wait_for_all() == "S = warpgroup_mma_wait(0, [S])"


@pytest.mark.parametrize(
    ("steps", "arrived", "found"),
    [
        ([({"K"}, ()), ((), ()), ((), {"K"})], (), {0}),
        ([((), {"V"})], {"V"}, {-1}),
        ([({"K"}, ()), ((), {"V"}), ((), {"K"})], {"V"}, {0}),
        ([({"K"}, ()), ((), {"K"}), ({"A"}, ()), ((), {"A", "K"})], (), {0, 2}),
        ([({"K"}, ()), ((), {"V"})], (), set()),
    ],
)
def test_a_fence_comes_after_what_is_stored_and_before_who_reads_it(
    steps: list[tuple[set[str], set[str]]], arrived: set[str], found: set[int]
) -> None:
    assert shown_after(steps, arrived) == found


def test_a_plan_is_shown_without_what_a_layer_lacks() -> None:
    layers = pipeline.load(SPECS, ["identity_qk64_v64", "relu_qk64_v64"])
    plain, normalised = (pipeline.places(pipeline.lower(layers[name])) for name in layers)
    assert plain.keys() == normalised.keys() == {"recurrence_warpgroups"}
    assert plain["recurrence_warpgroups"][0] == "ahead: Q, K_features, Y"
    assert "N+A_operand" not in plain["recurrence_warpgroups"][-1]
    assert "N+A_operand" in normalised["recurrence_warpgroups"][-1]
