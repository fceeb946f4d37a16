"""A KvistConnector that is watched: what a page held when it was saved it must hold when it comes
back; and that can be made to fail, so that the watching and the failing are tested too.

Every block of every layer is digested as vLLM hands it over to be saved, and again when vLLM is
told that it was loaded. The digests are kept under what the block stands for, computed here anew
from the jobs' tokens, salt, adapter and extra keys: none of Kvist's own keys is trusted. Digests
outlive the process in files of one folder, which engines share.

Environment, read when the connector is made (kv_connector_extra_config has Kvist's options alone):
  CHECKED_FOLDER   digests, and tallies: tally-PID.json, {"saved", "loaded", "different",
                   "unknown", "failed"}, pages of one layer
  CHECKED_SWAP     blocks, layers, groups: loads go into pages of the wrong one
  CHECKED_FAIL     N:SEED: of N blocks that are loaded one fails, its page and those after it in the
                   load full of rubbish

Threads: as KvistConnector; failing loads are noted on Kvist's own thread.
"""
from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import json
import os
import random
from collections.abc import Sequence
from typing import Any

import kvist
import torch
from kvist.vllm import KvistConnector
from kvist.vllm.metadata import NO_PAGE, LoadJob, Owner, SaveJob
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorRole,
    KVConnectorTransferResults,
)


class Ledger:
    """Digests of saved pages, in memory and in the folder's files; a page may have been saved with
    several contents (computed more than once), of which the store keeps one."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.known: dict[str, set[str]] = {}
        self.read_bytes: dict[str, int] = {}
        self.tally = {"saved": 0, "loaded": 0, "different": 0, "unknown": 0, "failed": 0}
        self.file = open(os.path.join(folder, f"saved-{os.getpid()}"), "a", encoding="ascii")

    def saved(self, key: str, digest: str) -> None:
        self.known.setdefault(key, set()).add(digest)
        self.file.write(f"{key} {digest}\n")
        self.tally["saved"] += 1

    def loaded(self, key: str, digest: str) -> None:
        self.tally["loaded"] += 1
        if digest in self.known.get(key, ()):
            return
        self.read()
        if key not in self.known:
            self.tally["unknown"] += 1
        elif digest not in self.known[key]:
            self.tally["different"] += 1

    def read(self) -> None:
        """What other processes have saved meanwhile."""
        for name in os.listdir(self.folder):
            if not name.startswith("saved-"):
                continue
            with open(os.path.join(self.folder, name), encoding="ascii") as file:
                file.seek(self.read_bytes.get(name, 0))
                while (line := file.readline()).endswith("\n"):
                    key, digest = line.split()
                    self.known.setdefault(key, set()).add(digest)
                    self.read_bytes[name] = file.tell()

    def flush(self) -> None:
        self.file.flush()
        path = os.path.join(self.folder, f"tally-{os.getpid()}.json")
        with open(path + ".new", "w", encoding="ascii") as file:
            json.dump(self.tally, file)
        os.replace(path + ".new", path)


class CheckedConnector(KvistConnector):
    """At the scheduler it is a KvistConnector; see above for the worker."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        if role != KVConnectorRole.WORKER:
            return
        self.ledger = Ledger(os.environ["CHECKED_FOLDER"])
        self.swap = os.environ.get("CHECKED_SWAP", "")
        self.caches: dict[str, torch.Tensor] = {}
        self.chains: dict[int, bytes] = {}  # of each sequence of saves: what its next goes on from
        self.loading: dict[str, LoadJob] = {}
        self.arrived: list[LoadJob] = []
        if os.environ.get("CHECKED_FAIL"):
            one_in, seed = map(int, os.environ["CHECKED_FAIL"].split(":"))
            fail_loads(one_in, random.Random(seed))

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        self.caches = dict(kv_caches)
        given = dict(kv_caches)
        if self.swap == "layers":
            names = list(given)
            given[names[0]], given[names[-1]] = given[names[-1]], given[names[0]]
        super().register_kv_caches(given)
        self.description = super().get_handshake_metadata().description

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        metadata = self._metadata
        self.loading.update((job.request_id, job) for job in metadata.loads)
        if self.swap in ("blocks", "groups"):
            swapped = [swap_pages(job, self.swap) for job in metadata.loads]
            self.bind_connector_metadata(dataclasses.replace(metadata, loads=swapped))
        super().start_load_kv(forward_context, **kwargs)

    def wait_for_save(self) -> None:
        for job in self._metadata.saves:
            self._note_save(job)
        for sequence in self._metadata.ended_sequences:
            self.chains.pop(sequence, None)
        self.ledger.flush()
        super().wait_for_save()

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        results = super().get_transfer_results(finished_req_ids)
        for request in results.finished_recving:
            job = self.loading.pop(request)
            if request in results.failed_recving:
                self.ledger.tally["failed"] += 1
            else:
                self.arrived.append(job)
        return results

    def get_block_ids_with_load_errors(self) -> set[int]:
        bad = super().get_block_ids_with_load_errors()
        for job in self.arrived:
            self._check_load(job, bad)
        self.arrived.clear()
        self.ledger.flush()
        return bad

    # ---- digests ----

    def _note_save(self, job: SaveJob) -> None:
        chain = self.chains.get(job.sequence) or self._root(job.owner)
        count = len(job.tokens) // self.description.block_tokens
        for block in range(count):
            chain = self._next(chain, job.tokens, job.extras, block)
            for key, digest in self._pages(chain, job.pages, block):
                self.ledger.saved(key, digest)
        self.chains[job.sequence] = chain

    def _check_load(self, job: LoadJob, bad: set[int]) -> None:
        chain = self._root(job.owner)
        for block in range(job.first_block):
            chain = self._next(chain, job.tokens, job.extras, block)
        for number in range(job.block_count):
            if any(pages[number] in bad for pages in job.pages):
                self.ledger.tally["failed"] += 1
                return  # what comes after it is computed again too
            chain = self._next(chain, job.tokens, job.extras, job.first_block + number)
            for key, digest in self._pages(chain, job.pages, number):
                self.ledger.loaded(key, digest)

    def _root(self, owner: Owner) -> bytes:
        text = json.dumps([self.description.facts, owner.salt.hex(), owner.adapter])
        return hashlib.sha256(text.encode()).digest()

    def _next(self, chain: bytes, tokens: Any, extras: Sequence[bytes] | None,
              block: int) -> bytes:
        size = self.description.block_tokens
        extra = extras[block] if extras else bytes(32)
        ids = tokens[block * size:(block + 1) * size].astype("<u4").tobytes()
        return hashlib.sha256(chain + extra + ids).digest()

    def _pages(self, chain: bytes, pages: Any, block: int) -> Any:
        """(key, digest) of each layer of each group that has a page for the block."""
        for group, description in enumerate(self.description.groups):
            page = pages[group][block]
            if page == NO_PAGE:
                continue
            for layer in description.layer_names:
                content = self.caches[layer][page].contiguous().view(torch.uint8).numpy()
                digest = hashlib.blake2b(content.tobytes(), digest_size=16).hexdigest()
                yield f"{chain.hex()}/{layer}", digest


def swap_pages(job: LoadJob, what: str) -> LoadJob:
    pages = [list(group) for group in job.pages]
    if what == "groups":
        pages[0], pages[1] = [
            other if NO_PAGE not in (mine, other) else mine for mine, other in zip(*pages)], [
            mine if NO_PAGE not in (mine, other) else other for mine, other in zip(*pages)]
    else:
        pages[0][0], pages[0][-1] = pages[0][-1], pages[0][0]
    return dataclasses.replace(job, pages=tuple(map(tuple, pages)))


def fail_loads(one_in: int, chance: random.Random) -> None:
    """From now on one of so many blocks that this process loads fails."""
    load = kvist.Lease.load

    def failing(self: Any, pieces: Any, *arguments: Any, **named: Any) -> Any:
        pending = load(self, pieces, *arguments, **named)
        make, kept = pending._make, pending._held[1]
        count = named.get("block_count", arguments[1] if len(arguments) > 1 else None)

        def made(*told: Any) -> Any:
            loaded = make(*told)
            good = next((block for block in range(loaded.block_count)
                         if chance.randrange(one_in) == 0), loaded.block_count)
            if good == loaded.block_count:
                return loaded
            scribble(kept, good, count or loaded.block_count)
            return dataclasses.replace(loaded, block_count=good, miss=kvist.Miss.DAMAGED)

        pending._make = made
        return pending

    kvist.Lease.load = failing


def scribble(pieces: Any, good_blocks: int, block_count: int) -> None:
    """Rubbish in all that belongs to blocks after the first so many of a load."""
    spared = pieces.bytes // block_count * good_blocks
    for number in range(pieces.count):
        base, size = int(kvist.native.ffi.cast("uintptr_t", pieces.c[number].base)), \
            pieces.c[number].bytes
        skip = min(spared, size)
        ctypes.memset(base + skip, 0xA5, size - skip)
        spared -= skip
