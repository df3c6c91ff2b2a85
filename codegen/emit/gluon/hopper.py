"""Products of Hopper's warpgroups: their results, and what they read on the left, lie in registers."""

from __future__ import annotations

from collections.abc import Sequence

from ...ir.kernels import ForeignKernel
from ...ir.nodes import Add, Let, Stmt
from ...schedule.places import Plan
from ..writer import Writer
from .flight import Touched
from .machine import Machine
from .steps import Steps


class Hopper(Machine):
    """Those of one kernel."""

    module = "hopper"
    calls = ("async_copy", "fence_async_shared", "warpgroup_mma", "warpgroup_mma_wait")

    def __init__(self, steps: Steps, body: Sequence[Stmt]) -> None:
        super().__init__(steps, body)
        self._zeros: dict[str, str] = {}

    @staticmethod
    def suits(plan: Plan) -> bool:
        """It is what plans are made for."""
        return True

    @staticmethod
    def summary(kernel: ForeignKernel) -> str:
        """What it is launched for."""
        return kernel.summary

    def touched(self, place: int) -> Touched:
        """Shared tiles."""
        stmt = self.body[place]
        return self.steps.shared_by(stmt), self.steps.multiplied_by(stmt)

    def memory(self) -> list[str]:
        """Tiles of nothing, which products begin with."""
        return [f"{name} = {tile}" for name, tile in self._zeros.items()]

    def enter(self) -> list[str]:
        """Nothing: the state is where they need it."""
        return []

    def before(self, w: Writer, place: int) -> None:
        """A wait, with which results are there."""
        if wait := self.waits.get(place):
            names = ", ".join(wait.tiles)
            w.line(f"{names} = warpgroup_mma_wait({wait.younger}, [{names}])")

    def product(self, stmt: Let | Add, left: str, right: str) -> str:
        """A result that is there after a wait."""
        onto = stmt.name if isinstance(stmt, Add) else f"{self._zero(stmt.name)}, use_acc=False"
        return f"{stmt.name} = warpgroup_mma({left}, {right}, {onto}, is_async=True)"

    def left(self, name: str, text: str) -> list[str]:
        """Registers, in pairs; what lies in shared memory too is stored from there."""
        layout = self.steps.layouts.left(self.steps.columns(name))
        pairs = f"gl.convert_layout({text}, {layout}, assert_trivial=True)"
        if name not in self.steps.plan.shared:
            return [f"{name} = {pairs}"]
        held = f"{name}_held"
        self.steps.spelling.operands[name] = held, (layout,)
        return [f"{held} = {pairs}", f"{name}.store({held})"]

    def after(self, w: Writer, place: int) -> None:
        """Nothing: products are counted."""

    def leave(self) -> list[str]:
        """Nothing: the state is there."""
        return []

    def _zero(self, name: str) -> str:
        rows, columns = map(self.steps.size, self.steps.types[name].shape)
        variable = f"nothing_{rows}_{columns}"
        self._zeros[variable] = self.steps.nothing(name)
        return variable
