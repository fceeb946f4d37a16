"""A cluster whose nodes live in network namespaces, and every way to hurt it.

    client --unix--> relay --> gateway --relay--> decode-N --relay--> prefill-N
                                                     <===== KV past the relay =====>

decode-0, prefill-0 and the gateway have namespaces of their own. All other nodes share one: among
themselves they move KV by shared memory, everywhere else by tcp.
"""
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

import admin
from cluster import PATIENCE, is_alive, wait_until
from network import Network

HERE = os.path.dirname(os.path.abspath(__file__))
NODE_PORT = 7000
HTTP_PORT = 8000
START_LIMIT_S = 60


class Node:
    def __init__(self, name, role, folder, port, space, relay):
        self.name, self.role, self.port = name, role, port
        self.space = space  # its namespace
        self.relay = relay  # the address that its peers are told
        self.command = None
        self.admin = os.path.join(folder, "run", name + ".sock")
        self.log = os.path.join(folder, "logs", name + ".log")
        self.process = None

    @property
    def pid(self):
        return self.process.pid


class NodeCluster:
    """Start and stop it from one thread; ask it from any."""

    def __init__(self, binaries, prefill_count, decode_count, options):
        self.binaries = os.path.abspath(binaries)
        self.parent = tempfile.mkdtemp(prefix="kvist-e2e-", dir="/tmp")
        self.folder = os.path.join(self.parent, "c")
        self.options = options
        self.endpoint = None
        self.network = None
        self.relay = None
        self.members = {}
        self.relay_lock = threading.Lock()
        self.plan = {"gateway": 1, "prefill": prefill_count, "decode": decode_count}

    # What run.py asks of a cluster.

    def up(self):
        if self.network is None:
            self.lay_out()
        for node in self.members.values():
            if node.process is None or node.process.poll() is not None:
                self.start(node.name)
        wait_until(self.healthy, START_LIMIT_S, "all nodes to be up and connected")
        self.endpoint = "unix:" + self.http_path

    def nodes(self):
        return self.members

    def alive(self):
        return {name for name, node in self.members.items() if is_alive(node.pid)}

    def close(self, keep):
        for node in self.members.values():
            if node.process is not None and node.process.poll() is None:
                node.process.send_signal(signal.SIGCONT)
                node.process.kill()
                node.process.wait()
        if self.relay is not None:
            self.relay.stdin.close()
            self.relay.wait(10)
            self.relay.stdout.close()
        if self.network is not None:
            self.network.close()
        if keep:
            print(f"         kept for a look: {self.folder}/logs")
        else:
            shutil.rmtree(self.parent, ignore_errors=True)

    # Making it.

    def names(self, role):
        return [f"{role}-{i}" for i in range(self.plan[role])]

    def lay_out(self):
        for inner in ("run", "logs", "store"):
            os.makedirs(os.path.join(self.folder, inner))
        with open(os.path.join(self.folder, "cluster.key"), "w", encoding="ascii") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(secrets.token_hex(32) + "\n")
        self.network = Network()
        for role in ("prefill", "decode", "gateway"):
            for name in self.names(role):
                space = name if name.endswith("-0") else "shared"
                if space not in self.network.holders:
                    self.network.add(space)
                port = (HTTP_PORT if role == "gateway" else NODE_PORT) + len(self.members)
                self.members[name] = Node(name, role, self.folder, port, space,
                                          self.network.add_relay())
        for node in self.members.values():
            node.command = self.command(node)
        self.relay = self.network.start("hub", ["python3", os.path.join(HERE, "relay.py")],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for node in self.members.values():
            listen = [node.relay, node.port]
            if node.role == "gateway":
                listen = self.http_path = os.path.join(self.folder, "run", "http.sock")
            self.tell(node.name, "serve", listen=listen,
                      target=[self.network.address(node.space), node.port])

    def command(self, node):
        def relayed(role):
            nodes = [self.members[name] for name in self.names(role)]
            return ",".join(f"{peer.relay}:{peer.port}" for peer in nodes)
        host = self.network.address(node.space)
        words = [os.path.join(self.binaries, "kvist-" + node.role),
                 f"--cluster.key_file={self.folder}/cluster.key", f"--node.name={node.name}",
                 f"--node.host={host}", f"--node.admin={node.admin}",
                 f"--model.path={os.environ['KVIST_MODEL']}"]
        if node.role == "gateway":
            return words + [f"--gateway.http_host={host}", f"--gateway.http_port={node.port}",
                            f"--gateway.decode_nodes={relayed('decode')}"]
        words += [f"--node.port={node.port}", "--model.threads=1",
                  f"--store.directory={self.folder}/store/{node.name}"]
        if node.role == "decode":
            words.append(f"--decode.prefill_nodes={relayed('prefill')}")
        return words + list(self.options.get(node.role, ())) + list(self.options.get("store", ()))

    # One node.

    def start(self, name):
        node = self.members[name]
        with open(node.log, "ab") as log:
            node.process = self.network.start(node.space, node.command, stdin=subprocess.DEVNULL,
                                              stdout=log, stderr=log)

    def kill(self, name):
        node = self.members[name]
        node.process.kill()
        node.process.wait()

    def signal(self, name, number):
        self.members[name].process.send_signal(number)

    def status(self, name, limit_s=1.0):
        return admin.status(self.members[name].admin, limit_s)

    def connected(self, name):
        """Up, the process that we started, and connected to all that it should be."""
        node = self.members[name]
        status = self.status(name, 0.5)
        if status is None or status["pid"] != node.pid:
            return False
        peers = {peer["name"] for peer in status["peers"]
                 if peer["up"] and (peer["wire"] or node.role == "gateway" or
                                    peer["role"] == "gateway")}
        wanted = {"gateway": ("decode",), "decode": ("gateway", "prefill"),
                  "prefill": ("decode",)}[node.role]
        return all(set(self.names(role)) <= peers for role in wanted)

    def healthy(self):
        return all(self.connected(name) for name in self.members)

    # The relay.

    def tell(self, name, do, **command):
        with self.relay_lock:
            line = json.dumps({"do": do, "name": name, **command}).encode() + b"\n"
            self.relay.stdin.write(line)
            self.relay.stdin.flush()
            answer = json.loads(self.relay.stdout.readline())
        assert "error" not in answer, answer
        return answer


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, limit_s):
        super().__init__("localhost", timeout=limit_s)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Question:
    """A greedy streamed request on a thread of its own, and what became of it."""

    def __init__(self, cluster, prompt, max_tokens, limit_s=60 * PATIENCE, **kvist):
        self.body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens,
                     "temperature": 0, "stream": True, "ignore_eos": True, "kvist": kvist,
                     "stream_options": {"include_usage": True}}
        self.connection = UnixConnection(cluster.http_path, limit_s)
        self.text, self.error, self.broken, self.usage = "", None, None, None
        self.finish = None
        self.aborted = False
        self.begun = time.monotonic()
        self.ended = None
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        try:
            self.connection.request("POST", "/v1/chat/completions", json.dumps(self.body),
                                    {"Content-Type": "application/json"})
            answer = self.connection.getresponse()
            if answer.status != 200:
                self.error = json.loads(answer.read())["error"]["message"]
            else:
                self.read(answer)
        except Exception as error:  # whatever breaks is what the client sees
            self.broken = f"{type(error).__name__}: {error}"
        finally:
            self.connection.close()
            self.ended = time.monotonic()

    def read(self, answer):
        done = False
        while line := answer.readline():
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                done = True
                continue
            event = json.loads(data)
            if event.get("error"):
                self.error = event["error"]["message"]
            for choice in event.get("choices", []):
                self.text += choice.get("delta", {}).get("content") or ""
                self.finish = choice.get("finish_reason") or self.finish
            self.usage = event.get("usage") or self.usage
        if not done and self.error is None:
            self.broken = "the stream ended without an end"

    def abort(self):
        """The client goes away."""
        self.aborted = True
        try:
            self.connection.sock.shutdown(socket.SHUT_RDWR)
        except (AttributeError, OSError):
            pass  # it had ended by itself

    @property
    def seconds(self):
        return (self.ended or time.monotonic()) - self.begun

    def answered(self):
        return self.ended is not None and self.error is None and self.broken is None
