"""What the trial asks of a vLLM server: completions, metrics, the reset of its prefix cache."""
import http.client
import json
import re
import time
from dataclasses import dataclass, field

LIMIT_S = 900  # of one answer, on a machine that is busy with other things
HELD_LIMIT_S = 60  # of blocks that the connector still reads
SERIES = re.compile(r'^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$')
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class RequestFailed(Exception):
    """A server answered with an error, or not at all."""


@dataclass
class Answer:
    """token_ids: what was generated. ttft_s: from the request to the first token; total_s: to the
    last. transfer: what the server says for another one (kv_transfer_params)."""
    token_ids: list = field(default_factory=list)
    ttft_s: float = 0.0
    total_s: float = 0.0
    transfer: object = None


class Client:
    """One server at 127.0.0.1. Threads: any; each call has a connection of its own."""

    def __init__(self, port, model):
        self.port, self.model = port, model

    def _request(self, method, path, body=None):
        """(connection, response) of a request that was answered with 200."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)
        try:
            connection.request(method, path, None if body is None else json.dumps(body),
                               {"Content-Type": "application/json"})
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise RequestFailed(f"{method} {path} at port {self.port}: {error}") from error
        if response.status != 200:
            text = response.read().decode(errors="replace")
            connection.close()
            raise RequestFailed(f"{method} {path} at port {self.port}: {response.status} "
                                f"{text[:300]}")
        return connection, response

    def _text(self, method, path, body=None):
        connection, response = self._request(method, path, body)
        try:
            return response.read().decode()
        except (OSError, http.client.HTTPException) as error:
            raise RequestFailed(f"{method} {path} at port {self.port}: {error}") from error
        finally:
            connection.close()

    def is_healthy(self):
        try:
            self._text("GET", "/health")
        except RequestFailed:
            return False
        return True

    def tokenize(self, text):
        body = {"model": self.model, "prompt": text, "add_special_tokens": False}
        return json.loads(self._text("POST", "/tokenize", body))["tokens"]

    def complete(self, tokens, max_tokens, **more):
        """A greedy answer to a prompt of token ids, as a stream. more: further members of the
        request."""
        body = {"model": self.model, "prompt": tokens, "max_tokens": max_tokens, "temperature": 0,
                "stream": True, "return_token_ids": True, "ignore_eos": True, **more}
        begun = time.perf_counter()
        connection, response = self._request("POST", "/v1/completions", body)
        answer = Answer()
        try:
            for line in response:
                self._take(line, answer, begun)
        except (OSError, http.client.HTTPException) as error:
            raise RequestFailed(f"the answer broke off at port {self.port}: {error}") from error
        finally:
            connection.close()
        answer.total_s = time.perf_counter() - begun
        if len(answer.token_ids) != max_tokens:
            raise RequestFailed(f"port {self.port} gave {len(answer.token_ids)} tokens of "
                                f"{max_tokens}")
        return answer

    @staticmethod
    def _take(line, answer, begun):
        if not line.startswith(b"data: {"):
            return
        event = json.loads(line[len(b"data: "):])
        if "error" in event:
            raise RequestFailed(f"the answer ended with: {event['error']}")
        answer.transfer = event.get("kv_transfer_params") or answer.transfer
        for choice in event.get("choices", ()):
            if choice.get("token_ids"):
                if not answer.token_ids:
                    answer.ttft_s = time.perf_counter() - begun
                answer.token_ids += choice["token_ids"]

    def prefill(self, tokens, transfer, **more):
        """Has a prompt computed, and one token; returns the server's kv_transfer_params."""
        body = {"model": self.model, "prompt": tokens, "max_tokens": 1, "temperature": 0,
                "kv_transfer_params": transfer, **more}
        return json.loads(self._text("POST", "/v1/completions", body)).get("kv_transfer_params")

    def reset(self):
        """Empties vLLM's own prefix cache, as soon as no connector holds a block of it."""
        end = time.monotonic() + HELD_LIMIT_S
        while not json.loads(self._text("POST", "/reset_prefix_cache"))["success"]:
            if time.monotonic() > end:
                raise RequestFailed(f"port {self.port}: blocks are still held after "
                                    f"{HELD_LIMIT_S} s: the prefix cache cannot be reset")
            time.sleep(0.1)

    def metrics(self):
        """{(name, (value of its label, ...)): number}; vLLM's labels of every series left out."""
        found = {}
        for line in self._text("GET", "/metrics").splitlines():
            match = SERIES.match(line)
            if match:
                labels = tuple(value for name, value in LABEL.findall(match[2] or "")
                               if name not in ("engine", "model_name"))
                found[match[1], labels] = float(match[3])
        return found
