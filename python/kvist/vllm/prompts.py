"""What of a request is in its blocks' keys beside token ids: salt, adapter, images and the like.

Extra keys. A block that holds placeholders of multimodal items (or on whose next tokens a draft
model's KV depends) has an extra key of 32 bytes: SHA-256 over, integers little-endian,

    text  "kvist.vllm.extra.1", its length first (u32)
    for each item that reaches into the block, in the order of the prompt:
        u8 1
        i64  the item's first token, counted from the block's first (negative: before it)
        u64  tokens of the item
        text modality, its length first (u32)
        text identifier: vLLM's digest of the item's content, its length first (u32)
    where KV depends on later tokens:
        u8 2
        u32  how many
        u32  each of their ids

Blocks with neither have zeros. An identifier that is no digest (vLLM makes some up from the
request's id, and users can give their own) does not say what the item is: from the block where
such an item begins nothing is loaded or saved.

Threads: one. Errors: none.
"""

from __future__ import annotations

import hashlib
import logging
import re
import struct
from typing import TYPE_CHECKING

import numpy
from numpy.typing import NDArray

from kvist.vllm.metadata import EXTRA_BYTES, Owner
from kvist.vllm.weights import Adapters

if TYPE_CHECKING:
    from vllm.v1.request import Request

logger = logging.getLogger("kvist.vllm")

LABEL = b"kvist.vllm.extra.1"
NO_EXTRA = bytes(EXTRA_BYTES)
DIGEST = re.compile(r"(^|[^0-9a-f])([0-9a-f]{64}|[0-9a-f]{128})$")


class Prompts:
    """Owners and extra keys of requests."""

    def __init__(self, adapters: Adapters, block_tokens: int, lookahead_tokens: int) -> None:
        """lookahead_tokens: groups.lookahead_tokens."""
        self._adapters = adapters
        self._block_tokens = block_tokens
        self._lookahead = lookahead_tokens
        self._warned: set[str] = set()

    def owner(self, request: Request) -> Owner | None:
        """None: the request bypasses the store, as nothing says what its prompt is."""
        if request.prompt_embeds is not None or request.prompt_token_ids is None:
            self._warn("prompt embeddings", "requests with prompt embeddings bypass the store")
            return None
        adapter: str | None = ""
        lora = request.lora_request
        if lora is not None:
            adapter = self._adapters.name_of(lora.lora_name, lora.lora_int_id, lora.lora_path)
        if adapter is None:
            return None
        return Owner((request.cache_salt or "").encode(), adapter)

    def cacheable_blocks(self, request: Request, token_count: int) -> int:
        """Blocks, from the first on, that keys can name once so many tokens are known."""
        end = max(0, token_count - self._lookahead)
        for feature in request.mm_features:
            if not DIGEST.search(feature.identifier):
                self._warn(
                    "identifiers",
                    "multimodal items whose identifier is no digest of their content bypass the "
                    "store (vLLM's prefix caching is off, or the user named them)",
                )
                end = min(end, feature.mm_position.offset)
                break
        return end // self._block_tokens

    def extras(self, request: Request, first: int, end: int) -> tuple[bytes, ...] | None:
        """Of blocks first to end (excluded), cacheable ones; None: all are zeros."""
        features = request.mm_features
        if not self._lookahead and not features:
            return None
        made = tuple(self._extra(request, block) for block in range(first, end))
        return made if any(extra is not NO_EXTRA for extra in made) else None

    def _extra(self, request: Request, block: int) -> bytes:
        start = block * self._block_tokens
        end = start + self._block_tokens
        parts = []
        for feature in request.mm_features:
            offset, length = feature.mm_position.offset, feature.mm_position.length
            if offset < end and offset + length > start:
                parts.append(
                    struct.pack("<BqQ", 1, offset - start, length)
                    + _text(feature.modality.encode())
                    + _text(feature.identifier.encode())
                )
        if self._lookahead:
            tokens = request.all_token_ids[end : end + self._lookahead]
            parts.append(struct.pack(f"<BI{len(tokens)}I", 2, len(tokens), *tokens))
        if not parts:
            return NO_EXTRA
        return hashlib.sha256(_text(LABEL) + b"".join(parts)).digest()

    def _warn(self, about: str, text: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            logger.warning("%s", text)


def _text(text: bytes) -> bytes:
    return struct.pack("<I", len(text)) + text


def token_array(request: Request, first_token: int, end_token: int) -> NDArray[numpy.uint32]:
    """uint32 [end_token - first_token]: the request's token ids, prompt and output."""
    return numpy.array(request.all_token_ids[first_token:end_token], dtype=numpy.uint32)
