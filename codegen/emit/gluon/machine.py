"""What products are on one kind of GPU: how one begins, where its result lies, and how it is waited for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from ...ir.kernels import ForeignKernel
from ...ir.nodes import Add, Let, Stmt
from ...schedule.places import Plan
from ..writer import Writer
from .flight import Issued, Touched, waits

if TYPE_CHECKING:
    from .steps import Steps


class Machine(ABC):
    """The products of one kernel's rounds, whose steps are called by their places."""

    module: ClassVar[str]
    """Where Gluon has what is this machine's own."""
    calls: ClassVar[tuple[str, ...]]
    """What kernels need of it."""

    def __init__(self, steps: Steps, body: Sequence[Stmt]) -> None:
        self.steps, self.body = steps, body
        self.waits = waits([self._issued(stmt) for stmt in body])

    @staticmethod
    @abstractmethod
    def suits(plan: Plan) -> bool:
        """Whether kernels of a plan can be printed for it."""

    @staticmethod
    @abstractmethod
    def summary(kernel: ForeignKernel) -> str:
        """What a kernel says of itself."""

    @abstractmethod
    def touched(self, place: int) -> Touched:
        """What a step stores that its products shall see, and what its own product reads of that."""

    @abstractmethod
    def memory(self) -> list[str]:
        """What products need before the state is there."""

    @abstractmethod
    def enter(self) -> list[str]:
        """What they need of the state, before the first round."""

    @abstractmethod
    def before(self, w: Writer, place: int) -> None:
        """Let all be there that a step reads; the one past the last is the end of a round."""

    @abstractmethod
    def product(self, stmt: Let | Add, left: str, right: str) -> str:
        """The line that begins a product: a new one, or one that is added."""

    @abstractmethod
    def left(self, name: str, text: str) -> list[str]:
        """The lines that put what a product reads on its left where it does."""

    @abstractmethod
    def after(self, w: Writer, place: int) -> None:
        """What has to follow a step."""

    @abstractmethod
    def leave(self) -> list[str]:
        """Have the state in registers after the last round."""

    def _issued(self, stmt: Stmt) -> Issued:
        product = stmt.name if self.steps.issues(stmt) and isinstance(stmt, Let | Add) else None
        return self.steps.read_by(stmt), product
