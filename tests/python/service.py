"""A kvist-store of a test's own: a real process, in a folder of its own."""
import ctypes
import os
import signal
import socket
import subprocess
import tempfile
import time

PR_SET_PDEATHSIG = 1
LIMIT_S = 60  # for a start on a busy machine


class Service:
    """kvist-store, started, killed, stopped and started again over the same folder.

    options: by name, as `host_bytes="64MiB"`: --store.host_bytes=64MiB.

    Start it from a thread that outlives it: it ends with the thread that started it.
    """

    def __init__(self, folder=None, **options):
        self._own = tempfile.TemporaryDirectory(prefix="kvist-") if folder is None else None
        self.folder = folder or self._own.name
        self.socket = os.path.join(self.folder, "clients.sock")
        self.options = {"host_bytes": "32MiB", "disk_bytes": "256MiB", "segment_bytes": "8MiB",
                        **options}
        self.process = None
        self.log = os.path.join(self.folder, "log")
        self.start()

    @property
    def pid(self):
        return self.process.pid

    def start(self):
        """Returns when clients can attach."""
        words = [os.path.join(os.environ["KVIST_BIN"], "kvist-store"),
                 "--cluster.key=sixteen or more bytes", "--node.name=store-of-test",
                 f"--node.admin={self.folder}/admin.sock", f"--store.socket={self.socket}",
                 f"--store.directory={self.folder}/store"]
        words += [f"--store.{name}={value}" for name, value in self.options.items()]
        # A sanitizer's runtime that Python was given is not for it.
        environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                preexec_fn=_ends_with_its_parent)  # noqa: PLW1509
        end = time.monotonic() + LIMIT_S
        while not self._listens():
            assert self.process.poll() is None, f"kvist-store ended: {self.read_log()}"
            assert time.monotonic() < end, f"kvist-store does not listen: {self.read_log()}"
            time.sleep(0.01)

    def _listens(self):
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(self.socket)
            except OSError:
                return False
        return True

    def kill(self):
        """As by kill -9."""
        self.process.kill()
        self.process.wait()

    def pause(self):
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self):
        os.kill(self.pid, signal.SIGCONT)

    def close(self):
        if self.process.poll() is None:
            self.go_on()
            self.process.terminate()
            try:
                self.process.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                self.kill()
        if self._own is not None:
            self._own.cleanup()

    def read_log(self):
        with open(self.log, encoding="utf-8", errors="replace") as file:
            return file.read()[-3000:]

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.close()


_libc = ctypes.CDLL(None)


def _ends_with_its_parent():
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond a limit fails, and no more
