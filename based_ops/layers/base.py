"""What both layers share: projections into heads and back."""

from __future__ import annotations

import difflib
from typing import Any, Generic, NoReturn, cast

import torch
from torch import Tensor, nn

from ..arguments import refuse
from ..checks import count, layout_is_known, sizes
from ..errors import ArgumentTypeError, ArgumentValueError, ShapeError, UnknownVariant, fail
from ..record import names, record
from ..registry import get
from ..state_base import State
from ..variant import StateT, Variant
from .projections import projected


def _named(name: Any, mixer: str) -> Variant[State]:
    """The variant of that name; where there is none, the error names the nearest of this mixer."""
    if not isinstance(name, str):
        fail(ArgumentTypeError, "variant", type(name).__name__, f"a variant or the name of one, a {mixer}")
    try:
        return get(name)
    except UnknownVariant:
        fitting = [x for x in names() if record(x).mixer == mixer]
    near = difflib.get_close_matches(name, fitting, n=3, cutoff=0.5) or fitting
    fail(UnknownVariant, "variant", repr(name), f"the name of a {mixer}, such as {', '.join(near)}")


def layer_of(variant: Variant[State]) -> type[AttentionLayer[Any]] | None:
    """The layer that mixes with such a variant, if there is one."""
    layers = (x for x in AttentionLayer.__subclasses__() if x.mixer == variant.spec.mixer)
    return next(layers, None)


class AttentionLayer(nn.Module, Generic[StateT]):
    """Projects [B,T,d_model] to q, k, v of `heads` heads, mixes with `variant`, and projects back.

    `variant` is a variant or the name of one; the widths of a head are those of its spec.  With `kv_heads`, a
    divisor of `heads`, k and v have so many, each shared by several queries, and so has the state.  A variant
    with parts has its parameters here by their names, learned ones as parameters and random ones as buffers.
    """

    mixer: str

    def __init__(
        self,
        d_model: int,
        heads: int,
        variant: Variant[State] | str,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        kv_heads: int | None = None,
        **foreign: NoReturn,
    ) -> None:
        super().__init__()
        if foreign:
            refuse(type(self).__init__, tuple(foreign))
        count("d_model", d_model, 1)
        count("heads", heads, 1)
        kv_heads = heads if kv_heads is None else kv_heads
        count("kv_heads", kv_heads, 1)
        if heads % kv_heads:
            nearest = min((n for n in range(1, heads + 1) if heads % n == 0), key=lambda n: abs(n - kv_heads))
            fail(ArgumentValueError, "kv_heads", kv_heads, f"a divisor of heads, {heads}, such as {nearest}")
        op = variant if isinstance(variant, Variant) else _named(variant, self.mixer)
        if op.spec.mixer != self.mixer:
            layer = layer_of(op)
            hint = f"; the layer of {op.name} is {layer.__name__}" if layer else ""
            fail(ArgumentTypeError, "variant", f"{op.name}, a {op.spec.mixer}", f"a {self.mixer}{hint}")
        layout_is_known(op.name, kv_heads)
        self.d_model, self.heads, self.kv_heads = d_model, heads, kv_heads
        self.op = cast("Variant[StateT]", op)
        self.q_proj = nn.Linear(d_model, heads * op.qk, bias=False, device=device, dtype=dtype)
        self.k_proj = nn.Linear(d_model, kv_heads * op.qk, bias=False, device=device, dtype=dtype)
        self.v_proj = nn.Linear(d_model, kv_heads * op.v, bias=False, device=device, dtype=dtype)
        self.o_proj = nn.Linear(heads * op.v, d_model, bias=False, device=device, dtype=dtype)
        made = op.init_parameters(heads, device, dtype, kv_heads)
        self._of_parts = tuple(made)
        for name, x in made.items():
            if x.requires_grad:
                self.register_parameter(name, nn.Parameter(x.detach()))
            else:
                self.register_buffer(name, x)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        layout_is_known(self.op.name, self.kv_heads)

    def init_state(self, batch: int, **foreign: NoReturn) -> StateT:
        """The state before the first token, on the layer's device and for its dtype.

        It serves inside and outside autocast: a step computes in the state's dtype, and a sequence in
        autocast's, as its final state then has.
        """
        if foreign:
            refuse(AttentionLayer.init_state, tuple(foreign))
        return self.op.init_state(batch, self.kv_heads, device=self.o_proj.weight.device, dtype=self._dtype())

    def state_bytes(self, batch: int) -> int:
        """Bytes of the state of `batch` sequences, whatever their length."""
        return self.op.state_bytes(batch, self.kv_heads, dtype=self._dtype())

    def extra_repr(self) -> str:
        shared = f", kv_heads={self.kv_heads}" if self.kv_heads != self.heads else ""
        return f"heads={self.heads}{shared}, variant={self.op.name}"

    def _dtype(self) -> torch.dtype:
        """The dtype in which the mixer computes: that of the weights if the spec has it."""
        weight = self.o_proj.weight
        if weight.dtype in self.op.dtypes:
            return weight.dtype
        return self.op.autocast_dtype(weight) or self.op.dtypes[0]

    def _options(self) -> dict[str, Any]:
        """The parameters of the variant's parts, as its calls take them."""
        return (
            {"parameters": {name: getattr(self, name) for name in self._of_parts}} if self._of_parts else {}
        )

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not isinstance(x, Tensor):
            fail(ArgumentTypeError, "x", type(x).__name__, "a torch.Tensor")
        if x.dim() != 3 or x.shape[2] != self.d_model:
            fail(ShapeError, "x", sizes(x), f"of shape [B, T, {self.d_model}]")
        q, k, v = projected(self, x)
        return (
            q.unflatten(-1, (self.heads, self.op.qk)),
            k.unflatten(-1, (self.kv_heads, self.op.qk)),
            v.unflatten(-1, (self.kv_heads, self.op.v)),
        )

    def _leave(self, o: Tensor) -> Tensor:
        return self.o_proj(o.flatten(-2))
