"""A real kvist-store that is killed, stopped, taken away and filled up under Python threads: every
call ends, with a right answer or a clear error, and bytes that come back are as they were stored.

On a busy machine a kvist-store may be silent for so long that it is given up, at any time: what
else is shown here is asked for again then.
"""
import contextlib
import logging
import os
import random
import resource
import shutil
import threading
import time
import unittest

import numpy
from contexts import bytes_of, make_layout, tokens_of
from service import Service

import kvist

LONG = os.environ.get("KVIST_TEST_LONG") == "1"
SEED = int(os.environ.get("KVIST_SEED", "1"))
BLOCKS, CONTEXTS, CLIENTS, MANY = 32, 24, 3, 40
LIMIT_S = 60  # for one call, on a busy machine; none takes a tenth of it elsewhere
LAYOUT = make_layout()
BLOCK_BYTES = LAYOUT.object_bytes()
NAME_SPACE = kvist.name_space(model=b"a model of tests".ljust(32), layout=LAYOUT)
# What calls may end with while the service comes and goes.
EXPECTED = {kvist.Status.PEER_LOST, kvist.Status.CANCELLED, kvist.Status.BUSY,
            kvist.Status.MISSING}


def wait_until(condition, what, limit_s=LIMIT_S):
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"waited {limit_s} s for {what}"
        time.sleep(0.005)


def open_thread(service):
    return kvist.StoreThread(lambda: kvist.Store(LAYOUT, attach=service.socket))


def attached_thread(service):
    thread = open_thread(service)
    wait_until(lambda: attached(thread), "being attached")
    return thread


def attached(thread):
    return thread.call(lambda store: store.attached_to) is not None


def wait_attached(store):
    """As long as this thread, which is the store's, has to poll it."""
    wait_until(lambda: store.poll() or store.attached_to is not None, "being attached")


def again(function):
    """What the function comes to, asked again where the service was given up."""
    end = time.monotonic() + LIMIT_S
    while True:
        try:
            return function()
        except kvist.KvistError as error:
            if error.status is not kvist.Status.PEER_LOST or time.monotonic() > end:
                raise
        time.sleep(0.02)


def store_all(thread, context):
    return again(lambda: thread.submit(store_whole, context).result(LIMIT_S))


def flush(thread):
    return again(lambda: thread.submit(lambda store: store.flush()).result(LIMIT_S))


def load_all(thread, context):
    """Until all of it came back."""
    wait_until(lambda: thread.call(load_whole, context) == BLOCKS, f"context {context}")


def refusal(service, layout=LAYOUT, **more):
    """The error that a store of the service is refused with."""
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        try:
            kvist.Store(layout, attach=service.socket, **more).close()
        except kvist.KvistError as error:
            return error
    raise AssertionError("it is not refused")


class Client:
    """A thread that looks contexts up, loads and compares what is found and stores the rest, until
    it is told to end; its store is on a StoreThread."""

    def __init__(self, service, number):
        self.random = random.Random(SEED * 1000 + number)
        self.store = open_thread(service)
        self.phase = ""
        self.loaded_blocks = self.stored_blocks = self.turns = 0
        self.ended, self.longest_s = {}, 0.0
        self.error = None
        self.stopping = False
        self.thread = threading.Thread(target=self._run, name=f"client {number}")
        self.thread.start()

    def _run(self):
        try:
            while not self.stopping:
                self._turn(self.random.randrange(CONTEXTS))
                self.turns += 1
        except BaseException as error:  # the test tells
            self.error = error

    def _call(self, phase, function, *arguments):
        """One call to its end: its result, or None and its status counted."""
        self.phase, begun = phase, time.monotonic()
        try:
            return self.store.submit(function, *arguments).result(LIMIT_S)
        except kvist.KvistError as error:
            assert error.status in EXPECTED, f"{phase}: {error}"
            self.ended[error.status.name] = self.ended.get(error.status.name, 0) + 1
            time.sleep(0.005)
            return None
        finally:
            self.longest_s = max(self.longest_s, time.monotonic() - begun)
            self.phase = ""

    def _turn(self, context):
        tokens, expected = tokens_of(context, BLOCKS), bytes_of(context, BLOCKS, BLOCK_BYTES)
        lease = self._call("match", lambda store: store.match(NAME_SPACE, tokens))
        if lease is None:
            return
        found = lease.match.block_count
        if lease.match.miss is kvist.Miss.FAILED and found == 0:
            time.sleep(0.005)  # the service is away
        page = numpy.zeros((found, BLOCK_BYTES), numpy.uint8)
        loaded = self._call("load", lambda store: lease.load(page)) if found else None
        if loaded is not None:
            whole = loaded.block_count
            assert (page[:whole] == expected[:whole]).all(), f"context {context}: wrong bytes"
            self.loaded_blocks += whole
        if found < BLOCKS:
            stored = self._call("store", lambda store: lease.store(
                expected[found:], first_block=found, timeout_s=20))
            self.stored_blocks += stored or 0
        self._call("release", lambda store: lease.release())

    def stop(self):
        self.stopping = True
        self.thread.join(LIMIT_S)
        assert not self.thread.is_alive(), f"a call does not end: {self.phase}"
        self.store.close()
        if self.error is not None:
            raise self.error


@contextlib.contextmanager
def clients_of(service):
    """Clients under load; at the end they are attached, have gone on and had no wrong byte."""
    clients = [Client(service, number) for number in range(CLIENTS)]
    try:
        yield clients
        wait_until(lambda: all(attached(client.store) for client in clients), "being attached")
        before = [client.turns for client in clients]
        wait_until(lambda: all(client.error or client.turns > turns + 2
                               for client, turns in zip(clients, before)), "further turns")
    finally:
        for client in clients:
            client.stop()


class Killed(unittest.TestCase):
    def test_killed_in_loads_and_stores(self):
        kills = 100 if LONG else 20
        with Service(host_bytes="16MiB") as service, clients_of(service) as clients:
            for number in range(kills):
                # Under way in at least one of them; how far is chance.
                phase = ("load", "store")[number % 2]
                wait_until(lambda phase=phase: any(c.phase == phase for c in clients)
                           or any(c.error for c in clients), f"a {phase}")
                service.kill()
                if number % 4 == 0:
                    time.sleep(0.1)  # a while without
                service.start()
                wait_until(lambda: any(attached(c.store) for c in clients), "being attached")
            service_log = service.read_log()
        loaded = sum(client.loaded_blocks for client in clients)
        stored = sum(client.stored_blocks for client in clients)
        ended = {}
        for client in clients:
            for name, count in client.ended.items():
                ended[name] = ended.get(name, 0) + count
        longest = max(client.longest_s for client in clients)
        print(f"killed {kills} times: loaded {loaded} blocks, stored {stored}, longest call "
              f"{longest:.2f} s, ended {ended}")
        self.assertGreater(loaded, 0, service_log)
        self.assertGreater(stored, 0, service_log)

    def test_stopped_for_seconds(self):
        with Service() as service, clients_of(service) as clients:
            wait_until(lambda: all(c.turns > 3 for c in clients), "turns")
            for _ in range(2):
                service.pause()
                begun = [client.turns for client in clients]
                wait_until(lambda begun=begun: all(
                    c.error or c.turns > turns + 1 for c, turns in zip(clients, begun)),
                    "turns without an answer")
                service.go_on()
                wait_until(lambda: all(attached(c.store) for c in clients), "being attached")

    def test_waits_no_longer_than_it_says(self):
        with Service() as service, attached_thread(service) as thread:
            service.pause()
            try:
                begun = time.monotonic()
                lease = thread.call(lambda store: store.match(NAME_SPACE, tokens_of(0, BLOCKS)))
                took = time.monotonic() - begun
                self.assertEqual(lease.match.miss, kvist.Miss.FAILED)
                self.assertLess(took, 10)  # a quarter of a second, and a busy machine
            finally:
                service.go_on()
            thread.call(lambda store: lease.release())


class Away(unittest.TestCase):
    def test_never_there(self):
        folder = "/nonexistent-of-a-test"
        with self.assertLogs("kvist", logging.WARNING) as logs:
            store = kvist.Store(LAYOUT, attach=f"{folder}/clients.sock")
        self.assertEqual(len(logs.output), 1)
        self.assertIn(folder, logs.output[0])
        with store:
            self.assertIsNone(store.attached_to)
            with store.match(NAME_SPACE, tokens_of(0, BLOCKS)) as lease:
                self.assertEqual(lease.match.block_count, 0)
                self.assertEqual(lease.match.miss, kvist.Miss.FAILED)
                pending = lease.store(bytes_of(0, BLOCKS, BLOCK_BYTES))
                with self.assertRaises(kvist.KvistError) as caught:
                    pending.result(LIMIT_S)
            self.assertEqual(caught.exception.status, kvist.Status.PEER_LOST)
            self.assertEqual(caught.exception.block_count, 0)
            self.assertTrue(caught.exception.remedy)

    def test_socket_removed(self):
        with Service() as service, attached_thread(service) as thread:
            os.unlink(service.socket)
            with self.assertLogs("kvist", logging.WARNING):
                late = open_thread(service)
            with late:
                self.assertFalse(attached(late))
                # Who is attached stays so, unless it gives the service up meanwhile.
                try:
                    stored = thread.submit(store_whole, 1).result(LIMIT_S)
                    self.assertEqual(stored, BLOCKS)
                except kvist.KvistError as error:
                    self.assertEqual(error.status, kvist.Status.PEER_LOST)
                service.kill()
                service.start()
                wait_until(lambda: attached(late) and attached(thread), "being attached")
                self.assertEqual(store_all(thread, 1), BLOCKS)
                load_all(late, 1)

    def test_told_once_when_it_goes_and_when_it_is_back(self):
        with Service() as service, attached_thread(service) as thread:
            with self.assertLogs("kvist", logging.WARNING) as logs:
                service.kill()
                wait_until(lambda: not attached(thread), "the loss")
                for _ in range(5):
                    thread.call(lambda store: store.match(NAME_SPACE, tokens_of(0, 2)).release())
                service.start()
                wait_until(lambda: attached(thread), "being attached")
            self.assertEqual(len(logs.output), 2, logs.output)
            self.assertIn("kvist-store is away", logs.output[0])
            self.assertIn("kvist-store is back", logs.output[1])


def store_whole(store, context):
    """A Pending: the context's blocks, as far as they are not there."""
    lease = store.match(NAME_SPACE, tokens_of(context, BLOCKS), mode=kvist.Mode.WRITE)
    pending = lease.store(bytes_of(context, BLOCKS, BLOCK_BYTES))
    pending.add_done_callback(lambda _: lease.release())
    return pending


def load_whole(store, context):
    """How many blocks of it came back; that they are right is asserted."""
    page = numpy.zeros((BLOCKS, BLOCK_BYTES), numpy.uint8)
    with store.match(NAME_SPACE, tokens_of(context, BLOCKS)) as lease:
        count = lease.load(page[:lease.match.block_count]).result(LIMIT_S).block_count
    expected = bytes_of(context, BLOCKS, BLOCK_BYTES)
    assert (page[:count] == expected[:count]).all(), f"context {context}: wrong bytes"
    return count


class Refused(unittest.TestCase):
    def test_wrong_domain(self):
        with Service() as service:
            error = refusal(service, domain="no-such")
            self.assertEqual(error.status, kvist.Status.REFUSED)
            self.assertIn("domain", error.text)

    def test_another_layout(self):
        with Service() as service, attached_thread(service) as thread:
            self.assertEqual(store_all(thread, 1), BLOCKS)
            error = refusal(service, make_layout(layers=5))
            self.assertEqual(error.status, kvist.Status.REFUSED)
            self.assertIn("layout", error.text)

    def test_restarted_with_another_layout(self):
        with Service() as service, kvist.Store(LAYOUT, attach=service.socket) as store:
            wait_attached(store)
            service.kill()
            shutil.rmtree(f"{service.folder}/store")
            service.start()
            # Another client is quicker, since nobody polls the first one.
            with kvist.Store(make_layout(layers=5), attach=service.socket) as other:
                wait_attached(other)
                with self.assertLogs("kvist", logging.WARNING):
                    end = time.monotonic() + 2
                    while time.monotonic() < end:  # long enough for some attempts
                        store.poll()
                        self.assertEqual(load_whole(store, 1), 0)
                        time.sleep(0.02)
                self.assertIsNone(store.attached_to)
                with self.assertRaises(kvist.KvistError) as caught:
                    store_whole(store, 1).result(LIMIT_S)
                self.assertEqual(caught.exception.status, kvist.Status.PEER_LOST)

    def test_user_not_allowed(self):
        if os.geteuid() != 0:
            self.skipTest("only root can be somebody else")
        with Service() as service:
            os.chmod(service.folder, 0o755)
            os.chmod(service.socket, 0o666)
            said = as_user(65534, lambda: refusal(service))
            self.assertRegex(said, "^REFUSED .*domain.*65534")


def as_user(user, function):
    """The error that the function returns in a process of another user's, as STATUS TEXT."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
        try:
            error = function()
            os.write(write_end, f"{error.status.name} {error}".encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, encoding="utf-8") as told:
        text = told.read()
    os.waitpid(child, 0)
    return text


class Short(unittest.TestCase):
    def test_disk_full(self):
        # A limit on the size of files fails all writes beyond it, the index' too.
        for limit in (0, 4096, 1 << 20):
            with self.subTest(limit=limit), Service(host_bytes="16MiB") as service:
                with attached_thread(service) as thread:
                    self.assertEqual(store_all(thread, 0), BLOCKS)
                    flush(thread)
                    resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (limit, limit))
                    ended = set()
                    for context in range(1, CONTEXTS):
                        try:
                            store_all(thread, context)
                        except kvist.KvistError as error:
                            ended.add(error.status)
                    self.assertLessEqual(ended, {kvist.Status.NO_SPACE, kvist.Status.IO,
                                                 kvist.Status.BUSY, kvist.Status.MISSING})
                    with self.assertRaises(kvist.KvistError) as caught:
                        flush(thread)
                    self.assertIn(caught.exception.status,
                                  {kvist.Status.IO, kvist.Status.NO_SPACE})
                    # What was stored last is in memory, and goes on being served.
                    load_all(thread, CONTEXTS - 1)
                    self.assertIsNone(service.process.poll(), service.read_log())

    def test_staging_exhausted(self):
        # Many more bytes under way than the client lends memory for, and more requests than the
        # link has numbers for.
        with Service(host_bytes="128MiB") as service, attached_thread(service) as thread:
            futures = [thread.submit(store_whole, context) for context in range(MANY)]
            for context, future in enumerate(futures):
                count = again_where_lost(future, lambda c=context: store_all(thread, c))
                self.assertEqual(count, BLOCKS)
            flush(thread)
            service.kill()
            service.start()  # and now all of it is on disk
            wait_until(lambda: load_each_block(thread), "all blocks at once")


def again_where_lost(future, function):
    try:
        return future.result(LIMIT_S)
    except kvist.KvistError as error:
        if error.status is not kvist.Status.PEER_LOST:
            raise
        return function()


def load_each_block(thread):
    """One load a block, all 1,280 at once: whether all came back; that they are right is
    asserted."""
    pages = numpy.zeros((MANY, BLOCKS, BLOCK_BYTES), numpy.uint8)
    leases = [thread.call(lambda store, c=c: store.match(NAME_SPACE, tokens_of(c, BLOCKS)))
              for c in range(MANY)]
    loads = {(c, b): thread.submit(lambda _store, c=c, b=b: leases[c].load(
        pages[c, b:b + 1], first_block=b, block_count=1))
        for b in range(BLOCKS) for c in range(MANY) if b < leases[c].match.block_count}
    counts = {place: load.result(LIMIT_S).block_count for place, load in loads.items()}
    for lease in leases:
        thread.call(lambda _store, lease=lease: lease.release())
    expected = [bytes_of(context, BLOCKS, BLOCK_BYTES) for context in range(MANY)]
    for (context, block), count in counts.items():
        assert count == 0 or (pages[context, block] == expected[context][block]).all()
    return sum(counts.values()) == MANY * BLOCKS


if __name__ == "__main__":
    unittest.main()
