"""Models of Transformers' conventions: its Llama, and models of flash-linear-attention."""

from __future__ import annotations

import importlib
import importlib.util
from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from .contenders import Call, Contender
from .cost import Cost

LLAMAS: dict[str, dict[str, int]] = {
    "llama-1b": dict(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=5504,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=16,
    ),
    "llama-tiny": dict(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    ),
}
"""Configurations; llama-1b is that of Sheared-LLaMA-1.3B, 1.35 billion parameters."""
TINY = dict(vocab_size=256, hidden_size=128, num_hidden_layers=2, num_heads=2)
FLA: dict[str, tuple[str, str, dict[str, int]]] = {
    "gla-1b": ("GLAConfig", "GLAForCausalLM", {}),
    "gated-deltanet-1b": ("GatedDeltaNetConfig", "GatedDeltaNetForCausalLM", {}),
    "gla-tiny": ("GLAConfig", "GLAForCausalLM", TINY),
    "gated-deltanet-tiny": ("GatedDeltaNetConfig", "GatedDeltaNetForCausalLM", TINY | {"head_dim": 64}),
}
"""Configuration, model, and what differs from the configuration of 1.37 and 1.39 billion parameters."""


def missing(name: str) -> str | None:
    """Why a model cannot be made here; None if it can, or if it is none of these."""
    needed = {
        **dict.fromkeys(LLAMAS, ("transformers",)),
        **dict.fromkeys(FLA, ("transformers", "fla.models")),
    }
    lacking = [package for package in needed.get(name, ()) if not _is_there(package)]
    return f"{' and '.join(lacking)}: not installed" if lacking else None


def _is_there(package: str) -> bool:
    """Whether a package can be found; none is imported, for some take memory of the device."""
    top, *below = package.split(".")
    spec = importlib.util.find_spec(top)
    places = (spec and spec.submodule_search_locations) or ()
    return any(Path(place, *below).is_dir() for place in places)


class Hub(Contender):
    """A causal model of Transformers' conventions."""

    net: Any

    def __init__(self, net: Any) -> None:
        super().__init__(net, net.get_input_embeddings(), net.get_output_embeddings())

    def blocks(self, what: str) -> Iterator[tuple[nn.Module, str]]:
        for layer in self.net.model.layers:
            yield layer, "forward"

    def prompt(self, batch: int, length: int) -> Call:
        ids = self.ids(batch, length)
        return lambda: self.net(input_ids=ids, use_cache=True, logits_to_keep=1).logits

    def step(self, batch: int, length: int) -> tuple[Call, Cost, int]:
        token, cache = self.ids(batch, 1), self._cache(batch, length)
        begin = self._beginning(cache)

        def step() -> Tensor:
            begin()
            logits: Tensor = self.net(input_ids=token, past_key_values=cache, use_cache=True).logits
            return token.copy_(logits[:, -1:].argmax(-1))

        held = round(batch * self.sequence_bytes(length))
        carried = held * (2 if self.constant else 1)
        return step, self.step_cost(batch, length, carried), held

    @abstractmethod
    def _cache(self, batch: int, length: int) -> Any:
        """The cache of sequences that lack the last of `length` tokens."""

    def _beginning(self, cache: Any) -> Callable[[], None]:
        """What makes a cache again what it is now, as far as steps change more than its tensors."""
        return lambda: None


class Llama(Hub):
    """Llama with Transformers' static cache; the attention is PyTorch's, and a step masks nothing."""

    constant = False

    def __init__(self, name: str, device: str, dtype: torch.dtype) -> None:
        transformers: Any = importlib.import_module("transformers")
        transformers.AttentionInterface.register("without_mask", _attend)
        config = transformers.LlamaConfig(
            **LLAMAS[name], max_position_embeddings=2**17, attn_implementation="without_mask"
        )
        with torch.device(device):
            super().__init__(transformers.LlamaForCausalLM(config).to(dtype))
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.layers, self.width = config.num_hidden_layers, config.hidden_size // config.num_attention_heads

    def _cache(self, batch: int, length: int) -> Any:
        caches: Any = importlib.import_module("transformers.cache_utils")

        class LastToken(caches.StaticLayer):
            """A static cache whose update is always the last that it has room for.

            Its tensors are not marked as static addresses: a compiled block would be one for each cache, and
            keep it alive.
            """

            def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
                self.dtype, self.device = key_states.dtype, key_states.device
                batch, heads, _, width = key_states.shape
                self.keys, self.values = (
                    torch.randn(batch, heads, self.max_cache_len, width, dtype=self.dtype, device=self.device)
                    for _ in range(2)
                )
                self.is_initialized = True

            def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> Any:
                self.keys[:, :, -1:] = key_states
                self.values[:, :, -1:] = value_states
                return self.keys, self.values

            def get_seq_length(self) -> int:
                return self.max_cache_len - 1

        found = caches.Cache(layers=[LastToken(length) for _ in range(self.layers)])
        found.early_initialization(batch, self.kv_heads, self.width, self.dtype, self.device)
        return found

    def sequence_bytes(self, length: int) -> float:
        return 2.0 * self.layers * self.kv_heads * self.width * length * self.dtype.itemsize

    def mixing(self, length: int, prompt: bool) -> float:
        pairs = length**2 / 2 if prompt else length
        return 4.0 * pairs * self.layers * self.heads * self.width


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Causal where there is more than one query."""
    causal, grouped = query.shape[2] > 1, query.shape[1] != key.shape[1]
    scale = options.get("scaling")
    y = scaled_dot_product_attention(query, key, value, is_causal=causal, scale=scale, enable_gqa=grouped)
    return y.transpose(1, 2).contiguous(), None


class Fla(Hub):
    """A model of flash-linear-attention, with its own kernels and cache."""

    constant = True

    @torch.no_grad()
    def __init__(self, name: str, device: str, dtype: torch.dtype) -> None:
        *classes, options = FLA[name]
        config, model = (getattr(importlib.import_module("fla.models"), part) for part in classes)
        with torch.device(device):
            super().__init__(model(config(**options)).to(dtype))
        cache = self._cache(1, 2)
        self._state = sum(x.nbytes for x in _tensors(cache))
        self._numbers = sum(x.numel() for x in _tensors(cache))

    def _cache(self, batch: int, length: int) -> Any:
        return self.net(input_ids=self.ids(batch, 1), use_cache=True, logits_to_keep=1).past_key_values

    def _beginning(self, cache: Any) -> Callable[[], None]:
        """A step puts new tensors into the cache; those that a graph reads have to be there as long as it."""
        kept = [(layer, dict(layer.state)) for layer in cache.layers]

        def begin() -> None:
            for layer, state in kept:
                layer.state = dict(state)

        return begin

    def sequence_bytes(self, length: int) -> float:
        return float(self._state)

    def mixing(self, length: int, prompt: bool) -> float:
        """An update of the state and a product with it, for each token."""
        return 4.0 * self._numbers * (length if prompt else 1)


def _tensors(cache: Any) -> Iterator[Tensor]:
    """Those of all layers of a cache."""
    if isinstance(cache, Tensor):
        yield cache
    elif isinstance(cache, dict):
        yield from _tensors(list(cache.values()))
    elif isinstance(cache, list | tuple):
        for part in cache:
            yield from _tensors(part)
    elif hasattr(cache, "layers"):
        yield from _tensors([layer.state for layer in cache.layers])
