"""What a user can say to the connector: kv_connector_extra_config, validated.

OPTIONS is the one list of what there is, with type, default, bounds and meaning; docs/vllm.md's
table is written from it. Everything has a default: without any option the connector attaches to
the kvist-store that its user starts without any.

Errors: ValueError that names the key, the bound and what to do.
"""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Union

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = logging.getLogger("kvist.vllm")

PRIORITIES = ("interactive", "batch", "background")
NAME_LENGTH_MAX = 63  # of a domain
TENANT_BYTES_MAX = 31  # kvist.h: KVIST_TENANT_BYTES_MAX
SOCKET_BYTES_MAX = 107  # of a Unix socket's path
TENANT_EXCLUDED = " \\=:,"

Value = Union[str, int, float, bool]


@dataclass(frozen=True)
class Option:
    """One key. kind: str, int, float or bool. Bounds are inclusive; of a str: its length in bytes.
    choices: of a str, all that it may be; empty: anything within the bounds."""

    name: str
    kind: type[Any]
    default: Value
    least: float
    most: float
    help: str
    choices: tuple[str, ...] = ()


OPTIONS = (
    Option(
        "socket", str, "", 0, SOCKET_BYTES_MAX,
        "client socket of this host's kvist-store (its store.socket); empty: where kvist-store has "
        "it by default, kvist/store-clients.sock in $XDG_RUNTIME_DIR, or in /tmp/kvist-UID",
    ),
    Option(
        "domain", str, "default", 1, NAME_LENGTH_MAX,
        "domain of that kvist-store (store.domains): who shares what is stored",
    ),
    Option(
        "tenant", str, "", 0, TENANT_BYTES_MAX,
        "whose blocks these are, for quotas and accounting; who may find them is the domain's and "
        "the cache salt's matter",
    ),
    Option(
        "priority", str, "interactive", 0, 0,
        "class of what is stored: under pressure background blocks go first, then batch",
        choices=PRIORITIES,
    ),
    Option(
        "expire_after_s", float, 0.0, 0, 10 * 365 * 86400,
        "stored blocks are a miss from so many seconds after they were stored on; 0: no limit",
    ),
    Option(
        "minimum_hit_blocks", int, 1, 1, 1 << 20,
        "a hit of fewer blocks than this is computed instead of loaded",
    ),
    Option(
        "pending_wait_s", float, 5.0, 0, 600,
        "how long a request waits for blocks that another is storing at this moment, or that a "
        "prefill instance has announced, before it computes them; 0: not at all",
    ),
    Option(
        "save_wait_s", float, 10.0, 0.1, 600,
        "how long a block waits for room in the store before it is given up; its page in vLLM's "
        "memory stays taken until then",
    ),
    Option(
        "save_generated", bool, True, 0, 0,
        "store blocks of generated tokens too, not of prompts alone: what the next turn of a "
        "conversation begins with",
    ),
    Option(
        "model_identity", str, "", 0, 255,
        "a name that stands for the model's weights in place of their digest. Whoever gives two "
        "different weights one name gets wrong answers; empty: weights are digested, or known by "
        "their commit",
    ),
    Option(
        "fingerprint_folder", str, "", 0, 4096,
        "where digests of weight files are remembered, so that a restart does not read them again; "
        "empty: kvist/fingerprints in $XDG_CACHE_HOME or ~/.cache",
    ),
)


def default_socket() -> str:
    """Where a kvist-store that was started without store.socket and node.name is reached."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    folder = f"{runtime}/kvist" if runtime else f"/tmp/kvist-{os.getuid()}"
    return f"{folder}/store-clients.sock"


def default_fingerprint_folder() -> str:
    cache = os.environ.get("XDG_CACHE_HOME", "") or os.path.expanduser("~/.cache")
    return os.path.join(cache, "kvist", "fingerprints")


@dataclass(frozen=True)
class Config:
    """The options, in the types of OPTIONS (defaults filled in), and what vLLM's own settings say.

    saves, loads: what kv_role allows. announces: each finished request tells what it stored
    (kv_producer); with kv_both only requests that ask for it do.
    """

    socket: str
    domain: str
    tenant: str
    priority: str
    expire_after_s: float
    minimum_hit_blocks: int
    pending_wait_s: float
    save_wait_s: float
    save_generated: bool
    model_identity: str
    fingerprint_folder: str
    saves: bool
    loads: bool
    announces: bool

    @classmethod
    def of(cls, vllm_config: VllmConfig) -> Config:
        """ValueError: what kv_transfer_config says is not to be had."""
        transfer = vllm_config.kv_transfer_config
        if transfer is None:
            raise ValueError("kvist: there is no --kv-transfer-config")
        values = validated(transfer.kv_connector_extra_config)
        values["socket"] = values["socket"] or default_socket()
        values["fingerprint_folder"] = values["fingerprint_folder"] or default_fingerprint_folder()
        return cls(
            **values,
            saves=transfer.is_kv_producer,
            loads=transfer.is_kv_consumer,
            announces=transfer.kv_role == "kv_producer",
        )


def validated(given: dict[str, Any]) -> dict[str, Any]:
    """All options by name: those given, in the option's type, and defaults. given: as a user wrote
    it. ValueError: the first that is wrong."""
    known = {option.name: option for option in OPTIONS}
    for name in given:
        if name not in known:
            raise ValueError(
                f"kvist: kv_connector_extra_config has no option {name!r}; there are: "
                + ", ".join(sorted(known))
            )
    return {
        option.name: checked(option, given[option.name]) if option.name in given else option.default
        for option in OPTIONS
    }


def checked(option: Option, value: Any) -> Value:
    """The value in the option's type. ValueError: it is not of that type, or out of bounds."""
    where = f"kvist: kv_connector_extra_config: {option.name}"
    if option.kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    # bool is an int to Python, not to a user.
    if not isinstance(value, option.kind) or (isinstance(value, bool) != (option.kind is bool)):
        raise ValueError(f"{where}: {value!r} is no {KIND_NAMES[option.kind]}; {option.help}")
    if option.choices and value not in option.choices:
        raise ValueError(f"{where}: {value!r} is none of {', '.join(option.choices)}")
    if option.kind is str and not option.choices:
        _check_text(option, value, where)
    if option.kind in (int, float) and not option.least <= value <= option.most:
        raise ValueError(
            f"{where}: {value} is not from {_number(option.least)} to {_number(option.most)}"
        )
    return value


KIND_NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false"}


def _number(value: float) -> str:
    return str(int(value)) if math.isfinite(value) and value == int(value) else str(value)


def _check_text(option: Option, value: str, where: str) -> None:
    length = len(os.fsencode(value))
    if not option.least <= length <= option.most:
        raise ValueError(
            f"{where}: {length} bytes are not from {_number(option.least)} to "
            f"{_number(option.most)}: choose a shorter one"
        )
    if "\0" in value:
        raise ValueError(f"{where}: it holds a zero character")
    if option.name == "tenant":
        bad = [c for c in value if not 33 <= ord(c) <= 126 or c in TENANT_EXCLUDED]
        if bad:
            raise ValueError(
                f"{where}: {bad[0]!r} is not allowed: printable ASCII but blank and "
                f"{TENANT_EXCLUDED[1:]}"
            )
