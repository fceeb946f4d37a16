"""Nodes are drained, restarted and killed under load: every request gets the answer that an
undisturbed one gets, streams go on where they stopped."""
import json
import os
import signal
import subprocess
import threading
import time

from cluster import FAILURE_LIMIT_S, is_alive, prose, wait_until

OPTIONS = ("--prefill", "2", "--decode", "2", "--store.device_bytes=96MiB",
           "--store.host_bytes=64MiB", "--store.disk_bytes=256MiB", "--gateway.node_wait=60s")
CLIENTS = 3
TOKENS = 40


def engine_nodes(cluster):
    return [name for name in cluster.nodes() if not name.startswith("gateway")]


def running_at(cluster, role):
    """The names of that role's nodes that have a request in work."""
    return [node["name"] for node in cluster.status()["nodes"]
            if node["name"].startswith(role) and node.get("running_requests", 0) > 0]


class Load:
    """Clients that ask for answers that are known, streamed and whole in turn."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.questions = [prose(700 + i, 60 + 40 * i) + " What comes next?" for i in range(5)]
        self.known = [self.ask(question, False) for question in self.questions]
        self.answered, self.wrong, self.slowest_s = 0, [], 0
        self.lock = threading.Lock()
        self.ending = threading.Event()
        self.threads = [threading.Thread(target=self.run, args=(i,)) for i in range(CLIENTS)]

    def ask(self, question, streamed):
        if not streamed:
            answer = self.cluster.chat(question, max_tokens=TOKENS, ignore_eos=True)
            assert answer.code == 200, f"HTTP {answer.code}: {answer.error()}"
            assert answer.usage["completion_tokens"] == TOKENS, answer.usage
            return answer.text
        stream = self.cluster.stream(question, max_tokens=TOKENS, ignore_eos=True)
        stream.read()
        assert stream.done and not stream.error, f"a stream ended with {stream.error}"
        assert stream.usage["completion_tokens"] == TOKENS, stream.usage
        return stream.text

    def run(self, number):
        turn = number
        while not self.ending.is_set():
            which = turn % len(self.questions)
            begun = time.monotonic()
            try:
                text = self.ask(self.questions[which], turn % 2 == 0)
                found = None if text == self.known[which] else f"{self.known[which]!r}: {text!r}"
            except Exception as error:  # whatever a client sees counts as lost
                found = f"{type(error).__name__}: {error}"
            with self.lock:
                self.answered += 1
                self.slowest_s = max(self.slowest_s, time.monotonic() - begun)
                if found:
                    self.wrong.append(found)
            turn += CLIENTS

    def wait_for(self, count):
        """Until so many more were answered."""
        target = self.answered + count
        wait_until(lambda: self.answered >= target or self.wrong, 60, f"{count} more answers")

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.ending.set()
        for thread in self.threads:
            thread.join()


def test_rolling_restart_loses_no_request(cluster):
    with Load(cluster) as load:
        load.wait_for(CLIENTS)
        for name in engine_nodes(cluster):
            node = cluster.nodes()[name]
            if name.endswith("0"):
                run = cluster.kvist("drain", name, "--dir", cluster.folder)
                assert run.returncode == 0, run.stdout + run.stderr
            else:
                os.kill(node["pid"], signal.SIGTERM)
                wait_until(lambda pid=node["pid"]: not is_alive(pid), 40, f"{name} to end")
            load.wait_for(1)
            cluster.up()
            assert cluster.nodes()[name]["pid"] != node["pid"]
            load.wait_for(1)
    assert not load.wrong, f"{len(load.wrong)} of {load.answered}: " + "\n".join(load.wrong[:3])
    assert load.answered >= CLIENTS + 2 * len(engine_nodes(cluster))
    assert load.slowest_s < 60, f"an answer took {load.slowest_s:.1f} s"


def check_killed(cluster, fields):
    question = prose(720, 150) + " Tell me all of it."

    def begin():
        return cluster.stream(question, max_tokens=120, ignore_eos=True, **fields)
    undisturbed = begin()
    undisturbed.read()
    assert undisturbed.done, undisturbed.error
    stream = begin()
    assert stream.read(lambda s: len(s.text) > len(undisturbed.text) / 4), "no stream"
    names = running_at(cluster, "decode")
    assert len(names) == 1, names
    os.kill(cluster.nodes()[names[0]]["pid"], signal.SIGKILL)
    begun = time.monotonic()
    stream.read()
    assert stream.done and not stream.error, f"{names[0]} was killed: {stream.error}"
    assert time.monotonic() - begun < FAILURE_LIMIT_S
    assert stream.text == undisturbed.text, f"{undisturbed.text!r}, with a kill {stream.text!r}"
    for field in ("prompt_tokens", "completion_tokens"):
        assert stream.usage[field] == undisturbed.usage[field], stream.usage
    assert stream.finish == undisturbed.finish
    assert stream.usage["prompt_tokens_details"]["cached_tokens"] <= stream.usage["prompt_tokens"]
    cluster.up()


def test_greedy_stream_goes_on_after_a_kill(cluster):
    check_killed(cluster, {})


def test_sampled_stream_goes_on_after_a_kill(cluster):
    check_killed(cluster, {"temperature": 0.9, "top_p": 0.95, "seed": 11})


def test_all_decode_nodes_killed_and_back(cluster):
    """The client waits; nothing is left of what was computed but what the gateway has."""
    question = prose(721, 100) + " Go on."
    undisturbed = cluster.stream(question, max_tokens=60, ignore_eos=True)
    undisturbed.read()
    stream = cluster.stream(question, max_tokens=60, ignore_eos=True)
    assert stream.read(lambda s: len(s.text) > 40), "no stream"
    pids = [node["pid"] for name, node in cluster.nodes().items() if name.startswith("decode")]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(is_alive(pid) for pid in pids), 20, "the decode nodes to die")
    reader = threading.Thread(target=stream.read)
    reader.start()
    cluster.up()
    reader.join(FAILURE_LIMIT_S)
    assert not reader.is_alive(), "the stream hangs"
    assert stream.done and stream.text == undisturbed.text, f"{stream.error}: {stream.text!r}"


def in_background(function, *arguments, **fields):
    results = []
    thread = threading.Thread(target=lambda: results.append(function(*arguments, **fields)))
    thread.start()
    return thread, results


def test_draining_prefill_node_finishes_its_prompt(cluster):
    thread, results = in_background(cluster.chat, prose(722, 1500), max_tokens=4)
    wait_until(lambda: running_at(cluster, "prefill"), 15, "a prompt under way")
    name = running_at(cluster, "prefill")[0]
    run = cluster.kvist("drain", name, "--dir", cluster.folder)
    assert run.returncode == 0, run.stdout + run.stderr
    thread.join(FAILURE_LIMIT_S)
    assert results and results[0].code == 200, results
    assert results[0].usage["kvist"]["prefilled_by"] == name, results[0].usage
    cluster.up()


def test_last_decode_node_finishes_what_it_has(cluster):
    """With nowhere to go an answer stays; what comes meanwhile waits for a node."""
    assert cluster.kvist("drain", "decode-0", "--dir", cluster.folder).returncode == 0
    stream = cluster.stream("Tell me a story.", max_tokens=300, ignore_eos=True)
    assert stream.read(lambda s: len(s.text) > 20), "no stream"
    drain, ended = in_background(cluster.kvist, "drain", "decode-1", "--dir", cluster.folder)

    def draining():
        return any(node.get("draining") for node in cluster.status()["nodes"])
    wait_until(draining, 5, "the drain")
    gateway = next(node for node in cluster.status()["nodes"] if node.get("role") == "gateway")
    assert [peer["draining"] for peer in gateway["peers"]] == [True], gateway["peers"]
    waiting, answers = in_background(cluster.chat, "Hello", max_tokens=4)
    stream.read()
    assert stream.done and stream.usage["completion_tokens"] == 300, stream.error
    drain.join(FAILURE_LIMIT_S)
    assert ended and ended[0].returncode == 0, ended
    assert not answers, "somebody answered without a decode node"
    cluster.up()
    waiting.join(FAILURE_LIMIT_S)
    assert answers and answers[0].code == 200, answers


def test_gateway_drains(cluster):
    pid = cluster.node_named("gateway")["pid"]
    stream = cluster.stream("Tell me a story.", max_tokens=150, ignore_eos=True)
    assert stream.read(lambda s: len(s.text) > 20), "no stream"
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: cluster.request("/healthz").json["status"] == "draining", 5, "the drain")
    assert cluster.request("/healthz").code == 503
    refused = cluster.chat("Hello", max_tokens=4)
    assert refused.code == 503 and "draining" in refused.error(), refused.body
    stream.read()
    assert stream.done and stream.usage["completion_tokens"] == 150, stream.error
    wait_until(lambda: not is_alive(pid), 5, "the gateway to end when it has nothing left")


def test_second_signal_ends_at_once(cluster):
    pid = cluster.node_named("gateway")["pid"]
    stream = cluster.stream("Tell me a story.", max_tokens=1500, ignore_eos=True)
    assert stream.read(lambda s: len(s.text) > 20), "no stream"
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: cluster.request("/healthz").json["status"] == "draining", 5, "the drain")
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not is_alive(pid), 2, "the gateway to end at once")
    stream.read()
    assert not stream.done


def test_signal_while_opening(cluster):
    """Nothing was begun: the node ends at once, whatever it was opening."""
    for wait_s in (0.05, 0.3, 0.8):
        node = subprocess.Popen(
            [os.path.join(cluster.binaries, "kvist-decode"), "--node.name=early",
             f"--cluster.key_file={cluster.folder}/cluster.key",
             f"--model.path={os.environ['KVIST_MODEL']}", "--model.threads=1",
             f"--node.admin={cluster.parent}/early.sock",
             f"--store.directory={cluster.parent}/early"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(wait_s)
        node.send_signal(signal.SIGTERM)
        code = node.wait(10)
        assert code in (0, -signal.SIGTERM), f"{code} after {wait_s} s"


def test_nodes_that_somebody_else_started(cluster):
    """kvist finds them by their admin sockets alone, as it does those of systemd's units."""
    sockets = os.path.join(cluster.folder, "run")
    shown = cluster.kvist("status", "--dir", sockets, "--json")
    assert shown.returncode == 0, shown.stderr
    assert shown.stderr == "", shown.stderr  # nobody is asked at the clients' socket
    page = json.loads(shown.stdout)
    assert {node["name"] for node in page["nodes"]} == set(cluster.nodes())
    assert page["endpoint"] == cluster.endpoint
    listed = cluster.kvist("quota", "--dir", sockets, "--json")
    assert {row["node"] for row in json.loads(listed.stdout)} == {"store-0"}
    metrics = cluster.kvist("metrics", "decode-0", "--dir", sockets)
    assert 'kvist_store_capacity_bytes{tier="device"}' in metrics.stdout, metrics.stderr
    assert cluster.kvist("metrics", "nobody", "--dir", sockets).returncode == 2
    assert "no cluster was started" in cluster.kvist("down", "--dir", sockets).stdout
