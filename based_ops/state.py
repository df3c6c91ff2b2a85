"""Recurrent states: what a mixer keeps of the past.  They are pytrees, so compile and export take them.

What all of them can do stands in `state_base`.  On disk a state is its tensors with the version of their
layout and the name of its variant; `torch.load` takes it with its defaults.

A linear attention keeps sums of features; a sliding window keeps its last W keys and values in a *ring*,
where the token at position p lies in slot p mod W.  The functions here turn a ring into time order and back;
they are differentiable, and positions stay on the device.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import _register_namedtuple

from based_ops.codegen.dtypes import ACC, IO, STATE

from .errors import VersionError
from .state_base import State, named

if TYPE_CHECKING:
    from based_ops.codegen.mixers.linear_attention import LinearAttention


Kind = TypeVar("Kind", bound=type[State])
LAYOUTS: dict[str, int] = {}
"""Versions of what the numbers of a state mean: the order of its rows, where a token's slot is."""
_STATES: dict[str, Any] = {}


def storable(layout: int, roles: tuple[str, ...]) -> Callable[[Kind], Kind]:
    """Makes a named tuple a state that goes to disk with the version of its layout, and through export.

    `roles` are the dtypes of its fields, as in the mixer's signature.
    """

    def registered(kind: Kind) -> Kind:
        name = kind.__name__
        LAYOUTS[name], _STATES[name] = layout, kind
        kind.roles = roles

        def reduce(state: Any) -> Any:
            parts = (name, LAYOUTS[name], *state)
            return (loaded, parts) if state.variant is None else (loaded_of, (state.variant, *parts))

        setattr(kind, "__reduce__", reduce)  # noqa: B010
        # So that an exported program that takes or returns a state can be saved.
        _register_namedtuple(kind, serialized_type_name=f"based_ops.{name}")
        return kind

    return registered


def loaded(kind: str, layout: int, *parts: Tensor | None) -> Any:
    """The state that a file holds; raises `VersionError` if such states are laid out in another way here."""
    if kind not in _STATES:
        _import_mixers()
    if layout != LAYOUTS.get(kind):
        raise VersionError(
            f"{kind}: got layout {layout} of a saved state, must be {LAYOUTS.get(kind, 'of a known kind')}: "
            "another version of based_ops saved it; compute it again from its tokens"
        )
    return _STATES[kind](*parts)


def loaded_of(variant: str, kind: str, layout: int, *parts: Tensor | None) -> Any:
    """The same of a state that knows its variant, which need not be registered here."""
    return named(loaded(kind, layout, *parts), variant)


def _import_mixers() -> None:
    """States are made known by the modules of their mixers, which no call may have needed yet."""
    from . import mixers

    for module in pkgutil.iter_modules(mixers.__path__, f"{mixers.__name__}."):
        importlib.import_module(module.name)


torch.serialization.add_safe_globals([loaded, loaded_of])


class _Sums(NamedTuple):
    state: Tensor
    normalizer: Tensor | None


@storable(layout=1, roles=(STATE, ACC))
class LinearAttentionState(State, _Sums):
    """Sums over the tokens seen: `state` [B,H,F,V] of features ⊗ values, `normalizer` [B,H,F] of features.

    `state` has the spec's state dtype and `normalizer` float32 (both float64 for float64 inputs); the latter
    is None if the variant does not normalise.  Row f holds the feature Φ_f of keys k with D components:

    - an elementwise map has F = D, Φ_f = φ(k_f);
    - Taylor of order 1 has F = D + 1: Φ_f = k_f for f < D, and 1 last;
    - Taylor of order 2 has F = (D+1)(D+2)/2.  First D(D+1)/2 products, paired by rotation: Φ_f = k_a·k_c with
      a = f mod D and c = (a + f div D) mod D, so that the D squares come first.  Then the D components, and 1
      last;
    - Taylor of order 3 has F = (D+1)(D+2)(D+3)/6.  Φ_f is a product of 3 components, where 1 counts as one
      more, the last.  Their indices a ≥ b ≥ c are in lexicographic order: 000, 100, 110, 111, 200, ...  So
      products of 3 real components come first, then those of 2, the D components, and 1 last;
    - a power p has F = C(D+p-1, p), all products of p components in the same order.

    Weights of the series and the scale stand on the query's side: no row has them.

    Examples:
        >>> import based_ops
        >>> based_ops.get("taylor2_qk16_v64").init_state(1, 2).state.shape
        torch.Size([1, 2, 153, 64])
    """


class _Rings(NamedTuple):
    k: Tensor
    v: Tensor
    position: Tensor


@storable(layout=1, roles=(IO, IO, "int32"))
class SlidingWindowState(State, _Rings):
    """The last W keys [B,H,W,D] and values [B,H,W,V] as rings; `position`, int32 [B,H], counts tokens.

    Examples:
        >>> import based_ops
        >>> based_ops.get("window16_d64").init_state(1, 2).k.shape
        torch.Size([1, 2, 16, 64])
    """


def feature_count(spec: LinearAttention) -> int:
    """Rows F of the state of a linear attention."""
    return spec.features


def ring_to_linear(ring: Tensor, position: Tensor) -> Tensor:
    """The ring [B,H,W,X] in time order, [B,W,H,X]: entry i is the token at `position` - W + i."""
    slots = torch.arange(ring.shape[2], device=ring.device)
    index = (position.unsqueeze(-1) + slots) % ring.shape[2]
    return ring.gather(2, index.unsqueeze(-1).expand_as(ring)).transpose(1, 2)


def linear_to_ring(linear: Tensor, position: Tensor) -> Tensor:
    """The last W tokens before `position` in time order, [B,W,H,X], as a ring [B,H,W,X]."""
    window = linear.shape[1]
    slots = torch.arange(window, device=linear.device)
    index = (slots - position.unsqueeze(-1)) % window
    ordered = linear.transpose(1, 2)
    return ordered.gather(2, index.unsqueeze(-1).expand_as(ordered))


def first_valid(position: Tensor, window: int) -> Tensor:
    """Index of the first real token among the `window` entries of `ring_to_linear`, int32 [B,H]."""
    return (window - position).clamp(min=0).to(torch.int32)


def ring_of_start(x: Tensor, window: int) -> Tensor:
    """The ring [B,H,W,X] after a sequence [B,T,H,X], T >= 1, from position 0; unused slots are zero."""
    length = x.shape[1]
    slots = torch.arange(window, device=x.device)
    token = length - window + (slots - length) % window
    picked = x.index_select(1, token.clamp(min=0))
    return picked.masked_fill((token < 0)[:, None, None], 0).transpose(1, 2).contiguous()
