"""Ctrl-C just where an outcome is taken: it is raised, and the outcome is there afterwards."""
import unittest

import numpy
from contexts import tokens_of
from test_store import BLOCK_BYTES, LIMIT_S, NAME_SPACE, OnStore, store_context

import kvist


class Interrupted(OnStore):
    def test_an_outcome_that_was_being_taken(self):
        store_context(self.store, 1, 1)
        with self.store.match(NAME_SPACE, tokens_of(1, 1)) as lease:
            pending = lease.load(numpy.zeros(BLOCK_BYTES, dtype="u1"))
            make, interruptions = pending._make, [KeyboardInterrupt()]

            def interrupted(*told):
                if interruptions:
                    raise interruptions.pop()
                return make(*told)

            pending._make = interrupted
            with self.assertRaises(KeyboardInterrupt):
                pending.result(LIMIT_S)
            self.assertEqual(pending.result(LIMIT_S), kvist.Loaded(1, kvist.Miss.NONE))
            self.assertEqual(self.store.handle.in_flight, {})


if __name__ == "__main__":
    unittest.main()
