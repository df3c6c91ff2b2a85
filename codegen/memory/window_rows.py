"""A window of keys one row at a time: in a step, and in a second look.

Every sum here selects its terms: what a row does not see cannot reach it, whatever it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from ..ir.build import Builder
from ..ir.nodes import (
    ACC,
    Doubt,
    Expr,
    Full,
    Load,
    Max,
    Span,
    Sum,
    Unary,
    Var,
    Where,
    cdiv,
    column,
    maximum,
    minimum,
    row,
    wrap,
)
from ..lower.second_look import mended
from .window import LEAST, LOG2_E, LOGIT, PLAIN, UNREACHED, B, H, Logits, Window, score


@dataclass(frozen=True)
class RowSums:
    """The sums of one query's softmax, relative to the highest score so far."""

    out: Var
    top: Var
    total: Var
    logits: Logits = PLAIN

    @staticmethod
    def start(b: Builder, logits: Logits = PLAIN) -> RowSums:
        out = b.let("o_row", Full(("VALUES",), 0.0))
        return RowSums(out, b.let("top_row", Full((), LEAST)), b.let("total_row", Full((), 0.0)), logits)

    def restart(self, b: Builder, now: Expr) -> None:
        """Begin with another query, if it is time."""
        b.set(self.out, Where(now, wrap(0.0), self.out))
        b.set(self.top, Where(now, wrap(LEAST), self.top))
        b.set(self.total, Where(now, wrap(0.0), self.total))

    def attend(self, b: Builder, query: Var, keys: Var, values: Var, seen: Var) -> None:
        """Add the keys of a tile that are seen; the values of others are finite."""
        products = b.let("R_row", Sum(b.let("terms_row", keys * row(query)), 1))
        scores = b.let("scores_row", score(self.logits.of(products), seen))
        tile_top = b.let("tile_top_row", Max(scores, 0))
        new_top = b.let("new_top_row", maximum(self.top, tile_top))
        weights = b.let("P_row", Unary("exp2", scores - new_top))
        correction = b.let("correction_row", Unary("exp2", self.top - new_top))
        tile_total = b.let("tile_total_row", Sum(weights, 0))
        b.set(self.total, self.total * correction + tile_total)
        weighted = b.let("weighted_row", column(weights) * values)
        tile_out = b.let("tile_o_row", Sum(weighted, 0))
        b.set(self.out, self.out * correction + tile_out)
        b.set(self.top, new_top)

    def attend_one(self, b: Builder, query: Var, key: Var, value: Var) -> None:
        """Add a key that is seen."""
        product = b.let("R_own", Sum(b.let("terms_own", key * query), 0))
        own = b.let("score_own", self.logits.of(product))
        top = b.let("top_with_own", maximum(self.top, own))
        weight = b.let("P_own", Unary("exp2", own - top))
        correction = b.let("correction_own", Unary("exp2", self.top - top))
        b.set(self.total, self.total * correction + weight)
        b.set(self.out, self.out * correction + weight * value)
        b.set(self.top, top)

    def divided(self) -> Expr:
        return self.out / self.total


@dataclass(frozen=True)
class _Part:
    """A tile of what one row reads."""

    token: Var
    """The row."""
    number: Var
    count: Expr

    @property
    def is_first(self) -> Expr:
        return self.number.equals(0)

    @property
    def is_last(self) -> Expr:
        return self.number.equals(self.count - 1)


class Rows:
    """The rows of one program, each in parts of ROWS keys or queries.

    Rows and parts have one loop: of loops inside of loops ptxas would think so highly that the program's own
    had to make room in registers.
    """

    sizes = {"d": "QK", "u": "VALUES"}

    def __init__(self, memory: Window) -> None:
        self.memory, self.b, self.d, self.u = memory, memory.b, memory.d, memory.u
        self.first = memory.first_key()

    def outputs(self, start: Expr, stop: Expr) -> None:
        """o of the queries from `start` on, up to `stop`."""
        b = self.b
        sums = RowSums.start(b)
        with self._parts(start, stop) as part:
            t = part.token
            sums.restart(b, part.is_first)
            query = b.let("q_row", Load("q", (B, t, H, self.d), ACC))
            keys, values, seen = self._keys(part)
            chosen = b.let("v_seen", Where(column(seen), values, wrap(0.0)))
            sums.attend(b, query, keys, chosen, seen)
            out = b.let("divided_row", sums.divided())
            o_again = mended(b, "o", (B, t, H, self.u), out)
            with b.when(part.is_last):
                b.store("o", (B, t, H, self.u), o_again)

    def query_gradients(self, start: Expr, stop: Expr) -> None:
        """dq of the same."""
        b = self.b
        dq = b.let("dq_row", Full(("QK",), 0.0))
        with self._parts(start, stop) as part:
            t = part.token
            b.set(dq, Where(part.is_first, wrap(0.0), dq))
            query = b.let("q_row", Load("q", (B, t, H, self.d), ACC))
            do = b.let("do_row", Load("do", (B, t, H, self.u), ACC))
            o = b.let("o_of_row", Load("o", (B, t, H, self.u), ACC))
            lse = b.let("lse_of_row", Load("lse", (B, H, t), ACC))
            delta = b.let("delta_row", Sum(b.let("do_o_row", do * o), 0))
            keys, values, seen = self._keys(part)
            weights = self._weights(keys, query, lse)
            by_weight = b.let("dP_row", Sum(b.let("v_products", values * row(do)), 1))
            self._add_selected(dq, seen, b.let("dR_row", weights * (by_weight - delta)), keys)
            dq_again = mended(b, "dq", (B, t, H, self.d), dq * Var("scale"))
            with b.when(part.is_last):
                b.store("dq", (B, t, H, self.d), dq_again)

    def key_gradients(self, start: Expr, stop: Expr) -> None:
        """dk and dv of the keys from `start` on, up to `stop`."""
        b, memory = self.b, self.memory
        dk, dv = b.let("dk_row", Full(("QK",), 0.0)), b.let("dv_row", Full(("VALUES",), 0.0))
        with self._parts(start, stop) as part:
            j = part.token
            b.set(dk, Where(part.is_first, wrap(0.0), dk))
            b.set(dv, Where(part.is_first, wrap(0.0), dv))
            key = b.let("k_row", Load("k", (B, j, H, self.d), ACC))
            value = b.let("v_row", Load("v", (B, j, H, self.u), ACC))
            at = maximum(memory.query_at(j), memory.queries.start)
            t = b.let("t_of_part", memory.queries.tile(at + part.number * "ROWS", "ROWS"))
            after = memory.queries.until(memory.query_at(j + memory.window))
            seen = b.let("seen_row", (t < after) & (j >= self.first))
            queries = b.let("q_part", Load("q", (B, t, H, self.d), ACC))
            do = b.let("do_part", Load("do", (B, t, H, self.u), ACC))
            o = b.let("o_part", Load("o", (B, t, H, self.u), ACC))
            lse = b.let("lse_part", Load("lse", (B, H, t), ACC, fill=UNREACHED))
            delta = b.let("delta_part", Sum(b.let("do_o_part", do * o), 1))
            weights = self._weights(queries, key, lse)
            self._add_selected(dv, seen, weights, do)
            by_weight = b.let("dP_row", Sum(b.let("do_products", do * row(value)), 1))
            self._add_selected(dk, seen, b.let("dR_row", weights * (by_weight - delta)), queries)
            dk_again = mended(b, "dk", (B, j, H, self.d), dk * Var("scale"))
            with b.when(part.is_last):
                b.store("dk", (B, j, H, self.d), dk_again)
            dv_again = mended(b, "dv", (B, j, H, self.u), dv)
            with b.when(part.is_last):
                b.store("dv", (B, j, H, self.u), dv_again)

    @contextmanager
    def spoilt(self, start: Expr, stop: Expr, results: Mapping[str, Var]) -> Iterator[None]:
        """Statements that run if products with zeros may have spoilt `results`, stored from row `start` on.

        Each tensor comes with the index tile of its columns.  An element that is not finite spoils its column
        in all rows of a product: so of every CHUNK rows, which were one tile, the first is enough to look at.
        """
        b = self.b
        doubt = b.let("doubt_rows", Full((), 0.0))
        number = b.let("n_tile", Span(wrap(0), "ROWS"))
        last = b.let("last_tile", start + (cdiv(stop - start, "CHUNK") - 1) * "CHUNK")
        sums = {
            name: b.let(f"{name}_nothing", Full(("ROWS", self.sizes[columns.name]), 0.0))
            for name, columns in results.items()
        }
        with b.loop("t_tiles", start, stop, wrap("ROWS") * "CHUNK") as begin:
            t = b.let("t_tile", minimum(begin + number * "CHUNK", last))
            for name, columns in results.items():
                rows = b.let(f"{name}_rows", Load(name, (B, t, H, columns), ACC))
                b.add(sums[name], Unary("nothing", rows))
        for name, nothing in sums.items():
            b.add(doubt, Sum(b.let(f"{name}_nothing_of_rows", Sum(nothing, 1)), 0))
        with b.when(Doubt(doubt)):
            yield

    # Pieces

    @contextmanager
    def _parts(self, start: Expr, stop: Expr) -> Iterator[_Part]:
        """A loop over the parts of all rows from `start` on, up to `stop`."""
        b, count = self.b, cdiv(self.memory.window, "ROWS")
        with b.loop("i_part", 0, (stop - start) * count) as i:
            yield _Part(b.let("row_token", start + i // count), b.let("part", i % count), count)

    def _keys(self, part: _Part) -> tuple[Var, Var, Var]:
        """A tile of keys that are not too old for a query, their values, and which of them it sees."""
        b, memory, place = self.b, self.memory, self.memory.place(part.token)
        oldest = maximum(place - (memory.window - 1), memory.keys.start)
        j = b.let("j_of_part", memory.keys.tile(oldest + part.number * "ROWS", "ROWS"))
        keys = b.let("k_part", Load("k", (B, j, H, self.d), ACC))
        values = b.let("v_part", Load("v", (B, j, H, self.u), ACC))
        return keys, values, b.let("seen_row", (j <= place) & (j >= self.first))

    def _weights(self, tile: Var, vector: Var, lse: Var) -> Var:
        """Probabilities of one row with each row of a tile, without regard to what it sees."""
        products = self.b.let("R_row", Sum(self.b.let("terms_row", tile * row(vector)), 1))
        return self.b.let("P_row", Unary("exp2", products * LOGIT - lse * LOG2_E))

    def _add_selected(self, sums: Var, seen: Var, weights: Var, tile: Var) -> None:
        """Add the rows of a tile that are seen, weighted."""
        terms = Where(column(seen), column(weights) * tile, wrap(0.0))
        self.b.add(sums, Sum(self.b.let(f"{sums.name}_terms", terms), 0))
