"""Sums of features that are seldom written, and the inputs of the tokens that are not in them yet.

    S_t = S_c + Σ_{c < j ≤ t} Φ(w_j) v_jᵀ

A ring has k and v of the tokens after c.  A query reads S_c, and meets the others directly with weight
A = f(scale · u·w), which is what they would give through S.  Where the ring is full, the older half of it
enters the sums, token by token as it would have without a ring: so these have the same bits.  The younger
half stays, and with it the tokens that may be taken back.

Nothing here fades: of what a ring holds, the decay since then would have to be held too.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.build import Builder
from ..ir.nodes import ACC, INDEX, Expr, Full, Load, Sum, Var, Where, column, row, wrap
from ..lower.features import FeatureMap
from .ring import Ring
from .states import B, Block, H, Kept, Part
from .sums import Sums
from .sums_token import Reading

IN_SUMS = "entered"
"""How many tokens have entered the sums, of those that `position` counts."""


@dataclass(frozen=True)
class Weighted:
    """The sums of one query over keys that it meets directly, onto what it has read: o, and n if there is."""

    features: FeatureMap
    out: Var
    n: Var | None
    eps: float

    def attend(self, b: Builder, query: Var, keys: Var, values: Var, seen: Var) -> None:
        products = b.let("R_row", Sum(b.let("terms_row", keys * row(query)), 1))
        weights = b.let("A_row", Where(seen, self.features.kernel(products), wrap(0.0)))
        b.add(self.out, Sum(b.let("weighted_row", column(weights) * values), 0))
        if self.n:
            b.add(self.n, Sum(weights, 0))

    def attend_one(self, b: Builder, query: Var, key: Var, value: Var) -> None:
        product = b.let("R_own", Sum(b.let("terms_own", key * query), 0))
        weight = b.let("A_own", self.features.kernel(product))
        b.add(self.out, weight * value)
        if self.n:
            b.add(self.n, weight)

    def divided(self) -> Expr:
        return self.out / (self.n + self.eps) if self.n else self.out


class Late(Ring):
    """The tokens that are not in the sums yet, the token `t` with them: at most twice `period`.

    `full`: whether with it there are so many, and the older half enters now.
    """

    tile = "RING"

    def __init__(self, b: Builder, period: int, t: Expr, features: FeatureMap) -> None:
        self.period, self.features = period, features
        super().__init__(b, 2 * period, t)
        self.first = b.let("entered_before", Load(IN_SUMS, (B, H), INDEX))
        self.full = self.position - self.first >= self.window - 1
        self.after = b.let("in_sums", self.first + Where(self.full, wrap(period), wrap(0)))
        self.held = b.let("held", self.position - self.after)

    def load(self, name: str, tensor: str, index: tuple[Expr, ...], columns: Expr) -> tuple[Var, Var]:
        return self.features.exact(self.b, name, tensor, index, columns)

    def store(self) -> None:
        super().store()
        self.b.store(IN_SUMS, (B, H), self.after)


class Replay(Reading):
    """The answer to a token from the sums, which half of a full ring enters before they are read."""

    def __init__(self, memory: Sums, kept: Kept, ring: Late, t: Expr, narrow: str | None) -> None:
        super().__init__(memory, kept, t, narrow)
        self.ring = ring
        self.begin()

    def enter_and_read(self, block: Block) -> None:
        """Read a block of the state; if the ring is full, let its older half enter, and write the block."""
        b = self.b
        plain, weight = self.query(block)
        parts = [Part(b, Var("S"), (block.f, self.memory.u))]
        parts += [Part(b, Var("z"), (block.f,))] if self.products else []
        for part, tensor in zip(parts, self.kept, strict=True):
            part.load(tensor, (), "")
        with b.when(self.ring.full, each=True):
            self._enter(block, *parts)
        query = self.read(plain, weight, parts[0])
        if self.products:
            b.add(self.products, query * parts[1].tile)

    def _enter(self, block: Block, state: Part, z: Part | None = None) -> None:
        b, ring, size = self.b, self.ring, self.memory.size
        entered = b.let("entered_keys", Full((size,), 0.0)) if self.narrow and not z else None
        values = b.let("y", Full(("VALUES",), 0.0))
        with b.loop("i", 0, ring.period) as i:
            index = (B, H, b.let("leaving", (ring.first + i) % ring.window))
            b.set(values, self._chosen(b.let("y_entering", Load("ring_v", (*index, self.memory.u), ACC))))
            keys = b.let("entering", self._chosen(self.features("late", "ring_k", index, block)))
            b.add(state.tile, column(keys) * row(values))
            for sums in (entered, z and z.tile):
                if sums:
                    b.add(sums, keys)
        chance = z.tile if z else entered or keys
        b.store(self.kept.tensors[0].name, (B, H, *state.place), self.rounded(state, chance, values, block))
        if z:
            z.store(self.kept.tensors[1])

    def _chosen(self, numbers: Var) -> Expr:
        """Numbers of what enters; 0 where nothing does."""
        return Where(self.ring.full, numbers, wrap(0.0))

    def sums(self) -> Weighted:
        """What has been read, for the tokens of the ring to be added."""
        normalizer = self.memory.normalizer
        n, eps = (self.sum(), normalizer.eps) if normalizer else (None, 0.0)
        return Weighted(self.memory.features, self.out, n, eps)
