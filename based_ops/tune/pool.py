"""Worker processes that answer one task at a time and are replaced when they die."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from time import monotonic
from typing import Any

Task = dict[str, Any]
Answer = dict[str, Any]


class Worker:
    """One process; `ask` starts it anew if the task before killed it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self._closed = False

    def ask(self, task: Task, timeout: float) -> Answer:
        """The worker's answer, or ``{"why": ...}`` if it died or took longer than `timeout` seconds."""
        process = self._alive()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(task) + "\n")
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], timeout)
            line = process.stdout.readline() if ready else ""
        except (OSError, ValueError):
            ready, line = [process.stdout], ""
        if line:
            return json.loads(line)
        self._end()
        if not ready:
            return {"why": f"took longer than {timeout:.0f} s"}
        return {"why": f"the worker died with code {process.returncode}: {self._last_words()}"}

    def close(self) -> None:
        """End the process; a task that it is at work on is answered with why it died."""
        self._closed = True
        self._end()

    def _alive(self) -> subprocess.Popen[str]:
        if self._closed:
            raise RuntimeError("the worker is closed")
        if self._process is None or self._process.poll() is not None:
            # A session of its own: an interrupt of the command is the parent's business.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "based_ops.tune.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                start_new_session=True,
            )
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().strip().splitlines() or ["without a message"]
        return lines[-1]


class Pool:
    """Several workers at once, a thread each."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._executor = ThreadPoolExecutor(jobs)
        self._own = threading.local()
        self._workers: list[Worker] = []

    def answers(self, tasks: Iterable[Task], timeout: float, deadline: float) -> Iterator[tuple[int, Answer]]:
        """The number of each task with its answer, as they come; no task is begun after `deadline`."""
        waiting: dict[Future[Answer | None], int] = {
            self._executor.submit(self._ask, task, timeout, deadline): number
            for number, task in enumerate(tasks)
        }
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                number, answer = waiting.pop(future), future.result()
                if answer is not None:
                    yield number, answer

    def close(self) -> None:
        """End all workers at once."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.close()

    def _ask(self, task: Task, timeout: float, deadline: float) -> Answer | None:
        if monotonic() > deadline:
            return None
        if not hasattr(self._own, "worker"):
            self._own.worker = Worker()
            self._workers.append(self._own.worker)
        return self._own.worker.ask(task, timeout)
