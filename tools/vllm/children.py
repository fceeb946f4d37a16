"""The programs that a trial starts: each in a session of its own, none outlives the trial.

Children is the one list of them; leaving its `with` stops all, the latest first, also on ctrl-C.
Only what was started here is signalled, by the process group that it leads.
"""
import os
import signal
import subprocess
import time

STOP_LIMIT_S = 60
TAIL_BYTES = 4000


class ChildError(Exception):
    """A program did not do what it was started for; the text says which, and where its log is."""


class Child:
    def __init__(self, name, command, environment, log):
        """environment: beside the trial's own. log: its file, for standard output and error."""
        self.name, self.log = name, log
        with open(log, "ab") as file:
            self.process = subprocess.Popen(
                command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=file,
                stderr=file, start_new_session=True)

    def check_alive(self):
        """ChildError where it has ended."""
        status = self.process.poll()
        if status is not None:
            raise ChildError(f"{self.name} ended with status {status}: {self.last_words()}"
                             f"\n  log: {self.log}")

    def last_words(self):
        with open(self.log, "rb") as file:
            file.seek(max(0, os.path.getsize(self.log) - TAIL_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()
        errors = [line for line in lines if "Error" in line or "error" in line]
        return (errors or lines or ["it said nothing"])[-1].strip()

    def wait_until(self, condition, limit_s, what):
        """Asks condition() twice a second. ChildError: the child ended, or the limit passed."""
        end = time.monotonic() + limit_s
        while not condition():
            self.check_alive()
            if time.monotonic() > end:
                raise ChildError(f"{self.name}: {what} took more than {limit_s} s\n"
                                 f"  log: {self.log}")
            time.sleep(0.5)

    def stop(self):
        """Asks it to end, waits, then ends what is left of its group."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                pass
        end = time.monotonic() + 5
        while self._group_lives() and self.process.poll() is not None and time.monotonic() < end:
            time.sleep(0.1)
        if self._group_lives():
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _group_lives(self):
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True


class Children:
    def __init__(self):
        self.running = []

    def start(self, name, command, environment, log):
        child = Child(name, command, environment, log)
        self.running.append(child)
        return child

    def stop(self, child):
        child.stop()
        self.running.remove(child)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # A second ctrl-C must not leave a server behind.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        for child in reversed(self.running):
            child.stop()
        self.running.clear()
        signal.signal(signal.SIGINT, before)
