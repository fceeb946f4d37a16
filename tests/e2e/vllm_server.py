#!/usr/bin/env python3
"""A server with vLLM's doors and no model behind them: a stand-in for tests.

usage: vllm_server.py --model GGUF [--port PORT] [--pause SECONDS]

It tokenizes as the GGUF file says (an implementation of its own), and each token that it
"generates" is a digest of all tokens before it: an answer that goes on elsewhere with anything but
exactly what was there ends otherwise. Prefixes are cached in blocks of 16 tokens, apart by
cache_salt. Prints its port when it listens.
"""
import argparse
import hashlib
import http.server
import json
import mmap
import re
import struct
import threading
import time
import unicodedata

NAME, CONTEXT_TOKENS, BLOCK_TOKENS = "/models/standin", 8192, 16
SIZES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY, CONTROL = 8, 9, 3


class Gguf:
    """The key-value pairs at the head of a GGUF file."""

    def __init__(self, path):
        with open(path, "rb") as file:
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.at = 0
        magic, _, _, count = struct.unpack_from("<4sIQQ", self.data)
        assert magic == b"GGUF", f"{path} is no GGUF file"
        self.at = 24
        self.fields = {}
        for _ in range(count):
            key = self.string()
            self.fields[key.decode()] = self.value(self.number("I"))

    def number(self, form):
        value, = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def string(self):
        size = self.number("Q")
        self.at += size
        return self.data[self.at - size:self.at]

    def value(self, kind):
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            inner, count = self.number("I"), self.number("Q")
            return [self.value(inner) for _ in range(count)]
        return self.number(SIZES[kind])


def byte_characters():
    """The character that stands for each byte in a byte-level vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (byte for byte in range(256) if byte not in plain)
    return {**{byte: chr(byte) for byte in plain},
            **{byte: chr(256 + i) for i, byte in enumerate(others)}}


class Tokenizer:
    """Byte-level BPE with the split of SmolLM."""

    CONTRACTION = re.compile(r"'(?:[stmd]|re|ve|ll)")
    # On a text of classes: letters a, numbers 0, spaces, everything else !.
    WORD = re.compile(r"0| ?a+| ?!+|[ \t]+(?=0|\Z)|[ \t]+(?![^ \t])|[ \t]+")

    def __init__(self, path):
        fields = Gguf(path).fields
        assert fields["tokenizer.ggml.pre"] == b"smollm", fields["tokenizer.ggml.pre"]
        self.texts = [text.decode() for text in fields["tokenizer.ggml.tokens"]]
        self.ids = {text: i for i, text in enumerate(self.texts)}
        self.ranks = {tuple(merge.decode().split(" ")): i
                      for i, merge in enumerate(fields["tokenizer.ggml.merges"])}
        self.end = fields["tokenizer.ggml.eos_token_id"]
        special = [text for text, kind in zip(self.texts, fields["tokenizer.ggml.token_type"])
                   if kind == CONTROL]
        self.special = re.compile("(" + "|".join(map(re.escape, special)) + ")")
        self.characters = byte_characters()
        self.words = [i for i, text in enumerate(self.texts)
                      if re.fullmatch("\u0120[a-z]{3,6}", text)]

    @staticmethod
    def class_of(character):
        if character.isspace() or unicodedata.category(character)[0] == "Z":
            return " " if character == " " else "\t"
        return {"L": "a", "N": "0"}.get(unicodedata.category(character)[0], "!")

    def merge(self, word):
        parts = [self.characters[byte] for byte in word.encode()]
        while len(parts) > 1:
            best = min(zip(parts, parts[1:]), key=lambda pair: self.ranks.get(pair, 1 << 30))
            if best not in self.ranks:
                break
            i = next(i for i in range(len(parts) - 1) if (parts[i], parts[i + 1]) == best)
            parts[i:i + 2] = ["".join(best)]
        return [self.ids[part] for part in parts]

    def encode(self, text):
        tokens = []
        for piece in self.special.split(text):
            if self.special.fullmatch(piece):
                tokens.append(self.ids[piece])
                continue
            classes, at = "".join(map(self.class_of, piece)), 0
            while at < len(piece):
                found = self.CONTRACTION.match(piece, at) or self.WORD.match(classes, at)
                tokens += self.merge(piece[at:found.end()])
                at = found.end()
        return tokens

    def next_token(self, tokens):
        """A word that depends on all tokens before it."""
        digest = hashlib.sha256(struct.pack(f"<{len(tokens)}I", *tokens)).digest()
        return self.words[int.from_bytes(digest[:4], "little") % len(self.words)]

    def text(self, token):
        return self.texts[token].replace("\u0120", " ")


class Cache:
    """Which blocks were computed, by salt."""

    def __init__(self):
        self.blocks = set()
        self.lock = threading.Lock()

    def use(self, salt, tokens):
        """How many tokens at the front were cached; from now on all whole blocks are."""
        keys = [hash((salt, tuple(tokens[:end])))
                for end in range(BLOCK_TOKENS, len(tokens) + 1, BLOCK_TOKENS)]
        with self.lock:
            hit = 0
            while hit < len(keys) and keys[hit] in self.blocks:
                hit += 1
            self.blocks.update(keys)
        return min(hit * BLOCK_TOKENS, (len(tokens) - 1) // BLOCK_TOKENS * BLOCK_TOKENS)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def reply(self, body, kind="application/json"):
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        if self.path == "/health":
            self.reply("")
        elif self.path == "/v1/models":
            self.reply({"object": "list", "data": [
                {"id": NAME, "object": "model", "max_model_len": CONTEXT_TOKENS}]})
        elif self.path == "/metrics":
            self.reply(f'vllm:num_requests_running{{engine="0",model_name="{NAME}"}} '
                       f"{float(self.server.running)}\n"
                       f'vllm:num_requests_waiting{{engine="0",model_name="{NAME}"}} 0.0\n',
                       "text/plain")
        else:
            self.send_error(404)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            tokens = self.server.tokenizer.encode(body["prompt"])
            self.reply({"count": len(tokens), "max_model_len": CONTEXT_TOKENS, "tokens": tokens})
        elif self.path == "/v1/completions":
            with self.server.lock:
                self.server.running += 1
            try:
                self.complete(body)
            finally:
                with self.server.lock:
                    self.server.running -= 1
        else:
            self.send_error(404)

    def event(self, data):
        text = data if isinstance(data, str) else json.dumps(data)
        piece = f"data: {text}\n\n".encode()
        self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")

    def complete(self, body):
        assert body["model"] == NAME and body["stream"] and body["return_token_ids"], body
        tokenizer, tokens = self.server.tokenizer, list(body["prompt"])
        prompt_count = len(tokens)
        cached = self.server.cache.use(body.get("cache_salt"), tokens)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for i in range(body["max_tokens"]):
            time.sleep(self.server.pause_s)
            tokens.append(tokenizer.next_token(tokens))
            last = i + 1 == body["max_tokens"]
            self.event({"id": body["request_id"], "choices": [
                {"index": 0, "text": tokenizer.text(tokens[-1]), "token_ids": tokens[-1:],
                 "finish_reason": "length" if last else None, "stop_reason": None}]})
        self.event({"choices": [], "usage": {
            "prompt_tokens": prompt_count, "completion_tokens": len(tokens) - prompt_count,
            "total_tokens": len(tokens), "prompt_tokens_details": {"cached_tokens": cached}}})
        self.event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, request, client_address):
        pass  # a client that goes away is no news


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--pause", type=float, default=0.0, help="before each token")
    options = parser.parse_args()
    server = Server(("127.0.0.1", options.port), Handler)
    server.tokenizer, server.cache = Tokenizer(options.model), Cache()
    server.pause_s, server.running, server.lock = options.pause, 0, threading.Lock()
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
