"""Options of the connector, and what is looked for in vLLM at import."""
from __future__ import annotations

import dataclasses
import os
import unittest
from types import SimpleNamespace
from typing import Any
from unittest import mock

import kvist
from kvist.vllm import config, interface


class Options(unittest.TestCase):
    def test_defaults_are_allowed_and_the_record_has_each(self) -> None:
        values = config.validated({})
        for option in config.OPTIONS:
            self.assertEqual(config.checked(option, option.default), option.default)
        fields = {field.name for field in dataclasses.fields(config.Config)}
        self.assertEqual(set(values) | {"saves", "loads", "announces"}, fields)

    def refused(self, name: str, value: Any, *texts: str) -> None:
        with self.assertRaises(ValueError) as caught:
            config.validated({name: value})
        for text in (name, *texts):
            self.assertIn(text, str(caught.exception))

    def test_what_is_wrong_is_named_with_its_bound(self) -> None:
        self.refused("sockett", "/x", "socket,", "no option")
        self.refused("priority", "high", "interactive, batch, background")
        self.refused("priority", 1, "no text")
        self.refused("pending_wait_s", -1, "0 to 600")
        self.refused("pending_wait_s", float("nan"), "0 to 600")
        self.refused("pending_wait_s", "1", "no number")
        self.refused("pending_wait_s", True, "no number")
        self.refused("minimum_hit_blocks", 0, "1 to 1048576")
        self.refused("minimum_hit_blocks", 1.5, "no whole number")
        self.refused("save_generated", 1, "true or false")
        self.refused("socket", "/" + "x" * 200, "201 bytes", "107")
        self.refused("domain", "", "1 to 63")
        self.refused("tenant", "a b", "' '")
        self.refused("tenant", "a=b", "'='")
        self.refused("tenant", "ä", "printable ASCII")
        self.refused("tenant", "x" * 32, "31")
        self.refused("fingerprint_folder", "a\0b", "zero")

    def test_whole_numbers_do_for_seconds(self) -> None:
        self.assertEqual(config.validated({"pending_wait_s": 3})["pending_wait_s"], 3.0)

    def of(self, role: str) -> config.Config:
        transfer = SimpleNamespace(
            kv_role=role, kv_connector_extra_config={}, is_kv_producer=role != "kv_consumer",
            is_kv_consumer=role != "kv_producer")
        return config.Config.of(SimpleNamespace(kv_transfer_config=transfer))  # type: ignore

    def test_roles(self) -> None:
        self.assertEqual([(c.saves, c.loads, c.announces) for c in map(self.of, (
            "kv_both", "kv_producer", "kv_consumer"))],
            [(True, True, False), (True, False, True), (False, True, False)])

    def test_where_kvist_store_is_by_default(self) -> None:
        with mock.patch.dict(os.environ, {"XDG_RUNTIME_DIR": "/run/user/7"}):
            self.assertEqual(self.of("kv_both").socket, "/run/user/7/kvist/store-clients.sock")
        with mock.patch.dict(os.environ, {"XDG_RUNTIME_DIR": ""}):
            self.assertEqual(self.of("kv_both").socket,
                             f"/tmp/kvist-{os.getuid()}/store-clients.sock")

    def test_priorities_are_kvists(self) -> None:
        for name in config.PRIORITIES:
            self.assertIn(name.upper(), kvist.Priority.__members__)


class Interface(unittest.TestCase):
    def test_this_vllm_has_it(self) -> None:
        self.assertEqual(interface.moved(), [])

    def test_what_moved_is_named(self) -> None:
        base, place = interface.BASE, f"{interface.BASE}:KVConnectorBase_V1"
        overridden = {place: {"wait_for_save": ("more",), "wait_for_godot": ()}}
        with mock.patch.object(interface, "OVERRIDDEN", overridden), \
                mock.patch.object(interface, "FIELDS", {f"{base}:Gone": ("a",)}), \
                mock.patch.object(interface, "ATTRIBUTES", {"vllm.v1.request:Request": ("x",)}), \
                mock.patch.object(interface, "NAMES", {"vllm.nowhere:Gone": ("a",)}):
            self.assertEqual(interface.moved(), [
                f"{place}.wait_for_save takes (), not (more)", f"{place}.wait_for_godot is gone",
                f"{base}:Gone is gone", "vllm.v1.request:Request.x is gone",
                "vllm.nowhere:Gone is gone"])
            with self.assertRaisesRegex(ImportError, "wait_for_save takes.*Install a tested vLLM"):
                interface.check()

    def test_called_methods_may_have_more_arguments_with_defaults(self) -> None:
        place = "vllm.v1.core.kv_cache_manager:KVCacheBlocks"
        self.assertIn(place, interface.CALLED)
        with mock.patch.object(interface, "CALLED", {place: {"get_block_ids": ("nothing",)}}):
            self.assertEqual(len(interface.moved()), 1)

    def test_versions(self) -> None:
        with mock.patch("vllm.__version__", "99.0"), self.assertLogs("kvist.vllm", "WARNING"):
            interface.check()
        with mock.patch("vllm.__version__", interface.TESTED_VERSIONS[0] + "+cpu"), \
                self.assertNoLogs("kvist.vllm", "WARNING"):
            interface.check()


if __name__ == "__main__":
    unittest.main()
