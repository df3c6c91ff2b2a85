"""The pictures of HiPPO: bases, signals read back from states, and kernels; nothing in them is measured."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from based_ops import hippo

from .ops import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {
    "legs": "legs: Legendre over an exponentially warped age",
    "legt": "legt: Legendre over a window",
    "fout": "fout: Fourier over a window",
    "foud": "foud: Fourier that fades",
    "lagt": "lagt: Laguerre",
}
SHOWN, AGES = 6, 4.0
"""Functions of each basis, and how far back a basis without an end is shown."""
ORDERS = (8, 32)
STEP = 1e-3


def draw(directory: Path) -> list[Path]:
    """Writes every picture for light and dark pages; returns their paths."""
    return plots.draw(
        None, directory, {"hippo-bases": bases, "hippo-signals": signals, "hippo-kernels": kernels}
    )


def bases(plt: Any, _: Any) -> Figure:
    """K_n(s) of each basis: what a number of the state weighs the age s with."""
    figure, panels = plt.subplots(1, len(TITLES), figsize=(13, 2.4), sharey=False)
    for panel, (name, title) in zip(panels, TITLES.items(), strict=True):
        basis = hippo.BASES[name]
        s = torch.linspace(0, min(basis.end, AGES), 400, dtype=torch.float64)
        for n, row in enumerate(basis.kernels(SHOWN, s)):
            panel.plot(s, row, color=plots.COLOURS[n], linewidth=1.2)
        _titled(panel, title.replace(": ", ":\n"), "age")
    figure.tight_layout()
    return figure


def signals(plt: Any, _: Any) -> Figure:
    """A signal, and what states of two orders say that it was."""
    figure, panels = plt.subplots(1, 3, figsize=(13, 2.6), sharey=True)
    t = STEP * torch.arange(round(6 / STEP), dtype=torch.float64)
    signal = (1.3 * t).sin() + 0.6 * (4.1 * t).cos() * torch.exp(-((t - 4) ** 2)) + 0.4 * (9 * t).sin()
    for panel, name in zip(panels[:2], ("legt", "legs"), strict=True):
        end = min(hippo.BASES[name].end, 6.0)
        ages = STEP * (0.5 + torch.arange(round(end / STEP), dtype=torch.float64))
        panel.plot(ages, signal.flip(0)[: len(ages)], color="#999999", linewidth=3)
        for colour, order in zip(plots.COLOURS, ORDERS, strict=False):
            state = hippo.remember(*hippo.matrices(name, order), signal, STEP)
            panel.plot(
                ages, hippo.recall(name, state, ages), color=colour, linewidth=1.1, label=f"order {order}"
            )
        _titled(panel, TITLES[name], "age")
    parts = torch.linspace(0, 1, 600, dtype=torch.float64)
    few = signal[::10]  # the whole history, by the scaled system
    panels[2].plot(1 - torch.linspace(0, 1, len(few)), few, color="#999999", linewidth=3, label="the signal")
    for colour, order in zip(plots.COLOURS, ORDERS, strict=False):
        found = hippo.recall_history(hippo.history(few, order), parts)
        panels[2].plot(1 - parts, found, color=colour, linewidth=1.1, label=f"order {order}")
    _titled(panels[2], "legs with x' = (A x + B u) / t: all of the history", "age, a part of the length")
    panels[0].set_ylim(-2.2, 2.2)
    panels[2].legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    return figure


def kernels(plt: Any, _: Any) -> Figure:
    """What a state space begins as: K_l = C Ā^l B̄ for C of ones, and the poles of S4D."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 2.8))
    for colour, name in zip(plots.COLOURS, TITLES, strict=False):
        a, b = hippo.matrices(name, 32)
        kernel: Tensor = hippo.kernel(a, b, torch.ones_like(b) / math.sqrt(32), 0.01, 400)
        panels[0].plot(kernel, color=colour, linewidth=1.1, label=name)
    _titled(panels[0], "kernels at order 32, Δ = 0.01", "lag, samples")
    panels[0].legend(fontsize=7)
    for colour, marker, name in zip(
        plots.COLOURS, plots.MARKERS, ("legs", "legt", "lin", "inv"), strict=False
    ):
        poles = hippo.poles(name, 32)
        turns = poles.imag.clamp(min=1e-1)
        panels[1].plot(range(len(poles)), turns.sort().values, marker, color=colour, markersize=4, label=name)
    panels[1].set_yscale("log")
    _titled(panels[1], "imaginary parts of poles at order 32, those of real part -½", "pair")
    panels[1].legend(fontsize=7)
    figure.tight_layout()
    return figure


def _titled(panel: Any, title: str, below: str) -> None:
    panel.set_title(title, fontsize=8)
    panel.set_xlabel(below, fontsize=8)
    panel.tick_params(labelsize=7)
    panel.grid(True, linewidth=0.5)
