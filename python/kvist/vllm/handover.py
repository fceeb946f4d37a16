"""What a prefill instance tells a decode instance: how many blocks are coming, under what name.

vLLM hands a finished request's kv_transfer_params to whoever asked, and a proxy passes them on
with the request for the decode instance. Kvist's part of them is one entry:

    {"kvist": {"blocks": 31, "key": "5b0c...": 64 hexadecimal digits}}

blocks: whole blocks of the prompt that were saved or are being saved. key: Kvist's key of the last
of them, for the first worker: equal at the decode instance where both have the same namespace, and
then alone there is something to wait for. Entries of others are left alone.

A producer (kv_role kv_producer) tells this of each request; with kv_both of requests that say
"do_remote_decode": true, as proxies written for vLLM's other connectors do.

Threads: pure functions. Errors: none: what is malformed is ignored, with a warning.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger("kvist.vllm")

ENTRY = "kvist"
ASKED_FOR = "do_remote_decode"
BLOCKS_MAX = 1 << 20


@dataclass(frozen=True)
class Announcement:
    block_count: int
    key: bytes  # 32


def announcement(params: Any) -> Announcement | None:
    """Of a request's kv_transfer_params, whatever a client made of them."""
    entry = params.get(ENTRY) if isinstance(params, dict) else None
    if entry is None:
        return None
    blocks = entry.get("blocks") if isinstance(entry, dict) else None
    digits = entry.get("key") if isinstance(entry, dict) else None
    if type(blocks) is int and 1 <= blocks <= BLOCKS_MAX and isinstance(digits, str):
        try:
            key = bytes.fromhex(digits)
        except ValueError:
            key = b""
        if len(key) == 32:
            return Announcement(blocks, key)
    logger.warning(
        "kv_transfer_params: %s is %.200r: blocks must be 1 to %d, key 64 hexadecimal digits; it "
        "is ignored",
        ENTRY,
        entry,
        BLOCKS_MAX,
    )
    return None


def is_asked_for(params: Any) -> bool:
    """Whether the client of this request wants to know what it stored."""
    return isinstance(params, dict) and params.get(ASKED_FOR) is True


def params_of(block_count: int, key: bytes) -> dict[str, Any]:
    """kv_transfer_params for whoever asked."""
    return {ENTRY: {"blocks": block_count, "key": key.hex()}}
