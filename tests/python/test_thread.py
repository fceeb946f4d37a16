"""A store on a thread of its own, and in an event loop."""
import asyncio
import gc
import os
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import warnings
import weakref

import numpy
from contexts import bytes_of, tokens_of
from stores import (
    BLOCK_BYTES,
    BLOCKS,
    INVALID,
    LIMIT_S,
    NAME_SPACE,
    load_context,
    open_store,
    refusal,
    store_context,
)

import kvist


def load(store, into, context=1):
    """Begins to load; the lease goes when that is over."""
    lease = store.match(NAME_SPACE, tokens_of(context, len(into)))
    pending = lease.load(into)
    pending.add_done_callback(lambda _pending: lease.release())
    return pending


class Threads(unittest.TestCase):
    def setUp(self):
        self.thread = kvist.StoreThread(open_store)
        self.addCleanup(self.thread.close)

    def test_calls_run_there(self):
        names = [self.thread.submit(lambda _store: threading.current_thread().name)
                 for _ in range(3)]
        self.assertEqual({name.result(LIMIT_S) for name in names}, {"kvist-store"})
        self.assertEqual(self.thread.call(lambda store, one, two: (one, two), 1, 2), (1, 2))
        self.assertIs(type(self.thread.call(lambda store: store)), kvist.Store)
        self.assertIn("thread MainThread", refusal(
            self, INVALID, self.thread.call(lambda store: store).poll))

    def test_a_pending_becomes_the_futures(self):
        stored = self.thread.call(store_context, 1)
        into = numpy.zeros_like(stored)
        future = self.thread.submit(load, into)
        self.assertEqual(future.result(LIMIT_S), kvist.Loaded(BLOCKS, kvist.Miss.NONE))
        self.assertTrue((into == stored).all())
        failing = self.thread.submit(lambda store: store.flush())
        with self.assertRaises(kvist.KvistError):
            failing.result(LIMIT_S)
        self.assertIsInstance(failing.exception(), kvist.KvistError)
        self.assertEqual(self.thread.call(lambda store: store.statistics().leases), 0)

    def test_many_threads(self):
        stored = self.thread.call(store_context, 1)
        failures = []

        def work():
            into = numpy.zeros_like(stored)
            for _ in range(50):
                into[:] = 0
                loaded = self.thread.submit(load, into).result(LIMIT_S)
                if loaded.block_count != BLOCKS or not (into == stored).all():
                    failures.append(loaded)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(failures, [])

    def test_errors_go_to_the_future(self):
        def fail(_store):
            raise ValueError("the caller's own")

        with self.assertRaisesRegex(ValueError, "the caller's own"):
            self.thread.call(fail)
        self.assertEqual(self.thread.call(lambda _store: 5), 5)

    def test_cancelled_before_it_began(self):
        entered, go_on = threading.Event(), threading.Event()
        self.thread.submit(lambda _store: (entered.set(), go_on.wait(LIMIT_S)))
        self.assertTrue(entered.wait(LIMIT_S))
        called = []
        future = self.thread.submit(lambda _store: called.append(1))
        self.assertTrue(future.cancel())
        go_on.set()
        self.thread.call(lambda _store: None)
        self.assertEqual(called, [])

    def test_call_from_itself_is_refused(self):
        def inner(_store):
            return self.thread.call(lambda _store: None)

        self.assertIn("own thread", refusal(self, INVALID, self.thread.call, inner))

    def test_closed(self):
        pending = []
        self.thread.call(store_context, 1)
        into = numpy.zeros((BLOCKS, BLOCK_BYTES), dtype="u1")
        self.thread.call(lambda store: pending.append(load(store, into)))
        last = self.thread.submit(lambda _store: "last")
        self.thread.close()
        self.thread.close()
        self.assertEqual(last.result(0), "last")
        self.assertTrue(pending[0].done)
        message = refusal(self, kvist.Status.CANCELLED, self.thread.submit, lambda _store: None)
        self.assertIn("closed", message)

    def test_a_call_that_closes_the_store(self):
        self.thread.call(lambda store: store.close())
        message = refusal(self, kvist.Status.CANCELLED, self.call_until_refused)
        self.assertRegex(message, "thread (has ended|was closed)")
        self.thread.close()

    def call_until_refused(self):
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            self.thread.call(lambda _store: None)

    def test_a_store_that_does_not_open(self):
        before = threading.active_count()
        self.assertIn("host_bytes is 1", refusal(
            self, INVALID, kvist.StoreThread, lambda: open_store(host_bytes=1)))
        self.assertEqual(threading.active_count(), before)

    def test_a_lease_collected_elsewhere_is_released_at_once(self):
        box = [self.thread.call(lambda store: store.match(NAME_SPACE, tokens_of(1, 1)))]
        gone = weakref.ref(box[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            box.clear()
            gc.collect()
        self.assertIsNone(gone())
        end = time.monotonic() + LIMIT_S
        store = self.thread.call(lambda store: store)
        while store.handle.leases:  # nobody calls the store meanwhile
            self.assertLess(time.monotonic(), end)
            time.sleep(0.001)


class AtExit(unittest.TestCase):
    """Programs that forget to close, with bytes on their way."""

    def run_program(self, text):
        folder = tempfile.TemporaryDirectory(prefix="kvist-")
        self.addCleanup(folder.cleanup)
        text = ("import sys, numpy, kvist\nfrom stores import *\nfrom test_thread import load\n"
                f"disk = dict(directory={folder.name!r} + '/store', disk_bytes=64 << 20,"
                " segment_bytes=8 << 20)\n" + text)
        here = os.path.dirname(os.path.abspath(__file__))
        path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run([sys.executable, "-c", text], env={**os.environ, "PYTHONPATH": path},
                              capture_output=True, text=True, timeout=LIMIT_S, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertNotIn("Traceback", done.stderr)
        with open_store(directory=folder.name + "/store", disk_bytes=64 << 20,
                        segment_bytes=8 << 20) as store:
            stored = bytes_of(1, BLOCKS, BLOCK_BYTES)
            self.assertTrue((load_context(store, 1) == stored).all())

    def test_a_store(self):
        self.run_program("store = open_store(**disk)\nstored = store_context(store, 1)\n"
                         "load(store, numpy.zeros_like(stored))\n")

    def test_a_store_thread(self):
        self.run_program("thread = kvist.StoreThread(lambda: open_store(**disk))\n"
                         "stored = thread.call(store_context, 1)\n"
                         "for _ in range(20):\n"
                         "    thread.submit(load, numpy.zeros_like(stored))\n")

    def test_a_store_of_a_thread_that_ended(self):
        self.run_program("import threading\nkept = []\n"
                         "def work():\n    kept.append(open_store(**disk))\n"
                         "    store_context(kept[0], 1)\n    kept[0].close()\n"
                         "thread = threading.Thread(target=work)\nthread.start()\nthread.join()\n")


class Asynchronous(unittest.TestCase):
    def setUp(self):
        self.store = open_store()
        self.addCleanup(self.store.close)

    def test_await(self):
        stored = store_context(self.store, 1)
        ticks = []

        async def tick():
            while True:
                ticks.append(time.monotonic())
                await asyncio.sleep(0)

        async def main():
            ticking = asyncio.create_task(tick())
            intos = [numpy.zeros_like(stored) for _ in range(8)]
            loaded = await asyncio.gather(*(self.load(into) for into in intos))
            ticking.cancel()
            self.assertEqual({one.block_count for one in loaded}, {BLOCKS})
            for into in intos:
                self.assertTrue((into == stored).all())

        asyncio.run(main())
        self.assertGreater(len(ticks), 1)
        asyncio.run(main())  # another loop
        self.assertEqual(self.store.statistics().leases, 0)

    async def load(self, into):
        with self.store.match(NAME_SPACE, tokens_of(1, len(into))) as lease:
            return await lease.load(into)

    def test_errors_are_raised(self):
        async def main():
            store_context(self.store, 1, 1)
            with self.assertRaises(kvist.KvistError):
                await self.store.flush()

        asyncio.run(main())

    def test_cancelling_gives_up_waiting(self):
        async def main():
            with self.store.match(NAME_SPACE, tokens_of(2, 1)) as lease:
                pending = lease.store(bytes_of(2, 1, BLOCK_BYTES), timeout_s=None)

                async def wait():
                    return await pending

                task = asyncio.create_task(wait())
                await asyncio.sleep(0)
                task.cancel()
                with self.assertRaises(asyncio.CancelledError):
                    await task
                self.assertEqual(await pending, 1)
                self.assertEqual(await pending, 1)

        asyncio.run(main())

    def test_closed_within_the_loop(self):
        async def main():
            stored = store_context(self.store, 1)
            lease = self.store.match(NAME_SPACE, tokens_of(1, BLOCKS))
            pending = lease.load(numpy.zeros_like(stored))
            task = asyncio.create_task(self.load(numpy.zeros_like(stored)))
            await asyncio.sleep(0)
            self.store.close()
            results = await asyncio.gather(pending_of(pending), task, return_exceptions=True)
            for result in results:
                cancelled = isinstance(result, kvist.KvistError) and \
                    result.status == kvist.Status.CANCELLED
                self.assertTrue(cancelled or isinstance(result, kvist.Loaded), result)

        asyncio.run(main())

    def test_of_a_store_thread(self):
        with kvist.StoreThread(open_store) as thread:
            async def main():
                stored = await asyncio.wrap_future(thread.submit(store_context, 1))
                into = numpy.zeros_like(stored)
                await asyncio.wrap_future(thread.submit(load, into))
                self.assertTrue((into == stored).all())

            asyncio.run(main())


async def pending_of(pending):
    return await pending
