"""A feature map of your own against others, on associative recall: `python examples/feature_map.py`

`my_map.yaml` beside this file is the whole of a new layer.  It is compiled here, then trained beside shipped
ones on sequences in which a key comes a second time and its value is wanted.  The curves are printed, and
drawn with --plot.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

import based_ops
from based_ops import layers
from based_ops.errors import BasedOpsError
from based_ops.recall import mqar
from based_ops.state_base import State
from based_ops.variant import Variant

WIDTH, HEADS, VOCABULARY = 64, 2, 32


class Recaller(nn.Module):
    """Tokens to logits: a short convolution, which lets a value meet its key, and attention with the map."""

    def __init__(self, op: Variant[State]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.conv = layers.ShortConv(WIDTH)
        self.attention = layers.LinearAttention(WIDTH, HEADS, op)
        self.norms = nn.ModuleList(nn.RMSNorm(WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        x = x + self.conv(self.norms[0](x))[0]
        x = x + self.attention(self.norms[1](x))[0]
        return self.head(self.norms[2](x))


def curve(op: Variant[State], steps: int, every: int) -> list[tuple[int, float, float]]:
    """The step, the loss, and the part of keys that are answered, every so many steps."""
    torch.manual_seed(0)  # the same weights but for the map, and the same sequences
    net = Recaller(op)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    points = []
    for step in range(1, steps + 1):
        ids, places, targets = mqar.draw(mqar.Segment(length=32, pairs=4, examples=32), VOCABULARY, seed=step)
        logits = net(ids).gather(1, places.unsqueeze(2).expand(-1, -1, VOCABULARY))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % every == 0 or step == steps:
            right = (logits.argmax(-1) == targets).float().mean()
            points.append((step, loss.item(), right.item()))
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a feature map of your own beside shipped ones.")
    parser.add_argument("spec", nargs="?", type=Path, default=Path(__file__).with_name("my_map.yaml"))
    parser.add_argument("--beside", nargs="*", default=["relu_qk64_v64", "exp_qk64_v64", "taylor2_qk16_v64"])
    parser.add_argument("--steps", type=int, default=180)
    parser.add_argument("--plot", type=Path, help="draw the curves into this file (needs matplotlib)")
    given = parser.parse_args()

    ops = {given.spec.stem: based_ops.load(given.spec)}  # compiled once, then found in the cache
    ops |= {name: based_ops.get(name) for name in given.beside}
    curves = {}
    for name, op in ops.items():
        curves[name] = points = curve(op, given.steps, max(1, given.steps // 6))
        print(name, flush=True)
        for step, loss, right in points:
            print(f"  step {step:4}  loss {loss:.3f}  recalled {100 * right:5.1f} %")

    if given.plot is not None:
        import matplotlib.pyplot as plt

        for name, points in curves.items():
            plt.plot([step for step, _, _ in points], [loss for _, loss, _ in points], label=name)
        plt.xlabel("step")
        plt.ylabel("loss")
        plt.legend()
        plt.savefig(given.plot)
        print(f"drawn into {given.plot}")


if __name__ == "__main__":
    try:
        main()
    except (BasedOpsError, OSError) as error:
        raise SystemExit(str(error)) from error
