"""Mooncake's store: a master process, a process that owns the memory, and this client over TCP.

With KVIST_PEER_SAME_PROCESS=1 the client owns the memory itself: then no byte crosses a socket.
"""
import importlib.metadata
import os
import socket
import subprocess
import sys
import time

os.environ.setdefault("MC_LOG_LEVEL", "ERROR")
os.environ.setdefault("GLOG_minloglevel", "2")

from mooncake.store import MooncakeDistributedStore  # noqa: E402

from driver import Driver, folder  # noqa: E402

LEASE_MS = 500  # an object cannot be removed before
BUFFER_BYTES = 256 << 20


def connect(port, segment_bytes):
    store = MooncakeDistributedStore()
    code = store.setup("127.0.0.1", "P2PHANDSHAKE", segment_bytes, BUFFER_BYTES, "tcp", "",
                       f"127.0.0.1:{port}")
    if code != 0:
        raise RuntimeError(f"Mooncake's setup answered {code}")
    return store


def own(port, segment_bytes):
    """The other process: holds the memory until it is ended."""
    store = connect(port, segment_bytes)
    print("up", flush=True)
    sys.stdin.read()
    return store


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Mooncake(Driver):
    can = "ram-put ram-get"

    def __init__(self):
        names = [name for name in ("mooncake-transfer-engine-non-cuda", "mooncake-transfer-engine")
                 if any(d.metadata["Name"] == name for d in importlib.metadata.distributions())]
        self.same_process = os.environ.get("KVIST_PEER_SAME_PROCESS") == "1"
        where = "same process" if self.same_process else "TCP"
        self.name = f"Mooncake store {importlib.metadata.version(names[0])}, {where}"
        self.processes = []
        self.store = None

    def start(self, segment_bytes):
        port, log = free_port(), open(os.path.join(folder(), "mooncake.log"), "ab")
        master = os.path.join(os.path.dirname(sys.executable), "mooncake_master")
        self.processes.append(subprocess.Popen(
            [master, "-rpc_port", str(port), "-metrics_port", str(free_port()),
             "-rpc_address=127.0.0.1", "-default_kv_lease_ttl", str(LEASE_MS)],
            stdout=log, stderr=log))
        time.sleep(2)
        if not self.same_process:
            owner = subprocess.Popen([sys.executable, __file__, str(port), str(segment_bytes)],
                                     stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
            self.processes.append(owner)
            if owner.stdout.readline().strip() != b"up":
                raise RuntimeError("the process that owns Mooncake's memory did not start")
        self.store = connect(port, segment_bytes if self.same_process else 0)

    def empty(self, tier, object_bytes, object_count):
        self.close()
        self.generation = 0
        self.start(2 * object_bytes * object_count + (512 << 20))
        self.store.register_buffer(self.source.address, len(self.source.view))
        self.store.register_buffer(self.landing.address, len(self.landing.view))

    def before_put(self, numbers):
        """What is stored is not changed: the last puts go, and these have names of their own."""
        time.sleep(2 * LEASE_MS / 1000)
        self.store.remove_all()
        time.sleep(0.1)
        self.generation += 1

    def key(self, number):
        return f"{self.generation}-{number}"

    def put(self, number):
        code = self.store.put_from(self.key(number), self.source.place_address(number),
                                   self.source.place_bytes)
        if code != 0:
            raise RuntimeError(f"put_from answered {code}")

    def get(self, number, landing):
        size = self.store.get_into(self.key(number), self.landing.place_address(landing),
                                   self.landing.place_bytes)
        if size != self.landing.place_bytes:
            raise RuntimeError(f"get_into answered {size}")
        return self.landing.place(landing)

    def close(self):
        if self.store is not None:
            self.store.close()
            self.store = None
        for process in reversed(self.processes):
            process.kill()
            process.wait()
        self.processes = []


if __name__ == "__main__":
    if len(sys.argv) == 3:
        own(int(sys.argv[1]), int(sys.argv[2]))
    else:
        Mooncake().serve()
    os._exit(0)  # its threads do not end
