"""Products of Blackwell: their results, and what they read on the left, lie in tensor memory.

A sum that rounds add to stays in tensor memory through the whole loop.  Where a step reads one as a value it
is loaded into registers, in which it lies as on Hopper, and where a step changes that value it is stored back
for the products to come.  A product is *committed* to a barrier in shared memory, which all threads wait for.
Each wait of a round has a barrier of its own, which so has one phase a round.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...ir.kernels import ForeignKernel
from ...ir.nodes import Add, Let, Set, Stmt
from ...schedule.places import Plan
from ..writer import Writer
from .flight import Touched
from .machine import Machine
from .steps import Steps

DONE = "done"
"""The barriers that say which products are done, one for each wait of a round."""


class Blackwell(Machine):
    """Those of one kernel."""

    module = "blackwell"
    calls = (
        "TensorMemoryLayout",
        "allocate_tensor_memory",
        "async_copy",
        "fence_async_shared",
        "mbarrier",
        "tcgen05_commit",
        "tcgen05_mma",
    )

    def __init__(self, steps: Steps, body: Sequence[Stmt]) -> None:
        super().__init__(steps, body)
        products = [stmt for stmt in body if isinstance(stmt, Let | Add) and steps.issues(stmt)]
        self._sums = tuple(dict.fromkeys(stmt.name for stmt in products))
        begun = {stmt.name for stmt in body if isinstance(stmt, Let)}
        self._carried = tuple(name for name in self._sums if name not in begun)
        self._left = tuple(
            stmt.name for stmt in body if isinstance(stmt, Let) and stmt.name in steps.plan.left
        )
        self._loads = self._loaded()
        self._stores = [self._stored(place) for place in range(len(body))]
        self._commits = {wait.last: number for number, wait in enumerate(self.waits.values())}

    @staticmethod
    def suits(plan: Plan) -> bool:
        """Whether all products are whole warpgroups', and tensor memory has room for their sums.

        Those of a window's gradients, which keep keys and carry what these get, are nine.
        """
        return not plan.alone and not (plan.kept and plan.through)

    @staticmethod
    def summary(kernel: ForeignKernel) -> str:
        """What it would be launched for."""
        return f"What `{kernel.instead_of}` computes, on Blackwell, with the state in tensor memory."

    def touched(self, place: int) -> Touched:
        """Shared tiles; left ones; and sums that were loaded or stored, so that no product overtakes that."""
        stmt = self.body[place]
        stored = {*self.steps.shared_by(stmt), *self._loads[place], *self._stores[place]}
        read = self.steps.multiplied_by(stmt)
        if isinstance(stmt, Let | Add):
            stored |= {stmt.name} & {*self._left}
            if self.steps.issues(stmt):
                read |= {stmt.name} | (self.steps.read_by(stmt) & {*self._left})
        return stored, read

    def memory(self) -> list[str]:
        """The sums, what products read on their left, and barriers that say when products are done."""
        count = len(self.waits)
        return [
            *(f"{name}_sums = {self._allocate('gl.float32', name)}" for name in self._sums),
            *(f"{name} = {self._allocate(self.steps.kernel.operands, name)}" for name in self._left),
            f"{DONE} = gl.allocate_shared_memory(gl.int64, [{count}, 1], mbarrier.MBarrierLayout())",
            f"for i in gl.static_range({count}):",
            f"    mbarrier.init({DONE}.index(i), count=1)",
        ]

    def enter(self) -> list[str]:
        """The state to tensor memory."""
        return [*(f"{name}_sums.store({name})" for name in self._carried), "phase = 0"]

    def before(self, w: Writer, place: int) -> None:
        """A wait, and loads into registers of what a step reads."""
        if wait := self.waits.get(place):
            w.line(f"mbarrier.wait({DONE}.index({self._commits[wait.last]}), phase)")
        if place == len(self.body):
            w.line("phase = phase ^ 1")
            return
        for name in self._loads[place]:
            w.line(self._load(name))

    def product(self, stmt: Let | Add, left: str, right: str) -> str:
        """One whose result is in tensor memory after a wait."""
        return f"tcgen05_mma({left}, {right}, {stmt.name}_sums, use_acc={isinstance(stmt, Add)})"

    def left(self, name: str, text: str) -> list[str]:
        """Tensor memory."""
        return [f"{name}.store({text})"]

    def after(self, w: Writer, place: int) -> None:
        """A changed sum goes back, and the last product of a wait says when all until then are done."""
        for name in self._stores[place]:
            w.line(f"{name}_sums.store({name})")
        if place in self._commits:
            w.line(f"tcgen05_commit({DONE}.index({self._commits[place]}))")

    def leave(self) -> list[str]:
        """Loads of what the rounds have carried."""
        return [
            f"for i in gl.static_range({len(self.waits)}):",
            f"    mbarrier.invalidate({DONE}.index(i))",
            *map(self._load, self._carried),
        ]

    def _allocate(self, dtype: str, name: str) -> str:
        shape = self.steps.shape(name)
        layout = self.steps.layouts.tensor_memory(*map(self.steps.size, shape))
        return f"allocate_tensor_memory({dtype}, [{', '.join(map(str, shape))}], {layout})"

    def _load(self, name: str) -> str:
        return f"{name} = {name}_sums.load({self.steps.home(name)})"

    def _loaded(self) -> list[list[str]]:
        """The sums that each step is the first to read since products were added."""
        found: list[list[str]] = []
        held: set[str] = set()
        for stmt in self.body:
            read = self.steps.read_by(stmt)
            found.append([name for name in self._sums if name in read and name not in held])
            held |= {*found[-1]}
            if isinstance(stmt, Let | Set | Add):
                (held.discard if self.steps.issues(stmt) else held.add)(stmt.name)
        return found

    def _stored(self, place: int) -> list[str]:
        """The sum that a step begins or changes in registers, if products are added to it afterwards."""
        stmt = self.body[place]
        if not isinstance(stmt, Let | Set | Add) or stmt.name not in self._sums or self.steps.issues(stmt):
            return []
        later = [*self.body[place:], *self.body[:place]]
        product = next(s for s in later if self.steps.issues(s) and getattr(s, "name", "") == stmt.name)
        return [stmt.name] if isinstance(product, Add) else []
