"""Layers about a long convolution: Hyena, MultiHyena, and BaseConv."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from ..checks import count
from ..errors import ShapeError, StateError, fail
from ..mixers.short_conv import ShortConv, ShortConvState
from ..state_base import State
from ..variant import Variant
from .long_conv import MOST, ImplicitConv, fits
from .modal import ModalConv
from .relaxed import LongConvState

ConvState: TypeAlias = ShortConvState | LongConvState
"""Of a short convolution, or of one as long as the sequence."""


class HyenaState(NamedTuple):
    """What `Hyena` and `MultiHyena` keep between calls: of the short convolution, and of the long one.

    Examples:
        >>> from based_ops.layers import Hyena
        >>> Hyena(8, length=32, conv="conv4_plain").init_state(batch=2).short.nbytes
        576
    """

    short: ShortConvState
    long: Any


class Hyena(nn.Module):
    """[a, b, v] = conv(in_proj(x)); y = out_proj(b · long(a · v)): Hyena of order 2 (arXiv 2302.10866).

    Args:
        d_model: Width of x and of the result.
        length: Tokens that the long filter is long.
        conv: A short_conv variant, or the name of one; in the paper three taps without an activation.
        order: Of the implicit filter, see `ImplicitConv`.
        groups: Of the implicit filter, see `ImplicitConv`.
        modes: Pairs of poles of each filter, see `ModalConv`; 0 means an implicit filter.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ArgumentTypeError: `conv` is of another mixer.
        ArgumentValueError: a number is below 1.

    Examples:
        >>> import torch
        >>> from based_ops.layers import Hyena
        >>> layer = Hyena(8, length=32, conv="conv4_plain")
        >>> state = layer.init_state(batch=1, most=32)  # room for so many tokens
        >>> with torch.no_grad():
        ...     y, state = layer(torch.randn(1, 20, 8), state, output_state=True)  # [B, T, d_model]
        ...     y = layer.step(torch.randn(1, 1, 8), state)
        >>> y.shape
        torch.Size([1, 1, 8])
    """

    @property
    def grows(self) -> bool:
        """Whether the state grows with the tokens, as that of a filter does and that of poles does not."""
        return bool(self.long.grows)

    def __init__(
        self,
        d_model: int,
        length: int,
        conv: Variant[State] | str,
        order: int = 64,
        groups: int = 1,
        modes: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """`conv` is a short_conv variant, in the paper three taps without an activation.

        With `modes` each filter is a state space of so many pairs of poles, see `ModalConv`.
        """
        super().__init__()
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self._project(d_model, conv, made)
        self.long: Any
        if modes:
            self.long = ModalConv(d_model, modes, **made)
        else:
            self.long = ImplicitConv(d_model, length, order, groups=groups, **made)

    def _project(self, d_model: int, conv: Variant[State] | str, made: dict[str, Any]) -> None:
        count("d_model", d_model, 1)
        self.d_model = d_model
        self.in_proj = nn.Linear(d_model, 3 * d_model, **made)
        self.short = ShortConv(3 * d_model, conv, **made)
        self.out_proj = nn.Linear(d_model, d_model, **made)

    def forward(
        self,
        x: Tensor,
        state: HyenaState | None = None,
        output_state: bool = False,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, HyenaState | None]:
        """x [B,T,d_model] to (y of the same shape, the state after x or None unless `output_state`).

        A sequence is no longer than the filter, the tokens before included; a state must have room for x.
        `cu_seqlens` [N+1] or `attention_mask` [B,T] tell sequences apart, see `LongConv`.
        """
        apart: dict[str, Any] = {"cu_seqlens": cu_seqlens, "attention_mask": attention_mask}
        whole = cu_seqlens is None and attention_mask is None
        fits(self, x, self.d_model, self.long.length if self.grows and whole else None)
        short, long = self._parts(state) if state is not None else (None, None)
        mixed, short = self.short(self.in_proj(x), short, output_state, None, cu_seqlens, attention_mask)
        y, long = self._mix(mixed, lambda u, gate: self.long(u, long, output_state, gate, **apart))
        return self.out_proj(y), HyenaState(short, long) if output_state else None

    def step(self, x: Tensor, state: HyenaState, state_indices: Tensor | None = None) -> Tensor:
        """Up to 16 tokens, [B,T,d_model] to the same shape; updates `state` in place.  Not differentiable.

        With `state_indices`, int32 [B], `state` is a pool of which they name the slots, -1 none.
        """
        fits(self, x, self.d_model)
        short, long = self._parts(state)
        mixed = self.short.step(self.in_proj(x), short, None, state_indices)
        y, _ = self._mix(mixed, lambda u, gate: (self.long.step(u, long, gate, state_indices), None))
        found: Tensor = self.out_proj(y)
        return found

    def init_state(self, batch: int, most: int = MOST) -> HyenaState:
        """The state before the first of up to `most` tokens, on the layer's device and for its dtype."""
        return HyenaState(self.short.init_state(batch), self.long.init_state(batch, most))

    def state_bytes(self, batch: int, most: int = MOST) -> int:
        """Bytes of such a state."""
        return self.short.state_bytes(batch) + int(self.long.state_bytes(batch, most))

    @property
    def records(self) -> bool:
        """Whether a step is the same kernels at any token; the blocks of a filter depend on the number."""
        return not self.long.grows

    def with_room(self, state: HyenaState, least: int, most: int = 0) -> HyenaState:
        """The state with memory for `least` tokens or more; where it has to grow, for `most` at once."""
        short, long = self._parts(state)
        return HyenaState(short, long.with_room(least, most))

    def _mix(self, mixed: Tensor, long: Any) -> tuple[Tensor, Any]:
        a, b, v = mixed.chunk(3, dim=-1)
        y, state = long(a * v, b)
        return y, state

    def _parts(self, state: Any) -> HyenaState:
        if not isinstance(state, HyenaState):
            fail(StateError, "state", type(state).__name__, "a HyenaState, as this layer returns it")
        return state


class MultiHyena(Hyena):
    """One filter a head: y = out_proj(q · long(k ⊗ v)) with the products of each head's k and v.

    The N² channels of a head of width N share its filter, so there are `heads` filters instead of d_model
    (Laughing Hyena, arXiv 2310.18780, section 4).

    Args:
        d_model: Width of x and of the result.
        heads: Filters, each shared by the products of a head's channels.
        length: Tokens that the long filters are long.
        conv: A short_conv variant, or the name of one.
        order: Of the implicit filters, see `ImplicitConv`.
        modes: Pairs of poles of each filter, see `ModalConv`; 0 means implicit filters.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ArgumentTypeError: `conv` is of another mixer.
        ShapeError: `heads` divides `d_model` not.

    Examples:
        >>> import torch
        >>> from based_ops.layers import MultiHyena
        >>> y, _ = MultiHyena(8, heads=2, length=32, conv="conv4_plain")(torch.randn(1, 20, 8))
        >>> y.shape
        torch.Size([1, 20, 8])
    """

    def __init__(
        self,
        d_model: int,
        heads: int,
        length: int,
        conv: Variant[State] | str,
        order: int = 64,
        modes: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self._project(d_model, conv, made)
        count("heads", heads, 1)
        if d_model % heads:
            fail(ShapeError, "d_model", d_model, f"a multiple of heads, {heads}")
        self.heads, self.width = heads, d_model // heads
        share = self.width**2
        if modes:
            self.long = ModalConv(heads, modes, share, **made)
        else:
            self.long = ImplicitConv(heads, length, order, share=share, **made)

    def _mix(self, mixed: Tensor, long: Any) -> tuple[Tensor, Any]:
        q, k, v = (x.unflatten(-1, (self.heads, self.width)) for x in mixed.chunk(3, dim=-1))
        products = (k.unsqueeze(-1) * v.unsqueeze(-2)).flatten(-3)
        y, state = long(products, None)
        y = y.unflatten(-1, (self.heads, self.width, self.width))
        return torch.einsum("...k,...kv->...v", q, y).flatten(-2), state

    def extra_repr(self) -> str:
        return f"heads={self.heads}"


class BaseConv(nn.Module):
    """y = conv(x) · proj(x) + x (Zoology, arXiv 2312.04927, section 5).

    The convolution is that of a short_conv `variant`, or with `length` instead an implicit filter for so many
    tokens.

    Args:
        d_model: Width of x and of the result.
        variant: A short_conv variant, or the name of one; None for an implicit filter.
        length: Tokens that the implicit filter is long.
        order: Of the implicit filter, see `ImplicitConv`.
        groups: Of the implicit filter, see `ImplicitConv`.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ShapeError: both or neither of `variant` and `length` are given.

    Examples:
        >>> import torch
        >>> from based_ops.layers import BaseConv
        >>> y, _ = BaseConv(8, length=32)(torch.randn(1, 20, 8))
        >>> y.shape
        torch.Size([1, 20, 8])
    """

    def __init__(
        self,
        d_model: int,
        variant: Variant[State] | str | None = None,
        length: int | None = None,
        order: int = 16,
        groups: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        count("d_model", d_model, 1)
        if (variant is None) == (length is None):
            fail(ShapeError, "length", length, "given, unless a variant is")
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.d_model = d_model
        self.projection = nn.Linear(d_model, d_model, **made)
        self.conv: ShortConv | ImplicitConv
        if variant is not None:
            self.conv = ShortConv(d_model, variant, **made)
        else:
            self.conv = ImplicitConv(d_model, length or 0, order, groups=groups, **made)
        self.grows = isinstance(self.conv, ImplicitConv)

    def forward(
        self, x: Tensor, state: ConvState | None = None, output_state: bool = False
    ) -> tuple[Tensor, ConvState | None]:
        """x [B,T,d_model] to (y of the same shape, the state after x or None unless `output_state`)."""
        fits(self, x, self.d_model)
        y, final = self.conv(x, state, output_state)
        return y * self.projection(x) + x, final

    def step(self, x: Tensor, state: ConvState, state_indices: Tensor | None = None) -> Tensor:
        """A few more tokens, [B,T,d_model] to the same shape; updates `state` in place."""
        fits(self, x, self.d_model)
        conv: Any = self.conv  # whose states are those of its kind
        found: Tensor = conv.step(x, state, None, state_indices) * self.projection(x) + x
        return found

    def init_state(self, batch: int, most: int = MOST) -> ConvState:
        """The state of the convolution before the first of up to `most` tokens."""
        return self.conv.init_state(batch, *((most,) if self.grows else ()))

    def state_bytes(self, batch: int, most: int = MOST) -> int:
        """Bytes of such a state."""
        return self.conv.state_bytes(batch, *((most,) if self.grows else ()))
