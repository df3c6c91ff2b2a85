"""Linear attention as PyTorch sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from based_ops.codegen.dtypes import ACC, IO, STATE

from .. import checks
from ..attention import AttentionVariant
from ..errors import ArgumentTypeError, ArgumentValueError, DeviceError, ShapeError, StateError, fail
from ..ops import call
from ..state import LinearAttentionState, ring_to_linear, storable
from ..state_base import State, named
from ..tracing import constant, is_traced
from ..variant import Tensors, Variant, dtype_named

if TYPE_CHECKING:
    from based_ops.codegen.mixers.linear_attention import LinearAttention


class _RingAndSums(NamedTuple):
    k: Tensor
    v: Tensor
    position: Tensor
    entered: Tensor
    state: Tensor
    normalizer: Tensor | None


@storable(layout=1, roles=(IO, IO, "int32", "int32", STATE, ACC))
class ReplayState(State, _RingAndSums):
    """Sums over the tokens seen but for the last ones, and keys and values of these.

    Of the tokens since the last call, or since `init_state`, `position` [B,H] are counted and `entered` [B,H]
    are in the sums with all before, both int32.  Token p of them lies in slot p mod 2L of the rings `k`
    [B,H,2L,qk] and `v` [B,H,2L,v] of a layer with `replay: L`; those from `entered` on have not entered.
    `state` and `normalizer` are those of `LinearAttentionState`.

    Examples:
        >>> import based_ops
        >>> state = based_ops.get("taylor2_replay_qk16_v64").init_state(1, 2)
        >>> state.k.shape, state.state.shape
        (torch.Size([1, 2, 32, 16]), torch.Size([1, 2, 153, 64]))
    """

    @property
    def held(self) -> Tensor:
        """How many of the last tokens can be taken back, [B]: those that have not entered the sums.

        After a call that are none; then all that are stepped, until the ring is full; and from then on L to
        2L - 1.
        """
        return (self.position - self.entered).amin(1)

    def rollback(self, tokens: int | Tensor) -> None:
        """Takes the last tokens back, in place: drafts that were not accepted.  Nothing is copied.

        What comes next is as if they had never been.  Looking at what the ring holds waits for the device;
        code that is traced or recorded in a CUDA graph subtracts from `position` instead.

        Args:
            tokens: How many of each sequence; or [B], int32 or int64, of each by itself.

        Raises:
            ArgumentTypeError: `tokens` is neither an int nor such a tensor.
            ShapeError: it is a tensor of another shape.
            DeviceError: it lies on another device than the state.
            ArgumentValueError: a number is below 0.
            StateError: the ring holds fewer.

        Examples:
            >>> import based_ops, torch
            >>> op = based_ops.get("taylor2_replay_qk16_v64")
            >>> state = op.init_state(1, 2)
            >>> q, k, v = torch.randn(1, 4, 2, 16), torch.randn(1, 4, 2, 16), torch.randn(1, 4, 2, 64)
            >>> with torch.no_grad():
            ...     o = op.step(q, k, v, state)
            >>> state.rollback(3)
            >>> state.held
            tensor([1], dtype=torch.int32)
        """
        if isinstance(tokens, Tensor) and tokens.dtype in (torch.int32, torch.int64):
            if tokens.shape != self.position.shape[:1]:
                fail(ShapeError, "tokens", checks.sizes(tokens), f"of shape [{self.position.shape[0]}]")
            if tokens.device != self.position.device:
                fail(DeviceError, "tokens", str(tokens.device), f"on {self.position.device}, as the state")
        elif isinstance(tokens, bool) or not isinstance(tokens, int):
            got = str(tokens.dtype) if isinstance(tokens, Tensor) else type(tokens).__name__
            fail(ArgumentTypeError, "tokens", got, "an int, or a tensor of int32 or int64")
        held = self.held
        back = tokens if isinstance(tokens, Tensor) else torch.full_like(held, tokens)
        for wrong, error, allowed in (
            (back < 0, ArgumentValueError, "0 or more"),
            (back > held, StateError, "up to {}, which the ring holds"),
        ):
            if wrong.any():
                row = int(wrong.int().argmax())
                fail(error, "tokens", f"{int(back[row])} of sequence {row}", allowed.format(int(held[row])))
        self.position.sub_(back.to(torch.int32).unsqueeze(1))


class LinearAttentionVariant(AttentionVariant[LinearAttentionState]):
    """o_i = Σ_{j≤i} A_ij v_j / (Σ_{j≤i} A_ij + eps), with A the kernel of the spec's feature map."""

    spec: LinearAttention
    _state_type: Any = LinearAttentionState
    features: int = constant("features", "Rows of the state.")

    @classmethod
    def _class_of(cls, spec: Any) -> type[Variant[Any]]:
        return ReplayVariant if spec.replay else cls

    def _setup(self) -> None:
        super()._setup()
        spec: Any = self.spec
        self._know(features=spec.features)
        self.normalize: bool = spec.normalize
        self.state_dtype = dtype_named(spec.state_dtype)

    def products(self, length: int, begun: bool = False, final: bool = False) -> float:
        """Through the state, or with every earlier token where that is less.

        By the delta rule a token reads the state, or its pairs, by its key too.
        """
        pairs = length * (length + 1) // 2
        update = 2 * self.features * self.v * length  # as many as a product with the state
        if self.spec.corrects:
            twice = 4 * (self.qk + self.v) * pairs + update * (2 * begun + final)
            return float(min(3 * update, twice))
        alone = 2 * (self.qk + self.v) * pairs + update * (begun + final)
        return float(min(2 * update, alone))

    def _reference(
        self, tensors: Tensors, numbers: tuple[float, ...], initial_state: Any
    ) -> tuple[Tensor, LinearAttentionState]:
        from ..reference import delta_rule, linear_attention

        q, k, v, *more = tensors
        assert q is not None and k is not None and v is not None
        (scale,) = numbers
        if not self.spec.corrects:
            return linear_attention(self.spec, q, k, v, scale, initial_state, *more)
        *decays, beta = more
        assert beta is not None
        return delta_rule(
            self.spec, q, k, v, scale, initial_state, beta=beta, log_decay=next(iter(decays), None)
        )


class ReplayVariant(LinearAttentionVariant):
    """The same with steps that read the sums and a ring of inputs, and write the sums every L tokens."""

    _state_type = ReplayState
    _other_dtype = (
        "; a ring has the dtype of the call that made it, which under autocast is autocast's: go on as you "
        "began, or convert it, `state.to(dtype)`"
    )

    def _settle(self, state: ReplayState, kernel: str) -> ReplayState:
        """The tokens of each ring enter its sums, in a packed call of their own whose outputs nobody reads.

        The head of a sequence is a sequence there, so that each may hold another number of tokens.
        """
        past = state.position.contiguous()
        k, v = (ring_to_linear(x, past).transpose(1, 2).reshape(1, -1, 1, x.shape[3]) for x in state[:2])
        held = (past - state.entered).flatten()
        stop = torch.arange(1, held.shape[0] + 1, device=held.device) * state.k.shape[2]
        sequences = torch.stack((stop - held, stop), 1).to(torch.int32)
        before = [None if x is None else x.flatten(0, 1).unsqueeze(1) for x in state[4:]]
        arguments = (k, k, v, *self._numbers(self._facts(), None), *before, True, kernel, sequences)
        *_, final, normalizer = call(self._ops.forward, not is_traced(), arguments)
        if state.normalizer is not None:
            normalizer = normalizer.view_as(state.normalizer)
        sums = final.view_as(state.state), normalizer
        return self._emptied(torch.zeros_like(state.k), torch.zeros_like(state.v), sums)

    def _settled(self, state: ReplayState) -> ReplayState:
        """A ring that holds nothing has no gradients."""
        return named(ReplayState(state.k.detach(), state.v.detach(), *state[2:]), self.name)

    def _enter(self, tensors: Tensors, state: ReplayState) -> tuple[Tensors, Tensors]:
        """The sums, in which all tokens are."""
        return tensors, (state.state, state.normalizer)

    def _leave(
        self, tensors: Tensors, final: Sequence[Tensor], initial_state: Any, length: int
    ) -> ReplayState:
        _, k, v = tensors
        assert k is not None and v is not None
        ring = (*final[0].shape[:2], 2 * self.spec.replay)
        return self._emptied(k.new_zeros(*ring, self.qk), v.new_zeros(*ring, self.v), final)

    def _emptied(self, k: Tensor, v: Tensor, final: Sequence[Tensor]) -> ReplayState:
        """A state whose rings hold nothing."""
        state, normalizer = final
        position, entered = (k.new_zeros(*k.shape[:2], dtype=torch.int32) for _ in range(2))
        return ReplayState(k, v, position, entered, state, normalizer if self.normalize else None)

    def _reference(
        self, tensors: Tensors, numbers: tuple[float, ...], initial_state: Any
    ) -> tuple[Tensor, Any]:
        from ..reference.linear_attention import entered

        if initial_state is not None:
            past = initial_state.position.contiguous()
            k, v = (ring_to_linear(x, past) for x in initial_state[:2])
            age = torch.arange(k.shape[1], 0, -1, device=k.device)[:, None]
            there = age <= (past - initial_state.entered).unsqueeze(1)
            initial_state = entered(self.spec, LinearAttentionState(*initial_state[4:]), k, v, there)
        o, final = super()._reference(tensors, numbers, initial_state)
        return o, self._leave(tensors, tuple(final), None, 0)  # type: ignore[arg-type]


VARIANT = LinearAttentionVariant
