"""The state space as PyTorch sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from based_ops.codegen.dtypes import ACC

from .. import checks, packed
from ..arguments import refuse
from ..errors import ArgumentValueError, fail
from ..state import storable
from ..state_base import State
from ..tracing import constant, is_traced
from ..variant import Tensors, Variant

if TYPE_CHECKING:
    from based_ops.codegen.mixers.state_space import StateSpace as Spec


class _Modes(NamedTuple):
    modes: Tensor


@storable(layout=1, roles=(ACC,))
class StateSpaceState(State, _Modes):
    """s of every mode and channel, [B,N/2,D,2] or [B,N/2,H,P,2]: real and imaginary parts in float32 (float64
    for float64 inputs); 0 before the first token.

    Examples:
        >>> import based_ops
        >>> based_ops.get("s4d_n64").init_state(1, 8)[0].shape
        torch.Size([1, 32, 8, 2])
    """


class StateSpaceVariant(Variant):
    """y_t = 2 Re Σ_n R_n s_t + D x_t with s_t = λ s_{t-1} + x_t: a convolution with 2 Re Σ_n R_n λ_n^l.

    Where each channel has a filter, x is [B, T, D], log_decay and angle are [N/2, D], residues [N/2, D, 2]
    and skip is [D].  Where a head's channels share one, x is [B, T, H, P], the others [N/2, H], [N/2, H, 2]
    and [H, P].  Modes come first, so that kernels read channels side by side.  B, T, D and H may be 0.
    """

    spec: Spec
    _state_type = StateSpaceState
    backward_products = 3.0
    """The adjoint; and for poles and residues the state again, with its slope."""
    order = constant("order", "Real numbers of a channel's state.")
    modes = constant("modes", "Conjugate pairs of modes of a filter, half as many.")

    def _setup(self) -> None:
        self._know(order=self.spec.order, modes=self.spec.modes)

    def __call__(
        self,
        x: Tensor,
        log_decay: Tensor,
        angle: Tensor,
        residues: Tensor,
        skip: Tensor | None = None,
        initial_state: StateSpaceState | None = None,
        output_final_state: bool = False,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
        state_indices: Tensor | None = None,
        backend: str | None = None,
        batch_invariant: bool = False,
        **foreign: NoReturn,
    ) -> tuple[Tensor, StateSpaceState | None]:
        """The outputs of a sequence: `(y, final_state)`, with y of x's shape and dtype, contiguous.

        A mode has the pole λ = exp(log_decay + i·angle) and the residue R = residues[..., 0] +
        i·residues[..., 1], and stands for itself and its conjugate.  `log_decay` is at most 0.  A continuous
        system becomes that by `based_ops.layers.state_space.discretised`.  `skip` is D, 0 if None.  x has a
        dtype of the variant; the others are taken in float32, or in float64 if x has that.  Gradients flow to
        all tensors and from the final state, once.  Source: S4D (arXiv 2206.11893), equations 2 and 5; modal
        form as in Laughing Hyena (arXiv 2310.18780), section 3.

        Raises the errors of `based_ops.errors` before any kernel runs: on a CPU an `ArgumentValueError` for a
        `log_decay` above 0 or a pole that is NaN, which elsewhere would have to be waited for.

        `state_indices`, `cu_seqlens`, `attention_mask` and `batch_invariant` are as in a short convolution:
        states in slots of a pool, packed and padded sequences, and the same bits in any batch.
        """
        if foreign:
            refuse(StateSpaceVariant.__call__, tuple(foreign))
        tensors = self._inputs(x, log_decay, angle, residues, skip)
        given = (tensors, None, initial_state, output_final_state, backend, state_indices)
        return self._call(*given, cu_seqlens, attention_mask, batch_invariant)

    def step(
        self,
        x: Tensor,
        state: StateSpaceState,
        log_decay: Tensor,
        angle: Tensor,
        residues: Tensor,
        skip: Tensor | None = None,
        backend: str | None = None,
        state_indices: Tensor | None = None,
        **foreign: NoReturn,
    ) -> Tensor:
        """A few more tokens, T from 0 to 16: returns y of x's shape and updates `state` in place.

        It equals T steps of one token each, in one launch.  Not differentiable.  Raises the errors of
        `based_ops.errors` before any kernel runs; more tokens are a `ShapeError`, and a call's.

        With `state_indices`, int32 [B] on the device, `state` is a pool: sequence b has the state in slot
        `state_indices[b]`, and no other slot is read or changed.  -1 names no slot: nothing changes, and the
        output is 0.
        """
        if foreign:
            refuse(StateSpaceVariant.step, tuple(foreign))
        tensors = self._inputs(x, log_decay, angle, residues, skip)
        return self._step(tensors, None, state, backend, state_indices)

    def init_state(
        self,
        batch: int,
        units: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **foreign: NoReturn,
    ) -> StateSpaceState:
        """The state before the first token of so many channels (heads, where these share filters), for inputs
        of `dtype`; None is PyTorch's default.
        """
        if foreign:
            refuse(StateSpaceVariant.init_state, tuple(foreign))
        checks.sizes_of_state(self._facts(), batch, units, dtype, "units")
        state: StateSpaceState = self._form.zeros(batch, units, device, dtype, is_traced())
        return state

    def state_bytes(
        self, batch: int, units: int, dtype: torch.dtype | None = None, **foreign: NoReturn
    ) -> int:
        """Bytes of `init_state(batch, units, dtype=dtype)`."""
        if foreign:
            refuse(StateSpaceVariant.state_bytes, tuple(foreign))
        checks.sizes_of_state(self._facts(), batch, units, dtype, "units")
        return self._form.bytes(batch, units, dtype)

    def reference(
        self,
        x: Tensor,
        log_decay: Tensor,
        angle: Tensor,
        residues: Tensor,
        skip: Tensor | None = None,
        initial_state: StateSpaceState | None = None,
        output_final_state: bool = False,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **foreign: NoReturn,
    ) -> Any:
        """Naive mathematics in complex128: y, or (y, final_state) if `output_final_state`."""
        if foreign:
            refuse(StateSpaceVariant.reference, tuple(foreign))
        tensors = self._inputs(x, log_decay, angle, residues, skip)
        sizes = self._check_inputs(self, tensors)
        return self._naively(
            tensors, sizes, (), initial_state, output_final_state, cu_seqlens, attention_mask
        )

    def products(self, length: int, begun: bool = False, final: bool = False) -> float:
        """Of every mode of a channel four products with the pole and two with the residue."""
        return 12.0 * self.modes * self.spec.width * length

    def _inputs(self, x: Tensor, *parameters: Tensor | None) -> Tensors:
        """What the operators take: poles, residues and D in float32, or x's float64, side by side."""
        wide = torch.float64 if isinstance(x, Tensor) and x.dtype == torch.float64 else torch.float32
        floating = (isinstance(p, Tensor) and p.is_floating_point() for p in parameters)
        pairs = zip(parameters, floating, strict=True)
        return (x, *(p.to(wide).contiguous() if there and p is not None else p for p, there in pairs))

    def _check_inputs(self, facts: Any, tensors: Tensors, most: int | None = None) -> tuple[int, int, int]:
        sizes = checks.inputs(self.signature.inputs, facts, tensors, most)
        log_decay, angle = tensors[1:3]
        if facts is self or log_decay is None or angle is None or log_decay.device.type != "cpu":
            return sizes
        if not bool((log_decay <= 0).all()):
            unstable = log_decay[~(log_decay <= 0)][0].item()
            fail(ArgumentValueError, "log_decay", unstable, "log |λ| of stable poles, at most 0 and no NaN")
        if not bool(angle.isfinite().all()):
            wrong = angle[~angle.isfinite()][0].item()
            fail(ArgumentValueError, "angle", wrong, "finite, in radians a token")
        return sizes

    def _lay(self, tensors: Tensors, state: StateSpaceState | None, sequences: Tensor) -> packed.Laid:
        """Packed sequences, and the states before them, as the operator takes them."""
        carried = self._no_carry if state is None else tuple(state)
        return packed.Laid(tensors, carried, sequences, (sequences,))

    def _take(self, laid: packed.Laid, final: Sequence[Tensor], initial_state: StateSpaceState | None) -> Any:
        """The states after packed sequences, of which the operator left `final`."""
        return self._leave(laid.tensors, final, initial_state, 0)

    def _reference(
        self, tensors: Tensors, numbers: tuple[float, ...], initial_state: Any
    ) -> tuple[Tensor, StateSpaceState]:
        from ..reference.state_space import state_space

        x, log_decay, angle, residues, skip = tensors
        state = None if initial_state is None else initial_state.modes
        y, modes = state_space(self.spec, x, log_decay, angle, residues, skip, state)  # type: ignore[arg-type]
        return y, StateSpaceState(modes)


VARIANT = StateSpaceVariant
