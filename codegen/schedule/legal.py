"""Which sizes a program admits; a schedule that breaks these rules would compute something else."""

from __future__ import annotations

from ..ir.fuse import statements
from ..ir.nodes import Blocks, Program
from .model import Schedule


class IllegalSchedule(Exception):
    """A schedule whose sizes its program does not admit: a bug in a policy or a wrong tuning record."""


def require_legal(program: Program, schedule: Schedule) -> None:
    """Raise `IllegalSchedule` unless every size is legal for the program.

    A constant that a program uses for a whole dimension covers it, a segment is made of whole chunks and
    tiles, and blocks that are written out are the same for all dtypes, which share the text.
    """
    for stmt in statements(program.body):
        if isinstance(stmt, Blocks) and len(schedule.values(stmt.step)) != 1:
            raise IllegalSchedule(f"{program.name}: {stmt.step} differs between dtypes, but is written out")
    for dtype, setting in schedule.settings.items():
        sizes = setting.constants
        if missing := [name for name in program.constants if sizes.get(name, 0) < 1]:
            raise IllegalSchedule(f"{program.name} {dtype}: no size for {', '.join(missing)}")
        for name, extent in program.bounds.items():
            if sizes[name] < extent:
                raise IllegalSchedule(f"{program.name} {dtype}: {name}={sizes[name]} does not cover {extent}")
        for name in ("CHUNK", "KEYS", "QUERIES"):
            if "SEGMENT" in sizes and sizes["SEGMENT"] % sizes.get(name, 1):
                what = f"SEGMENT={sizes['SEGMENT']} is no multiple of {name}={sizes[name]}"
                raise IllegalSchedule(f"{program.name} {dtype}: {what}")
