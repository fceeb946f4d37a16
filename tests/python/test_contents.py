"""What a store holds: kept, dropped, verified, listed, explained, told of as it changes."""
import tempfile
import time
import unittest

import numpy
from contexts import BLOCK_TOKENS, tokens_of
from stores import (
    BLOCK_BYTES,
    BLOCKS,
    INVALID,
    LAYOUT,
    LIMIT_S,
    NAME_SPACE,
    load_context,
    open_store,
    refusal,
    store_context,
)

import kvist
import kvist.native

MISSING = kvist.Status.MISSING
MODEL = b"a model of tests".ljust(32)


def keys_of(context, block_count=BLOCKS):
    return kvist.keys(NAME_SPACE, tokens_of(context, block_count), BLOCK_TOKENS)


def seconds_from_now(seconds):
    return time.time_ns() + seconds * 10**9


class OnDisk(unittest.TestCase):
    """A store with a disk for each case."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="kvist-")
        self.addCleanup(folder.cleanup)
        self.store = open_store(directory=folder.name, disk_bytes=64 << 20,
                                segment_bytes=8 << 20, origin="tests")
        self.addCleanup(self.store.close)


class Looking(OnDisk):
    def test_show(self):
        before = time.time_ns()
        expires = seconds_from_now(1000) // 10**9 * 10**9
        store_context(self.store, 1, tenant="anna", expires_unix_ns=expires,
                      priority=kvist.Priority.BATCH)
        self.store.flush().result(LIMIT_S)
        keys = keys_of(1)
        block = self.store.show(keys[3])
        self.assertEqual((block.key, block.parent, block.name_space),
                         (keys[3], keys[2], NAME_SPACE))
        self.assertEqual((block.position, block.token_count, block.children),
                         (3, 4 * BLOCK_TOKENS, 1))
        self.assertEqual((block.groups, block.tiers),
                         ((0,), (kvist.Tier.HOST, kvist.Tier.DISK)))
        self.assertEqual((block.bytes, block.expires_unix_ns, block.pin_until_unix_ns),
                         (BLOCK_BYTES, expires, 0))
        self.assertEqual((block.tenant, block.origin, block.arithmetic, block.priority),
                         ("anna", "tests", "", kvist.Priority.BATCH))
        self.assertGreaterEqual(block.created_unix_ns, before // 10**9 * 10**9)
        self.assertGreater(block.stored_bytes, BLOCK_BYTES)
        self.assertEqual(block.leases, 0)
        self.assertIn("no block", refusal(self, MISSING, self.store.show, bytes(32)))
        self.assertIn("key is 3 bytes", refusal(self, INVALID, self.store.show, b"abc"))

    def test_find(self):
        store_context(self.store, 1)
        key = keys_of(1)[5]
        self.assertEqual(self.store.find(key.hex()), key)
        self.assertEqual(self.store.find(key.hex()[:16]), key)
        refusal(self, MISSING, self.store.find, "0" * 64)
        for digits in ("", "abc", "no digits", "0" * 65):
            refusal(self, INVALID, self.store.find, digits)

    def test_tokens(self):
        store_context(self.store, 1)
        ids = tokens_of(1, BLOCKS).reshape(BLOCKS, BLOCK_TOKENS)
        self.assertEqual(self.store.tokens(keys_of(1)[2]), ids[2].tolist())
        refusal(self, MISSING, self.store.tokens, bytes(32))

    def test_list(self):
        for context in range(3):
            store_context(self.store, context, tenant=f"tenant-{context}")
        load_context(self.store, 0)
        found = self.store.list()
        self.assertEqual({entry.key for entry in found}, {keys_of(c)[-1] for c in range(3)})
        newest = next(entry for entry in found if entry.tenant == "tenant-0")
        self.assertEqual((newest.token_count, newest.bytes, newest.name_space),
                         (BLOCKS * BLOCK_TOKENS, BLOCKS * BLOCK_BYTES, NAME_SPACE))
        self.assertEqual(newest.tier, kvist.Tier.HOST)
        self.assertEqual(len(self.store.list(2)), 2)
        self.assertEqual(self.store.list(0), [])
        self.assertIn("count_max", refusal(self, INVALID, self.store.list, -1))

    def test_statistics_have_every_field(self):
        store_context(self.store, 1)
        load_context(self.store, 1)
        statistics = self.store.statistics()
        fields = dict(kvist.native.ffi.typeof("kvist_stats_t").fields)
        self.assertEqual(set(kvist.Statistics.__dataclass_fields__), set(fields))
        self.assertEqual(set(kvist.TierStatistics.__dataclass_fields__),
                         set(dict(kvist.native.ffi.typeof("kvist_tier_stats_t").fields)))
        host = statistics.tiers[kvist.Tier.HOST]
        self.assertEqual((host.object_count, host.used_bytes, host.hit_blocks),
                         (BLOCKS, BLOCKS * BLOCK_BYTES, BLOCKS))
        self.assertIn(statistics.io, ("io_uring", "threads"))
        self.assertEqual(statistics.miss_count[kvist.Miss.NEW], 1)
        self.assertIs(statistics.disk_offline, False)
        self.store.match(NAME_SPACE, tokens_of(2, 1), uncounted=True).release()
        self.assertEqual(self.store.statistics().miss_count, statistics.miss_count)

    def test_enumerations_are_the_headers(self):
        for kind, name, last in (
            (kvist.Status, "kv_status_t", None), (kvist.Tier, "kvist_tier_t", "COUNT"),
            (kvist.Miss, "kvist_miss_t", "COUNT"), (kvist.Mode, "kvist_mode_t", None),
            (kvist.Priority, "kvist_priority_t", "COUNT"), (kvist.Codec, "kvist_codec_t", "COUNT"),
            (kvist.Policy, "kvist_policy_t", "COUNT"), (kvist.Io, "kvist_io_t", None),
            (kvist.Persist, "kvist_persist_t", None), (kvist.PartKind, "kvist_part_kind_t", None),
            (kvist.GroupKind, "kvist_group_kind_t", None), (kvist.Dtype, "kvist_dtype_t", None),
        ):
            of_c = {word.split("_", 2)[2] if not word.startswith("KV_") else word[3:]: value
                    for value, word in kvist.native.ffi.typeof(name).elements.items()}
            of_c.pop(last, None)
            self.assertEqual({member.name: member.value for member in kind}, of_c, name)

    def test_tenants_and_quotas(self):
        store_context(self.store, 1, 2, tenant="anna")
        store_context(self.store, 2, 3)
        self.store.set_quota(kvist.Quota("berta", host_bytes=8 * BLOCK_BYTES))
        use = {tenant.quota.tenant: tenant for tenant in self.store.tenants()}
        self.assertEqual(use["anna"].bytes[kvist.Tier.HOST], 2 * BLOCK_BYTES)
        self.assertEqual(use[""].bytes[kvist.Tier.HOST], 3 * BLOCK_BYTES)
        self.assertEqual(use["berta"].quota, kvist.Quota("berta", 8 * BLOCK_BYTES, 0))
        self.assertIn("host_bytes of a is 1", refusal(self, INVALID, self.store.set_quota,
                                                      kvist.Quota("a", host_bytes=1)))
        refusal(self, INVALID, self.store.set_quota, kvist.Quota("a b"))

    def test_disk_bytes(self):
        self.store.set_disk_bytes(32 << 20)
        self.assertIn("disk_bytes is 1", refusal(self, INVALID, self.store.set_disk_bytes, 1))


class Keeping(OnDisk):
    def test_keep(self):
        store_context(self.store, 1)
        key, until = keys_of(1)[4], seconds_from_now(3600) // 10**9 * 10**9
        self.store.keep(key, kvist.Terms(pin_until_unix_ns=until))
        for block, pinned in ((0, until), (4, until), (5, 0)):
            self.assertEqual(self.store.show(keys_of(1)[block]).pin_until_unix_ns, pinned)
        self.store.keep(key, kvist.Terms())
        self.assertEqual(self.store.show(key).pin_until_unix_ns, 0)
        self.assertIn("in the past", refusal(self, INVALID, self.store.keep, key,
                                             kvist.Terms(pin_until_unix_ns=1)))
        refusal(self, MISSING, self.store.keep, bytes(32), kvist.Terms())

    def test_expiry(self):
        store_context(self.store, 1)
        self.store.keep(keys_of(1)[0], kvist.Terms(expires_unix_ns=seconds_from_now(-5)))
        with self.store.match(NAME_SPACE, tokens_of(1, BLOCKS)) as lease:
            self.assertEqual((lease.match.block_count, lease.match.miss),
                             (0, kvist.Miss.EXPIRED))

    def test_renewed_by_a_match(self):
        until = seconds_from_now(3600) // 10**9 * 10**9
        store_context(self.store, 1)
        self.store.match(NAME_SPACE, tokens_of(1, 2), renew=True,
                         terms=kvist.Terms(pin_until_unix_ns=until)).release()
        self.assertEqual(self.store.show(keys_of(1)[1]).pin_until_unix_ns, until)
        self.assertEqual(self.store.show(keys_of(1)[2]).pin_until_unix_ns, 0)

    def test_drop(self):
        store_context(self.store, 1)
        self.assertEqual(self.store.drop(keys_of(1)[4]).result(LIMIT_S), BLOCKS - 4)
        with self.store.match(NAME_SPACE, tokens_of(1, BLOCKS)) as lease:
            self.assertEqual(lease.match.block_count, 4)
            detail = lease.match.detail
            self.assertEqual((lease.match.miss, detail.dropped), (kvist.Miss.EVICTED, True))
            refusal(self, kvist.Status.BUSY, self.store.drop, keys_of(1)[0], erase=True)
        self.assertEqual(self.store.drop(keys_of(1)[0], erase=True).result(LIMIT_S), 4)
        self.assertEqual(len(load_context(self.store, 1)), 0)
        self.assertIn("nothing of it", refusal(self, MISSING, self.store.drop, bytes(32)))

    def test_drop_tenant(self):
        store_context(self.store, 1, tenant="anna")
        store_context(self.store, 2)
        self.assertEqual(self.store.drop_tenant("anna").result(LIMIT_S), BLOCKS)
        self.assertEqual(len(load_context(self.store, 1)), 0)
        self.assertEqual(len(load_context(self.store, 2)), BLOCKS)
        refusal(self, MISSING, self.store.drop_tenant, "nobody-known")
        refusal(self, INVALID, self.store.drop_tenant, "a" * 32)

    def test_verify(self):
        store_context(self.store, 1)
        self.store.flush().result(LIMIT_S)
        seen = []
        pending = self.store.verify(seen.append)
        self.assertIn("under way", refusal(self, kvist.Status.BUSY, self.store.verify))
        result = pending.result(LIMIT_S)
        self.assertEqual((result.damaged_objects, result.failed_objects), (0, 0))
        self.assertEqual(result.object_count, result.object_total)
        self.assertGreaterEqual(result.bytes, BLOCKS * BLOCK_BYTES)
        self.assertTrue(all(isinstance(state, kvist.Verification) for state in seen))
        self.store.verify().result(LIMIT_S)

    def test_a_verification_ends_with_its_store(self):
        store_context(self.store, 1)
        pending = self.store.verify()
        self.store.close()
        self.assertTrue(pending.done)


class Why(OnDisk):
    def test_why(self):
        store_context(self.store, 1)
        why = self.store.why(NAME_SPACE, tokens_of(1, BLOCKS + 1))
        self.assertEqual((why.match.block_count, why.match.miss, why.block_tokens),
                         (BLOCKS, kvist.Miss.NEW, BLOCK_TOKENS))
        self.assertEqual(self.store.statistics().leases, 0)

    def test_another_namespace(self):
        store_context(self.store, 1)
        self.store.describe(MODEL)
        self.store.describe(MODEL, salt="other")
        other = kvist.name_space(MODEL, LAYOUT, salt="other")
        why = self.store.why(other, tokens_of(1, BLOCKS), all_name_spaces=True)
        self.assertEqual((why.match.miss, why.other_name_space, why.other_block_count, why.fields),
                         (kvist.Miss.NAMESPACE, NAME_SPACE, BLOCKS, "salt"))
        self.assertEqual(self.store.why(other, tokens_of(1, BLOCKS)).match.miss, kvist.Miss.NEW)


class Changes(OnDisk):
    def test_told_in_order(self):
        told = []
        self.store.listen(told.append)
        store_context(self.store, 1)
        self.store.poll()
        stored = [key for change in told if change.stored and change.tier == kvist.Tier.HOST
                  for key in change.keys]
        self.assertEqual(stored, keys_of(1))
        first = next(change for change in told if change.stored)
        self.assertEqual((first.first_block, first.parent, first.name_space, first.group),
                         (0, NAME_SPACE, NAME_SPACE, 0))
        told.clear()
        self.store.drop(keys_of(1)[8]).result(LIMIT_S)
        self.store.poll()
        gone = {key for change in told if not change.stored for key in change.keys}
        self.assertEqual(gone, set(keys_of(1)[8:]))
        self.assertTrue(all(change.name_space == b"" for change in told if not change.stored))
        self.store.listen(None)
        told.clear()
        store_context(self.store, 2)
        self.store.poll()
        self.assertEqual(told, [])

    def test_a_listener_may_call_the_store_and_may_fail(self):
        shown = []

        def listen(change):
            shown.append(self.store.show(change.keys[0]).position)
            raise ValueError("the listener's own")

        self.store.listen(listen)
        with self.assertLogs("kvist", "ERROR") as logs:
            store_context(self.store, 1)
            self.store.poll()
        self.store.listen(None)
        self.assertEqual(shown[0], 0)
        self.assertIn("the listener's own", logs.output[0])

    def test_held(self):
        for context in range(3):
            store_context(self.store, context)
        self.store.flush().result(LIMIT_S)
        held = {}
        for part in self.store.held(object_count_max=5):
            for change in part:
                self.assertTrue(change.stored)
                held.setdefault(change.tier, set()).update(change.keys)
        every = {key for context in range(3) for key in keys_of(context)}
        self.assertEqual(held, {kvist.Tier.HOST: every, kvist.Tier.DISK: every})
        self.assertIn("object_count_max is 0", refusal(self, INVALID, list, self.store.held(0)))

    def test_held_and_changes_make_the_whole(self):
        held = set()

        def take(change):
            if change.tier == kvist.Tier.HOST:
                (held.update if change.stored else held.difference_update)(change.keys)

        store_context(self.store, 0)
        self.store.listen(take)
        for number, part in enumerate(self.store.held(object_count_max=4)):
            for change in part:
                take(change)
            if number == 1:
                store_context(self.store, 1)
                self.store.drop(keys_of(0)[8]).result(LIMIT_S)
        self.store.poll()
        self.assertEqual(held, set(keys_of(0)[:8]) | set(keys_of(1)))


class Encrypted(unittest.TestCase):
    def test_key_file(self):
        with tempfile.TemporaryDirectory() as folder:
            options = {"directory": folder + "/store", "disk_bytes": 64 << 20,
                       "segment_bytes": 8 << 20, "key_file": folder + "/key"}
            self.assertIn("key", refusal(self, MISSING, open_store, **options))
            kvist.key_file_new(folder + "/key")
            with open_store(**options) as store:
                stored = store_context(store, 1)
                self.assertTrue(store.statistics().encrypting)
            del options["key_file"]
            refusal(self, kvist.Status.REFUSED, open_store, **options)
            options["key_file"] = folder + "/key"
            with open_store(**options) as store:
                self.assertTrue(numpy.array_equal(load_context(store, 1), stored))
