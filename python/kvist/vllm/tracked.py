"""A request, as the connector's scheduler side knows it: from its first look-up to its end.

Shared by scheduler.py (who makes and ends it), finding.py (the look-up) and saves.py (the saves);
each writes its own part. Borrows: the request, vLLM's. Threads: the scheduler's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvist.vllm.lookups import Answer
from kvist.vllm.metadata import Owner

if TYPE_CHECKING:
    from vllm.v1.request import Request


@dataclass
class Tracked:
    """owner: None: the request bypasses the store. number: what the store knows it by."""

    request: Request
    owner: Owner | None
    number: int

    # The look-up: finding.py.
    first_asked_s: float | None = None
    asked_s: float = 0.0
    answer: Answer | None = None
    local_tokens: int = 0  # what vLLM had itself, at the last look-up
    announced: int = 0  # blocks that a prefill instance has announced
    told: bool = False  # the answer is among the figures

    # The load: scheduler.py.
    load_pages: frozenset[int] | None = None  # while one is under way
    load_failed: bool = False  # nothing more is loaded for it

    # Saves: saves.py.
    sequence: int | None = None
    next_block: int = 0
    save_from_s: float = 0.0
