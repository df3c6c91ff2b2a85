"""The engine of `based_ops.generate` as a decoding loop of Transformers' `generate`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.generation import EosTokenCriteria, MaxLengthCriteria

from ..errors import ArgumentValueError, fail
from ..generate import Engine, Sampling

PROCESSORS = {"TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper"}
"""What the engine's sampling does too."""


def engine(
    model: Any,
    input_ids: Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    engine: Engine | None = None,
    **others: Any,
) -> Tensor:
    """For `generate(ids, custom_generate=engine)`: tokens [B,T'], greedy or sampled, padded on the right.

    `generate(..., engine=...)` takes an `Engine` of `model.language_model()` that is there already, with its
    graphs; else one is made for the call.  Prompts may be padded on the left.  Sampling draws its seeds from
    PyTorch's generator.  Raises `ArgumentValueError` for what the engine cannot do, such as beams.
    """
    how = generation_config
    for processor in logits_processor:
        if type(processor).__name__ not in PROCESSORS:
            fail(
                ArgumentValueError,
                "logits_processor",
                type(processor).__name__,
                f"one of {sorted(PROCESSORS)}",
            )
    for criterion in stopping_criteria:
        if not isinstance(criterion, MaxLengthCriteria | EosTokenCriteria):
            what = "a length or tokens that end"
            fail(ArgumentValueError, "stopping_criteria", type(criterion).__name__, what)
    if how.num_beams > 1:
        fail(ArgumentValueError, "num_beams", how.num_beams, "1 with the engine")
    if how.return_dict_in_generate:
        fail(ArgumentValueError, "return_dict_in_generate", True, "False with the engine")
    cache, mask = others.get("cache"), others.get("attention_mask")
    if cache is not None and cache.get_seq_length():
        fail(ArgumentValueError, "cache", "one with tokens", "left out: the engine has its own states")
    length, most = input_ids.shape[1], how.max_length - input_ids.shape[1]
    ends = [] if how._eos_token_tensor is None else how._eos_token_tensor.tolist()
    pad = 0 if how._pad_token_tensor is None else int(how._pad_token_tensor)
    if engine is not None and engine.model.embedding.weight is not model.get_input_embeddings().weight:
        fail(ArgumentValueError, "engine", "that of another model", "one of `model.language_model()`")
    if engine is None:
        engine = Engine(model.language_model(), slots=input_ids.shape[0], most=length + most)
    requests = []
    for i, row in enumerate(input_ids.tolist()):
        kept = [1] * length if mask is None else mask[i].tolist()
        prompt = [token for token, there in zip(row, kept, strict=True) if there]
        requests.append(engine.submit(prompt, _sampling(how), most=most, stop_tokens=ends))
    for request in requests:
        for _ in engine.stream(request):
            pass
    rows = [[*x.tokens, *([] if x.stop_token is None else [x.stop_token])] for x in requests]
    longest = max(map(len, rows))
    made = input_ids.new_tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
    return torch.cat([input_ids, made], 1)


def _sampling(how: Any) -> Sampling:
    if not how.do_sample:
        return Sampling()
    values = {"temperature": how.temperature, "top_k": how.top_k, "top_p": how.top_p}
    seed = int(torch.randint(2**62, ()))
    return Sampling(**{name: value for name, value in values.items() if value is not None}, seed=seed)
