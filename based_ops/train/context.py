"""Context parallelism: each rank has a piece of every sequence, and mixers hand their states on.

What a mixer knows of earlier tokens is a state of constant size.  A rank takes that of the rank before it,
layer by layer, and hands its own on; backward, gradients of states go the other way.  So a rank is one layer
behind the one before it, and else works as it does: with R ranks and L layers a pass takes (L + R - 1) / L
of the time that R pieces at once would.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import PlacementError, fail
from ..layers.base import AttentionLayer
from ..models import LanguageModel
from ..models.attention import FullAttention
from ..models.blocks import over_tensors
from .masters import mine

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


def hand_on_states(model: LanguageModel, group: ProcessGroup, heads: DeviceMesh | None = None) -> None:
    """Has the mixers of a model go on after those of the rank before, in calls that keep gradients or not.

    Every rank of the group calls the model with a piece of the same sequences, in the order of the ranks.
    `heads` are the ranks that share the heads of layers of attention, whose states are `DTensor`s then.
    Raises `PlacementError` for a mixer whose state grows, such as full attention.
    """
    mixers: list[Any] = [block.mixer for block in model.blocks]
    for i, mixer in enumerate(mixers):
        if getattr(mixer, "grows", False):
            what = "a mixer with a state of constant size, to be handed from rank to rank"
            got = "full attention" if isinstance(mixer, FullAttention) else type(mixer).__name__
            fail(PlacementError, f"blocks.{i}.mixer", got, what)
    for mixer in mixers:
        hands = _Hands(group, heads if isinstance(mixer, AttentionLayer) else None)
        mixer.register_forward_pre_hook(hands.before, with_kwargs=True)
        mixer.register_forward_hook(hands.after, with_kwargs=True)


class _Hands:
    """Between which ranks the states of one mixer go."""

    def __init__(self, group: ProcessGroup, heads: DeviceMesh | None) -> None:
        ranks = dist.get_process_group_ranks(group)
        here = dist.get_rank(group)
        self.group, self.heads = group, heads
        self.earlier = ranks[here - 1] if here > 0 else None
        self.later = ranks[here + 1] if here + 1 < len(ranks) else None
        self.sent: list[tuple[Any, Tensor]] = []

    @torch._dynamo.disable
    def before(self, mixer: Any, given: tuple[Any, ...], named: Any) -> tuple[tuple[Any, ...], Any]:
        """Calls the mixer with the state of the rank before."""
        x, state, output_state = given
        if state is not None or output_state:
            fail(PlacementError, "state", "one, or asked for", "left to the ranks, which hand states on")
        if self.earlier is not None:
            like = mixer.init_state(x.shape[0])
            parts = iter(_Receive.apply(self, x, *map(self._mine, _tensors(like))))
            state = over_tensors(lambda part: self._whole(next(parts)), like)
        return (x, state, self.later is not None), named

    @torch._dynamo.disable
    def after(self, mixer: Any, given: Any, named: Any, found: tuple[Tensor, Any]) -> tuple[Tensor, None]:
        """Hands its state to the rank behind."""
        y, state = found
        if self.later is not None:
            y = _HandOn.apply(self, y, *map(mine, _tensors(state)))
        return y, None

    def _mine(self, x: Tensor) -> Tensor:
        """Of a part of a state the heads of this rank."""
        return x if self.heads is None else x.chunk(self.heads.size(), 1)[0]

    def _whole(self, part: Tensor) -> Tensor:
        """The part of a state of which these are this rank's heads."""
        if self.heads is None:
            return part
        from torch.distributed.tensor import DTensor, Shard

        return DTensor.from_local(part, self.heads, [Shard(1)], run_check=False)

    def send(self, parts: list[Tensor], rank: int) -> None:
        """Does not wait for the other rank; what is sent is kept until it has gone."""
        for work, _ in self.sent:
            work.wait()
        laid = [x.contiguous() for x in parts]
        self.sent = [(dist.isend(x, rank, self.group), x) for x in laid]

    def receive(self, parts: list[Tensor], rank: int) -> list[Tensor]:
        """Tensors like these."""
        found = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in parts]
        for x in found:
            dist.recv(x, rank, self.group)
        return found


class _Receive(torch.autograd.Function):
    """The state of the rank before; backward, its gradient goes there.

    The input is an argument so that this has a place in the graph.
    """

    @staticmethod
    def forward(ctx: Any, hands: _Hands, x: Tensor, *like: Tensor) -> tuple[Tensor, ...]:
        ctx.hands = hands
        found = hands.receive(list(like), hands.earlier)  # type: ignore[arg-type]
        ctx.mark_non_differentiable(*[part for part in found if not part.is_floating_point()])
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
        ctx.hands.send([x for x in gradients if x.is_floating_point()], ctx.hands.earlier)
        return (None, None) + (None,) * len(gradients)


class _HandOn(torch.autograd.Function):
    """An output as it is, with which a state goes to the rank behind; backward, its gradient comes back."""

    @staticmethod
    def forward(ctx: Any, hands: _Hands, y: Tensor, *parts: Tensor) -> Tensor:
        ctx.hands = hands
        ctx.like = [torch.empty_like(x, device="meta") for x in parts]
        ctx.device = y.device
        hands.send(list(parts), hands.later)  # type: ignore[arg-type]
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        floating = [torch.empty_like(x, device=ctx.device) for x in ctx.like if x.is_floating_point()]
        found = iter(ctx.hands.receive(floating, ctx.hands.later))
        of_parts = [next(found) if x.is_floating_point() else None for x in ctx.like]
        return None, dy, *of_parts


def _tensors(state: Any) -> list[Tensor]:
    """All tensors of a state, in order."""
    found: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        found.append(x)
        return x

    over_tensors(keep, state)
    return found
