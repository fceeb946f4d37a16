"""Two machines, each with a store of its own that its engine nodes attach to: what one has computed
comes to the other one from the store, also when no engine of its is left.

    client -> gateway-a -> decode-a -> prefill-a ... store-a
                                                       |  cluster.nodes of prefill-b
    client -> gateway-b -> decode-b -> prefill-b ... store-b
"""
import os
import subprocess

import admin
from cluster import quiet_ports, wait_until
from group_sources import BLOCK_BYTES, BLOCK_TOKENS, HOUSES, SHARED_BLOCKS, TwoHouses
from group_sources import blocks_of, compute_at_a


class TwoHosts(TwoHouses):
    def __init__(self, binaries):
        super().__init__(binaries)
        self.stores = [f"store-{house}" for house in HOUSES]
        self.names = self.stores + self.names
        self.ports.update(zip(self.stores, quiet_ports(len(self.stores))))

    def command(self, name):
        role, house = name.split("-")
        clients = f"{self.folder}/run/clients-{house}.sock"
        if role == "store":
            return [f"{self.binaries}/kvist-store", f"--node.name={name}",
                    f"--cluster.key_file={self.folder}/cluster.key",
                    f"--node.admin={self.folder}/run/{name}.sock",
                    f"--node.port={self.ports[name]}", f"--store.socket={clients}",
                    "--store.host_bytes=128MiB", f"--store.directory={self.folder}/store/{name}"]
        words = super().command(name)
        if role == "gateway":
            return words
        words = [word for word in words if not word.startswith(("--store.host_bytes",
                                                                "--cluster.nodes"))]
        words.append(f"--store.attach={clients}")
        if role == "prefill":
            nodes = ",".join(f"127.0.0.1:{self.ports[store]}" for store in self.stores)
            words.append(f"--cluster.nodes={nodes}")
        return words

    def healthy(self):
        ready = all(admin.status(self.socket_of(name)) is not None for name in self.names)
        return ready and all(
            admin.status(self.socket_of(f"{role}-{house}"))["attached_to"] == f"store-{house}"
            for role in ("prefill", "decode") for house in HOUSES) and all(
                self.metric(f"prefill-{house}", "kvist_remote_holders") >= 2 for house in HOUSES)

    def stop(self, name):
        self.processes[name].kill()
        self.processes[name].wait()

    def sent_bytes(self, name):
        return admin.status(self.socket_of(name), limit_s=5)["sent_bytes"]


def make_cluster(binaries):
    return TwoHosts(binaries)


def check_came(second, first):
    """All of it was found; what no earlier question had brought, at the other host."""
    assert second.code == 200, second.body
    assert second.text == first.text, f"{second.text!r} is not {first.text!r}"
    blocks = blocks_of(first)
    assert second.cached == blocks * BLOCK_TOKENS, second.usage
    assert second.tiers["remote"] >= (blocks - SHARED_BLOCKS) * BLOCK_TOKENS, second.tiers


def test_a_store_serves_the_other_host(hosts):
    question, first = compute_at_a(hosts, 9401)
    second = hosts.doors[1].chat(question, max_tokens=24)
    check_came(second, first)
    assert hosts.sent_bytes("store-a") >= (blocks_of(first) - SHARED_BLOCKS) * BLOCK_BYTES
    again = hosts.doors[1].chat(question, max_tokens=24)  # it is its own now
    assert again.text == first.text and again.tiers["remote"] == 0, again.tiers
    assert hosts.sent_bytes("store-b") == 0  # which prefill-b is attached to


def test_it_does_when_the_engines_are_gone(hosts):
    question, first = compute_at_a(hosts, 9402)
    for role in ("gateway", "decode", "prefill"):
        hosts.stop(f"{role}-a")
    wait_until(lambda: not admin.status(hosts.socket_of("store-a"), 5)["clients"], 10,
               "store-a to see that its clients are gone")
    sent = hosts.sent_bytes("store-a")
    second = hosts.doors[1].chat(question, max_tokens=24)
    check_came(second, first)
    assert hosts.sent_bytes("store-a") - sent >= \
        (blocks_of(first) - SHARED_BLOCKS) * BLOCK_BYTES
    assert not any(status["leases"] for status in
                   [admin.status(hosts.socket_of("store-a"), limit_s=5)])


def test_a_store_that_restarts_serves_from_disk(hosts):
    hosts.up()
    question, first = compute_at_a(hosts, 9403)
    wait_until(lambda: admin.status(hosts.socket_of("store-a"), 5)["unsaved_objects"] == 0, 30,
               "store-a to have it on disk")
    for role in ("prefill", "decode", "store"):
        hosts.stop(f"{role}-a")
    hosts.names = [name for name in hosts.names
                   if name not in ("prefill-a", "decode-a", "gateway-a")]
    hosts.processes["store-a"] = None
    start_store(hosts)
    second = hosts.doors[1].chat(question, max_tokens=24)
    check_came(second, first)


def start_store(hosts):
    """It opens at once: what its blocks are is remembered."""
    before = hosts.metric("prefill-b", "kvist_remote_entries")
    links = links_up(hosts, "prefill-b", "store-a")
    with open(f"{hosts.folder}/logs/store-a.log", "ab") as log:
        hosts.processes["store-a"] = subprocess.Popen(
            hosts.command("store-a"), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    wait_until(lambda: hosts.metric("prefill-b", "kvist_remote_entries") > before, 20,
               "prefill-b to hear what store-a holds")
    wait_until(lambda: links_up(hosts, "prefill-b", "store-a") > links, 20,
               "prefill-b to have a data connection to store-a")
    assert os.path.exists(f"{hosts.folder}/store/store-a/layout")


def links_up(hosts, name, peer):
    """How often this node's data connection to the peer has come up."""
    with open(f"{hosts.folder}/logs/{name}.log", encoding="utf-8") as log:
        return log.read().count(f"data link up peer {peer} ")
