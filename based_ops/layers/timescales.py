"""Parameters of a state space that set its timescales: they learn slowly and do not decay.

A layer names them in `timescales`.  A pole that decays to 0 would forget nothing, and steps of an ordinary
learning rate throw poles about (S4, arXiv 2111.00396, appendix D.1; S4D, arXiv 2206.11893, section 4).
"""

from __future__ import annotations

from torch import nn

MOST = 1e-3
"""The largest learning rate of poles and steps Δ, as in the papers."""


def timescales(model: nn.Module) -> list[str]:
    """The names of a model's parameters that set timescales."""
    return [
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name in getattr(module, "timescales", ())
        if isinstance(getattr(module, name), nn.Parameter)
    ]


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float = 0.01, most: float = MOST
) -> list[dict[str, list[nn.Parameter] | float]]:
    """Groups for an optimiser of PyTorch: all else, and timescales, with up to `most` and without decay.

    Biases, norms and other parameters of one dimension do not decay either.

    Args:
        model: Whose parameters they are.
        lr: The learning rate of all else.
        weight_decay: Of matrices.
        most: The highest learning rate of timescales.

    Examples:
        >>> import torch
        >>> from based_ops.layers import StateSpace, parameter_groups
        >>> groups = parameter_groups(StateSpace(64), lr=1e-2)
        >>> [group["weight_decay"] for group in groups], groups[-1]["lr"] < 1e-2
        ([0.01, 0.0, 0.0], True)
        >>> optimizer = torch.optim.AdamW(groups)
    """
    slow = set(timescales(model))
    members: tuple[list[nn.Parameter], ...] = ([], [], [])
    groups: list[dict[str, list[nn.Parameter] | float]] = [
        {"params": members[0], "lr": lr, "weight_decay": weight_decay},
        {"params": members[1], "lr": lr, "weight_decay": 0.0},
        {"params": members[2], "lr": min(lr, most), "weight_decay": 0.0},
    ]
    for name, x in model.named_parameters():
        members[2 if name in slow else x.dim() <= 1].append(x)
    return [group for group in groups if group["params"]]
