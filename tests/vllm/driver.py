"""vLLM engines, each driven by lines of JSON over a connection; runs in vLLM's own environment.

usage: driver.py SOCKET [MODELS]

Importing vLLM takes longer than starting it with a small model: this process imports it once,
makes the small models in the folder MODELS (models.py), listens at SOCKET, and forks for each
connection a process that is one engine. It goes when its standard input ends.

The first line of a connection is {"log": PATH, "environment": {...}, "engine": {EngineArgs by
name}}; each further line is a command {"do": NAME, "number": N, ...}. Answers are a line each:
first {"ready": true, "pid": ...}, then {"number": N, ...} for a command, {"done": ID, ...} for a
request that has ended. The engine goes when the connection ends.

With VLLM_ENABLE_V1_MULTIPROCESSING=0 scheduler and worker are in the engine's one process, and
`pool` tells exactly what its scheduler holds; else each has a process, as vLLM has it by itself.

Threads: one reads commands into a queue, the main thread does all else.
"""
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from typing import Any, TextIO

import models
from prometheus_client import REGISTRY
from vllm import SamplingParams
from vllm.config import KVEventsConfig, KVTransferConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.inputs import TokensPrompt
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.llm_engine import LLMEngine

# What an engine imports late by itself; here it is imported once for all.
import vllm.model_executor.models.gemma3  # noqa: F401  pylint: disable=unused-import
import vllm.model_executor.models.llama  # noqa: F401  pylint: disable=unused-import
import vllm.v1.engine.core  # noqa: F401  pylint: disable=unused-import
import vllm.v1.worker.cpu_worker  # noqa: F401  pylint: disable=unused-import

IDLE_S = 0.002  # between steps in which there was nothing to compute


class Driver:
    """One engine. Borrows both ends of its connection."""

    def __init__(self, commands: TextIO, answers: TextIO, arguments: dict[str, Any]) -> None:
        self.lines, self.answers = commands, answers
        transfer = arguments.pop("kv_transfer", None)
        if transfer is not None:
            arguments["kv_transfer_config"] = KVTransferConfig(**transfer)
        events = arguments.pop("kv_events", None)
        if events is not None:
            arguments["kv_events_config"] = KVEventsConfig(**events)
        self.engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        core = self.engine.engine_core
        self.scheduler = core.engine_core.scheduler if hasattr(core, "engine_core") else None
        self.under_way: set[str] = set()  # requests, as the test calls them
        self.commands: queue.Queue[dict[str, Any] | None] = queue.Queue()

    def tell(self, **answer: Any) -> None:
        self.answers.write(json.dumps(answer) + "\n")
        self.answers.flush()

    def read(self) -> None:
        for line in self.lines:
            self.commands.put(json.loads(line))
        self.commands.put(None)

    def busy(self) -> bool:
        """Also true while finished requests wait for their saves."""
        if self.scheduler is not None:
            return self.scheduler.has_requests()
        return self.engine.has_unfinished_requests()

    def run(self) -> None:
        threading.Thread(target=self.read, daemon=True).start()
        self.tell(ready=True, pid=os.getpid())
        while True:
            try:
                command = self.commands.get(block=not self.busy())
            except queue.Empty:
                self.step()
                continue
            if command is None:
                return
            answer = getattr(self, "do_" + command["do"])(command)
            if answer is not None:
                self.tell(number=command["number"], **answer)

    def step(self) -> None:
        outputs = self.engine.step()
        for output in outputs:
            if output.finished:
                self.finished(output)
        if not outputs and not (self.scheduler is not None and self.scheduler.running):
            time.sleep(IDLE_S)

    def finished(self, output: Any) -> None:
        self.under_way.remove(output.request_id)
        self.tell(done=output.request_id, cached=output.num_cached_tokens,
                  tokens=[list(choice.token_ids) for choice in output.outputs],
                  reason=[choice.finish_reason for choice in output.outputs],
                  transfer=output.kv_transfer_params)

    # Commands.

    def do_add(self, command: dict[str, Any]) -> None:
        sampling = {"temperature": 0, "ignore_eos": True, "detokenize": False,
                    "output_kind": RequestOutputKind.FINAL_ONLY,
                    **command.get("sampling", {})}
        prompt = TokensPrompt(prompt_token_ids=command["prompt"])
        if command.get("salt"):
            prompt["cache_salt"] = command["salt"]
        adapter = command.get("adapter")
        self.engine.add_request(
            command["id"], prompt, SamplingParams(**sampling),
            lora_request=LoRARequest(**adapter) if adapter else None)
        self.under_way.add(command["id"])

    def do_abort(self, command: dict[str, Any]) -> None:
        """The request ends now, unless it has ended already."""
        if command["id"] in self.under_way:
            self.engine.abort_request([command["id"]])
            self.under_way.remove(command["id"])
            self.tell(done=command["id"], aborted=True)

    def do_reset(self, command: dict[str, Any]) -> dict[str, Any]:
        """vLLM's own prefix cache; false where some block is still in use."""
        return {"reset": self.engine.reset_prefix_cache()}

    def do_metrics(self, command: dict[str, Any]) -> dict[str, Any]:
        values: dict[str, float] = {}
        for family in REGISTRY.collect():
            for sample in family.samples:
                labels = {key: value for key, value in sample.labels.items()
                          if key not in ("engine", "model_name")}
                text = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
                values[f"{sample.name}{{{text}}}" if text else sample.name] = sample.value
        return {"metrics": values}

    def do_pool(self, command: dict[str, Any]) -> dict[str, Any]:
        """Blocks that are free of all that there are, and requests that the scheduler knows."""
        pool = self.scheduler.kv_cache_manager.block_pool
        groups = self.scheduler.kv_cache_config.kv_cache_groups
        return {"free": pool.get_num_free_blocks(), "blocks": pool.num_gpu_blocks,
                "requests": len(self.scheduler.requests),
                "groups": [type(group.kv_cache_spec).__name__ for group in groups],
                "block_tokens": [group.kv_cache_spec.block_size for group in groups]}


def serve(connection: socket.socket) -> None:
    """In a process of its own: one engine, until its connection ends."""
    with connection.makefile("r", encoding="utf-8") as commands, \
            connection.makefile("w", encoding="utf-8") as answers:
        start = json.loads(commands.readline())
        log = os.open(start["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(start["environment"])
        try:
            Driver(commands, answers, start["engine"]).run()
        except BaseException:  # whatever it is: it must not be waited for
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)


def make_models(folder: str) -> None:
    """In a process of its own: it must leave no threads behind in what is forked."""
    child = os.fork()
    if child == 0:
        models.make(folder)
        os._exit(0)
    if os.waitpid(child, 0)[1] != 0:
        sys.exit("the models could not be made")


def main(path: str, folder: str | None = None) -> None:
    if folder is not None:
        make_models(folder)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for engines
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    parent = os.getpid()
    threading.Thread(target=lambda: (sys.stdin.read(), os.kill(parent, signal.SIGTERM)),
                     daemon=True).start()
    print("listening", flush=True)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            serve(connection)
            sys.exit(0)
        connection.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
