"""Heads in groups: programs are written for one head, and here made to find those that others share.

Each of q, k and v may have fewer heads than the output has, HO, any divisor of that.  A head of theirs is
then shared by HO // HQ of the output's in a row, and so on.  A state depends on keys and values alone, so it
has HS heads, the least common multiple of HK and HV: several queries share one.

There are two kinds of programs.  One *over queries* runs over the heads of outputs, and reads the head of
each other tensor that belongs to its own.  One *over states* runs over the heads of states; where it meets
queries it goes through the *members* of its group of them in a loop, and sums over these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeGuard, TypeVar

from .build import Builder
from .fuse import expressions, statements
from .nodes import Blocks, Doubt, Expr, For, Head, Let, Load, Set, Stmt, Store, Var, When
from .program import ALL_HEADS, GROUPED, HEADS, Program, head_sizes

A = TypeVar("A", Load, Store)

OWN = Var("h")
"""The head of a program."""
MEMBER = "member"
"""The variable of a loop over members."""

Owners = Mapping[str, str]
"""Tensors whose heads are not those of a program, and the size that counts them."""


@contextmanager
def members(b: Builder) -> Iterator[None]:
    """A loop over the query heads of a program's own head; a single round where each has one."""
    with b.loop(MEMBER, 0, Var(ALL_HEADS) // HEADS, several=GROUPED):
        yield


def grouped(program: Program, shared: Owners, of_members: Owners | None = None) -> Program:
    """The program with the heads of `shared` tensors, and those `of_members`, told apart from its own.

    Without GROUPED it is what it was.
    """
    shared, of_members = _present(program, shared), _present(program, of_members or {})
    owners = {**shared, **of_members}
    sizes = dict.fromkeys((*owners.values(), *((ALL_HEADS,) if of_members else ())))
    looks = [stmt for stmt in program.body if _is_look(stmt)]
    body = _Heads(shared, of_members).told(tuple(stmt for stmt in program.body if stmt not in looks))
    # A second look is printed as a function, and knows nothing of what the program has found.
    own = _Heads(shared, of_members, "_own")
    body += tuple(replace(look, body=own.told(look.body)) for look in looks)
    return replace(
        program,
        tensors=tuple(replace(tensor, heads=owners.get(tensor.name)) for tensor in program.tensors),
        sizes=(*program.sizes, *sizes),
        flags=(*program.flags, GROUPED),
        body=body,
    )


def _present(program: Program, owners: Owners) -> Owners:
    return {tensor.name: owners[tensor.name] for tensor in program.tensors if tensor.name in owners}


def _is_look(stmt: Stmt) -> TypeGuard[When]:
    return isinstance(stmt, When) and isinstance(stmt.condition, Doubt)


class _Heads:
    """Finds the heads of tensors in a run of statements; the names of variables end in `suffix`."""

    def __init__(self, shared: Owners, of_members: Owners, suffix: str = "") -> None:
        self.shared, self.of_members, self.suffix = shared, of_members, suffix

    def told(self, body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        """The statements, whose accesses name the heads of tensors that have others than the program."""
        told = tuple(map(self._statement, body))
        return self._found(told, self.shared, None) + told

    def _statement(self, stmt: Stmt) -> Stmt:
        match stmt:
            case Store():
                return self._access(stmt)
            case Let(_, Load() as load) | Set(_, Load() as load):
                return replace(stmt, value=self._access(load))
            case For() | Blocks() | When():
                body = tuple(map(self._statement, stmt.body))
                if isinstance(stmt, For) and stmt.var == MEMBER:
                    body = self._found(body, self.of_members, Var(MEMBER)) + body
                return replace(stmt, body=body)
            case _:
                return stmt

    def _access(self, access: A) -> A:
        size = self.shared.get(access.tensor) or self.of_members.get(access.tensor)
        index = tuple(Var(self._name(size)) if size and entry == OWN else entry for entry in access.index)
        return replace(access, index=index)

    def _found(self, body: tuple[Stmt, ...], owners: Owners, member: Expr | None) -> tuple[Stmt, ...]:
        """The heads of those tensors that `body` accesses."""
        accesses = [access for stmt in statements(body) for access in (stmt, *expressions(stmt))]
        named = {access.tensor for access in accesses if isinstance(access, Load | Store)}
        sizes = dict.fromkeys(size for tensor, size in owners.items() if tensor in named)
        return tuple(Let(self._name(size), Head(size, member)) for size in sizes)

    def _name(self, size: str) -> str:
        return f"head_{size[1:].lower()}{self.suffix}"


def ungrouped(program: Program) -> Program:
    """How a program is launched by calls in which all have as many heads; its body stays."""
    sizes = head_sizes(program.tensors)
    return replace(
        program,
        tensors=tuple(replace(tensor, heads=None) for tensor in program.tensors),
        sizes=tuple(size for size in program.sizes if size not in sizes),
        flags=tuple(flag for flag in program.flags if flag != GROUPED),
    )
