"""Training models of one design side by side, each with a learning rate of its own."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..errors import ArgumentValueError, fail
from .designs import Design
from .examples import Examples, batches
from .model import start
from .recipe import Recipe

LOGITS = 2**28
"""As many at most in one product of a test."""
WARM = 3
"""Steps before one is recorded: kernels are compiled in them, and libraries get their memory."""


@dataclass(frozen=True)
class Data:
    """The examples of a recipe on a device."""

    recipe: Recipe
    train: tuple[Examples, ...]
    tests: tuple[Examples, ...]

    @classmethod
    def of(cls, recipe: Recipe, device: torch.device | str) -> Data:
        """All of them, drawn there; each segment has a seed of its own that follows from the recipe's."""
        seeds = iter(range(1000 * recipe.data_seed, 1000 * recipe.data_seed + 1000))
        train, tests = (
            tuple(task.draw(recipe.vocabulary, next(seeds), device) for task in of)
            for of in (recipe.train, recipe.tests)
        )
        return cls(recipe, train, tests)


@dataclass(frozen=True)
class Epoch:
    """What an epoch of all models side by side has come to."""

    number: int
    """From 1."""
    seconds: float
    """Of training, without tests."""
    losses: list[float]
    """Of each model, the mean over the epoch's steps."""
    accuracies: list[list[float]]
    """Of each model, for each test."""

    @property
    def means(self) -> list[float]:
        """Of each model, over the tests."""
        return [sum(of_model) / len(of_model) for of_model in self.accuracies]


class AdamW:
    """AdamW (arXiv 1711.05101) over all parameters as one tensor, with a learning rate for each number."""

    def __init__(self, parameters: Sequence[Tensor], recipe: Recipe, device: torch.device) -> None:
        self.recipe = recipe
        sizes = [x.numel() for x in parameters]
        self.values, self.gradients, self.rates, self.means, self.squares = (
            torch.zeros(sum(sizes), device=device) for _ in range(5)
        )
        self.betas = torch.tensor(recipe.betas, device=device)
        self.powers = torch.ones(2, device=device)
        """Of the betas, by the number of steps."""
        places = zip(self.values.split(sizes), self.gradients.split(sizes), strict=True)
        for x, (value, gradient) in zip(parameters, places, strict=True):
            value.copy_(x.detach().flatten())
            x.data = value.view(x.shape)
            x.grad = gradient.view(x.shape)

    @torch.no_grad()
    def step(self) -> None:
        """With the gradients as they are, which it sets to 0."""
        first, second = self.recipe.betas
        self.powers *= self.betas
        rest = 1 - self.powers
        self.means.lerp_(self.gradients, 1 - first)
        self.squares.mul_(second).addcmul_(self.gradients, self.gradients, value=1 - second)
        size = (self.squares / rest[1]).sqrt_().add_(self.recipe.eps)
        self.values.addcmul_(self.values, self.rates, value=-self.recipe.weight_decay)
        self.values.addcdiv_(self.means * self.rates / rest[0], size, value=-1)
        self.gradients.zero_()


class Training:
    """Models of a design, one for each learning rate and seed, seeds in the outer loop."""

    def __init__(
        self,
        design: Design,
        recipe: Recipe,
        rates: Sequence[float],
        seeds: Sequence[int],
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
        graphs: bool = False,
    ) -> None:
        """`dtype` is that of products and operators (autocast); parameters and norms stay in float32.

        With `graphs` a step is one CUDA graph, which costs no time of the host.
        """
        self.recipe, self.device, self.dtype = recipe, torch.device(device), dtype
        if graphs and self.device.type != "cuda":
            fail(ArgumentValueError, "graphs", "True", f"False on a {self.device.type}: they are CUDA's")
        if not rates or not seeds:
            fail(ArgumentValueError, "rates" if seeds else "seeds", "none", "one or more")
        self.pairs = [(seed, rate) for seed in seeds for rate in rates]
        self.model = start(design, [seed for seed, _ in self.pairs], recipe.vocabulary, recipe.dropout)
        self.model.to(self.device).train()
        named = dict(self.model.named_parameters())
        self.optimizer = AdamW(list(named.values()), recipe, self.device)
        self._base = torch.cat([self._rates(name, x) for name, x in named.items()]).to(self.device)
        self._loss = torch.zeros(len(self.pairs), device=self.device)
        self._recorded: dict[tuple[int, ...], tuple[Any, Examples]] | None = {} if graphs else None

    def _rates(self, name: str, x: Tensor) -> Tensor:
        """The learning rate of each number of a parameter."""
        shape = list(x.shape)
        shape[self.model.AXES.get(name, 0)] //= len(self.pairs)
        return self.model.joined(name, [torch.full(shape, rate) for _, rate in self.pairs]).flatten()

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def step(self, examples: Examples) -> None:
        """One step of all models: gradients of the sum of their losses, of which each model has one."""
        with self._autocast():
            logits = self.model(examples.ids, examples.places)
        targets = examples.targets.flatten()
        there = (targets >= 0).sum()
        of_each = targets.repeat(len(self.pairs))
        each = cross_entropy(logits.flatten(0, 1).float(), of_each, ignore_index=-1, reduction="none")
        losses = each.view(len(self.pairs), -1).sum(1) / there
        for mixer in self.model.mixers:
            if (penalty := getattr(mixer, "penalty", None)) is not None:
                losses = losses + penalty
        losses.sum().backward()
        self.optimizer.step()
        self._loss += losses.detach()

    def epoch(self, data: Data, number: int) -> Epoch:
        """Trains the epoch `number`, from 1, and tests."""
        cosine = 0.5 * (1 + math.cos(math.pi * (number - 1) / self.recipe.epochs))
        torch.mul(self._base, cosine, out=self.optimizer.rates)
        self._loss.zero_()
        begun, steps = time.perf_counter(), 0
        for segment in data.train:
            for examples in batches(segment, self.recipe.batch):
                self._run(examples)
                steps += 1
        losses = (self._loss / steps).tolist()  # which waits for the device
        seconds = time.perf_counter() - begun
        return Epoch(number, seconds, losses, self.test(data))

    def test(self, data: Data) -> list[list[float]]:
        """The accuracy of each model in each test, over all that was asked."""
        found = [self._accuracy(test) for test in data.tests]
        return torch.stack(found, 1).tolist()

    @torch.no_grad()
    def _accuracy(self, test: Examples) -> Tensor:
        self.model.eval()
        asked = test.targets.shape[1] * len(self.pairs) * self.recipe.vocabulary
        right = torch.zeros(len(self.pairs), dtype=torch.int64, device=self.device)
        for part in zip(*(x.split(max(1, LOGITS // asked)) for x in test), strict=True):
            examples = Examples(*part)
            with self._autocast():
                logits = self.model(examples.ids, examples.places)
            right += (logits.argmax(-1) == examples.targets.flatten()).sum(1)
        self.model.train()
        return right / test.targets.numel()

    def _run(self, examples: Examples) -> None:
        """A step, as a graph if there are any."""
        if self._recorded is None:
            self.step(examples)
            return
        shape = (*examples.ids.shape, examples.places.shape[1])
        if shape not in self._recorded:
            self._recorded[shape] = self._record(examples)
        graph, taken = self._recorded[shape]
        for place, x in zip(taken, examples, strict=True):
            place.copy_(x)
        graph.replay()

    def _record(self, examples: Examples) -> tuple[Any, Examples]:
        """The graph of a step of such examples, and where it takes them from; nothing is trained by it."""
        taken = Examples(*(x.clone() for x in examples))
        with self._nothing_happens():
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM):
                    self.step(taken)
            torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        known = self._recorded or {}
        pool = next(iter(known.values()))[0].pool() if known else None
        with torch.cuda.graph(graph, pool=pool):
            self.step(taken)
        return graph, taken

    @contextmanager
    def _nothing_happens(self) -> Iterator[None]:
        """Leaves parameters and all that was summed as they were."""
        adam = self.optimizer
        changed = (adam.values, adam.gradients, adam.means, adam.squares, adam.powers, self._loss)
        kept = [x.clone() for x in changed]
        yield
        for x, old in zip(changed, kept, strict=True):
            x.copy_(old)


def train(
    training: Training, data: Data, told: Callable[[Epoch], None] = lambda epoch: None, seed: int = 0
) -> Epoch:
    """All epochs of the recipe, or as many as each seed's best model needs for `enough`; returns the last.

    `seed` is that of dropout.
    """
    devices = [training.device] if training.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        for number in range(1, data.recipe.epochs + 1):
            epoch = training.epoch(data, number)
            told(epoch)
            best: dict[int, float] = {}
            for (of, _), mean in zip(training.pairs, epoch.means, strict=True):
                best[of] = max(mean, best.get(of, 0.0))
            if min(best.values()) >= data.recipe.enough:
                break
    return epoch
