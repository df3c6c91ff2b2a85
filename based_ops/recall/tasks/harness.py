"""swde, fda and squad_completion of lm-evaluation-harness, on any checkpoint, through Transformers.

The harness has the prompts, the data, the metric, the loop, and the rules of when an answer ends; the models
are those of `based_ops.hf`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...errors import ArgumentValueError, CheckpointError, fail
from ...extras import require
from . import examples
from .examples import Score

TASKS = {"swde": "SWDE", "fda": "FDA", "squad_completion": "SQUADCompletion"}
"""The harness's tasks by name, and its classes."""
VERSION = 1
"""Of all three: earlier ones do not strip prompts, and their numbers are others."""
MOST_NEW = 256
"""Tokens of an answer in squad_completion, whose lines may go on; in the others 48, or until a line ends."""
FILE = "tokenizer.json"


def scores(
    checkpoint: str,
    tasks: Sequence[str] = tuple(TASKS),
    max_length: int = 2048,
    data: Mapping[str, Path] | None = None,
    tokenizer: str | None = None,
    limit: int | None = None,
    batch: int = 8,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> list[Score]:
    """What a checkpoint reaches in tasks: a folder of ours or of Transformers, or a name on the hub.

    `data` has a file of examples for a task, in the place of the data set that the harness downloads; with it
    a task may have any name, and is scored as swde is.  `tokenizer` is a name or a folder for Transformers,
    if the checkpoint has none.  Longer prompts lose their beginning.  Needs the extra `harness`.
    """
    require("harness", "the tasks of lm-evaluation-harness")
    local = dict(data or {})
    for name in tasks:
        if name not in TASKS and name not in local:
            known = f"one of {', '.join(TASKS)}, or one with examples of its own"
            fail(ArgumentValueError, "tasks", repr(name), known)
    if max_length <= MOST_NEW:
        fail(ArgumentValueError, "max_length", max_length, f"above {MOST_NEW}, the tokens of an answer")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    from ...hf import BasedForCausalLM

    words = tokenizer_of(checkpoint, tokenizer)
    options = {} if dtype is None else {"dtype": dtype}
    model = BasedForCausalLM.from_pretrained(checkpoint, **options).to(device).eval()
    if len(words) > model.config.vocab_size:
        what = f"of at most {model.config.vocab_size} tokens, as the model has"
        fail(ArgumentValueError, "tokenizer", f"one of {len(words)}", what)
    given = [_task(name, local.get(name)) for name in tasks]
    lm = HFLM(pretrained=model, tokenizer=words, max_length=max_length, batch_size=batch, backend="causal")
    found = simple_evaluate(lm, tasks=given, limit=limit, log_samples=True, bootstrap_iters=0)
    return [_score(task.config.task, found["samples"][task.config.task], words, max_length) for task in given]


def tokenizer_of(checkpoint: str, name: str | None) -> Any:
    """Transformers' tokenizer of a name, or else of the checkpoint's folder.

    Raises `CheckpointError` where there is none.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    file = Path(name or checkpoint) / FILE
    if file.is_file() and not (file.parent / "tokenizer_config.json").is_file():
        made = PreTrainedTokenizerFast(tokenizer_file=str(file))
        vocabulary = made.get_vocab()
        end = next((x for x in ("<|endoftext|>", "\u0100") if x in vocabulary), None)  # the latter is byte 0
        if end is None:
            raise CheckpointError(f"{file}: has neither <|endoftext|> nor byte 0, which would end a text")
        made.eos_token = made.pad_token = end
        return made
    try:
        made = AutoTokenizer.from_pretrained(name or checkpoint)
    except Exception as error:  # of the hub, of files, of converters
        what = "name one, such as gpt2, which the paper's models have"
        why = str(error).partition("\n")[0]
        raise CheckpointError(f"{name or checkpoint}: has no tokenizer; {what}: {why}") from error
    if made.pad_token is None:
        made.pad_token = made.eos_token
    return made


def _task(name: str, path: Path | None) -> Any:
    """The harness's task, of its own data or of a file."""
    kind = name if name in TASKS else "swde"
    base: Any = getattr(importlib.import_module(f"lm_eval.tasks.{kind}.task"), TASKS[kind])
    if base.VERSION != VERSION:
        what = f"version {VERSION}; install lm-eval>=0.4.13"
        raise ArgumentValueError(f"{kind}: got version {base.VERSION} of the harness's task, must be {what}")

    class Task(base):
        def download(self, *given: Any, **named: Any) -> None:
            if path is None:
                return super().download(*given, **named)
            from datasets import Dataset

            rows = [{"text": x.text, "value": x.value} for x in examples.read(path)]
            self.dataset = {"validation": Dataset.from_list(rows)}

    made = Task()
    made.config.task = name
    return made


def _score(name: str, samples: Sequence[Mapping[str, Any]], words: Any, max_length: int) -> Score:
    """The harness's answers as a score, and how it let them be written: that is its own affair."""
    how = samples[0]["arguments"][0][1]
    new, until = how["max_gen_toks"], how["until"]
    prompts = [sample["doc"]["text"].strip() for sample in samples]
    cut = sum(len(words(prompt)["input_ids"]) > max_length - new for prompt in prompts)
    right = [float(x["contains"]) for x in samples]
    return examples.of(name, right, VERSION, max_length, cut, new=new, until="".join(until))
