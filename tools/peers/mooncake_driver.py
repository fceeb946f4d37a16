"""Mooncake's store: a master process, a process that owns the memory, and this client over TCP.

With KVIST_PEER_SAME_PROCESS=1 the client owns the memory itself: then no byte crosses a socket.
disk: the owner offloads to files, in its own time; gets are of objects that lie only there.
"""
import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
import time

os.environ.setdefault("MC_LOG_LEVEL", "ERROR")
os.environ.setdefault("GLOG_minloglevel", "2")

from mooncake.store import MooncakeDistributedStore  # noqa: E402

from driver import Driver, drop_cached, folder  # noqa: E402

PUT_TRIES = 1000
LEASE_MS = 500  # an object cannot be removed before
BUFFER_BYTES = 256 << 20


def connect(port, segment_bytes, offload_folder=None):
    store = MooncakeDistributedStore()
    offload = {"enable_ssd_offload": True, "ssd_offload_path": offload_folder}
    code = store.setup("127.0.0.1", "P2PHANDSHAKE", segment_bytes, BUFFER_BYTES, "tcp", "",
                       f"127.0.0.1:{port}", **(offload if offload_folder else {}))
    if code != 0:
        raise RuntimeError(f"Mooncake's setup answered {code}")
    return store


def own(port, segment_bytes, offload_folder):
    """The other process: holds the memory until it is ended."""
    store = connect(port, segment_bytes, offload_folder)
    print("up", flush=True)
    sys.stdin.read()
    return store


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Mooncake(Driver):
    def __init__(self):
        names = [name for name in ("mooncake-transfer-engine-non-cuda", "mooncake-transfer-engine")
                 if any(d.metadata["Name"] == name for d in importlib.metadata.distributions())]
        self.same_process = os.environ.get("KVIST_PEER_SAME_PROCESS") == "1"
        where = "same process" if self.same_process else "TCP"
        self.can = "ram-put ram-get" if self.same_process else "ram-put ram-get disk-get"
        self.name = f"Mooncake store {importlib.metadata.version(names[0])}, {where}"
        self.folder = os.path.join(folder(), "mooncake")
        self.processes = []
        self.store = None

    def start(self, segment_bytes):
        port, log = free_port(), open(os.path.join(folder(), "mooncake.log"), "ab")
        master = os.path.join(os.path.dirname(sys.executable), "mooncake_master")
        self.processes.append(subprocess.Popen(
            [master, "-rpc_port", str(port), "-metrics_port", str(free_port()),
             "-rpc_address=127.0.0.1", "-default_kv_lease_ttl", str(LEASE_MS),
             *(["-enable_offload=true"] if self.disk else [])], stdout=log, stderr=log))
        time.sleep(2)
        if not self.same_process:
            environment = dict(os.environ, MOONCAKE_OFFLOAD_FILE_STORAGE_PATH=self.folder,
                               MOONCAKE_OFFLOAD_HEARTBEAT_INTERVAL_SECONDS="1",
                               MOONCAKE_OFFLOAD_STORAGE_BACKEND_DESCRIPTOR="bucket_storage_backend")
            owner = subprocess.Popen(
                [sys.executable, __file__, str(port), str(segment_bytes),
                 self.folder if self.disk else ""],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment)
            self.processes.append(owner)
            if owner.stdout.readline().strip() != b"up":
                raise RuntimeError("the process that owns Mooncake's memory did not start")
        self.store = connect(port, segment_bytes if self.same_process else 0)

    def empty(self, tier, object_bytes, object_count):
        self.close()
        self.disk = tier == "disk"
        self.generation = 0
        shutil.rmtree(self.folder, ignore_errors=True)
        os.makedirs(self.folder)
        # From disk: memory holds a quarter of the objects, the rest must have been offloaded.
        all_bytes = object_bytes * object_count
        self.start(all_bytes // 4 if self.disk else 2 * all_bytes + (512 << 20))
        self.store.register_buffer(self.source.address, len(self.source.view))
        self.store.register_buffer(self.landing.address, len(self.landing.view))

    def prepare(self, tier, object_bytes, object_count):
        super().prepare(tier, object_bytes, object_count)
        if self.disk:
            time.sleep(5)  # offloading goes on in the background
            self.numbers = [number for number in range(object_count) if self.only_on_disk(number)]
            if len(self.numbers) * 4 < object_count:
                raise RuntimeError(f"only {len(self.numbers)} of {object_count} lie on disk")

    def only_on_disk(self, number):
        replicas = self.store.get_replica_desc(self.key(number))
        return len(replicas) > 0 and not any(each.is_memory_replica() for each in replicas)

    def order(self, first, count):
        if not self.disk:
            return super().order(first, count)
        return [self.numbers[i % len(self.numbers)] for i in super().order(first, count)]

    def before_get(self):
        if self.disk:  # it reads through the page cache
            drop_cached(self.folder)

    def before_put(self, numbers):
        """What is stored is not changed: the last puts go, and these have names of their own."""
        time.sleep(2 * LEASE_MS / 1000)
        self.store.remove_all()
        time.sleep(0.1)
        self.generation += 1

    def key(self, number):
        return f"{self.generation}-{number}"

    def put(self, number):
        for _ in range(PUT_TRIES if self.disk else 1):  # memory is full until some was offloaded
            code = self.store.put_from(self.key(number), self.source.place_address(number),
                                       self.source.place_bytes)
            if code == 0:
                return
            time.sleep(0.02)
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
        shutil.rmtree(self.folder, ignore_errors=True)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        own(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] or None)
    else:
        Mooncake().serve()
    os._exit(0)  # its threads do not end
