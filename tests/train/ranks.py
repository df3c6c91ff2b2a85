"""What each of two processes does for `test_ranks.py`: `python -m tests.train.ranks RANK FILE`."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.testing import assert_close

from based_ops.codegen.spec import language_model as spec
from based_ops.errors import ArgumentValueError, PlacementError
from based_ops.models import LanguageModel
from based_ops.train import Settings, Text, Trainer, distribute

from .runs import TINY, made, model, settings, text

HEADS = ("based-tiny", "hybrid-tiny", "transformer-tiny")


def shared(name: str | spec.ModelSpec, words: Text, recipe: Settings, **ranks: int) -> Trainer:
    net = model(name)
    share = distribute(net, **ranks, dtype=torch.float64, device="cpu")
    return Trainer(net, words, recipe, share)


def losses(trainer: Trainer, steps: int) -> list[float]:
    return [float(x) for _ in range(steps) for x in trainer.step()]


def alike(name: str | spec.ModelSpec, how: dict[str, int], words: Text) -> None:
    """Losses, norms of gradients, evaluation and weights after steps are those of one process."""
    one, two = made(name, words), shared(name, words, settings(), **how)
    assert one.evaluate(4) == pytest.approx(two.evaluate(4), rel=1e-9), (name, how)
    assert losses(two, 3) == pytest.approx(losses(one, 3), rel=1e-9), (name, how)
    for (key, x), y in zip(two.weights().items(), one.weights().values(), strict=True):
        assert_close(x, y, msg=lambda text, key=key: f"{how} {name} {key}: {text}")


def checkpoints(words: Text, folder: Path, how: dict[str, int]) -> None:
    """What several ranks write, as many and one go on with."""
    two = shared("based-tiny", words, settings(), **how)
    losses(two, 2)
    two.save(folder)
    want = losses(two, 2)
    again = shared("based-tiny", words, settings(), **how)
    assert again.resume(folder) == 2 and losses(again, 2) == want
    one = made("based-tiny", words)
    assert one.resume(folder) == 2 and losses(one, 2) == pytest.approx(want, rel=1e-9)


def in_bfloat16(words: Text) -> None:
    """Weights that are gathered, states that are sent and heads that are shared in bfloat16."""
    recipe = settings(dtype="bfloat16")
    want = losses(made("based-tiny", words, dtype="bfloat16"), 3)
    for how in ("data", "context", "heads"):
        net = model("based-tiny", torch.float32)
        two = Trainer(net, words, recipe, distribute(net, **{how: 2}, device="cpu"))
        assert losses(two, 3) == pytest.approx(want, rel=0.02), how
        assert all(x.dtype == torch.float32 for x in two.weights().values())


def compiled(words: Text) -> None:
    """Blocks that are compiled hand states on too, and gather their weights."""
    compile_ = torch.compile
    for how in ("data", "context"):
        torch._dynamo.reset()
        want = losses(made("based-tiny", words), 2)
        net = model("based-tiny")
        share = distribute(net, **{how: 2}, dtype=torch.float64, device="cpu")
        with mock.patch.object(torch, "compile", lambda f: compile_(f, backend="aot_eager")):
            with mock.patch.object(torch.nn.Module, "compile", _compile):
                two = Trainer(net, words, settings(), share, compiled=True)
        assert losses(two, 2) == pytest.approx(want, rel=1e-9), how


def _compile(module: torch.nn.Module) -> None:
    module._compiled_call_impl = torch._dynamo.optimize("aot_eager")(module._call_impl)  # type: ignore


def refusals(words: Text) -> None:
    net = model("transformer-tiny")
    with pytest.raises(PlacementError, match=r"^blocks.0.mixer: got full attention"):
        distribute(net, context=2, device="cpu")
    with pytest.raises(PlacementError, match=r"^heads: got 2, must be 1: mamba2-tiny has no layer"):
        distribute(model("mamba2-tiny"), heads=2, device="cpu")
    with pytest.raises(PlacementError, match="got data 2 · context 2 · heads 1, must be 2 ranks together"):
        distribute(net, data=2, context=2, device="cpu")
    with pytest.raises(ArgumentValueError, match="^batch: got 5, must be a multiple of 2"):
        shared("based-tiny", words, settings(batch=5), data=2)
    with pytest.raises(ArgumentValueError, match="^length: got 31, must be a multiple of 2"):
        shared("based-tiny", words, settings(length=31), context=2)
    with pytest.raises(ArgumentValueError, match="^calls: got 4, must be a divisor of 2"):
        shared("based-tiny", words, settings(calls=4), data=2)


def numbers_of_heads(words: Text) -> None:
    """Decays, learned factors and feature maps go where their heads are."""
    kinds: tuple[Any, ...] = (spec.LinearAttention, spec.LinearAttention, spec.Hybrid)
    variants = ("retention_qk64_v64", "simple_gla_qk64_v64", "lolcats_qk64_v64_w64")
    mixers = [kind(variant=variant, heads=2) for kind, variant in zip(kinds, variants, strict=True)]
    placement = tuple(spec.Placement((i,), mixer) for i, mixer in enumerate(mixers))
    of_heads = spec.ModelSpec("of-heads", 32, 256, len(mixers), mixers[0], placement)
    alike(of_heads, {"heads": 2}, words)


def main(rank: int, file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    folder = Path(file).parent
    words = text()
    for name in TINY:
        alike(name, {"data": 2}, words)
        if LanguageModel(name, device="meta").packs:
            alike(name, {"context": 2}, words)
        if name in HEADS:
            alike(name, {"heads": 2}, words)
    numbers_of_heads(words)
    checkpoints(words, folder / "run", {"data": 2})
    in_bfloat16(words)
    compiled(words)
    refusals(words)
    dist.destroy_process_group()
    print("fine")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
