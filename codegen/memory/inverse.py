"""The inverse of I + L for a strictly lower triangular tile L.

Entries of powers of L may grow like binomial coefficients, and cancel, so the inverse is no sum of powers: it
is found by forward substitution.  Blocks of BLOCK rows on the diagonal come first, column after column and
all of them at once; with those inverted, D, and the rest of L below them, N = D (L - its blocks), a round of
X = D - N X makes the next row of blocks right.  All of it is in the precision of sums.
"""

from __future__ import annotations

from ..ir.build import Builder
from ..ir.nodes import ACC, Cast, Dot, Span, Sum, Var, Where, cdiv, column, row, wrap


def inverse_of_unit_lower(b: Builder, lower: Var, size: str) -> Var:
    """(I + lower)⁻¹, ``[size, size]``."""
    i = b.let("place", Span(wrap(0), size))
    block, within = i // "BLOCK", i % "BLOCK"
    own = b.let("own_block", column(block).equals(row(block)))
    inside = b.let("L_own", Where(own, lower, wrap(0.0)))
    solved = b.let("D", Cast(column(i).equals(row(i)), ACC))
    with b.loop("n", 0, Var("BLOCK") - 1) as n:
        chosen = b.let("L_chosen", Where(row(within).equals(n), inside, wrap(0.0)))
        factors = b.let("L_column", Sum(chosen, 1))
        done = b.let("D_chosen", Where(column(within).equals(n), solved, wrap(0.0)))
        rows = b.let("D_row", Sum(done, 0))
        b.set(solved, solved - Where(own, column(factors) * row(rows), wrap(0.0)))
    outside = b.let("L_other", Where(own, wrap(0.0), lower))
    below = b.let("N", Dot(solved, outside))
    inverse = b.let("X", solved)
    with b.loop("_round", 1, cdiv(size, "BLOCK")):
        product = b.let("NX", Dot(below, inverse))
        b.set(inverse, solved - product)
    return inverse
