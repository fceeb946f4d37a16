"""Engines of vLLM as processes (driver.py), seen from the tests.

Threads: any may call an Engine; a thread of its own takes what the engine says.
Errors: AssertionError with the log's last lines where an engine is gone, or does not answer.
"""
from __future__ import annotations

import itertools
import json
import os
import queue
import signal
import socket
import subprocess
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Sequence

HERE = os.path.dirname(os.path.abspath(__file__))
START_LIMIT_S = 300  # also where other work has the cores
ANSWER_LIMIT_S = 180
BLOCK_TOKENS = 32
SOURCE = "vllm:prompt_tokens_by_source_total{source=%s}"

# In f32 an answer does not hang on a rounding: whatever is computed together, or was computed
# before, a greedy answer is the same, unless KV is wrong. Bytes must be the same in any dtype.
ARGUMENTS = {
    "skip_tokenizer_init": True, "dtype": "float32", "max_model_len": 2048, "max_num_seqs": 8,
    "max_num_batched_tokens": 512, "enforce_eager": True, "block_size": BLOCK_TOKENS,
    "num_gpu_blocks_override": 256, "disable_log_stats": False, "seed": 0,
}


@dataclass
class Answer:
    """What became of a request: of each of its samples the tokens."""

    tokens: list[list[int]] = field(default_factory=list)
    reason: list[str] = field(default_factory=list)
    cached: int = 0
    transfer: Any = None
    aborted: bool = False


class Nest:
    """The process that has vLLM imported, which engines are forked from."""

    def __init__(self, python: str, folder: str, package: str, hash_seed: str = "random",
                 models: str | None = None) -> None:
        """folder: of socket and log. package: the folder that `import kvist` finds it in. models:
        a folder that the small models are made in."""
        self.python, self.package = python, package
        self.path = os.path.join(folder, "nest.sock")
        self.log = os.path.join(folder, "nest.log")
        environment = dict(
            os.environ, PYTHONPATH=f"{package}:{HERE}", PYTHONHASHSEED=hash_seed,
            HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1",
            VLLM_CPU_KVCACHE_SPACE="1", VLLM_HOST_IP="127.0.0.1", VLLM_LOGGING_COLOR="0")
        command = [python, os.path.join(HERE, "driver.py"), self.path]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command + ([models] if models else []), env=environment, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line == "listening\n", f"vLLM cannot be imported:\n{tail(self.log)}"

    @classmethod
    def like(cls, other: Nest, folder: str, hash_seed: str) -> Nest:
        return cls(other.python, folder, other.package, hash_seed)

    def close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def tail(path: str, lines: int = 25) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return "".join(file.readlines()[-lines:])


class Engine:
    """One engine, from its start to close() or kill(); a context manager."""

    def __init__(self, nest: Nest, log: str, arguments: dict[str, Any],
                 environment: dict[str, str], processes: bool) -> None:
        """arguments: of vLLM's EngineArgs, beyond ARGUMENTS. processes: scheduler and workers have
        processes of their own; else the whole engine is one."""
        self.log, self.processes = log, processes
        self.numbers = itertools.count(1)
        self.waiting: dict[Any, queue.Queue[dict[str, Any] | None]] = {}
        self.lock, self.saying = threading.Lock(), threading.Lock()
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(nest.path)
        self.ready: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.waiting["ready"] = self.ready
        environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1" if processes else "0", **environment}
        self.say(log=log, environment=environment, engine={**ARGUMENTS, **arguments})
        self.thread = threading.Thread(target=self.listen, daemon=True)
        self.thread.start()
        self.pid = self.take(self.ready, START_LIMIT_S, "its start")["pid"]

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    # The connection.

    def say(self, **message: Any) -> None:
        with self.saying:
            self.socket.sendall((json.dumps(message) + "\n").encode())

    def listen(self) -> None:
        """Until the connection ends: then everybody who waits is told."""
        with self.socket.makefile("r", encoding="utf-8") as lines:
            try:
                for line in lines:
                    message = json.loads(line)
                    name = message.get("number", message.get("done", "ready"))
                    with self.lock:
                        box = self.waiting.pop(name)
                    box.put(message)
            except OSError:
                pass
        with self.lock:
            boxes = list(self.waiting.values())
            self.waiting = {}
        for box in boxes:
            box.put(None)

    def take(self, box: queue.Queue[dict[str, Any] | None], limit_s: float,
             what: str) -> dict[str, Any]:
        try:
            message = box.get(timeout=limit_s)
        except queue.Empty:
            text = f"no answer within {limit_s} s: {what}\n{tail(self.log)}"
            raise AssertionError(text) from None
        assert message is not None, f"the engine is gone: {what}\n{tail(self.log)}"
        return message

    def expect(self, name: Any) -> queue.Queue[dict[str, Any] | None]:
        box: queue.Queue[dict[str, Any] | None] = queue.Queue()
        with self.lock:
            self.waiting[name] = box
        return box

    def do(self, what: str, **more: Any) -> dict[str, Any]:
        number = next(self.numbers)
        box = self.expect(number)
        self.say(do=what, number=number, **more)
        return self.take(box, ANSWER_LIMIT_S, what)

    # Requests.

    def add(self, prompt: Sequence[int], max_tokens: int = 12, **more: Any) -> Request:
        """more: salt, adapter, and anything of SamplingParams under `sampling`."""
        name = f"r{next(self.numbers)}"
        request = Request(self, name, self.expect(name))
        sampling = {"max_tokens": max_tokens, **more.pop("sampling", {})}
        self.say(do="add", id=name, prompt=list(prompt), sampling=sampling, **more)
        return request

    def ask(self, prompts: Sequence[Sequence[int]], max_tokens: int = 12,
            **more: Any) -> list[Answer]:
        """All at once."""
        requests = [self.add(prompt, max_tokens, **dict(more)) for prompt in prompts]
        return [request.wait() for request in requests]

    # Looking in.

    def reset(self) -> None:
        """vLLM's own prefix cache is empty from here on."""
        self.settle()
        assert self.do("reset")["reset"], "some block is still in use"

    def metrics(self) -> dict[str, float]:
        values: dict[str, float] = self.do("metrics")["metrics"]
        return values

    def sources(self) -> tuple[int, int, int]:
        """Prompt tokens so far, by what vLLM says that they came from: computed, its own cache,
        the connector."""
        values = self.metrics()
        computed, cache, transfer = (int(values.get(SOURCE % source, 0)) for source in (
            "local_compute", "local_cache_hit", "external_kv_transfer"))
        return computed, cache, transfer

    def pool(self) -> dict[str, Any]:
        return self.do("pool")

    def settle(self, limit_s: float = 60) -> None:
        """Until nothing is held any more: no request is known, every block is free (but the one
        that vLLM keeps as its null block). AssertionError: something leaked."""
        end = time.monotonic() + limit_s
        if self.processes:
            while not self.do("reset")["reset"]:
                assert time.monotonic() < end, f"blocks are in use after {limit_s} s"
                time.sleep(0.02)
            return
        while True:
            pool = self.pool()
            if pool["free"] == pool["blocks"] - 1 and pool["requests"] == 0:
                return
            assert time.monotonic() < end, f"leaked: {pool}"
            time.sleep(0.02)

    # The end.

    def close(self) -> None:
        """As vLLM ends by itself."""
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        self.thread.join(60)
        if self.thread.is_alive():
            self.kill()
        self.socket.close()

    def kill(self) -> None:
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.thread.join(60)


class Request:
    def __init__(self, engine: Engine, name: str, box: queue.Queue[dict[str, Any] | None]) -> None:
        self.engine, self.name, self.box = engine, name, box

    def wait(self, limit_s: float = ANSWER_LIMIT_S) -> Answer:
        message = self.engine.take(self.box, limit_s, f"request {self.name}")
        if message.get("aborted"):
            return Answer(aborted=True)
        return Answer(message["tokens"], message["reason"], message["cached"] or 0,
                      message["transfer"])

    def abort(self) -> None:
        self.engine.say(do="abort", number=0, id=self.name)
