"""Continuous batching: requests join and leave between steps: `python examples/batching.py`

Each request is a slot of one pool of states, from its prompt to its last token, so memory does not grow with
what was generated.  On a GPU each step is one CUDA graph, sampling included; on a CPU the same steps run
without graphs. `serve.py` puts the same engine behind HTTP.
"""

from __future__ import annotations

import argparse
import time

import torch

from based_ops import models
from based_ops.generate import Engine, Sampling

PROMPTS = ("Once upon a time", "def main():", "The state of", "1, 2, 3,", "Dear", "It was")


def main() -> None:
    parser = argparse.ArgumentParser(description="Generate for requests that come and go.")
    parser.add_argument("model", nargs="?", default="based-tiny", help="a folder, or a shipped model's name")
    parser.add_argument("--slots", type=int, default=4, help="requests that run at a time; others wait")
    parser.add_argument("--most", type=int, default=24, help="tokens of a request, at most")
    given = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    make = models.LanguageModel if given.model in models.shipped() else models.load
    net = make(given.model, device=device)
    engine = Engine(net, slots=given.slots, decode=lambda tokens: bytes(tokens).decode(errors="replace"))
    print("each step is one CUDA graph" if device == "cuda" else "no GPU: steps run without CUDA graphs")

    waiting = list(enumerate(PROMPTS))
    running = {}
    begun, steps, tokens = time.perf_counter(), 0, 0
    while waiting or engine.busy:
        if waiting and steps % 2 == 0:  # a new client every other step
            number, prompt = waiting.pop(0)
            how = Sampling(temperature=0.8, top_p=0.95, seed=number)
            most = max(1, given.most - 3 * number)
            request = engine.submit(list(prompt.encode()), how, most, stop=["\n\n"])
            running[request.number] = request
            print(f"step {steps:3}: {prompt!r} asks for up to {most} tokens")
        got = engine.step()  # one token for everybody who has a slot
        steps, tokens = steps + 1, tokens + len(got)
        for request in [x for x in running.values() if x.ended]:
            made = len(request.tokens)
            print(f"step {steps:3}: {PROMPTS[request.number]!r} ends ({request.ended}), {made} tokens")
            del running[request.number]
    seconds = time.perf_counter() - begun
    rate, size = tokens / seconds, net.state_bytes(1)
    print(f"{tokens} tokens in {steps} steps, {rate:,.0f} tokens/s; {size:,} bytes a slot")


if __name__ == "__main__":
    main()
