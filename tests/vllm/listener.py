"""A consumer of vLLM's KV events, as a router is one; runs in vLLM's own environment.

usage: listener.py ENDPOINT

Subscribes there and prints a line of JSON for each event, as vLLM's own types decode it: its type
and its fields by name. The first line is {"type": "listening"}; ends with its standard input.
"""
from __future__ import annotations

import json
import os
import sys
import threading

import msgspec
import zmq
from vllm.distributed.kv_events import KVEventBatch


def main(endpoint: str) -> None:
    socket = zmq.Context().socket(zmq.SUB)
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    socket.connect(endpoint)
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    print(json.dumps({"type": "listening"}), flush=True)
    while True:
        _topic, _number, payload = socket.recv_multipart()
        for event in msgspec.msgpack.decode(payload, type=KVEventBatch).events:
            fields = {name: getattr(event, name) for name in event.__struct_fields__}
            print(json.dumps({"type": type(event).__name__, **fields}, default=bytes.hex),
                  flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
