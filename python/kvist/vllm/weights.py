"""Which weights computed the KV: digests of files, or the commit that a hub names them by.

A model or adapter comes from a local folder or file, whose weight files are digested (SHA-256,
kvist.fingerprint_file: remembered by device, inode, size and mtime in Config.fingerprint_folder, so
that a restart does not read 16 GB again), or from a Hugging Face hub, where the commit of the
snapshot that vLLM loaded names all bytes. What cannot be known so ends the start with a ValueError
that says what to do: a guess could bring back another model's KV.

Owns: nothing but the notes in the fingerprint folder. Threads: any.
Limits: who changes a file's bytes and keeps its size and mtime is not noticed.
"""

from __future__ import annotations

import logging
import os
import re
from typing import TYPE_CHECKING, Any

import kvist
from kvist.vllm.canonical import canonical_digest
from kvist.vllm.config import Config

if TYPE_CHECKING:
    from vllm.config import ModelConfig

logger = logging.getLogger("kvist.vllm")

WEIGHT_SUFFIXES = (
    ".safetensors", ".bin", ".pt", ".pth", ".gguf", ".npz", ".npy", ".ckpt", ".msgpack", ".tensors",
)  # fmt: skip
CODE_SUFFIX = ".py"  # a model can bring code of its own
ADAPTER_FILES = ("adapter_config.json",)
SNAPSHOT = re.compile(r"/models--(?P<repository>[^/]+)/snapshots/(?P<commit>[0-9a-f]{40})(/|$)")


def of_model(model_config: ModelConfig, load_format: str, config: Config) -> Any:
    """What stands for the model's weights among the facts of identity.py, as plain values."""
    if config.model_identity:
        return {"named": config.model_identity}
    if load_format == "dummy":
        return {"dummy": model_config.seed}
    if model_config.model_weights:
        raise ValueError(
            f"kvist: the weights of {model_config.model_weights} are streamed from elsewhere and "
            "cannot be digested; name them with kv_connector_extra_config's model_identity"
        )
    return of_place(str(model_config.model), model_config.revision, config)


def of_place(place: str, revision: str | None, config: Config) -> Any:
    """place: a file, a folder, or a hub's repository at that revision (None: its main one).
    ValueError: nothing is known of it here."""
    place = os.path.expanduser(place)
    if os.path.isfile(place):
        return {"files": {"": _digest(place, config)}}
    folder = place if os.path.isdir(place) else snapshot_folder(place, revision)
    found = SNAPSHOT.search(os.path.abspath(folder))
    if found is not None:
        return {"repository": found["repository"], "commit": found["commit"]}
    named = weight_files(folder)
    if not any(name.endswith(WEIGHT_SUFFIXES) for name, _ in named):
        raise ValueError(
            f"kvist: {folder} holds no weight files ({', '.join(WEIGHT_SUFFIXES)}); name its "
            "weights with kv_connector_extra_config's model_identity"
        )
    return {"files": {name: _digest(path, config) for name, path in named}}


def snapshot_folder(repository: str, revision: str | None) -> str:
    """Where the hub's snapshot that vLLM has loaded lies."""
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(repository, revision=revision, local_files_only=True)
    except Exception as error:  # of several libraries below
        raise ValueError(
            f"kvist: {repository} is neither a folder nor in the local cache of the hub: {error}; "
            "name its weights with kv_connector_extra_config's model_identity"
        ) from error


def weight_files(folder: str) -> list[tuple[str, str]]:
    """(name within the folder, path) of all that may hold weights, or code that computes with them,
    sorted; links are followed."""
    found = []
    for above, _, names in os.walk(folder, followlinks=True):
        for name in names:
            path = os.path.join(above, name)
            if name.endswith((*WEIGHT_SUFFIXES, CODE_SUFFIX)) or name in ADAPTER_FILES:
                found.append((os.path.relpath(path, folder), path))
    return sorted(found)


def _digest(path: str, config: Config) -> str:
    folder: str | None = config.fingerprint_folder
    try:
        os.makedirs(config.fingerprint_folder, mode=0o700, exist_ok=True)
    except OSError as error:
        logger.warning(
            "digests of weights cannot be remembered in %s (%s): every start reads them all",
            config.fingerprint_folder,
            error,
        )
        folder = None
    return kvist.fingerprint_file(path, cache_folder=folder).hex()


class Adapters:
    """Names of LoRA adapters that carry their content: "NAME@DIGEST".

    An adapter is digested when a request first names it, about when vLLM loads it. Should its files
    change later, nobody can tell which of both vLLM has loaded, so requests for it bypass the store
    until vLLM is started anew (or the adapter is loaded under another name or number).

    Threads: one. Errors: none: an adapter that cannot be digested is bypassed, with a warning.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._known: dict[tuple[str, int, str], tuple[Any, str | None]] = {}

    def name_of(self, lora_name: str, number: int, path: str) -> str | None:
        """None: this adapter is bypassed."""
        key = (lora_name, number, path)
        signature = _signature(path)
        known = self._known.get(key)
        if known is None:
            known = (signature, self._named(lora_name, path))
        elif known[1] is not None and known[0] != signature:
            logger.warning(
                "adapter %s: its files in %s changed while vLLM runs: its requests bypass the "
                "store from now on; load it under another name to have them cached",
                lora_name,
                path,
            )
            known = (signature, None)
        self._known[key] = known
        return known[1]

    def _named(self, lora_name: str, path: str) -> str | None:
        try:
            content = of_place(path, None, self._config)
        except (ValueError, OSError, kvist.KvistError) as error:
            logger.warning("adapter %s: its requests bypass the store: %s", lora_name, error)
            return None
        return f"{lora_name}@{canonical_digest(content).hex()}"


def _signature(path: str) -> Any:
    """Of the state of an adapter's files, or where the hub's snapshot lies; None: not known."""
    path = os.path.expanduser(path)
    try:
        if not os.path.exists(path):
            return snapshot_folder(path, None)
        if os.path.isfile(path):
            return _state(path)
        return tuple((name, _state(file)) for name, file in weight_files(path))
    except (OSError, ValueError):
        return None


def _state(path: str) -> tuple[int, ...]:
    status = os.stat(path)
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
