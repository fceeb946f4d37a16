"""Contexts whose KV anybody can compute again: what tests store, load and compare."""
import numpy

import kvist

BLOCK_TOKENS = 16


def make_layout(layers=4, unit_bytes=16384):
    """One group of opaque units, one a layer."""
    part = kvist.Part(kvist.PartKind.OPAQUE, heads=1, dims=unit_bytes, element_bytes=1)
    group = kvist.Group(kvist.GroupKind.FULL, range(layers), [part])
    return kvist.Layout(BLOCK_TOKENS, [group])


def tokens_of(context, block_count):
    """Token ids: contexts differ from their first block on."""
    return numpy.arange(block_count * BLOCK_TOKENS, dtype=numpy.uint32) + context * 1_000_003


def bytes_of(context, block_count, block_bytes):
    """[block_count][block_bytes] of KV: depends on context and block, and on nothing else."""
    words = numpy.arange(block_bytes // 8, dtype=numpy.uint64) * numpy.uint64(0x9E3779B97F4A7C15)
    seeds = numpy.arange(block_count, dtype=numpy.uint64) * numpy.uint64(0xC2B2AE3D27D4EB4F)
    seeds += numpy.uint64(context * 0x165667B19E3779F9 & (1 << 64) - 1)
    return (words[None, :] ^ seeds[:, None]).view(numpy.uint8)
