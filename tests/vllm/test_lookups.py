"""Look-ups in a real kvist-store, for one worker and for several."""
from __future__ import annotations

import dataclasses
import os
import sys
import time
import unittest
from types import SimpleNamespace
from typing import Any, Callable, Sequence

import kvist
import numpy
from kvist.vllm import identity
from kvist.vllm.lookups import LookUps, Run
from kvist.vllm.metadata import Description, GroupDescription, LayerKind, Owner

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../python"))
from service import Service  # noqa: E402

TOKENS = 32
FULL = GroupDescription(0, LayerKind.FULL, 0, ("a",), 4096)
WINDOW = GroupDescription(1, LayerKind.WINDOW, 2 * TOKENS, ("b",), 4096)
OWNER = Owner(b"salt")


def tokens(count: int, seed: int = 1) -> Any:
    return numpy.arange(seed * 1000, seed * 1000 + count * TOKENS, dtype=numpy.uint32)


class Cases(unittest.TestCase):
    def setUp(self) -> None:
        self.service = Service()
        self.addCleanup(self.service.close)

    def looks(self, *descriptions: Description) -> LookUps:
        config = SimpleNamespace(socket=self.service.socket, domain="default")
        looks = LookUps(config, descriptions)  # type: ignore
        self.addCleanup(looks.close)
        return looks

    def put(self, description: Description, ids: Any, extras: Sequence[bytes] | None = None,
            groups: Sequence[int] = (0,), first_of: int = 0) -> None:
        """Stores blocks as a worker would; those of further groups from block first_of on."""
        layout = identity.layout_of(description)
        name = identity.name_space(description, layout, OWNER)
        with kvist.Store(layout, attach=self.service.socket) as store:
            self.wait(lambda: store.attached_to is not None, store.poll)
            with store.match(name, ids, mode=kvist.Mode.WRITE, extras=extras) as lease:
                count, pending = len(ids) // TOKENS, []
                for group in groups:
                    first = first_of if group else 0
                    size = (count - first) * layout.object_bytes(group)
                    pending.append(lease.store(numpy.zeros(size, numpy.uint8), group=group,
                                               first_block=first, block_count=count - first))
                for one in pending:
                    one.result(30)

    def wait(self, true: Callable[[], bool], between: Callable[[], Any] = lambda: None) -> None:
        end = time.monotonic() + 30
        while not true():
            self.assertLess(time.monotonic(), end)
            between()
            time.sleep(0.02)

    def no_lease_is_left(self) -> None:
        """That the service holds for anybody."""
        with kvist.Store(identity.layout_of(self.one), attach=self.service.socket) as store:
            self.wait(lambda: store.statistics().leases == 0, store.poll)

    one = Description(TOKENS, (FULL,), '{"rank":0}')
    two = Description(TOKENS, (FULL,), '{"rank":1}')
    both = Description(TOKENS, (FULL, WINDOW), '{"rank":0}')
    both_two = Description(TOKENS, (FULL, WINDOW), '{"rank":1}')

    def test_one_worker(self) -> None:
        looks = self.looks(self.one)
        self.assertEqual(looks.look_up(OWNER, tokens(4), None, 1).miss, kvist.Miss.NEW)
        self.assertEqual(looks.held, 0)
        self.assertTrue(looks.attached)
        self.put(self.one, tokens(4))
        answer = looks.look_up(OWNER, tokens(4), None, 2)
        self.assertEqual((answer.block_count, answer.miss), (4, kvist.Miss.NONE))
        self.assertEqual(answer.runs, (Run(0, 4, kvist.Tier.HOST),))
        self.assertEqual(looks.held, 1)
        self.assertEqual(looks.look_up(Owner(b"other"), tokens(4), None, 3).block_count, 0)
        looks.release(answer)
        looks.release(answer)
        self.assertEqual(looks.held, 0)
        self.no_lease_is_left()

    def test_a_request_is_counted_once(self) -> None:
        looks = self.looks(self.one, self.two)
        self.put(self.one, tokens(1))
        looks.look_up(OWNER, tokens(4), None, 1)
        looks.look_up(OWNER, tokens(4), None, 1, again=True)
        misses = looks._thread.call(lambda store: store.statistics().miss_count)
        self.assertEqual(sum(misses.values()), 1)

    def test_extra_keys(self) -> None:
        looks = self.looks(self.one)
        extras = (bytes(32), b"x" * 32, bytes(32))
        self.put(self.one, tokens(3), extras)
        self.assertEqual(looks.look_up(OWNER, tokens(3), extras, 1).block_count, 3)
        self.assertEqual(looks.look_up(OWNER, tokens(3), None, 1).block_count, 1)
        self.assertNotEqual(looks.key_of(OWNER, tokens(3), None),
                            looks.key_of(OWNER, tokens(3), extras))
        self.assertEqual(looks.key_of(OWNER, tokens(0), None), b"")

    def test_what_all_workers_have(self) -> None:
        looks = self.looks(self.one, self.two)
        self.put(self.one, tokens(4))
        answer = looks.look_up(OWNER, tokens(4), None, 1)
        self.assertEqual((answer.block_count, answer.miss), (0, kvist.Miss.NEW))
        self.assertEqual(looks.held, 0)
        self.put(self.two, tokens(3))
        answer = looks.look_up(OWNER, tokens(4), None, 1)
        self.assertEqual((answer.block_count, len(answer.leases)), (3, 2))
        self.assertEqual(answer.runs, (Run(0, 3, kvist.Tier.HOST),))
        looks.release(answer)
        self.no_lease_is_left()

    def test_windows_of_the_shorter_hit(self) -> None:
        looks = self.looks(self.both, self.both_two)
        # Both have windows at the end of 6 blocks alone; one has a chain of 6, the other of 4 more.
        self.put(self.both, tokens(6), groups=(0, 1))
        self.put(self.both_two, tokens(4), groups=(0, 1))
        answer = looks.look_up(OWNER, tokens(6), None, 1)
        self.assertEqual(answer.block_count, 4)
        self.assertEqual([lease.match.block_count for lease in answer.leases], [4, 4])
        looks.release(answer)

    def test_a_window_that_is_not_there(self) -> None:
        looks = self.looks(self.both)
        self.put(self.both, tokens(6), groups=(0, 1), first_of=4)
        self.assertEqual(looks.look_up(OWNER, tokens(6), None, 1).block_count, 6)
        self.assertEqual(looks.look_up(OWNER, tokens(4), None, 1).block_count, 0)

    def test_a_store_that_goes_and_comes(self) -> None:
        looks = self.looks(self.one)
        self.put(self.one, tokens(4))
        self.service.kill()
        failed = kvist.Miss.FAILED
        self.wait(lambda: looks.look_up(OWNER, tokens(4), None, 1).miss is failed)
        self.assertFalse(looks.attached)
        self.assertEqual(looks.held, 0)
        self.service.start()
        self.put(self.one, tokens(4))
        self.wait(lambda: looks.look_up(OWNER, tokens(4), None, 1).block_count == 4)

    def test_no_store_at_all(self) -> None:
        self.service.kill()
        looks = self.looks(self.one)
        self.assertEqual(looks.look_up(OWNER, tokens(4), None, 1).miss, kvist.Miss.FAILED)

    def test_what_cannot_be_served(self) -> None:
        other = dataclasses.replace(
            self.one, groups=(dataclasses.replace(FULL, layer_names=("a", "b")),))
        with self.assertRaisesRegex(ValueError, "pipeline-parallel-size"):
            self.looks(self.one, other)
        self.looks(self.one)  # the domain has its layout from here on
        with self.assertRaisesRegex(ValueError, "kvist-store at .*layout"):
            self.looks(other)

    def test_closed(self) -> None:
        looks = self.looks(self.one)
        self.put(self.one, tokens(4))
        answer = looks.look_up(OWNER, tokens(4), None, 1)
        looks.close()
        looks.release(answer)
        self.assertEqual(looks.held, 0)
        self.assertEqual(looks.look_up(OWNER, tokens(4), None, 1).miss, kvist.Miss.FAILED)


if __name__ == "__main__":
    unittest.main()
