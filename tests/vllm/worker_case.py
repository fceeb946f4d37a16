"""What tests of the worker's side have in common: a kvist-store process, KV tensors as vLLM makes
them, jobs, and bytes to compare.

Threads: the tests' own. Errors: AssertionError with the log's end where kvist-store does not start.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy
import torch
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheSpec,
    KVCacheTensor,
)
from vllm.v1.kv_cache_layout import KVCacheLayout
from vllm.v1.worker.utils import allocate_kv_cache

import kvist
from kvist.vllm.metadata import LoadJob, Owner, SaveJob

BINARY = Path(kvist.__file__).parents[2] / "bin" / "kvist-store"
WAIT_LIMIT_S = 60.0  # also where other work has the cores


class HostStore:
    """A kvist-store with a folder of its own; a context manager."""

    def __init__(self, host_bytes: str = "64MiB", disk: bool = False) -> None:
        self.folder = tempfile.mkdtemp(prefix="kvist-vllm-")
        self.socket = os.path.join(self.folder, "clients.sock")
        self._options = [
            f"--store.socket={self.socket}",
            f"--node.admin={self.folder}/admin.sock",
            f"--store.host_bytes={host_bytes}",
            f"--store.directory={os.path.join(self.folder, 'disk') if disk else 'none'}",
            "--store.disk_bytes=256MiB",
            "--store.segment_bytes=16MiB",
            "--node.port=0",
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> HostStore:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.end(signal.SIGKILL)
        shutil.rmtree(self.folder)

    def start(self) -> None:
        with open(os.path.join(self.folder, "log"), "ab") as log:
            self._process = subprocess.Popen(
                [str(BINARY), *self._options], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_until(lambda: os.path.exists(self.socket) or not self.is_there(), "kvist-store")
        assert self.is_there(), Path(self.folder, "log").read_text()[-2000:]

    def is_there(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def end(self, number: int) -> None:
        """By that signal; waits for its end."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(number)
            self._process.wait(WAIT_LIMIT_S)
            self._process = None
        if os.path.exists(self.socket):
            os.unlink(self.socket)


def wait_until(done: Callable[[], bool], what: str, limit_s: float = WAIT_LIMIT_S) -> None:
    end_s = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < end_s, f"{what}: not within {limit_s:.0f} s"
        time.sleep(0.002)


# ---- KV tensors, as vLLM makes them ----


def full_spec(block_tokens: int = 16, heads: int = 2, dims: int = 8) -> FullAttentionSpec:
    return FullAttentionSpec(
        block_size=block_tokens, num_kv_heads=heads, head_size=dims, dtype=torch.bfloat16
    )


def kv_cache_config(
    groups: Sequence[tuple[KVCacheSpec, int]], block_count: int, packed: bool = False
) -> KVCacheConfig:
    """(spec, layers) of each group. Their tensors overlay each other, as vLLM's do: a block id
    belongs to one group at a time. packed: all layers of a block lie together."""
    tensors, specs, number = [], [], 0
    page = groups[0][0].page_size_bytes
    layers_most = max(count for _, count in groups)
    for spec, count in groups:
        names = [f"layers.{number + i}.attn" for i in range(count)]
        number += count
        specs.append(KVCacheGroupSpec(names, spec))
        tensors.append(
            KVCacheTensor(
                size=page * block_count * layers_most,
                layers=names,
                layer_stride=page if packed else page * block_count,
                block_stride=page * layers_most if packed else page,
            )
        )
    return KVCacheConfig(block_count, tensors, specs)


def make_tensors(
    config: KVCacheConfig,
    layout: KVCacheLayout = KVCacheLayout.LBHNC,
    kernel_block_sizes: list[int] | None = None,
) -> dict[str, torch.Tensor]:
    """By vLLM's own function, zeroed."""
    return allocate_kv_cache(config, torch.device("cpu"), layout, kernel_block_sizes)


def storage_of(tensors: dict[str, torch.Tensor]) -> numpy.ndarray:
    """uint8: all bytes behind the tensors, which share one storage."""
    storage = next(iter(tensors.values())).untyped_storage()
    return torch.tensor([], dtype=torch.uint8).set_(storage).numpy()


# ---- jobs ----


def tokens_of(seed: int, block_count: int, block_tokens: int) -> numpy.ndarray:
    generator = numpy.random.default_rng(seed)
    return generator.integers(1, 50_000, block_count * block_tokens, dtype=numpy.uint32)


def load_job(
    request_id: str,
    tokens: numpy.ndarray,
    pages: Sequence[Sequence[int]],
    first_block: int = 0,
    owner: Owner = Owner(),
) -> LoadJob:
    count = len(pages[0])
    return LoadJob(
        request_id, owner, tokens, None, first_block, count, tuple(tuple(p) for p in pages)
    )


def save_job(
    job: int,
    sequence: int,
    tokens: numpy.ndarray,
    pages: Sequence[Sequence[int]],
    first_block: int = 0,
    owner: Owner = Owner(),
) -> SaveJob:
    """tokens: of these blocks alone."""
    count = len(pages[0])
    return SaveJob(
        job, sequence, f"request-{sequence}", owner, tokens, None, first_block, count,
        tuple(tuple(p) for p in pages),
    )  # fmt: skip
