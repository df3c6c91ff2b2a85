"""What the text of a TileLang kernel depends on besides its program."""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.nodes import ACC, INDEX, IO, OPERAND, STATE, Dim


@dataclass(frozen=True)
class Target:
    """What the text of a kernel needs to know of the machine it is for."""

    on_host: bool
    state_dtype: str

    def dtype(self, role: str) -> str:
        """The dtype of a tensor or tile, as text."""
        state = "float32" if self.on_host else self.state_dtype
        return {IO: "IO", OPERAND: "OPERAND", ACC: '"float32"', STATE: f'"{state}"', INDEX: '"int32"'}[role]

    def loop(self, extents: tuple[Dim, ...], gathers: bool) -> str:
        """The iterator over the elements of a tile; `gathers`: it reads columns that an index tile names."""
        sizes = ", ".join(map(str, extents))
        if self.on_host:
            return f"tl.grid({sizes})" if len(extents) > 1 else f"tl.serial({sizes})"
        return f"gathering({sizes})" if gathers else f"tl.Parallel({sizes})"
