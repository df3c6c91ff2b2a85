"""Steps of a generated module of any mixer: inputs and states as the layer's signature describes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from based_ops import slots
from based_ops.codegen.spec.model import LayerSpec
from based_ops.codegen.spec.signature import Argument
from based_ops.operands import dtype_of

Tensors = list[Tensor | None]


@dataclass(frozen=True)
class Steps:
    """One layer's module with the tokens of a batch; `units` are heads or channels."""

    spec: LayerSpec
    module: ModuleType
    batch: int
    length: int
    units: int
    dtype: torch.dtype
    device: str
    seed: int

    def drawn(self, argument: Argument, batch: int, salt: int) -> Tensor | None:
        """Numbers for one argument, positive for sums of weights, or None where the layer has none."""
        if not argument.present:
            return None
        sizes = {"B": batch, "T": self.length, **self.spec.signature().alike(self.units)}
        shape = [sizes[dim] if isinstance(dim, str) else dim for dim in argument.dims]
        generator = torch.Generator().manual_seed(100 * self.seed + salt)
        if argument.dtype == "int32":
            return torch.randint(0, 30, shape, generator=generator, dtype=torch.int32).to(self.device)
        numbers = torch.randn(shape, generator=generator, dtype=torch.float64) * 0.5
        if argument.name == "normalizer":
            numbers = numbers.abs() + 4.0
        if argument.multiplies:
            numbers = numbers.abs() + 0.5
        if argument.fades:
            numbers = -numbers.abs()
        if argument.corrects:
            numbers = numbers.sigmoid()
        return numbers.to(self.device, dtype_of(self.spec, argument.dtype, self.dtype))

    def inputs(self) -> Tensors:
        return [self.drawn(x, self.batch, i) for i, x in enumerate(self.spec.signature().stepped)]

    def state(self, batch: int | None = None) -> Tensors:
        """A state as after some tokens, of `batch` sequences or of all."""
        batch = self.batch if batch is None else batch
        parts = self.spec.signature().state
        made = {x.name: self.drawn(x, batch, 50 + i) for i, x in enumerate(parts)}
        ring, position, entered = (made.get(name) for name in ("ring_k", "position", "entered"))
        if ring is not None and position is not None and entered is not None:
            made["entered"] = (position - entered % ring.shape[2]).clamp(min=0)  # as many as the ring has
        return list(made.values())

    def tokens(self, inputs: Tensors, start: int, stop: int) -> Tensors:
        """The inputs of some of the tokens."""
        pairs = zip(self.spec.signature().stepped, inputs, strict=True)
        some = [(x, t if t is None or "T" not in x.dims else t[:, start:stop]) for x, t in pairs]
        # Kernels take decays and rates side by side.
        return [t.contiguous() if t is not None and (x.fades or x.corrects) else t for x, t in some]

    def step(self, inputs: Tensors, state: Tensors, indices: Tensor | None = None) -> Tensor:
        """A step with factors of a half, which keep sums of weights of few tokens away from zero."""
        numbers = [0.5] * len(self.spec.signature().numbers)
        before = len(inputs) + len(numbers)
        where = slice(before, before + len(state))
        return slots.step(self.module.step, where, *inputs, *numbers, *state, indices)

    def one_by_one(self, inputs: Tensors, state: Tensors) -> Tensor:
        """The output of single steps."""
        parts = [self.step(self.tokens(inputs, t, t + 1), state) for t in range(self.length)]
        return torch.cat(parts, 1)


def there(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    return [x for x in tensors if x is not None]


def copied(tensors: Tensors) -> Tensors:
    return [None if x is None else x.clone() for x in tensors]
