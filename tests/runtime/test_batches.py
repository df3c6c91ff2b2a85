"""Batch invariance: a sequence alone and in any batch has the same bits on Triton, where their plans agree.

A program of Triton's computes one sequence and head, and what it does follows from the plan of the call.  In
another process, as Triton is imported for its interpreter or not.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import based_ops
from based_ops.variant import Variant

from .conftest import every_kind
from .inputs import leaves, tensors_of


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the package triton is not installed")
def test_a_sequence_has_the_same_bits_in_any_batch() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.runtime.test_batches", *every_kind()],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert run.stdout.split() == every_kind(), run.stderr


def passes(layer: Variant, inputs: tuple[Any, ...]) -> dict[str, list[Tensor]]:
    """What has a batch of the results of a sequence, its gradients, and a step behind it."""
    arguments = layer.signature.inputs
    given = [x if x is None else x.clone().requires_grad_() for x in inputs]
    o, final = layer._call(tuple(given), None, None, True, "triton")
    of_batch = [
        x for x, argument in zip(given, arguments, strict=True) if argument.dims[0] == "B" and x is not None
    ]
    gradients = torch.autograd.grad(o.float().square().sum(), of_batch)
    token = [
        x[:, -1:].detach() if x is not None and argument.dims[0] == "B" else x
        for x, argument in zip(inputs, arguments, strict=True)
    ]
    state = final.detach().clone()
    y = layer._step(tuple(token), None, state, "triton")
    return {
        "forward": [o.detach(), *leaves(final.detach())],
        "backward": [*gradients],
        "step": [y, *leaves(state)],
    }


def main(layer: Variant) -> None:
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        inputs = tensors_of(layer, 3, 19, dtype, units=1)
        together = passes(layer, inputs)
        alone = [
            x[1:2] if x is not None and argument.dims[0] == "B" else x
            for x, argument in zip(inputs, layer.signature.inputs, strict=True)
        ]
        for which, results in passes(layer, tuple(alone)).items():
            for x, y in zip(results, together[which], strict=True):
                assert torch.equal(x[0], y[1]), (layer.name, which, dtype)
    print(layer.name)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        main(based_ops.get(name))
