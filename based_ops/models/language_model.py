"""The language model: tokens in, logits out, over states of constant size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from based_ops.codegen.spec.language_model import ModelSpec

from ..checks import count, sizes
from ..errors import ArgumentTypeError, ArgumentValueError, DtypeError, ShapeError, StateError, fail
from ..tracing import is_traced
from .blocks import Block, normed, start
from .spec import load_spec

ModelState = tuple[object, ...]
"""The state of each layer, in their order: what one is, is that layer's."""


class LanguageModel(nn.Module):
    """E[ids], blocks on a residual stream of float32, an RMSNorm, and logits by E (Based, arXiv 2402.18668).

    `model` is a `ModelSpec`, or the name of a shipped one or a file, see `load_spec`.

    Args:
        model: What it is.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        SpecErrors: the file of a spec is wrong.
        CheckpointError: there is no such file or shipped model.

    Examples:
        >>> import torch
        >>> from based_ops import models
        >>> net = models.LanguageModel("based-tiny")
        >>> with torch.no_grad():
        ...     logits, state = net(torch.zeros(1, 9, dtype=torch.int64), output_state=True)  # ids [B, T]
        ...     logits = net.step(torch.zeros(1, 1, dtype=torch.int64), state)
        >>> logits.shape  # [B, T, vocabulary]
        torch.Size([1, 1, 256])
    """

    DEVIATION = 0.02
    """Of weights as training begins."""

    def __init__(
        self,
        model: ModelSpec | str | Path,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec = model if isinstance(model, ModelSpec) else load_spec(model)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embedding = nn.Embedding(spec.vocabulary, spec.d_model, **made)
        self.blocks = nn.ModuleList(Block(spec, mixer, **made) for mixer in spec.mixers())
        self.norm = nn.RMSNorm(spec.d_model, spec.norm_eps, **made)
        self.head = nn.Linear(spec.d_model, spec.vocabulary, bias=False, **made)
        self.tie()
        nn.init.normal_(self.embedding.weight, std=self.DEVIATION)
        nn.init.normal_(self.head.weight, std=self.DEVIATION)
        for block in self.blocks:
            start(block, self.DEVIATION, spec.layers)  # type: ignore[arg-type]

    def tie(self) -> None:
        """Makes embedding and head one tensor, if the spec says so: after what gives each a new one."""
        if self.spec.tied:
            self.head.weight = self.embedding.weight

    def forward(
        self,
        ids: Tensor,
        state: ModelState | None = None,
        output_state: bool = False,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
    ) -> tuple[Tensor, ModelState | None]:
        """Logits [B,T,vocabulary] of ids [B,T], and the state after them or None unless `output_state`.

        `state` is that before them; `cu_seqlens` [N+1] packs sequences into a batch of 1, `attention_mask`
        [B,T] says which tokens are no padding.  A model with full attention wants room for what follows:
        begin with `init_state(batch, most)`.  `logits_to_keep` asks for the logits of the last so many tokens
        alone (0: of all), or of those at its numbers, int64 [K].
        """
        x = self._enter(ids)
        before = self._states(state)
        after = []
        sequences = {"cu_seqlens": cu_seqlens, "attention_mask": attention_mask}
        for block, part in zip(self.blocks, before, strict=True):
            x, final = block(x, part, output_state, **sequences)
            after.append(final)
        if isinstance(logits_to_keep, Tensor):
            x = x.index_select(1, logits_to_keep)
        elif logits_to_keep:
            x = x[:, -logits_to_keep:]
        return self._leave(x), tuple(after) if output_state else None

    def step(
        self,
        ids: Tensor,
        state: ModelState,
        state_indices: Tensor | None = None,
        steps: Sequence[Callable[..., tuple[Tensor, Tensor]]] | None = None,
    ) -> Tensor:
        """Logits [B,T,vocabulary] of up to 16 more tokens; updates `state` in place.  Not differentiable.

        With `state_indices`, int32 [B], `state` is a pool of which they name the slots, -1 none: the state
        that `init_state` makes for as many sequences as there are slots.  `steps` are called in the place of
        the blocks' own: what a compiler made of them.
        """
        x = self._enter(ids)
        y = torch.zeros_like(x, dtype=self.embedding.weight.dtype)
        for step, part in zip(steps or self.block_steps(), self._states(state), strict=True):
            x, y = step(x, y, part, state_indices)
        return self._leave(x + y)

    def block_steps(self) -> list[Callable[..., tuple[Tensor, Tensor]]]:
        """The step of each block."""
        return [cast(Block, block).step for block in self.blocks]

    def init_state(self, batch: int, most: int = 2048) -> ModelState:
        """The state before the first token of `batch` sequences; states that grow keep up to `most`."""
        count("batch", batch, 0)
        return tuple(mixer.init_state(batch, *more) for mixer, more in self._mixers(most))

    def state_bytes(self, batch: int, most: int = 2048) -> int:
        """Bytes of such a state."""
        return sum(mixer.state_bytes(batch, *more) for mixer, more in self._mixers(most))

    def _mixers(self, most: int) -> Iterator[tuple[Any, tuple[int, ...]]]:
        """The mixer of each block, and what its states depend on besides the batch."""
        for block in self.blocks:
            mixer: Any = block.mixer
            yield mixer, (most,) if getattr(mixer, "grows", False) else ()

    @property
    def packs(self) -> bool:
        """Whether a call can pack sequences and give their states: not if one grows with the tokens."""
        return not any(more for _, more in self._mixers(0))

    @property
    def records(self) -> bool:
        """Whether a step is the same kernels at any token, as CUDA graphs ask: not of exact long filters."""
        return all(getattr(mixer, "records", True) for mixer, _ in self._mixers(0))

    def extra_repr(self) -> str:
        return self.spec.name

    def _states(self, state: Any) -> ModelState:
        if state is None:
            return (None,) * self.spec.layers
        if not isinstance(state, tuple) or len(state) != self.spec.layers:
            got = f"a tuple of {len(state)}" if isinstance(state, tuple) else type(state).__name__
            fail(
                StateError,
                "state",
                got,
                f"the states of {self.spec.layers} layers, as `init_state` makes them",
            )
        return state

    def _enter(self, ids: Tensor) -> Tensor:
        return embedded(self.embedding, ids, self.spec.name)

    def _leave(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(normed(self.norm, x))
        return logits


def embedded(embedding: nn.Embedding, ids: Tensor, name: str) -> Tensor:
    """The residual stream of tokens; raises typed errors unless they are those of the model called `name`."""
    if not isinstance(ids, Tensor):
        fail(ArgumentTypeError, "ids", type(ids).__name__, "a torch.Tensor of int32 or int64")
    if ids.dtype not in (torch.int32, torch.int64):
        fail(DtypeError, "ids", str(ids.dtype), "torch.int32 or torch.int64")
    if ids.dim() != 2:
        fail(ShapeError, "ids", sizes(ids), "of shape [B, T]")
    if ids.device.type == "cpu" and ids.numel() and not is_traced():
        least, most = int(ids.min()), int(ids.max())
        if least < 0 or most >= embedding.num_embeddings:
            what = f"from 0 to {embedding.num_embeddings - 1}, the tokens of {name}"
            fail(ArgumentValueError, "ids", least if least < 0 else most, what)
    return wide(embedding(ids))


def wide(x: Tensor) -> Tensor:
    """In the dtype of the residual stream: float32, or float64."""
    return x if x.dtype == torch.float64 else x.float()
