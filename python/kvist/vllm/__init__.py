"""vLLM as a client of Kvist: a KV connector over the host's kvist-store.

    vllm serve MODEL --kv-transfer-config '{"kv_connector": "KvistConnector",
        "kv_connector_module_path": "kvist.vllm", "kv_role": "kv_both"}'

docs/vllm.md has options, what is shared with whom, and limits. Importing this module needs vLLM;
ImportError: vLLM's interface is not the one that this was made for, with what moved.
"""

from __future__ import annotations

from kvist.vllm import interface

interface.check()

from kvist.vllm.connector import KvistConnector  # noqa: E402  the check comes first

__all__ = ["KvistConnector"]
