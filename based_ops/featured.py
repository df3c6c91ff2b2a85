"""Layers whose queries and keys become features, part by part, before their kernels mix them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from based_ops.codegen.names import FEATURES, features_of

from . import checks, dispatch, invariance, packed, unit_keys
from .errors import (
    ArgumentTypeError,
    ArgumentValueError,
    DeviceError,
    DtypeError,
    PlacementError,
    ShapeError,
    fail,
)
from .feature_maker import FeatureMaker
from .ops import is_any_autocast_enabled
from .sharding import is_distributed
from .state_base import named
from .support.tiles import has_slots
from .tracing import constant, is_traced, numbers
from .variant import Variant

if TYPE_CHECKING:
    from based_ops.codegen.spec.featured import Side
    from based_ops.codegen.spec.parts import Parameter

    from .record import Record

PARAMETERS = "parameters"
Parameters = Mapping[str, Tensor]


class FeaturedVariant(Variant):
    """A compiled layer spec with `parts`.

    Its calls are those of the same layer without parts, but that q and k [B,T,H,qk] go through the parts
    first, and that calls, steps and `reference` take `parameters`, as `init_parameters` makes them.  `core`
    is that layer: its q and k are features.

    One kernel makes features of a tensor (`feature_maker.py`).  On the torch backend, and of parts that are
    no tile program, functions of PyTorch do, and `torch.compile` fuses what lies between two products.
    All is computed in float32, or in float64 where that is given, but for products, of numbers in q's dtype;
    the features that enter the layer's kernels have q's dtype.  Gradients flow to learned parameters.
    """

    qk: int = constant("given_qk", "Width of a query and of a key, before its features.")

    def __init__(self, record: Record, of: type[Variant]) -> None:
        self.core: Any = of(record.core)
        self.name, self.spec, self._record = record.name, record.layer, record
        self.dtypes, self.unit = self.core.dtypes, self.core.unit
        self.signature = self.core.signature  # of operators and of the tools that call them: of features
        numbers(self.name, {"given_qk": self.spec.head_dims.qk})
        self._sides: tuple[Side, Side] = self.spec.sides
        self.parameters: dict[str, Parameter] = {x.name: x for side in self._sides for x in side.parameters}
        """What the parts read, by name: of queries, and of keys."""
        self._turns = self.spec.turns
        self._unit: bool = getattr(self.spec, "unit_keys", False)
        self._of = record.module(FEATURES)
        self.makers = {name: FeatureMaker(made) for name, made in record.makers.items()}
        """What makes features by kernels, of queries and keys alike or of each."""
        self._whole = all(x.parts == () or self.maker(x) is not None for x in self._sides)

    def __repr__(self) -> str:
        why = [f"PyTorch: {x}" for x in self._record.features.values() if isinstance(x, str)]
        return f"{super().__repr__()[:-1]}; features by {'; '.join(why) or 'kernels'}>"

    def __getattr__(self, name: str) -> Any:
        """Whatever the layer of features has."""
        if name.startswith("__") or name == "core":
            raise AttributeError(name)
        return getattr(self.core, name)

    # Parameters

    def init_parameters(
        self,
        heads: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        kv_heads: int | None = None,
    ) -> dict[str, Tensor]:
        """Parameters as training begins with them, for `heads` of q and, unless there are as many, of k.

        Learned ones, which require gradients, are [H, ...].  Random ones are the same whenever they are made,
        and in all heads.  `device` and `dtype` are PyTorch's defaults unless given.
        """
        checks.count("heads", heads, 1)
        kv_heads = heads if kv_heads is None else kv_heads
        checks.count("kv_heads", kv_heads, 1)
        if kv_heads != heads and self.spec.tied:
            fail(
                ArgumentValueError, "kv_heads", kv_heads, f"{heads}: parameters of queries are those of keys"
            )
        found = {}
        for side, count in zip(self._sides, (heads, kv_heads), strict=True):
            for x in side.parameters:
                shape = (count, *x.shape) if x.learned else x.shape
                made = _started(x, shape).to(device=device, dtype=dtype or torch.get_default_dtype())
                found[x.name] = made.requires_grad_(x.learned)
        return found

    def _check(self, parameters: Any, q: Tensor, k: Tensor) -> Parameters:
        """The parameters, if they are those of this layer for so many heads."""
        wanted = self.parameters
        if parameters is None:
            parameters = {}
        if not isinstance(parameters, Mapping):
            fail(ArgumentTypeError, PARAMETERS, type(parameters).__name__, "a dict of tensors by name")
        for name in parameters:
            if name not in wanted:
                near = difflib.get_close_matches(str(name), wanted, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(wanted) or 'none'}"
                fail(ArgumentValueError, PARAMETERS, repr(name), f"a parameter of {self.name}: {hint}")
        for side, x in zip(self._sides, (q, k), strict=True):
            for parameter in side.parameters:
                if parameter.name not in parameters:
                    what = f"given: {', '.join(wanted)}, as `init_parameters` makes them"
                    fail(ArgumentValueError, PARAMETERS, f"no {parameter.name!r}", what)
                _check_parameter(parameter, parameters[parameter.name], x)
        return parameters

    # Calls

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor | None = None,
        scale: float | Tensor | None = None,
        initial_state: Any = None,
        output_final_state: bool = False,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
        state_indices: Tensor | None = None,
        parameters: Parameters | None = None,
        backend: str | None = None,
        **more: Any,
    ) -> tuple[Tensor, Any]:
        """`(o, final_state)`, as of a layer without parts, see there; q and k are [B,T,H,qk].

        `parameters` are [H, ...] for the heads of q and of k, by the names of `init_parameters`; missing,
        unknown and misshapen ones are typed errors.
        """
        kernel = self._kernel(q, backend)
        if more.get(invariance.NAME) and not (self._whole and kernel):
            what = f"False: features of {self.name} are made by PyTorch, for the batch as a whole"
            fail(ArgumentValueError, invariance.NAME, True, what)
        options = _given(cu_seqlens=cu_seqlens, attention_mask=attention_mask, state_indices=state_indices)
        tokens, counts = self._places(q, cu_seqlens, attention_mask)
        given = self._check_all(q, k, parameters)
        if self._unit and not is_traced():
            unit_keys.check(k, cu_seqlens, attention_mask, state_indices)
        if attention_mask is not None and any(x.learned for x in self.parameters.values()):
            # Whatever padding holds, it has no part in gradients of parameters.
            q, k = (packed.without_padding(x, attention_mask, is_traced()) for x in (q, k))
        in_place = cu_seqlens is None and attention_mask is None
        q, k = self._features(q, k, given, None if in_place else tokens, tokens, kernel)
        options |= {"output_final_state": output_final_state, "backend": backend} | more
        o, final = self.core(q, k, v, g, scale, initial_state, **options)
        if self._turns is not None and final is not None:
            if state_indices is None:
                final = named(type(final)(*_turned(final, counts, self._turns.period)), self.name)
            else:
                _turn_slots(final, state_indices, counts, self._turns.period)
        return o, final

    def step(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        state: Any,
        g: Tensor | None = None,
        scale: float | Tensor | None = None,
        backend: str | None = None,
        state_indices: Tensor | None = None,
        parameters: Parameters | None = None,
        **more: Any,
    ) -> Tensor:
        """A few more tokens, T up to 16: o [B,T,H,v], with `state` updated in place; as of the call."""
        tokens, counts = self._places(q, None, None)
        length = q.shape[1] if isinstance(q, Tensor) and q.dim() == 4 else 0
        given = self._check_all(q, k, parameters)
        if self._unit and not is_traced():
            unit_keys.check(k, None, None, state_indices)
        q, k = self._features(q, k, given, None, tokens, self._kernel(q, backend))
        options = _given(state_indices=state_indices) | {"backend": backend} | more
        o: Tensor = self.core.step(q, k, v, state, g, scale, **options)
        if self._turns is not None and length:
            if state_indices is None:
                for part, new in zip(state, _turned(state, counts, self._turns.period), strict=True):
                    if part is not None:
                        part.copy_(new)
            else:
                _turn_slots(state, state_indices, counts, self._turns.period)
        return o

    def reference(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor | None = None,
        scale: float | Tensor | None = None,
        initial_state: Any = None,
        output_final_state: bool = False,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
        parameters: Parameters | None = None,
        **more: Any,
    ) -> Any:
        """Naive mathematics of the features in q's precision: o, or (o, final_state)."""
        from .reference.parts import features

        tokens, counts = self._places(q, cu_seqlens, attention_mask)
        given = self._check_all(q, k, parameters)
        q, k = (features(side, x, given, tokens) for side, x in zip(self._sides, (q, k), strict=True))
        options = _given(cu_seqlens=cu_seqlens, attention_mask=attention_mask) | more
        found = self.core.reference(q, k, v, g, scale, initial_state, output_final_state, **options)
        if self._turns is None or not output_final_state:
            return found
        o, final = found
        return o, named(type(final)(*_turned(final, counts, self._turns.period)), self.name)

    def init_state(self, *sizes: Any, **options: Any) -> Any:
        """The state before the first token, as of a layer without parts."""
        return self.core.init_state(*sizes, **options)

    def state_bytes(self, *sizes: Any, **options: Any) -> int:
        """Bytes of such a state."""
        found: int = self.core.state_bytes(*sizes, **options)
        return found

    def products(self, length: int, begun: bool = False, final: bool = False) -> float:
        """Those of the layer of features; `feature_products` are counted by themselves."""
        found: float = self.core.products(length, begun, final)
        return found

    def feature_products(self, length: int) -> float:
        """Operations of the products of one sequence in one head that make features of q and of k."""
        made = [self.maker(side) for side in self._sides]
        return sum(maker.products(length) for maker in made if maker is not None)

    @property
    def features_by_torch(self) -> tuple[Any, Any]:
        """Functions of PyTorch that make features of q and of k: of a tensor, parameters, token numbers."""
        return self._of.of_query, self._of.of_key

    def _call(self, *arguments: Any, **options: Any) -> Any:
        """Calls of the core, as tools make them: with features."""
        return self.core._call(*arguments, **options)

    def _step(self, *arguments: Any, **options: Any) -> Any:
        return self.core._step(*arguments, **options)

    def _reference(self, tensors: Any, numbers: tuple[float, ...], initial_state: Any) -> tuple[Tensor, Any]:
        found: tuple[Tensor, Any] = self.core._reference(tensors, numbers, initial_state)
        return found

    def _features(
        self,
        q: Tensor,
        k: Tensor,
        given: Parameters,
        moved: Tensor | None,
        tokens: Tensor | None,
        kernel: str,
    ) -> tuple[Tensor, Tensor]:
        """Features of queries and of keys: by kernels, if there are any, else by PyTorch.

        `tokens` are numbers of tokens, and `moved` too unless those are where tokens stand.
        """
        alike = (q.dtype, q.device) == (k.dtype, k.device)  # if not, the core says it
        made = []
        for x, side, function in zip((q, k), self._sides, self.features_by_torch, strict=True):
            maker = self.maker(side)
            if maker is None or not kernel or not alike or x.numel() == 0:
                made.append(function(x, given, tokens))
                continue
            dtype = checks.autocast_dtype(x, self.dtypes) if is_any_autocast_enabled() else None
            x = x if dtype is None else checks.cast(x, dtype)
            made.append(maker(x, side, given, moved, kernel, is_traced()))
        return made[0], made[1]

    def maker(self, side: Side) -> FeatureMaker | None:
        """What makes its features by kernels."""
        return self.makers.get(features_of(None)) or self.makers.get(features_of(side.name))

    def _kernel(self, q: Any, backend: str | None) -> str:
        """The kernel string of operators that make features; "" where PyTorch does."""
        if not self.makers or not isinstance(q, Tensor) or q.dtype not in self.dtypes:
            return ""
        served = dispatch.kernel(self.name, backend, q.device, q.dtype)
        if served.startswith("torch-"):
            return ""
        return dispatch.kernel(self.name, backend, q.device, q.dtype, True) if is_traced() else served

    def _check_all(self, q: Any, k: Any, parameters: Any) -> Parameters:
        """The parameters; raises typed errors unless they, q and k are what this layer takes."""
        for name, x in (("q", q), ("k", k)):
            if not isinstance(x, Tensor):
                fail(ArgumentTypeError, name, type(x).__name__, "a torch.Tensor")
            if is_distributed(x):
                fail(PlacementError, name, "a DTensor", f"the part of each rank: {self.name} has parts")
            checks.layout(name, x)
            if x.dim() != 4 or x.shape[3] != self.qk:
                fail(ShapeError, name, checks.sizes(x), f"of shape [B, T, H, {self.qk}] for {self.name}")
            if x.dtype not in self.dtypes:
                fail(DtypeError, name, str(x.dtype), f"one of {', '.join(map(str, self.dtypes))}")
        return self._check(parameters, q, k)

    def _places(self, q: Any, offsets: Any, mask: Any) -> tuple[Tensor | None, Any]:
        """The number [B,T] of each token in its sequence, and how many each has; of layers with positions."""
        if self._turns is None or not isinstance(q, Tensor) or q.dim() != 4:
            return None, None
        found = packed.numbers(offsets, mask, q, is_traced())
        return found.number, found.counts


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _check_parameter(parameter: Parameter, given: Any, of: Tensor) -> None:
    name = f"{PARAMETERS}[{parameter.name!r}]"
    if not isinstance(given, Tensor):
        fail(ArgumentTypeError, name, type(given).__name__, "a torch.Tensor")
    shape = (of.shape[2], *parameter.shape) if parameter.learned else parameter.shape
    if given.shape != shape:
        fail(ShapeError, name, checks.sizes(given), f"of shape {list(shape)}")
    if not given.is_floating_point():
        fail(DtypeError, name, str(given.dtype), "a floating dtype")
    if given.device != of.device:
        fail(DeviceError, name, str(given.device), f"on the device of q and k, {of.device}")


def _started(x: Parameter, shape: tuple[int, ...]) -> Tensor:
    match x.start:
        case "zeros":
            return torch.zeros(shape)
        case "ones":
            return torch.ones(shape)
        case "identity":
            return torch.eye(*shape[-2:]).expand(shape).clone()
        case "normal":
            return torch.randn(shape) / math.sqrt(shape[-2])
    return _orthogonal(shape[0], shape[1], x.seed or 0)


def _orthogonal(width: int, count: int, seed: int) -> Tensor:
    """`count` random columns of the lengths of Gaussian vectors, orthogonal within blocks of `width`."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    blocks = [torch.linalg.qr(drawn(width, width))[0] for _ in range(-(-count // width))]
    return torch.cat(blocks, 1)[:, :count] * drawn(width, count).norm(dim=0)


def _turned(parts: Any, counts: Tensor, period: int) -> list[Tensor | None]:
    """Sums over keys, [N,H,2D,...], as those of a sequence that begins after `counts` [N] more tokens.

    Their positions are then so much lower: cos and sin of a difference.
    """
    turned: list[Tensor | None] = []
    for x in parts:
        if x is None:
            turned.append(None)
            continue
        angle = (counts.to(x.dtype) * (math.pi / 2 / period)).view(-1, *(1,) * (x.dim() - 1))
        cos, sin = angle.cos(), angle.sin()
        even, odd = x.chunk(2, dim=2)
        turned.append(torch.cat([even * cos + odd * sin, odd * cos - even * sin], 2))
    return turned


def _turn_slots(pool: Any, indices: Tensor, counts: Tensor, period: int) -> None:
    """The same in place, for the slots of a pool that indices name."""
    there = has_slots(pool[0], indices, 1)
    slots = indices.long().clamp(0, pool[0].shape[0] - 1)
    taken = [None if x is None else x.index_select(0, slots) for x in pool]
    for x, old, new in zip(pool, taken, _turned(taken, counts, period), strict=True):
        if x is not None:  # a slot may be named by chance for -1: what is added there is 0
            change = torch.where(there.view(-1, *(1,) * (x.dim() - 1)), new - old, 0.0)  # type: ignore[operator]
            x.index_add_(0, slots, change)
