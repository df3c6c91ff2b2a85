"""Features by exchange: what an instruction says, what it does, and which programs may use it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from based_ops.codegen.ir.blocks import write_out
from based_ops.codegen.ir.by_exchange import NoExchange, by_exchange, pairs
from based_ops.codegen.ir.exchange import EXCHANGES, NOTHING, ONE, WIDTH, Exchange, Exchanged
from based_ops.codegen.ir.fuse import each, statements
from based_ops.codegen.ir.nodes import Expr, Let, Where, wrap
from based_ops.codegen.ir.program import Program
from based_ops.codegen.ir.static import Known
from based_ops.codegen.lower.on_warpgroups import states_of
from based_ops.codegen.mixers.linear_attention import LinearAttention
from based_ops.codegen.spec.model import HeadDims, TaylorExp
from tests.kernels.gluon import meanings

TILES = {"CHUNK": 64, "VALUES": 64, "SEGMENT": 128}
SIZE = TILES.__getitem__


def program(d: int = WIDTH) -> Program:
    spec = LinearAttention("taylor2", TaylorExp(2), HeadDims(d, 64))
    return write_out(states_of(spec, "states", of_queries=False), SIZE)


def with_value(name: str, new: Callable[[Expr], Expr]) -> Program:
    """The program with something else for a variable."""

    def change(stmt: object) -> tuple[object, ...]:
        return (
            replace(stmt, value=new(stmt.value)) if isinstance(stmt, Let) and stmt.name == name else stmt,
        )

    before = program()
    return replace(before, body=each(before.body, change))  # type: ignore[arg-type]


def exchanges_of(found: Program) -> list[str]:
    lets = [stmt.value for stmt in statements(found.body) if isinstance(stmt, Let)]
    return [value.exchange.name for value in lets if isinstance(value, Exchanged)]


@pytest.mark.parametrize("exchange", EXCHANGES, ids=lambda exchange: exchange.name)
def test_an_exchange_makes_the_pairs_that_it_says(exchange: Exchange) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, WIDTH).bfloat16()
    coordinates = torch.cat([x, torch.ones(64, 1).bfloat16(), torch.zeros(64, 1).bfloat16()], 1)
    first, second = torch.tensor(pairs(exchange)).unbind(1)
    assert torch.equal(meanings()[exchange.name](x, None), coordinates[:, first] * coordinates[:, second])


def test_exchanges_pair_all_coordinates_once() -> None:
    found = [tuple(pair) for exchange in EXCHANGES for pair in pairs(exchange) if NOTHING not in pair]
    assert sorted(found) == [(a, c) for a in range(ONE + 1) for c in range(a, ONE + 1)]


@pytest.mark.parametrize("d", [8, 16])
def test_the_order_of_rows_is_that_of_kernels_by_hand(d: int) -> None:
    """It is derived from the pairs; those kernels, which meet the same states, have it written down."""
    found = program(d)
    known = Known(found, [stmt for stmt in statements(found.body) if isinstance(stmt, Let)], SIZE)
    rows = (d + 1) * (d + 2) // 2
    names = meanings()
    for block, name in enumerate(("rows_of_wide", "rows_of_narrow")):
        derived = next(
            s.value for s in statements(found.body) if isinstance(s, Let) and s.name == f"f_{block}"
        )
        elements = known.elements(derived)
        assert elements is not None
        by_hand = names[name](torch.arange(len(elements)), d).tolist()
        assert [min(row, rows) for row in elements] == [min(row, rows) for row in by_hand]


@pytest.mark.parametrize("d", [8, 16])
def test_features_are_exchanged_where_pairs_agree(d: int) -> None:
    assert exchanges_of(by_exchange(program(d), SIZE)) == [exchange.name for exchange in EXCHANGES]


@pytest.mark.parametrize("name", ["first_0", "second_0"])
def test_other_pairs_are_gathered(name: str) -> None:
    changed = with_value(name, lambda value: (value + 1) % WIDTH)
    with pytest.raises(NoExchange, match="not every row of sums is stored once"):
        by_exchange(changed, SIZE)  # of the other block alone


def test_every_row_has_to_be_stored_once() -> None:
    with pytest.raises(NoExchange, match="not every row of sums is stored once"):
        by_exchange(with_value("f_0", lambda value: Where(value.equals(3), wrap(4), value)), SIZE)


def test_what_no_exchange_makes_is_stored_nowhere() -> None:
    with pytest.raises(NoExchange, match="sums has a row for what narrow_features does not make"):
        by_exchange(with_value("f_1", lambda value: Where(value.equals(153), wrap(3), value)), SIZE)


def test_rows_have_to_be_known() -> None:
    unknown = Where(wrap("segments").equals(1), wrap(0), wrap(1))
    changed = with_value("f_0", lambda value: value + unknown)
    with pytest.raises(NoExchange):
        by_exchange(changed, SIZE)
