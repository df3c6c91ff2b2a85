"""The legal choices of every program: the schedule as a search space.

The tables below say how far each choice may go; what a program itself demands (bounds, whole segments, sides
of matrix products) narrows them, and `candidates` lists what is left, nearest to a given schedule first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial
from itertools import combinations

from ..ir.check import check
from ..ir.fuse import statements
from ..ir.nodes import Blocks, For, Let, Load, Program, Span, Store, Var, loads_ahead
from ..ir.rewrite import rewritten
from ..names import RECURRENCE, WINDOW_PROGRAMS, is_on_warpgroups, portable
from . import orders
from .budget import fits
from .legal import ALL_TOKENS, DIRECT, ONE_TOKEN, is_legal, miscompiled, products
from .model import Schedule, Setting
from .policy import MATRIX_UNIT, RESIDENT_PROGRAMS


def _powers(least: int, most: int) -> tuple[int, ...]:
    """Powers of two from `least` to `most`, both included."""
    return tuple(1 << n for n in range(least.bit_length() - 1, most.bit_length()))


SIZES = {
    "CHUNK": _powers(16, 256),  # tokens whose results one block computes
    "KEYS": _powers(16, 256),  # keys that it reads at a time
    "QUERIES": _powers(16, 256),  # queries that it reads at a time
    "FEATURES": _powers(4, 256),  # rows of the state at a time
    "VALUES": _powers(16, 256),  # columns of the state: less than all of them is a value split
    "SEGMENT": _powers(32, 256),  # tokens of which a segment has a multiple
    # Of launch plans:
    "LONGEST": (ONE_TOKEN, *_powers(1 << 8, 1 << 13), ALL_TOKENS),  # computed directly, one sequence
    "TOKENS": (*_powers(1 << 12, 1 << 18), ALL_TOKENS),  # and all of them
    "LENGTH": _powers(128, 4096),  # tokens of a segment
    "SHORTEST": _powers(128, 2048),  # tokens of a segment at least
    "PROGRAMS": tuple(RESIDENT_PROGRAMS * n // 12 for n in (1, 2, 3, 4, 6, 8, 12, 18, 24, 36, 48)),
    "FEWEST": (1, 2, 3, 4, 6, 8),  # segments at least, else there is one
}
OTHERS = _powers(1, 4096)
"""Constants that the table does not know, of a program that is new."""

WARPS = {"triton": (1, 2, 4, 8), "tilelang": (4, 8)}
STAGES = {"triton": (1, 2, 3, 4)}
ROUNDS = {"triton": (1, 2, 4, 8, 16), "tilelang": (1, 2, 4, 8)}
"""Of a loop that says that its rounds load ahead: how many do."""
REWRITE_SETS: dict[str, tuple[tuple[str, ...], ...]] = {
    "triton": (("gather_by_product",),),  # has no gather of its own
    "tilelang": ((), ("gather_by_product",)),
    "torch": ((), ("gather_by_product",)),
}
OF_THE_LAYER = frozenset({"SEGMENT"})
"""Constants that mean one thing for all programs of a layer: not to be changed in one of several."""

DECIDING = frozenset({RECURRENCE, "query_gradients", *WINDOW_PROGRAMS.values()})
"""Programs whose version for warpgroups decides for its whole pass: where it is not used, nor are others."""

OF_RECURRENCES = frozenset({*DIRECT, "SHORTEST", "PROGRAMS", "FEWEST"})
"""Constants of a forward pass's launch plan that say when it recurs, and in how many segments."""

Choice = int | bool | str | tuple[str, ...]
Choices = dict[str, tuple[Choice, ...]]


def fixed(programs: Collection[Program]) -> frozenset[str]:
    """Constants that several programs of a layer must agree on, so that none may change them alone."""
    return frozenset(
        name for name in OF_THE_LAYER if sum(name in program.constants for program in programs) > 1
    )


def decides(program: str) -> bool:
    """Whether a program may be left unused, and with it its whole pass on warpgroups."""
    return is_on_warpgroups(program) and portable(program) in DECIDING


def fixed_in_plan(plan: Program, kernels: Collection[Program], default: Schedule) -> frozenset[str]:
    """Constants of a launch plan that are no choice: tiles, which are the kernels', and what it never reads.

    `default` is the policy's plan for one dtype.  Where that never recurs there is no recurrence, or none
    whose state the registers hold.
    """
    (setting,) = default.settings.values()
    tiles = {name for kernel in kernels for name in kernel.constants}
    never = all(setting.constants.get(name) == ALL_TOKENS for name in DIRECT)
    unread = OF_RECURRENCES if never else frozenset()
    return frozenset(name for name in plan.constants if name in tiles | unread)


def choices(program: Program, start: Schedule, keep: Collection[str] = ()) -> Choices:
    """Every choice of a program on the backend of `start`, a schedule for one dtype.

    Sizes go by the constant's name.  Some keep the size that they have in `start`: one that covers a whole
    dimension (`Program.bounds`), one by which blocks are written out (for all dtypes alike), those in `keep`.
    """
    (setting,) = start.settings.values()
    written = _rewritten(program, start)
    sides = {side for product in products(written, check(written)) for side in product}
    blocks = {stmt.step for stmt in statements(program.body) if isinstance(stmt, Blocks)}
    found: Choices = {}
    for name in program.constants:
        if name in program.bounds or name in blocks or name in keep:
            continue
        least = MATRIX_UNIT if name in sides else 1
        sizes = {size for size in SIZES.get(name, OTHERS) if size >= least} | {setting.constants[name]}
        if extent := _extent(program, name):
            enough = min(size for size in (*sizes, 1 << (extent - 1).bit_length()) if size >= extent)
            sizes = {size for size in sizes if size <= enough} | {setting.constants[name]}
        found[name] = tuple(sorted(sizes))
    if start.backend in WARPS and program.body:
        found["warps"] = WARPS[start.backend]
    if decides(program.name):
        found["used"] = (False, True)
    loops = is_on_warpgroups(program.name) or any(isinstance(s, For) for s in statements(program.body))
    stages = (ROUNDS if loads_ahead(program) else STAGES).get(start.backend)
    if stages and loops and not program.is_plan:
        found["stages"] = stages
    plain = _rewritten(program, replace(start, rewrites=()))
    sets = {
        rewrites
        for rewrites in REWRITE_SETS[start.backend]
        if _rewritten(program, replace(start, rewrites=rewrites)) != plain
    }
    if sets:
        found["rewrites"] = tuple(sorted({*REWRITE_SETS[start.backend], start.rewrites}))
    found |= orders.pieces(program)
    return {name: options for name, options in found.items() if len(options) > 1}


def candidates(
    program: Program, start: Schedule, keep: Collection[str] = (), most_changes: int = 2
) -> Iterator[Schedule]:
    """`start`, a schedule for one dtype, then its legal neighbours that fit the machine.

    First those with one change, each choice's nearest options first, then those with two, up to
    `most_changes`.
    """
    yield start
    options = choices(program, start, keep)
    moves = {name: _moves(program, start, name, values) for name, values in options.items()}
    for changes in range(1, most_changes + 1):
        ring: list[tuple[int, Schedule]] = []
        for names in combinations(moves, changes):
            ring += _changed(program, start, [(name, moves[name]) for name in names])
        ring.sort(key=lambda entry: entry[0])
        yield from filter(partial(_allowed, program), (schedule for _, schedule in ring))


def _allowed(program: Program, schedule: Schedule) -> bool:
    ((dtype, setting),) = schedule.settings.items()
    if not is_legal(program, schedule):
        return False
    kernel = _rewritten(program, schedule)
    types = check(kernel)
    if schedule.backend == "triton" and miscompiled(kernel, types, setting, dtype):
        return False
    return fits(kernel, types, schedule.backend, dtype, setting)


def _moves(
    program: Program, start: Schedule, name: str, options: tuple[Choice, ...]
) -> list[tuple[int, Choice]]:
    """The other options of one choice, each with its distance from the present one."""
    now = _get(program, start, name)
    place = options.index(now) if now in options else 0
    return [(abs(i - place) or 1, option) for i, option in enumerate(options) if option != now]


def _changed(
    program: Program, start: Schedule, changes: list[tuple[str, list[tuple[int, Choice]]]]
) -> Iterator[tuple[int, Schedule]]:
    """Every schedule that differs from `start` in exactly these choices, with its distance."""
    if not changes:
        yield 0, start
        return
    (name, moves), rest = changes[0], changes[1:]
    for distance, option in moves:
        for further, schedule in _changed(program, _set(program, start, name, option), rest):
            yield distance + further, schedule


def _get(program: Program, schedule: Schedule, name: str) -> Choice:
    (setting,) = schedule.settings.values()
    if name in orders.pieces(program):
        return orders.chosen(program, schedule.rewrites)[name]
    if name == "rewrites":
        return schedule.rewrites
    if name in ("warps", "stages", "used"):
        return getattr(setting, name)
    return setting.constants[name]


def _set(program: Program, schedule: Schedule, name: str, option: Choice) -> Schedule:
    ((dtype, setting),) = schedule.settings.items()
    if isinstance(option, str):
        places = orders.chosen(program, schedule.rewrites) | {name: option}
        return replace(schedule, rewrites=orders.names(program, places))
    if isinstance(option, tuple):
        return replace(schedule, rewrites=option)
    changed: Setting
    if name == "warps":
        changed = replace(setting, warps=option)
    elif name == "stages":
        changed = replace(setting, stages=option)
    elif name == "used":
        changed = replace(setting, used=bool(option))
    else:
        changed = replace(setting, constants=setting.constants | {name: option})
    return replace(schedule, settings={dtype: changed})


def _rewritten(program: Program, schedule: Schedule) -> Program:
    """The program as a kernel is printed from it."""
    (setting,) = schedule.settings.values()
    return rewritten(program, schedule.rewrites, lambda name: setting.constants[name])


def _extent(program: Program, constant: str) -> int:
    """The longest static dimension that tiles of this size run over; 0 where none does.

    A tile that covers such a dimension gains nothing from being longer.
    """
    longest = 0
    spans = {
        stmt.name: stmt.value
        for stmt in statements(program.body)
        if isinstance(stmt, Let) and isinstance(stmt.value, Span)
    }
    for stmt in statements(program.body):
        access = stmt if isinstance(stmt, Store) else getattr(stmt, "value", None)
        if not isinstance(access, Load | Store):
            continue
        for entry, dim in zip(access.index, program.tensor(access.tensor).dims, strict=True):
            span = spans.get(entry.name) if isinstance(entry, Var) else entry
            if isinstance(span, Span) and span.size == constant and isinstance(dim, int):
                longest = max(longest, dim)
    return longest
