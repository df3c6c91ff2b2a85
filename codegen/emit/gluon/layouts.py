"""Layouts: which thread holds which element of a tile, by the tile's shape and place alone."""

from __future__ import annotations

from dataclasses import dataclass

VECTOR = 8
"""Elements of two bytes that one thread copies at once."""
LANES = 32
ALONE = "ALONE"
"""The layout of what single warps calculate with."""


@dataclass(frozen=True)
class Slice:
    """The layout of a vector along one axis of tiles in some layout: 1 for a number each row."""

    axis: int
    tile: str


class Layouts:
    """Those that a kernel names, with what they are."""

    def __init__(self, warps: int) -> None:
        self._warps = warps
        self.found: dict[str, str] = {}

    def sums(self, columns: int) -> str:
        """Results of products, and whatever is calculated with them."""
        shape = f"[3, 0], [{self._warps}, 1], [16, {columns}, 16]"
        return self._named(f"SUMS_{columns}", f"gl.NVMMADistributedLayout({shape})")

    def left(self, columns: int) -> str:
        """What products read on their left from registers: the elements of `sums` in pairs."""
        return self._named(f"LEFT_{columns}", f"gl.DotOperandLayout(0, {self.sums(columns)}, 2)")

    def alone(self) -> str:
        """Results of products that single warps make; those of which they have few rows are in each warp."""
        return self._named(ALONE, f"gl.NVMMADistributedLayout([2, 0], [{self._warps}, 1], [16, 8])")

    def side(self, right: bool) -> str:
        """What these read from registers, on their left or right."""
        name = "ALONE_RIGHT" if right else "ALONE_LEFT"
        return self._named(name, f"gl.DotOperandLayout({int(right)}, {self.alone()}, 2)")

    def shared(self, columns: int) -> str:
        """What they read from shared memory, two bytes each."""
        row = min(128, 2 * columns)
        if row < 32:
            return self._named("PLAIN", "gl.NVMMASharedLayout(0, 16)")
        return self._named(f"BYTES_{row}", f"gl.NVMMASharedLayout({row}, 16)")

    def tensor_memory(self, rows: int, columns: int) -> str:
        """Results of products in tensor memory."""
        return self._named(
            f"TENSOR_{rows}_{columns}", f"TensorMemoryLayout([{rows}, {columns}], col_stride=1)"
        )

    def rows(self, columns: int) -> str:
        """Who copies what of rows in memory: neighbouring lanes a row."""
        across = columns // VECTOR
        lanes = f"[{LANES // across}, {across}]"
        shape = f"[1, {VECTOR}], {lanes}, [{self._warps}, 1], [1, 0]"
        return self._named(f"ROWS_{columns}", f"gl.BlockedLayout({shape})")

    def numbers(self) -> str:
        """Numbers of tokens in shared memory."""
        return self._named("NUMBERS", "gl.SwizzledSharedLayout(1, 1, 1, [0])")

    def copied(self) -> str:
        """Who copies them."""
        return self._named("ONE_EACH", f"gl.BlockedLayout([1], [{LANES}], [{self._warps}], [0])")

    def tokens(self, count: int) -> str:
        """Numbers of tokens in registers, all of them in each warp."""
        each = max(1, count // LANES)
        return self._named("TOKENS", f"gl.BlockedLayout([{each}], [{LANES}], [{self._warps}], [0])")

    def slice(self, layout: Slice) -> str:
        """The layout of a vector."""
        return f"gl.SliceLayout({layout.axis}, {layout.tile})"

    def _named(self, name: str, value: str) -> str:
        self.found[name] = value
        return name
