"""What a schedule is."""

from __future__ import annotations

from dataclasses import dataclass

HOST_C = "c"
"""TileLang's C target: the same TileLang printer, with every tile in local memory, run on the host."""


@dataclass(frozen=True)
class Setting:
    """The choices for one program and dtype: tile sizes by name, warps a block, pipeline stages."""

    constants: dict[str, int]
    warps: int = 4
    stages: int = 2


@dataclass(frozen=True)
class Schedule:
    """The choices for one program on one backend."""

    program: str
    backend: str
    settings: dict[str, Setting]
    rewrites: tuple[str, ...] = ()
    origin: str = "policy"

    def values(self, constant: str) -> set[int]:
        """Every value that a constant takes over the dtypes."""
        return {setting.constants[constant] for setting in self.settings.values()}
