"""Many streams while a node is killed, drained or stopped in the middle of them: every stream ends
whole, with the text that it has undisturbed, whichever API it came by."""
import http.client
import json
import os
import signal
import threading

from cluster import ANSWER_LIMIT_S, Cluster, is_alive, prose, wait_until

STREAMS = 100
TOKENS = 16
QUESTIONS = 4  # different ones; each is asked by many
# A stream that moves to another node begins anew there, with all others, on a busy machine.
LIMIT_S = 4 * ANSWER_LIMIT_S


def make_cluster(binaries):
    return Cluster(binaries, "--model", os.environ["KVIST_MODEL"], "--decode", "2",
                   "--store.device_slots=4096", "--decode.queue_max=256", "--decode.batch_rows=16",
                   "--gateway.queue_max=256")


def body(number, anthropic):
    question = prose(4000 + number % QUESTIONS, 12)
    fields = {"messages": [{"role": "user", "content": question}], "max_tokens": TOKENS,
              "temperature": 0, "stream": True}
    return fields if not anthropic else {**fields, "model": "MODEL"}


def text_of(event, anthropic):
    if anthropic:
        return event.get("delta", {}).get("text", "") if event.get("delta") else ""
    return "".join(choice["delta"].get("content") or "" for choice in event["choices"])


class Asking(threading.Thread):
    """One stream, read to its end."""

    def __init__(self, cluster, number, model):
        super().__init__()
        self.number, self.anthropic = number, number % 2 == 1
        self.endpoint = cluster.endpoint.split("//")[1]
        self.body = json.dumps(body(number, self.anthropic)).replace("MODEL", model)
        self.text, self.whole, self.error = "", False, None
        self.begun = threading.Event()

    def run(self):
        try:
            self.read()
        except (OSError, ValueError, http.client.HTTPException) as error:
            self.error = repr(error)
        self.begun.set()

    def read(self):
        connection = http.client.HTTPConnection(self.endpoint, timeout=LIMIT_S)
        path = "/v1/messages" if self.anthropic else "/v1/chat/completions"
        connection.request("POST", path, self.body, {"Content-Type": "application/json",
                                                     "anthropic-version": "2023-06-01"})
        answer = connection.getresponse()
        if answer.status != 200:
            self.error = f"HTTP {answer.status}: {answer.read()[:200]}"
            return
        for line in answer:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            event = {} if data == b"[DONE]" else json.loads(data)
            if "error" in event:
                self.error = str(event["error"])
            self.whole = data == b"[DONE]" or event.get("type") == "message_stop"
            if not self.whole:
                self.text += text_of(event, self.anthropic)
            if self.text:
                self.begun.set()
        connection.close()


def begin(cluster, count):
    model = cluster.request("/v1/models").json["data"][0]["id"]
    streams = [Asking(cluster, number, model) for number in range(count)]
    for stream in streams:
        stream.start()
    return streams


def conclude(streams, known):
    for stream in streams:
        stream.join(LIMIT_S)
        assert not stream.is_alive(), f"stream {stream.number} hangs after {stream.text!r}"
        assert stream.error is None, f"stream {stream.number}: {stream.error}"
        assert stream.whole, f"stream {stream.number} broke off after {stream.text!r}"
        expected = known[stream.number % QUESTIONS]
        assert stream.text == expected, \
            f"stream {stream.number}: {stream.text!r}, undisturbed {expected!r}"


def undisturbed(cluster):
    """The text of each question; both APIs say the same."""
    known = {}
    for stream in begin(cluster, 2 * QUESTIONS):
        stream.join(LIMIT_S)
        assert stream.error is None and stream.whole and stream.text, stream.error
        question = stream.number % QUESTIONS
        assert known.setdefault(question, stream.text) == stream.text
    return known


def in_the_middle(cluster, hurt):
    """The streams, hurt() once ten of them have text."""
    known = undisturbed(cluster)
    streams = begin(cluster, STREAMS)
    for stream in streams[:10]:
        assert stream.begun.wait(LIMIT_S)
    assert any(stream.is_alive() for stream in streams), "all were over before anything happened"
    hurt()
    conclude(streams, known)


def decode_node(cluster):
    """One that has streams in work."""
    def busy():
        return [node["name"] for node in cluster.status()["nodes"]
                if node["name"].startswith("decode") and node.get("running_requests", 0) > 0]
    wait_until(busy, LIMIT_S, "a decode node with streams")
    return cluster.nodes()[busy()[0]]


def test_killed(cluster):
    def hurt():
        node = decode_node(cluster)
        os.kill(node["pid"], signal.SIGKILL)
        wait_until(lambda: not is_alive(node["pid"]), 20, "the node to die")
    in_the_middle(cluster, hurt)


def test_drained(cluster):
    def hurt():
        node = decode_node(cluster)
        run = cluster.kvist("drain", "--dir", cluster.folder, node["name"], limit_s=LIMIT_S)
        assert run.returncode == 0, run.stdout + run.stderr
    in_the_middle(cluster, hurt)


def test_stopped(cluster):
    """SIGSTOP: it lives, and says nothing; others take over when it has been silent for long."""
    stopped = []

    def hurt():
        stopped.append(decode_node(cluster)["pid"])
        os.kill(stopped[0], signal.SIGSTOP)
    try:
        in_the_middle(cluster, hurt)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
