#!/usr/bin/env python3
"""What a call costs in Python: on blocks so small that their bytes cost nothing; medians.

usage: cost.py [--blocks N] [--pieces N] [--rounds N]      with PYTHONPATH=build/python
  --blocks N   of a context (default: 32)
  --pieces N   of a block, as an engine's layers (default: 30)
  --rounds N   (default: 500)
"""
import argparse
import statistics
import subprocess
import sys
import time

import numpy

import kvist

UNIT_BYTES, BLOCK_TOKENS = 64, 128


def median_us(function, rounds):
    taken = []
    for _ in range(rounds):
        begun = time.perf_counter_ns()
        function()
        taken.append(time.perf_counter_ns() - begun)
    return statistics.median(taken) / 1000


def import_ms():
    """In a process of its own."""
    text = ("import time; begun = time.perf_counter_ns(); "
            "import kvist; print(time.perf_counter_ns() - begun)")
    return statistics.median(
        int(subprocess.run([sys.executable, "-c", text], capture_output=True, check=True).stdout)
        for _ in range(5)) / 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--pieces", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=500)
    asked = parser.parse_args()
    blocks, rounds = asked.blocks, asked.rounds
    part = kvist.Part(kvist.PartKind.OPAQUE, 1, UNIT_BYTES, 1)
    group = kvist.Group(kvist.GroupKind.FULL, range(asked.pieces), [part])
    layout = kvist.Layout(BLOCK_TOKENS, [group])
    space = kvist.name_space(bytes(32), layout)
    tokens = numpy.arange(blocks * BLOCK_TOKENS, dtype=numpy.uint32)
    pages = numpy.zeros((blocks * asked.pieces, UNIT_BYTES), numpy.uint8)
    bases = pages.ctypes.data + numpy.arange(len(pages), dtype=numpy.uint64) * UNIT_BYTES
    with kvist.Store(layout, host_bytes=2 * pages.nbytes) as store:
        with store.match(space, tokens) as lease:
            lease.store(pages).result()

        def whole():
            with store.match(space, tokens) as lease:
                lease.load(kvist.Pieces(bases, UNIT_BYTES, keep=pages)).result()

        lease, pieces = store.match(space, tokens), kvist.Pieces.of(pages)
        rows = (
            ("match of nothing, release", lambda: store.match(space, []).release()),
            (f"keys of {blocks} blocks", lambda: kvist.keys(space, tokens, BLOCK_TOKENS)),
            (f"match of {blocks} blocks, release", lambda: store.match(space, tokens).release()),
            (f"{len(bases)} pieces", lambda: kvist.Pieces(bases, UNIT_BYTES, keep=pages)),
            ("load of 1 block in 1 piece, result",
             lambda: lease.load(pages[:asked.pieces], block_count=1).result()),
            (f"load of {blocks} blocks in 1 piece, result", lambda: lease.load(pieces).result()),
            (f"match, pieces, load of {blocks} blocks in {len(bases)} pieces, release", whole),
            ("poll", store.poll),
            ("statistics", store.statistics),
        )
        for name, function in rows:
            print(f"{name:64s} {median_us(function, rounds):8.1f} us")
        lease.release()
    print(f"{'import kvist':64s} {import_ms():8.1f} ms")


if __name__ == "__main__":
    main()
