"""Recall from real text: what a model looks up in its context, in tasks and in parts of its perplexity.

`slices` splits perplexity; `examples` says what an example is and scores answers; `fields` makes examples of
what a machine has; `harness` runs those of lm-evaluation-harness.
"""

from __future__ import annotations

from .examples import Example, Score, score
from .slices import Slice, Slices, recall_slices

__all__ = ["Example", "Score", "Slice", "Slices", "recall_slices", "score"]
