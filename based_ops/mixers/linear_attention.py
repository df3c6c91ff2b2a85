"""Linear attention: operators over the generated passes, and the public object."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import checks, dispatch
from ..admission import checked
from ..errors import StateError, fail
from ..ops import (
    Ops,
    accumulator,
    below_autograd,
    call,
    call_step,
    contiguous,
    dense,
    derive,
    derive_backward,
    derive_step,
    launch,
)
from ..replay import recordable
from ..state import LinearAttentionState, feature_count
from ..tracing import is_traced
from ..variant import Variant, constant, dtype_named

_FORWARD = (
    "(Tensor q, Tensor k, Tensor v, float scale, Tensor? initial_state, Tensor? initial_normalizer, "
    "bool output_final_state, str kernel) -> (Tensor, Tensor, Tensor, Tensor)"
)
_BACKWARD = (
    "(Tensor d_o, Tensor? d_final_state, Tensor? d_final_normalizer, Tensor q, Tensor k, Tensor v, Tensor o, "
    "Tensor n, float scale, Tensor? initial_state, Tensor? initial_normalizer, str kernel) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_STEP = (
    "(Tensor q, Tensor k, Tensor v, float scale, Tensor(a!) state, Tensor(b!)? normalizer, "
    "str kernel) -> Tensor"
)


def define(ops: Ops) -> None:
    """Defines the operators of one linear attention."""
    kernels = ops.kernels

    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        state: Tensor | None,
        normalizer: Tensor | None,
        output_final_state: bool,
        kernel: str,
    ) -> tuple[Tensor, ...]:
        if checked.tensor is q:
            checked.tensor = None
        else:
            kernel = ops.admission.kernel(
                "forward", q, k, v, scale, state, normalizer, output_final_state, kernel
            )
        return launch(
            kernels[kernel].forward,
            q,
            dense(q),
            dense(k),
            dense(v),
            scale,
            contiguous(state),
            contiguous(normalizer),
            output_final_state,
        )

    def forward_fake(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        state: Tensor | None,
        normalizer: Tensor | None,
        output_final_state: bool,
        kernel: str,
    ) -> tuple[Tensor, ...]:
        ops.admission.traced("forward", q, k, v, scale, state, normalizer, output_final_state, kernel)
        spec = ops.record.layer
        batch, length, heads, _ = q.shape
        sums = accumulator(q.dtype)
        o = v.new_empty(v.shape)
        n = q.new_empty((batch, heads, length) if spec.normalize else (0,), dtype=sums)
        kept = _state_dtype(spec, q.dtype)
        shape = (batch, heads, feature_count(spec), spec.head_dims.v)
        final = q.new_empty(shape if output_final_state else (0,), dtype=kept)
        final_n = q.new_empty(shape[:3] if output_final_state and spec.normalize else (0,), dtype=kept)
        return o, n, final, final_n

    def backward(
        d_o: Tensor,
        d_state: Tensor | None,
        d_normalizer: Tensor | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        o: Tensor,
        n: Tensor,
        scale: float,
        state: Tensor | None,
        normalizer: Tensor | None,
        kernel: str,
    ) -> tuple[Tensor, ...]:
        if checked.tensor is d_o:
            checked.tensor = None
        else:
            kernel = ops.admission.kernel(
                "backward", d_o, d_state, d_normalizer, q, k, v, o, n, scale, state, normalizer, kernel
            )
        return launch(
            kernels[kernel].backward,
            q,
            dense(d_o),
            contiguous(d_state),
            contiguous(d_normalizer),
            dense(q),
            dense(k),
            dense(v),
            dense(o),
            contiguous(n),
            scale,
            contiguous(state),
            contiguous(normalizer),
        )

    def backward_fake(
        d_o: Tensor,
        d_state: Tensor | None,
        d_normalizer: Tensor | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        o: Tensor,
        n: Tensor,
        scale: float,
        state: Tensor | None,
        normalizer: Tensor | None,
        kernel: str,
    ) -> tuple[Tensor, ...]:
        ops.admission.traced(
            "backward", d_o, d_state, d_normalizer, q, k, v, o, n, scale, state, normalizer, kernel
        )
        kept = _state_dtype(ops.record.layer, q.dtype)
        return (
            q.new_empty(q.shape),
            k.new_empty(k.shape),
            v.new_empty(v.shape),
            q.new_empty((0,) if state is None else state.shape, dtype=kept),
            q.new_empty((0,) if normalizer is None else normalizer.shape, dtype=kept),
        )

    def step(
        q: Tensor, k: Tensor, v: Tensor, scale: float, state: Tensor, normalizer: Tensor | None, kernel: str
    ) -> Tensor:
        if checked.tensor is q:
            checked.tensor = None
        else:
            kernel = ops.admission.kernel("step", q, k, v, scale, state, normalizer, kernel)
        return launch(kernels[kernel].step, q, dense(q), dense(k), dense(v), scale, state, normalizer)

    def step_fake(
        q: Tensor, k: Tensor, v: Tensor, scale: float, state: Tensor, normalizer: Tensor | None, kernel: str
    ) -> Tensor:
        ops.admission.traced("step", q, k, v, scale, state, normalizer, kernel)
        return v.new_empty(v.shape)

    ops.define("forward", _FORWARD, forward, forward_fake)
    ops.define("backward", _BACKWARD, backward, backward_fake)
    ops.define("step", _STEP, step, step_fake)
    derive(ops, "forward", _Forward)
    derive_backward(ops)
    derive_step(ops, mutated=(4, 5))


class _Forward(torch.autograd.Function):
    """The derivative of a forward operator: its backward operator."""

    @staticmethod
    def forward(
        ctx: Any,
        ops: Ops,
        keyset: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        state: Tensor | None,
        normalizer: Tensor | None,
        output_final_state: bool,
        kernel: str,
    ) -> tuple[Tensor, ...]:
        o, n, final, final_n = below_autograd(
            ops.forward, keyset, q, k, v, scale, state, normalizer, output_final_state, kernel
        )
        ctx.save_for_backward(q, k, v, o, n, state, normalizer)
        ctx.ops, ctx.scale, ctx.kernel = ops, scale, kernel
        ctx.final_shapes = (final.shape, final_n.shape) if output_final_state else None
        absent = () if output_final_state else (final, final_n)
        ctx.mark_non_differentiable(n, *absent)
        ctx.set_materialize_grads(False)
        return o, n, final, final_n

    @staticmethod
    def backward(
        ctx: Any, d_o: Tensor | None, _d_n: None, d_final: Tensor | None, d_final_n: Tensor | None
    ) -> tuple[Any, ...]:
        q, k, v, o, n, state, normalizer = ctx.saved_tensors
        if d_o is None:
            d_o = torch.zeros_like(o)
        if d_final is not None or d_final_n is not None:
            # Kernels take the gradients of the final state together or not at all.
            shape, shape_n = ctx.final_shapes
            kept = _state_dtype(ctx.ops.record.layer, q.dtype)
            d_final = q.new_zeros(shape, dtype=kept) if d_final is None else d_final
            if not ctx.ops.record.layer.normalize:
                d_final_n = None
            elif d_final_n is None:
                d_final_n = q.new_zeros(shape_n, dtype=kept)
        ready = ctx.kernel in ctx.ops.kernels and not is_traced()
        dq, dk, dv, d_state, d_normalizer = call(
            ctx.ops.backward,
            ready,
            d_o,
            d_final,
            d_final_n,
            q,
            k,
            v,
            o,
            n,
            ctx.scale,
            state,
            normalizer,
            ctx.kernel,
        )
        return (
            None,
            None,
            dq,
            dk,
            dv,
            None,
            None if state is None else d_state,
            None if normalizer is None else d_normalizer,
            None,
            None,
        )


def _state_dtype(spec: Any, inputs: torch.dtype) -> torch.dtype:
    return torch.float64 if inputs == torch.float64 else dtype_named(spec.state_dtype)


class LinearAttentionVariant(Variant):
    """o_i = Σ_{j≤i} A_ij v_j / (Σ_{j≤i} A_ij + eps), with A the kernel of the spec's feature map."""

    _state_type = LinearAttentionState
    features = constant("features", "Rows of the state.")

    def _sequence(
        self,
        facts: Any,
        key: tuple[Any, ...] | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float | None,
        initial_state: LinearAttentionState | None,
        output_final_state: bool,
        backend: str | None,
    ) -> tuple[Tensor, LinearAttentionState | None]:
        if torch._C._is_any_autocast_enabled():
            q, k, v = self._autocast(q, k, v)
        batch, length, heads = checks.qkv(facts, q, k, v)
        scale = checks.scale(facts, scale)
        if initial_state is not None:
            self._check_state(facts, "initial_state", initial_state, q)
        kernel = dispatch.kernel(self.name, backend, q.device, q.dtype, facts is self)
        if batch == 0 or length == 0 or heads == 0:
            return self._nothing(q, k, v, initial_state, output_final_state)
        if key is not None and recordable(kernel, q, k, v):
            return self._first(key, kernel, scale, q, k, v), None
        state, normalizer = (None, None) if initial_state is None else initial_state
        rest = scale, state, normalizer, output_final_state, kernel
        o, _, final, final_n = call(self._ops.forward, facts is not self, q, k, v, *rest)
        if not output_final_state:
            return o, None
        return o, LinearAttentionState(final, final_n if self.normalize else None)

    def _token(
        self,
        facts: Any,
        key: tuple[Any, ...] | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        state: LinearAttentionState,
        scale: float | None,
        backend: str | None,
    ) -> Tensor:
        if torch._C._is_any_autocast_enabled():
            q, k, v = self._autocast(q, k, v)
        batch, _, heads = checks.qkv(facts, q, k, v, tokens=1)
        scale = checks.scale(facts, scale)
        self._check_state(facts, "state", state, q, True)
        self._check_overlap(facts, state, q, k, v)
        if torch.is_grad_enabled():
            checks.no_gradient(q=q, k=k, v=v, state=state.state, normalizer=state.normalizer)
        kernel = dispatch.kernel(self.name, backend, q.device, q.dtype, facts is self)
        if batch == 0 or heads == 0:
            return v.clone()
        if key is not None and recordable(kernel, q, k, v):
            return self._first_step(key, kernel, scale, state, q, k, v)
        return call_step(self._ops.step, facts is not self, state, q, k, v, scale, *state, kernel)

    @staticmethod
    def _forward_arguments(scale: float, q: Tensor, k: Tensor, v: Tensor) -> tuple[Any, ...]:
        return q, k, v, scale, None, None, False

    @staticmethod
    def _backward_arguments(
        scale: float, d_o: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, kept: Tensor
    ) -> tuple[Any, ...]:
        return d_o, None, None, q, k, v, o, kept, scale, None, None

    def init_state(
        self,
        batch: int,
        heads: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> LinearAttentionState:
        """The state before the first token.  `dtype` is that of the inputs; it matters for float64 only."""
        kept = torch.float64 if dtype == torch.float64 else self.state_dtype
        state = torch.zeros(batch, heads, self.features, self.v, device=device, dtype=kept)
        if not self.normalize:
            return LinearAttentionState(state, None)
        return LinearAttentionState(
            state, torch.zeros(batch, heads, self.features, device=device, dtype=kept)
        )

    def state_bytes(self, batch: int, heads: int, dtype: torch.dtype | None = None) -> int:
        """Bytes of `init_state(batch, heads, dtype=dtype)`, whatever the length of the sequence."""
        kept = torch.float64 if dtype == torch.float64 else self.state_dtype
        return batch * heads * self.features * (self.v + (1 if self.normalize else 0)) * kept.itemsize

    def _setup(self) -> None:
        self._know(features=feature_count(self.spec))
        self.normalize: bool = self.spec.normalize
        self.state_dtype = dtype_named(self.spec.state_dtype)

    def _reference(self, q: Tensor, k: Tensor, v: Tensor, scale: float, initial_state: Any) -> Any:
        from ..reference import linear_attention

        return linear_attention(self.spec, q, k, v, scale, initial_state)

    def _check_state(
        self, facts: Any, argument: str, state: LinearAttentionState, q: Tensor, in_place: bool = False
    ) -> None:
        if not isinstance(state, LinearAttentionState):
            fail(
                StateError,
                argument,
                type(state).__name__,
                f"a LinearAttentionState, as {self.name} returns it",
            )
        batch, _, heads, _ = q.shape
        shape = (batch, heads, facts.features, facts.v)
        kept = torch.float64 if q.dtype == torch.float64 else self.state_dtype
        checks.state_part(argument, "state", state.state, shape, kept, q, in_place)
        if self.normalize:
            if state.normalizer is None:
                fail(StateError, f"{argument}.normalizer", None, f"a tensor, since {self.name} normalises")
            checks.state_part(argument, "normalizer", state.normalizer, shape[:3], kept, q, in_place)
        elif state.normalizer is not None:
            fail(
                StateError,
                f"{argument}.normalizer",
                "a tensor",
                f"None, since {self.name} does not normalise",
            )
