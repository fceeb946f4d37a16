"""Stores attached to a real kvist-store: what they share, and what their leases come to when it
goes. (test_faults.py hurts it under load.)"""
import time
import unittest

import numpy
from contexts import BLOCK_TOKENS, bytes_of, tokens_of
from service import Service
from stores import (
    BLOCK_BYTES,
    BLOCKS,
    INVALID,
    LAYOUT,
    LIMIT_S,
    NAME_SPACE,
    UNIT_BYTES,
    load_context,
    match,
    poll_all,
    refusal,
    store_context,
)

import kvist

GROUPS = 8  # kvist.h: KVIST_GROUPS_MAX


class Attached(unittest.TestCase):
    def setUp(self):
        self.service = Service()
        self.addCleanup(self.service.close)
        self.store = self.attach()

    def attach(self, **more):
        store = kvist.Store(LAYOUT, attach=self.service.socket, **more)
        self.addCleanup(store.close)
        self.wait_for(lambda: store.attached_to is not None, store)  # a busy machine is late
        return store

    def wait_for(self, condition, *stores):
        """Polls the stores until it holds."""
        end = time.monotonic() + LIMIT_S
        while not condition():
            self.assertLess(time.monotonic(), end)
            for store in stores:
                store.poll()
            time.sleep(0.001)

    def test_what_one_stores_the_other_finds(self):
        other = self.attach(origin="other")
        self.assertEqual(other.attached_to, "store-of-test")
        stored = store_context(self.store, 1)
        self.assertTrue((load_context(other, 1) == stored).all())
        self.store.close()
        self.assertTrue((load_context(other, 1) == stored).all())
        pages = numpy.zeros((BLOCKS * 2, BLOCK_BYTES), dtype="u1")
        with match(other, 1) as lease:
            self.assertEqual(lease.match.tier_blocks[kvist.Tier.HOST], BLOCKS)
            lease.load(pages[::-2]).result(LIMIT_S)
        self.assertTrue((pages[::-2] == stored).all())
        with match(other, 2) as lease:
            lease.store(pages[::-2]).result(LIMIT_S)
        self.assertTrue((load_context(other, 2) == stored).all())

    def test_as_many_groups_as_there_may_be(self):
        self.store.close()
        service = Service()
        self.addCleanup(service.close)
        part = kvist.Part(kvist.PartKind.OPAQUE, heads=1, dims=UNIT_BYTES, element_bytes=1)
        layout = kvist.Layout(BLOCK_TOKENS, [
            kvist.Group(kvist.GroupKind.FULL if group == 0 else kvist.GroupKind.WINDOW,
                        range(group * 2, group * 2 + 2),
                        window_tokens=0 if group == 0 else 2 * BLOCK_TOKENS, parts=[part])
            for group in range(GROUPS)])
        name_space = kvist.name_space(b"a model of many groups".ljust(32), layout)
        store = kvist.Store(layout, attach=service.socket)
        self.addCleanup(store.close)
        self.wait_for(lambda: store.attached_to is not None, store)
        tokens = tokens_of(1, BLOCKS)
        bytes_in = [bytes_of(10 + group, BLOCKS, layout.object_bytes(group))
                    for group in range(GROUPS)]
        end = time.monotonic() + LIMIT_S
        while True:  # again where a busy machine cut the service off
            self.assertLess(time.monotonic(), end)
            try:
                with store.match(name_space, tokens, mode=kvist.Mode.WRITE) as lease:
                    for group in range(GROUPS):
                        self.assertEqual(BLOCKS, lease.store(
                            bytes_in[group], group=group, block_count=BLOCKS).result(LIMIT_S))
                with store.match(name_space, tokens) as lease:
                    if lease.match.miss == kvist.Miss.FAILED:
                        continue
                    self.assertEqual(lease.match.block_count, BLOCKS)
                    for group in range(GROUPS):
                        first = 0 if group == 0 else BLOCKS - 2
                        into = numpy.zeros_like(bytes_in[group][first:])
                        loaded = lease.load(into, group=group, first_block=first).result(LIMIT_S)
                        if loaded.miss == kvist.Miss.FAILED:
                            break
                        self.assertTrue((into == bytes_in[group][first:]).all(), group)
                    else:
                        return
            except kvist.KvistError as error:
                if error.status != kvist.Status.PEER_LOST:
                    raise

    def test_after_a_restart_of_the_service(self):
        stored = store_context(self.store, 1)
        self.store.flush().result(LIMIT_S)
        with self.assertLogs("kvist", "WARNING") as logs:
            self.service.kill()
            self.wait_for(lambda: self.store.attached_to is None, self.store)
            self.service.start()
            self.wait_for(lambda: self.store.attached_to is not None, self.store)
        self.assertIn(self.service.socket, logs.output[0])
        self.assertIn("do: start kvist-store", logs.output[0])
        self.assertEqual(len(logs.output) % 2, 0, logs.output)
        for number, line in enumerate(logs.output):  # each change is told once
            self.assertIn(f"kvist-store is {('away', 'back')[number % 2]}", line)
        with match(self.store, 1) as lease:
            self.assertEqual(lease.match.tier_blocks[kvist.Tier.DISK], BLOCKS)
        self.assertTrue((load_context(self.store, 1) == stored).all())

    def test_without_the_service(self):
        stored = store_context(self.store, 1, 4)
        lease = match(self.store, 1, 4)
        self.service.kill()
        self.wait_for(lambda: self.store.attached_to is None, self.store)
        with self.store.match(NAME_SPACE, tokens_of(1, 4)) as none:
            self.assertEqual((none.match.block_count, none.match.miss), (0, kvist.Miss.FAILED))
            with self.assertRaises(kvist.KvistError) as caught:
                none.store(stored).result(LIMIT_S)
        error = caught.exception
        self.assertEqual((error.status, error.block_count), (kvist.Status.PEER_LOST, 0))
        self.assertIn("kvist-store is away", str(error))
        self.assertIn("attaches again by itself", error.remedy)
        into = numpy.zeros_like(stored)
        loaded = lease.load(into).result(LIMIT_S)  # what lay in host memory is still mapped
        self.assertTrue((into[:loaded.block_count] == stored[:loaded.block_count]).all())
        for what in (self.store.flush, lambda: self.store.drop(bytes(32))):
            with self.assertRaises(kvist.KvistError) as caught:
                what().result(LIMIT_S)
            self.assertEqual(caught.exception.status, kvist.Status.PEER_LOST)
        lease.release()
        refusal(self, kvist.Status.PEER_LOST, self.store.keep, bytes(32), kvist.Terms())
        self.assertEqual(self.store.list(), [])

    def test_pending_of_another_client(self):
        other = self.attach()
        first = match(self.store, 1, 2)
        with match(other, 1, 2) as second:
            self.assertEqual(second.match.miss, kvist.Miss.PENDING)
        stored = bytes_of(1, 2, BLOCK_BYTES)
        first.store(stored).result(LIMIT_S)
        first.release()
        self.assertTrue((load_context(other, 1, 2) == stored).all())

    def test_everything_else_is_asked_of_the_service(self):
        until = (time.time_ns() + 10**12) // 10**9 * 10**9
        store_context(self.store, 1, tenant="anna")
        keys = kvist.keys(NAME_SPACE, tokens_of(1, BLOCKS), BLOCK_TOKENS)
        self.store.keep(keys[3], kvist.Terms(pin_until_unix_ns=until))
        block = self.store.show(keys[3])
        self.assertEqual((block.pin_until_unix_ns, block.tenant, block.position),
                         (until, "anna", 3))
        self.assertEqual(self.store.find(keys[3].hex()[:12]), keys[3])
        self.assertEqual([entry.key for entry in self.store.list()], [keys[-1]])
        self.assertEqual(self.store.why(NAME_SPACE, tokens_of(1, BLOCKS)).match.block_count,
                         BLOCKS)
        self.assertEqual(self.store.tokens(keys[0]), tokens_of(1, 1).tolist())
        refusal(self, kvist.Status.REFUSED, self.store.set_quota, kvist.Quota("anna", 1 << 20))
        self.wait_for(lambda: self.store.statistics().tiers[kvist.Tier.HOST].object_count ==
                      BLOCKS, self.store)
        self.assertGreater(self.store.drop(keys[8]).result(LIMIT_S), 0)
        self.assertEqual(len(load_context(self.store, 1)), 8)
        with self.assertRaises(kvist.KvistError) as caught:
            self.store.drop(keys[9]).result(LIMIT_S)
        self.assertEqual(caught.exception.status, kvist.Status.MISSING)

    def test_thousands_of_leases(self):
        store_context(self.store, 1, 2)
        leases = [match(self.store, 1, 2) for _ in range(3000)]
        self.assertTrue(all(lease.match.block_count == 2 for lease in leases))
        into = numpy.zeros((len(leases), 2, BLOCK_BYTES // 8), dtype="u8")
        for lease, to in zip(leases, into):
            lease.load(to)
        poll_all(self.store)
        self.assertTrue((into == into[0]).all() and into[0].any())
        for lease in leases:
            lease.release()
        self.assertTrue(len(load_context(self.store, 1, 2)) == 2)

    def test_more_leases_than_the_service_allows(self):
        leases = []
        with self.assertRaises(kvist.KvistError) as caught:
            for _ in range(5000):
                leases.append(match(self.store, 1, 1))
        self.assertEqual(caught.exception.status, kvist.Status.BUSY)
        self.assertIn("release some", str(caught.exception))
        for lease in leases:
            lease.release()
        match(self.store, 1, 1).release()

    def test_closed_with_leases_and_loads_while_the_service_is_gone(self):
        stored = store_context(self.store, 1)
        leases = [match(self.store, 1) for _ in range(4)]
        pending = [lease.load(numpy.zeros_like(stored)) for lease in leases]
        self.service.kill()
        self.store.close()
        self.assertTrue(all(one.done for one in pending))

    def test_options_that_do_not_go_together(self):
        for named in ({"host_bytes": 1 << 20}, {"directory": "/tmp"}, {"key_file": "/tmp"}):
            message = refusal(self, INVALID, self.attach, **named)
            self.assertIn("an attached store has none", message)
        self.assertIn("domain", refusal(self, kvist.Status.REFUSED, self.attach, domain="other"))
