"""One spec on its way to a kernel: what each stage prints, taken from the compiler when the site is built."""

from __future__ import annotations

from click.testing import CliRunner

from based_ops.cli import main

NAME = "relu_qk64_v64"
SHOWN = 60
"""Lines of a stage that the page has room for."""
WORDS = {
    "spec": (
        "yaml",
        "What a user wrote, with defaults filled in. It holds meaning only: no tile size, no device.",
    ),
    "program": (
        "text",
        "The tile programs: each algorithm once, in a small language of tiles. A `for` over chunks is "
        "sequential, programs of a grid are parallel, and what a tile holds has a shape and a dtype.",
    ),
    "schedule": (
        "text",
        "Sizes, warps, stages and rewrites of each program on each backend, and what chose them: the policy, "
        "or a record of `based-ops tune`.",
    ),
    "triton": ("python", "What is printed for Triton: the program above, with the sizes as constants."),
    "gluon": (
        "python",
        "The same algorithm for Hopper's warpgroups, printed from its program by a plan of places, which "
        "`--stage schedule` ends with: what is copied ahead, shared, in registers or turned, and in which "
        "order steps are done. Layouts, fences, barriers and waits follow.",
    ),
    "tilelang": ("python", "The same for TileLang."),
    "torch": ("python", "The same for PyTorch, which runs anywhere, and in float64."),
}


def stages() -> str:
    """A section a stage."""
    return "\n\n".join(map(_stage, WORDS))


def _stage(stage: str) -> str:
    language, said = WORDS[stage]
    words = ["show", NAME, "--stage", stage]
    done = CliRunner().invoke(main, words, catch_exceptions=False)
    if done.exit_code:
        raise RuntimeError(done.output)
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    left = len(lines) - SHOWN
    more = f"\n\n… and {left:,} lines more." if left > 0 else ""
    shown = "\n".join(lines[:SHOWN])
    command = f"based-ops {' '.join(words)}"
    return f"### {stage}\n\n{said}\n\n```sh\n{command}\n```\n\n```{language}\n{shown}\n```{more}"
