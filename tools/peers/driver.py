"""What every peer's driver shares: the protocol of README.md, cold memory, and the clock.

A driver is a subclass of Driver. serve() answers `kvist bench store --against` until its end.
"""
import ctypes
import json
import math
import mmap
import os
import sys
import time


class Memory:
    """Anonymous memory of many places, which are taken in turn: more than any cache holds."""

    def __init__(self, place_bytes, place_count):
        self.place_bytes = place_bytes
        self.place_count = place_count
        self.map = mmap.mmap(-1, place_bytes * place_count)
        self.view = memoryview(self.map)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))

    def fill(self):
        """Bytes that nothing makes smaller: a random MiB and a number on each page."""
        noise = os.urandom(1 << 20)
        for at in range(0, len(self.view), len(noise)):
            part = min(len(noise), len(self.view) - at)
            self.view[at:at + part] = noise[:part]
        for page in range(0, len(self.view), 4096):
            self.view[page:page + 8] = page.to_bytes(8, "little")

    def touch(self):
        for page in range(0, len(self.view), 4096):
            self.view[page] = 1

    def place(self, number):
        begin = number % self.place_count * self.place_bytes
        return self.view[begin:begin + self.place_bytes]

    def place_address(self, number):
        return self.address + number % self.place_count * self.place_bytes

    def close(self):
        # Other libraries may still export views of it; the memory goes with the last of them.
        self.view.release()


class Driver:
    """One peer. put and get are timed; the rest is not."""

    name = "?"
    can = ""  # of "ram-put ram-get disk-put disk-get"

    def empty(self, tier, object_bytes, object_count):
        """Gets ready for objects of that size, and holds none."""
        raise NotImplementedError

    def before_put(self, numbers):
        """Makes the next puts possible; they may overwrite."""

    def put(self, number):
        """Stores self.source.place(number) under the number."""
        raise NotImplementedError

    def settle(self):
        """Inside the time of puts: returns when what was put is where the tier says."""

    def before_get(self):
        """Makes the next gets cold."""

    def get(self, number, landing):
        """Loads the object of that number into self.landing.place(landing), or holds it where the
        peer hands it out; returns something whose bytes() is the object."""
        raise NotImplementedError

    def close(self):
        """Ends the peer."""

    def prepare(self, tier, object_bytes, object_count):
        self.source = Memory(object_bytes, object_count)
        self.source.fill()
        self.landing = Memory(object_bytes, object_count)
        self.landing.touch()
        self.count = object_count
        self.step = next(step for step in range(max(1, object_count * 618 // 1000), 0, -1)
                         if math.gcd(step, object_count) == 1)
        self.put_count = self.get_count = 0
        self.empty(tier, object_bytes, object_count)
        self.time_puts(object_count)

    def time_puts(self, count):
        numbers = [(self.put_count + i) % self.count for i in range(count)]
        self.put_count += count
        self.before_put(numbers)
        begun = time.perf_counter()
        for number in numbers:
            self.put(number)
        self.settle()
        return time.perf_counter() - begun

    def time_gets(self, count):
        first = self.get_count
        self.get_count += count
        numbers = [i * self.step % self.count for i in range(first, first + count)]
        self.before_get()
        begun = time.perf_counter()
        for landing, number in enumerate(numbers, first):
            got = self.get(number, landing)
        seconds = time.perf_counter() - begun
        if bytes(got) != bytes(self.source.place(numbers[-1])):
            raise RuntimeError(f"object {numbers[-1]} came back with other bytes")
        return seconds

    def answer(self, words):
        if words[0] == "prepare":
            self.prepare(words[1], int(words[2]), int(words[3]))
            return {}
        if words[0] == "put":
            return {"seconds": self.time_puts(int(words[1]))}
        if words[0] == "get":
            return {"seconds": self.time_gets(int(words[1]))}
        raise ValueError(f"unknown call {words[0]}")

    def serve(self):
        # The peer's own libraries print where they like: the answers keep the real output.
        output = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        try:
            print(json.dumps({"name": self.name, "can": self.can}), file=output, flush=True)
            for line in sys.stdin:
                try:
                    answer = self.answer(line.split())
                except Exception as error:  # the other side must hear of any failure
                    answer = {"error": f"{type(error).__name__}: {error}"[:1000]}
                print(json.dumps(answer), file=output, flush=True)
        finally:
            self.close()


def folder():
    """Where the peer may keep files: a folder of its own on the disk that is measured."""
    path = os.environ.get("KVIST_PEER_FOLDER")
    if not path:
        sys.exit("KVIST_PEER_FOLDER is not set: run tools/peers/run")
    os.makedirs(path, exist_ok=True)
    return path
