"""What a user can get wrong in a layer spec, as data: where, what, what is allowed, what was meant.

The base of all errors of the library stands here too, because the compiler imports nothing of the rest;
`based_ops.errors` has it, and every error of this module, for users.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from typing_extensions import Self


class BasedOpsError(Exception):
    """Base of all errors of this library.

    The message says what is wrong and what is allowed, and `next_step` what to do about it.  A traceback
    shows that as a note below the message (from Python 3.11), and the command line in a line of its own.
    """

    remedy: ClassVar[str] = ""
    """What to do about errors of this class, unless one knows better."""
    next_step: str

    def __new__(cls, *args: Any, **_: Any) -> Self:
        # Not in `__init__`: an error that leaves Dynamo has that of another class.
        error = super().__new__(cls, *args)
        return error.then(cls.remedy)

    def then(self, step: str) -> Self:
        """The same error, which says that this is to be done next."""
        self.next_step = step
        if step:
            self.__notes__ = [f"next: {step}"]
        return self


@dataclass(frozen=True, order=True)
class SpecError:
    """One finding.  Lines and columns count from 1; line 0: the finding is about the path as a whole."""

    file: str
    line: int
    column: int
    message: str
    allowed: tuple[str, ...] = ()
    nearest: str | None = None

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        hints = []
        if self.allowed:
            hints.append("allowed: " + ", ".join(self.allowed))
        if self.nearest is not None:
            hints.append(f"did you mean `{self.nearest}`?")
        return f"{place}: {self.message}" + (f" ({'; '.join(hints)})" if hints else "")


class SpecErrors(BasedOpsError, ValueError):
    """Every finding of every file that was read, in the order of file, line and column.

    A field is unknown, missing or of a value that it cannot have, or fields contradict each other.  A finding
    has its place, what is allowed, and the nearest valid name.  Nothing is compiled or written.
    """

    remedy = (
        "docs/spec-reference.md has every field and its range; `based-ops new` writes a file to start from"
    )

    def __init__(self, errors: Iterable[SpecError]) -> None:
        self.errors: tuple[SpecError, ...] = tuple(sorted(errors, key=lambda e: (e.file, e.line, e.column)))
        super().__init__("\n".join(map(str, self.errors)))

    def __reduce__(self) -> tuple[type[SpecErrors], tuple[tuple[SpecError, ...]]]:
        return SpecErrors, (self.errors,)


class SpecWarning(UserWarning):
    """A spec that is taken as it is, but may not do what its author expects; the text is a `SpecError`'s."""


class ExpressionError(BasedOpsError, ValueError):
    """An elementwise expression that cannot be read; `offset` is the position of the fault in its text.

    Expressions are formulas in x of a few operators and functions, with constants that float32 can hold.  In
    a spec this is a finding of `SpecErrors`.
    """

    remedy = "docs/spec-reference.md#expressions lists the operators and functions"

    def __init__(
        self, message: str, offset: int = 0, allowed: Sequence[str] = (), nearest: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.offset = offset
        self.allowed = tuple(allowed)
        self.nearest = nearest


_ALIASES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "f16": "float16",
    "half": "float16",
    "fp32": "float32",
    "f32": "float32",
    "float": "float32",
    "float64": "float32",
    "fp64": "float32",
    "double": "float32",
    "max": "maximum",
    "min": "minimum",
    "ln": "log",
    "swish": "silu",
    "linear": "linear_attention",
    "linear_attn": "linear_attention",
    "based": "linear_attention",
    "taylor": "taylor_exp",
} | dict.fromkeys(
    ("swa", "window", "local", "local_attention", "window_attention", "windowed_attention")
    + ("sliding_window_attention", "sliding_attention"),
    "sliding_window",
)


def nearest_name(text: str, names: Iterable[str]) -> str | None:
    """The one of `names` that `text` was probably meant to be, or None when nothing is near."""
    names = list(names)
    wanted = text.strip().lower().replace("-", "_").replace(" ", "_")
    if _ALIASES.get(wanted) in names:
        return _ALIASES[wanted]
    near = difflib.get_close_matches(wanted, names, n=1, cutoff=0.6)
    return near[0] if near else None


def nearest_kind(text: str, kinds: Iterable[str]) -> str | None:
    """The same for words that say what a thing is: `softmax_attention` is no misspelt `linear_attention`."""
    near = nearest_name(text, kinds)
    if near is None or text.lower() in _ALIASES:
        return near
    words = text.lower().replace("-", "_").replace(" ", "_").split("_"), near.split("_")
    pairs = list(zip(*words, strict=True)) if len(words[0]) == len(words[1]) else [(text.lower(), near)]
    alike = (difflib.SequenceMatcher(None, *pair).ratio() >= 0.75 for pair in pairs)
    return near if all(alike) else None
