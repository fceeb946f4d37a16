"""A cluster of real processes in a folder of its own, and requests to it."""
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

# Where a GPU is played on the CPU (KVIST_DEVICE=simt), everything may take so much longer.
PATIENCE = 8 if os.environ.get("KVIST_DEVICE") == "simt" else 1

# Bounds on what must happen "within seconds".
ANSWER_LIMIT_S = 120 * PATIENCE
FAILURE_LIMIT_S = 20 * PATIENCE


def find_model():
    chosen = os.environ.get("KVIST_MODEL")
    if chosen:
        return chosen
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(cache, "kvist/models/SmolLM2-135M-Instruct.Q4_1.gguf")


class Answer:
    """What a request got: code, text, usage, and how long it took."""

    def __init__(self, code, body, seconds):
        self.code = code
        self.seconds = seconds
        self.body = body
        try:
            self.json = json.loads(body)
        except (ValueError, UnicodeDecodeError):
            self.json = None

    @property
    def text(self):
        choice = self.json["choices"][0]
        return choice["message"]["content"] if "message" in choice else choice["text"]

    @property
    def usage(self):
        return self.json["usage"]

    @property
    def cached(self):
        return self.usage["prompt_tokens_details"]["cached_tokens"]

    @property
    def tiers(self):
        return self.usage["kvist"]["cached"]

    def error(self):
        """The error's message, which every refusal must have."""
        assert self.json is not None, f"HTTP {self.code} without a JSON body: {self.body[:200]!r}"
        message = self.json.get("error", {}).get("message")
        assert message, f"HTTP {self.code} without error.message: {self.body[:200]!r}"
        return message


class Cluster:
    """kvist up --dir FOLDER ... kvist down --dir FOLDER."""

    def __init__(self, binaries, *options):
        self.binaries = os.path.abspath(binaries)
        # Unix sockets have short paths: not under a long TMPDIR.
        self.parent = tempfile.mkdtemp(prefix="kvist-e2e-", dir="/tmp")
        self.folder = os.path.join(self.parent, "c")
        # The default port is anybody's: another cluster may be about to take it, too.
        self.options = (*options, "--port", str(quiet_ports(1)[0]))
        self.endpoint = None

    def kvist(self, *arguments, text=None, limit_s=180 * PATIENCE):
        """Runs kvist; the result has returncode, stdout, stderr."""
        return subprocess.run([os.path.join(self.binaries, "kvist"), *arguments], input=text or "",
                              capture_output=True, text=True, timeout=limit_s)

    def up(self):
        run = self.kvist("up", "--dir", self.folder, *self.options)
        assert run.returncode == 0, f"kvist up failed:\n{run.stdout}{run.stderr}"
        self.endpoint = self.record()["endpoint"]
        return run

    def down(self):
        run = self.kvist("down", "--dir", self.folder)
        assert run.returncode == 0, f"kvist down failed:\n{run.stdout}{run.stderr}"
        return run

    def close(self, keep):
        self.kvist("down", "--dir", self.folder)
        if keep:
            print(f"         kept for a look: {self.folder}/logs")
        else:
            shutil.rmtree(self.parent, ignore_errors=True)

    def record(self):
        with open(os.path.join(self.folder, "cluster.json"), encoding="utf-8") as file:
            return json.load(file)

    def nodes(self):
        return {node["name"]: node for node in self.record()["nodes"]}

    def node_named(self, role):
        return next(node for name, node in self.nodes().items() if name.startswith(role))

    def kill(self, role):
        """kill -9, and waits until the process is gone."""
        pid = self.node_named(role)["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(pid), FAILURE_LIMIT_S, f"{role} to die")

    def alive(self):
        return {name for name, node in self.nodes().items() if is_alive(node["pid"])}

    def status(self):
        return json.loads(self.kvist("status", "--dir", self.folder, "--json").stdout)

    def flush(self):
        """Waits until everything is durable."""
        def durable():
            return all(node.get("unsaved_objects", 0) == 0 for node in self.status()["nodes"])
        wait_until(durable, 30, "everything to be durable")

    def request(self, path, body=None, limit_s=ANSWER_LIMIT_S, raw=None, method=None):
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.endpoint + path, data=data, method=method,
                                         headers={"Content-Type": "application/json"})
        begun = time.monotonic()
        try:
            with urllib.request.urlopen(request, timeout=limit_s) as answer:
                return Answer(answer.status, answer.read(), time.monotonic() - begun)
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.read(), time.monotonic() - begun)

    def chat(self, messages, max_tokens=16, limit_s=ANSWER_LIMIT_S, **fields):
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        body = {"messages": messages, "max_tokens": max_tokens, "temperature": 0, **fields}
        return self.request("/v1/chat/completions", body, limit_s)

    def stream(self, messages, max_tokens=16, **fields):
        return Stream(self, {
            "messages": [{"role": "user", "content": messages}], "max_tokens": max_tokens,
            "temperature": 0, "stream": True, "stream_options": {"include_usage": True}, **fields})


class NoCluster:
    """For groups that need the command alone: a folder of their own, and no nodes."""

    def __init__(self, binaries, name):
        self.binary = os.path.join(binaries, "kvist")
        self.endpoint = "none"
        self.folder = tempfile.TemporaryDirectory(prefix=f"kvist-e2e-{name}-")

    def nodes(self):
        return {}

    def alive(self):
        return {}

    def close(self, keep):
        self.folder.cleanup()


class Stream:
    """A streamed answer, read piece by piece."""

    def __init__(self, cluster, body):
        request = urllib.request.Request(
            cluster.endpoint + "/v1/chat/completions", data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"})
        self.answer = urllib.request.urlopen(request, timeout=ANSWER_LIMIT_S)
        self.text, self.usage, self.error, self.done, self.finish = "", None, None, False, None

    def read(self, until=lambda stream: False):
        """Reads until the condition holds or the stream ends; True when the condition held."""
        while True:
            try:
                line = self.answer.readline()
            except (OSError, ValueError) as error:
                self.error = self.error or f"connection broke: {error}"
                return False
            if not line:
                return False
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                self.done = True
                continue
            event = json.loads(data)
            if event.get("error"):
                self.error = event["error"].get("message", "error")
            for choice in event.get("choices", []):
                self.text += choice.get("delta", {}).get("content") or ""
                self.finish = choice.get("finish_reason") or self.finish
            self.usage = event.get("usage") or self.usage
            if until(self):
                return True

    def close(self):
        self.answer.close()


def quiet_ports(count):
    """Ports that are free, and that neither the kernel gives to whoever connects nor kvist up to
    its nodes."""
    ports = set()
    while len(ports) < count:
        port = random.randint(10000, 19999)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                ports.add(port)
            except OSError:
                continue
    return list(ports)


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            fields = file.read().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    # Its first thread may have ended before the others, who have its sockets and files still.
    return fields[0] not in "ZX" or (fields[0] == "Z" and int(fields[17]) > 1)


def wait_until(condition, limit_s, what):
    deadline = time.monotonic() + limit_s * PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited {limit_s} s for {what}"
        time.sleep(0.05)


def send_raw(endpoint, data, limit_s=10):
    """Bytes straight to the HTTP port; the answer until the server closes or falls silent."""
    host, port = endpoint.split("//")[1].split(":")
    answer = b""
    with socket.create_connection((host, int(port)), timeout=limit_s) as connection:
        try:
            connection.sendall(data)
            connection.settimeout(2)
            while piece := connection.recv(65536):
                answer += piece
        except OSError:
            pass  # closed in our face, or nothing more comes
    return answer


def prose(seed, words):
    """Text that no other seed gives: about 1.3 tokens a word."""
    names = ("harbour", "lantern", "ferry", "winter", "ledger", "copper", "meadow", "signal",
             "morning", "bridge", "timber", "castle", "river", "engine", "garden", "paper")
    state, out = seed * 2654435761 % 2**32, [f"Story number {seed}."]
    for _ in range(words):
        state = (state * 1103515245 + 12345) % 2**31
        out.append(names[state >> 16 & 15])
    return " ".join(out)
