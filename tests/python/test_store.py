"""A store of this process's own: bytes in and out, restarts, and every way to ask it wrongly."""
import gc
import os
import signal
import tempfile
import threading
import time
import unittest
import warnings
import weakref

import numpy
from contexts import BLOCK_TOKENS, bytes_of, tokens_of
from stores import (
    BLOCK_BYTES,
    BLOCKS,
    INVALID,
    LAYERS,
    LIMIT_S,
    NAME_SPACE,
    UNIT_BYTES,
    load_context,
    open_store,
    poll_all,
    refusal,
    store_context,
)

import kvist

try:
    import torch
except ImportError:
    torch = None


class OnStore(unittest.TestCase):
    """A store in memory for each case."""

    def setUp(self):
        self.store = open_store()
        self.addCleanup(self.store.close)


class Bytes(OnStore):
    def test_round_trip(self):
        self.assertEqual(len(load_context(self.store, 1)), 0)
        stored = store_context(self.store, 1)
        self.assertTrue((load_context(self.store, 1) == stored).all())
        self.assertTrue((load_context(self.store, 1, 5) == stored[:5]).all())

    def test_found_and_missing(self):
        store_context(self.store, 1, 4)
        with self.store.match(NAME_SPACE, tokens_of(1, BLOCKS)) as lease:
            match = lease.match
            self.assertEqual((match.block_count, match.miss), (4, kvist.Miss.NEW))
            self.assertEqual(match.tier_blocks[kvist.Tier.HOST], 4)
            self.assertEqual(match.detail.block, 4)
            self.assertEqual(lease.sealed_count, 4)
            run, = lease.runs()
            self.assertEqual((run.first_block, run.block_count, run.tier, run.bytes),
                             (0, 4, kvist.Tier.HOST, 4 * BLOCK_BYTES))
        with self.store.match(NAME_SPACE, tokens_of(1, 4)[:-1]) as lease:
            self.assertEqual((lease.match.block_count, lease.match.miss), (3, kvist.Miss.SHORT))
            self.assertIsNone(lease.match.detail)
        with self.store.match(NAME_SPACE, []) as lease:
            self.assertEqual(lease.match.block_count, 0)
        other = tokens_of(1, 4).copy()
        other[2 * BLOCK_TOKENS + 3] += 1
        with self.store.match(NAME_SPACE, other) as lease:
            detail = lease.match.detail
            self.assertEqual((lease.match.block_count, lease.match.miss),
                             (2, kvist.Miss.DIVERGED))
            self.assertEqual((detail.token, detail.token_exact), (2 * BLOCK_TOKENS + 3, True))
            self.assertEqual(detail.other, kvist.keys(NAME_SPACE, tokens_of(1, 4), BLOCK_TOKENS)[2])

    def test_into_pages_in_any_order(self):
        """As an engine has them: [layer][page][bytes] with pages in no order."""
        stored = store_context(self.store, 1)
        pages = numpy.zeros((LAYERS, 2 * BLOCKS, UNIT_BYTES), dtype="u1")
        table = [block * 37 % (2 * BLOCKS) for block in range(BLOCKS)]
        bases = numpy.array([[pages[layer, table[block]].ctypes.data for layer in range(LAYERS)]
                             for block in range(BLOCKS)], dtype="u8")
        with self.store.match(NAME_SPACE, tokens_of(1, BLOCKS)) as lease:
            lease.load(kvist.Pieces(bases.ravel(), UNIT_BYTES, keep=pages)).result(LIMIT_S)
        self.assertTrue((pages[:, table].transpose(1, 0, 2).reshape(stored.shape) == stored).all())
        with self.store.match(NAME_SPACE, tokens_of(2, BLOCKS)) as lease:
            strided = pages[:, table[:1] + table[1:]].transpose(1, 0, 2)
            lease.store(strided).result(LIMIT_S)
        self.assertTrue((load_context(self.store, 2) == stored).all())

    def test_into_raw_memory_and_a_view(self):
        stored = store_context(self.store, 1)
        memory = bytearray(BLOCKS * BLOCK_BYTES)
        with self.store.match(NAME_SPACE, tokens_of(1, BLOCKS)) as lease:
            lease.load(memory).result(LIMIT_S)
            self.assertEqual(memory, stored.tobytes())
            memory[:] = bytes(len(memory))
            half = len(memory) // 2
            lease.load(kvist.Pieces.of(memoryview(memory)[half:], memoryview(memory)[:half])
                       ).result(LIMIT_S)
            self.assertEqual(memory[half:] + memory[:half], stored.tobytes())
            raw = numpy.zeros(BLOCK_BYTES, dtype="u1")
            lease.load((raw.ctypes.data, BLOCK_BYTES), first_block=3, block_count=1
                       ).result(LIMIT_S)
            self.assertTrue((raw == stored[3]).all())

    @unittest.skipIf(torch is None, "torch is not importable here")
    def test_into_tensors(self):
        stored = store_context(self.store, 1)
        pages = torch.zeros((BLOCKS, BLOCK_BYTES // 2), dtype=torch.bfloat16)
        with self.store.match(NAME_SPACE, tokens_of(1, BLOCKS)) as lease:
            lease.load(pages).result(LIMIT_S)
        self.assertTrue((pages.view(torch.uint8).numpy() == stored).all())
        with self.store.match(NAME_SPACE, tokens_of(2, BLOCKS)) as lease:
            lease.store(pages.flip(0)).result(LIMIT_S)
        self.assertTrue((load_context(self.store, 2) == stored[::-1]).all())

    def test_one_layer_alone(self):
        stored = store_context(self.store, 1).reshape(BLOCKS, LAYERS, UNIT_BYTES)
        into = numpy.zeros((BLOCKS - 2, 2, UNIT_BYTES), dtype="u1")
        with self.store.match(NAME_SPACE, tokens_of(1, BLOCKS)) as lease:
            lease.load(into, first_block=2, first_layer=1, layer_count=2).result(LIMIT_S)
        self.assertTrue((into == stored[2:, 1:3]).all())

    def test_stored_in_parts(self):
        stored = bytes_of(1, BLOCKS, BLOCK_BYTES)
        tokens = tokens_of(1, BLOCKS)
        with self.store.match(NAME_SPACE, tokens[:2 * BLOCK_TOKENS], kvist.Mode.WRITE) as lease:
            self.assertEqual(lease.match.miss, kvist.Miss.BYPASSED)
            parts = [lease.store(stored[:2])]
            for first in range(2, BLOCKS, 7):
                part = tokens[first * BLOCK_TOKENS:(first + 7) * BLOCK_TOKENS]
                parts.append(lease.store(stored[first:first + 7], first_block=first, tokens=part,
                                         arithmetic="tests/v1"))
            self.assertEqual([part.result(LIMIT_S) for part in parts], [2, 7, 7])
            self.assertEqual(lease.sealed_count, BLOCKS)
            self.assertEqual(lease.arithmetic(9), "tests/v1")
        self.assertTrue((load_context(self.store, 1) == stored).all())

    def test_modes(self):
        stored = store_context(self.store, 1, 4)
        for mode, found in ((kvist.Mode.READ, 4), (kvist.Mode.BYPASS, 0), (kvist.Mode.WRITE, 0)):
            with self.store.match(NAME_SPACE, tokens_of(1, 4), mode) as lease:
                self.assertEqual(lease.match.block_count, found)
        for mode in (kvist.Mode.READ, kvist.Mode.BYPASS):
            with self.store.match(NAME_SPACE, tokens_of(2, 4), mode) as lease:
                self.assertEqual(lease.store(stored).result(LIMIT_S), 0)
        self.assertEqual(len(load_context(self.store, 2, 4)), 0)

    def test_extra_keys(self):
        tokens, picture, other = tokens_of(1, 4), b"a picture".ljust(32), b"another".ljust(32)
        extras = [None, picture, None, None]
        stored = bytes_of(1, 4, BLOCK_BYTES)
        with self.store.match(NAME_SPACE, tokens, extras=extras) as lease:
            lease.store(stored).result(LIMIT_S)
        for asked, found in ((extras, 4), (b"".join(e or bytes(32) for e in extras), 4), (None, 1),
                             ([None, other, None, None], 1), ([picture, picture, None, None], 0)):
            with self.store.match(NAME_SPACE, tokens, extras=asked) as lease:
                self.assertEqual(lease.match.block_count, found)
                if found == 1:
                    self.assertEqual(lease.match.miss, kvist.Miss.DIVERGED)
                    self.assertTrue(lease.match.detail.extra_differs)
        keys = kvist.keys(NAME_SPACE, tokens, BLOCK_TOKENS, extras)
        plain = kvist.keys(NAME_SPACE, tokens, BLOCK_TOKENS)
        self.assertEqual(keys[0], plain[0])
        self.assertFalse(set(keys[1:]) & set(plain))
        self.assertEqual([self.store.extra(key) for key in keys[:2]], [bytes(32), picture])
        self.assertEqual(self.store.tokens(keys[1]),
                         tokens[BLOCK_TOKENS:2 * BLOCK_TOKENS].tolist())
        self.assertEqual(self.store.why(NAME_SPACE, tokens, extras=extras).match.block_count, 4)
        with self.store.match(NAME_SPACE, tokens[:0], kvist.Mode.WRITE) as lease:
            lease.store(stored, tokens=tokens, extras=[other] * 4).result(LIMIT_S)
            self.assertIn("without tokens", refusal(self, INVALID, lease.store, stored,
                                                    first_block=4, extras=[other] * 4))
        for wrong in ([None] * 3, [b"short"] * 4, bytes(31), [1, 2, 3, 4], 7):
            for call in (self.store.match, self.store.why):
                self.assertIn("extras", refusal(self, INVALID, call, NAME_SPACE, tokens,
                                                extras=wrong))

    def test_pending_of_another_lease(self):
        stored = bytes_of(1, 2, BLOCK_BYTES)
        first = self.store.match(NAME_SPACE, tokens_of(1, 2))
        with self.store.match(NAME_SPACE, tokens_of(1, 2)) as second:
            self.assertEqual(second.match.miss, kvist.Miss.PENDING)
        first.store(stored).result(LIMIT_S)
        first.release()
        self.assertTrue((load_context(self.store, 1, 2) == stored).all())

    def test_several_groups(self):
        part = kvist.Part(kvist.PartKind.OPAQUE, 1, 512, 1)
        layout = kvist.Layout(BLOCK_TOKENS, [
            kvist.Group(kvist.GroupKind.FULL, [0], [part]),
            kvist.Group(kvist.GroupKind.WINDOW, [1], [part], window_tokens=40),
            kvist.Group(kvist.GroupKind.STATE, [2], [part])])
        space, tokens = kvist.name_space(bytes(32), layout), tokens_of(3, 8)
        memory = bytes_of(3, 8 * 3, 512).reshape(3, 8, 512)
        with kvist.Store(layout, host_bytes=1 << 20) as store:
            with store.match(space, tokens) as lease:
                for group in range(3):
                    lease.store(memory[group], group=group)
                poll_all(store)
            with store.match(space, tokens) as lease:
                self.assertEqual(lease.match.block_count, 8)
                for group, first in ((0, 0), (1, 5), (2, 7)):
                    into = numpy.zeros((8 - first, 512), dtype="u1")
                    lease.load(into, first_block=first, group=group).result(LIMIT_S)
                    self.assertTrue((into == memory[group, first:]).all(), group)
                self.assertIn("group is 3", refusal(self, INVALID, lease.load, memory[0], group=3))


class Asking(OnStore):
    """What is asked wrongly is told by field and bound, and changes nothing."""

    def test_loads(self):
        stored = store_context(self.store, 1, 4)
        into = numpy.zeros_like(stored)
        with self.store.match(NAME_SPACE, tokens_of(1, 4)) as lease:
            for text, named in {
                f"pieces have {4 * BLOCK_BYTES} bytes: the selection has {3 * BLOCK_BYTES}":
                    {"block_count": 3},
                "blocks 1 to 4 are asked for: 4 were found": {"first_block": 1, "block_count": 4},
                "group is 1: it must be 0 to 0": {"group": 1},
                "layers from 4 on": {"first_layer": 4},
                "heads from 0 on, 2 of them": {"head_count": 2},
                "the selection: ": {"first_block": -1},
            }.items():
                self.assertIn(text, refusal(self, INVALID, lease.load, into, **named))
            self.assertIn("read-only", refusal(self, INVALID, lease.load, into.tobytes()))
            self.assertIn("no memory", refusal(self, INVALID, lease.load, [into]))
            self.assertFalse(into.any())
            lease.load(into).result(LIMIT_S)
            self.assertTrue((into == stored).all())

    def test_stores(self):
        stored = bytes_of(1, 4, BLOCK_BYTES)
        with self.store.match(NAME_SPACE, tokens_of(1, 4)) as lease:
            for text, named in {
                f"pieces have {4 * BLOCK_BYTES} bytes: 3 blocks": {"block_count": 3},
                "not the lease's next ones": {"first_block": 1, "block_count": 4},
                "group is 1: it must be 0 to 0": {"group": 1},
                "arithmetic has 48 bytes: at most 47": {"arithmetic": "a" * 48},
                "there are 3 tokens": {"tokens": [1, 2, 3]},
                "timeout_s is -1": {"timeout_s": -1},
                "what to store: ": {"first_block": -1},
                "code 0": {"arithmetic": "a\0"},
            }.items():
                self.assertIn(text, refusal(self, INVALID, lease.store, stored, **named))
            self.assertIn("blocks of group 0 have",
                          refusal(self, INVALID, lease.store, stored.ravel()[1:]))
            beyond = bytes_of(1, 5, BLOCK_BYTES)
            self.assertIn("beyond its query", refusal(self, INVALID, lease.store, beyond))
            self.assertEqual(lease.store(stored).result(LIMIT_S), 4)
            for block in (4, -1):
                self.assertIn("4 sealed ones", refusal(self, INVALID, lease.arithmetic, block))

    def test_matches(self):
        match, tokens = self.store.match, tokens_of(1, 1)
        now = time.time_ns()
        for text, named in {
            "tenant": {"terms": kvist.Terms(tenant="a" * 40)},
            "pin": {"terms": kvist.Terms(pin_until_unix_ns=now + 2 * 10**12,
                                         expires_unix_ns=now + 10**12)},
            "terms.priority is 9": {"terms": kvist.Terms(priority=9)},
            "terms.expires_unix_ns is -1": {"terms": kvist.Terms(expires_unix_ns=-1)},
            "mode is 4": {"mode": 4},
            "request is": {"request": 1 << 64},
        }.items():
            self.assertIn(text, refusal(self, INVALID, match, NAME_SPACE, tokens, **named))
        self.assertIn("name_space", refusal(self, INVALID, match, NAME_SPACE[1:], tokens))
        self.assertEqual(self.store.statistics().leases, 0)

    def test_opening(self):
        with tempfile.TemporaryDirectory() as folder:
            for text, named in {
                "host_bytes is 1": {"host_bytes": 1},
                "host_bytes is -1": {"host_bytes": -1},
                "disk_bytes is": {"directory": folder, "disk_bytes": 1},
                "history_bytes is 1073741825: it must be 0 to 1073741824":
                    {"history_bytes": (1 << 30) + 1},
                "origin has 32 bytes: at most 31": {"origin": "a" * 32},
                "Policy.LRU": {"policy": 17},
                "host_bytes: an attached store has none": {"attach": folder + "/socket"},
                "directory has a character of code 0": {"directory": "a\0b"},
                "at most 7": {"disks": [kvist.Disk(folder, 1)] * 8},
                "quota": {"quotas": [kvist.Quota("a b")]},
            }.items():
                self.assertIn(text, refusal(self, INVALID, open_store, **named))
            with open_store(directory=folder + "/store", disk_bytes=64 << 20,
                            segment_bytes=8 << 20):
                message = refusal(self, kvist.Status.BUSY, open_store, directory=folder + "/store",
                                  disk_bytes=64 << 20, segment_bytes=8 << 20)
                self.assertIn(folder, message)

    def test_flush_without_a_disk(self):
        store_context(self.store, 1, 1)
        with self.assertRaises(kvist.KvistError) as caught:
            self.store.flush().result(LIMIT_S)
        self.assertEqual(caught.exception.status, kvist.Status.MISSING)
        self.assertIn("no disk tier", str(caught.exception))

    def test_no_room(self):
        with open_store(host_bytes=4 * BLOCK_BYTES) as store:
            store_context(store, 1, 4)
            held = store.match(NAME_SPACE, tokens_of(1, 4))
            with store.match(NAME_SPACE, tokens_of(2, 2)) as lease:
                pending = lease.store(bytes_of(2, 2, BLOCK_BYTES), timeout_s=0)
                with self.assertRaises(kvist.KvistError) as caught:
                    pending.result(LIMIT_S)
                error = caught.exception
                self.assertIn(error.status, (kvist.Status.NO_SPACE, kvist.Status.BUSY))
                self.assertEqual(error.block_count, 0)
                self.assertIs(pending.error(), error)
                self.assertIn("room", str(error))
            held.release()

    def test_result_within_a_limit(self):
        with open_store(host_bytes=2 * BLOCK_BYTES) as store:
            store_context(store, 1, 2)
            held = store.match(NAME_SPACE, tokens_of(1, 2))
            with store.match(NAME_SPACE, tokens_of(2, 1)) as lease:
                pending = lease.store(bytes_of(2, 1, BLOCK_BYTES), timeout_s=None)
                with self.assertRaises(TimeoutError):
                    pending.result(0.01)
                self.assertFalse(pending.done)
                held.release()
                self.assertEqual(pending.result(LIMIT_S), 1)


class Ends(OnStore):
    """What was released, cancelled, closed, collected or left to another thread."""

    def test_released_lease(self):
        stored = store_context(self.store, 1, 1)
        lease = self.store.match(NAME_SPACE, tokens_of(1, 1))
        self.assertFalse(lease.released)
        lease.release()
        lease.release()
        self.assertTrue(lease.released)
        for call in (lambda: lease.load(stored), lambda: lease.store(stored), lease.runs,
                     lambda: lease.sealed_count, lambda: lease.arithmetic(0)):
            self.assertIn("the lease was released", refusal(self, INVALID, call))
        self.assertEqual(lease.match.block_count, 1)

    def test_cancelled_by_release(self):
        with open_store(host_bytes=2 * BLOCK_BYTES) as store:
            store_context(store, 1, 2)
            held = store.match(NAME_SPACE, tokens_of(1, 2))
            lease = store.match(NAME_SPACE, tokens_of(2, 1))
            memory = bytes_of(2, 1, BLOCK_BYTES)
            alive = weakref.ref(memory)
            pending = lease.store(memory, timeout_s=None)
            del memory
            gc.collect()
            self.assertIsNotNone(alive())
            lease.release()
            with self.assertRaises(kvist.KvistError) as caught:
                pending.result(LIMIT_S)
            self.assertEqual(caught.exception.status, kvist.Status.CANCELLED)
            self.assertIsNone(alive())
            held.release()

    def test_memory_stays_until_the_load_is_over(self):
        store_context(self.store, 1)
        into = numpy.zeros((BLOCKS, BLOCK_BYTES), dtype="u1")
        alive = weakref.ref(into)
        lease = self.store.match(NAME_SPACE, tokens_of(1, BLOCKS))
        pending = lease.load(into)
        lease.release()
        del into, lease
        gc.collect()
        self.assertIsNotNone(alive())
        poll_all(self.store)
        self.assertTrue(pending.done)
        gc.collect()
        self.assertIsNone(alive())

    def test_closed_with_leases_and_loads(self):
        store_context(self.store, 1)
        leases = [self.store.match(NAME_SPACE, tokens_of(1, BLOCKS)) for _ in range(5)]
        into = numpy.zeros((BLOCKS, BLOCK_BYTES), dtype="u1")
        told = []
        pending = leases[0].load(into)
        pending.add_done_callback(lambda of: told.append(of.error()))
        flush = self.store.flush()
        self.store.close()
        self.store.close()
        self.assertTrue(self.store.closed)
        self.assertTrue(pending.done and flush.done)
        self.assertEqual(len(told), 1)
        self.assertTrue(all(lease.released for lease in leases))
        for call in (self.store.poll, self.store.fileno, self.store.flush, self.store.statistics,
                     lambda: self.store.match(NAME_SPACE, []), lambda: leases[1].load(into)):
            self.assertIn("closed", refusal(self, INVALID, call))
        for lease in leases:
            lease.release()

    def test_other_threads_are_refused(self):
        store_context(self.store, 1, 1)
        lease = self.store.match(NAME_SPACE, tokens_of(1, 1))
        into = numpy.zeros(BLOCK_BYTES, dtype="u1")
        pending = lease.load(numpy.zeros(BLOCK_BYTES, dtype="u1"))
        messages = []

        def try_all():
            for call in (self.store.poll, self.store.close, self.store.flush, lease.release,
                         lambda: lease.load(into), lambda: lease.store(into), lease.runs,
                         lambda: self.store.match(NAME_SPACE, []), self.store.statistics,
                         lambda: pending.result(1), self.store.tenants,
                         lambda: pending.add_done_callback(print)):
                messages.append(refusal(self, INVALID, call))

        thread = threading.Thread(target=try_all, name="stranger")
        thread.start()
        thread.join()
        self.assertEqual(len(messages), 12)
        for message in messages:
            self.assertIn("this is thread stranger", message)
            self.assertIn("StoreThread", message)
        self.assertFalse(lease.released)
        pending.result(LIMIT_S)
        lease.release()

    def test_a_collected_lease_is_released_on_the_right_thread(self):
        lease = self.store.match(NAME_SPACE, tokens_of(1, 1))
        self.assertEqual(self.store.statistics().leases, 1)
        box = [lease]
        del lease
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            thread = threading.Thread(target=box.clear)
            thread.start()
            thread.join()
        self.assertIn("without release()", str(caught[0].message))
        self.assertTrue(issubclass(caught[0].category, ResourceWarning))
        self.assertEqual(self.store.statistics().leases, 0)

    def test_a_collected_store_is_closed(self):
        with tempfile.TemporaryDirectory() as folder:
            disk = {"directory": folder, "disk_bytes": 64 << 20, "segment_bytes": 8 << 20}
            store = open_store(**disk)
            stored = store_context(store, 1)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                del store
                gc.collect()
            self.assertIn("without close()", str(caught[-1].message))
            with open_store(**disk) as store:  # it has let go of the folder
                self.assertTrue((load_context(store, 1) == stored).all())

    def test_thousands_of_leases(self):
        store_context(self.store, 1, 2)
        tokens = tokens_of(1, 2)
        leases = [self.store.match(NAME_SPACE, tokens) for _ in range(5000)]
        self.assertEqual(self.store.statistics().leases, 5000)
        for lease in leases[::2]:
            lease.release()
        self.assertEqual(self.store.statistics().leases, 2500)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del lease, leases
            gc.collect()
        self.assertEqual(self.store.statistics().leases, 0)

    def test_a_child_has_no_store(self):
        stored = store_context(self.store, 1, 2)
        lease = self.store.match(NAME_SPACE, tokens_of(1, 2))
        read, write = os.pipe()
        child = os.fork()
        if child == 0:  # no case of the parent's is to end here
            try:
                closed, released = self.store.closed, lease.released
                try:
                    self.store.poll()
                    text = "no error"
                except kvist.KvistError as error:
                    text = str(error)
                lease.release()
                self.store.close()
                with open_store() as own:
                    good = (store_context(own, 1, 2) == stored).all()
                os.write(write, f"{closed} {released} {good} {text}".encode())
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read) as file:
            told = file.read()
        os.waitpid(child, 0)
        self.assertIn("True True True", told)
        self.assertIn("forked", told)
        into = numpy.zeros_like(stored)
        lease.load(into).result(LIMIT_S)
        self.assertTrue((into == stored).all())
        lease.release()


class Callbacks(OnStore):
    def test_run_once_after_the_poll_and_may_call_the_store(self):
        stored = store_context(self.store, 1, 4)
        into = numpy.zeros_like(stored)
        told = []

        def loaded(pending):
            self.assertEqual(pending.result().block_count, 4)
            lease.release()
            told.append(load_context(self.store, 1, 2))

        lease = self.store.match(NAME_SPACE, tokens_of(1, 4))
        pending = lease.load(into)
        pending.add_done_callback(loaded)
        self.assertEqual(told, [])
        pending.result(LIMIT_S)
        self.assertEqual(len(told), 1)
        self.assertTrue((told[0] == stored[:2]).all())
        pending.add_done_callback(told.append)
        self.assertEqual(told[1:], [pending])

    def test_what_they_raise_is_logged(self):
        told = []
        store_context(self.store, 1, 1)
        lease = self.store.match(NAME_SPACE, tokens_of(1, 1))
        pending = lease.load(numpy.zeros(BLOCK_BYTES, dtype="u1"))
        pending.add_done_callback(lambda _pending: 1 / 0)
        pending.add_done_callback(told.append)
        with self.assertLogs("kvist", "ERROR") as logs:
            pending.result(LIMIT_S)
        self.assertIn("ZeroDivisionError", logs.output[0])
        self.assertEqual(told, [pending])
        lease.release()

    def test_an_interruption_loses_nothing(self):
        """Ctrl-C at any moment: it is raised, and what was stored and loaded is told all the
        same."""
        begun = time.monotonic()
        stored = {}
        interrupted = context = 0
        previous = signal.signal(signal.SIGALRM, _interrupt)
        try:
            while interrupted < 40 and time.monotonic() - begun < 10:
                context += 1
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.0002 + context % 50 * 0.00002)
                    stored[context % 20] = store_context(self.store, context % 20, 2)
                    load_context(self.store, context % 20, 2)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except KeyboardInterrupt:
                    interrupted += 1
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
        finally:
            signal.signal(signal.SIGALRM, previous)
        self.assertGreater(interrupted, 0)
        poll_all(self.store)
        for number, bytes_ in stored.items():
            self.assertTrue((load_context(self.store, number, 2) == bytes_).all())
        # Python swallows what is raised while it collects a lease, which then is held until close.
        self.assertLessEqual(self.store.statistics().leases, interrupted // 4)
        self.store.close()


def _interrupt(_number, _frame):
    raise KeyboardInterrupt


class Disk(unittest.TestCase):
    def test_restart(self):
        with tempfile.TemporaryDirectory() as folder:
            options = {"directory": folder, "disk_bytes": 64 << 20, "segment_bytes": 8 << 20}
            with open_store(origin="first", **options) as store:
                stored = [store_context(store, context) for context in range(4)]
                store.flush().result(LIMIT_S)
                self.assertEqual(store.statistics().unsaved_objects, 0)
            with open_store(**options) as store:
                with store.match(NAME_SPACE, tokens_of(2, BLOCKS)) as lease:
                    self.assertEqual(lease.match.tier_blocks[kvist.Tier.DISK], BLOCKS)
                for context, expected in enumerate(stored):
                    self.assertTrue((load_context(store, context) == expected).all())
                self.assertGreater(store.statistics().tiers[kvist.Tier.DISK].read_bytes, 0)

    def test_damage_is_a_miss(self):
        with tempfile.TemporaryDirectory() as folder:
            options = {"directory": folder, "disk_bytes": 64 << 20, "segment_bytes": 8 << 20}
            with open_store(**options) as store:
                stored = store_context(store, 1)
            _damage(folder, stored[BLOCKS // 2])
            with open_store(**options) as store:
                with store.match(NAME_SPACE, tokens_of(1, BLOCKS)) as lease:
                    self.assertEqual(lease.match.block_count, BLOCKS)
                    into = numpy.zeros_like(stored)
                    loaded = lease.load(into).result(LIMIT_S)
                self.assertEqual(loaded, kvist.Loaded(BLOCKS // 2, kvist.Miss.DAMAGED))
                self.assertTrue((into[:BLOCKS // 2] == stored[:BLOCKS // 2]).all())
                self.assertEqual(len(load_context(store, 1)), BLOCKS // 2)


def _damage(folder, block):
    """Flips a bit of these bytes where they lie in a segment."""
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if name.startswith("segment-"):
            with open(path, "r+b") as file:
                at = file.read().find(block[:64].tobytes())
                if at >= 0:
                    file.seek(at + 8)
                    file.write(bytes([int(block[8]) ^ 1]))
                    return
    raise AssertionError("the block is in no segment")
