"""Trains a language model on the text of a folder: `python examples/train_lm.py based-tiny docs --out run`

    torchrun --nproc-per-node 2 examples/train_lm.py based-360m ~/text --out run --vocabulary 32000 --data 2

A run that was stopped goes on when the same line is given again, with as many processes or others.  At its
end OUT/model is a folder that `based_ops.models.load` reads.
"""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from based_ops.errors import BasedOpsError
from based_ops.extras import installed
from based_ops.models import LanguageModel, load_spec
from based_ops.train import Progress, Settings, Trainer, distribute, read
from based_ops.train.settings import DTYPES


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a language model on the text of a folder.")
    parser.add_argument("model", help="a shipped model's name, or a spec file")
    parser.add_argument("text", nargs="+", help="folders of text in UTF-8")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the run's checkpoints")
    parser.add_argument("--vocabulary", type=int, help="learn so many tokens of pairs (default: bytes)")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32, help="sequences a step, over all processes")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a sequence")
    parser.add_argument("--calls", type=int, default=1, help="calls of the model a step, to save memory")
    parser.add_argument("--lr", type=float, default=1e-3, help="the highest learning rate")
    parser.add_argument("--warmup", type=int, default=100, help="steps in which it rises")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="that of computing")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights, and of what is read when")
    parser.add_argument("--every", type=int, default=10, help="steps between lines of progress")
    parser.add_argument("--save-every", type=int, default=500, help="steps between checkpoints")
    for name, what in (("data", "batch and weights"), ("context", "sequences"), ("heads", "heads")):
        parser.add_argument(f"--{name}", type=int, default=1, help=f"processes that share {what}")
    parser.add_argument("--compile", action="store_true", help="compile each block")
    return parser.parse_args()


def begin() -> str:
    """Joins the other processes, if `torchrun` started some; the device of this one."""
    cuda = torch.cuda.is_available()
    if "WORLD_SIZE" in os.environ:
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if cuda else "gloo")
    return "cuda" if cuda else "cpu"


def said(now: Progress, steps: int) -> str:
    utilisation = "" if now.utilisation is None else f"  {100 * now.utilisation:.1f} % of the device"
    return (
        f"step {now.step}/{steps}  loss {now.loss:.4f}  norm {now.norm:.2f}  lr {now.lr:.2e}  "
        f"{now.tokens_per_second:,.0f} tokens/s{utilisation}"
    )


def main() -> None:
    given, device = arguments(), begin()
    text = read(given.text, given.vocabulary)
    settings = Settings(
        given.steps,
        given.batch,
        given.length,
        given.calls,
        given.lr,
        warmup=given.warmup,
        dtype=given.dtype,
        seed=given.seed,
    )
    torch.manual_seed(given.seed)
    spec = replace(load_spec(given.model), vocabulary=-(-text.tokenizer.vocabulary // 8) * 8)
    wide = torch.promote_types(DTYPES[given.dtype], torch.float32)
    model = LanguageModel(spec, device=device, dtype=wide)
    share = distribute(model, given.data, given.context, given.heads, DTYPES[given.dtype], device)
    trainer = Trainer(model, text, settings, share, given.compile)

    def say(line: str) -> None:
        if share.first:
            print(line, flush=True)

    parameters = sum(x.numel() for x in model.parameters())
    say(
        f"{spec.name}: {parameters:,} parameters; {len(text.train):,} tokens, {len(text.held_out):,} held out"
    )
    if done := trainer.resume(given.out):
        say(f"goes on after step {done}")
    saved = done
    for now in trainer.run(given.every):
        say(said(now, given.steps))
        if now.step - saved >= given.save_every or now.step == given.steps:
            trainer.save(given.out)
            saved = now.step
    loss = trainer.evaluate()
    bits = loss / math.log(2) / text.bytes_of_token
    say(f"held out: loss {loss:.4f}, perplexity {math.exp(loss):.2f}, {bits:.3f} bits a byte")
    if installed("safetensors"):
        trainer.export(given.out / "model")
    else:
        say("no folder for based_ops.models: safetensors is not installed")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    try:
        main()
    except BasedOpsError as error:
        raise SystemExit(str(error)) from error
