"""Stores of small blocks, contexts in and out of them, and what calls are refused with."""
import time

import numpy
from contexts import bytes_of, make_layout, tokens_of

import kvist

INVALID = kvist.Status.INVALID
LAYERS, UNIT_BYTES, BLOCKS = 4, 4096, 16
LAYOUT = make_layout(LAYERS, UNIT_BYTES)
BLOCK_BYTES = LAYOUT.object_bytes()
NAME_SPACE = kvist.name_space(b"a model of tests".ljust(32), LAYOUT)
LIMIT_S = 60


def open_store(**more):
    return kvist.Store(LAYOUT, **{"host_bytes": 16 << 20, **more})


def match(store, context, block_count=BLOCKS, **named):
    """A lease on it; asked for again where a kvist-store did not answer within its quarter of a
    second, as may be on a busy machine."""
    end = time.monotonic() + LIMIT_S
    while True:
        lease = store.match(NAME_SPACE, tokens_of(context, block_count), **named)
        if lease.match.miss != kvist.Miss.FAILED or time.monotonic() > end:
            return lease
        lease.release()
        store.poll()
        time.sleep(0.001)


def store_context(store, context, block_count=BLOCKS, **terms):
    """Stores it whole; the bytes. Again, where a kvist-store was lost in the middle, as may be on a
    busy machine."""
    stored, end = bytes_of(context, block_count, BLOCK_BYTES), time.monotonic() + LIMIT_S
    done = 0
    while done < block_count:
        assert time.monotonic() < end, "the kvist-store does not come back"
        with match(store, context, block_count, terms=kvist.Terms(**terms)) as lease:
            first = lease.match.block_count
            pending = lease.store(kvist.Pieces.of(stored[first:]), first_block=first)
            try:
                done = first + pending.result(LIMIT_S)
            except kvist.KvistError as error:
                if error.status != kvist.Status.PEER_LOST:
                    raise
    return stored


def load_context(store, context, block_count=BLOCKS):
    """What is found of it, as bytes; lost and asked again as above."""
    end = time.monotonic() + LIMIT_S
    while True:
        with match(store, context, block_count) as lease:
            into = numpy.zeros((lease.match.block_count, BLOCK_BYTES), dtype="u1")
            loaded = lease.load(into).result(LIMIT_S)
        if loaded.miss != kvist.Miss.FAILED or time.monotonic() > end:
            assert loaded == kvist.Loaded(len(into), kvist.Miss.NONE), loaded
            return into


def poll_all(store):
    """Until nothing is in flight."""
    end = time.monotonic() + LIMIT_S
    while store.handle.in_flight:
        assert time.monotonic() < end, store.handle.in_flight
        store.poll()


def refusal(case, status, function, *arguments, **named):
    """The error that a call is refused with."""
    with case.assertRaises(kvist.KvistError) as caught:
        function(*arguments, **named)
    case.assertEqual(caught.exception.status, status, caught.exception)
    case.assertTrue(caught.exception.remedy, caught.exception)
    return str(caught.exception)
