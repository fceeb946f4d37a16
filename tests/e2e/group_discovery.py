"""Nodes that find one another through a real etcd: they come, go and come back, etcd dies and
returns, and no request is lost meanwhile."""
import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time

from cluster import Cluster, is_alive, prose, quiet_ports, wait_until

TTL_S = 3
BACK_LIMIT_S = 2.0  # from a node's return to its use

COMMON = ("--model.threads=1", "--store.directory=none", "--store.host_bytes=0",
          "--store.device_slots=200", f"--cluster.etcd_ttl={TTL_S}s")


class Clients:
    """Requests, one after another in each of a few threads, until stopped."""

    def __init__(self, cluster, count=2):
        self.cluster, self.failures, self.answers, self.running = cluster, [], 0, True
        self.threads = [threading.Thread(target=self.run, args=(i,)) for i in range(count)]

    def run(self, index):
        number = 0
        while self.running:
            number += 1
            try:
                answer = self.cluster.chat(prose(900 + 50 * index + number % 7, 40), max_tokens=6,
                                           ignore_eos=True)
                good = answer.code == 200 and answer.usage["completion_tokens"] == 6
                if not good:
                    self.failures.append(answer.body[:300])
            except Exception as error:  # whatever it is, the request was lost
                self.failures.append(repr(error))
            self.answers += 1

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.running = False
        for thread in self.threads:
            thread.join()

    def answer_more(self, count=2):
        before = self.answers
        wait_until(lambda: self.answers >= before + count, 60, f"{count} more answers")


class EtcdCluster(Cluster):
    """etcd and nodes, each started by hand; nobody is told of anybody."""

    def __init__(self, binaries):
        super().__init__(binaries)
        self.model = os.environ["KVIST_MODEL"]
        self.processes, self.ports = {}, {}
        self.etcd_port, self.etcd_peer_port = None, None

    def etcd_url(self):
        return f"http://127.0.0.1:{self.etcd_port}"

    def start_etcd(self):
        peer = f"http://127.0.0.1:{self.etcd_peer_port}"
        with open(f"{self.folder}/logs/etcd.log", "ab") as log:
            self.processes["etcd"] = subprocess.Popen(
                ["etcd", "--name", "one", "--data-dir", f"{self.folder}/etcd",
                 "--listen-client-urls", self.etcd_url(),
                 "--advertise-client-urls", self.etcd_url(), "--listen-peer-urls", peer,
                 "--initial-advertise-peer-urls", peer, "--initial-cluster", f"one={peer}"],
                stdout=log, stderr=log)

    def etcdctl(self, *arguments):
        run = subprocess.run(
            ["etcdctl", "--endpoints", self.etcd_url(), *arguments], capture_output=True,
            text=True, timeout=10, env={**os.environ, "ETCDCTL_API": "3"})
        return run.stdout if run.returncode == 0 else None

    def registered(self):
        keys = self.etcdctl("get", "--prefix", "--keys-only", "/kvist/kvist/nodes/") or ""
        return {key.rsplit("/", 1)[1] for key in keys.split()}

    def start(self, name, *options):
        role = {"p": "prefill", "d": "decode", "g": "gateway"}[name[0]]
        own = COMMON if role != "gateway" else COMMON[-1:]
        arguments = [os.path.join(self.binaries, f"kvist-{role}"), f"--node.name={name}",
                     f"--node.admin={self.folder}/run/{name}.sock",
                     f"--cluster.key_file={self.folder}/key", f"--model.path={self.model}",
                     f"--cluster.etcd={self.etcd_url()}", *own, *options]
        if role == "gateway":
            arguments.append(f"--gateway.http_port={self.ports['http'] if name == 'g1' else 0}")
        elif name in self.ports:
            arguments.append(f"--node.port={self.ports[name]}")
        with open(f"{self.folder}/logs/{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(arguments, stderr=log)

    def stop(self, name, how):
        process = self.processes.pop(name)
        process.send_signal(how)
        process.wait(30)

    def up(self):
        if not self.processes:
            os.makedirs(f"{self.folder}/logs")
            os.makedirs(f"{self.folder}/run", mode=0o700)
            with open(f"{self.folder}/key", "w", encoding="utf-8",
                      opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                file.write("a key for one test only, 42")
            self.etcd_port, self.etcd_peer_port, http, p1 = quiet_ports(4)
            self.ports = {"http": http, "p1": p1}
            self.endpoint = f"http://127.0.0.1:{self.ports['http']}"
            self.start_etcd()
        for name in ("p1", "d1", "g1"):
            if name not in self.alive():
                self.start(name)
        self.wait_for_mesh({"p1", "d1"})

    def alive(self):
        return {name for name, process in self.processes.items() if is_alive(process.pid)}

    def nodes(self):
        return self.processes

    def peers(self, name):
        """The names of a node's peers that are up, from its log."""
        up = {}
        for line in self.log(name).splitlines():
            if found := re.search(r"transport: peer (up|down) name (\S+)", line):
                up[found.group(2)] = up.get(found.group(2), 0) + (found.group(1) == "up" or -1)
        assert set(up.values()) <= {0, 1}, f"{name}: {up}"
        return {peer for peer, count in up.items() if count == 1}

    def log(self, name):
        """Of the node's present life."""
        with open(f"{self.folder}/logs/{name}.log", encoding="utf-8") as file:
            return file.read().rsplit("node: start ", 1)[-1]

    def wait_for_mesh(self, names):
        def whole():
            return all(self.peers(name) - {"g1"} == names - {name} for name in names) and \
                self.peers("g1") == {name for name in names if name[0] == "d"}
        wait_until(whole, 60, f"{names} to find one another: "
                   f"{ {name: self.peers(name) for name in (*names, 'g1')} }")

    def close(self, keep):
        for process in self.processes.values():
            process.kill()
            process.wait(10)
        super().close(keep)


def make_cluster(binaries):
    return EtcdCluster(binaries)


def why_not():
    missing = [name for name in ("etcd", "etcdctl") if not shutil.which(name)]
    return f"{' and '.join(missing)} not installed (tools/setup installs it)" if missing else None


def time_of(log, text):
    """When the log's last line with the text was written, in seconds."""
    line = [line for line in log.splitlines() if text in line][-1]
    return datetime.datetime.fromisoformat(line.split()[0].replace("Z", "+00:00")).timestamp()


def test_nodes_find_one_another(cluster):
    assert cluster.registered() == {"p1", "d1"}, cluster.registered()
    value = json.loads(cluster.etcdctl("get", "--print-value-only", "/kvist/kvist/nodes/p1"))
    assert value["role"] == "prefill" and value["name"] == "p1", value
    assert value["address"] == f"127.0.0.1:{cluster.ports['p1']}", value
    answer = cluster.chat(prose(890, 50), max_tokens=3)
    assert answer.code == 200, answer.body
    assert answer.usage["kvist"]["prefilled_by"] == "p1", answer.usage


def test_nodes_join_while_requests_run(cluster):
    with Clients(cluster) as clients:
        clients.answer_more(1)
        cluster.start("p2")
        cluster.start("d2")
        cluster.wait_for_mesh({"p1", "p2", "d1", "d2"})
        clients.answer_more(4)
    assert not clients.failures, clients.failures


def test_a_killed_node_is_forgotten(cluster):
    with Clients(cluster) as clients:
        clients.answer_more(1)
        cluster.stop("p2", signal.SIGKILL)
        wait_until(lambda: "p2" not in cluster.registered(), 2 * TTL_S + 5, "p2's lease to end")
        wait_until(lambda: "member p2 went" in cluster.log("d1"), 3, "d1 to learn of it")
        clients.answer_more(2)
    assert not clients.failures, clients.failures


def test_an_orderly_stop_is_known_at_once(cluster):
    with Clients(cluster) as clients:
        clients.answer_more(1)
        cluster.stop("d2", signal.SIGTERM)
        assert "d2" not in cluster.registered()
        clients.answer_more(2)
    assert not clients.failures, clients.failures
    assert "member d2 went" in cluster.log("g1")


def test_etcd_dies_and_returns(cluster):
    """While it is away a node is restarted, and used again within 2 s of its return."""
    with Clients(cluster) as clients:
        clients.answer_more(1)
        cluster.stop("etcd", signal.SIGKILL)
        clients.answer_more(2)
        cluster.stop("p1", signal.SIGKILL)
        clients.answer_more(1)
        cluster.start("p1")
        wait_until(lambda: "p1" in cluster.peers("d1") and "d1" in cluster.peers("p1"), 60,
                   "d1 and p1 to meet without etcd")
        back_s = time_of(cluster.log("d1"), "peer up name p1") - \
            time_of(cluster.log("p1"), "runtime: ready")
        assert back_s <= BACK_LIMIT_S, f"connected {back_s:.2f} s after its return"
        assert cluster.peers("d1") == {"p1", "g1"}, cluster.peers("d1")  # nobody was cut off
        clients.answer_more(2)
        cluster.start_etcd()
        wait_until(lambda: cluster.registered() == {"p1", "d1"}, 20, "all to register again")
        clients.answer_more(2)
    assert not clients.failures, clients.failures
    assert cluster.log("d1").count("peer down name p1") == 1, cluster.log("d1")
    print(f"         connected {back_s:.2f} s after its return", flush=True)


def test_https_is_checked(cluster):
    """A second etcd with a certificate of its own; gateways with and without it."""
    folder, (port, peer_port) = cluster.folder, quiet_ports(2)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=etcd", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout",
         f"{folder}/tls.key", "-out", f"{folder}/tls.pem"], check=True, capture_output=True)
    url, peer = f"https://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
    with open(f"{folder}/logs/etcd-tls.log", "ab") as log:
        cluster.processes["etcd-tls"] = subprocess.Popen(
            ["etcd", "--name", "tls", "--data-dir", f"{folder}/etcd-tls", "--cert-file",
             f"{folder}/tls.pem", "--key-file", f"{folder}/tls.key", "--listen-client-urls", url,
             "--advertise-client-urls", url, "--listen-peer-urls", peer,
             "--initial-advertise-peer-urls", peer, "--initial-cluster", f"tls={peer}"],
            stdout=log, stderr=log)
    named = f"https://localhost:{port}"  # a name is looked up
    cluster.start("g2", f"--cluster.etcd={named}", f"--cluster.etcd_ca_file={folder}/tls.pem")
    cluster.start("g3", f"--cluster.etcd={named}")
    try:
        wait_until(lambda: f"etcd at {named} up" in cluster.log("g2"), 20, "g2 to trust it")
        wait_until(lambda: "certificate" in cluster.log("g3"), 20, "g3 to refuse it")
        assert f"etcd at {named} up" not in cluster.log("g3")
    finally:
        for name in ("g2", "g3", "etcd-tls"):
            cluster.stop(name, signal.SIGTERM)


# In namespaces of its own: a name server that swallows every question.
SILENT_NAMES = """
import os, socket, subprocess, sys, time, urllib.error, urllib.request
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
gateway = subprocess.Popen(sys.argv[2:], stderr=subprocess.DEVNULL)
url, worst_s, answers, end = sys.argv[1] + "/healthz", 0, 0, time.monotonic() + 6
while time.monotonic() < end:
    begun = time.monotonic()
    try:
        urllib.request.urlopen(url, timeout=20).read()
    except urllib.error.HTTPError:
        answers += 1  # no decode node is up: that is an answer
        worst_s = max(worst_s, time.monotonic() - begun)
    except OSError:
        pass  # it starts
    time.sleep(0.02)
gateway.terminate()
gateway.wait(20)
print(answers, worst_s)
"""


def test_a_name_server_that_is_silent_holds_nothing_up(cluster):
    apart = ["unshare", "--user", "--map-root-user", "--mount", "--net"]
    if subprocess.run([*apart, "true"], capture_output=True).returncode != 0:
        print("         not run: no user namespaces here", flush=True)
        return
    with open(f"{cluster.folder}/resolv.conf", "w", encoding="utf-8") as file:
        file.write("nameserver 127.0.0.1\n")
    url = f"http://127.0.0.1:{cluster.ports['http']}"
    script = (f"ip link set lo up && mount --bind {cluster.folder}/resolv.conf /etc/resolv.conf && "
              'exec python3 -c "$0" "$@"')
    run = subprocess.run(
        [*apart, "bash", "-c", script, SILENT_NAMES, url,
         os.path.join(cluster.binaries, "kvist-gateway"), "--node.name=g4",
         f"--node.admin={cluster.folder}/run/g4.sock", f"--cluster.key_file={cluster.folder}/key",
         f"--model.path={cluster.model}", "--cluster.etcd=http://etcd.example:2379",
         f"--gateway.http_port={cluster.ports['http']}"], capture_output=True, text=True,
        timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
    answers, worst_s = run.stdout.split()
    assert int(answers) > 10 and float(worst_s) < 1.5, run.stdout


def test_rubbish_in_etcd_is_left_alone(cluster):
    values = {"x1": "rubbish", "x2": "{}", "x3": json.dumps(
        {"name": "x3", "role": "decode", "address": "nowhere:1"}), "p1": "{}"}
    for name, value in values.items():
        assert cluster.etcdctl("put", f"/kvist/kvist/nodes/{name}", value) is not None
    for name in values:
        wait_until(lambda: f"member key {name} ignored" in cluster.log("d1"), 3, f"{name}")
    assert "another node registered as 'p1'" in cluster.log("p1")
    assert cluster.etcdctl("del", "--prefix", "/kvist/kvist/nodes/") is not None
    wait_until(lambda: cluster.registered() == {"p1", "d1"}, 5, "both to register again")
    assert cluster.chat(prose(891, 50), max_tokens=3).code == 200
    assert cluster.peers("d1") == {"p1", "g1"}, cluster.peers("d1")
