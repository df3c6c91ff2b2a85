"""S4 as a layer (arXiv 2111.00396): a state matrix that is normal but for a term of rank one.

A = Λ - P P*.  Its eigenvectors as HiPPO's LegS has it are conditioned as badly as 2^(4N/3), in this basis as
in any that is orthogonal (lemma 3.2 there).  So the kernel is found without them, by its generating function,
and a step uses A itself.  Matrices that are no longer HiPPO's can have good ones: `diagonal` says so.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, glu

from ..checks import count, no_gradient
from ..errors import ArgumentValueError, StateError, fail
from ..hippo import normal_plus_low_rank
from .long_conv import fits, variant_of, widely
from .modal import ModalConv, modal_filters
from .state_space import STEPS

ALIASED = 1e-9
"""What is left, in a kernel, of the tap that lies twice its length later."""
FLAT = 1e-6
"""Imaginary parts below this are of poles without a conjugate."""


class S4State(NamedTuple):
    """The upper half of conjugate pairs, [B,N/2,d_model,2] as real and imaginary parts.

    Examples:
        >>> from based_ops.layers import S4
        >>> S4(16, order=8).init_state(1).modes.shape
        torch.Size([1, 4, 16, 2])
    """

    modes: Tensor


class S4(nn.Module):
    """y = GLU(W gelu(S4(x)) + b): a state space of `order` N for each channel, then channels mix.

    x' = (Λ - P P*) x + B u, y = C x + D u, in steps of Δ by the bilinear rule.  Λ, P and B begin as those of
    HiPPO's `basis`, C complex normal, Δ log-uniform between `steps`.  P is tied to itself, so A is stable
    (SaShiMi, arXiv 2202.09729, section 3.1).  Parameters but the mixing ones are in float32 at least;
    `timescales` learn slowly and do not decay.  Without `mix` the layer is the state space alone.

    Raises `ArgumentValueError` for an odd order, and for a basis whose correction has another rank than one
    or whose poles are not all conjugate pairs.

    Args:
        d_model: Width of x and of the result.
        order: N, real numbers of a channel's state; even.
        basis: One of HiPPO's, of a correction of rank one, such as `legs`.
        steps: Between which Δ begins, in the units of a token.
        mix: Whether channels mix after it.
        device: Of the parameters.
        dtype: Of the parameters that mix.

    Raises:
        ArgumentValueError: a number or the basis is none that it can have.

    Examples:
        >>> import torch
        >>> from based_ops.layers import S4
        >>> layer = S4(64, order=8)
        >>> y, state = layer(torch.randn(1, 10, 64), output_state=True)  # [B, T, d_model]
        >>> with torch.no_grad():
        ...     y = layer.step(torch.randn(1, 1, 64), state)
        >>> y.shape
        torch.Size([1, 1, 64])
    """

    timescales = ("log_step", "log_decay", "frequency", "p", "b")

    def __init__(
        self,
        d_model: int,
        order: int = 64,
        basis: str = "legs",
        steps: tuple[float, float] = STEPS,
        mix: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        count("d_model", d_model, 1)
        count("order", order, 2)
        if order % 2:
            fail(ArgumentValueError, "order", order, "even: poles come in conjugate pairs")
        least, most = steps
        if not 0 < least <= most < math.inf:
            fail(ArgumentValueError, "steps", steps, "two positive numbers, the smaller one first")
        found = normal_plus_low_rank(basis, order)
        upper = slice(order // 2, None)
        if found.p.shape[1] != 1 or bool((found.poles.imag[upper] < FLAT).any()):
            what = "a basis with a correction of rank one and conjugate pairs of poles, such as legs"
            fail(ArgumentValueError, "basis", basis, what)
        wide = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)
        made: dict[str, Any] = {"device": device, "dtype": wide}
        self.d_model, self.order, self.basis = d_model, order, basis
        self.op: Any = variant_of()

        def every(x: Tensor) -> nn.Parameter:
            """The same for each channel: [N/2, d_model], and parts of complex numbers."""
            parts = torch.view_as_real(x) if x.is_complex() else x
            return nn.Parameter(parts.to(**made).unsqueeze(1).repeat(1, d_model, *[1] * (parts.dim() - 1)))

        log_step = torch.empty(d_model, **made).uniform_(math.log(least), math.log(most))
        self.log_step = nn.Parameter(log_step)
        self.log_decay = every((-found.poles.real[upper]).log())
        self.frequency = every(found.poles.imag[upper])
        self.p, self.b = every(found.p[upper, 0]), every(found.b[upper])
        self.c = nn.Parameter(torch.randn(order // 2, d_model, 2, **made) * 0.5**0.5)
        self.skip = nn.Parameter(torch.randn(d_model, **made))
        self.mix = nn.Linear(d_model, 2 * d_model, device=device, dtype=dtype) if mix else None

    def filters(self, length: int) -> Tensor:
        """K_l = C Ā^l B̄ for l < length, [T,d_model], in float64.

        Its generating function is read on a circle that is a little smaller than that of unity, so that taps
        beyond twice the length, which it has too, have nothing left; (Λ - P P*)⁻¹ is Woodbury's
        (arXiv 2111.00396, lemma C.3 and theorem 3).
        """
        poles, p, b, c = self._complex()
        points = 2 * length
        radius = ALIASED ** (1 / points)
        turns = torch.arange(length + 1, device=poles.device, dtype=torch.float64) / points
        z = torch.polar(torch.full_like(turns, radius), -2 * math.pi * turns).unsqueeze(1)  # [K,1]
        g = 2 * (1 - z) / (1 + z) / self.log_step.double().exp()  # [K,D]

        def cauchy(weight: Tensor) -> Tensor:
            """Σ over all poles, of which the lower half are conjugates: [K,D]."""
            upper = weight / (g.unsqueeze(1) - poles)
            return (upper + weight.conj() / (g.unsqueeze(1) - poles.conj())).sum(1)

        of_both = cauchy(c * p) * cauchy(p.conj() * b) / (1 + cauchy(p.conj() * p))
        spectrum = 2 / (1 + z) * (cauchy(c * b) - of_both)
        ages = torch.arange(length, device=poles.device, dtype=torch.float64)
        return torch.fft.irfft(spectrum, points, dim=0)[:length] * radius ** -ages.unsqueeze(1)

    def forward(
        self, x: Tensor, state: S4State | None = None, output_state: bool = False
    ) -> tuple[Tensor, S4State | None]:
        """x [B,T,d_model] to (y of the same shape, the state after x or None unless `output_state`).

        From no state outputs are a convolution of the mixer long_conv; a state is found, and gone on from,
        token by token.
        """
        fits(self, x, self.d_model)
        with widely(x):
            if state is None and not output_state and x.shape[1]:
                y, _ = self.op(x, self.filters(x.shape[1]), self.skip)
                return self._mixed(y), None
            modes = self.init_state(x.shape[0]).modes if state is None else self._checked(state, x).modes
            y, last = self._walk(x, torch.view_as_complex(modes.double()))
        final = S4State(torch.view_as_real(last).to(self.skip.dtype)) if output_state else None
        return self._mixed(y), final

    def step(self, x: Tensor, state: S4State) -> Tensor:
        """A few tokens, [B,T,d_model] to the same shape; updates `state` in place.  Not differentiable."""
        fits(self, x, self.d_model)
        if torch.is_grad_enabled():
            no_gradient(("x", "state.modes"), (x, self._checked(state, x).modes))
        with torch.no_grad(), widely(x):
            y, last = self._walk(x, torch.view_as_complex(self._checked(state, x).modes.double()))
            state.modes.copy_(torch.view_as_real(last))
            return self._mixed(y)

    def init_state(self, batch: int) -> S4State:
        """The state before the first token, on the layer's device and for its dtype."""
        count("batch", batch, 0)
        return S4State(self.skip.new_zeros(batch, self.order // 2, self.d_model, 2))

    def state_bytes(self, batch: int) -> int:
        """Bytes of the state of `batch` sequences, whatever their length."""
        count("batch", batch, 0)
        return batch * self.order * self.d_model * self.skip.element_size()

    def diagonal(self, length: int = 2048, within: float = 1e-6) -> ModalConv:
        """The state space alone as a diagonal recurrence: poles and residues of the bilinear rule's Ā.

        They are found from the eigenvectors of Ā in complex128.  New layers have none that would do at orders
        above 8; a layer that has learned may.  Each channel's filter is compared with `filters(length)`.

        Args:
            length: Taps that are compared.
            within: How far a filter may be off, as a part of its norm.

        Raises:
            ArgumentValueError: a filter is further off.

        Examples:
            >>> from based_ops.layers import S4
            >>> S4(4, order=4).diagonal().modes
            2
        """
        with torch.no_grad():
            poles, residues = self._modal()
            wanted = self.filters(length)
            found = modal_filters(poles.log(), residues, length).t()
            error = float(((found - wanted).norm(dim=0) / wanted.norm(dim=0)).nan_to_num(torch.inf).max())
        if error > within:
            what = f"of filters off by {within:g} at most: their eigenvectors are conditioned too badly"
            fail(ArgumentValueError, "diagonal", f"filters off by {error:.1e}", what)
        return ModalConv.of(poles, residues, self.skip.detach())

    def _modal(self) -> tuple[Tensor, Tensor]:
        """Poles in the upper half and their residues, [d_model, N/2 or more]; real poles have half of theirs,
        and what is left of a row are poles without any.
        """
        diagonal, p, b, c = (torch.cat([x, x.conj()]).t() for x in self._complex())
        step = self.log_step.double().exp().view(-1, 1, 1)
        matrix = torch.diag_embed(diagonal) - p.unsqueeze(2) * p.conj().unsqueeze(1)
        one = torch.eye(self.order, dtype=matrix.dtype, device=matrix.device)
        both = torch.cat([one + step / 2 * matrix, step * b.unsqueeze(2)], 2)
        turned, given = torch.linalg.solve(one - step / 2 * matrix, both).split([self.order, 1], 2)
        poles, vectors = torch.linalg.eig(turned)
        residues = (c.unsqueeze(1) @ vectors).squeeze(1) * torch.linalg.solve(vectors, given).squeeze(2)
        real = poles.imag.abs() < FLAT * poles.abs()
        kept = real | (poles.imag > 0)
        residues = torch.where(real, residues / 2, residues) * kept
        order = torch.argsort((~kept).int(), dim=1, stable=True)[:, : int(kept.sum(1).max())]
        poles = torch.where(kept, poles, torch.full_like(poles, 0.5))
        return poles.gather(1, order), residues.gather(1, order)

    def extra_repr(self) -> str:
        return f"{self.d_model}, order={self.order}, basis={self.basis!r}, mix={self.mix is not None}"

    def _complex(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Λ, P, B and C of the upper half, complex128 [N/2,d_model]."""
        poles = torch.complex(-self.log_decay.double().exp(), self.frequency.double())
        p, b, c = (torch.view_as_complex(x.double()) for x in (self.p, self.b, self.c))
        return poles, p, b, c

    def _walk(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs of a state space alone, token by token, and the state after them.

        x_t = (2/Δ - A)⁻¹ ((2/Δ + A) x_{t-1} + 2 B u_t), in N multiplications a few times (arXiv 2111.00396,
        appendix C.2).
        """
        poles, p, b, c = self._complex()
        rate = 2 * (-self.log_step.double()).exp()
        inverse = 1 / (rate - poles)
        owed = inverse * p / (1 + _both(p.conj() * inverse * p))
        found = []
        for token in x.double().unbind(1):
            turned = (rate + poles) * state - p * _both(p.conj() * state)
            given = inverse * (turned + 2 * b * token.unsqueeze(1))
            state = given - owed * _both(p.conj() * given)
            found.append(_both(c * state).squeeze(1) + self.skip * token)
        y = torch.stack(found, 1) if found else x.double()
        return y.to(x.dtype), state

    def _checked(self, state: S4State, x: Tensor) -> S4State:
        wanted = (x.shape[0], self.order // 2, self.d_model, 2)
        if not isinstance(state, S4State):
            fail(StateError, "state", type(state).__name__, "an S4State, as this layer returns it")
        if tuple(state.modes.shape) != wanted:
            fail(StateError, "state.modes", tuple(state.modes.shape), f"of shape {wanted}")
        return state

    def _mixed(self, y: Tensor) -> Tensor:
        return y if self.mix is None else glu(self.mix(gelu(y)), dim=-1)


def _both(x: Tensor) -> Tensor:
    """The sum over poles and their conjugates: [..., N/2, D] to [..., 1, D], real."""
    return 2 * x.real.sum(-2, keepdim=True)
