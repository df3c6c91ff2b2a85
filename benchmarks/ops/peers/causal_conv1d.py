"""causal_conv1d, the convolution of Mamba."""

from __future__ import annotations

import importlib.util

from torch import Tensor

from ..contender import Call, Contender
from ..inputs import Inputs
from ..works import Entry, Work
from .common import is_plain_convolution, sequence_call


class CausalConv1d(Contender):
    """Its kernel for channels that lie side by side."""

    by = "causal_conv1d"
    compiles = False

    def takes(self, work: Work) -> bool:
        return is_plain_convolution(work)

    def why_not(self, entry: Entry, device: str) -> str | None:
        return None if importlib.util.find_spec("causal_conv1d") else "causal_conv1d is not installed"

    def prepare(self, work: Work, inputs: Inputs) -> Call:
        from causal_conv1d import causal_conv1d_fn

        def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            y: Tensor = causal_conv1d_fn(x.transpose(1, 2), weight, bias, activation="silu")
            return y.transpose(1, 2)

        return sequence_call(work, inputs, inputs.leaves, convolve)
