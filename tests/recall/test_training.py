"""Models side by side compute what each computes alone; a minute of training orders them as papers do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from based_ops.errors import ArgumentValueError
from based_ops.recall.catalogue import MODELS
from based_ops.recall.designs import Design
from based_ops.recall.model import start
from based_ops.recall.mqar import Segment
from based_ops.recall.peers import PEERS, Apart
from based_ops.recall.recipe import SMALL, Recipe
from based_ops.recall.train import AdamW, Data, Training, train

TINY = Recipe(
    vocabulary=32,
    train=(Segment(16, 2, 20), Segment(32, 4, 20)),
    tests=(Segment(16, 3, 10), Segment(64, 8, 10)),
    epochs=2,
    rates=(1e-3, 1e-2),
    batch=8,
)
DESIGNS = [
    *(name for name in MODELS if name not in (*PEERS, "mamba2", "map")),
    "mamba2 head=16 state=8",
    "delta features=8 fades=True",
    "delta_net fades=True",
    "map map=allpoly",
    "map map=hedgehog",
    "based conv=0 window=8",
    "sparse penalty=False",
    "hybrid factors=True window_qk=8",
]


def design(text: str, d: int = 16) -> Design:
    model, *dials = text.split()
    return Design.read(" ".join([model, f"d={d}", *dials]))


@pytest.mark.parametrize("text", DESIGNS)
def test_side_by_side_is_alone(text: str) -> None:
    """Weights, losses and accuracies of each model after two epochs, dropout and AdamW included."""
    data = Data.of(TINY, "cpu")
    together = Training(design(text), TINY, TINY.rates, [0, 5], "cpu")
    last = train(together, data)
    alone = []
    for number, (seed, rate) in enumerate(together.pairs):
        single = Training(design(text), TINY, [rate], [seed], "cpu")
        found = train(single, data)
        assert found.losses[0] == pytest.approx(last.losses[number], rel=2e-3)
        for a, b in zip(found.accuracies[0], last.accuracies[number], strict=True):
            assert abs(a - b) < 0.05
        alone.append(single.model)
    for name, parameter in together.model.named_parameters():
        parts = [model.get_parameter(name) for model in alone]
        torch.testing.assert_close(parameter, together.model.joined(name, parts), rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("text", DESIGNS)
def test_gradients_of_one_model_reach_no_other(text: str) -> None:
    model = start(design(text), [0, 1, 2], 32)
    names = dict(model.named_parameters())
    ids = torch.randint(0, 32, (2, 32))
    logits = model(ids, torch.arange(8).expand(2, 8))
    gradients = torch.autograd.grad(logits[1].square().sum(), list(names.values()), allow_unused=True)
    for (name, parameter), gradient in zip(names.items(), gradients, strict=True):
        marks = []
        for number in range(3):
            shape = list(parameter.shape)
            shape[model.AXES.get(name, 0)] //= 3
            marks.append(torch.full(shape, float(number != 1)))
        if gradient is not None:
            assert not (gradient * model.joined(name, marks)).any(), name
            assert torch.isfinite(gradient).all()


@given(st.integers(1, 4), st.integers(0, 99))
@settings(max_examples=5)
def test_seeds_give_weights_whatever_lies_beside_them(count: int, seed: int) -> None:
    alone = start(design("attention"), [seed], 32)
    beside = start(design("attention"), [*range(count), seed], 32)
    ids, places = torch.randint(0, 32, (2, 16)), torch.zeros(2, 1, dtype=torch.int64)
    torch.testing.assert_close(beside(ids, places)[-1], alone(ids, places)[0])


def test_models_that_nothing_is_known_of_stay_apart() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))

    layer = Apart(make, 3, 100)
    x = torch.randn(2, 5, 12)
    y = layer(x)
    for number, (part, found) in enumerate(zip(x.chunk(3, -1), y.chunk(3, -1), strict=True)):
        alone = make()
        alone.load_state_dict(
            {name: every[number] for name, every in zip(layer.names, layer.stacked, strict=True)}
        )
        torch.testing.assert_close(found, alone(part))
    y[..., :4].sum().backward()
    assert all(x.grad is not None and x.grad[0].any() and not x.grad[1:].any() for x in layer.parameters())
    assert layer.state_bytes(2) == 200


def test_adamw_is_that_of_pytorch() -> None:
    torch.manual_seed(0)
    ours = [torch.randn(3, 4, requires_grad=True), torch.randn(5, requires_grad=True)]
    theirs = [x.detach().clone().requires_grad_() for x in ours]
    mine = AdamW(ours, SMALL, torch.device("cpu"))
    mine.rates.fill_(0.01)
    other = torch.optim.AdamW(theirs, lr=0.01, weight_decay=SMALL.weight_decay)
    for step in range(5):
        for tensors in (ours, theirs):
            sum((x * x * (step + 1)).sum() + x.sum() for x in tensors).backward()
        mine.step()
        other.step()
        other.zero_grad()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
        assert not a.grad.any()


def test_loss_leaves_out_what_fills_a_batch() -> None:
    """The last batch of a segment is smaller in the recipe: its mean is over what there is."""
    data = Data.of(replace(TINY, train=(Segment(16, 2, 5),), dropout=0.0), "cpu")
    few = Training(design("attention"), replace(data.recipe, batch=5), [1e-3], [0], "cpu")
    filled = Training(design("attention"), data.recipe, [1e-3], [0], "cpu")
    assert few.epoch(data, 1).losses == pytest.approx(filled.epoch(data, 1).losses)


def test_losses_in_bfloat16_are_those_of_float32() -> None:
    """Logits have two bytes a number, their logarithms of sums four."""
    data = Data.of(replace(TINY, dropout=0.0), "cpu")
    losses = [
        Training(design("attention"), data.recipe, [1e-3], [0], "cpu", dtype).epoch(data, 1).losses[0]
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3) and losses[0] != losses[1]


def test_the_rate_falls_by_epochs_and_ends_where_it_is_enough() -> None:
    data = Data.of(TINY, "cpu")
    training = Training(design("attention"), TINY, [0.5], [0], "cpu")
    rates = []
    train(training, data, lambda epoch: rates.append(training.optimizer.rates.max().item()))
    assert rates == pytest.approx([0.5, 0.25])
    early = Data(replace(TINY, enough=0.0), data.train, data.tests)
    assert train(training, early).number == 1


def test_a_model_that_diverges_leaves_the_others_alone() -> None:
    data = Data.of(TINY, "cpu")
    training = Training(design("based features=8"), TINY, [1e-3, 1e30], [0], "cpu")
    last = train(training, data)
    alone = train(Training(design("based features=8"), TINY, [1e-3], [0], "cpu"), data)
    assert last.losses[0] == pytest.approx(alone.losses[0], rel=1e-3)


def test_what_cannot_be_trained() -> None:
    with pytest.raises(ArgumentValueError, match="graphs: got True, must be False on a cpu"):
        Training(design("attention"), TINY, [1e-3], [0], "cpu", graphs=True)
    with pytest.raises(ArgumentValueError, match="rates: got none"):
        Training(design("attention"), TINY, [], [0], "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize(
    "text", ["based features=8", "window window=8", "mamba2 head=16 state=8", "attention"]
)
def test_a_graph_of_a_step_is_the_step(text: str) -> None:
    data = Data.of(replace(TINY, dropout=0.0), "cuda")
    losses = [
        train(Training(design(text), data.recipe, [1e-3], [0], "cuda", graphs=graphs), data).losses
        for graphs in (False, True)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


@pytest.mark.slow
def test_windows_are_below_based_and_based_below_attention() -> None:
    """A minute or two, the better of two seeds; tests of as many and of four times the pairs trained on."""
    recipe = replace(SMALL, vocabulary=128, tests=(Segment(64, 8, 256), Segment(128, 32, 256)), epochs=4)
    data = Data.of(recipe, "cpu")
    found = {}
    for text in ("window window=8", "based features=8", "attention"):
        last = train(Training(design(text, 32), recipe, recipe.rates, [0, 1], "cpu"), data)
        found[text.split()[0]] = last.accuracies[max((0, 1), key=lambda x: last.means[x])]
    window, based, attention = (found[name] for name in ("window", "based", "attention"))
    assert window[0] < 0.2 and window[1] < 0.1, found
    assert based[0] > 0.6 and 0.2 < based[1] < 0.87, found
    assert attention[0] > 0.93 and attention[1] > 0.93, found
