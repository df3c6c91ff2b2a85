"""Examples of recall from real text, in the form of Based's tasks, and what an answer is worth.

An example is a text that ends where a value has to follow.  Its score is 1 if the value, whatever its case,
is in what a model writes next: greedily, until a line ends, 48 tokens at most (lm-evaluation-harness, version
1 of swde and fda, which strip text and value).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ArgumentValueError, CheckpointError, fail

if TYPE_CHECKING:
    from ...models import LanguageModel

NEW = 48
"""Tokens of an answer."""
STOP = "\n"


@dataclass(frozen=True)
class Example:
    """A text, and the value that it has somewhere and that has to follow it."""

    text: str
    value: str
    document: str = ""
    """Where it comes from."""


@dataclass(frozen=True)
class Score:
    """What a model reached in a task."""

    task: str
    contains: float
    """The part of answers that have the value."""
    error: float
    """Standard error of that."""
    examples: int
    version: int
    """Of the task, as lm-evaluation-harness counts them; numbers of other versions are others."""
    max_length: int
    """Tokens of prompt and answer together."""
    cut: int
    """Prompts that were longer, and of which the model saw the end alone."""
    new: int = NEW
    """Tokens of an answer, at most."""
    until: str = STOP
    """What ends it sooner."""
    truncation: str = "left"


def read(path: str | Path) -> list[Example]:
    """The examples of a file, a JSON object a line with `text` and `value`.  Raises `ArgumentValueError`."""
    found = []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentValueError(f"{path}: cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            data: dict[str, Any] = json.loads(line)
            found.append(Example(str(data["text"]), str(data["value"]), str(data.get("document", ""))))
        except (ValueError, KeyError, TypeError) as error:
            what = "an object with `text` and `value`"
            raise ArgumentValueError(f"{path}:{number}: not {what}: {error}") from error
    if not found:
        raise ArgumentValueError(f"{path}: has no examples")
    return found


def write(path: Path, examples: Iterable[Example]) -> None:
    """The inverse of `read`."""
    lines = [json.dumps(asdict(x), ensure_ascii=False) + "\n" for x in examples]
    path.write_text("".join(lines), encoding="utf-8")


def contains(answer: str, value: str) -> bool:
    """Whether an answer has the value, in any case."""
    return value.strip().lower() in answer.lower()


def score(
    task: str,
    model: LanguageModel,
    tokenizer: Any,
    examples: Sequence[Example],
    max_length: int = 2048,
    slots: int = 64,
) -> Score:
    """What a model reaches, by the engine of `based_ops.generate`; `tokenizer` has `encode` and `decode`."""
    found = answers(model, tokenizer, examples, max_length, slots)
    right = [float(contains(x, example.value)) for x, example in zip(found, examples, strict=True)]
    cut = sum(len(tokenizer.encode(x.text.strip())) > max_length - NEW for x in examples)
    return of(task, right, 1, max_length, cut)


def answers(
    model: LanguageModel, tokenizer: Any, examples: Sequence[Example], max_length: int, slots: int = 64
) -> list[str]:
    """What a model writes after each text."""
    from ...generate import Engine

    if max_length <= NEW:
        fail(ArgumentValueError, "max_length", max_length, f"above {NEW}, the tokens of an answer")
    if not examples:
        fail(ArgumentValueError, "examples", "none", "one at least")
    prompts = [tokenizer.encode(x.text.strip())[-(max_length - NEW) :] for x in examples]
    if model.spec.vocabulary <= max(map(max, prompts)):
        raise CheckpointError(f"{model.spec.name}: has not the tokens of this tokenizer")
    engine = Engine(model, min(slots, len(prompts)), tokenizer.decode, most=max_length)
    requests = [engine.submit(prompt, most=NEW, stop=[STOP]) for prompt in prompts]
    while engine.busy:
        engine.step()
    for request in requests:
        if request.error is not None:
            raise request.error
    return [request.text for request in requests]


def of(task: str, right: Sequence[float], version: int, max_length: int, cut: int, **how: Any) -> Score:
    """The score of so many answers; `how` they were written, if not as this module does."""
    count = len(right)
    mean = sum(right) / count
    error = (mean * (1 - mean) / (count - 1)) ** 0.5 if count > 1 else 0.0
    return Score(task, mean, error, count, version, max_length, cut, **how)
