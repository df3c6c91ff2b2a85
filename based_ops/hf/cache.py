"""What a model keeps between calls, as a layer of Transformers' caches: `DynamicCache(config=...)` has these.

A state of constant size cannot forget a token.  So a cache that records the past keeps, of each layer, the
state before what is recorded and the inputs of the mixer since: to crop is to go back to that state, and the
tokens that stay enter it again, all in one call, before the next ones come.  A state with a ring forgets the
tokens in it by itself: it is copied only where more are recorded than it can give back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers.cache_utils import STATIC_LAYER_TYPE_MAPPING, Cache, CacheLayerMixin

from based_ops.codegen.spec.signature import MOST_TOKENS

from ..errors import StateError, fail
from ..mixers.linear_attention import ReplayState
from ..models.attention import FullAttention, KeyValueCache
from ..models.blocks import over_tensors

LAYER_TYPE = "based"


class _Inputs:
    """What entered a mixer: tokens [B,T,d_model], and which of them are no padding, [B,T] or None for all."""

    def __init__(self, x: Tensor, mask: Tensor | None) -> None:
        self.x, self.mask = x, mask

    @staticmethod
    def cat(parts: list[_Inputs]) -> _Inputs:
        """The tokens of all parts, one behind the other."""
        masked = any(part.mask is not None for part in parts)
        mask = torch.cat([part._mask() for part in parts], 1) if masked else None
        return _Inputs(torch.cat([part.x for part in parts], 1), mask)

    def first(self, count: int) -> _Inputs:
        """The first tokens alone."""
        return _Inputs(self.x[:, :count], None if self.mask is None else self.mask[:, :count])

    def each(self, function: Callable[[Tensor], Tensor]) -> _Inputs:
        """With `function` of its tensors, which changes sequences."""
        return _Inputs(function(self.x), None if self.mask is None else function(self.mask))

    @property
    def stepped(self) -> bool:
        """Whether a mixer that has a state takes them in one step."""
        return len(self) <= MOST_TOKENS and self.mask is None and not torch.is_grad_enabled()

    def __len__(self) -> int:
        return self.x.shape[1]

    def _mask(self) -> Tensor:
        return self.x.new_ones(self.x.shape[:2], dtype=torch.bool) if self.mask is None else self.mask.bool()


class StateLayer(CacheLayerMixin):
    """The state of one mixer.  Full attention's grows; all others have a constant size.

    `max_cache_len` is for how many tokens full attention takes memory at once.
    """

    _layer_type = layer_type = LAYER_TYPE
    is_croppable = True
    supports_early_init = False

    def __init__(self, max_cache_len: int = 0, **_: Any) -> None:
        super().__init__()
        self.most = max_cache_len
        self.record_past = False
        self.seen = 0
        self.state: Any = None
        """After the tokens so far, or before those that were recorded and are to enter again."""
        self._since: list[_Inputs] = []
        """What was recorded, until the first call after a crop."""
        self._before: Any = None
        """A copy of the state before it, once the state's own ring does not hold it all."""
        self._ringed = False
        """Whether it does."""
        self._again = False
        """Whether what was recorded, and stays, is to enter `state` again."""
        self._cropped = False
        """Whether the next call begins a new record."""

    def call(
        self,
        mixer: Any,
        x: Tensor,
        state: None = None,
        output_state: bool = False,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """y of x [B,T,d_model] after the tokens before; stands in for a mixer, and keeps its state."""
        self._check(x)
        if self._again and self._since:
            self._enter(mixer, _Inputs.cat(self._since))
        if self._cropped:
            self._forget()
        inputs = _Inputs(x, attention_mask)
        if self.record_past and not isinstance(mixer, FullAttention):
            self._record(inputs)
        self.seen += len(inputs)
        return self._enter(mixer, inputs), None

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last `-tokens_to_remove` tokens, and begins to record anew.

        Raises `StateError` unless they were recorded: `activate_past_recording` has to be called before they
        come, which `generate` does where it needs it.
        """
        count = -tokens_to_remove
        if count < 0 or count > self.seen:
            fail(StateError, "tokens_to_remove", tokens_to_remove, f"from {-self.seen} to 0")
        if count == self.seen > 0:
            self.state = None
            self._forget()
        elif count and isinstance(self.state, KeyValueCache):  # what is behind its length is nobody's
            self.state = self.state._replace(length=(self.state.length - count).clamp(min=0))
        elif count:
            self._go_back(count)
        self._cropped = True
        self.seen -= count

    def activate_past_recording(self) -> None:
        """From now on `crop` can take tokens back."""
        self.record_past = True

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Sequence i goes on as sequence `beam_idx[i]` was."""
        self._each(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps these sequences, in this order; int or bool [B]."""
        self._each(lambda x: x[indices.to(x.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each sequence `repeats` times, one behind the other."""
        self._each(lambda x: x.repeat_interleave(repeats, 0))

    def reset(self) -> None:
        """As before the first token."""
        self.seen = 0
        self.state = None
        self._forget()

    def get_seq_length(self) -> int:
        """Tokens so far, padding included."""
        return self.seen

    def get_max_length(self) -> int:
        """-1: none."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many tokens a mask is for, and where they begin."""
        return self.seen + query_length, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> NoReturn:
        """Raises `StateError`: no attention of Transformers keeps keys and values here."""
        self.update(key_states, value_states)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises `StateError`: no attention of Transformers keeps keys and values here."""
        fail(StateError, "cache", "a cache of states", "that of a model with keys and values")

    def _enter(self, mixer: Any, inputs: _Inputs) -> Tensor:
        """y, with the state after it kept."""
        x, mask = inputs.x, inputs.mask
        if self.state is not None and getattr(mixer, "grows", False):
            self.state = mixer.with_room(self.state, self.seen + x.shape[1], self.most)
        y: Tensor
        if self.state is not None and inputs.stepped:
            y = mixer.step(x, self.state)
        else:
            given = {} if mask is None else {"attention_mask": mask}
            y, self.state = mixer(x, self.state, True, **given)
        return y

    def _record(self, inputs: _Inputs) -> None:
        """Sees to it that these tokens can be taken back, with all that were recorded before them."""
        recorded = sum(map(len, self._since))
        held = self._ringed if recorded else isinstance(self.state, ReplayState)
        # A ring has room for twice what it gives back at least; a call that is no step leaves it empty.
        self._ringed = held and inputs.stepped and recorded + len(inputs) <= self.state.k.shape[2] // 2
        if not self._ringed and (held or not recorded):
            self._before = over_tensors(torch.clone, self.state)
            if recorded:
                self._before.rollback(recorded)
        self._since.append(inputs)

    def _go_back(self, count: int) -> None:
        kept = sum(map(len, self._since)) - count
        if kept < 0:
            what = (
                f"of the {kept + count} that were recorded: call `activate_past_recording` before they come"
            )
            fail(StateError, "tokens_to_remove", -count, what)
        if self._ringed:
            self.state.rollback(count)
        elif not self._again:
            self.state, self._before, self._again = self._before, None, True
        self._since = [_Inputs.cat(self._since).first(kept)] if kept else []

    def _forget(self) -> None:
        """Nothing is recorded."""
        self._since, self._before = [], None
        self._ringed = self._again = self._cropped = False

    def _each(self, function: Callable[[Tensor], Tensor]) -> None:
        self.state = over_tensors(function, self.state)
        self._before = over_tensors(function, self._before)
        self._since = [part.each(function) for part in self._since]

    def _check(self, x: Tensor) -> None:
        """Raises `StateError` for a batch of another size; mixers look at the rest."""
        if self.state is None:
            return
        part = self.state
        while not isinstance(part, Tensor):
            part = next(x for x in part if x is not None)
        if part.shape[0] != x.shape[0]:
            fail(StateError, "cache", f"one of {part.shape[0]} sequences", f"of {x.shape[0]}, as the inputs")


STATIC_LAYER_TYPE_MAPPING[LAYER_TYPE] = StateLayer  # beside those that grow, where its base class enters it


def layers_of(cache: Any, count: int) -> list[StateLayer]:
    """The layers of a cache for a model of `count`; raises `StateError` for another's."""
    if not isinstance(cache, Cache):
        fail(StateError, "cache", type(cache).__name__, "a DynamicCache(config=model.config)")
    if cache.layer_class_to_replicate is not None and not cache.layers:
        fail(StateError, "cache", "made without a config", "a DynamicCache(config=model.config)")
    other = next((x for x in cache.layers if not isinstance(x, StateLayer)), None)
    if other is not None:
        fail(StateError, "cache", f"with a {type(other).__name__}", "a DynamicCache(config=model.config)")
    if len(cache.layers) != count:
        fail(StateError, "cache", f"one of {len(cache.layers)} layers", f"of the model's {count}")
    if cache.offloading:
        fail(StateError, "cache", "one that is offloaded", "on the device: states have a constant size")
    return cache.layers
