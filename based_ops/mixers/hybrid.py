"""Hybrid layers as PyTorch sees them: their state is a window's ring, and the sums of what has left it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from based_ops.codegen.dtypes import ACC, IO, STATE

from .. import checks, packed, temperature
from ..arguments import refuse
from ..attention import AttentionVariant
from ..dispatch import Backend
from ..errors import ArgumentTypeError, fail
from ..heads import multiple, repeated
from ..state import first_valid, linear_to_ring, ring_of_start, ring_to_linear, storable
from ..state_base import State
from ..tracing import constant
from ..variant import Tensors, dtype_named

if TYPE_CHECKING:
    from based_ops.codegen.mixers.hybrid import Hybrid

EXTRA = ("q_window", "k_window", "window_factor", "linear_factor")
"""Inputs that some layers have besides q, k and v, in this order."""
FACTORS = EXTRA[2:]


class _RingAndSums(NamedTuple):
    k: Tensor
    v: Tensor
    position: Tensor
    state: Tensor
    normalizer: Tensor
    k_window: Tensor | None = None


@storable(layout=1, roles=(IO, IO, "int32", STATE, ACC, IO))
class HybridState(State, _RingAndSums):
    """The last W keys and values, as `SlidingWindowState` has them, and sums over all older ones.

    `state` [B,H,F,V] and `normalizer` [B,H,F] are those of `LinearAttentionState`, of the keys that have left
    the window: a key is in the ring or in the sums, and in one of them only.  `k_window` [B,H,W,D] are the
    last keys of a window that has its own, else None.

    Examples:
        >>> import based_ops
        >>> state = based_ops.get("hybrid_taylor2_qk16_v64_w64").init_state(1, 2)
        >>> state.k.shape, state.state.shape
        (torch.Size([1, 2, 64, 16]), torch.Size([1, 2, 153, 64]))
    """


class HybridVariant(AttentionVariant[HybridState]):
    """Softmax over the last W keys, linear attention over all older ones, and one normaliser."""

    spec: Hybrid
    _state_type = HybridState
    _other_dtype = (
        "; a window has the dtype of the call that made it, which under autocast is autocast's: go on as you "
        "began, or convert it, `state.to(dtype)`"
    )
    window: int = constant("window", "Keys that a query sees by softmax, its own included.")
    features: int = constant("features", "Rows of the state.")

    def _setup(self) -> None:
        super()._setup()
        spec: Any = self.spec
        self._know(window=spec.window, features=spec.features)
        self.state_dtype = dtype_named(spec.state_dtype)
        self._names = [x.name for x in self.signature.inputs]
        self._more = [x for x in self.signature.inputs if x.name in EXTRA]
        self._has_own = spec.window_qk is not None
        self._least = 0.0 if spec.combine == "normalizer" else None

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor | None = None,
        scale: float | Tensor | None = None,
        initial_state: HybridState | None = None,
        output_final_state: bool = False,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
        state_indices: Tensor | None = None,
        parameters: Mapping[str, Tensor] | None = None,
        backend: Backend | None = None,
        batch_invariant: bool = False,
        q_window: Tensor | None = None,
        k_window: Tensor | None = None,
        window_factor: Tensor | None = None,
        linear_factor: Tensor | None = None,
        *,
        beta: Tensor | None = None,
        **foreign: NoReturn,
    ) -> tuple[Tensor, HybridState | None]:
        """Causal attention over a sequence: `(o, final_state)`, as of all attention layers.

        A layer with `window_dims` takes q_window and k_window, [B,T,H,D] with the heads of q and of k, for
        the scores of its window, and q and k for older keys alone; `scale` is a factor on the latter, and
        D**-0.5 on the former.

        `window_factor` and `linear_factor`, [H] in float32 (others are cast to it) with the heads of the
        output, multiply the weights in the window and those of older keys, if the spec says that calls may
        give them; 1 where one does not.
        Under one normaliser a factor below 0 is an error on a CPU, and not looked for elsewhere, and one
        below 1e-30 counts as that.  Where the parts are added, they may have any sign.

        Gradients flow to all of these, and from the final state, once.  Sources: Based (arXiv 2402.18668) for
        windows and Taylor maps, LoLCATs (arXiv 2410.10254) for both under one normaliser.

        With `batch_invariant` a sequence has the same bits, gradients too, alone and in any batch.
        """
        if foreign:
            refuse(HybridVariant.__call__, tuple(foreign))
        if parameters:
            self._has_no(parameters)
        if isinstance(scale, Tensor):
            options: dict[str, Any] = {
                "initial_state": initial_state,
                "output_final_state": output_final_state,
            }
            options |= {"cu_seqlens": cu_seqlens, "attention_mask": attention_mask}
            options |= {"state_indices": state_indices, "backend": backend}
            options |= {"q_window": q_window, "k_window": k_window}
            options |= {"window_factor": window_factor, "linear_factor": linear_factor, "beta": beta}
            options |= {"batch_invariant": batch_invariant}
            return temperature.call(self, partial(self, k=k, v=v, g=g, **options), q, scale)
        tensors = self._all(q, k, v, g, beta, (q_window, k_window, window_factor, linear_factor))
        given = (tensors, scale, initial_state, output_final_state, backend, state_indices)
        return self._call(*given, cu_seqlens, attention_mask, batch_invariant)

    def step(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        state: HybridState,
        g: Tensor | None = None,
        scale: float | Tensor | None = None,
        backend: Backend | None = None,
        state_indices: Tensor | None = None,
        parameters: Mapping[str, Tensor] | None = None,
        q_window: Tensor | None = None,
        k_window: Tensor | None = None,
        window_factor: Tensor | None = None,
        linear_factor: Tensor | None = None,
        *,
        beta: Tensor | None = None,
        **foreign: NoReturn,
    ) -> Tensor:
        """A few more tokens, T from 0 to 16: returns o [B,T,H,v] and updates `state` in place.

        The oldest key of the ring enters the sums, and the token takes its place.  Otherwise as of all
        attention layers; the further inputs are those of a call.
        """
        if foreign:
            refuse(HybridVariant.step, tuple(foreign))
        if parameters:
            self._has_no(parameters)
        if isinstance(scale, Tensor):
            options: dict[str, Any] = {"state": state, "state_indices": state_indices, "backend": backend}
            options |= {"q_window": q_window, "k_window": k_window}
            options |= {"window_factor": window_factor, "linear_factor": linear_factor, "beta": beta}
            return temperature.call(self, partial(self.step, k=k, v=v, g=g, **options), q, scale)
        tensors = self._all(q, k, v, g, beta, (q_window, k_window, window_factor, linear_factor))
        return self._step(tensors, scale, state, backend, state_indices)

    def reference(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor | None = None,
        scale: float | Tensor | None = None,
        initial_state: HybridState | None = None,
        output_final_state: bool = False,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
        parameters: Mapping[str, Tensor] | None = None,
        q_window: Tensor | None = None,
        k_window: Tensor | None = None,
        window_factor: Tensor | None = None,
        linear_factor: Tensor | None = None,
        *,
        beta: Tensor | None = None,
        **foreign: NoReturn,
    ) -> Tensor | tuple[Tensor, HybridState]:
        """Naive quadratic mathematics in q's precision: o, or (o, final_state) if `output_final_state`."""
        if foreign:
            refuse(HybridVariant.reference, tuple(foreign))
        if parameters:
            self._has_no(parameters)
        if isinstance(scale, Tensor):
            options: dict[str, Any] = {
                "initial_state": initial_state,
                "output_final_state": output_final_state,
            }
            options |= {"cu_seqlens": cu_seqlens, "attention_mask": attention_mask}
            options |= {"q_window": q_window, "k_window": k_window}
            options |= {"window_factor": window_factor, "linear_factor": linear_factor, "beta": beta}
            return temperature.call(self, partial(self.reference, k=k, v=v, g=g, **options), q, scale)
        tensors = self._all(q, k, v, g, beta, (q_window, k_window, window_factor, linear_factor))
        return self._reference_of(
            tensors, scale, initial_state, output_final_state, cu_seqlens, attention_mask
        )

    def products(self, length: int, begun: bool = False, final: bool = False) -> float:
        """With every token of a window; with older ones through the state, or each where that is less.

        A state is taken for one that has a full window.
        """
        missing = 0 if begun else min(self.window, length)  # of the first queries, which see fewer
        near = self.window * length
        if not begun:
            near = missing * length - missing * (missing - 1) // 2
        late = length if begun else length - missing  # queries that have older keys
        update = 2 * self.features * self.v * late  # as many as a product with the state
        direct = (self.qk + self.v) * late * (late + 1) + update * (begun + final)
        return float(2 * ((self.spec.window_qk or self.qk) + self.v) * near + min(2 * update, direct))

    def _all(
        self, q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor | None, more: Tensors
    ) -> Tensors:
        """What the operators take: factors in float32, or q's float64, side by side."""
        tensors = self._inputs(q, k, v, g, beta)
        given = dict(zip(EXTRA, more, strict=True))
        for name, x in given.items():
            if x is not None and name not in self._names:
                fail(ArgumentTypeError, name, "a tensor", f"None, since {self.name} takes none")
        wide = torch.float64 if isinstance(q, Tensor) and q.dtype == torch.float64 else torch.float32
        for name in FACTORS:
            if isinstance(x := given[name], Tensor):
                given[name] = x.to(wide).contiguous()
        return (*tensors, *(given[x.name] for x in self._more))

    def _check_inputs(self, facts: Any, tensors: Tensors, most: int | None = None) -> tuple[int, int, int]:
        q, k, v, *more = tensors
        batch, length, heads = checks.qkv(facts, q, k, v, most)  # type: ignore[arg-type]
        every = multiple((q.shape[2], heads))  # type: ignore[union-attr]
        for argument, x in zip(self._more, more, strict=True):
            name = argument.name
            if argument.multiplies:
                checks.factor(facts, name, x, q, every, self._least, facts is self)  # type: ignore[arg-type]
            else:
                like = q if name == "q_window" else k
                checks.as_many(facts, name, x, q, like, argument.dims[-1])  # type: ignore[arg-type]
        if most is None and facts is not self and 1 < length < heads:  # in traced code it would be a guard
            checks.warn_of_layout(self.name, length, heads)
        return batch, length, heads

    def _enter(self, tensors: Tensors, state: HybridState) -> tuple[Tensors, Tensors]:
        """Keys and values of the window go in front of those of the call; slots without a token are 0."""
        q, k, v, *more = self._of_state(tensors)
        past = state.position.contiguous()

        def longer(ring: Tensor | None, x: Tensor | None) -> Tensor:
            return torch.cat([self._before(ring, past), x], dim=1)  # type: ignore[list-item, arg-type]

        if self._has_own:
            more[1] = longer(state.k_window, more[1])
        tensors = q, longer(state.k, k), longer(state.v, v), *more
        return tensors, (first_valid(past, self.window), state.state, state.normalizer)

    def _before(self, ring: Tensor, past: Tensor) -> Tensor:
        """What a ring has in order [B,W,H,D], 0 where there has been no token."""
        slots = torch.arange(self.window, device=past.device)
        missing = slots < first_valid(past, self.window).unsqueeze(-1)
        return ring_to_linear(ring, past).masked_fill(missing.transpose(1, 2).unsqueeze(-1), 0)

    def _of_state(self, tensors: Tensors) -> Tensors:
        """The same, whose keys and values have the heads of a state, which has pairs of both."""
        q, k, v, *more = tensors
        heads = multiple((k.shape[2], v.shape[2]))  # type: ignore[union-attr]
        if self._has_own:
            more[1] = repeated(more[1], heads)  # type: ignore[arg-type]
        return q, repeated(k, heads), repeated(v, heads), *more  # type: ignore[arg-type]

    def _lay(self, tensors: Tensors, state: HybridState | None, sequences: Tensor) -> packed.Laid:
        """The keys and values of each ring go in front of its sequence, with queries that nobody reads."""
        if state is None:
            return super()._lay(tensors, None, sequences)
        q, k, v, *more = self._of_state(tensors)
        past, width = state.position.contiguous(), self.window
        found = packed.spread(sequences, k.shape[1], width)  # type: ignore[union-attr]

        def of_queries(x: Tensor) -> Tensor:
            return found.laid(x, x.new_zeros(sequences.shape[0], width, *x.shape[2:]))

        def of_keys(x: Tensor, ring: Tensor) -> Tensor:
            return found.laid(x, self._before(ring, past))

        if self._has_own:
            more[:2] = of_queries(more[0]), of_keys(more[1], state.k_window)  # type: ignore[arg-type]
        laid = of_queries(q), of_keys(k, state.k), of_keys(v, state.v), *more  # type: ignore[arg-type]
        ends = found.sequences.to(torch.int32)
        carried = first_valid(past, width), state.state, state.normalizer
        return packed.Laid(laid, carried, ends, (ends,), found.tokens)

    def _take(
        self, laid: packed.Laid, final: Sequence[Tensor], initial_state: HybridState | None
    ) -> HybridState:
        _, k, v, *more = self._of_state(laid.tensors)
        kept: list[Any] = [k, v, *more[1:2]] if self._has_own else [k, v]
        past = None if initial_state is None else initial_state.position
        rings, position = packed.rings(kept, laid.sequences, past, self.window)
        return HybridState(*rings[:2], position, *final, *rings[2:])

    def _leave(
        self, tensors: Tensors, final: Sequence[Tensor], initial_state: HybridState | None, length: int
    ) -> HybridState:
        _, k, v, *more = self._of_state(tensors)
        kept: list[Any] = [k, v, *more[1:2]] if self._has_own else [k, v]
        if initial_state is None:
            batch, _, heads, _ = kept[0].shape
            # Made of k: torch.vmap maps it too.
            position = kept[0].new_full((batch, heads), length, dtype=torch.int32)
            rings = [ring_of_start(x, self.window) for x in kept]
        else:
            position = initial_state.position.contiguous() + length
            rings = [linear_to_ring(x.narrow(1, length, self.window), position) for x in kept]
        return HybridState(*rings[:2], position, *final, *rings[2:])

    def _reference(
        self, tensors: Tensors, numbers: tuple[float, ...], initial_state: Any
    ) -> tuple[Tensor, HybridState]:
        from ..reference.hybrid import hybrid

        q, k, v, *more = tensors
        further = dict(zip((x.name for x in self._more), more, strict=True))
        return hybrid(self.spec, q, k, v, *numbers, initial_state, **further)  # type: ignore


VARIANT = HybridVariant
