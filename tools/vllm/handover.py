"""P/D: one vLLM computes prompts, another answers; a small proxy of ours between them.

The proxy has a prompt computed at the producer (one token), then sends the request to the consumer
with what the producer said (kv_transfer_params), and passes the consumer's stream on as it comes.
Each prompt has a cache salt of its own: nothing that other plays or prompts stored is found, so
that all whole blocks come from one prefill at the producer. Only that is a way to compute which the
control has gone too; a prompt whose blocks two prefills and a decode have made has bits of its own.
"""
import hashlib
import http.client
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from client import LIMIT_S, Client, RequestFailed
from figures import Counts
from plays import Play
from servers import MODEL_NAME, kvist

# What a producer is asked for; what it answers with is the consumer's.
ASK = {"do_remote_decode": True, "do_remote_prefill": False}


class Proxy:
    """Listens on a free port from its making on, until close()."""

    def __init__(self, producer, consumer):
        """Clients of both."""
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            begun = False  # to answer

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                try:
                    salt = {"cache_salt": body["cache_salt"]} if "cache_salt" in body else {}
                    body["kv_transfer_params"] = producer.prefill(body["prompt"], ASK, **salt)
                    forward(self, consumer.port, body)
                except (RequestFailed, OSError, http.client.HTTPException) as error:
                    self.close_connection = True
                    if not self.begun:
                        self.send_error(502, str(error)[:200])

            def log_message(self, *_):
                """Nobody reads it."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    @property
    def port(self):
        return self.server.server_address[1]

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def forward(handler, port, body):
    """The consumer's answer, piece by piece; the connection ends with it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
    try:
        connection.request("POST", handler.path, json.dumps(body),
                           {"Content-Type": "application/json"})
        response = connection.getresponse()
        handler.send_response(response.status)
        handler.send_header("Content-Type", response.headers.get("Content-Type", ""))
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.begun = handler.close_connection = True
        while piece := response.read1(65536):
            handler.wfile.write(piece)
            handler.wfile.flush()
    finally:
        connection.close()


def play(plays):
    """Timed from the proxy's client; the twin is the consumer alone."""
    result = Play("pd")
    host = plays.host
    socket = host.store.socket
    producer, consumer = host.use(producer=kvist(socket, "kv_producer"),
                                  consumer=kvist(socket, "kv_consumer"))
    proxy = Proxy(producer.client, consumer.client)
    try:
        client = Client(proxy.port, MODEL_NAME)

        def way(tokens, count):
            salt = hashlib.sha256(repr(tokens).encode()).hexdigest()
            return client.complete(tokens, count, cache_salt=salt)
        plays.say(f"pd: {len(plays.timed)} pairs of {plays.options.tokens} tokens")
        before = producer.client.metrics()
        for index, tokens in enumerate(plays.timed):
            plays.time_twin(result, consumer, index)
            plays.time(result, consumer, tokens, way)
        plays.compare(result, consumer, way)
        result.more["producer"] = Counts.between(before, producer.client.metrics()).plain()
    finally:
        proxy.close()
    return result
