"""Layouts, namespaces, keys, fingerprints: what is equal everywhere, and what is refused."""
import array
import hashlib
import os
import pickle
import tempfile
import unittest

import numpy
from contexts import make_layout
from stores import refusal

import kvist


def plain_layout():
    """The layout of docs/formats.md's test vectors: 30 layers of K and V, 3 heads of 64, bf16."""
    parts = [kvist.Part(kind, 3, 64, 2) for kind in (kvist.PartKind.K, kvist.PartKind.V)]
    return kvist.Layout(16, [kvist.Group(kvist.GroupKind.FULL, range(30), parts)])


class Identity(unittest.TestCase):
    def test_vectors_of_the_formats(self):
        space = kvist.name_space(bytes(32), plain_layout())
        self.assertEqual(
            space.hex(), "661e39e482d75c5ff1b86060ed2eb77a27fecd60a9704efd6155e56e5d9dd6bc")
        keys = kvist.keys(space, range(32), 16)
        self.assertEqual([key.hex() for key in keys], [
            "7c5b7694b9330d7bd30c3c53768949d144c1aaab4d25c9603050d05af9406a42",
            "cb8fc38a4f02313a01592a056b7f8203b093c2b23b5a98be940411f0024acdbb"])
        other = kvist.name_space(bytes(range(32)), plain_layout(), kvist.Dtype.F32, "tenant a",
                                 "lora-1")
        self.assertEqual(
            other.hex(), "b8edc5947366d8c7206a8c6f0ef122b49981da7c0414dc7b748a1aac52badc36")
        self.assertEqual(
            kvist.keys(other, [0xFFFFFFFF] * 32, 32)[0].hex(),
            "e642bd8d0437999390002bac63fc39a406651c722e95f9477dd62421c89f4404")

    def test_tokens_of_every_kind_have_one_key(self):
        space = kvist.name_space(bytes(32), plain_layout())
        ids = list(range(7, 7 + 16))
        expected = kvist.keys(space, ids, 16)
        for tokens in (
            tuple(ids), range(7, 7 + 16), array.array("I", ids), array.array("q", ids),
            *(numpy.array(ids, dtype=kind) for kind in ("u4", "i4", "i8", "u8", "u1", ">u4")),
            numpy.array([ids, ids], dtype="u4").T[:, 0],
        ):
            self.assertEqual(kvist.keys(space, tokens, 16), expected, repr(tokens))
        self.assertEqual(kvist.keys(space, [], 16), [])
        self.assertEqual(kvist.keys(space, ids[:15], 16), [])

    def test_what_is_no_token_is_refused(self):
        space = kvist.name_space(bytes(32), plain_layout())
        for tokens in ([-1] * 16, [1 << 32] * 16, [0.5] * 16, ["a"] * 16, b"sixteen or more.....",
                       "sixteen or more.....", numpy.full(16, -1, dtype="i4"), 5, None):
            self.assertIn("tokens", refusal(self, kvist.Status.INVALID, kvist.keys, space, tokens,
                                            16))

    def test_what_is_no_key_is_refused(self):
        for space in (b"", bytes(31), bytes(33), "a" * 32, None):
            self.assertIn("32 bytes", refusal(self, kvist.Status.INVALID, kvist.keys, space, [],
                                              16))
        self.assertIn("model", refusal(self, kvist.Status.INVALID, kvist.name_space, b"short",
                                       plain_layout()))
        self.assertIn("block_tokens", refusal(self, kvist.Status.INVALID, kvist.keys, bytes(32),
                                              [], 0))

    def test_each_field_makes_another_namespace(self):
        layout = plain_layout()
        spaces = {
            kvist.name_space(bytes(32), layout),
            kvist.name_space(bytes(31) + b"\1", layout),
            kvist.name_space(bytes(32), make_layout()),
            kvist.name_space(bytes(32), layout, kvist.Dtype.F32),
            kvist.name_space(bytes(32), layout, salt=b"\0"),
            kvist.name_space(bytes(32), layout, adapter="a"),
        }
        self.assertEqual(len(spaces), 6)
        self.assertIn("adapter", refusal(self, kvist.Status.INVALID, kvist.name_space, bytes(32),
                                         layout, adapter="a\0b"))
        self.assertIn("Dtype.BF16", refusal(self, kvist.Status.INVALID, kvist.name_space,
                                            bytes(32), layout, 7))

    def test_fingerprint(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model")
            with open(path, "wb") as file:
                file.write(b"weights" * 1000)
            digest = hashlib.sha256(b"weights" * 1000).digest()
            self.assertEqual(kvist.fingerprint_file(path), digest)
            self.assertEqual(kvist.fingerprint_file(path, folder), digest)
            self.assertEqual(len(os.listdir(folder)), 2)
            self.assertEqual(kvist.fingerprint_file(path, folder), digest)
            message = refusal(self, kvist.Status.MISSING, kvist.fingerprint_file,
                              os.path.join(folder, "none"))
            self.assertIn("none", message)

    def test_key_file(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "key")
            kvist.key_file_new(path)
            self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
            refusal(self, kvist.Status.REFUSED, kvist.key_file_new, path)
            with open(path, encoding="ascii") as file:
                before = file.read().splitlines()
            kvist.key_file_rotate(path)
            with open(path, encoding="ascii") as file:
                after = file.read().splitlines()
            self.assertEqual(len(after), len(before) + 1)
            self.assertTrue(set(before) < set(after))


class Layouts(unittest.TestCase):
    def test_object_bytes(self):
        self.assertEqual(plain_layout().object_bytes(), 30 * 2 * 3 * 16 * 64 * 2)
        self.assertEqual(make_layout(4, 4096).object_bytes(0), 4 * 4096)
        self.assertIn("group is 1", refusal(self, kvist.Status.INVALID,
                                            plain_layout().object_bytes, 1))

    def test_is_a_value(self):
        layout = plain_layout()
        self.assertEqual(layout, plain_layout())
        self.assertEqual(hash(layout), hash(plain_layout()))
        again = pickle.loads(pickle.dumps(layout))
        self.assertEqual(again, layout)
        self.assertEqual(kvist.name_space(bytes(32), again), kvist.name_space(bytes(32), layout))

    def test_bounds_are_named(self):
        part = kvist.Part(kvist.PartKind.OPAQUE, 1, 64, 1)
        full, window = kvist.GroupKind.FULL, kvist.GroupKind.WINDOW

        def group(kind=full, layers=range(1), parts=(part,), window_tokens=0):
            return kvist.Group(kind, layers, parts, window_tokens)

        for field, make in {
            "block_tokens is 0": lambda: kvist.Layout(0, [group()]),
            "block_tokens is 1025": lambda: kvist.Layout(1025, [group()]),
            "block_tokens is -1": lambda: kvist.Layout(-1, [group()]),
            "0 groups": lambda: kvist.Layout(16, []),
            "9 groups": lambda: kvist.Layout(16, [group()] * 9),
            "groups[0].kind": lambda: kvist.Layout(16, [group(window, window_tokens=4)]),
            "GroupKind.FULL": lambda: kvist.Layout(16, [group(9)]),
            "window_tokens is 0": lambda: kvist.Layout(16, [group(), group(window)]),
            "groups.layers is 0": lambda: kvist.Layout(16, [group(layers=())]),
            "0 to 1023": lambda: kvist.Layout(16, [group(layers=[1024])]),
            "in order": lambda: kvist.Layout(16, [group(layers=[1, 0])]),
            "5 parts": lambda: kvist.Layout(16, [group(parts=[part] * 5)]),
            "part_count is 0": lambda: kvist.Layout(16, [group(parts=())]),
            "heads is 0": lambda: kvist.Layout(16, [group(parts=[kvist.Part(5, 0, 1, 1)])]),
            "PartKind.OPAQUE": lambda: kvist.Layout(16, [group(parts=[kvist.Part(6, 1, 1, 1)])]),
            "element_bytes is 9": lambda: kvist.Layout(16, [group(parts=[kvist.Part(5, 1, 1, 9)])]),
            "bytes in an object": lambda: kvist.Layout(
                16, [group(parts=[kvist.Part(5, 1024, 1 << 20, 8)])]),
        }.items():
            self.assertIn(field, refusal(self, kvist.Status.INVALID, make))


class Errors(unittest.TestCase):
    def test_tells_what_and_what_to_do(self):
        error = kvist.KvistError(kvist.Status.NO_SPACE, "no room", block_count=3)
        self.assertEqual((error.status, error.text, error.block_count),
                         (kvist.Status.NO_SPACE, "no room", 3))
        self.assertIn("do: ", str(error))
        again = pickle.loads(pickle.dumps(error))
        self.assertEqual((again.status, again.text, again.remedy, again.block_count),
                         (error.status, error.text, error.remedy, error.block_count))

    def test_every_status_has_a_remedy(self):
        for status in kvist.Status:
            if status != kvist.Status.OK:
                self.assertTrue(kvist.KvistError(status, "text").remedy, status)
