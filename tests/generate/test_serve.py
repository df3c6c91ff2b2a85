"""The example of a server, asked by real clients over loopback."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from based_ops.generate import Engine, Sampling
from based_ops.models import LanguageModel

httpx = pytest.importorskip("httpx")
uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")
EXAMPLE = Path(__file__).parents[2] / "examples" / "serve.py"


def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_of_a_server", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where pydantic looks up annotations
    spec.loader.exec_module(module)
    return module


class Server:
    def __init__(self) -> None:
        module = example()
        self.tokenizer = module.Bytes()
        torch.manual_seed(0)
        self.net = LanguageModel("based-tiny", dtype=torch.float64)
        for x in self.net.parameters():
            if x.dim() > 1:
                x.data.mul_(5.0)
        self.engine = Engine(self.net, slots=2, decode=self.tokenizer.decode)
        app = module.app_of(self.engine, self.tokenizer, "tiny")
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1"

    def alone(self, prompt: str, how: Sampling, most: int, **more: Any) -> tuple[str, int]:
        """Text and number of tokens of a request in an engine of its own."""
        engine = Engine(self.net, 1, self.tokenizer.decode)
        request = engine.submit(self.tokenizer.encode(prompt), how, most, **more)
        while engine.busy:
            engine.step()
        return request.text, len(request.tokens)

    def post(self, **body: Any) -> Any:
        return httpx.post(f"{self.url}/completions", json=body, timeout=60)

    def rest(self) -> None:
        """Waits until every slot is free."""
        for _ in range(500):
            if not self.engine.busy:
                return
            time.sleep(0.01)
        raise AssertionError("a slot is not free")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.server.should_exit = True
    found.thread.join(10)


def events(text: str) -> list[Any]:
    *lines, done, rest = text.split("\n\n")
    assert done == "data: [DONE]" and rest == ""
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_models(server: Server) -> None:
    found = httpx.get(f"{server.url}/models").json()
    assert [x["id"] for x in found["data"]] == ["tiny"]


@pytest.mark.parametrize("how", [Sampling(), Sampling(0.9, top_p=0.8, seed=4)])
def test_a_completion(server: Server, how: Sampling) -> None:
    text, count = server.alone("Once", how, 20)
    body = dict(prompt="Once", max_tokens=20, temperature=how.temperature, top_p=how.top_p, seed=how.seed)
    found = server.post(model="tiny", **body)
    assert found.status_code == 200
    whole = found.json()
    assert (
        whole["object"] == "text_completion" and whole["model"] == "tiny" and whole["id"].startswith("cmpl-")
    )
    assert whole["choices"] == [{"index": 0, "text": text, "logprobs": None, "finish_reason": "length"}]
    assert whole["usage"] == {"prompt_tokens": 4, "completion_tokens": count, "total_tokens": 4 + count}
    streamed = server.post(**body, stream=True, stream_options={"include_usage": True})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    *parts, last = events(streamed.text)
    assert "".join(x["choices"][0]["text"] for x in parts) == text
    assert [x["choices"][0]["finish_reason"] for x in parts] == [None] * (len(parts) - 1) + ["length"]
    assert last["usage"] == whole["usage"] and last["choices"] == []
    assert len({x["id"] for x in (*parts, last)}) == 1
    assert server.post(**body | {"prompt": list(b"Once")}).json()["choices"] == whole["choices"]


def test_a_stop_string(server: Server) -> None:
    text, _ = server.alone("Once", Sampling(1.0, seed=3), 40)
    stop = text[10:12]
    body = dict(prompt="Once", max_tokens=40, seed=3, stop=stop)
    for found in (
        server.post(**body).json()["choices"][0],
        server.post(**body | {"stop": ["\0\0\0", stop]}).json()["choices"][0],
    ):
        assert found["text"] == text[: text.index(stop)] and found["finish_reason"] == "stop"
    parts = events(server.post(**body, stream=True).text)
    assert "".join(x["choices"][0]["text"] for x in parts) == text[: text.index(stop)]


def test_many_at_once(server: Server) -> None:
    """More than there are slots; each gets what it gets alone."""

    def ask(n: int) -> str:
        return str(server.post(prompt="x" * (n + 1), max_tokens=3 + n, seed=n).json()["choices"][0]["text"])

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(ask, range(6)))
    assert found == [server.alone("x" * (n + 1), Sampling(1.0, seed=n), 3 + n)[0] for n in range(6)]


@pytest.mark.parametrize(
    ("body", "status", "param", "text"),
    [
        ({"prompt": "x", "echo": True}, 400, "echo", "False"),
        ({"prompt": "x", "n": 2}, 400, "n", "1"),
        ({"prompt": ""}, 400, "prompt", "no tokens"),
        ({}, 400, "prompt", "required"),
        ({"prompt": [1, 999]}, 400, "prompt", "999"),
        ({"prompt": "x", "max_tokens": 0}, 400, "max_tokens", "1 or more"),
        ({"prompt": "x", "temperature": -1}, 400, "temperature", "0 or more"),
        ({"prompt": "x", "top_p": 0}, 400, "top_p", "above 0"),
        ({"prompt": "x", "stop": [""]}, 400, "stop", "empty"),
        ({"prompt": "x", "seed": "1"}, 400, "seed", "integer"),
        ({"prompt": "x", "surprise": 1}, 400, "surprise", "not permitted"),
        ({"prompt": "x", "model": "other"}, 404, "model", "tiny"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_refused(
    server: Server, body: dict[str, Any], status: int, param: str, text: str, stream: bool
) -> None:
    found = server.post(**body, stream=stream)
    assert found.status_code == status
    error = found.json()["error"]
    assert error["param"] == param and text in error["message"] and error["type"] == "invalid_request_error"


def test_a_body_that_is_no_json(server: Server) -> None:
    headers = {"Content-Type": "application/json"}
    found = httpx.post(f"{server.url}/completions", content=b"{", headers=headers)
    assert found.status_code == 400 and "error" in found.json()


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_frees_a_slot(server: Server, stream: bool) -> None:
    body = dict(prompt="x", max_tokens=10**6, stream=stream)
    with httpx.Client() as client:
        if stream:
            with client.stream("POST", f"{server.url}/completions", json=body) as response:
                next(response.iter_lines())
                assert server.engine.busy
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(f"{server.url}/completions", json=body, timeout=0.5)
    server.rest()


def test_an_error_of_a_step_is_an_answer(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        monkeypatch.undo()
        raise RuntimeError("a kernel is lost")

    server.rest()
    monkeypatch.setattr(server.net, "step", fail)
    found = server.post(prompt="x", max_tokens=4)
    assert found.status_code == 500 and "a kernel is lost" in found.json()["error"]["message"]
    assert server.post(prompt="x", max_tokens=4).status_code == 200


def test_openai_s_own_client(server: Server) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)
    text, count = server.alone("Once", Sampling(1.0, seed=3), 12)
    found = client.completions.create(model="tiny", prompt="Once", max_tokens=12, seed=3)
    assert found.choices[0].text == text and found.usage.completion_tokens == count
    stream = client.completions.create(model="tiny", prompt="Once", max_tokens=12, seed=3, stream=True)
    assert "".join(x.choices[0].text for x in stream) == text
    with pytest.raises(openai.BadRequestError, match="echo"):
        client.completions.create(model="tiny", prompt="Once", echo=True)
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="Once")


def test_the_example_is_short() -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 150
