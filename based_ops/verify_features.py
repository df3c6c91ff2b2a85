"""Errors of the operators that make features, likewise: against the parts one by one in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from . import dispatch
from .featured import FeaturedVariant
from .reference.parts import features
from .tolerance import BACKWARD, FORWARD, errors
from .variant import Variant
from .verify import NOISE, Case, Measurement, cases, poisoned_memory


def measure_features(
    variant: Variant,
    backend: str,
    device: str,
    dtype: torch.dtype,
    over: Sequence[Case] | None = None,
    seed: int = 0,
) -> Iterator[Measurement]:
    """Features and all gradients of what makes them, of every case; nothing of layers without parts."""
    if not isinstance(variant, FeaturedVariant):
        return
    for side in variant.spec.sides:
        maker = variant.maker(side)
        if maker is None or (side.name == "key" and len(variant.makers) == 1 and variant.spec.sides[0].parts):
            continue
        for number, case in enumerate(cases(backend, device) if over is None else over):
            torch.manual_seed(seed + number)
            made = variant.init_parameters(case.heads, device=device)
            shape = case.batch, case.length, case.heads
            x = torch.randn(*shape, variant.qk, device=device).to(dtype).requires_grad_()
            given = {}
            for parameter in side.parameters:
                y = made[parameter.name].detach()
                y = y + 0.1 * torch.randn_like(y) if parameter.learned else y
                given[parameter.name] = y.to(dtype).requires_grad_(parameter.learned)
            kernel = dispatch.kernel(variant.name, backend, x.device, dtype)
            numbers = torch.arange(case.length, device=device).expand(case.batch, -1)
            leaves = [x, *(y for y in given.values() if y.requires_grad)]
            exact = [y.detach().double().requires_grad_() for y in leaves]
            learned = iter(exact[1:])
            read = {n: next(learned) if y.requires_grad else y.double() for n, y in given.items()}
            want = features(side, exact[0], read, numbers)
            direction = torch.randn_like(want).to(dtype)
            with poisoned_memory():
                got = maker(x, side, given, None, kernel, False)
                found = torch.autograd.grad(got, leaves, direction)
            wanted = torch.autograd.grad(want, exact, direction.double())
            noise = NOISE * max(float(y.square().mean().sqrt()) for y in wanted)

            names = ["y", "dx", *(f"d{n}" for n, y in given.items() if y.requires_grad)]
            about = variant.name, backend, str(torch.device(device)), dtype, f"features of a {side.name}"
            for name, actual, expected in zip(names, (got, *found), (want, *wanted), strict=True):
                allowed, floor = (FORWARD, 0.0) if name == "y" else (BACKWARD, noise)
                yield Measurement(*about, name, case, errors(actual, expected, floor), allowed[dtype])
