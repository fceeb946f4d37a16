"""tools/cluster-demo does what it says, and leaves nothing behind however it ends."""
import glob
import os
import re
import signal
import subprocess
import sys
import time

import network
from cluster import PATIENCE, wait_until

DEMO = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tools/cluster-demo")
LIMIT_S = 400 * PATIENCE


def why_not():
    return network.why_not()


class Programs:
    """No cluster of this group's own: the demonstration makes one."""

    def __init__(self, binaries):
        self.binaries = binaries
        self.endpoint = "none"

    def nodes(self):
        return {}

    def alive(self):
        return {}

    def close(self, keep):
        pass

    def start(self, *options):
        return subprocess.Popen(
            [sys.executable, DEMO, "--bin", self.binaries, "--model", os.environ["KVIST_MODEL"],
             *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def make_cluster(binaries):
    return Programs(binaries)


def left_behind(pid):
    return [folder for folder in glob.glob("/tmp/kvist-demo-*") if folder.endswith(f"-{pid}")]


def test_demonstration(programs):
    demo = programs.start()
    text, _ = demo.communicate(timeout=LIMIT_S)
    assert demo.returncode == 0, text
    assert re.search(r"again .*of 7\d\d prompt tokens \d+ from ", text), text
    assert "came to the other one from its store" in text, text
    assert "to the byte, that of an undisturbed run" in text, text
    assert re.search(r"\d+ requests: 0 lost, 0 with another answer", text), text
    assert not left_behind(demo.pid)


def test_interrupted(programs):
    for number in (signal.SIGINT, signal.SIGTERM):
        demo = programs.start("--static")
        wait_until(lambda pid=demo.pid: left_behind(pid), 20, "its folder")
        time.sleep(1)
        demo.send_signal(number)
        demo.communicate(timeout=30)
        assert demo.returncode in (130, 143), demo.returncode
        assert not left_behind(demo.pid)
