"""What one prefill node has computed comes to another one from there, is used as if it were its
own, and is not waited for when the node that has it dies on the way; and what the nodes tell of it.

    client -> gateway-a -> decode-a -> prefill-a
                                           |  cluster.nodes
    client -> gateway-b -> decode-b -> prefill-b
"""
import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time

import admin
from cluster import Cluster, is_alive, prose, quiet_ports, wait_until

BLOCK_TOKENS, BLOCK_BYTES = 16, 368640
WORDS = 1000  # of a prompt: about 1,300 tokens, 30 MB of KV
SHARED_BLOCKS = 4  # at most: what the template puts before every question
SLICE_S = 0.002
HOUSES = ("a", "b")


class Door:
    """What asks one gateway, as a cluster does."""
    request, chat = Cluster.request, Cluster.chat

    def __init__(self, port):
        self.endpoint = f"http://127.0.0.1:{port}"


class TwoHouses:
    """Nodes started one by one. What run.py asks of a cluster, and a door to each house."""

    def __init__(self, binaries):
        self.binaries = os.path.abspath(binaries)
        self.parent = tempfile.mkdtemp(prefix="kvist-remote-", dir="/tmp")
        self.folder = os.path.join(self.parent, "c")
        for inner in ("run", "logs", "store"):
            os.makedirs(os.path.join(self.folder, inner))
        with open(f"{self.folder}/cluster.key", "w", encoding="ascii") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(secrets.token_hex(32) + "\n")
        self.names = [f"{role}-{house}" for role in ("prefill", "decode", "gateway")
                      for house in HOUSES]
        self.ports = dict(zip(self.names, quiet_ports(len(self.names))))
        self.processes = {}
        self.endpoint = None
        self.doors = [Door(self.ports[f"gateway-{house}"]) for house in HOUSES]

    def command(self, name):
        role, house = name.split("-")
        port = self.ports[name]
        words = [f"{self.binaries}/kvist-{role}", f"--node.name={name}",
                 f"--cluster.key_file={self.folder}/cluster.key",
                 f"--node.admin={self.folder}/run/{name}.sock",
                 f"--model.path={os.environ['KVIST_MODEL']}"]
        if role == "gateway":
            return words + [f"--gateway.http_port={port}",
                            f"--gateway.decode_nodes=127.0.0.1:{self.ports[f'decode-{house}']}"]
        words += [f"--node.port={port}", "--model.threads=1", "--store.device_bytes=256MiB",
                  "--store.host_bytes=64MiB", f"--store.directory={self.folder}/store/{name}"]
        if role == "decode":
            return words + [f"--decode.prefill_nodes=127.0.0.1:{self.ports[f'prefill-{house}']}"]
        nodes = ",".join(f"127.0.0.1:{self.ports[f'prefill-{one}']}" for one in HOUSES)
        return words + [f"--cluster.nodes={nodes}"]

    def up(self):
        for name in self.names:
            process = self.processes.get(name)
            if process is None or process.poll() is not None:
                with open(f"{self.folder}/logs/{name}.log", "ab") as log:
                    self.processes[name] = subprocess.Popen(
                        self.command(name), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(self.healthy, 60, "all nodes to be up and connected")
        self.record()
        self.endpoint = self.doors[0].endpoint

    def record(self):
        """So that kvist's commands find the prefill nodes."""
        members = [{"name": name, "admin": f"{self.folder}/run/{name}.sock",
                    "log": f"{self.folder}/logs/{name}.log", "pid": self.processes[name].pid,
                    "start_ticks": 0, "command": self.command(name)}
                   for name in ("prefill-a", "prefill-b", "gateway-a")]
        with open(f"{self.folder}/cluster.json", "w", encoding="utf-8") as file:
            json.dump({"endpoint": self.doors[0].endpoint, "model": os.environ["KVIST_MODEL"],
                       "nodes": members}, file)

    def healthy(self):
        ready = all(admin.status(self.socket_of(name)) is not None for name in self.names)
        return ready and all(self.metric(f"prefill-{house}", "kvist_remote_holders") == 2
                             for house in HOUSES)

    def nodes(self):
        return self.processes

    def alive(self):
        return {name for name, process in self.processes.items() if is_alive(process.pid)}

    def close(self, keep):
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
        if keep:
            print(f"         kept for a look: {self.folder}/logs")
        else:
            shutil.rmtree(self.parent, ignore_errors=True)

    def socket_of(self, name):
        return f"{self.folder}/run/{name}.sock"

    def metric(self, node, name):
        reply = admin.ask(self.socket_of(node), "metrics", limit_s=2)
        lines = reply["metrics"].splitlines() if reply is not None else ()
        values = (line.split()[-1] for line in lines if line.startswith(name + " "))
        return next((float(value) for value in values), None)

    def events(self, *options):
        run = subprocess.run([f"{self.binaries}/kvist", "events", "--dir", self.folder, *options],
                             capture_output=True, text=True, timeout=60, check=True)
        return [json.loads(line) for line in run.stdout.splitlines()]


def make_cluster(binaries):
    return TwoHouses(binaries)


def blocks_of(answer):
    """Whole blocks of the prompt before its last token: what can be found elsewhere."""
    return (answer.usage["prompt_tokens"] - 1) // BLOCK_TOKENS


def compute_at_a(houses, seed):
    """A new context, computed in house a; house b has heard of it."""
    before = houses.metric("prefill-b", "kvist_remote_entries")
    question = prose(seed, WORDS) + " What was it about?"
    answer = houses.doors[0].chat(question, max_tokens=24)
    assert answer.code == 200, answer.body
    assert answer.tiers["remote"] == 0, answer.tiers
    wait_until(lambda: houses.metric("prefill-b", "kvist_remote_entries") >=
               before + blocks_of(answer) - SHARED_BLOCKS, 20, "prefill-b to hear of it")
    return question, answer


def test_what_one_node_computed_comes_to_the_other(houses):
    question, first = compute_at_a(houses, 9001)
    second = houses.doors[1].chat(question, max_tokens=24)
    assert second.code == 200, second.body
    assert second.text == first.text, f"{second.text!r} is not {first.text!r}"
    assert second.tiers["remote"] == blocks_of(first) * BLOCK_TOKENS, second.tiers
    again = houses.doors[1].chat(question, max_tokens=24)  # it is its own now
    assert again.text == first.text
    assert again.tiers["remote"] == 0 and again.cached >= second.cached, again.tiers


def test_events_say_what_both_hold(houses):
    question, first = compute_at_a(houses, 9002)
    assert houses.doors[1].chat(question, max_tokens=24).text == first.text
    held = {"prefill-a": set(), "prefill-b": set()}
    for name, keys in held.items():
        events = houses.events("--node", name)
        assert events[0]["event"] == "cleared" and events[-1]["event"] == "whole", events[-1]
        for event in events:
            if event["event"] == "stored":
                keys.update(event["keys"])
        first_number = max(1, events[-1]["next_sequence"] - 2)
        later = houses.events("--node", name, "--from", str(first_number))
        numbers = [event["sequence"] for event in later]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), numbers
    assert len(held["prefill-a"]) >= blocks_of(first)
    assert len(held["prefill-a"] & held["prefill-b"]) >= blocks_of(first)


class Asking(threading.Thread):
    """The question at house b, while something happens at house a."""

    def __init__(self, houses, question):
        super().__init__(daemon=True)
        self.houses, self.question, self.answer = houses, question, None
        self.start()

    def run(self):
        self.answer = self.houses.doors[1].chat(self.question, max_tokens=24)

    def result(self):
        self.join(60)
        assert self.answer is not None, "no answer within 60 s"
        assert self.answer.code == 200, self.answer.body
        return self.answer


def received_bytes(houses, name):
    return admin.status(houses.socket_of(name), limit_s=5)["received_bytes"]


def cut_off(houses, asking, wanted_bytes):
    """Lets prefill-a run a moment at a time until so much of its KV has come, then kills it."""
    victim = houses.processes["prefill-a"]
    before = received_bytes(houses, "prefill-b")
    while asking.is_alive() and received_bytes(houses, "prefill-b") - before < wanted_bytes:
        victim.send_signal(signal.SIGCONT)
        time.sleep(SLICE_S)
        victim.send_signal(signal.SIGSTOP)
    victim.kill()
    victim.wait()


def test_a_source_that_dies_half_way_leaves_what_it_sent(houses):
    remote = []
    for seed in range(9100, 9104):
        question, first = compute_at_a(houses, seed)
        houses.processes["prefill-a"].send_signal(signal.SIGSTOP)
        asking = Asking(houses, question)
        cut_off(houses, asking, blocks_of(first) * BLOCK_BYTES // 3)
        second = asking.result()
        assert second.text == first.text, f"{second.text!r} is not {first.text!r}"
        assert second.tiers["remote"] <= blocks_of(first) * BLOCK_TOKENS
        remote.append(second.tiers["remote"] / BLOCK_TOKENS / blocks_of(first))
        houses.up()
    shares = ", ".join(f"{share:.0%}" for share in remote)
    print(f"         came before its source was killed: {shares}")
    assert any(0 < share < 1 for share in remote), shares


def test_a_source_that_never_answers_is_given_up(houses):
    question, first = compute_at_a(houses, 9200)
    houses.processes["prefill-a"].send_signal(signal.SIGSTOP)
    asking = Asking(houses, question)
    second = asking.result()
    houses.processes["prefill-a"].send_signal(signal.SIGCONT)
    assert second.text == first.text
    assert second.tiers["remote"] == 0, second.tiers
    assert houses.doors[0].chat(question, max_tokens=24).text == first.text
