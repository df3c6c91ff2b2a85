"""Load a checkpoint that the paper's authors published: `python examples/published.py FOLDER`

FOLDER holds config.json and pytorch_model.bin, as `hazyresearch/based-360m` on the hub has them; that name
works in its place where huggingface_hub is installed.  Says what it is, writes it as a folder of this
library's, and goes on with a prompt, greedily.  The published models speak GPT-2's tokens, for which `--text`
takes Transformers' tokenizer.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from based_ops import models
from based_ops.errors import BasedOpsError
from based_ops.generate import Engine, Sampling


def main() -> None:
    parser = argparse.ArgumentParser(description="Load a published checkpoint and generate with it.")
    parser.add_argument("checkpoint", help="its folder, or its name on the hub")
    parser.add_argument("--prompt", type=int, nargs="+", default=[1, 2, 3], help="tokens")
    parser.add_argument("--text", help="a text in the place of tokens (needs transformers, and the hub)")
    parser.add_argument("--most", type=int, default=16, help="tokens to generate")
    parser.add_argument("--save", type=Path, help="write it as model.yaml and model.safetensors")
    given = parser.parse_args()

    cuda = torch.cuda.is_available()
    # In float32 on a CPU; every key of the checkpoint is used, known to have no effect, or reported.
    net = models.load(
        given.checkpoint, device="cuda" if cuda else "cpu", dtype=torch.bfloat16 if cuda else None
    )
    count = sum(x.numel() for x in net.parameters())
    mixers = ", ".join(dict.fromkeys(type(block.mixer).__name__ for block in net.blocks))
    print(f"{net.spec.name}: {count:,} parameters in {net.spec.layers} layers of {mixers}")
    print(f"state of a sequence, however long: {net.state_bytes(1):,} bytes")

    prompt, decode = given.prompt, None
    if given.text is not None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained("gpt2")
        prompt, decode = tokenizer.encode(given.text), tokenizer.decode
    (tokens,) = Engine(net, slots=1, decode=decode).generate(
        [prompt], Sampling(temperature=0), most=given.most
    )
    print("goes on with", tokens if decode is None else decode(tokens))

    if given.save is not None:
        models.save(net, given.save)
        print(f"written to {given.save}; models.load reads it")


if __name__ == "__main__":
    try:
        main()
    except (BasedOpsError, OSError) as error:
        raise SystemExit(str(error)) from error
