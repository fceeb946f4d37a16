"""vLLM's own scheduler with a model that only remembers: for the connector's scheduler side.

The scheduler, its KV cache manager, its requests and the connector's SchedulerSide are the real
ones. In place of a model there are pages that hold the token computed into each of their slots, in
place of kvist-store a set of prefixes, in place of workers what takes jobs and ends them some steps
later. So every rule about pages can be looked at, in every step, without waiting for anything:

- a token is computed only on pages that hold all tokens before it that its layer looks at;
- a page that is being saved holds the tokens of its job from the step of the job on until the job's
  end, whatever happens to its request;
- a page that is being loaded is nobody else's.

Steps overlap as in vLLM: with async_scheduling the next step is scheduled before the tokens of the
last are known. The next token of a context is a function of all its tokens, so that any way of
computing gives one answer.
"""
from __future__ import annotations

import atexit
import functools
import json
import os
import random
import shutil
import tempfile
import zlib
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
from kvist.vllm.metadata import (
    NO_PAGE,
    Description,
    KvistMetadata,
    LoadJob,
    SaveJob,
    SaveResult,
    WorkerHandshake,
    WorkerReport,
)
from kvist.vllm import groups
from vllm import SamplingParams
from vllm.config import KVTransferConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    SlidingWindowSpec,
)
from vllm.v1.outputs import DraftTokenIds, KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

import kvist
from kvist.vllm.lookups import Answer, Run

BLOCK_TOKENS = 32
VOCABULARY = 512
WINDOW_TOKENS = 80


@functools.cache
def model_folder() -> str:
    """A configuration, and something for its weights; this process's."""
    folder = tempfile.mkdtemp(prefix="kvist-simulated-")
    atexit.register(shutil.rmtree, folder)
    with open(os.path.join(folder, "config.json"), "w", encoding="ascii") as file:
        json.dump({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128,
            "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 64, "num_hidden_layers": 2, "vocab_size": VOCABULARY,
            "max_position_embeddings": 4096, "torch_dtype": "bfloat16", "bos_token_id": 0,
            "eos_token_id": None}, file)
    with open(os.path.join(folder, "model.safetensors"), "wb") as file:
        file.write(b"weights")
    return folder


def vllm_config(role: str = "kv_both", options: dict[str, Any] | None = None,
                **arguments: Any) -> Any:
    """arguments: EngineArgs."""
    return EngineArgs(
        model=model_folder(), skip_tokenizer_init=True, dtype="bfloat16", enforce_eager=True,
        block_size=BLOCK_TOKENS,
        kv_transfer_config=KVTransferConfig(
            kv_connector="KvistConnector", kv_connector_module_path="kvist.vllm", kv_role=role,
            kv_connector_extra_config={"pending_wait_s": 5, **(options or {})}),
        **{"max_num_seqs": 8, "max_num_batched_tokens": 256, "max_model_len": 2048, **arguments},
    ).create_engine_config()


def kv_cache_config(block_count: int, windowed: bool = False) -> KVCacheConfig:
    shape: dict[str, Any] = {"block_size": BLOCK_TOKENS, "num_kv_heads": 2, "head_size": 64,
                             "dtype": torch.bfloat16}
    kinds = [KVCacheGroupSpec(["layer.0"], FullAttentionSpec(**shape))]
    if windowed:
        spec = SlidingWindowSpec(sliding_window=WINDOW_TOKENS, **shape)
        kinds.insert(0, KVCacheGroupSpec(["layer.1"], spec))
    return KVCacheConfig(num_blocks=block_count, kv_cache_tensors=[], kv_cache_groups=kinds)


def next_token(tokens: list[int]) -> int:
    return zlib.crc32(bytes(str(tokens), "ascii")) % VOCABULARY


class Prefixes:
    """In place of kvist.vllm.lookups.LookUps, and of the store behind it."""

    def __init__(self, config: Any, descriptions: Any) -> None:
        self.block_tokens = descriptions[0].block_tokens
        self.stored: set[Any] = set()
        self.pending: set[Any] = set()  # prefixes that somebody is storing
        self.fails = False
        self.attached = True
        self.open: set[int] = set()
        self.asked = 0
        self.askers: set[int] = set()
        self.closed = False

    def prefix(self, owner: Any, tokens: Any, extras: Any, block: int) -> Any:
        end = (block + 1) * self.block_tokens
        return (owner, tuple(tokens[:end]), tuple(extras[: block + 1]) if extras else None)

    def look_up(self, owner: Any, tokens: Any, extras: Any, request: int, again: bool) -> Answer:
        self.asked += 1
        assert again == (request in self.askers), "counted wrongly"
        self.askers.add(request)
        if self.fails:
            return Answer(0, (), kvist.Miss.FAILED)
        tokens = tokens.tolist()
        wanted, count = len(tokens) // self.block_tokens, 0
        while count < wanted and self.prefix(owner, tokens, extras, count) in self.stored:
            count += 1
        miss = kvist.Miss.NONE
        if count < wanted:
            is_pending = self.prefix(owner, tokens, extras, count) in self.pending
            miss = kvist.Miss.PENDING if is_pending else kvist.Miss.NEW
        runs = (Run(0, count, kvist.Tier.HOST),) if count else ()
        answer = Answer(count, runs, miss, [object()] if count else [])  # type: ignore[list-item]
        if count:
            self.open.add(id(answer))
            answer.keep = answer  # type: ignore[attr-defined]  # so that no other has its id
        return answer

    def release(self, answer: Answer) -> None:
        self.open.discard(id(answer))
        answer.leases = []

    @property
    def held(self) -> int:
        return len(self.open)

    def key_of(self, owner: Any, tokens: Any, extras: Any) -> bytes:
        return zlib.crc32(repr((owner, tokens.tolist(), extras)).encode()).to_bytes(32, "big")

    def close(self) -> None:
        self.closed = True


@dataclass
class Running:
    """What the model knows of a request."""

    tokens: list[int]
    tables: list[list[int]]
    computed: int
    inputs: list[int] = field(default_factory=list)


@dataclass
class Load:
    job: LoadJob
    steps: int
    good: int  # blocks that will come


class Model:
    """Pages, and the workers' end of the connector."""

    def __init__(self, chance: random.Random, config: KVCacheConfig, order: list[int],
                 windows: list[int], store: Prefixes, spec_tokens: int) -> None:
        """order: of Kvist's groups, the numbers of vLLM's. windows: of vLLM's groups, 0: full."""
        self.chance, self.order, self.windows, self.store = chance, order, windows, store
        self.several = len(windows) > 1
        self.spec_tokens = spec_tokens
        self.pages: dict[int, list[int | None]] = {}
        self.requests: dict[str, Running] = {}
        self.saves: list[list[Any]] = []  # [job, steps left]
        self.loads: list[Load] = []
        self.chains: dict[int, list[Any]] = {}  # of each sequence: owner, tokens, extras, broken
        self.fail_one_in = 0
        self.save_fails_one_in = 0
        self.delay_steps = 3
        self.loaded_blocks = self.saved_blocks = self.failed_loads = 0
        self.ended: set[int] = set()

    # ---- pages ----

    def slots(self, page: int) -> list[int | None]:
        return self.pages.setdefault(page, [None] * BLOCK_TOKENS)

    def write(self, tables: list[list[int]], position: int, token: int) -> None:
        for group, table in enumerate(tables):
            page = table[position // BLOCK_TOKENS]
            assert page != 0, f"group {group}: position {position} has no page"
            for load in self.loads:
                assert all(page not in pages for pages in load.job.pages), "a page being loaded"
            self.slots(page)[position % BLOCK_TOKENS] = token

    def check_context(self, tables: list[list[int]], tokens: list[int]) -> None:
        """The pages hold all that the last of these tokens looks at."""
        last = len(tokens) - 1
        for group, table in enumerate(tables):
            window = self.windows[group]
            first = max(0, last - window + 1) if window else 0
            for block in range(first // BLOCK_TOKENS, last // BLOCK_TOKENS + 1):
                begin, end = block * BLOCK_TOKENS, (block + 1) * BLOCK_TOKENS
                held = self.slots(table[block])
                for position in range(max(first, begin), min(end, last + 1)):
                    assert held[position % BLOCK_TOKENS] == tokens[position], (
                        f"group {group}: position {position} of a context of {last + 1}")

    # ---- steps ----

    def take_in(self, step: Any) -> None:
        """New requests and tables, as a worker has them."""
        for request_id in step.finished_req_ids:
            self.requests.pop(request_id, None)
        for new in step.scheduled_new_reqs:
            self.requests[new.req_id] = Running(
                list(new.prompt_token_ids), [list(ids) for ids in new.block_ids],
                new.num_computed_tokens)
        cached = step.scheduled_cached_reqs
        for i, request_id in enumerate(cached.req_ids):
            running = self.requests[request_id]
            ids = cached.new_block_ids[i]
            if request_id in cached.resumed_req_ids:
                running.tables = [list(of_group) for of_group in ids]
                running.computed = cached.num_computed_tokens[i]
            elif ids is not None:
                for table, more in zip(running.tables, ids):
                    table.extend(more)

    def execute(self, step: Any, metadata: KvistMetadata) -> tuple[dict[str, list[int]], Any]:
        """Computes the step: (sampled tokens by request, what the workers say)."""
        self.take_in(step)
        sampled: dict[str, list[int]] = {}
        for request_id, count in step.num_scheduled_tokens.items():
            drafts = step.scheduled_spec_decode_tokens.get(request_id, [])
            sampled[request_id] = self.compute(self.requests[request_id], count, drafts)
        for load in metadata.loads:
            self.begin_load(load)
        for load in self.loads:
            if load.job.request_id in metadata.cancelled_loads:
                load.steps, load.good = 0, 0
        for job in metadata.saves:
            self.begin_save(job)
        self.check_saves()
        output = KVConnectorOutput(finished_recving=set(), finished_sending=set())
        self.end_loads(output)
        self.end_saves(output)
        for sequence in metadata.ended_sequences:
            assert sequence not in self.ended, "a sequence ended twice"
            self.ended.add(sequence)
        return sampled, output

    def compute(self, running: Running, count: int, drafts: list[int]) -> list[int]:
        begin, known = running.computed, len(running.tokens)
        base = count - len(drafts)
        # Drafts of steps whose tokens were not known yet when they were scheduled: made here.
        made = []
        for draft in drafts:
            guess = next_token(running.tokens + made)
            made.append(guess if self.chance.random() < 0.6 else (guess + 1) % VOCABULARY)
            if draft >= 0:
                made[-1] = draft
        context = (running.tokens + made)[: begin + count]
        assert len(context) == begin + count, (begin, count, known, drafts)
        for position in range(begin, begin + count):
            self.write(running.tables, position, context[position])
            self.check_context(running.tables, context[: position + 1])
        if begin + base < known:
            running.computed += count
            return []
        accepted = 0
        while accepted < len(made) and made[accepted] == next_token(running.tokens):
            running.tokens.append(made[accepted])
            accepted += 1
        running.tokens.append(next_token(running.tokens))
        running.computed += base + accepted
        return running.tokens[known:]

    def drafts_for(self, request_ids: list[str]) -> DraftTokenIds:
        drafts = []
        for request_id in request_ids:
            tokens, made = self.requests[request_id].tokens, []
            for _ in range(self.spec_tokens):
                guess = next_token(tokens + made)
                made.append(guess if self.chance.random() < 0.6 else (guess + 1) % VOCABULARY)
            drafts.append(made)
        return DraftTokenIds(request_ids, drafts)

    # ---- loads ----

    def begin_load(self, job: LoadJob) -> None:
        assert len(job.pages) == len(self.order)
        assert all(len(pages) == job.block_count for pages in job.pages)
        assert len(job.tokens) == (job.first_block + job.block_count) * BLOCK_TOKENS
        good = job.block_count
        for block in range(job.block_count):
            prefix = self.store.prefix(job.owner, job.tokens.tolist(), job.extras,
                                       job.first_block + block)
            assert prefix in self.store.stored, "a load of what is not stored"
            if self.fail_one_in and self.chance.randrange(self.fail_one_in) == 0:
                good = min(good, block)
        self.loads.append(Load(job, self.chance.randint(0, self.delay_steps), good))

    def end_loads(self, output: KVConnectorOutput) -> None:
        over = [load for load in self.loads if load.steps <= 0]
        self.loads = [load for load in self.loads if load.steps > 0]
        for load in self.loads:
            load.steps -= 1
        for load in over:
            job = load.job
            for pages in job.pages:
                for i, page in enumerate(pages):
                    if page == NO_PAGE:
                        continue
                    begin = (job.first_block + i) * BLOCK_TOKENS
                    good = job.tokens.tolist()[begin : begin + BLOCK_TOKENS]
                    self.pages[page] = list(good) if i < load.good else [None] * BLOCK_TOKENS
                    if i >= load.good and not self.several:
                        output.invalid_block_ids.add(page)
            output.finished_recving.add(job.request_id)
            self.loaded_blocks += load.good
            if load.good < job.block_count:
                self.failed_loads += 1
                if self.several:
                    output.failed_recving.add(job.request_id)

    # ---- saves ----

    def begin_save(self, job: SaveJob) -> None:
        assert job.sequence not in self.ended, "a job of a sequence that has ended"
        chain = self.chains.setdefault(job.sequence, [job.owner, [], [], False])
        assert chain[0] == job.owner
        assert len(chain[1]) == job.first_block * BLOCK_TOKENS, "jobs of a sequence have a gap"
        assert len(job.tokens) == job.block_count * BLOCK_TOKENS
        assert all(len(pages) == job.block_count for pages in job.pages)
        chain[1] += job.tokens.tolist()
        chain[2] += job.extras or [bytes(32)] * job.block_count
        self.saves.append([job, self.chance.randint(0, self.delay_steps)])

    def check_saves(self) -> None:
        for job, _ in self.saves:
            for group, pages in enumerate(job.pages):
                for i, page in enumerate(pages):
                    if page == NO_PAGE:
                        assert self.windows[self.order[group]], "a full group lacks a page"
                        continue
                    good = job.tokens.tolist()[i * BLOCK_TOKENS : (i + 1) * BLOCK_TOKENS]
                    assert self.pages.get(page) == good, (
                        f"job {job.job} of {job.request_id}: page {page}, block "
                        f"{job.first_block + i}: {self.pages.get(page)} is not {good}")

    def end_saves(self, output: KVConnectorOutput) -> None:
        report = WorkerReport()
        still = []
        for entry in self.saves:
            job, steps = entry
            # Of one sequence in order, as through one lease.
            if steps > 0 or any(other[0].sequence == job.sequence for other in still):
                entry[1] -= 1
                still.append(entry)
                continue
            chain = self.chains[job.sequence]
            if self.save_fails_one_in and self.chance.randrange(self.save_fails_one_in) == 0:
                chain[3] = True
            report.saves[job.job] = SaveResult(1, not chain[3])
            if not chain[3]:
                extras = chain[2] if any(any(extra) for extra in chain[2]) else None
                for block in range(job.first_block, job.first_block + job.block_count):
                    cut = tuple(extras[: block + 1]) if extras else None
                    if cut is not None and not any(any(extra) for extra in cut):
                        cut = None
                    self.store.stored.add(
                        (chain[0], tuple(chain[1][: (block + 1) * BLOCK_TOKENS]), cut))
                    self.saved_blocks += 1
        self.saves = still
        if report.saves:
            output.kv_connector_worker_meta = report


class Engine:
    """The scheduler, stepped by hand."""

    def __init__(self, seed: int, block_count: int = 200, windowed: bool = False,
                 spec_tokens: int = 0, overlapping: bool = False, **arguments: Any) -> None:
        """overlapping: with async_scheduling. arguments: of vllm_config."""
        if spec_tokens:
            arguments["speculative_config"] = {
                "method": "ngram", "num_speculative_tokens": spec_tokens, "prompt_lookup_max": 4}
        config = vllm_config(**arguments)
        if overlapping:
            # vLLM refuses it beside ngram; what drafts are made of does not matter here.
            config.scheduler_config.async_scheduling = True
        config.cache_config.num_gpu_blocks = block_count
        self.config = config
        self.chance = random.Random(seed)
        cache = kv_cache_config(block_count, windowed)
        init_none_hash(sha256)
        self.hasher = get_request_block_hasher(BLOCK_TOKENS, sha256)
        scheduler_class = config.scheduler_config.get_scheduler_cls()
        self.scheduler = scheduler_class(
            config, cache, StructuredOutputManager(config), block_size=BLOCK_TOKENS,
            hash_block_size=BLOCK_TOKENS, log_stats=True)
        self.connector = self.scheduler.get_kv_connector()
        self.side = self.connector._scheduler  # its hooks are called by vLLM; this looks in
        block_tokens, described = groups.groups_of(config, cache)
        description = Description(block_tokens, described, "{}")
        self.connector.set_xfer_handshake_metadata_pp_aware({(0, 0): WorkerHandshake(description)})
        self.store: Prefixes = self.side._look_ups
        windows = [WINDOW_TOKENS, 0] if windowed else [0]
        self.model = Model(self.chance, cache, [group.engine_group for group in described],
                           windows, self.store, spec_tokens)
        self.overlapping, self.spec_tokens = overlapping, spec_tokens
        self.in_flight: deque[Any] = deque()
        self.answers: dict[str, list[int]] = {}
        self.reasons: dict[str, Any] = {}
        self.params: dict[str, Any] = {}
        self.sources: dict[str, int] = {}
        self.free_at_start = self.pool.get_num_free_blocks()

    @property
    def pool(self) -> Any:
        return self.scheduler.kv_cache_manager.block_pool

    def add(self, name: str, prompt: list[int], max_tokens: int = 8, **more: Any) -> Request:
        params = more.pop("params", None)
        request = Request(
            request_id=name, prompt_token_ids=prompt,
            sampling_params=SamplingParams(
                max_tokens=max_tokens, ignore_eos=True,
                extra_args={"kv_transfer_params": params} if params else None),
            pooling_params=None, block_hasher=self.hasher, **more)
        self.scheduler.add_request(request)
        self.answers[name] = []
        return request

    def abort(self, name: str) -> None:
        self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)

    def step(self) -> None:
        """One step is scheduled and computed; with overlapping the one before is processed."""
        step = self.scheduler.schedule()
        metadata = step.kv_connector_metadata
        assert isinstance(metadata, KvistMetadata)
        sampled, output = self.model.execute(step, metadata)
        self.in_flight.append((step, sampled, output))
        if not self.overlapping or len(self.in_flight) > 1:
            self.process()

    def process(self) -> None:
        step, sampled, output = self.in_flight.popleft()
        names = list(step.num_scheduled_tokens)
        result = ModelRunnerOutput(
            req_ids=names, req_id_to_index={name: i for i, name in enumerate(names)},
            sampled_token_ids=[sampled[name] for name in names], kv_connector_output=output)
        outputs = self.scheduler.update_from_output(step, result)
        for of_client in outputs.values():
            for one in of_client.outputs:
                self.answers[one.request_id] += one.new_token_ids
                if one.finish_reason is not None:
                    self.reasons[one.request_id] = one.finish_reason
                    self.params[one.request_id] = one.kv_transfer_params
        if self.spec_tokens and not self.overlapping:
            there = [name for name in names if name in self.model.requests]
            self.scheduler.update_draft_token_ids(self.model.drafts_for(there))

    def run(self, steps: int = 4000) -> None:
        """Until nothing is left to do."""
        while self.scheduler.has_requests() or self.in_flight:
            assert steps > 0, "it does not come to an end"
            steps -= 1
            if self.scheduler.has_requests():
                self.step()
            else:
                self.process()

    def check_answer(self, name: str, prompt: list[int], max_tokens: int) -> None:
        tokens = list(prompt)
        for _ in range(max_tokens):
            tokens.append(next_token(tokens))
        assert self.answers[name] == tokens[len(prompt):], f"{name}: another answer"

    def check_nothing_left(self) -> None:
        """Neither pages nor leases are held."""
        assert not self.side.holds_pages()
        assert self.side.held_answers == 0
        assert not self.side._requests, list(self.side._requests)
        assert not self.scheduler.requests
        assert self.pool.get_num_free_blocks() == self.free_at_start
        assert not self.model.saves and not self.model.loads
        assert all(block.ref_cnt == 0 for block in self.pool.blocks if not block.is_null)

    def reset_prefix_cache(self) -> None:
        assert self.scheduler.reset_prefix_cache()
