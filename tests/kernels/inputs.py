"""Random calls of a layer: shapes, dtypes, strides and values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from based_ops.codegen.spec.model import LayerSpec
from tests.kernels.runners import Runner

LAYOUTS = ("dense", "heads_first", "sliced", "middle", "expanded")


@dataclass(frozen=True)
class Call:
    """The shape of a call and what its values are made from."""

    batch: int
    heads: int
    length: int
    dtype: torch.dtype
    device: str
    layout: str
    seed: int
    scale: float

    def generator(self, salt: int = 0) -> torch.Generator:
        return torch.Generator().manual_seed(1000 * self.seed + salt)

    def values(self, *shape: int, salt: int) -> Tensor:
        """Random dense values in float64 on the CPU, rounded to the call's dtype."""
        drawn = torch.randn(*shape, generator=self.generator(salt), dtype=torch.float64) * 0.5
        return drawn.to(self.dtype)

    def tensor(self, width: int, salt: int, length: int | None = None) -> Tensor:
        """[B, T, H, width] in the call's layout; what surrounds it in memory is NaN."""
        length = self.length if length is None else length
        values = self.values(self.batch, length, self.heads, width, salt=salt)
        return laid_out(values.to(self.device), self.layout)


def laid_out(values: Tensor, layout: str) -> Tensor:
    """The same values with other strides."""
    b, t, h, d = values.shape
    match layout:
        case "heads_first":  # what a [B, H, T, D] model passes transposed
            return values.transpose(1, 2).contiguous().transpose(1, 2)
        case "sliced":  # some of the heads and columns of a wider projection, at an odd address
            room = values.new_full((b, t, h + 1, d + 3), float("nan"))
            room[:, :, 1:, 1 : d + 1] = values
            return room[:, :, 1:, 1 : d + 1]
        case "middle":  # some of the tokens
            room = values.new_full((b, t + 5, h, d), float("nan"))
            room[:, 3 : t + 3] = values
            return room[:, 3 : t + 3]
        case "expanded":  # one sequence for the whole batch
            return values[:1].expand(b, t, h, d)
        case _:
            return values


@st.composite
def calls(draw: st.DrawFn, runner: Runner, spec: LayerSpec, dtype: torch.dtype, most: int = 5000) -> Call:
    """A call of `spec`; its scale keeps q·k small, as training does."""
    factor = draw(st.sampled_from((1.0, 0.37)))
    scaled = spec.mixer == "sliding_window" or spec.feature_map.kind != "elementwise"
    return Call(
        batch=draw(st.integers(1, 2 if runner.interpreted else 3)),
        heads=draw(st.integers(1, 2 if runner.interpreted else 3)),
        length=draw(runner.lengths(most)),
        dtype=dtype,
        device=runner.device,
        layout=draw(st.sampled_from(LAYOUTS)),
        seed=draw(st.integers(0, 1000)),
        scale=factor / spec.head_dims.qk**0.5 if scaled else factor,
    )


def copies(*tensors: Tensor) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]
