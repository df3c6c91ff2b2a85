"""A model to train: of which kind, how wide, and its dials."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ArgumentTypeError, ArgumentValueError, fail, fail_text
from .catalogue import MODELS, Dial, Layer


@dataclass(frozen=True)
class Design:
    """A model: of which kind, how wide, and its dials, all of them."""

    model: str
    d_model: int
    dials: tuple[tuple[str, Dial], ...]

    @classmethod
    def of(cls, model: str, d_model: int, **dials: Dial) -> Design:
        """The design with the dials that are left out as they are by default.

        Raises `ArgumentValueError` or `ArgumentTypeError` that names what there is.
        """
        if model not in MODELS:
            near = difflib.get_close_matches(str(model), MODELS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(MODELS)}"
            fail_text(ArgumentValueError, f"model: {model!r} is none; {hint}")
        if isinstance(d_model, bool) or not isinstance(d_model, int) or d_model < 16:
            fail(ArgumentValueError, "d_model", repr(d_model), "an int of 16 or more")
        known = MODELS[model].dials
        for name, value in dials.items():
            if name not in known:
                fail(ArgumentValueError, f"a dial of {model}", repr(name), _one_of(known))
            if type(value) is not type(known[name]):
                fail(ArgumentTypeError, name, repr(value), f"of type {type(known[name]).__name__}")
        return cls(model, d_model, tuple((dict(known) | dials).items()))

    @classmethod
    def read(cls, text: str) -> Design:
        """The design that `str` of one shows, such as ``based d=64 features=16``; dials may be left out."""
        model, *rest = text.split()
        dials: dict[str, Any] = {}
        for word in rest:
            name, _, value = word.partition("=")
            dials[name] = {"True": True, "False": False}.get(value, int(value) if value.isdigit() else value)
        return cls.of(model, dials.pop("d", None), **dials)

    def __str__(self) -> str:
        return " ".join([self.model, f"d={self.d_model}", *(f"{name}={value}" for name, value in self.dials)])

    def layers(self) -> Sequence[Layer]:
        """Its layers; a spec that is not shipped is compiled when its layer is made."""
        return MODELS[self.model].layers(self.d_model, dict(self.dials))


def _one_of(names: Mapping[str, Any]) -> str:
    return f"one of {', '.join(names)}" if names else "left out: there are none"
