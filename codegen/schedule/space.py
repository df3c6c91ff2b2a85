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
from ..ir.kernels import ForeignKernel, Kernel, LaunchPlan, Sized
from ..ir.nodes import Blocks, Dim, For, Let, Load, Span, Store, Var
from ..ir.program import Program, loads_ahead
from ..ir.rewrite import rewritten
from ..ir.traits import CHUNKS, SOLVES
from . import orders
from .budget import fits
from .legal import ALL_TOKENS, DIRECT, ONE_TOKEN, bounds, is_legal, miscompiled, products, shares_out
from .model import Schedule, Setting
from .policy import RESIDENT_PROGRAMS
from .sizes import MATRIX_UNIT


def _powers(least: int, most: int) -> tuple[int, ...]:
    """Powers of two from `least` to `most`, both included."""
    return tuple(1 << n for n in range(least.bit_length() - 1, most.bit_length()))


SIZES = {
    "CHUNK": _powers(16, 256),  # tokens whose results one block computes
    "KEYS": _powers(16, 256),  # keys that it reads at a time
    "QUERIES": _powers(16, 256),  # queries that it reads at a time
    "FEATURES": _powers(4, 256),  # rows of the state at a time
    "BLOCK": _powers(8, 64),  # rows of an inverse that are found one after the other
    "VALUES": _powers(16, 256),  # columns of the state: less than all of them is a value split
    "SEGMENT": _powers(32, 256),  # tokens of which a segment has a multiple
    # Of launch plans:
    "LONGEST": (ONE_TOKEN, *_powers(1 << 8, 1 << 13), ALL_TOKENS),  # computed directly, one sequence
    "TOKENS": (*_powers(1 << 12, 1 << 18), ALL_TOKENS),  # and all of them
    "LENGTH": _powers(128, 4096),  # tokens of a segment
    "SHORTEST": _powers(128, 2048),  # tokens of a segment at least
    "PROGRAMS": tuple(RESIDENT_PROGRAMS * n // 12 for n in (1, 2, 3, 4, 6, 8, 12, 18, 24, 36, 48)),
    "LEAST": (ONE_TOKEN, *_powers(16, 1 << 10), ALL_TOKENS),  # from which on chunks are products
    "TILED": (ONE_TOKEN, ALL_TOKENS),  # computed in tiles, where others are walked
    "LANES": _powers(1 << 16, 1 << 22),  # channels that are walked at once
    "FEWEST": (1, 2, 3, 4, 6, 8),  # segments at least, else there is one
}
OF_SECOND_LOOKS = frozenset({"ROWS"})
"""Constants of what runs only where something is not finite: no choices, since that is never timed."""
OTHERS = _powers(1, 4096)
"""Constants that the table does not know, of a program that is new."""

WARPS = {"triton": (1, 2, 4, 8), "tilelang": (4, 8)}
STAGES = {"triton": (1, 2, 3, 4)}
ROUNDS = {"triton": (1, 2, 4, 8, 16), "tilelang": (1, 2, 4, 8)}
"""Of a loop that says that its rounds load ahead: how many do."""
# Beside these, what the policy asks for: `turn` wants tiles of its own, which the policy has too.
REWRITE_SETS: dict[str, tuple[tuple[str, ...], ...]] = {
    "triton": (("gather_by_product",),),  # has no gather of its own
    "tilelang": ((), ("gather_by_product",)),
    "torch": ((), ("gather_by_product",)),
}
OF_THE_LAYER = frozenset({"SEGMENT"})
"""Constants that mean one thing for all programs of a layer: not to be changed in one of several."""
OF_SOLVERS = frozenset({"CHUNK"})
"""The same of programs that read what others of them have found for a chunk: corrections, tables."""

OF_RECURRENCES = frozenset({*DIRECT, "SHORTEST", "PROGRAMS", "FEWEST"})
"""Constants of a forward pass's launch plan that say when it recurs, and in how many segments."""

Choice = int | bool | str | tuple[str, ...]
Choices = dict[str, tuple[Choice, ...]]


def fixed(kernels: Collection[Kernel]) -> frozenset[str]:
    """Constants that several kernels of a layer must agree on, so that none may change them alone."""
    return frozenset(name for name in OF_THE_LAYER if sum(name in kernel.constants for kernel in kernels) > 1)


def fixed_in_plan(plan: LaunchPlan, kernels: Collection[Kernel], default: Schedule) -> frozenset[str]:
    """Constants of a launch plan that are no choice: tiles, which are the kernels', and what it never reads.

    `default` is the policy's plan for one dtype.  Where that never recurs there is no recurrence, or none
    whose state the registers hold.
    """
    (setting,) = default.settings.values()
    tiles = {name for kernel in kernels for name in kernel.constants}
    never = all(setting.constants.get(name) == ALL_TOKENS for name in DIRECT)
    unread = OF_RECURRENCES if never else frozenset()
    return frozenset(name for name in plan.constants if name in tiles | unread)


def choices(subject: Sized, start: Schedule, keep: Collection[str] = ()) -> Choices:
    """Every choice of a kernel or plan on the backend of `start`, a schedule for one dtype.

    Sizes go by the constant's name.  Some keep the size that they have in `start`: one that covers a whole
    dimension (`bounds`), one by which blocks are written out (for all dtypes alike), those in `keep`.
    """
    (setting,) = start.settings.values()
    program = subject if isinstance(subject, Program) else None
    if program and not program.does.isdisjoint({SOLVES, CHUNKS}):
        keep = {*keep, *OF_SOLVERS}
    sides = _sides(program, start) if program else set()
    blocks = {s.step for s in statements(program.body) if isinstance(s, Blocks)} if program else set()
    found: Choices = {}
    for name in subject.constants:
        if name in bounds(subject) or name in blocks or name in keep or name in OF_SECOND_LOOKS:
            continue
        least = MATRIX_UNIT if name in sides else 1
        sizes = {size for size in SIZES.get(name, OTHERS) if size >= least} | {setting.constants[name]}
        if program and (extent := _extent(program, name)):
            enough = min(size for size in (*sizes, 1 << (extent - 1).bit_length()) if size >= extent)
            sizes = {size for size in sizes if size <= enough} | {setting.constants[name]}
        found[name] = tuple(sorted(sizes))
    match subject:
        case Program():
            found |= _of_a_program(subject, start)
        case ForeignKernel():
            found |= {"used": (False, True)} if subject.decides else {}
            found["stages"] = STAGES[start.backend]
            found |= orders.pieces(subject)
    return {name: options for name, options in found.items() if len(options) > 1}


def _sides(program: Program, start: Schedule) -> set[Dim]:
    """Sides of the matrix products of a program as it is printed."""
    written = _rewritten(program, start)
    return {side for product in products(written, check(written)) for side in product}


def _of_a_program(program: Program, start: Schedule) -> Choices:
    """What a tile program can have besides sizes."""
    found: Choices = {}
    if start.backend in WARPS:
        found["warps"] = WARPS[start.backend]
    loops = any(isinstance(stmt, For) for stmt in statements(program.body))
    stages = (ROUNDS if loads_ahead(program) else STAGES).get(start.backend)
    if stages and loops:
        found["stages"] = stages
    plain = _rewritten(program, replace(start, rewrites=()))
    sets = {
        rewrites
        for rewrites in REWRITE_SETS[start.backend]
        if _rewritten(program, replace(start, rewrites=rewrites)) != plain
    }
    if sets:
        found["rewrites"] = tuple(sorted({*REWRITE_SETS[start.backend], start.rewrites}))
    return found


def candidates(
    subject: Sized, start: Schedule, keep: Collection[str] = (), most_changes: int = 2
) -> Iterator[Schedule]:
    """`start`, a schedule for one dtype, then its legal neighbours that fit the machine.

    First those with one change, each choice's nearest options first, then those with two, up to
    `most_changes`.
    """
    yield start
    options = choices(subject, start, keep)
    moves = {name: _moves(subject, start, name, values) for name, values in options.items()}
    for changes in range(1, most_changes + 1):
        ring: list[tuple[int, Schedule]] = []
        for names in combinations(moves, changes):
            ring += _changed(subject, start, [(name, moves[name]) for name in names])
        ring.sort(key=lambda entry: entry[0])
        yield from filter(partial(_allowed, subject), (schedule for _, schedule in ring))


def _allowed(subject: Sized, schedule: Schedule) -> bool:
    ((dtype, setting),) = schedule.settings.items()
    if not is_legal(subject, schedule):
        return False
    if not isinstance(subject, Program):
        return True
    kernel = _rewritten(subject, schedule)
    types = check(kernel)
    if schedule.backend == "triton" and miscompiled(kernel, types, setting, dtype):
        return False
    if schedule.backend == "tilelang" and dtype != "float32" and not shares_out(kernel, types, setting):
        return False
    return fits(kernel, types, schedule.backend, dtype, setting)


def _moves(
    subject: Sized, start: Schedule, name: str, options: tuple[Choice, ...]
) -> list[tuple[int, Choice]]:
    """The other options of one choice, each with its distance from the present one."""
    now = _get(subject, start, name)
    place = options.index(now) if now in options else 0
    return [(abs(i - place) or 1, option) for i, option in enumerate(options) if option != now]


def _changed(
    subject: Sized, start: Schedule, changes: list[tuple[str, list[tuple[int, Choice]]]]
) -> Iterator[tuple[int, Schedule]]:
    """Every schedule that differs from `start` in exactly these choices, with its distance."""
    if not changes:
        yield 0, start
        return
    (name, moves), rest = changes[0], changes[1:]
    for distance, option in moves:
        for further, schedule in _changed(subject, _set(subject, start, name, option), rest):
            yield distance + further, schedule


def _get(subject: Sized, schedule: Schedule, name: str) -> Choice:
    (setting,) = schedule.settings.values()
    if isinstance(subject, ForeignKernel) and name in orders.pieces(subject):
        return orders.chosen(subject, schedule.rewrites)[name]
    if name == "rewrites":
        return schedule.rewrites
    if name in ("warps", "stages", "used"):
        return getattr(setting, name)
    return setting.constants[name]


def _set(subject: Sized, schedule: Schedule, name: str, option: Choice) -> Schedule:
    ((dtype, setting),) = schedule.settings.items()
    if isinstance(option, str):
        assert isinstance(subject, ForeignKernel), "places are choices of foreign kernels"
        places = orders.chosen(subject, schedule.rewrites) | {name: option}
        return replace(schedule, rewrites=orders.names(subject, places))
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
