"""A server of OpenAI's completions over the engine: `python examples/serve.py based-tiny`, then

    curl localhost:8000/v1/completions -H 'Content-Type: application/json' -d '{"prompt": "Once"}'

Requests of all clients share the engine's steps; whoever hangs up frees a slot.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any, Literal

import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict

from based_ops import models
from based_ops.errors import BasedOpsError
from based_ops.generate import Engine, Progress, Runner, Sampling


class Completion(BaseModel):
    """What may be asked for; of some fields only the value that asks for nothing is served."""

    model_config = ConfigDict(extra="forbid", strict=True)
    prompt: str | list[int]
    model: str | None = None
    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: dict[Literal["include_usage"], bool] | None = None
    user: str | None = None
    n: Literal[1] = 1
    echo: Literal[False] = False


class Bytes:
    """A tokenizer for which a token is a byte."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: list[int]) -> str:
        return bytes(tokens).decode(errors="replace")


def problem(message: str, param: str | None = None, status: int = 400) -> JSONResponse:
    """An error in OpenAI's form."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": None}}, status)


def app_of(engine: Engine, tokenizer: Any, name: str) -> FastAPI:
    """The application of an engine that decodes with the same tokenizer."""
    app, runner = FastAPI(), Runner(engine)

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = [str(part) for part in first["loc"][1:]] or ["body"]
        return problem(f"{where[0]}: {first['msg']}", where[0])

    @app.exception_handler(BasedOpsError)
    def refused(_: Request, error: BasedOpsError) -> Response:
        argument = str(error).partition(":")[0]
        return problem(str(error), {"most": "max_tokens"}.get(argument, argument))

    @app.exception_handler(Exception)
    def failed(_: Request, error: Exception) -> JSONResponse:
        return problem(f"generating failed: {error!r}", status=500)

    @app.get("/v1/models")
    def listed() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "based_ops"}]}

    @app.post("/v1/completions")
    async def completions(asked: Completion, http: Request) -> Response:
        if asked.model not in (None, name):
            return problem(f"model: got {asked.model!r}, must be {name!r}", "model", 404)
        prompt = tokenizer.encode(asked.prompt) if isinstance(asked.prompt, str) else asked.prompt
        stop = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
        how = Sampling(asked.temperature, top_p=asked.top_p, seed=asked.seed)
        parts = runner.generate(prompt, sampling=how, most=asked.max_tokens, stop=stop)
        await anext(parts)  # what is refused is so before anything streams
        about = {"id": f"cmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": name}

        def body(text: str, end: Progress | None) -> dict[str, Any]:
            choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": end and end.ended}
            return {**about, "object": "text_completion", "choices": [choice]}

        def usage(made: int) -> dict[str, int]:
            total = len(prompt) + made
            return {"prompt_tokens": len(prompt), "completion_tokens": made, "total_tokens": total}

        async def events() -> AsyncIterator[str]:
            sent = made = 0
            async for now in parts:
                if now.ended or len(now.text) > sent:
                    yield f"data: {json.dumps(body(now.text[sent:], now))}\n\n"
                sent, made = len(now.text), now.tokens
            if (asked.stream_options or {}).get("include_usage"):
                yield f"data: {json.dumps({**body('', None), 'choices': [], 'usage': usage(made)})}\n\n"
            yield "data: [DONE]\n\n"

        if asked.stream:
            return StreamingResponse(events(), media_type="text/event-stream")
        end = await end_of(parts, http)
        if end is None:
            return Response(status_code=499)  # nobody is there to read it
        return JSONResponse({**body(end.text, end), "usage": usage(end.tokens)})

    return app


async def end_of(parts: AsyncIterator[Progress], http: Request) -> Progress | None:
    """The end of a generation; None if the client hangs up before."""

    async def read() -> Progress:
        return [now async for now in parts][-1]

    reading = asyncio.create_task(read())
    while not (await asyncio.wait([reading], timeout=0.1))[0]:
        if await http.is_disconnected():
            reading.cancel()
            return None
    return reading.result()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve completions.")
    parser.add_argument("model", help="a folder with a model, or a shipped one's name for drawn weights")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    make = models.LanguageModel if given.model in models.shipped() else models.load
    net = make(given.model, device="cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = Bytes()  # or Transformers': AutoTokenizer.from_pretrained("gpt2") for the published models
    engine = Engine(net, slots=64, decode=tokenizer.decode)
    uvicorn.run(app_of(engine, tokenizer, net.spec.name), port=given.port)
