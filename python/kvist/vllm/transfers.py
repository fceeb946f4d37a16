"""What a worker moves between vLLM's pages and the store: vLLM's side of it.

vLLM's thread hands over jobs and takes results. Loads (loading.py) and saves (saving.py) live on
the thread that owns the store; C's workers copy. Nothing here makes vLLM's thread wait but close().

    vLLM's thread     start_loads, start_saves --+                      take() <-- queue of results
    stagers (device)                             +-> copies out --+       copies in --^
    store's thread                                                +-> Saves, Loads ---+

Poison: the pages that a load was asked to fill are nobody's until vLLM's thread has taken that
load's result. A save that names one of them is refused, so that nothing of a load that failed is
ever stored.

Owns: what is under way. Borrows: the store's thread and the pages, until close().
Threads: all public methods on vLLM's thread.
Errors: none is raised: each job ends once, as far as it came; why it came no further is counted in
the figures, and logged once a minute for each reason.
Limits: bytes of saves under way: SAVE_BYTES_MAX; a save beyond it is given up at once, since a page
that waits is a page that vLLM lacks. Device pages: of host memory STAGED_BYTES_MAX for saves (or
one job), and that of loading.LOADS_AT_ONCE loads.
"""

from __future__ import annotations

import enum
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import kvist
from kvist.vllm.addresses import PageError
from kvist.vllm.figures import Figures
from kvist.vllm.jobs import Budget, Complaints, Stager, parts_of
from kvist.vllm.loading import Load, Loads
from kvist.vllm.metadata import NO_PAGE, LoadJob, Owner, SaveJob
from kvist.vllm.pages import PageGroup
from kvist.vllm.saving import Save, Saves

logger = logging.getLogger("kvist.vllm")

SAVE_BYTES_MAX = 4 << 30
STAGED_BYTES_MAX = 512 << 20
QUIET_REASONS = ("cancelled",)


@dataclass
class Results:
    """What ended since the last call, each job once.

    received: requests whose load is over; failed: of these, those whose blocks did not all come,
    and failed_pages the pages of those blocks, of all groups. saves: by SaveJob.job, whether all of
    its blocks are stored.
    """

    received: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    failed_pages: set[int] = field(default_factory=set)
    saves: dict[int, bool] = field(default_factory=dict)


def _word(reason: enum.Enum | str) -> str:
    return reason.name.lower() if isinstance(reason, enum.Enum) else reason


class Transfers:
    """Loads and saves of one worker."""

    def __init__(
        self,
        thread: kvist.StoreThread,
        groups: Sequence[PageGroup],
        name_space_of: Callable[[Owner], bytes],
        terms_now: Callable[[], kvist.Terms],
        figures: Figures,
        save_wait_s: float,
    ) -> None:
        """thread: of the attached store, whose layout's groups are these. name_space_of: Kvist's
        namespace for an owner's blocks. terms_now: what blocks that are stored now are kept
        under; called on the store's thread. save_wait_s: how long one waits for room."""
        self._thread = thread
        self._groups = tuple(groups)
        self._name_space_of = name_space_of
        self._figures = figures
        self._complaints = Complaints()
        in_place = all(group.in_place for group in groups)
        self._stagers = () if in_place else (Stager(), Stager())  # of loads, of saves
        self._staged = Budget(STAGED_BYTES_MAX)
        self._closed = False
        # Until their results are taken:
        self._loads_open: dict[str, frozenset[int]] = {}  # by request: its pages
        self._saves_open: dict[int, int] = {}  # by job: its bytes
        self._load_bytes = self._save_bytes = 0
        self._ended: deque[Load | Save] = deque()  # filled on any thread
        self._loads: Loads = thread.call(Loads, self._load_ended)
        self._saves: Saves = thread.call(Saves, terms_now, save_wait_s, self._save_ended)

    # ---- vLLM's thread ----

    def start_loads(self, jobs: Iterable[LoadJob], cancelled: Sequence[str] = ()) -> None:
        """Begins them; ends those of the requests that were aborted as soon as can be."""
        loads = [self._new_load(job) for job in jobs]
        good = [load for load in loads if load.parts]
        for load in loads:
            if not load.parts:
                self._load_over(load)
        if good or cancelled:
            self._submit(partial(self._run_loads, good, cancelled), good)

    def start_saves(self, jobs: Iterable[SaveJob], ended_sequences: Sequence[int] = ()) -> None:
        """Begins them: what is in their pages once the kernels that are launched by now have run.
        ended_sequences: no further job of these comes."""
        saves = [self._new_save(job) for job in jobs]
        if not saves and not ended_sequences:
            return
        if not self._stagers:
            self._submit(partial(self._run_saves, saves, ended_sequences), saves)
        else:
            self._stagers[1].give(partial(self._saves_staged, saves, ended_sequences))

    def take(self) -> Results:
        """What ended. From now on vLLM may do with these jobs' pages as it likes."""
        results = Results()
        while self._ended:
            over = self._ended.popleft()
            if isinstance(over, Save):
                self._save_bytes -= self._saves_open.pop(over.job.job)
                results.saves[over.job.job] = not over.reason
            else:
                self._take_load(over, results)
        self._figures.under_way(self._load_bytes, self._save_bytes)
        return results

    def close(self, timeout_s: float) -> None:
        """Lets what is under way end for so long, cancels the rest, and waits for its end. The
        store's thread is the caller's to close."""
        if self._closed:
            return
        self._closed = True
        self._wait(timeout_s)
        for stager in self._stagers:
            stager.close(timeout_s)
        try:
            self._thread.call(self._cancel_all)
        except kvist.KvistError as error:
            logger.warning("kvist: the store's thread has ended already: %s", error)
        self._wait(timeout_s)

    def _wait(self, timeout_s: float) -> None:
        end_s = time.monotonic() + timeout_s
        while (self._loads_open or self._saves_open) and time.monotonic() < end_s:
            self.take()
            time.sleep(0.002)

    def _take_load(self, load: Load, results: Results) -> None:
        job = load.job
        self._load_bytes -= self._size_bytes(job.pages)
        self._loads_open.pop(job.request_id, None)
        results.received.add(job.request_id)
        if load.good_count < job.block_count and not load.cancelled:
            results.failed.add(job.request_id)
            for pages in job.pages:
                results.failed_pages.update(pages[load.good_count :])
            results.failed_pages.discard(NO_PAGE)

    def _size_bytes(self, pages: Sequence[Sequence[int]], block_count: int | None = None) -> int:
        """Of the first block_count blocks, or of all."""
        return sum(
            (len(of_group[:block_count]) - of_group[:block_count].count(NO_PAGE))
            * group.object_bytes
            for group, of_group in zip(self._groups, pages)
        )

    def _new_load(self, job: LoadJob) -> Load:
        """Without parts: it was refused."""
        self._loads_open[job.request_id] = frozenset().union(*job.pages) - {NO_PAGE}
        self._load_bytes += self._size_bytes(job.pages)
        try:
            parts = parts_of(job, self._groups, lambda group, ids: group.to_load(ids))
            return Load(job, self._name_space_of(job.owner), parts)
        except (PageError, kvist.KvistError, RuntimeError) as error:
            self._complaints.warn("load", "kvist: a load was refused: %s", error)
            return Load(job, b"", [], reason="refused")

    def _new_save(self, job: SaveJob) -> Save:
        """With a reason: it was refused; it goes the same way, to stop what is behind it."""
        size_bytes = self._size_bytes(job.pages)
        self._saves_open[job.job] = size_bytes
        self._save_bytes += size_bytes
        if self._save_bytes > SAVE_BYTES_MAX:
            return Save(job, b"", [], reason="too much under way")
        for loading in self._loads_open.values():
            if not all(loading.isdisjoint(pages) for pages in job.pages):
                logger.error("kvist: a save of pages that a load fills was refused; do: report it")
                return Save(job, b"", [], reason="pages of a load")
        try:
            parts = parts_of(job, self._groups, lambda group, ids: group.to_save(ids))
            return Save(job, self._name_space_of(job.owner), parts)
        except (PageError, kvist.KvistError, RuntimeError) as error:
            self._complaints.warn("save", "kvist: a save was refused: %s", error)
            return Save(job, b"", [], reason="refused")

    # ---- between the threads ----

    def _submit(self, work: Callable[[kvist.Store], None], jobs: Sequence[Load | Save]) -> None:
        """On the store's thread, or, where that has ended, the end of these jobs."""
        try:
            self._thread.submit(work)
        except kvist.KvistError:
            for job in jobs:
                job.reason = "closed"
                if isinstance(job, Save):
                    self._save_ended(job)
                else:
                    self._load_over(job)

    def _saves_staged(self, saves: Sequence[Save], ended_sequences: Sequence[int]) -> None:
        """On a stager's thread: the bytes leave the device, job by job, as there is room."""
        for save in saves:
            try:
                self._thread.call(partial(self._begin_save, save))
            except kvist.KvistError:
                save.reason = "closed"
                self._save_ended(save)
                continue
            save.staged_bytes = sum(
                part.block_count * self._groups[part.group].object_bytes for part in save.parts
            )
            if save.staged_bytes:
                self._staged.take(save.staged_bytes)
            try:
                for part in save.parts:
                    part.stage.ready()
            except Exception as error:
                self._complaints.warn("stage", "kvist: a copy from the device failed: %s", error)
                save.reason = "device"
            self._submit(partial(self._add_saves, [save], ()), [save])
        self._submit(partial(self._add_saves, (), ended_sequences), ())

    # ---- the store's thread ----

    def _run_loads(
        self, loads: Sequence[Load], cancelled: Sequence[str], store: kvist.Store
    ) -> None:
        for load in loads:
            self._loads.add(load)
        for request_id in cancelled:
            self._loads.cancel(request_id)
        self._figures.attached(store.attached_to is not None)

    def _begin_save(self, save: Save, _store: kvist.Store) -> None:
        self._saves.begin(save)

    def _run_saves(
        self, saves: Sequence[Save], ended_sequences: Sequence[int], store: kvist.Store
    ) -> None:
        """Of pages that are read in place."""
        for save in saves:
            self._saves.begin(save)
            self._saves.add(save)
        self._add_saves((), ended_sequences, store)

    def _add_saves(
        self, saves: Sequence[Save], ended_sequences: Sequence[int], store: kvist.Store
    ) -> None:
        for save in saves:
            self._saves.add(save)
        for number in ended_sequences:
            self._saves.end_sequence(number)
        self._figures.attached(store.attached_to is not None)

    def _cancel_all(self, store: kvist.Store) -> None:
        self._loads.cancel_all()
        self._saves.cancel_all()

    def _load_ended(self, load: Load) -> None:
        if not self._stagers or load.good_count == 0:
            self._load_over(load)
        else:
            self._stagers[0].give(partial(self._load_staged, load))

    def _load_staged(self, load: Load) -> None:
        """On a stager's thread: the bytes go to the device."""
        try:
            for part in load.parts:
                part.stage.finish(min(part.block_count, load.good_count))
        except Exception as error:
            self._complaints.warn("stage", "kvist: a copy to the device failed: %s", error)
            load.good_count, load.reason = 0, "device"
        self._load_over(load)

    def _load_over(self, load: Load) -> None:
        job, seconds = load.job, time.monotonic() - load.began_s
        if load.good_count > 0:
            size_bytes = self._size_bytes(job.pages, load.good_count)
            self._figures.loaded(load.good_count, size_bytes, seconds)
        missing = job.block_count - load.good_count
        if missing > 0 and not load.cancelled:
            self._figures.load_failed(missing, load.reason)
            self._complaints.warn(
                f"load {_word(load.reason)}",
                "kvist: %d of %d blocks did not come (%s): they are computed",
                missing, job.block_count, _word(load.reason),
            )  # fmt: skip
        load.parts = []
        self._ended.append(load)

    def _save_ended(self, save: Save) -> None:
        job = save.job
        save.parts = []  # and the memory that they are in
        if save.staged_bytes:
            self._staged.give(save.staged_bytes)
        if not save.reason:
            seconds = time.monotonic() - save.began_s
            held = save.held_count
            size_bytes = self._size_bytes(job.pages) - self._size_bytes(job.pages, held)
            self._figures.saved(job.block_count - held, size_bytes, seconds)
        else:
            self._figures.save_given_up(job.block_count, save.reason)
            if save.reason not in QUIET_REASONS:
                self._complaints.warn(
                    f"save {save.reason}",
                    "kvist: %d blocks were not stored (%s): nothing is lost but a later hit",
                    job.block_count, save.reason,
                )  # fmt: skip
        self._ended.append(save)
