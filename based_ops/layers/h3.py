"""H3: a shift register and a diagonal state space between three projections."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..checks import count, no_gradient
from ..errors import ShapeError, StateError, fail
from ..mixers.state_space import StateSpaceState
from .long_conv import fits, variant_of, widely


class H3State(NamedTuple):
    """The last keys, [B,state,d_model] with the newest last, and the diagonal model's [B,state/2,d_model,2].

    Examples:
        >>> from based_ops.layers import H3
        >>> H3(8, state=4).init_state(1).keys.shape
        torch.Size([1, 4, 8])
    """

    keys: Tensor
    modes: Tensor


class H3(nn.Module):
    """y = out_proj(q · diag(shift(k) · v)), with two state-space models (arXiv 2212.14052, section 3).

    Heads are one wide.  The shift model is a filter of `state` taps, on a variant of the mixer long_conv.
    The diagonal one has `state`/2 complex numbers, of S4D-Lin, λ_n = -½ + iπn, with steps Δ of 0.001 to 0.1
    (arXiv 2206.11893), and runs on the variant of the mixer state_space that has as many.

    Args:
        d_model: Width of x and of the result.
        state: Taps of the shift model, twice the complex numbers of the diagonal one.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ArgumentValueError: a number is below 1.
        ShapeError: `state` is odd.

    Examples:
        >>> import torch
        >>> from based_ops.layers import H3
        >>> layer = H3(8, state=4)
        >>> y, state = layer(torch.randn(1, 20, 8), output_state=True)  # [B, T, d_model]
        >>> with torch.no_grad():
        ...     layer.step(torch.randn(1, 1, 8), state).shape
        torch.Size([1, 1, 8])
    """

    def __init__(
        self,
        d_model: int,
        state: int = 64,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        from based_ops.codegen.mixers.state_space import StateSpace

        from ..jit import meaning

        super().__init__()
        count("d_model", d_model, 1)
        count("state", state, 2)
        if state % 2:
            fail(ShapeError, "state", state, "even: it holds complex numbers")
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.d_model, self.state = d_model, state
        self.op: Any = meaning(StateSpace(f"h3_n{state}", state))
        self.shifts: Any = variant_of()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(d_model, d_model, **made) for _ in range(4)
        )
        self.shift = nn.Parameter(torch.randn(d_model, state, **made) / math.sqrt(state))
        self.shift_skip = nn.Parameter(torch.randn(d_model, **made))
        half = d_model, state // 2
        self.log_step = nn.Parameter(torch.empty(d_model, **made).uniform_(math.log(1e-3), math.log(1e-1)))
        self.log_decay = nn.Parameter(torch.full(half, math.log(0.5), **made))
        frequency = math.pi * torch.arange(half[1], **made)
        self.frequency = nn.Parameter(frequency.expand(half).clone())
        self.read = nn.Parameter(torch.randn(*half, 2, **made) * 0.5**0.5)
        self.skip = nn.Parameter(torch.randn(d_model, **made))

    def forward(
        self, x: Tensor, state: H3State | None = None, output_state: bool = False
    ) -> tuple[Tensor, H3State | None]:
        """x [B,T,d_model] to (y of the same shape, the state after x or None unless `output_state`)."""
        fits(self, x, self.d_model)
        begun = None if state is None else self._checked(state, x)
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        before = k.new_zeros(len(k), self.state, self.d_model) if begun is None else begun.keys.to(k.dtype)
        modes = None if begun is None else StateSpaceState(begun.modes)
        entering, keys = self._shifted(before, k, v)
        read, final = self.op(entering, *self._modes(), modes, output_state)
        return self.out_proj(q * read), H3State(keys, final.modes) if output_state else None

    def step(self, x: Tensor, state: H3State) -> Tensor:
        """Up to 16 tokens, [B,T,d_model] to the same shape; updates `state` in place.  Not differentiable."""
        fits(self, x, self.d_model)
        begun = self._checked(state, x)
        if torch.is_grad_enabled():
            no_gradient(("x", "state.modes"), (x, begun.modes))
        with torch.no_grad():
            q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
            entering, keys = self._shifted(begun.keys.to(k.dtype), k, v)
            read = self.op.step(entering, StateSpaceState(begun.modes), *self._modes())
            begun.keys.copy_(keys)
            found: Tensor = self.out_proj(q * read)
            return found

    def init_state(self, batch: int) -> H3State:
        """The state before the first token, on the layer's device and for its dtype."""
        count("batch", batch, 0)
        keys = self.shift.new_zeros(batch, self.state, self.d_model)
        return H3State(keys, self.op.init_state(batch, self.d_model, keys.device, keys.dtype).modes)

    def state_bytes(self, batch: int) -> int:
        """Bytes of the state of `batch` sequences, whatever their length."""
        count("batch", batch, 0)
        keys = batch * self.state * self.d_model * self.shift.element_size()
        return keys + int(self.op.state_bytes(batch, self.d_model, self.shift.dtype))

    def _shifted(self, before: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """shift(k) · v, [B,T,d_model], of keys that follow on `before`; and the last keys of both."""
        every = torch.cat([before, k], 1)
        with widely(k):
            shifted, _ = self.shifts(every, self.shift.t(), self.shift_skip)
        return shifted[:, self.state :] * v, every[:, k.shape[1] :]

    def _modes(self) -> tuple[Tensor, ...]:
        """log |λ|, angle and residues of the diagonal model by zero-order hold, and what passes it by."""
        wide = torch.promote_types(self.read.dtype, torch.float32)
        with widely(self.read):
            pole = torch.complex(-self.log_decay.to(wide).exp(), self.frequency.to(wide))
            log_pole = pole * self.log_step.to(wide).exp().unsqueeze(-1)
            residues = torch.view_as_complex(self.read.to(wide)) * torch.expm1(log_pole) / pole
        real = torch.view_as_real(residues).transpose(0, 1)
        return log_pole.real.t(), log_pole.imag.t(), real, self.skip.to(wide)

    def _checked(self, state: H3State, x: Tensor) -> H3State:
        if not isinstance(state, H3State):
            fail(StateError, "state", type(state).__name__, "an H3State, as this layer returns it")
        wanted = (len(x), self.state, self.d_model), (len(x), self.state // 2, self.d_model, 2)
        for name, part, shape in zip(H3State._fields, state, wanted, strict=True):
            if tuple(part.shape) != shape:
                fail(StateError, f"state.{name}", tuple(part.shape), f"of shape {shape}")
        return state
