"""What linear attention and sliding windows share: calls with queries, keys and values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor

from . import checks, packed, temperature
from .arguments import refuse
from .dispatch import Backend
from .errors import ArgumentTypeError, ArgumentValueError, fail
from .heads import multiple, repeated
from .tracing import constant, is_traced
from .variant import StateT, Tensors, Variant


class AttentionVariant(Variant[StateT]):
    """A compiled layer spec.

    Tensors are [B, T, H, D] (B batch, T tokens, H heads; q and k of width `qk`, v of width `v`), share B, T,
    dtype and device, and may have any strides; one whose last dimension is not dense is copied.  B, T and H
    may be 0.

    Each of q, k and v may have fewer heads, any divisor of the largest number H.  One of theirs then serves
    several of the output's H in a row, as after `repeat_interleave(_, dim=2)`, and is not copied.  A state
    has as many as k or v, whichever has more (the least common multiple of both): grouped queries share
    theirs, and grouped values, as in Mamba-2, have one each.  Decays have the heads of the state.
    """

    qk: int = constant("qk", "Width of a query and of a key.")
    v: int = constant("v", "Width of a value.")
    default_scale: float = constant("default_scale", "The scale of a call that gives none.")

    def _setup(self) -> None:
        spec: Any = self.spec
        fading = (x.dims for x in self.signature.inputs if x.fades)
        self._decay_dims: tuple[int | str, ...] = next(fading, ())
        self._corrects = any(x.corrects for x in self.signature.inputs)
        self._takes_more = bool(self._decay_dims) or self._corrects
        self._know(qk=spec.head_dims.qk, v=spec.head_dims.v, default_scale=float(spec.default_scale()))

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor | None = None,
        scale: float | Tensor | None = None,
        initial_state: StateT | None = None,
        output_final_state: bool = False,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
        state_indices: Tensor | None = None,
        parameters: Mapping[str, Tensor] | None = None,
        backend: Backend | None = None,
        batch_invariant: bool = False,
        *,
        beta: Tensor | None = None,
        **foreign: NoReturn,
    ) -> tuple[Tensor, StateT | None]:
        """Causal attention over a sequence: `(o, final_state)`, with o [B,T,H,v] contiguous and of v's dtype.

        `cu_seqlens`, int32 or int64 [N+1] on the device, packs N sequences of any lengths, 0 too, into a
        batch of 1: sequence n has the tokens from cu_seqlens[n] up to cu_seqlens[n+1].  There are N initial
        and final states then.  Outputs and gradients of tokens that no sequence has are 0.

        `attention_mask`, bool or 0 and 1, [B,T] on the device, says which tokens are no padding: all behind
        each other, with padding before or behind them.  What padding holds reaches nothing, and its outputs
        and gradients are 0.  (Zeros in k are no padding: a zero key weighs φ(q)·φ(0).)

        On a CPU, offsets that begin elsewhere than at 0, decrease or end past T, and masks with holes, are an
        `ArgumentValueError`.  Elsewhere nobody waits for them: offsets count as those of 0 to T that are
        nearest, a sequence that ends before it begins has no tokens, and a hole counts as tokens.

        `g` is what a layer with `decay` takes, and no other: logarithms of what is left of the state, at most
        0, in float32 (others are cast to it), [H] or [B,T,H] as the spec says, with the heads of the state.
        One above 0 is an error on a CPU, and not looked for elsewhere.

        `beta` is what a layer with `update: delta` takes, and no other: [B,T,H], in float32 (others are cast
        to it), with the heads of the state, how much each token takes back of the error of what the state
        answers to its key: 0 leaves the state as it is, 1 makes it answer v, and up to 2 it overshoots.  One
        outside of 0 to 2 is an error on a CPU, and not looked for elsewhere.

        `scale` is a Python float that replaces the spec's, or a tensor [H] with a gradient, a number for each
        head of q.  A tensor is multiplied onto q, in q's dtype.  A layer that divides by sums of an
        elementwise map takes none (`ArgumentValueError`), since its scale is in these too.

        `initial_state` is what an earlier call returned for the tokens before these; `final_state` is None
        unless `output_final_state`.  Gradients flow to q, k, v, g, the initial state, and from the final
        state, once.  Under autocast, inputs are cast to its dtype, or to float32 if the spec lacks that.
        Raises the errors of `based_ops.errors` before any kernel runs.

        With `state_indices`, int32 [B] on the device, `initial_state` is a pool of states: sequence b starts
        from slot `state_indices[b]`, and with `output_final_state` its final state goes there, in place; the
        pool is returned.  -1 names no slot: nothing changes, and the output is 0.  See `step`.  There are no
        gradients then (`GradientError`).

        With `batch_invariant` a sequence has the same bits, gradients too, alone and in any batch, packed,
        padded or neither; docs/tools.md says what that costs.

        Args:
            q: [B,T,H,qk]; the last dimension dense, as of all inputs.
            k: [B,T,H,qk], of q's dtype.
            v: [B,T,H,v], of q's dtype.  Each may have fewer heads, any divisor of the largest number.
            g: Logarithms of decays, [H] or [B,T,H].
            scale: A factor on q·k in place of the spec's.
            initial_state: That after the tokens before these.
            output_final_state: Whether the state after the last token is returned.
            backend: `triton`, `tilelang` or `torch`; None for the default.
            cu_seqlens: [N+1], where packed sequences begin and end, in tokens.
            attention_mask: [B,T], which tokens there are.
            state_indices: [B], slots of a pool of states.
            parameters: Those of the spec's parts, by name.
            batch_invariant: Whether a sequence has the same bits in any batch.
            beta: Rates of a delta rule, [B,T,H].

        Raises:
            ShapeError: an input has another shape.
            DtypeError: inputs have different dtypes, or one that the spec does not list.
            DeviceError: inputs lie on different devices.
            StateError: the state is of another layer, batch, dtype or device.
            ArgumentTypeError: an input is no tensor, or one that this layer does not take.
            ArgumentValueError: offsets, masks, indices, decays, rates or scale have no such values.
            BackendUnavailable: the backend that was asked for, or the default, cannot serve here.
            GradientError: a gradient would go through a pool.

        Examples:
            >>> import based_ops, torch
            >>> op = based_ops.get("pos_elu_qk64_v64")
            >>> q, k, v = (torch.randn(2, 30, 4, 64, requires_grad=True) for _ in range(3))
            >>> o, final = op(q, k, v, output_final_state=True)
            >>> o.sum().backward()
            >>> final.state.shape  # [B, H, features, v]
            torch.Size([2, 4, 64, 64])
        """
        if foreign:
            refuse(AttentionVariant.__call__, tuple(foreign))
        if parameters:
            self._has_no(parameters)
        if isinstance(scale, Tensor):
            options: dict[str, Any] = {
                "initial_state": initial_state,
                "output_final_state": output_final_state,
            }
            options |= {"cu_seqlens": cu_seqlens, "attention_mask": attention_mask}
            options |= {"state_indices": state_indices, "backend": backend}
            options |= {"batch_invariant": batch_invariant, "beta": beta}
            return temperature.call(self, partial(self, k=k, v=v, g=g, **options), q, scale)
        plain = g is None and beta is None and not self._takes_more
        tensors = (q, k, v) if plain else self._inputs(q, k, v, g, beta)
        given = (tensors, scale, initial_state, output_final_state, backend, state_indices)
        return self._call(*given, cu_seqlens, attention_mask, batch_invariant)

    def step(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        state: StateT,
        g: Tensor | None = None,
        scale: float | Tensor | None = None,
        backend: Backend | None = None,
        state_indices: Tensor | None = None,
        parameters: Mapping[str, Tensor] | None = None,
        *,
        beta: Tensor | None = None,
        **foreign: NoReturn,
    ) -> Tensor:
        """A few more tokens, T from 0 to 16: returns o [B,T,H,v] and updates `state` in place.

        It equals T steps of one token each, in one launch.  `g` is [H] or [B,T,H] and `beta` [B,T,H], see the
        call.  Not differentiable.  Raises the errors of `based_ops.errors` before any kernel runs; more
        tokens are a `ShapeError`, and a call's.

        With `state_indices`, int32 [B] on the device, `state` is a pool: sequence b has the state in slot
        `state_indices[b]`, and no other slot is read or changed.  -1 names no slot: nothing changes, and the
        output is 0.  On a CPU an index out of range, and a slot that is named twice, are an
        `ArgumentValueError`; on other devices the first counts as -1, and the second leaves open what the
        slot has.  Slots may lie any distance apart.

        Args:
            q: [B,T,H,qk] with T up to 16; k and v likewise.
            k: [B,T,H,qk].
            v: [B,T,H,v].
            state: What `init_state` or a call returned; contiguous.
            g: As of a call.
            scale: As of a call.
            backend: As of a call.
            state_indices: [B], int32.
            parameters: As of a call.
            beta: As of a call.

        Raises:
            ShapeError: more than 16 tokens, or another shape.
            StateError: the state does not fit, or shares memory with an input.
            GradientError: an input requires a gradient.  And what a call raises.

        Examples:
            >>> import based_ops, torch
            >>> op = based_ops.get("window64_d64")
            >>> state = op.init_state(2, 4)
            >>> token = torch.randn(2, 1, 4, 64)
            >>> with torch.no_grad():
            ...     o = op.step(token, token, token, state)
            >>> torch.allclose(o, token)  # one key has all of the weight
            True
        """
        if foreign:
            refuse(AttentionVariant.step, tuple(foreign))
        if parameters:
            self._has_no(parameters)
        if isinstance(scale, Tensor):
            options: dict[str, Any] = {
                "state": state,
                "state_indices": state_indices,
                "backend": backend,
                "beta": beta,
            }
            return temperature.call(self, partial(self.step, k=k, v=v, g=g, **options), q, scale)
        plain = g is None and beta is None and not self._takes_more
        tensors = (q, k, v) if plain else self._inputs(q, k, v, g, beta)
        return self._step(tensors, scale, state, backend, state_indices)

    def init_state(
        self,
        batch: int,
        heads: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **foreign: NoReturn,
    ) -> StateT:
        """The state before the first token, for inputs of `dtype`; `heads` are those of k or v, the more.

        A window keeps that dtype, None being PyTorch's default; for a linear attention only float64 matters.
        """
        if foreign:
            refuse(AttentionVariant.init_state, tuple(foreign))
        checks.sizes_of_state(self._facts(), batch, heads, dtype)
        return self._form.zeros(batch, heads, device, dtype, is_traced())

    def state_bytes(
        self, batch: int, heads: int, dtype: torch.dtype | None = None, **foreign: NoReturn
    ) -> int:
        """Bytes of `init_state(batch, heads, dtype=dtype)`, whatever the length of the sequence."""
        if foreign:
            refuse(AttentionVariant.state_bytes, tuple(foreign))
        checks.sizes_of_state(self._facts(), batch, heads, dtype)
        return self._form.bytes(batch, heads, dtype)

    def reference(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor | None = None,
        scale: float | Tensor | None = None,
        initial_state: StateT | None = None,
        output_final_state: bool = False,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
        parameters: Mapping[str, Tensor] | None = None,
        *,
        beta: Tensor | None = None,
        **foreign: NoReturn,
    ) -> Tensor | tuple[Tensor, StateT]:
        """Naive quadratic mathematics in q's precision: o, or (o, final_state) if `output_final_state`.

        Of several sequences, see the call, it takes one after the other, and looks at where they lie.
        """
        if foreign:
            refuse(AttentionVariant.reference, tuple(foreign))
        if parameters:
            self._has_no(parameters)
        if isinstance(scale, Tensor):
            options: dict[str, Any] = {
                "initial_state": initial_state,
                "output_final_state": output_final_state,
            }
            options |= {"cu_seqlens": cu_seqlens, "attention_mask": attention_mask, "beta": beta}
            return temperature.call(self, partial(self.reference, k=k, v=v, g=g, **options), q, scale)
        of_call = scale, initial_state, output_final_state, cu_seqlens, attention_mask
        return self._reference_of(self._inputs(q, k, v, g, beta), *of_call)

    def _reference_of(
        self,
        tensors: Tensors,
        scale: float | None,
        initial_state: Any,
        output_final_state: bool,
        cu_seqlens: Tensor | None,
        attention_mask: Tensor | None,
    ) -> Any:
        """`reference` of what the operators take."""
        sizes, numbers = self._check_inputs(self, tensors), self._numbers(self, scale)
        given = initial_state, output_final_state, cu_seqlens, attention_mask
        return self._naively(tensors, sizes, numbers, *given)

    def init_parameters(
        self,
        heads: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        kv_heads: int | None = None,
    ) -> dict[str, Tensor]:
        """None: this layer has no parts.  See `FeaturedVariant` for those that have."""
        return {}

    def _has_no(self, parameters: Any) -> NoReturn:
        got = ", ".join(map(repr, parameters))
        fail(ArgumentValueError, "parameters", got, f"left out: {self.name} has no parts that read any")

    def _lay(self, tensors: Tensors, state: Any, sequences: Tensor) -> packed.Laid:
        """Packed sequences, and the states before them, as the operator takes them."""
        entered, carried = (tensors, self._no_carry) if state is None else self._enter(tensors, state)
        return packed.Laid(entered, carried, sequences, (sequences,))

    def _take(self, laid: packed.Laid, final: Sequence[Tensor], initial_state: Any) -> Any:
        """The states after packed sequences, of which the operator left `final`."""
        return self._leave(laid.tensors, final, initial_state, 0)

    def _inputs(
        self, q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor | None = None
    ) -> Tensors:
        """What the operators take: decays and rates in float32, or q's float64, side by side."""
        wide = torch.float64 if isinstance(q, Tensor) and q.dtype == torch.float64 else torch.float32
        given: list[Tensor] = []
        for name, x, taken, what in (
            ("g", g, bool(self._decay_dims), "decay"),
            ("beta", beta, self._corrects, "delta rule"),
        ):
            if not taken and x is not None:
                fail(ArgumentTypeError, name, "a tensor", f"None, since {self.name} has no {what}")
            if not taken:
                continue
            if not isinstance(x, Tensor):
                fail(ArgumentTypeError, name, type(x).__name__, f"a torch.Tensor: {self.name} has a {what}")
            given.append(x.to(wide).contiguous())
        return (q, k, v, *given)

    def _nothing(self, tensors: Tensors) -> Any:
        q, k, v = (x for x in tensors[:3] if x is not None)
        return repeated(v, multiple((q.shape[2], k.shape[2], v.shape[2])))

    def _numbers(self, facts: Any, factor: Any) -> tuple[float, ...]:
        return (facts.default_scale if factor is None else checks.scale(factor),)

    def _check_inputs(self, facts: Any, tensors: Tensors, most: int | None = None) -> tuple[int, int, int]:
        q, k, v = tensors[:3]
        batch, length, heads = checks.qkv(facts, q, k, v, most)  # type: ignore[arg-type]
        if self._decay_dims:
            checks.decay(facts, self._decay_dims, tensors[3], q, heads, facts is self)  # type: ignore[arg-type]
        if self._corrects:
            checks.rate(facts, tensors[-1], q, heads, facts is self)  # type: ignore[arg-type]
        if most is None and facts is not self and 1 < length < heads:  # in traced code it would be a guard
            checks.warn_of_layout(self.name, length, heads)
        return batch, length, heads
