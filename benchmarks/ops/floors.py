"""The least that a piece of work costs, whatever the kernel: bytes moved and arithmetic done.

Every input is read once and every output written once; nothing that can be computed again is stored.  So a
backward pass reads the inputs and the gradient of the output, and writes those of the inputs; the output and
the row sums are not counted.  Arithmetic is that of products, a multiplication and an addition each two, as
`Variant.products` says:

- Linear attention, per token and head with F features and values of width V: an update of the state and a
  product with it, 2·2·F·V; or, for a short sequence, a product with each earlier token, 2·(D + V) each.  Its
  backward is 2.5 times as much: gradients of the features of q and of k and of v, and both states again.
- A window of W: 2·(D + V) for each pair of tokens that see each other, its backward 2.5 times as much.
- Heads that share keys and values share a state: of the products with one, half are updates.
- A step reads and writes a linear attention's state; it reads a window's and writes one token of it.  Of a
  state space it reads and writes the state, and reads poles and residues once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from based_ops.codegen.spec.signature import Argument
from based_ops.inputs import taken
from based_ops.operands import dtype_of

from .works import Work


@dataclass(frozen=True)
class Floor:
    """Bytes and floating-point operations."""

    bytes: int
    flops: int

    def limit_ms(self, copy_gb_s: float, matmul_tflop_s: float) -> float:
        """The shortest time on a device of this copy bandwidth and rate of products."""
        return 1000 * max(self.bytes / (copy_gb_s * 1e9), self.flops / (matmul_tflop_s * 1e12))


def floor(work: Work) -> Floor:
    """The floor of one call."""
    return _step(work) if work.task == "step" else _sequence(work)


def _sequence(work: Work) -> Floor:
    op = work.op
    inputs = sum(_bytes(work, x) for x in taken(op))
    output = _bytes(work, op.signature.output)
    count = inputs + output
    flops = work.rows * op.products(work.length)
    if work.form == "featured":
        flops += work.rows * op.feature_products(work.length)
    if work.kv_heads and work.spec.mixer == "linear_attention":
        flops *= (1 + work.kv_heads / work.heads) / 2
    if work.task == "training":
        count += inputs + output + inputs
        flops += op.backward_products * flops
    states = 2 * _state_bytes(work) if work.state else 0
    return Floor(count + states, round(flops))


def _bytes(work: Work, argument: Argument) -> int:
    size = dtype_of(work.spec, argument.dtype, work.torch_dtype).itemsize
    return math.prod(work.shape(argument)) * size


def _step(work: Work) -> Floor:
    op, size = work.op, work.torch_dtype.itemsize
    flops = round(work.rows * op.products(1, begun=True, final=True))
    if work.spec.mixer == "state_space":
        outside = sum(_bytes(work, x) for x in (*taken(op), op.signature.output))
        return Floor(2 * _state_bytes(work) + outside, flops)
    token = work.rows * (op.qk + op.v) * size
    outside = work.rows * (2 * op.qk + 2 * op.v) * size
    if work.spec.mixer == "sliding_window":
        return Floor(_state_bytes(work) + token + outside, flops)
    return Floor(2 * _state_bytes(work) + outside, flops)


def _state_bytes(work: Work) -> int:
    return work.op.state_bytes(work.batch, work.heads, dtype=work.torch_dtype)
