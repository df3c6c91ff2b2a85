"""What a schedule is."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

HOST_C = "c"
"""TileLang's C target: the same TileLang printer, with every tile in local memory, run on the host."""


@dataclass(frozen=True)
class Setting:
    """The choices for one program and dtype: tile sizes by name, warps a block, pipeline stages.

    `origin` says who chose; it makes no difference between two settings.
    """

    constants: dict[str, int]
    warps: int = 4
    stages: int = 2
    used: bool = True
    """Whether the program runs at all, where another could in its place."""
    origin: str = field(default="policy", compare=False)

    def __str__(self) -> str:
        sizes = "".join(f"{name}={size} " for name, size in self.constants.items())
        return f"{sizes}warps={self.warps} stages={self.stages}{'' if self.used else ' not used'}"


@dataclass(frozen=True)
class Schedule:
    """The choices for one program on one backend."""

    program: str
    backend: str
    settings: dict[str, Setting]
    rewrites: tuple[str, ...] = ()

    def only(self, dtype: str) -> Schedule:
        """The schedule for one dtype."""
        return replace(self, settings={dtype: self.settings[dtype]})

    def values(self, constant: str) -> set[int]:
        """Every value that a constant takes over the dtypes."""
        return {setting.constants[constant] for setting in self.settings.values()}
