"""The connector's way to the host's kvist-store: an attached store on a thread of its own.

Errors: ValueError with what a user of vLLM can do. A kvist-store that is not there is no error: the
store attaches when it is.
"""

from __future__ import annotations

import kvist
from kvist.vllm import cores
from kvist.vllm.config import Config


def open_thread(config: Config, layout: kvist.Layout, name: str) -> kvist.StoreThread:
    """name: the thread's."""

    def open_store() -> kvist.Store:
        cores.leave_team()  # libkvist's own threads are started by this one
        return kvist.Store(layout, attach=config.socket, domain=config.domain)

    try:
        return kvist.StoreThread(open_store, name=name)
    except kvist.KvistError as error:
        remedy = ""
        if "layout" in error.text:
            remedy = (
                "; a domain has blocks of one layout: give this model one of its own, with "
                "kvist-store's store.domains and kv_connector_extra_config's domain"
            )
        raise ValueError(
            f"kvist: kvist-store at {config.socket}, domain {config.domain}: {error}{remedy}"
        ) from error
