"""The servers of a trial: kvist-store, vLLM, LMCache's. How each is started and known to be ready.

All listen on 127.0.0.1 (or a Unix socket in the trial's folder), at ports that were free.
"""
import json
import os
import socket

from children import ChildError
from client import Client

READY_LIMIT_S = 900  # minutes, on a machine that is busy with other things
MODEL_NAME = "smollm2"
CONTEXT_TOKENS = 8192

ENGINE_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "LMCACHE_TRACK_USAGE": "false",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_SERVER_DEV_MODE": "1",  # /reset_prefix_cache
    # By itself vLLM keeps one core more free where there is a connector, and none on two cores:
    # with and without would compute on different numbers of threads, in other times and, since
    # attention is split among them, with other roundings.
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "1",
}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Places:
    """Where things are. folder: of this run. environment: what tools/vllm/environment printed.
    binaries: of the build. python_path: where the package kvist is."""

    def __init__(self, folder, environment, binaries, python_path):
        self.folder, self.environment = folder, environment
        self.binaries, self.python_path = binaries, python_path

    def log(self, name):
        return os.path.join(self.folder, name + ".log")


class Store:
    """A kvist-store with memory and a disk tier in the trial's folder."""

    def __init__(self, children, places, host_bytes, disk_bytes):
        self.children, self.places = children, places
        self.socket = os.path.join(places.folder, "store.sock")
        if len(os.fsencode(self.socket)) > 107:
            raise ChildError(f"{self.socket} is too long for a socket; set XDG_STATE_HOME to a "
                             "shorter path")
        self.command = [
            os.path.join(places.binaries, "kvist-store"), "--node.name=trial",
            f"--node.admin={places.folder}/admin.sock", f"--store.socket={self.socket}",
            f"--store.directory={places.folder}/disk", f"--store.host_bytes={host_bytes}",
            f"--store.disk_bytes={disk_bytes}"]
        self.child = None

    def start(self):
        self.child = self.children.start("kvist-store", self.command, {},
                                         self.places.log("kvist-store"))
        self.child.wait_until(self._answers, 60, "its start")

    def _answers(self):
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(self.socket)
            except OSError:
                return False
            return True

    def stop(self):
        """Writes what is not on disk yet, then ends."""
        self.children.stop(self.child)


class Engine:
    """A vLLM server. transfer: its kv-transfer-config as a dictionary; None: none."""

    def __init__(self, children, places, name, transfer, kv_gib, python="venv"):
        self.children, self.places, self.name = children, places, name
        self.port = free_port()
        self.client = Client(self.port, MODEL_NAME)
        self.child = None
        self.command = [
            os.path.join(places.environment, python, "bin", "python"),
            "-m", "vllm.entrypoints.openai.api_server",
            "--model", os.path.join(places.environment, "model"),
            "--served-model-name", MODEL_NAME, "--host", "127.0.0.1", "--port", str(self.port),
            "--dtype", "bfloat16", "--enforce-eager", "--max-model-len", str(CONTEXT_TOKENS),
            "--max-num-batched-tokens", str(CONTEXT_TOKENS), "--max-num-seqs", "8"]
        if transfer is not None:
            self.command += ["--kv-transfer-config", json.dumps(transfer)]
        paths = [places.python_path, os.environ.get("PYTHONPATH", "")]
        self.environment = {**ENGINE_ENVIRONMENT, "VLLM_CPU_KVCACHE_SPACE": str(kv_gib),
                            "PYTHONPATH": ":".join(filter(None, paths))}

    def start(self):
        """Begins; ready() waits. Two may start at once."""
        self.child = self.children.start(f"vLLM {self.name}", self.command, self.environment,
                                         self.places.log("vllm-" + self.name))

    def ready(self):
        """Until it answers; one short prompt, so that the first that is timed is not the first."""
        self.child.wait_until(self.client.is_healthy, READY_LIMIT_S, "its start")
        self.client.complete(list(range(1000, 1060)), 4)

    def stop(self):
        self.children.stop(self.child)


def kvist(socket_path, role="kv_both"):
    return {"kv_connector": "KvistConnector", "kv_connector_module_path": "kvist.vllm",
            "kv_role": role, "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": {"socket": socket_path}}
