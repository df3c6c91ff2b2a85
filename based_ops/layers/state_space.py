"""S4D as a layer (arXiv 2206.11893): a continuous diagonal system for each channel, in steps of Δ."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, glu

from ..checks import count, sizes
from ..errors import ArgumentTypeError, ArgumentValueError, ShapeError, fail
from ..hippo import poles as hippo_poles
from ..mixers.state_space import StateSpaceState, StateSpaceVariant
from ..registry import get
from ..variant import Variant
from .long_conv import widely

STEPS = (1e-3, 1e-1)
"""Between which Δ lies in a new layer, uniformly in its logarithm."""


def discretised(
    rule: str, log_decay: Tensor, frequency: Tensor, residues: Tensor, log_step: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """log |λ|, the angle of λ and the residues C B̄ of x' = A x + B u in steps of Δ.

    A = -exp(log_decay) + i·frequency and log Δ broadcast to a shape [...]; residues [..., 2] are those of the
    continuous system, C B.  `zoh` holds the input for a step: λ = exp(Δ A), B̄ = (λ - 1)/A · B.  `bilinear` is
    Tustin's rule: λ = (1 + ΔA/2)/(1 - ΔA/2), B̄ = Δ/(1 - ΔA/2) · B (arXiv 2206.11893, table 1).  No pole is
    outside of the circle, and small Δ cancel nothing.
    """
    step = log_step.exp()
    decay, turn = log_decay.exp() * step, frequency * step  # -Re ΔA and Im ΔA
    if rule == "zoh":
        log, angle = -decay, turn
        # exp(ΔA) - 1 by parts, as expm1 of a complex number is not to be had everywhere.
        size, half = (-decay).exp(), (turn / 2).sin()
        change = torch.expm1(-decay) * turn.cos() - 2 * half * half, size * turn.sin()
        square = decay * decay + turn * turn
        factor = _product(change, (-decay / square * step, -turn / square * step))
    elif rule == "bilinear":
        x, y = -decay / 2, turn / 2
        square = (1 - x) ** 2 + y * y
        log, angle = torch.log1p(4 * x / square) / 2, torch.atan2(2 * y, 1 - x * x - y * y)
        factor = (1 - x) / square * step, y / square * step
    else:
        fail(ArgumentValueError, "rule", repr(rule), "zoh or bilinear")
    return log, angle, torch.stack(_product(residues.unbind(-1), factor), -1)


def _product(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """That of complex numbers given by their parts."""
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


class StateSpace(nn.Module):
    """y = GLU(W gelu(S4D(x)) + b): a diagonal state space for each channel or head, then they mix.

    `variant` is a variant of the mixer state_space, or the name of one; its spec's `basis` says where poles
    A begin (`based_ops.hippo.poles`), `discretization` how Δ enters, and without `trainable` poles, Δ and
    residues are buffers.  Δ is log-uniform between `steps`; the residues C B are complex normal, of variance
    1 (B is 1, since only the product counts); D is normal.  They are of float32 in a layer of any dtype: a
    pole in half precision is another one.  `timescales` names what learns slowly and does not decay: see
    `based_ops.layers.parameter_groups`.  Without `mix` the layer is the state space alone.

    Args:
        d_model: Width of x and of the result.
        variant: A state_space variant, or the name of one.
        steps: Between which Δ begins, in the units of a token.
        mix: Whether channels mix after it.
        device: Of the parameters.
        dtype: Of the parameters that mix.

    Raises:
        ArgumentTypeError: `variant` is of another mixer.
        ArgumentValueError: channels that share a filter do not divide `d_model`, or `steps` are none.
        UnknownVariant: there is none of that name.

    Examples:
        >>> import torch
        >>> from based_ops.layers import StateSpace
        >>> layer = StateSpace(64)
        >>> y, state = layer(torch.randn(1, 10, 64), output_state=True)  # [B, T, d_model]
        >>> with torch.no_grad():
        ...     y = layer.step(torch.randn(1, 1, 64), state)
        >>> y.shape
        torch.Size([1, 1, 64])
    """

    timescales = ("log_step", "log_decay", "frequency")

    def __init__(
        self,
        d_model: int,
        variant: Variant[StateSpaceState] | str = "s4d_n64",
        steps: tuple[float, float] = STEPS,
        mix: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        count("d_model", d_model, 1)
        op = variant if isinstance(variant, Variant) else get(variant)
        if not isinstance(op, StateSpaceVariant):
            fail(ArgumentTypeError, "variant", f"{op.name}, a {op.spec.mixer}", "a state_space")
        spec = op.spec
        if d_model % spec.width:
            what = f"a multiple of {spec.width}, the channels that share a filter of {op.name}"
            fail(ArgumentValueError, "d_model", d_model, what)
        least, most = steps
        if not 0 < least <= most < math.inf:
            fail(ArgumentValueError, "steps", steps, "two positive numbers, the smaller one first")
        self.d_model, self.op, self.units = d_model, op, d_model // spec.width
        wide = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)
        made: dict[str, Any] = {"device": device, "dtype": wide}
        shape = op.modes, self.units
        found = hippo_poles(spec.basis, spec.order)
        begin = {
            "log_step": torch.empty(self.units, **made).uniform_(math.log(least), math.log(most)),
            "log_decay": (-found.real).log().to(**made).unsqueeze(1).repeat(1, self.units),
            "frequency": found.imag.to(**made).unsqueeze(1).repeat(1, self.units),
            "residues": torch.randn(*shape, 2, **made) * 0.5**0.5,
        }
        for name, x in begin.items():
            if spec.trainable:
                self.register_parameter(name, nn.Parameter(x))
            else:
                self.register_buffer(name, x)
        self.skip = nn.Parameter(torch.randn(d_model, **made))
        self.mix = nn.Linear(d_model, 2 * d_model, device=device, dtype=dtype) if mix else None

    def filters(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """log |λ|, angle, residues and D as the variant takes them."""
        log_step, log_decay, frequency, residues = (
            getattr(self, name) for name in ("log_step", "log_decay", "frequency", "residues")
        )
        skip = self.skip.unflatten(0, (self.units, -1)) if self.op.spec.shared else self.skip
        with widely(self.skip):
            found = discretised(self.op.spec.discretization, log_decay, frequency, residues, log_step)
        return *found, skip

    def forward(
        self,
        x: Tensor,
        state: StateSpaceState | None = None,
        output_state: bool = False,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, StateSpaceState | None]:
        """x [B,T,d_model] to (y of the same shape, the state after x or None unless `output_state`).

        `cu_seqlens` [N+1] or `attention_mask` [B,T] tell sequences apart, as in calls of the variant.
        """
        sequences: dict[str, Any] = {"cu_seqlens": cu_seqlens, "attention_mask": attention_mask}
        given = self._by_units(x)
        y, final = self.op(given, *self.filters(), state, output_state, **sequences)
        return self._mixed(y.reshape(x.shape)), final

    def step(self, x: Tensor, state: StateSpaceState, state_indices: Tensor | None = None) -> Tensor:
        """Up to 16 tokens, [B,T,d_model] to the same shape; updates `state` in place.  Not differentiable.

        With `state_indices`, int32 [B], `state` is a pool of which they name the slots, -1 none.
        """
        y = self.op.step(self._by_units(x), state, *self.filters(), state_indices=state_indices)
        return self._mixed(y.reshape(x.shape))

    def init_state(self, batch: int) -> StateSpaceState:
        """The state before the first token, on the layer's device and for its dtype."""
        return self.op.init_state(batch, self.units, self.skip.device, self.skip.dtype)

    def state_bytes(self, batch: int) -> int:
        """Bytes of the state of `batch` sequences, whatever their length."""
        return self.op.state_bytes(batch, self.units, self.skip.dtype)

    def extra_repr(self) -> str:
        return f"{self.d_model}, variant={self.op.name}, mix={self.mix is not None}"

    def _by_units(self, x: Tensor) -> Tensor:
        if x.dim() != 3 or x.shape[2] != self.d_model:
            fail(ShapeError, "x", sizes(x), f"of shape [B, T, {self.d_model}]")
        return x.unflatten(2, (self.units, -1)) if self.op.spec.shared else x

    def _mixed(self, y: Tensor) -> Tensor:
        return y if self.mix is None else glu(self.mix(gelu(y)), dim=-1)
