"""Which layers recall, in two minutes on a CPU: `python examples/recall.py`

Multi-query associative recall (Zoology, arXiv 2312.04927): a sequence gives pairs of keys and values, then
keys again, and the model has to say their values.  A layer of fixed memory can only keep so many; the table
says how many bytes each has for a sequence.  `based-ops recall mqar` does this at the papers' sizes.
"""

from __future__ import annotations

import argparse

from based_ops.recall.designs import Design
from based_ops.recall.mqar import Segment
from based_ops.recall.recipe import Recipe
from based_ops.recall.train import Data, Epoch, Training, train

DESIGNS = (
    "based d=32 features=8",  # Taylor linear attention and a window of 16, in turn
    "attention d=32",  # all keys, for comparison
    "window d=32 window=8",  # the last 8 keys alone
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train small models of recall beside one another.")
    parser.add_argument("designs", nargs="*", default=DESIGNS, help="such as 'based d=64 features=16'")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--examples", type=int, default=4096, help="sequences of an epoch")
    given = parser.parse_args()

    recipe = Recipe(
        vocabulary=32,
        train=(Segment(length=32, pairs=4, examples=given.examples),),
        tests=(Segment(32, 2, 256), Segment(32, 4, 256), Segment(64, 8, 256)),
        epochs=given.epochs,
        rates=(1e-2,),
        batch=32,
        dropout=0.0,
    )
    data = Data.of(recipe, "cpu")
    tests = ", ".join(f"{test.asked} in {test.length}" for test in recipe.tests)
    print(f"pairs in tokens of each test: {tests}")

    for text in given.designs:
        design = Design.read(text)
        training = Training(design, recipe, recipe.rates, seeds=(0,), device="cpu")

        def told(epoch: Epoch) -> None:
            print(f"  epoch {epoch.number}  loss {epoch.losses[0]:.3f}  {epoch.seconds:.0f} s", flush=True)

        size = sum(layer.state_bytes for layer in design.layers())
        print(f"{design}: {size:,} bytes of state a sequence")
        last = train(training, data, told)
        print("  recalled " + ", ".join(f"{100 * right:.1f} %" for right in last.accuracies[0]))


if __name__ == "__main__":
    main()
