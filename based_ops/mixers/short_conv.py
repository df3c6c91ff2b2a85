"""The short convolution as PyTorch sees it, and as layers: Based's BaseConv and the plain one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from based_ops.codegen.dtypes import IO

from .. import checks, packed
from ..arguments import refuse
from ..dispatch import Backend
from ..errors import ArgumentTypeError, ShapeError, fail
from ..registry import get
from ..state import storable
from ..state_base import State
from ..tracing import constant, is_traced
from ..variant import Tensors, Variant

if TYPE_CHECKING:
    from based_ops.codegen.mixers.short_conv import ShortConv as Spec


class _Inputs(NamedTuple):
    inputs: Tensor


@storable(layout=1, roles=(IO,))
class ShortConvState(State, _Inputs):
    """The last W - 1 inputs, [B,D,W-1] in the inputs' dtype, the newest last; 0 before the first token.

    Examples:
        >>> import based_ops
        >>> based_ops.get("conv4_silu").init_state(1, 8).inputs.shape
        torch.Size([1, 8, 3])
    """


class ShortConvVariant(Variant[ShortConvState]):
    """y_t = gate_t · ψ(bias + Σ_j w[:, j] · x_{t - (W - 1) + j}), each channel by itself.

    Tensors are [B, T, D] (B batch, T tokens, D channels), weight [D, W], bias [D]; they share a dtype and a
    device.  B, T and D may be 0.
    """

    spec: Spec
    _state_type = ShortConvState
    _other_dtype = (
        "; the state has the dtype of the call that made it: go on as you began, or convert it, "
        "`state.to(dtype)`"
    )
    alike_in_batches = True
    backward_products = 3.0
    """The sums again, and gradients of inputs and taps."""
    width: int = constant("width", "Tokens that an output sees, its own included.")

    def _setup(self) -> None:
        self._know(width=self.spec.width)

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        gate: Tensor | None = None,
        initial_state: ShortConvState | None = None,
        output_final_state: bool = False,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
        state_indices: Tensor | None = None,
        backend: Backend | None = None,
        batch_invariant: bool = False,
        **foreign: NoReturn,
    ) -> tuple[Tensor, ShortConvState | None]:
        """The convolution of a sequence: `(y, final_state)`, with y [B,T,D] contiguous and of x's dtype.

        The last column of `weight` meets a token itself, as in `torch.nn.functional.conv1d` after padding on
        the left.  `initial_state` is what an earlier call returned for the tokens before these.  Gradients
        flow to all tensors and from the final state, once.  Source: Based (arXiv 2402.18668), BaseConv.

        Raises the errors of `based_ops.errors` before any kernel runs.

        With `state_indices`, int32 [B] on the device, `initial_state` is a pool of states: sequence b starts
        from slot `state_indices[b]`, and with `output_final_state` its final state goes there, in place; the
        pool is returned.  -1 names no slot: nothing changes, and the output is 0.  See `step`.  There are no
        gradients then (`GradientError`).

        `cu_seqlens`, int32 or int64 [N+1] on the device, packs N sequences into a batch of 1, and
        `attention_mask`, bool or 0 and 1, [B,T], says which tokens are no padding: as in calls of attention.

        With `batch_invariant` a sequence has the same bits, gradients too, alone and in any batch, packed,
        padded or neither; docs/tools.md says what that costs.
        """
        if foreign:
            refuse(ShortConvVariant.__call__, tuple(foreign))
        tensors = (x, weight, bias, gate)
        given = (tensors, None, initial_state, output_final_state, backend, state_indices)
        return self._call(*given, cu_seqlens, attention_mask, batch_invariant)

    def step(
        self,
        x: Tensor,
        state: ShortConvState,
        weight: Tensor,
        bias: Tensor | None = None,
        gate: Tensor | None = None,
        backend: Backend | None = None,
        state_indices: Tensor | None = None,
        **foreign: NoReturn,
    ) -> Tensor:
        """A few more tokens, T from 0 to 16: returns y [B,T,D] and updates `state` in place.

        It equals T steps of one token each, in one launch.  Not differentiable.  Raises the errors of
        `based_ops.errors` before any kernel runs; more tokens are a `ShapeError`, and a call's.

        With `state_indices`, int32 [B] on the device, `state` is a pool: sequence b has the state in slot
        `state_indices[b]`, and no other slot is read or changed.  -1 names no slot: nothing changes, and the
        output is 0.  On a CPU an index out of range, and a slot that is named twice, are an
        `ArgumentValueError`; on other devices the first counts as -1, and the second leaves open what the
        slot has.  Slots may lie any distance apart.
        """
        if foreign:
            refuse(ShortConvVariant.step, tuple(foreign))
        return self._step((x, weight, bias, gate), None, state, backend, state_indices)

    def init_state(
        self,
        batch: int,
        channels: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **foreign: NoReturn,
    ) -> ShortConvState:
        """The state before the first token, for inputs of `dtype`; None is PyTorch's default."""
        if foreign:
            refuse(ShortConvVariant.init_state, tuple(foreign))
        checks.sizes_of_state(self._facts(), batch, channels, dtype, "channels")
        state: ShortConvState = self._form.zeros(batch, channels, device, dtype, is_traced())
        return state

    def state_bytes(
        self, batch: int, channels: int, dtype: torch.dtype | None = None, **foreign: NoReturn
    ) -> int:
        """Bytes of `init_state(batch, channels, dtype=dtype)`."""
        if foreign:
            refuse(ShortConvVariant.state_bytes, tuple(foreign))
        checks.sizes_of_state(self._facts(), batch, channels, dtype, "channels")
        return self._form.bytes(batch, channels, dtype)

    def reference(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        gate: Tensor | None = None,
        initial_state: ShortConvState | None = None,
        output_final_state: bool = False,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **foreign: NoReturn,
    ) -> Tensor | tuple[Tensor, ShortConvState]:
        """Naive mathematics in x's precision: y, or (y, final_state) if `output_final_state`."""
        if foreign:
            refuse(ShortConvVariant.reference, tuple(foreign))
        tensors = (x, weight, bias, gate)
        sizes = self._check_inputs(self, tensors)
        return self._naively(
            tensors, sizes, (), initial_state, output_final_state, cu_seqlens, attention_mask
        )

    def products(self, length: int, begun: bool = False, final: bool = False) -> float:
        """Every tap of every token, those that meet zeros before the first too."""
        return 2.0 * self.width * length

    def _enter(self, tensors: Tensors, state: ShortConvState) -> tuple[Tensors, Tensors]:
        """Programs read tiles of tokens and channels: the past lies as a sequence does."""
        return tensors, (state.inputs.transpose(1, 2).contiguous(),)

    def _lay(self, tensors: Tensors, state: ShortConvState | None, sequences: Tensor) -> packed.Laid:
        """Packed sequences, and the inputs before them, as the operator takes them."""
        entered, carried = (tensors, self._no_carry) if state is None else self._enter(tensors, state)
        return packed.Laid(entered, carried, sequences, (sequences,))

    def _take(
        self, laid: packed.Laid, final: Sequence[Tensor], initial_state: ShortConvState | None
    ) -> ShortConvState:
        x: Any = laid.tensors[0]
        before = self.width - 1
        inputs, there = packed.last_tokens(x, laid.sequences, before)
        if initial_state is None:
            earlier = torch.zeros_like(inputs)
        else:  # what is left of it behind as many tokens as a sequence has
            start, stop = laid.sequences.unbind(1)
            moved = (stop - start).clamp(0, before).unsqueeze(1) + torch.arange(before, device=x.device)
            places = moved.clamp(max=before - 1).unsqueeze(2).expand(-1, -1, x.shape[2])
            earlier = initial_state.inputs.transpose(1, 2).gather(1, places)
        inputs = torch.where(there.unsqueeze(2), inputs, earlier)
        return ShortConvState(inputs.transpose(1, 2).contiguous())

    def _leave(
        self, tensors: Tensors, final: Sequence[Tensor], initial_state: ShortConvState | None, length: int
    ) -> ShortConvState:
        x: Any = tensors[0]
        batch, channels, before = x.shape[0], x.shape[2], self.width - 1
        past = x.new_zeros(batch, channels, before) if initial_state is None else initial_state.inputs
        # Not `x[:, -before:]`, so that an exported program may have any number of tokens: PyTorch makes a
        # guard of whether that is dense, and AOTInductor takes as many tokens from a sequence that has fewer.
        # Dynamo of PyTorch 2.11 has no sym_min of two plain numbers.
        fresh = min(length, before) if isinstance(length, int) else torch.sym_min(length, before)
        inputs = torch.cat([past, x.transpose(1, 2).narrow(2, length - fresh, fresh)], dim=2)
        return ShortConvState(inputs.narrow(2, fresh, before).contiguous())

    def _reference(
        self, tensors: Tensors, numbers: tuple[float, ...], initial_state: Any
    ) -> tuple[Tensor, ShortConvState]:
        from ..reference.short_conv import short_conv

        x, weight, bias, gate = tensors
        past = None if initial_state is None else initial_state.inputs
        y, inputs = short_conv(self.spec, x, weight, bias, gate, past)  # type: ignore[arg-type]
        return y, ShortConvState(inputs)


VARIANT = ShortConvVariant


class ShortConv(nn.Module):
    """A causal depthwise convolution over [B,T,d_model] with the activation of `variant`, and a bias.

    Args:
        d_model: Channels.
        variant: A short_conv variant, or the name of one.
        bias: Whether there is one; the variant has to take it.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ArgumentTypeError: `variant` is of another mixer; `UnknownVariant`: there is none of that name.

    Examples:
        >>> import torch, based_ops.layers as layers
        >>> y, _ = layers.ShortConv(64)(torch.randn(1, 10, 64))  # [B, T, d_model], as x
    """

    def __init__(
        self,
        d_model: int,
        variant: Variant[State] | str = "conv4_silu",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.count("d_model", d_model, 1)
        op = variant if isinstance(variant, Variant) else get(variant)
        if not isinstance(op, ShortConvVariant):
            fail(ArgumentTypeError, "variant", f"{op.name}, a {op.spec.mixer}", "a short_conv")
        self.d_model, self.op = d_model, op
        bound = op.width**-0.5  # as torch.nn.Conv1d of as many inputs begins
        self.weight = nn.Parameter(torch.empty(d_model, op.width, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(d_model, device=device, dtype=dtype)) if bias else None
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(
        self,
        x: Tensor,
        state: ShortConvState | None = None,
        output_state: bool = False,
        gate: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, ShortConvState | None]:
        """x [B,T,d_model] to (y of the same shape, the state after x or None unless `output_state`).

        `cu_seqlens` [N+1] or `attention_mask` [B,T] tell sequences apart, as in calls of the variant.
        """
        self._check(x)
        options: dict[str, Any] = {"cu_seqlens": cu_seqlens, "attention_mask": attention_mask}
        return self.op(x, self.weight, self.bias, gate, state, output_state, **options)

    def step(
        self,
        x: Tensor,
        state: ShortConvState,
        gate: Tensor | None = None,
        state_indices: Tensor | None = None,
    ) -> Tensor:
        """Up to 16 tokens, [B,T,d_model] to the same shape; updates `state` in place.  Not differentiable.

        With `state_indices`, int32 [B], `state` is a pool of which they name the slots, -1 none.
        """
        self._check(x)
        return self.op.step(x, state, self.weight, self.bias, gate, state_indices=state_indices)

    def init_state(self, batch: int) -> ShortConvState:
        """The state before the first token, on the layer's device and for its dtype."""
        weight = self.weight
        return self.op.init_state(batch, self.d_model, device=weight.device, dtype=weight.dtype)

    def state_bytes(self, batch: int) -> int:
        """Bytes of the state of `batch` sequences, whatever their length."""
        return self.op.state_bytes(batch, self.d_model, dtype=self.weight.dtype)

    def extra_repr(self) -> str:
        return f"{self.d_model}, variant={self.op.name}, bias={self.bias is not None}"

    def _check(self, x: Tensor) -> None:
        if x.dim() != 3 or x.shape[2] != self.d_model:
            fail(ShapeError, "x", checks.sizes(x), f"of shape [B, T, {self.d_model}]")


class GatedShortConv(nn.Module):
    """Based's BaseConv (arXiv 2402.18668): one projection to a convolution's input and its gate, and back.

    (u, g) = in_proj(x); y = out_proj(g · silu(conv(u))), each projection with a bias.

    Args:
        d_model: Width of x and of the result.
        variant: A short_conv variant, or the name of one.
        expand: Times that the convolution is as wide as x.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ArgumentTypeError: `variant` is of another mixer; `UnknownVariant`: there is none of that name.

    Examples:
        >>> import torch, based_ops.layers as layers
        >>> y, _ = layers.GatedShortConv(64)(torch.randn(1, 10, 64))  # [B, T, d_model], as x
    """

    def __init__(
        self,
        d_model: int,
        variant: Variant[State] | str = "conv3_silu",
        expand: int = 4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.count("d_model", d_model, 1)
        checks.count("expand", expand, 1)
        width = expand * d_model
        self.d_model = d_model
        self.in_proj = nn.Linear(d_model, 2 * width, device=device, dtype=dtype)
        self.conv = ShortConv(width, variant, device=device, dtype=dtype)
        self.out_proj = nn.Linear(width, d_model, device=device, dtype=dtype)

    def forward(
        self,
        x: Tensor,
        state: ShortConvState | None = None,
        output_state: bool = False,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, ShortConvState | None]:
        """x [B,T,d_model] to (y of the same shape, the state after x or None unless `output_state`).

        `cu_seqlens` [N+1] or `attention_mask` [B,T] tell sequences apart, as in calls of the variant.
        """
        u, gate = self.in_proj(x).chunk(2, dim=-1)
        y, final = self.conv(u, state, output_state, gate, cu_seqlens, attention_mask)
        return self.out_proj(y), final

    def step(self, x: Tensor, state: ShortConvState, state_indices: Tensor | None = None) -> Tensor:
        """Up to 16 tokens, [B,T,d_model] to the same shape; updates `state` in place.  Not differentiable.

        With `state_indices`, int32 [B], `state` is a pool of which they name the slots, -1 none.
        """
        u, gate = self.in_proj(x).chunk(2, dim=-1)
        y: Tensor = self.out_proj(self.conv.step(u, state, gate, state_indices))
        return y

    def init_state(self, batch: int) -> ShortConvState:
        """The state before the first token, on the layer's device and for its dtype."""
        return self.conv.init_state(batch)

    def state_bytes(self, batch: int) -> int:
        """Bytes of the state of `batch` sequences, whatever their length."""
        return self.conv.state_bytes(batch)
