"""How far decoding goes off with states of two bytes: ``python -m benchmarks.state_dtype``.

Steps on the torch backend, which rounds as the others do, against the same steps in float64: the error of the
outputs of the last 32 tokens, in the norm, relative to them.  It takes some minutes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

import based_ops

STEPS = (100, 1000, 3000, 10000, 30000)
BATCH, HEADS, LAST = 1, 8, 32
DTYPES = ("float32", "bfloat16", "float16")
MAPS = {  # the map, whether it normalises, and the mean of v
    "elu(x) + 1": ("{kind: elementwise, expression: elu(x) + 1}", True, 1.0),
    "relu(x)": ("{kind: elementwise, expression: relu(x)}", True, 0.0),
    "taylor_exp 2": ("{kind: taylor_exp, order: 2}", True, 0.0),
    "x": ("{kind: elementwise, expression: x}", False, 0.0),
}


def variant(number: int, dtype: str) -> based_ops.Variant:
    feature_map, normalize, _ = list(MAPS.values())[number]
    name = f"state_{number}_{dtype}"
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / f"{name}.yaml"
        path.write_text(
            f"name: {name}\nmixer: linear_attention\nfeature_map: {feature_map}\n"
            f"head_dims: {{qk: 16, v: 64}}\n"
            f"normalize: {str(normalize).lower()}\nstate_dtype: {dtype}\n",
            encoding="utf-8",
        )
        return based_ops.load(path)


def errors(number: int) -> dict[str, list[float]]:
    """For every dtype the error after each number of `STEPS`."""
    operators = {dtype: variant(number, dtype) for dtype in DTYPES}
    mean = list(MAPS.values())[number][2]
    exact = operators["float32"].init_state(BATCH, HEADS, dtype=torch.float64)
    states = {dtype: op.init_state(BATCH, HEADS) for dtype, op in operators.items()}
    generator = torch.Generator().manual_seed(0)
    found: dict[str, list[float]] = {dtype: [] for dtype in DTYPES}
    off, size = dict.fromkeys(DTYPES, 0.0), 0.0
    for step in range(1, STEPS[-1] + 1):
        q, k, v = torch.randn(3, BATCH, 1, HEADS, 64, generator=generator)
        q, k, v = q[..., :16], k[..., :16], v + mean
        wanted = operators["float32"].step(q.double(), k.double(), v.double(), exact)
        outputs = {dtype: op.step(q, k, v, states[dtype]) for dtype, op in operators.items()}
        mark = next(mark for mark in STEPS if mark >= step)
        if step > mark - LAST:
            size += float(wanted.square().sum())
            for dtype, o in outputs.items():
                off[dtype] += float((o - wanted).square().sum())
        if step == mark:
            for dtype in DTYPES:
                found[dtype].append((off[dtype] / size) ** 0.5)
            off, size = dict.fromkeys(DTYPES, 0.0), 0.0
    return found


def main() -> None:
    print(f"| map | state | {' | '.join(map(str, STEPS))} |\n|---|---|{'---|' * len(STEPS)}")
    for number, name in enumerate(MAPS):
        for dtype, row in errors(number).items():
            print(f"| `{name}` | {dtype} | {' | '.join(f'{error:.1e}' for error in row)} |", flush=True)


if __name__ == "__main__":
    main()
