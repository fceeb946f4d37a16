"""kvist bench serve against an endpoint that is played: what it counts must be what was sent."""
import json
import os
import random
import signal
import ssl
import subprocess
import threading
import xml.dom.minidom

from cluster import NoCluster
from group_tenants import make_certificate
from vllm_server import BLOCK_TOKENS, Cache, Handler, NAME, Server


class Played(Handler):
    """An ideal cache behind OpenAI's doors, and what a test wants to go wrong."""

    def authorized(self):
        key = self.server.key
        return key is None or self.headers.get("Authorization") == f"Bearer {key}"

    def refuse(self, code, message):
        data = json.dumps({"error": {"message": message}}).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        if not self.authorized():
            self.refuse(401, "no such key")
        else:
            super().do_GET()

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        chat = self.path == "/v1/chat/completions"
        prompt = body["messages"][0]["content"] if chat else body["prompt"]
        if ("chat" if chat else "ids" if isinstance(prompt, list) else "text") not in server.takes:
            self.refuse(400, "not in this way")
            return
        tokens = prompt if isinstance(prompt, list) else [hash(word) for word in prompt.split()]
        with server.lock:
            server.running += 1
            server.running_max = max(server.running, server.running_max)
            server.bodies.append(body)
            number = len(server.bodies)
            server.arrived.notify_all()
            held = number == 1 or server.arrived.wait_for(  # the first one asks how to ask
                lambda: server.running_max >= server.hold, 60)
        try:
            assert held, "those that are waited for did not come"
            if number in server.fails:
                self.refuse(500, "played failure")
            else:
                self.answer(body, tokens, chat, number in server.breaks)
        finally:
            with server.lock:
                server.running -= 1

    def answer(self, body, tokens, chat, breaks):
        server, salt = self.server, None
        cached = server.cache.use(salt, tokens)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        ids = [random.randrange(256, 16000) for _ in range(body["max_tokens"])]
        for token in ids:
            choice = {"index": 0, "finish_reason": None}
            choice.update({"delta": {"content": " so"}} if chat else {"text": " so"})
            if server.gives_ids and body.get("return_token_ids"):
                choice["token_ids"] = [token]
            self.event({"choices": [choice]})
            if breaks:
                self.close_connection = True
                return
        if server.gives_ids:
            server.cache.use(salt, tokens + ids[:-1])
            server.rows.append(tokens + ids)
        usage = {"prompt_tokens": len(tokens), "completion_tokens": len(ids)}
        if server.tells:
            usage["prompt_tokens_details"] = {"cached_tokens": cached}
        self.event({"choices": [], "usage": usage})
        self.event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")


class Bench(NoCluster):
    """Played servers, and the command."""

    def path(self, name):
        return os.path.join(self.folder.name, name)

    def command(self, *options):
        return subprocess.run([self.binary, "bench", *options], capture_output=True, text=True,
                              timeout=120, check=False)

    def run(self, server, *options, code=0):
        """The run's JSON, or with another code what was said."""
        done = self.command("serve", *options, "--endpoint", server.url, "--json", "-")
        assert done.returncode == code, f"{options}: {done.returncode}\n{done.stderr}{done.stdout}"
        return json.loads(done.stdout) if code == 0 else done.stderr


class Serving:
    """A played server while the block runs."""

    def __init__(self, **behaviour):
        self.server = Server(("127.0.0.1", 0), Played)
        self.server.daemon_threads = True
        for name, value in {"key": None, "takes": ("ids", "text", "chat"), "hold": 0, "fails": (),
                            "breaks": (), "gives_ids": True, "tells": True, **behaviour}.items():
            setattr(self.server, name, value)
        self.server.cache, self.server.lock = Cache(), threading.RLock()
        self.server.arrived = threading.Condition(self.server.lock)
        self.server.running = self.server.running_max = 0
        self.server.bodies, self.server.rows = [], []
        self.server.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self.server

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


AGENTS = ("agents", "--sessions", "6", "--turns", "4", "--kinds", "2", "--prompt-tokens", "100",
          "--turn-tokens", "30", "--answer-tokens", "20", "--pause-ms", "0")


def make_cluster(binaries):
    return Bench(binaries, "serve")


def test_agents_extend_what_was_said(bench):
    with Serving() as server:
        run = bench.run(server, *AGENTS, "--concurrency", "1", "--slo", "ttft=50s,tpot=50s")
    phase, = run["phases"]
    assert run["prompts"] == "ids" and phase["answers"] == "as they came", run
    assert phase["requests"]["failed"] == phase["requests"]["not_sent"] == 0, phase["requests"]
    bodies = server.bodies[1:]  # the first one found out how it may be asked
    assert phase["requests"]["done"] == len(bodies) > 6, phase["requests"]
    # One at a time, an ideal cache finds exactly what the bench knows.
    tokens = phase["tokens"]
    assert tokens["hit"] == tokens["ideal"] > 0 and tokens["foreign"] == 0, tokens
    assert tokens["prompt"] == sum(len(body["prompt"]) for body in bodies), tokens
    rows = [tuple(row) for row in server.rows[1:]]
    extending = sum(any(body["prompt"][:len(row)] == list(row) for row in rows)
                    for body in bodies)
    assert extending == len(bodies) - 6, (extending, len(bodies))
    good = phase["goodput"]
    assert good["share"] == 1 and good["requests_per_s"] == phase["requests_per_s"], good
    assert all(body["ignore_eos"] and body["stream"] for body in bodies)


def test_answers_that_are_not_told_are_stood_in_for(bench):
    with Serving(gives_ids=False) as server:
        phase, = bench.run(server, *AGENTS, "--concurrency", "1")["phases"]
    tokens = phase["tokens"]
    assert phase["answers"] == "stood in for", phase["answers"]
    assert tokens["hit"] == tokens["ideal"] > 0 and tokens["foreign"] == 0, tokens


def test_a_closed_loop_has_so_many_at_once(bench):
    with Serving(hold=4) as server:  # no answer before four are there
        run = bench.run(server, "batch", "--sessions", "5", "--questions", "4", "--prompt-tokens",
                        "64", "--turn-tokens", "16", "--answer-tokens", "3", "--concurrency", "4")
    assert run["phases"][0]["requests"]["done"] == 20 and server.running_max == 4, run


def test_an_open_loop_waits_for_nobody(bench):
    with Serving(hold=9) as server:
        phase, = bench.run(server, "sweep", "--shared", "0", "--requests", "9", "--prompt-tokens",
                           "32", "--answer-tokens", "2", "--rate", "500")["phases"]
    assert phase["requests"]["done"] == 9 and phase["rate"] == 500, phase["requests"]
    assert server.running_max == 9, server.running_max


def test_sweep_finds_its_share(bench):
    with Serving() as server:
        run = bench.run(server, "sweep", "--prompt-tokens", "320", "--answer-tokens", "2",
                        "--shared", "0,50,100", "--requests", "6", "--concurrency", "1,3")
    assert [(phase["shared_percent"], phase["concurrency"]) for phase in run["phases"]] == [
        (share, load) for load in (1, 3) for share in (0, 50, 100)], run["phases"]
    for phase in run["phases"]:
        share = phase["shared_percent"]
        expected = min(320 * share // 100, 319) // BLOCK_TOKENS * BLOCK_TOKENS
        tokens, requests = phase["tokens"], phase["requests"]
        assert requests["done"] == 6 and requests["warming"] == (share > 0), requests
        assert tokens["hit"] == 6 * expected, (share, tokens)
        assert tokens["foreign"] == 0, tokens


def test_failures_are_counted_and_end_their_session(bench):
    with Serving(fails=(2,), breaks=(4,)) as server:
        phase, = bench.run(server, *AGENTS, "--concurrency", "1")["phases"]
    requests = phase["requests"]
    assert requests["failed"] == 2 and requests["not_sent"] > 0, requests
    texts = {failure["text"]: failure["count"] for failure in phase["failures"]}
    assert texts.get("HTTP 500: played failure") == 1 and len(texts) == 2, texts
    with Serving(fails=range(2, 99)) as server:
        said = bench.run(server, *AGENTS, "--concurrency", "1", code=1)
    assert "not one request was answered" in said, said


def test_other_ways_of_asking(bench):
    for takes, prompts in ((("text", "chat"), "text"), (("chat",), "chat")):
        with Serving(takes=takes, gives_ids=False, tells=prompts == "text") as server:
            run = bench.run(server, "tree", "--sessions", "2", "--prompt-tokens", "160",
                            "--answer-tokens", "4", "--turn-tokens", "16", "--depth", "2",
                            "--concurrency", "1")
        phase, = run["phases"]
        assert run["prompts"] == prompts, run["prompts"]
        assert phase["requests"]["done"] == 2 * (1 + 4 + 2 * 4), phase["requests"]
        assert phase["ideal_hit_rate"] > 0.5, phase["ideal_hit_rate"]
        assert (phase["hit_rate"] is None) == (prompts == "chat"), phase["hit_rate"]
    with Serving(takes=()) as server:
        said = bench.run(server, "tree", code=1)
        assert "not in this way" in said, said


def test_key(bench):
    with Serving(key="secret") as server:
        run = bench.run(server, "sweep", "--requests", "2", "--prompt-tokens", "32", "--shared",
                        "0", "--key", "secret")
        assert run["phases"][0]["requests"]["done"] == 2
        assert "secret" not in json.dumps(run)
        said = bench.run(server, "sweep", "--key", "wrong", code=1)
        assert "401" in said and "--key" in said, said


def test_an_https_endpoint(bench):
    certificate, key = make_certificate(bench.folder.name, "serve")
    with Serving() as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.url = server.url.replace("http:", "https:")
        run = bench.run(server, *AGENTS, "--concurrency", "1", "--ca", certificate)
        assert run["phases"][0]["requests"]["failed"] == 0, run["phases"][0]["failures"]
        said = bench.run(server, *AGENTS, code=1)
        assert "certificate" in said, said


def test_an_interrupted_run_says_what_it_has(bench):
    with Serving(hold=99) as server:
        process = subprocess.Popen(
            [bench.binary, "bench", "serve", *AGENTS, "--concurrency", "4", "--endpoint",
             server.url, "--json", "-"], stdout=subprocess.PIPE, text=True)
        with server.lock:
            assert server.arrived.wait_for(lambda: len(server.bodies) == 5, 60), server.bodies
        process.send_signal(signal.SIGINT)
        phase, = json.loads(process.communicate(timeout=60)[0])["phases"]
        with server.lock:
            server.hold = 0
            server.arrived.notify_all()
    assert process.returncode == 0 and phase["interrupted"] is True, phase
    assert phase["requests"]["done"] == phase["requests"]["sent"] == 0, phase["requests"]
    assert phase["hit_rate"] is None, phase["hit_rate"]


def test_trace(bench):
    lines = [{"timestamp": 1000 * i, "input_length": 600 + 512 * (i % 3), "output_length": 6,
              "hash_ids": [0, 1] if i % 3 == 0 else [0, 2, 3] if i % 3 == 1 else [0, 2, 4, 5]}
             for i in range(9)]
    with open(bench.path("trace.jsonl"), "w", encoding="utf-8") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))
    with Serving(gives_ids=False) as server:
        run = bench.run(server, "trace", "--trace", bench.path("trace.jsonl"), "--scale", "25",
                        "--stretch", "0.02", "--context-tokens", "350")
    phase, = run["phases"]
    assert phase["requests"]["done"] == 9 and phase["requests"]["made_shorter"] == 3, phase
    prompts = [body["prompt"] for body in server.bodies[1:]]
    assert sorted({len(prompt) for prompt in prompts}) == [150, 278, 349], prompts
    first, second, third = prompts[:3]
    assert first[:128] == second[:128] == third[:128] and second[:256] == third[:256]
    assert first[128:140] != second[128:140], "other ids, but the same tokens"
    tokens = phase["tokens"]
    assert tokens["hit"] <= tokens["ideal"] and tokens["foreign"] == 0, tokens


def test_report(bench):
    paths = []
    for name, share in (("one", "0,50"), ("other", "0,50")):
        paths.append(bench.path(name + ".json"))
        with Serving() as server:
            done = bench.command(
                "serve", "sweep", "--endpoint", server.url, "--requests", "4", "--prompt-tokens",
                "64", "--answer-tokens", "4", "--shared", share, "--name", f"<{name}>",
                "--json", paths[-1], "--html", bench.path("own.html"))
            assert done.returncode == 0, done.stderr
            assert "hit" in done.stdout and "50 % shared, 8 at once" in done.stdout, done.stdout
    folder = bench.path("figures")
    os.mkdir(folder)
    done = bench.command("report", "--runs", ",".join(paths), "--html", bench.path("both.html"),
                         "--figures", folder)
    assert done.returncode == 0, done.stderr
    names = sorted(os.listdir(folder))
    assert {"hit-rate.svg", "requests-per-s.svg", "ttft-p99.svg", "e2e-mean.svg"} <= set(names)
    for name in names:
        figure = xml.dom.minidom.parse(os.path.join(folder, name)).documentElement
        assert figure.tagName == "svg", name
    with open(bench.path("both.html"), encoding="utf-8") as file:
        page = file.read()
    assert page.count("<figure>") == len(names) and "&lt;one>" in page and "<one>" not in page
    assert "<script" not in page and "src=" not in page and "href=" not in page
    done = bench.command("report", "--runs", bench.path("own.html"))
    assert done.returncode == 1 and "own.html" in done.stderr, done.stderr


def test_refused(bench):
    for options in ((), ("agent",), ("agents", "--rate", "1", "--concurrency", "2"),
                    ("agents", "--rate", "x"), ("agents", "--concurrency", "1.5"),
                    ("agents", "--slo", "ttft=2"), ("agents", "--slo", "first=2s"), ("trace",),
                    ("agents", "--shared", "50"), ("sweep", "--shared", "101"),
                    ("agents", "--trace", "x"), ("agents", "--key", "a\nb"),
                    ("agents", "--prompts", "words"), ("agents", "--fields", '{"max_tokens": 1}'),
                    ("trace", "--trace", "x", "--stretch", "1,2")):
        done = bench.command("serve", *options)
        assert done.returncode == 2 and done.stderr, f"{options}: {done.returncode} {done.stderr}"
    with Serving() as server:
        said = bench.run(server, "sweep", "--prompt-tokens", "9000", code=1)
        assert "--prompt-tokens" in said and "8192" in said, said
        said = bench.run(server, "sweep", "--model", "another", "--prompt-tokens", "16",
                         "--requests", "1", "--shared", "0")
        assert said["model"] == "another" != NAME
        said = bench.run(server, "sweep", "--fields", "[]", code=2)
        assert "--fields" in said, said
        url = server.url
    done = bench.command("serve", "sweep", "--endpoint", url)
    assert done.returncode == 1 and url in done.stderr, done.stderr
