"""Nodes on a GPU's device, which the stand-in plays: what they say of it, calls of it that fail in
the middle of requests, and a GPU that is lost for good."""
import os
import socket
import subprocess
import tempfile
from threading import Thread

from cluster import Cluster, is_alive, prose, wait_until

# Whole blocks of these slots do not stay in device memory: they move to host memory and back.
OPTIONS = ("--embedded", "--store.device_slots=24", "--store.host_bytes=8MiB",
           "--store.disk_bytes=64MiB", "--store.segment_bytes=8MiB", "--store.codec=bf16",
           "--gateway.node_wait=300s")
QUESTION = prose(901, 30) + " What was it about?"
TOKENS = 4
LIMIT_S = 300  # of one request: the stand-in is slow, and a machine that tests is busy
TRIES = 12     # requests in which all that is to fail has failed
INVALID, ILLEGAL_ADDRESS = 1, 700
# Which call of it fails at a prefill node, and at a decode node.
CALLS = {"launch": (1, 700), "cudaMemcpyAsync": (40, 3), "cudaEventRecord": (31, 20),
         "cudaEventSynchronize": (7, 33), "cudaSetDevice": (300, 1), "cublasLtMatmul": (120, 121),
         "cudaStreamSynchronize": (1, 4)}


class DeviceCluster(Cluster):
    """Its nodes have the stand-in, and listen for what is to fail."""

    def __init__(self, binaries, *options):
        super().__init__(binaries, "--model", os.environ["KVIST_MODEL"], *(options or OPTIONS))
        self.control = tempfile.mkdtemp(prefix="simt-", dir=self.parent)
        self.device = "simt"

    def kvist(self, *arguments, text=None, limit_s=LIMIT_S):
        environment = {**os.environ, "KVIST_SIMT_CONTROL": self.control}
        environment.pop("KVIST_DEVICE", None)
        if self.device is not None:
            environment["KVIST_DEVICE"] = self.device
        return subprocess.run([os.path.join(self.binaries, "kvist"), *arguments], input=text or "",
                              capture_output=True, text=True, timeout=limit_s, env=environment)

    def tell(self, role, line):
        """One line to a node's stand-in; its answer."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(LIMIT_S)
            connection.connect(f"{self.control}/{self.node_named(role)['pid']}.sock")
            connection.send(line.encode())
            return connection.recv(256).decode()

    def log(self, name):
        with open(f"{self.folder}/logs/{name}.log", encoding="utf-8") as file:
            return file.read()


def make_cluster(binaries):
    return DeviceCluster(binaries)


def ask(cluster, **kvist):
    return cluster.chat(QUESTION, max_tokens=TOKENS, ignore_eos=True, limit_s=LIMIT_S, kvist=kvist)


def ask_well(cluster, **kvist):
    answer = ask(cluster, **kvist)
    assert answer.code == 200, answer.error()
    return answer.text


def node_status(cluster, role):
    return next(node for node in cluster.status()["nodes"] if node["name"].startswith(role))


def settle(cluster):
    """Waits until nothing is under way."""
    def idle():
        nodes = [node for node in cluster.status()["nodes"] if node["role"] != "gateway"]
        return all(node["running_requests"] + node["leases"] + node["unsaved_objects"] == 0
                   for node in nodes)
    wait_until(idle, LIMIT_S, "the nodes to have nothing left to do")


def held(cluster):
    """Bytes, pinned ranges, streams and events of both nodes' devices."""
    return [cluster.tell(role, "held") for role in ("prefill", "decode")]


def figure(cluster, node, name):
    """A counter of a node's metrics page."""
    page = cluster.kvist("metrics", node, "--dir", cluster.folder).stdout
    return next(float(line.split()[1]) for line in page.splitlines() if line.startswith(name + " "))


def test_nodes_say_what_they_compute_on(cluster):
    for role in ("prefill", "decode"):
        node = node_status(cluster, role)
        assert node["device"] == "simt" and node["no_gpu"] == "", node
        assert "compute capability 9.0" in node["device_title"], node
        assert node["arithmetic"].startswith("simt/"), node
        assert f"device simt: {node['device_title']}" in cluster.log(node["name"])
    text = cluster.kvist("status", "--dir", cluster.folder).stdout
    assert text.count(f"computes on {node['device_title']}") == 2, text


def test_kv_goes_from_device_to_device(cluster):
    wanted = ask_well(cluster, cache_mode="bypass")
    before = {role: node_status(cluster, role)["direct_messages"] for role in ("prefill", "decode")}
    assert ask_well(cluster, salt="direct") == wanted
    for role, count in before.items():
        assert node_status(cluster, role)["direct_messages"] > count, role


def test_calls_that_fail_cost_no_byte(cluster):
    wanted = ask_well(cluster, cache_mode="bypass")
    # The decode node computes a prompt itself, too, before what it holds is measured.
    assert cluster.tell("prefill", f"fail launch:1:{INVALID}") == "planned"
    assert ask_well(cluster, salt="before") == wanted
    settle(cluster)
    before = held(cluster)
    pids = {name: node["pid"] for name, node in cluster.nodes().items()}
    for call, places in CALLS.items():
        for role, nth in zip(("prefill", "decode"), places):
            assert cluster.tell(role, f"fail {call}:{nth}:{INVALID}") == "planned"
    tries = 0
    while any(cluster.tell(role, "waiting") != "0" for role in ("prefill", "decode")):
        tries += 1
        assert tries <= TRIES, f"{TRIES} requests, and calls that were to fail were never made"
        answer = ask(cluster, salt=str(tries))
        if answer.code == 200:
            assert answer.text == wanted, f"wanted {wanted!r}, with failing calls {answer.text!r}"
        else:
            assert "failed" in answer.error() or "did not start" in answer.error(), answer.error()
    for salt in ("before", "1", "after"):
        assert ask_well(cluster, salt=salt) == wanted
    settle(cluster)
    for node in ("prefill-0", "decode-0"):
        assert figure(cluster, node, "kvist_store_device_packed_objects_total") > 0, node
    wait_until(lambda: held(cluster) == before, LIMIT_S, f"the devices to hold {before} again")
    assert pids == {name: node["pid"] for name, node in cluster.nodes().items()}
    assert cluster.alive() == set(pids), cluster.alive()


def lose(cluster, role):
    """The node's next kernel breaks its GPU."""
    assert cluster.tell(role, f"fail run launch:1:{ILLEGAL_ADDRESS}") == "planned"
    return cluster.node_named(role)["pid"]


def check_told(cluster, name, pid):
    wait_until(lambda: not is_alive(pid), LIMIT_S, f"{name} to end")
    log = cluster.log(name)
    assert "is lost to this process: restart it" in log, log[-2000:]
    assert "stopping: " in log, log[-2000:]
    status = cluster.kvist("status", "--dir", cluster.folder)
    assert status.returncode == 1, status.stdout
    assert f"{name}  DOWN: the process has ended" in status.stdout, status.stdout


def test_a_lost_gpu_of_a_prefill_node(cluster):
    wanted = ask_well(cluster, cache_mode="bypass")
    pid = lose(cluster, "prefill")
    assert ask_well(cluster, cache_mode="bypass") == wanted
    check_told(cluster, "prefill-0", pid)
    cluster.up()
    assert ask_well(cluster, salt="again") == wanted


def test_a_lost_gpu_of_a_decode_node(cluster):
    wanted = ask_well(cluster, salt="kept")
    cluster.flush()
    pid = lose(cluster, "decode")
    answers = []

    thread = Thread(target=lambda: answers.append(ask(cluster, cache_mode="bypass")))
    thread.start()
    check_told(cluster, "decode-0", pid)
    cluster.up()
    thread.join(LIMIT_S)
    assert answers, "the request hangs"
    assert answers[0].code == 200, answers[0].error()
    assert answers[0].text == wanted, f"wanted {wanted!r}, after the loss {answers[0].text!r}"
    kept = ask(cluster, salt="kept")
    assert kept.text == wanted and kept.cached > 0, kept.body
    assert figure(cluster, "decode-0", "kvist_store_device_unpacked_objects_total") > 0


def test_auto_says_why_there_is_no_gpu(cluster):
    cluster.down()
    cluster.device = None
    cluster.up()
    for role in ("prefill", "decode"):
        node = node_status(cluster, role)
        if node["device"] == "cpu":
            assert node["no_gpu"] != "", node
            assert f"no gpu: {node['no_gpu']}" in cluster.log(node["name"])
        else:
            assert node["device"] == "cuda" and node["no_gpu"] == "", node


def test_a_gpu_that_is_not_there_is_refused(cluster):
    cluster.down()
    cluster.device = "cuda:1023"
    run = cluster.kvist("up", "--dir", cluster.folder, *cluster.options)
    assert run.returncode != 0
    told = run.stdout + run.stderr
    assert "gpu" in told or "libkvist-cuda.so cannot be loaded" in told, told
    cluster.device = "simt"
