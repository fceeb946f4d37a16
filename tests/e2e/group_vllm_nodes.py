"""The gateway in front of vLLM servers (stand-ins that speak vLLM's doors): answers, what was
cached, tenants apart, and streams that go on when a server is killed in the middle.

    client -> gateway -> vllm-0
                      -> vllm-1
"""
import os
import shutil
import subprocess
import sys
import tempfile
import threading

import admin
from cluster import Cluster, Stream, is_alive, prose, wait_until

HERE = os.path.dirname(os.path.abspath(__file__))
PAUSE_S = 0.01  # a token of a server: an answer can be met in the middle
SERVERS = ("vllm-0", "vllm-1")


class Front(Cluster):
    """One gateway and its servers, started one by one."""

    def __init__(self, binaries):
        super().__init__(binaries)
        os.makedirs(os.path.join(self.folder, "logs"))
        self.processes, self.ports = {}, {}

    def log(self, name):
        return open(os.path.join(self.folder, "logs", name + ".log"), "ab")

    def start_server(self, name):
        command = [sys.executable, os.path.join(HERE, "vllm_server.py"), "--pause", str(PAUSE_S),
                   "--model", os.environ["KVIST_MODEL"], "--port", str(self.ports.get(name, 0))]
        with self.log(name) as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                       stderr=log)
        self.processes[name] = process
        self.ports[name] = int(process.stdout.readline())

    def start_gateway(self):
        nodes = ",".join(f"127.0.0.1:{self.ports[name]}" for name in SERVERS)
        self.admin = os.path.join(self.folder, "gateway.sock")
        with self.log("gateway") as log:
            self.processes["gateway"] = subprocess.Popen(
                [os.path.join(self.binaries, "kvist-gateway"), f"--node.admin={self.admin}",
                 f"--model.path={os.environ['KVIST_MODEL']}", "--gateway.http_port=0",
                 f"--gateway.vllm_nodes={nodes}"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(lambda: self.gateway_status() is not None, 60, "the gateway to be up")
        self.endpoint = "http://" + self.gateway_status()["http_address"]

    def gateway_status(self):
        return admin.status(self.admin)

    def up(self):
        for name in SERVERS:
            if name not in self.alive():
                self.start_server(name)
        if "gateway" not in self.alive():
            self.start_gateway()
        self.wait_for_servers(2)

    def wait_for_servers(self, count):
        wait_until(lambda: len(self.gateway_status()["peers"]) == count, 60,
                   f"{count} servers to be up")

    def nodes(self):
        return self.processes

    def alive(self):
        return {name for name, process in self.processes.items() if is_alive(process.pid)}

    def stop(self, name):
        process = self.processes[name]
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()

    def close(self, keep):
        for name in self.processes:
            self.stop(name)
        if keep:
            print(f"         kept for a look: {self.folder}/logs")
        else:
            shutil.rmtree(self.parent, ignore_errors=True)


def make_cluster(binaries):
    return Front(binaries)


def test_answers(cluster):
    question = prose(1, 200)
    first = cluster.chat(question, max_tokens=8)
    assert first.code == 200, first.body
    again = cluster.chat(question, max_tokens=8)
    assert first.text == again.text and len(first.text.split()) == 8, (first.text, again.text)
    stream = cluster.stream(question, max_tokens=8)
    stream.read()
    assert stream.done and stream.text == first.text, (stream.text, stream.error)


def test_cached_tokens(cluster):
    """Two servers: by the third time one of them is asked again."""
    question = prose(2, 200)
    cached = [cluster.chat(question, max_tokens=1).cached for _ in range(3)]
    assert cached[0] < 64 and cached[-1] > 200, cached


def test_salts_are_apart(cluster):
    question = prose(3, 200)
    for _ in range(3):
        assert cluster.chat(question, max_tokens=1, kvist={"salt": "one"}).code == 200
    other = cluster.chat(question, max_tokens=1, kvist={"salt": "two"})
    assert other.cached < 64, other.usage
    bypass = cluster.chat(question, max_tokens=1, kvist={"salt": "one", "cache_mode": "bypass"})
    assert bypass.cached == 0, bypass.usage


def test_a_killed_server(cluster):
    """Eight streams, and the server that has some of them killed in the middle."""
    questions = [prose(10 + i, 60) for i in range(8)]
    expected = [cluster.chat(question, max_tokens=80).text for question in questions]
    streams = [Stream(cluster, {
        "messages": [{"role": "user", "content": question}], "max_tokens": 80, "temperature": 0,
        "stream": True, "stream_options": {"include_usage": True}}) for question in questions]
    for stream in streams:
        stream.read(until=lambda one: len(one.text.split()) >= 3)
    threads = [threading.Thread(target=stream.read) for stream in streams]
    for thread in threads:
        thread.start()
    cluster.stop("vllm-0")
    for thread in threads:
        thread.join()
    for stream, text in zip(streams, expected):
        assert stream.done and stream.error is None, stream.error
        assert stream.text == text, f"{stream.text}\nis not\n{text}"
        assert stream.usage["completion_tokens"] == 80, stream.usage
    cluster.wait_for_servers(1)
    assert cluster.chat(questions[0], max_tokens=80).text == expected[0]
    cluster.up()


def test_none_is_up(cluster):
    for name in SERVERS:
        cluster.stop(name)
    cluster.wait_for_servers(0)
    answer = cluster.chat("Hello")
    assert answer.code == 503 and "no decode node is up" in answer.error(), answer.body
    cluster.up()
    assert cluster.chat("Hello", max_tokens=2).code == 200
