"""A notebook in which a lowering writes its statements in order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .blocks import Unequal
from .flags import Only
from .nodes import Add, Blocks, Comment, Expr, For, Let, Operand, Set, Stmt, Store, Var, When, wrap


class Builder:
    """Collects statements; loops and switches are ``with`` blocks."""

    def __init__(self) -> None:
        self._blocks: list[list[Stmt]] = [[]]

    @property
    def body(self) -> tuple[Stmt, ...]:
        return tuple(self._blocks[0])

    def let(self, name: str, value: Operand) -> Var:
        self._blocks[-1].append(Let(name, wrap(value)))
        return Var(name)

    def before(self, name: str, value: Operand) -> Var:
        """`let` in front of the loops that are open."""
        self._blocks[0].append(Let(name, wrap(value)))
        return Var(name)

    def set(self, target: Var, value: Operand) -> None:
        self._blocks[-1].append(Set(target.name, wrap(value)))

    def add(self, target: Var, value: Expr) -> None:
        self._blocks[-1].append(Add(target.name, value))

    def store(self, tensor: str, index: tuple[Expr, ...], value: Expr) -> None:
        self._blocks[-1].append(Store(tensor, index, value))

    def only(self, flag: str, condition: Expr) -> None:
        self._blocks[-1].append(Only(flag, condition))

    def comment(self, text: str) -> None:
        self._blocks[-1].append(Comment(text))

    @contextmanager
    def loop(
        self,
        var: str,
        start: Operand,
        stop: Operand,
        step: Operand = 1,
        ahead: bool = False,
        several: str | None = None,
        backwards: bool = False,
    ) -> Iterator[Var]:
        self._blocks.append([])
        yield Var(var)
        body = tuple(self._blocks.pop())
        bounds = (wrap(start), wrap(stop), wrap(step))
        self._blocks[-1].append(For(var, *bounds, body, ahead, several, backwards))

    @contextmanager
    def blocks(
        self, var: str, extent: int, step: str, tiles: tuple[str, ...], sizes: tuple[int, ...] = ()
    ) -> Iterator[Var]:
        self._blocks.append([])
        yield Var(var)
        body = tuple(self._blocks.pop())
        equal = Blocks(var, extent, step, body, tiles)
        self._blocks[-1].append(Unequal(**vars(equal), sizes=sizes) if sizes else equal)

    @contextmanager
    def when(self, condition: Operand, each: bool = False) -> Iterator[None]:
        """Statements under a condition.

        `each`: every block finds it by itself, from what it has loaded, and where it does not hold the
        statements change nothing, by selects of their own.  So a backend that computes many blocks as one
        does them always, and others pass them by.
        """
        self._blocks.append([])
        yield
        body = tuple(self._blocks.pop())
        self._blocks[-1].append(When(wrap(condition), body, each))
