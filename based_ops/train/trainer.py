"""The loop: sequences of a step, their loss and gradients, the optimiser, and what is said of it."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .. import models
from ..errors import ArgumentValueError, fail
from ..extras import installed, require
from ..models import LanguageModel
from ..models.inference import room_to_compile
from ..sharding import is_distributed
from . import checkpoint, flops
from .distribute import Share
from .masters import Masters
from .settings import DTYPES, Settings
from .text import Text, rows_of


@dataclass(frozen=True)
class Progress:
    """What is known after a step.

    Examples:
        >>> from based_ops.train import Progress
        >>> Progress(10, 2.5, 0.9, 1e-3, 40_000.0, None).loss
        2.5
    """

    step: int
    """Steps that are done."""
    loss: float
    """Of the step, before it: nats a token, on average."""
    norm: float
    """Of the gradients, before they were clipped."""
    lr: float
    tokens_per_second: float
    """Of all ranks, since the progress before this one."""
    utilisation: float | None
    """Model-flops utilisation: operations that the model takes at least (`flops.of_token`), as a part of what
    the devices are stated to do; None for devices of which this library does not know that."""


class Trainer:
    """Trains a model on a text.

    What a step reads follows from the seed and the number of the step alone, so a run that was interrupted
    goes on as if it had not been: on a CPU with the same bits, with another number of ranks up to rounding.

    Args:
        model: Parameters in float32 or float64; logits [B,T,vocabulary] are the first of its results.
        text: What to read.
        settings: The recipe.
        share: What `distribute` said of this model.
        compiled: Whether blocks and loss go through `torch.compile`.

    Raises:
        ArgumentValueError: the text is shorter than a sequence, or has tokens that the model lacks.
        CheckpointError: by `resume`, for a run of another model, text or recipe.

    Examples:
        >>> import tempfile, pathlib
        >>> from based_ops import models
        >>> from based_ops.train import Settings, Trainer, read
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for i in range(40):
        ...     _ = (folder / f"{i}.txt").write_text(f"The file of number {i}. " * 9)
        >>> settings = Settings(steps=1, batch=1, length=16, dtype="float32")
        >>> trainer = Trainer(models.LanguageModel("based-tiny"), read(folder), settings)
        >>> [now.step for now in trainer.run()]
        [1]
    """

    def __init__(
        self,
        model: nn.Module,
        text: Text,
        settings: Settings,
        share: Share | None = None,
        compiled: bool = False,
    ) -> None:
        """`model` gives logits as the first of its results; its parameters are in float32, or float64.

        `share` is what `distribute` said of this model.  With `compiled` each block, and the loss, go through
        `torch.compile`.  Raises `ArgumentValueError` for a text of fewer tokens than a sequence, or tokens
        that the model lacks.
        """
        self.model, self.text, self.settings, self.share = model, text, settings, share or Share()
        self.done = 0
        if len(text.train) <= settings.length:
            what = f"below the {len(text.train)} tokens of the text"
            fail(ArgumentValueError, "length", settings.length, what)
        vocabulary = getattr(getattr(model, "spec", None), "vocabulary", text.tokenizer.vocabulary)
        if vocabulary < text.tokenizer.vocabulary:
            what = f"at least {text.tokenizer.vocabulary}, the tokens of the text"
            fail(ArgumentValueError, "vocabulary", vocabulary, what)
        self.share.part(torch.empty(settings.batch, settings.length + 1, device="meta"))  # whether it divides
        rows = settings.batch // self.share.sizes["data"]
        if rows % settings.calls:
            fail(ArgumentValueError, "calls", settings.calls, f"a divisor of {rows}, the sequences of a rank")
        self.masters = Masters(model, settings)
        self.device = next(model.parameters()).device
        if not self.share.owns_weights:
            self.masters.compute_in(_dtypes(model, DTYPES[settings.dtype]))
        self._loss: Callable[[Tensor, Tensor], Tensor] = _loss
        self.compiled = compiled
        if compiled:
            for block in getattr(model, "blocks", ()):
                block.compile()
            self._loss = torch.compile(_loss)
        self._cost = flops.of_token(model, settings.length)

    def step(self) -> tuple[Tensor, Tensor]:
        """One step of the optimiser: its loss before it and the norm of its gradients, on the device."""
        ids = self.share.part(self.sequences(self.done))
        losses = []
        for rows in ids.chunk(self.settings.calls):
            with self._calling():
                loss = self.loss(rows.to(self.device, torch.int64))
                (loss / self.settings.calls).backward()
            losses.append(loss.detach())
            self.masters.gather()
        self.share.average(self.masters.gradients())
        norm = self.masters.step(self.settings.learning_rate(self.done))
        self.done += 1
        return self.share.mean(torch.stack(losses).mean()), norm

    def run(self, every: int = 10) -> Iterator[Progress]:
        """Trains to the end; what is known every so many steps, and after the last."""
        begin, before = time.perf_counter(), self.done
        while self.done < self.settings.steps:
            loss, norm = self.step()
            if self.done % every and self.done < self.settings.steps:
                continue
            known = float(loss), float(norm)  # which waits for the device
            seconds, now = time.perf_counter() - begin, self.done
            rate = (now - before) * self.settings.batch * self.settings.length / seconds
            yield Progress(now, *known, self.settings.learning_rate(now - 1), rate, self._utilisation(rate))
            begin, before = time.perf_counter(), now

    @torch.no_grad()
    def evaluate(self, sequences: int = 64) -> float:
        """The loss of held out text, nats a token: of so many sequences, spread over all of it evenly.

        Every rank asks for it at the same time.
        """
        rows = rows_of(self.text.held_out, self.settings.length, sequences)
        ranks = self.share.sizes["data"]
        rows = rows[: max(len(rows) // ranks, 1) * ranks]
        if len(rows) < ranks:
            fail(ArgumentValueError, "sequences", len(rows), f"at least {ranks}, one of each rank")
        ids = self.share.part(rows)
        most = max(1, self.settings.batch // self.settings.calls // ranks)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for several in ids.split(most):
            with self._calling():
                total += self.loss(several.to(self.device, torch.int64)).detach() * len(several)
        return float(self.share.mean(total / len(ids)))

    def loss(self, ids: Tensor) -> Tensor:
        """Nats a token, on average, of sequences [B,T+1]."""
        return self._loss(self.model(ids[:, :-1])[0], ids[:, 1:])

    def sequences(self, step: int) -> Tensor:
        """The sequences of a step, [batch,length+1]; those of one step of all ranks."""
        digest = hashlib.sha256(f"{self.settings.seed} {step}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))  # it takes 32 bits
        room = len(self.text.train) - self.settings.length
        starts = torch.randint(room, (self.settings.batch, 1), generator=generator)
        return self.text.train[starts + torch.arange(self.settings.length + 1)]

    def save(self, folder: str | Path) -> Path:
        """Writes all that the run needs to go on, once every rank calls it; the newest state is kept."""
        return checkpoint.save(self, Path(folder))

    def resume(self, folder: str | Path) -> int:
        """Goes on where a folder's newest state is, if it has one; says after how many steps that was.

        Raises `CheckpointError` for what is of another model, text or recipe; more `steps` are none.
        """
        self.done = checkpoint.resume(self, Path(folder))
        return self.done

    def weights(self) -> dict[str, Tensor]:
        """The masters by name, whole, and buffers: the same for every rank, which all have to ask."""
        found = self.masters.state()["parameters"] | dict(self.model.named_buffers())
        return {name: x.full_tensor() if is_distributed(x) else x for name, x in found.items()}

    def export(self, folder: str | Path) -> None:
        """Writes a folder that `based_ops.models.load` reads, in float32, once every rank calls it.

        With `tokenizers` there, tokenizer.json lies in it too.  Needs the extra `models`.
        """
        require("models", "a model on disk", "safetensors")
        weights = self.weights()
        if self.share.first:
            models.checkpoint.write(self.model.spec, weights, Path(folder))  # type: ignore[arg-type]
            if installed("tokenizers"):
                self.text.tokenizer.save(Path(folder))

    @contextmanager
    def _calling(self) -> Iterator[None]:
        """Around calls of the model and their backward passes."""
        with self.share.computing(), room_to_compile() if self.compiled else nullcontext():
            yield

    def _utilisation(self, rate: float) -> float | None:
        peak = flops.peak(self.device)
        ranks = math.prod(self.share.sizes.values())
        return None if peak is None else self._cost * rate / (peak * ranks)


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    wide = torch.promote_types(logits.dtype, torch.float32)
    return cross_entropy(logits.to(wide).flatten(0, 1), targets.flatten())


def _dtypes(model: nn.Module, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """In what each parameter is computed with: some of ours are float32 in models of any dtype."""
    if isinstance(model, LanguageModel):
        model = LanguageModel(model.spec, device="meta", dtype=dtype)
        return {name: x.dtype for name, x in model.named_parameters()}
    return {name: dtype for name, _ in model.named_parameters()}
