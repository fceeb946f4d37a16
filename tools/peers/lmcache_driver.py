"""LMCache in this process, without an engine: its local CPU and local disk backends.

A put allocates a memory object, copies the block in and submits it. A get from memory copies the
block out; a get from disk is what the backend hands out: a memory object of its own pool.
"""
import asyncio
import importlib.metadata
import os
import shutil
import threading
import time

os.environ.setdefault("LMCACHE_TRACK_USAGE", "false")
os.environ.setdefault("LMCACHE_LOG_LEVEL", "ERROR")

import torch  # noqa: E402
from lmcache.utils import CacheEngineKey  # noqa: E402
from lmcache.v1.config import LMCacheEngineConfig  # noqa: E402
from lmcache.v1.memory_management import MemoryFormat  # noqa: E402
from lmcache.v1.metadata import LMCacheMetadata  # noqa: E402
from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend  # noqa: E402
from lmcache.v1.storage_backend.local_disk_backend import LocalDiskBackend  # noqa: E402

from driver import Driver, folder  # noqa: E402

GIB = 1 << 30


class LMCache(Driver):
    can = "ram-put ram-get disk-put disk-get"

    def __init__(self):
        self.name = f"LMCache {importlib.metadata.version('lmcache')}, in process"
        self.folder = os.path.join(folder(), "lmcache")
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.cpu = self.disk = None

    def key(self, number):
        return CacheEngineKey("m", 1, 0, self.generation << 32 | number, torch.float16)

    def empty(self, tier, object_bytes, object_count):
        self.forget()
        shutil.rmtree(self.folder, ignore_errors=True)
        os.makedirs(self.folder)
        self.generation = 1
        self.object_bytes = object_bytes
        all_gib = object_bytes * object_count / GIB
        metadata = LMCacheMetadata("m", 1, 1, 0, 0, torch.float16, (1, 2, 256, 8, 128))
        disk = tier == "disk"
        config = LMCacheEngineConfig.from_defaults(
            chunk_size=256, local_cpu=True,
            max_local_cpu_size=all_gib / 2 + 0.25 if disk else all_gib + 0.25,
            **({"local_disk": self.folder, "max_local_disk_size": 2 * all_gib + 1} if disk else {}),
            extra_config={"use_odirect": True})
        self.cpu = LocalCPUBackend(config, metadata, dst_device="cpu")
        if disk:
            self.disk = LocalDiskBackend(config, self.loop, self.cpu, dst_device="cpu",
                                         metadata=metadata)

    def before_put(self, numbers):
        for number in numbers:
            if self.disk is not None:
                self.disk.remove(self.key(number))
            elif self.cpu.contains(self.key(number)):
                self.cpu.remove(self.key(number))
        if self.disk is not None:
            os.sync()

    def put(self, number):
        memory = self.cpu.allocate(torch.Size([2, 1, self.object_bytes // 512, 128]),
                                   torch.float16, MemoryFormat.KV_2LTD)
        if memory is None:
            raise RuntimeError("LMCache has no memory for the object")
        memory.byte_array.cast("B")[:self.object_bytes] = self.source.place(number)
        (self.disk or self.cpu).submit_put_task(self.key(number), memory)
        memory.ref_count_down()

    def settle(self):
        while self.disk is not None and self.disk.disk_worker.put_tasks:
            time.sleep(0.0005)

    def get(self, number, landing):
        memory = (self.disk or self.cpu).get_blocking(self.key(number))
        if memory is None:
            raise RuntimeError(f"object {number} is not there")
        place = memory.byte_array.cast("B")[:self.object_bytes]
        if self.disk is None:
            self.landing.place(landing)[:] = place
            place = self.landing.place(landing)
        memory.ref_count_down()
        return place

    def forget(self):
        if self.cpu is not None:
            self.cpu.clear()
        self.cpu = self.disk = None

    def close(self):
        shutil.rmtree(self.folder, ignore_errors=True)


if __name__ == "__main__":
    LMCache().serve()
    os._exit(0)  # its threads do not end
