"""What does not meet a NaN or an infinity keeps its bits: other sequences and heads, and earlier tokens.

A value spoils its own column of the tile that its token is in.  There sums are added up again by selects, in
another order, so that earlier tokens have the right number (`test_not_finite.py`), perhaps not the same bits.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.runners import Runner
from tests.kernels.test_not_finite import Poison, draw_hybrid, draw_linear, draw_poison, draw_window
from tests.tolerance import assert_same


def dense(*tensors: Tensor) -> list[Tensor]:
    return [x.clone(memory_format=torch.contiguous_format) for x in tensors]


def assert_kept(
    what: str, found: Tensor, clean: Tensor, poison: Poison, past: int = 0, after: bool = True
) -> None:
    """Rows of queries, with `past` keys before the first, that do not see the poison; `after` it some may."""
    kept = torch.ones(found.shape, dtype=torch.bool, device=found.device)
    token = poison.token - past * (poison.name not in ("q", "do", "q_window"))
    own = kept[poison.batch, :, poison.head]
    own[max(token, 0) : None if after else token + 1] = False
    if poison.name == "v":
        own[:, poison.column] = False
    assert_same(f"{what} beside {poison.name}", found[kept], clean[kept])


@given(data=st.data())
def test_linear_attention(runner: Runner, data: st.DataObject) -> None:
    layer = draw_linear(data, runner)
    q, k, v = dense(*layer.qkv())
    do = layer.output_gradient()
    poison = draw_poison(data, q=q, k=k, v=v)
    clean, poisoned = layer.forward(q, k, v), poison.into(q=q, k=k, v=v)
    assert_kept("o", layer.forward(*poisoned).o, clean.o, poison)
    poison = draw_poison(data, do=do)
    gradients = [layer.backward(x, None, q, k, v, clean)[0] for x in (do, *poison.into(do=do))]
    assert_kept("dq", gradients[1], gradients[0], poison, after=False)


@given(data=st.data())
def test_sliding_window(runner: Runner, data: st.DataObject) -> None:
    past = data.draw(st.sampled_from((0, 0, 7, 70)), "past")
    layer = draw_window(data, runner, past)
    q, k, v = dense(*layer.qkv())
    do = layer.output_gradient()
    poison = draw_poison(data, q=q, k=k, v=v)
    clean = layer.forward(q, k, v)
    assert_kept("o", layer.forward(*poison.into(q=q, k=k, v=v))[0], clean[0], poison, past)
    poison = draw_poison(data, do=do)
    gradients = [layer.backward(x, q, k, v, *clean)[0] for x in (do, *poison.into(do=do))]
    assert_kept("dq", gradients[1], gradients[0], poison, after=False)


@pytest.mark.slow_in_c
@given(data=st.data())
def test_hybrid(runner: Runner, data: st.DataObject) -> None:
    layer = draw_hybrid(data, runner)
    inputs = dense(*layer.inputs())
    named = dict(zip(layer.names, inputs, strict=True))
    # A query or key that only older ones meet may be read with a state of none, or not at all.
    asked = {name: x for name, x in named.items() if name not in ("q", "k") or not layer.spec.window_qk}
    poison = draw_poison(data, **asked)
    clean, found = (layer.forward(x, layer.cleared(x)) for x in (inputs, poison.into(**named)))
    past = inputs[1].shape[1] - layer.call.length
    assert_kept("o", found.o, clean.o, poison, past)
