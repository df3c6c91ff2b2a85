"""Places: where the tiles of a program live on Hopper, and when its steps are done.

A *plan* names tiles and steps of a tile program, and never computes.  All else follows from it and from the
program: layouts, fences, barriers, and where a product is waited for (`emit/gluon/`).  A tile is named as the
program names it, a step as `ir/steps.py` does: `x` introduces x, `x=` changes it, `x+a` adds a product of a
to it, `>o` stores o.  A plan may name what only some programs have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ..ir.blocks import write_out
from ..ir.by_exchange import by_exchange
from ..ir.check import check
from ..ir.decided import decided
from ..ir.guards import guards_where_shown
from ..ir.kernels import ForeignKernel
from ..ir.nodes import For, Let, Load, Stmt
from ..ir.program import Program
from ..ir.rounding import added_at_once, loads_once, masked_late, operands_once
from ..ir.steps import begun, names, reordered
from ..names import RECURRENCE
from .orders import (
    HYBRID,
    KEYS_OF_OBLONGS,
    KEYS_OF_SQUARES,
    OBLONG,
    QUERIES_OF_OBLONGS,
    QUERIES_OF_SQUARES,
    SQUARE,
    WINDOW,
    WINDOW_GRADIENTS,
)


@dataclass(frozen=True)
class Plan:
    """The places of one program's tiles, and the order of its steps."""

    ahead: tuple[str, ...]
    """Loads of a round's tokens that become rings of shared tiles, copied STAGES - 1 rounds before."""
    shared: tuple[str, ...]
    """Tiles that products read from shared memory."""
    left: tuple[str, ...]
    """Tiles that products read on their left from registers."""
    turned: tuple[str, ...]
    """Tiles that are kept transposed."""
    order: tuple[str, ...]
    """The steps of a round."""
    alone: tuple[str, ...] = ()
    """Tiles that single warps calculate with, and their products: those with few rows are in each of them."""
    right: tuple[str, ...] = ()
    """Tiles that such products read on their right, made in registers."""
    hidden: tuple[str, ...] = ()
    """Shared tiles whose addresses the compiler shall not keep, of which there are too many."""
    anew: tuple[str, ...] = ()
    """Index tiles of which the compiler shall not calculate beforehand what is needed after the loop."""
    bits: tuple[str, ...] = ()
    """Masks of pairs that lie in shared memory as bits, and leave out what is rounded already."""
    reread: tuple[str, ...] = ()
    """Tiles of products that are read from shared memory where they are calculated with, and kept nowhere."""
    kept: tuple[str, ...] = ()
    """Loads of what an earlier round has copied, and stays in its ring until then."""
    by_rows: tuple[str, ...] = ()
    """Tiles in registers that lie there as rows in memory do, and that no copy brings."""
    through: tuple[tuple[str, str], ...] = ()
    """Tensors whose rows are stored through a tile of operands, once products have read that."""
    converted: tuple[str, ...] = ()
    """Loads that are widened by conversion, and not by shifts that ptxas does not see through."""

    def lines(self) -> list[str]:
        """The plan for people."""
        return [
            f"{word}: {', '.join(x if isinstance(x, str) else ' by '.join(x) for x in found)}"
            for word, found in vars(self).items()
            if found
        ]

    def moved(self, steps: tuple[str, ...], before: str) -> Plan:
        """The plan with some steps in front of another."""
        rest = [step for step in self.order if step not in steps]
        place = rest.index(before)
        return replace(self, order=(*rest[:place], *steps, *rest[place:]))

    def of(self, program: Program) -> Plan:
        """The plan without what a program lacks."""
        types = check(program)
        steps = {name for stmt in program.body if isinstance(stmt, For) for name in names(stmt.body, types)}
        tiles = {getattr(stmt, "name", "") for stmt in _every(program.body)}
        kept = {word: tuple(x for x in found if x in tiles) for word, found in vars(self).items()}
        kept["through"] = self.through
        loads = {x.name for x in _every(program.body) if isinstance(x, Let) and isinstance(x.value, Load)}
        kept["ahead"] = tuple(x for x in self.ahead if x in loads)
        return Plan(**kept | {"order": tuple(x for x in self.order if x in steps)})


@dataclass(frozen=True)
class Plans:
    """Those of one printer: where a state stays, where it fades, and gradients of what was divided."""

    plain: Plan
    fading: Plan | None = None
    divided: Plan | None = None

    def of(self, program: Program) -> Plan:
        """The one of a program."""
        tensors = {tensor.name for tensor in program.tensors}
        found = self.fading if "log_decay" in tensors else self.divided if "e" in tensors else None
        return found or self.plain


ELEMENTWISE = Plan(
    ahead=("Q", "K", "K_features", "Y"),
    shared=("K_features", "Y", "S_operand", "z_operand", "ones"),
    left=("Q_features", "A_operand"),
    turned=("S", "S_all", "S_operand", "z_operand"),
    order=(
        # What products read on the right.
        *("t", "Y", "K", "K_features", "S_operand", "z_operand"),
        # All products but those that read the chunk's weights, in a row.
        *("Q", "Q_features", "R", "O+Q_features", "N+Q_features", "S+K_features", "z+K_features"),
        # One of them is waited for, the first; the others run while the weights are made.
        *("seen", "A", "A_operand", "O+A_operand", "N+A_operand"),
        *("n_rows", ">n", "O=", ">o"),
    ),
)
"""A recurrence of maps that act on single components: see docs/lab-book.md."""
LOG = ("t", "t_log_own_given", "t_log_own", "t_log", "t_log_end")
"""What is left of what was before a tile, after each of its tokens."""
FADING = replace(
    ELEMENTWISE,
    ahead=(*ELEMENTWISE.ahead, "t_log_own_given"),
    shared=(*ELEMENTWISE.shared, "Y_kept", "factors"),
    order=(
        *(*LOG, "kept"),
        *("Y", "Y_kept", "factors", "K", "K_features", "S_operand", "z_operand"),
        *("Q", "Q_features", "R", "O+Q_features", "N+Q_features"),
        *("S=", "S+K_features", "z=", "z+K_features"),
        *("seen", "A", "A_operand"),
        # By now older keys' part is there; it fades before the chunk's own is added.
        *("O=", "N=", "O+A_operand", "N+A_operand"),
        *("n_rows", ">n", "O=2", ">o"),
    ),
)
"""The same with a state that fades."""
STATES = Plan(
    ahead=("X", "Y", "G", "E"),
    shared=("X", "X_scaled", "Y", "G", "F_operand_0", "F_operand_1"),
    left=("X", "X_scaled"),
    turned=("S_0", "S_1", "F_operand_0", "F_operand_1"),
    alone=("Z", "z", "Z_place", "z_place", "Z_weighted"),
    right=("X_scaled_e",),
    hidden=("X_scaled", "F_operand_0", "F_operand_1"),
    anew=("u",),
    order=(
        *("t", "Y", "G", "X", "X_scaled", "F_operand_0", "F_operand_1"),
        *("S_0+F_operand_0", "S_1+F_operand_1"),
        # Single warps sum for the normaliser while those products are under way.
        *("E", "X_scaled_e", "Z+X", "Z+X_scaled", "z+all_ones", "terms+"),
    ),
)
"""What segments add to the state of a map whose features are made by exchange."""
EXCHANGING = Plan(
    ahead=("Q", "K", "Y"),
    shared=("K", "Y", "F_operand_0", "F_operand_1", "S_operand_0", "S_operand_1", "ones"),
    left=("K", "Q_scaled", "P_operand_0", "P_operand_1", "A_operand"),
    turned=("S_0", "S_1", "F_operand_0", "F_operand_1", "S_operand_0", "S_operand_1"),
    alone=("Z", "z", "QZ", "QZQ", "Z_place", "z_place", "Z_kept_place", "z_kept_place"),
    right=("Z_operand",),
    anew=("place_0", "place_1", "a", "c"),
    order=(
        *("t", "Y", "K", "F_operand_0", "F_operand_1", "S_operand_0", "S_operand_1"),
        # Single warps read what the normaliser has of older keys before the chunk's own products.
        *("Q", "Q_scaled", "Z_operand", "QZ", "QZQ", "n_older", "n_older=", "Z+K", "z+all_ones"),
        *("R", "P_operand_0", "P_operand_1", "seen", "A", "A_operand"),
        # All other products in a row, so that few tiles are alive at once.
        *("O+P_operand_0", "O+P_operand_1", "O+A_operand", "N"),
        *("S_0+F_operand_0", "S_1+F_operand_1"),
        *("n_rows", "n_older+", ">n", "O=", ">o"),
    ),
)
"""A recurrence of a map whose features are made by exchange."""
QUERY_GRADIENTS = Plan(
    ahead=("Q", "K", "K_features", "Y", "G"),
    shared=("K_features", "Y", "G", "S_operand"),
    left=("dR",),
    turned=("S", "S_all", "S_operand"),
    order=(
        *("t", "Y", "G", "K", "K_features", "S_operand"),
        # The one that is waited for first, and all that need nothing of it.
        *("dA", "dQ+G", "S+K_features"),
        *("seen", "dR", "dQ+dR"),
        *("Q", "dQ=", "dQ=2", ">dq"),
    ),
)
"""Gradients of queries, of maps that act on single components."""
FADING_QUERY_GRADIENTS = replace(
    QUERY_GRADIENTS,
    ahead=(*QUERY_GRADIENTS.ahead, "t_log_own_given"),
    shared=(*QUERY_GRADIENTS.shared, "Y_kept", "S_rest"),
    left=(*QUERY_GRADIENTS.left, "G_kept"),
    turned=(*QUERY_GRADIENTS.turned, "S_rest"),
    order=(
        *(*LOG, "since", "kept", "Y", "Y_kept", "G", "G_kept", "K", "K_features", "S_operand", "S_rest"),
        *("dA", "dQ+G_kept", "dQ+G_kept2", "S=", "S+K_features"),
        *("seen", "dR", "dQ+dR"),
        *("Q", "Q_features", "products", "owed", ">r", "dQ=", "dQ=2", ">dq"),
    ),
)
"""The same with a state that fades, and what is owed to its decay."""
KEY_GRADIENTS = Plan(
    ahead=("Q", "K", "K_features", "Y", "G"),
    shared=("Q_features", "K_features", "Y", "G", "S_operand"),
    left=("A", "dR"),
    turned=("S", "S_all", "S_operand"),
    order=(
        *("t", "Y", "G", "K", "K_features", "Q", "Q_features", "S_operand"),
        *("R", "dA", "dV+K_features", "S+Q_features"),
        *("seen", "A", "dV+A", "dR", "dK+Y", "dK+dR"),
        *(">dv", "dK=", ">dk"),
    ),
)
"""Those of keys and values."""
FADING_KEY_GRADIENTS = replace(
    KEY_GRADIENTS,
    ahead=(*KEY_GRADIENTS.ahead, "t_log_own_given"),
    shared=(*KEY_GRADIENTS.shared, "G_kept", "S_rest"),
    left=(*KEY_GRADIENTS.left, "Y_kept"),
    turned=(*KEY_GRADIENTS.turned, "S_rest"),
    reread=("K_features",),
    order=(
        *(*LOG, "r_own", "since", "kept", "Y", "Y_kept", "G", "G_kept", "K", "K_features", "Q", "Q_features"),
        *("S_operand", "S_rest"),
        # What keys get is summed up before what values get is begun: registers do not hold both.
        *("dK+Y_kept", "dK+Y_kept2", "R", "dA", "seen", "A", "dR", "dK+dR"),
        *("dV+K_features", "S=", "S+Q_features", "dV=", "dV+A"),
        *("products", "owed", "r_now", ">r", "dK=", ">dk", ">dv"),
    ),
)
"""The same with a mirrored state that fades."""
NORMALIZED_QUERY_GRADIENTS = replace(
    QUERY_GRADIENTS,
    ahead=("Q", "K", "K_features", "Y", "dO", "O"),
    shared=(*QUERY_GRADIENTS.shared, "ones"),
    through=(("dq", "K_features"),),  # so that two programs share a multiprocessor's memory
    order=(
        *("t", "N", "Y", "K", "K_features", "S_operand"),
        *("dO", "O", "products", "total", "E", ">e", "G"),
        *("dA+G", "z_rows", "dQ+", "dQ+G", ">g", "S+K_features", "z+K_features"),
        *("dA+", "seen", "dR", "dQ+dR"),
        *("Q", "dQ=", "dQ=2", ">dq"),
    ),
)
"""Those of queries of maps that are divided by what they add up to: first g and e, which others read too."""
NORMALIZED_KEY_GRADIENTS = replace(
    KEY_GRADIENTS,
    ahead=(*KEY_GRADIENTS.ahead, "E"),
    shared=(*KEY_GRADIENTS.shared, "factors"),
    hidden=("K_features", "Q_features", "S_operand", "factors"),
    order=(
        *("t", "Y", "G", "K", "K_features", "Q", "Q_features", "E", "factors", "S_operand", "z_rows"),
        *("R", "dA+Y", "dV+K_features", "S+Q_features", "z+Q_features"),
        *("seen", "A", "dV+A", "dA+", "dR", "dK+", "dK+Y", "dK+dR"),
        *(">dv", "dK=", ">dk"),
    ),
)
"""Those of keys and values."""
WIDE_KEY_GRADIENTS = replace(
    KEY_GRADIENTS,
    hidden=("Q_features", "S_operand"),
    order=(
        *("t", "Y", "G", "K", "K_features", "Q", "Q_features", "S_operand"),
        # Beside a state twice as wide all sums do not fit the registers at once: values come first.
        *("R", "seen", "A", "dV+K_features", "dV+A", "dA", "dR", ">dv"),
        *("dK+Y", "dK+dR", "S+Q_features", "dK=", ">dk"),
    ),
)
"""The same over twice as many columns."""
STREAMED = Plan(
    ahead=("Q", "K", "Y"),
    kept=("K_between", "Y_between", "K_old", "Y_old"),
    shared=("Q", "K", "Y", "K_between", "Y_between", "K_old", "Y_old"),
    left=("P_own", "P_old", "P_between_operand"),
    turned=(),
    order=(
        *("t", "j", "j_between", "j_old", "Q", "K", "K_between", "K_old", "Y", "Y_between", "Y_old"),
        *("R", "R_old", "R_between", "own", "scores", "scores_between", "oldest"),
        *("scores?", "scores=", "scores_between=", "own_top", "top", "top_between", "top="),
        # Values are multiplied while the rest of the weights is made, and the logarithm stored.
        *("P", "total", "P_operand", "P_own", "P_old", "O+P_own", "O+P_old"),
        *("P_between", "total+", "P_between_operand", "O+P_between_operand"),
        *("logarithm", ">lse", "O=", ">o"),
    ),
)
"""A window that keeps the keys of earlier chunks."""
STREAMED_GRADIENTS = Plan(
    ahead=("Q", "K", "Y", "dO", "lse_row"),
    kept=("K_old", "Y_old"),
    shared=("Q", "K", "Y", "dO", "K_old", "Y_old", "P_own", "P_old", "dS_own", "dS_old"),
    left=(),
    turned=(),
    hidden=("P_own", "P_old", "dS_own", "dS_old"),
    by_rows=("O", "products"),
    through=(("dk", "dS_old"), ("dv", "P_old"), ("dq", "P_own")),
    order=(
        *("t", "j", "j_old", "t_own", "j_done", "Q", "K", "K_old", "Y", "Y_old", "dO", "lse_row", "O"),
        # Tiles of pairs one after the other: four at once would not fit the registers beside what is carried.
        *("R", "R_old", "own", "products", "delta", "P", "oldest", "P?", "own_seen", "old_seen"),
        *("P_operand", "P_own", "P_old", "dP", "dP_old", "dS", "dS_operand", "dS_own", "dS_old"),
        # What is complete with this round, then what it leaves to the next.
        *("dK_carried+dS_old", "dV_carried+P_old", "dQ+dS_own", "dQ+dS_old", "dK", "dV"),
        *("dK_carried=", "dQ=", ">dk", ">dv", ">dq", "dK_carried=2", "dV_carried="),
    ),
)
"""Its gradients."""
STREAMED_HYBRID = replace(
    EXCHANGING,
    ahead=("Q", "K", "Y"),
    kept=("K_old", "Y_old"),
    shared=("Q", "K", "Y", "K_old", "Y_old", *EXCHANGING.shared[2:-1]),
    left=("Q_scaled", "P_operand_0", "P_operand_1", "W_own", "W_old"),
    hidden=("F_operand_0", "F_operand_1", "S_operand_0", "S_operand_1"),
    order=(
        *("t", "j", "j_old", "Q", "K", "K_old", "Y", "Y_old"),
        *("F_operand_0", "F_operand_1", "S_operand_0", "S_operand_1"),
        *("Q_scaled", "Z_operand", "QZ", "QZQ", "n_older", "n_older=", "Z+K_old", "z+all_ones"),
        *("R", "R_old", "P_operand_0", "P_operand_1", "O+P_operand_0", "O+P_operand_1"),
        # All products with the state run while the weights of the pairs are made.
        *("S_0+F_operand_0", "S_1+F_operand_1"),
        *("own", "scores", "A", "scores?", "own_top", "top", "W", "fall", "A="),
        *("total", "total_left", "total+", "W_operand", "W_own", "W_old"),
        *("O=", "O+W_own", "O+W_old", "total_older", "total+2", "logarithm", ">lse"),
        *("O=2", "nothing_of_O", "doubt_of_rows+", ">o"),
    ),
)
"""A window beside a state, both under one normaliser."""
PLANS: dict[str, Plans] = {
    **dict.fromkeys((SQUARE, OBLONG), Plans(ELEMENTWISE, fading=FADING)),
    **dict.fromkeys(("states", "query_states"), Plans(STATES)),
    RECURRENCE: Plans(EXCHANGING),
    QUERIES_OF_SQUARES: Plans(QUERY_GRADIENTS, FADING_QUERY_GRADIENTS, NORMALIZED_QUERY_GRADIENTS),
    KEYS_OF_SQUARES: Plans(KEY_GRADIENTS, FADING_KEY_GRADIENTS, NORMALIZED_KEY_GRADIENTS),
    QUERIES_OF_OBLONGS: Plans(QUERY_GRADIENTS),
    KEYS_OF_OBLONGS: Plans(WIDE_KEY_GRADIENTS),
    WINDOW: Plans(STREAMED),
    WINDOW_GRADIENTS: Plans(STREAMED_GRADIENTS),
    HYBRID: Plans(STREAMED_HYBRID),
}
"""By the names that `orders.py` has for printers."""
ALTERNATIVES: dict[tuple[str, str], Callable[[Plan], Plan]] = {
    ("state", "early"): lambda plan: plan.moved(("S_operand_0", "S_operand_1"), "Y"),
    ("sums", "late"): lambda plan: plan.moved(("Z+K", "z+all_ones"), "seen"),
    ("scaling", "converted"): lambda plan: replace(plan, converted=("Q",)),
    ("mask", "bits"): lambda plan: replace(plan, bits=("seen",)),
}
"""What those of `orders.py` make of a plan, where they do something to it."""


def plan_of(kernel: ForeignKernel, pieces: Mapping[str, str]) -> Plan:
    """The plan of a kernel's program, with the alternatives that are chosen of its pieces."""
    assert kernel.program is not None
    plan = PLANS[kernel.printer].of(kernel.program)
    for choice in pieces.items():
        plan = ALTERNATIVES.get(choice, lambda same: same)(plan)
    return plan


def placed(program: Program, plan: Plan, size: Callable[[str], int]) -> Program:
    """A program as a plan wants it: each rewrite is checked, and none changes what is computed.

    Raises `OutOfOrder` if the plan's order names other steps than there are, or lets one read something else.
    """
    program = decided(by_exchange(write_out(program, size), size), size)
    program = added_at_once(loads_once(operands_once(program, check(program))))
    program = masked_late(program, plan.bits)
    types = check(program)
    body: list[Stmt] = []
    for stmt in program.body:
        if isinstance(stmt, For):
            stmt = replace(stmt, body=reordered(stmt.body, plan.order, types))
        body.append(stmt)
    return guards_where_shown(Program(**vars(program) | {"body": begun(body)}))


def _every(body: tuple[Stmt, ...]) -> list[Stmt]:
    inner = [part for stmt in body for part in _every(getattr(stmt, "body", ()))]
    return [*body, *inner]
