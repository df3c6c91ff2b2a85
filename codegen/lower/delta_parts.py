"""What the programs of the delta rule have beside what all of linear attention has (`delta`)."""

from __future__ import annotations

from ..ir.build import Builder
from ..ir.nodes import ACC, OPERAND
from ..ir.program import Tensor
from ..memory.delta import Corrected
from .linear_attention_parts import ROWS, TOKENS, Layer
from .sequence import Sequence


class DeltaLayer(Layer):
    """The widths and the feature map of one layer, and the pieces that several of its programs need."""

    def rates(self) -> Tensor:
        """β of every token."""
        return Tensor("beta", ROWS, ACC)

    def inverse(self) -> Tensor:
        """The rows of each chunk's inverse; `solved` are the tokens of a chunk."""
        return Tensor("inverse", (*ROWS, "solved"), OPERAND, strided=True)

    def corrected(self, b: Builder, sequence: Sequence = TOKENS, fades: bool = True) -> Corrected:
        """The memory of a program that corrects values."""
        fade = self.fade(b, sequence) if fades else None
        return Corrected(b, self.features, sequence, None, fade=fade)
