"""Who generates: this library's models, and the Transformer that they are held against.

A contender makes two kinds of calls: of a prompt, which ends in its last token's logits, and of a step, which
puts the likeliest next token where the next call reads it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from based_ops.errors import ArgumentValueError, fail
from based_ops.models import LanguageModel, merge_norms, merge_projections
from based_ops.models.attention import FullAttention, KeyValueCache
from based_ops.models.blocks import bytes_of, over_tensors

from . import cost
from .cost import Cost

Call = Callable[[], Tensor]


class Contender(ABC):
    """A language model with drawn weights, on a device."""

    constant: bool
    """Whether a step is the same after every number of tokens."""

    def __init__(self, net: nn.Module, embedding: nn.Embedding, head: nn.Linear) -> None:
        self.net = net.eval()
        self.device, self.dtype = head.weight.device, head.weight.dtype
        self.vocabulary = head.weight.shape[0]
        self.weights = cost.weights(net, embedding, head)
        self.head = head.weight.numel()
        self.parameters = sum(x.numel() for x in net.parameters())

    def ids(self, batch: int, length: int) -> Tensor:
        """Tokens that a prompt may have."""
        return torch.randint(self.vocabulary, (batch, length), device=self.device)

    @abstractmethod
    def blocks(self, what: str) -> Iterator[tuple[nn.Module, str]]:
        """The modules that are compiled one by one, and the method of each; `what` is "step" or "prompt"."""

    @abstractmethod
    def prompt(self, batch: int, length: int) -> Call:
        """Logits [B,1,V] after a prompt, and the state after it."""

    @abstractmethod
    def step(self, batch: int, length: int) -> tuple[Call, Cost, int]:
        """A token more for sequences that have `length` with it; what it costs; the bytes of the state."""

    @abstractmethod
    def sequence_bytes(self, length: int) -> float:
        """Of the state of a sequence that has `length` tokens."""

    @abstractmethod
    def mixing(self, length: int, prompt: bool) -> float:
        """Operations of one sequence's mixers: for a whole prompt, or for its last token."""

    def prompt_cost(self, batch: int, length: int) -> Cost:
        products = 2.0 * ((self.weights - self.head) * length + self.head) + self.mixing(length, True)
        read = self.weights * self.dtype.itemsize + batch * self.sequence_bytes(length)
        return Cost(read, batch * products)

    def step_cost(self, batch: int, length: int, carried: float) -> Cost:
        products = 2.0 * self.weights + self.mixing(length, False)
        return Cost(self.weights * self.dtype.itemsize + carried, batch * products)

    def largest(self, length: int, free: float) -> int:
        """How many sequences of `length` tokens `free` bytes hold, with their logits, in float32 too."""
        each = self.sequence_bytes(length) + 8 * self.vocabulary
        found = int(free // each)
        return found - found % 8 if found > 16 else found


class Ours(Contender):
    """A model of this library, whose states have a constant size."""

    constant = True

    def __init__(self, name: str, device: str, dtype: torch.dtype) -> None:
        made = LanguageModel(name, device=device, dtype=dtype)
        self.net: LanguageModel = merge_norms(merge_projections(made))
        super().__init__(self.net, self.net.embedding, self.net.head)

    def blocks(self, what: str) -> Iterator[tuple[nn.Module, str]]:
        for block in self.net.blocks:
            yield block, "step" if what == "step" else "forward"

    def prompt(self, batch: int, length: int) -> Call:
        ids = self.ids(batch, length)
        return lambda: self.net(ids, output_state=True, logits_to_keep=1)[0]

    def step(self, batch: int, length: int) -> tuple[Call, Cost, int]:
        if not self.net.packs:
            what = "of full attention, or with states that do not grow and so are never full"
            fail(ArgumentValueError, "model", repr(self.net.spec.name), what)
        # One prompt's state for all: what a step does hangs on no number.
        _, one = self.net(self.ids(1, max(length - 1, 1)), output_state=True, logits_to_keep=1)
        state = self.net.init_state(batch)
        over_tensors(lambda mine, x: mine.copy_(x.expand_as(mine)), state, one)
        return self._step(batch, length, state)

    def _step(self, batch: int, length: int, state: Any) -> tuple[Call, Cost, int]:
        token = self.ids(batch, 1)

        def step() -> Tensor:
            return token.copy_(self.net.step(token, state)[:, -1:].argmax(-1))

        return step, self.step_cost(batch, length, cost.carried(state)), bytes_of(state)

    def sequence_bytes(self, length: int) -> float:
        return self.net.state_bytes(1, length)

    def mixing(self, length: int, prompt: bool) -> float:
        return cost.mixing(self.net, length, prompt)


class Transformer(Ours):
    """A model of full attention: its caches are as long as the sequences, so that a step masks nothing."""

    constant = False

    def __init__(self, name: str, device: str, dtype: torch.dtype) -> None:
        super().__init__(name, device, dtype)
        self.mixers: list[Any] = [block.mixer for block in self.net.blocks]
        for mixer in self.mixers:
            mixer.__class__ = LastToken  # the same weights

    def step(self, batch: int, length: int) -> tuple[Call, Cost, int]:
        return self._step(batch, length, tuple(mixer.cache(batch, length) for mixer in self.mixers))

    def sequence_bytes(self, length: int) -> float:
        return sum(2.0 * x.kv_heads * x.wide * length * self.dtype.itemsize for x in self.mixers)


class LastToken(FullAttention):
    """Full attention whose steps are always the last that their cache has room for.

    So nothing is masked, and PyTorch's flash kernels serve.  Heads are kept as wide as those take them, in
    multiples of 8, where `scaled_dot_product_attention` would copy the whole cache to widen it.
    """

    @property
    def wide(self) -> int:
        return -(-self.width // 8) * 8

    def cache(self, batch: int, length: int) -> KeyValueCache:
        """One that lacks the last of `length` tokens."""
        weight = self.o_proj.weight
        k, v = (weight.new_zeros(batch, self.kv_heads, length, self.wide) for _ in range(2))
        for x in (k, v):
            x[..., : self.width].normal_()
        return KeyValueCache(k, v, torch.full((batch,), length - 1, device=weight.device))

    def _extend(self, x: Tensor, state: KeyValueCache) -> Tensor:
        q, k, v = self._project(x, state.length[:, None, None])
        more = (0, self.wide - self.width)
        state.k[:, :, -1:] = pad(k, more)
        state.v[:, :, -1:] = pad(v, more)
        grouped = self.kv_heads != self.heads
        scale = self.width**-0.5
        y = scaled_dot_product_attention(pad(q, more), state.k, state.v, scale=scale, enable_gqa=grouped)
        return self._leave(y[..., : self.width])
