"""What the cases of a group share: a kvist-store, engines on it, prompts, and what is right.

A group has one Bench; its folder, with all logs, goes when the group has ended well.
"""
from __future__ import annotations

import contextlib
import glob
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, Callable, Iterator, Sequence

from engines import BLOCK_TOKENS, Answer, Engine, Nest, tail

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../e2e"))
import admin  # noqa: E402

VOCABULARY = 512  # of the small models
MIB = 1 << 20


def wait_until(true: Callable[[], Any], limit_s: float, what: str) -> float:
    """The seconds that it took."""
    begun = time.monotonic()
    while not true():
        assert time.monotonic() - begun < limit_s, f"not within {limit_s} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - begun


def prompt(seed: int, tokens: int, begin: Sequence[int] = ()) -> list[int]:
    """Random tokens, after those of another prompt."""
    chance = random.Random(seed)
    return [*begin, *(chance.randrange(VOCABULARY) for _ in range(tokens - len(begin)))]


def hit_tokens(prompts: Sequence[Sequence[int]]) -> int:
    """What can be found of prompts that were all stored: whole blocks before the last token."""
    return sum((len(one) - 1) // BLOCK_TOKENS * BLOCK_TOKENS for one in prompts)


class Store:
    """kvist-store, as a process."""

    def __init__(self, binaries: str, folder: str) -> None:
        self.folder = folder
        self.clients = os.path.join(folder, "clients.sock")
        self.admin = os.path.join(folder, "admin.sock")
        self.log = os.path.join(folder, "store.log")
        self.program = os.path.join(binaries, "kvist-store")
        # From the next start on. Engines share a domain whose blocks are laid out alike.
        self.host_bytes = 128 * MIB  # of each domain
        self.domains = ("llama", "hybrid", "llama-half", "hybrid-half", "llama-wide",
                        "real")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            self.program, f"--store.socket={self.clients}", f"--node.admin={self.admin}",
            f"--store.directory={self.folder}/disk", f"--store.domains={','.join(self.domains)}",
            f"--store.host_bytes={self.host_bytes}", f"--store.disk_bytes={512 * MIB}"]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log)
        wait_until(lambda: self.status(0.5) is not None, 30, f"kvist-store to be up: {self.log}")

    def stop(self) -> None:
        """As an administrator would: everything is durable then."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            assert self.process.wait(60) == 0, tail(self.log)
        finally:
            self.kill()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def status(self, limit_s: float = 5.0) -> dict[str, Any] | None:
        status = admin.status(self.admin, limit_s)
        if status is None or self.process is None or status["pid"] != self.process.pid:
            return None
        return status

    def disk_hits(self) -> int:
        """Blocks of all domains that came from disk."""
        status = self.status()
        assert status is not None
        return sum(tier["hit_blocks"] for domain in status["domains"] for tier in domain["tiers"]
                   if tier["name"] == "disk")

    def attached(self) -> list[dict[str, Any]]:
        status = self.status()
        return status["clients"] if status is not None else []

    def at_rest(self) -> bool:
        """Nobody holds, or waits for, anything."""
        status = self.status()
        return status is not None and not any(
            client["leases"] or client["requests"] for client in status["clients"]) and not any(
            domain["leases"] or domain["unsaved_objects"] for domain in status["domains"])

    def settle(self) -> None:
        """AssertionError: a client leaks leases."""
        wait_until(self.at_rest, 60, f"the store to be at rest: {self.status()}")


class Bench:
    """One group's. nest: engines are forked from it. models: the folder of the small ones. long:
    full sizes."""

    def __init__(self, nest: Nest, binaries: str, models: str, seed: int, long: bool,
                 real_model: str | None = None) -> None:
        self.nest, self.models, self.seed, self.long = nest, models, seed, long
        self.real_model = real_model  # the folder of SmolLM2
        self.folder = tempfile.mkdtemp(prefix="kvist-vllm-", dir="/tmp")
        self.checks = os.path.join(self.folder, "checks")
        os.mkdir(self.checks)
        self.store = Store(binaries, self.folder)
        self.starts_store = True  # the first engine that needs one does
        self.engines: list[Engine] = []
        self.plain: dict[str, Engine] = {}
        self.expected: dict[str, list[list[list[list[int]]]]] = {}
        self.uncertain = 0

    def close(self, keep: bool) -> None:
        for engine in self.engines:
            engine.close()
        self.store.kill()
        if keep:
            print(f"         kept for a look: {self.folder}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    # Engines.

    def engine(self, model: str = "llama", connector: str | None = "checked",
               role: str = "kv_both", swap: str = "", fail: str = "", processes: bool = False,
               kvist: dict[str, Any] | None = None, **arguments: Any) -> Engine:
        """connector: checked (checked.py), kvist (as users have it) or None. kvist: options of the
        connector. More: EngineArgs."""
        path = model if os.path.isabs(model) else os.path.join(self.models, model)
        if connector is not None:
            module, name = {"checked": ("checked", "CheckedConnector"),
                            "kvist": ("kvist.vllm", "KvistConnector")}[connector]
            options = {"socket": self.store.clients, "domain": self.domain_of(model, arguments),
                       "fingerprint_folder": self.folder, **(kvist or {})}
            arguments["kv_transfer"] = {
                "kv_connector": name, "kv_connector_module_path": module, "kv_role": role,
                "kv_load_failure_policy": "recompute", "kv_connector_extra_config": options}
        if connector is not None and self.starts_store and self.store.process is None:
            self.store.start()
        environment = {"CHECKED_FOLDER": self.checks, "CHECKED_SWAP": swap, "CHECKED_FAIL": fail}
        if arguments.get("tensor_parallel_size", 1) > 1:  # by itself vLLM wants a node for each
            cores = sorted(os.sched_getaffinity(0))[:arguments["tensor_parallel_size"]]
            environment["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(map(str, cores))
        log = os.path.join(self.folder, f"engine-{len(self.engines)}.log")
        engine = Engine(self.nest, log, {"model": path, **arguments}, environment, processes)
        self.engines.append(engine)
        return engine

    def domain_of(self, model: str, arguments: dict[str, Any]) -> str:
        shape = model if model == "hybrid" else "real" if model == self.real_model else "llama"
        return shape + ("-half" if arguments.get("dtype", "float32") != "float32" else "")

    def must_not_start(self, *arguments: Any, **named: Any) -> str:
        """What is said instead."""
        try:
            self.engine(*arguments, **named).close()
        except AssertionError as error:
            return str(error)
        raise AssertionError(f"an engine started with {named}")

    @contextlib.contextmanager
    def settled(self, *arguments: Any, **named: Any) -> Iterator[Engine]:
        """An engine that leaves nothing behind: neither blocks nor leases."""
        with self.engine(*arguments, **named) as engine:
            yield engine
            engine.settle()
            self.store.settle()

    # What is right.

    def plain_engine(self, model: str, **arguments: Any) -> Engine:
        """Without any connector; kept for the group."""
        name = json.dumps([model, arguments], sort_keys=True)
        if name not in self.plain:
            self.plain[name] = self.engine(model, connector=None, **arguments)
        return self.plain[name]

    def right(self, prompts: Sequence[Sequence[int]], model: str = "llama", max_tokens: int = 12,
              more: dict[str, Any] | None = None, **arguments: Any) -> list[list[list[list[int]]]]:
        """What vLLM without Kvist answers to each prompt, the control included: alone, alone again
        with what its own prefix cache has, and all at once. Where these differ, each is right."""
        more = more or {}
        name = json.dumps([prompts, model, max_tokens, more, arguments], sort_keys=True)
        if name in self.expected:
            return self.expected[name]
        engine = self.plain_engine(model, **arguments)
        alone, again = [], []
        for one in prompts:
            alone += engine.ask([one], max_tokens, **more)
            again += engine.ask([one], max_tokens, **more)
        engine.reset()
        together = engine.ask(prompts, max_tokens, **more)
        engine.reset()
        rights = []
        for answers in zip(alone, again, together):
            different: list[list[list[int]]] = []
            for answer in answers:
                if answer.tokens not in different:
                    different.append(answer.tokens)
            rights.append(different)
        self.uncertain += sum(len(different) > 1 for different in rights)
        self.expected[name] = rights
        return rights

    def must_be_right(self, answers: Sequence[Answer], rights: Sequence[Any], what: str) -> None:
        assert len(answers) == len(rights)
        for number, (answer, right) in enumerate(zip(answers, rights)):
            assert answer.tokens in right, (
                f"{what}: prompt {number}: {answer.tokens} is not what vLLM answers without Kvist: "
                f"{right}")

    # What came back, byte for byte (checked.py).

    def tally(self) -> dict[str, int]:
        total: dict[str, int] = {}
        for path in glob.glob(os.path.join(self.checks, "tally-*.json")):
            with open(path, encoding="ascii") as file:
                for name, count in json.load(file).items():
                    total[name] = total.get(name, 0) + count
        return total

    def bytes_must_be_right(self) -> dict[str, int]:
        """All that was ever loaded in this group was what had been saved; something was."""
        tally = self.tally()
        assert tally.get("loaded", 0) > 0, f"nothing was loaded: {tally}"
        assert tally["different"] == 0 and tally["unknown"] == 0, tally
        return tally
