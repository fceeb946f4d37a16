"""Scatter lists: that their addresses are where the bytes lie, and that these stay."""
import array
import ctypes
import gc
import mmap
import unittest
import weakref

import numpy
from stores import refusal

import kvist
import kvist.native

try:
    import torch
except ImportError:
    torch = None


def bytes_at(pieces):
    """What lies in the pieces, read by their addresses."""
    return b"".join(ctypes.string_at(int(piece.base_address), piece.bytes)
                    for piece in listed(pieces))


class _Piece:
    def __init__(self, base_address, size):
        self.base_address, self.bytes = base_address, size


def listed(pieces):
    """(address, bytes) of each, as C has them."""
    pairs = array.array("Q")
    pairs.frombytes(bytes(kvist.native.ffi.buffer(pieces.c)) if pieces.count else b"")
    return [_Piece(*pair) for pair in zip(pairs[0::2], pairs[1::2])]


class Pieces(unittest.TestCase):
    def test_addresses_and_sizes(self):
        memory = numpy.arange(256, dtype="u1")
        base = memory.ctypes.data
        for bases in ([base, base + 64], numpy.array([base, base + 64], dtype="u8"),
                      array.array("Q", [base, base + 64]), iter([base, base + 64]),
                      numpy.array([base, base + 64], dtype="i8")):
            pieces = kvist.Pieces(bases, 32, keep=memory)
            self.assertEqual((pieces.count, len(pieces), pieces.bytes), (2, 2, 64))
            self.assertEqual(bytes_at(pieces), bytes(range(32)) + bytes(range(64, 96)))
        pieces = kvist.Pieces([base, base + 64], numpy.array([8, 16], dtype="u8"), keep=memory)
        self.assertEqual(bytes_at(pieces), bytes(range(8)) + bytes(range(64, 80)))

    def test_what_is_none_is_refused(self):
        memory = bytearray(8)
        for text, make in {
            "2 bases and 1 sizes": lambda: kvist.Pieces([1, 2], [1]),
            "address of 0": lambda: kvist.Pieces([1, 0], 1),
            "sizes is -1": lambda: kvist.Pieces([1], -1),
            "bases are": lambda: kvist.Pieces([-1], 1),
            "bases": lambda: kvist.Pieces(b"12345678", 1),
            "sizes are": lambda: kvist.Pieces([1], ["a"]),
            "str is no memory": lambda: kvist.Pieces.of("text"),
            "int is no memory": lambda: kvist.Pieces.of(7),
            "Python objects": lambda: kvist.Pieces.of(numpy.array([None, "a"])),
            "list is no memory": lambda: kvist.Pieces.of([memory]),
            "memoryview is no memory": lambda: kvist.Pieces.of(memoryview(memory)[::2]),
        }.items():
            self.assertIn(text, refusal(self, kvist.Status.INVALID, make))

    def test_arrays_in_the_order_of_their_elements(self):
        pages = numpy.arange(6 * 4 * 8, dtype="u2").reshape(6, 4, 8)
        for array_, count in (
            (pages, 1), (pages[1], 1), (pages[::2], 3), (pages[:, 1], 6), (pages[:, 1:3], 6),
            (pages[:, ::2], 12), (pages[::-1], 6), (pages.transpose(1, 0, 2), 24),
            (pages[:, :, :1], 24), (pages[2:2], 0), (pages[3, 2, 1:2], 1), (pages[..., None], 1),
            (numpy.broadcast_to(pages[0, 0], (2, 8)), 2),
        ):
            pieces = kvist.Pieces.of(array_)
            self.assertEqual(pieces.count, count, array_.strides)
            self.assertEqual(bytes_at(pieces), array_.tobytes(), array_.strides)

    def test_memory_of_every_kind(self):
        shared = mmap.mmap(-1, 4096)
        shared[:4] = b"mmap"
        kinds = (bytearray(b"bytearray"), array.array("d", [1.5, 2.5]), shared,
                 memoryview(bytearray(b"a view of it"))[2:6], (ctypes.c_char * 4)(*b"ct\0p"),
                 numpy.float32([1, 2]))
        pieces = kvist.Pieces.of(*kinds)
        self.assertTrue(pieces.writable)
        self.assertEqual(bytes_at(pieces), b"".join(memoryview(kind).tobytes() for kind in kinds))
        self.assertEqual(bytes_at(kvist.Pieces.of(pieces, kinds[0])),
                         bytes_at(pieces) + b"bytearray")
        raw = (numpy.frombuffer(kinds[0], dtype="u1").ctypes.data, 4)
        self.assertEqual(bytes_at(kvist.Pieces.of(raw)), b"byte")

    def test_read_only_memory_is_known(self):
        fixed = numpy.arange(8)
        fixed.flags.writeable = False
        for memory in (b"bytes", fixed, memoryview(bytearray(8)).toreadonly()):
            self.assertFalse(kvist.Pieces.of(memory).writable)
            self.assertFalse(kvist.Pieces.of(bytearray(1), kvist.Pieces.of(memory)).writable)

    def test_memory_lives_as_long_as_its_pieces(self):
        memory = numpy.zeros(1 << 16, dtype="u1")
        gone = weakref.ref(memory)
        pieces = kvist.Pieces.of(memory)
        of_pieces = kvist.Pieces.of(pieces)
        kept = kvist.Pieces([memory.ctypes.data], 8, keep=[memory])
        del memory, pieces
        gc.collect()
        self.assertIsNotNone(gone())
        del of_pieces
        self.assertIsNotNone(gone())
        del kept
        gc.collect()
        self.assertIsNone(gone())

    def test_a_buffer_in_use_does_not_move(self):
        memory = bytearray(64)
        pieces = kvist.Pieces.of(memory)
        with self.assertRaises(BufferError):
            memory.extend(bytes(1 << 20))
        del pieces
        memory.extend(bytes(1 << 20))

    @unittest.skipIf(torch is None, "torch is not importable here")
    def test_tensors(self):
        pages = torch.arange(6 * 4 * 8, dtype=torch.int16).reshape(6, 4, 8)
        for tensor in (pages, pages[::2], pages[:, 1:3], pages.permute(1, 0, 2),
                       pages.to(torch.bfloat16)):
            pieces = kvist.Pieces.of(tensor)
            expected = tensor.contiguous().view(torch.int16).numpy().tobytes()
            self.assertEqual(bytes_at(pieces), expected)
        self.assertIn("device", refusal(self, kvist.Status.INVALID, kvist.Pieces.of,
                                        torch.empty(4, device="meta")))
        self.assertIn("no memory of its own", refusal(
            self, kvist.Status.INVALID, kvist.Pieces.of, torch.ones(2, 2).to_sparse()))
