"""Redis over its Unix socket, with a client that sends from and receives into the caller's memory.

ram: nothing is persisted. disk: the append-only file, written through every second.
"""
import os
import re
import shutil
import socket
import subprocess
import time

from driver import Driver, folder


class Redis(Driver):
    can = "ram-put ram-get disk-put"

    def __init__(self):
        version = subprocess.run(["redis-server", "--version"], capture_output=True, text=True,
                                 check=True).stdout
        self.name = f"Redis {re.search(r'v=([0-9.]+)', version).group(1)}, unix socket"
        self.folder = os.path.join(folder(), "redis")
        self.server = None

    def call(self, *words):
        """A small command; its answer's first line."""
        text = b"*%d\r\n" % len(words)
        for word in words:
            text += b"$%d\r\n%s\r\n" % (len(word), word)
        self.socket.sendall(text)
        return self.line()

    def line(self):
        answer = b""
        while not answer.endswith(b"\r\n"):
            part = self.socket.recv(1)
            if not part:
                raise RuntimeError("Redis closed the connection")
            answer += part
        if answer.startswith(b"-"):
            raise RuntimeError(answer.decode().strip())
        return answer

    def start(self, *options):
        shutil.rmtree(self.folder, ignore_errors=True)
        os.makedirs(self.folder)
        # A socket's path is short; the folder's may not be.
        path = os.path.relpath(os.path.join(self.folder, "s"))
        self.server = subprocess.Popen(
            ["redis-server", "--port", "0", "--unixsocket", "s", "--dir", self.folder,
             "--save", "", *options], stdout=subprocess.DEVNULL, cwd=self.folder)
        for _ in range(400):
            time.sleep(0.05)
            self.socket = socket.socket(socket.AF_UNIX)
            try:
                self.socket.connect(path)
                self.call(b"PING")
                return
            except (OSError, RuntimeError):
                self.socket.close()
        raise RuntimeError("Redis did not start")

    def empty(self, tier, object_bytes, object_count):
        self.close()
        self.disk = tier == "disk"
        self.start(*(["--appendonly", "yes", "--appendfsync", "everysec",
                      "--auto-aof-rewrite-percentage", "0"] if self.disk else []))

    def before_put(self, numbers):
        if self.disk:  # the file must not grow for ever: Redis' own rewrite, outside the time
            self.call(b"FLUSHALL")
            self.call(b"BGREWRITEAOF")
            while self.rewriting():
                time.sleep(0.05)

    def rewriting(self):
        head = self.call(b"INFO", b"persistence")
        left, body = int(head[1:]) + 2, b""
        while left > len(body):
            body += self.socket.recv(left - len(body))
        return b"aof_rewrite_in_progress:1" in body or b"aof_rewrite_scheduled:1" in body

    def put(self, number):
        value = self.source.place(number)
        key = b"%016d" % number
        self.socket.sendall(b"*3\r\n$3\r\nSET\r\n$16\r\n%s\r\n$%d\r\n" % (key, len(value)))
        self.socket.sendall(value)
        self.socket.sendall(b"\r\n")
        if self.socket.recv(64) != b"+OK\r\n":
            raise RuntimeError("SET was refused")

    def get(self, number, landing):
        place = self.landing.place(landing)
        self.socket.sendall(b"*2\r\n$3\r\nGET\r\n$16\r\n%016d\r\n" % number)
        head = b"$%d\r\n" % len(place)
        if self.socket.recv(len(head), socket.MSG_WAITALL) != head:
            raise RuntimeError("GET found nothing")
        at = 0
        while at < len(place):
            at += self.socket.recv_into(place[at:])
        self.socket.recv(2, socket.MSG_WAITALL)
        return place

    def close(self):
        if self.server is not None:
            self.socket.close()
            self.server.kill()
            self.server.wait()
            self.server = None
            shutil.rmtree(self.folder, ignore_errors=True)


if __name__ == "__main__":
    Redis().serve()
