"""A gateway that is played: the page's own files, and figures of a busy week, so that a browser can
be measured with more than a small machine makes. Texts in it try to be markup."""
import http.server
import json
import math
import os
import threading
import time
import urllib.parse

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../gateway/page")
CSP_BEGIN, CSP_END = '"Content-Security-Policy",', ");"
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8",
         ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
MARKUP = "<img src=x onerror=alert(1)>"
KEY = "kvist-key-of-the-test"
CONTEXTS, A_MINUTE, NODES = 10_000, 1000, 16
REASONS = ("evicted:host", "elsewhere", "pending", "expired", "cheaper", "forgotten")


def policy():
    """The Content-Security-Policy that the gateway sends, as its source has it."""
    with open(os.path.join(FOLDER, "page.c"), encoding="utf-8") as file:
        literals = file.read().split(CSP_BEGIN)[1].split(CSP_END)[0]
    return "".join(literals.split('"')[1::2])


def tokens(prompt, share):
    """What became of a prompt, of which the share was hit."""
    hit = int(prompt * share)
    device, host, disk = hit // 2, hit // 3, hit // 10
    gap = {reason: prompt // 100 for reason in REASONS}
    rest = prompt - hit - sum(gap.values())
    return {"prompt": prompt, "gap": gap, "diverged": rest // 4, "short": rest // 8,
            "new": rest - rest // 4 - rest // 8,
            "hit": {"device": device, "host": host, "disk": disk,
                    "remote": hit - device - host - disk}}


class Figures:
    """What the doors answer; requests come in as time passes."""

    def __init__(self):
        self.begun = time.time()

    def overview(self, query):
        now = time.time()
        week = query.get("span") == "week"
        step, count = (600, 1008) if week else (10, 360)
        first = (int(now) // step - count + 1) * step
        points = []
        for at in range(first, first + count * step, step):
            prompt, share = 400_000 + at % 1000, 0.7 + 0.1 * math.sin(at / (step * 30))
            hit = int(prompt * share)
            points.append([(at - first) // step, prompt, hit, hit + prompt // 20, 170])
        windows = {name: {"answers": answers, "tokens": tokens(answers * 5000, 0.72)}
                   for name, answers in (("now", 5000), ("hour", 60_000), ("start", 9_000_000))}
        ranks = {"p50": 412.5, "p90": 1930.25, "p99": 4100.0}
        return {
            "object": "overview", "scope": "all", "tenant": None, "version": "0.0.0",
            "model": MARKUP, "now_ms": int(now * 1000), "started": int(self.begun) - 500_000,
            "running": 42, "window_s": 300, "windows": windows,
            "targets": {"ttft_ms": 2000.0, "tpot_ms": 80.0},
            "latency": {"recent": True, "answers": 2048, "good": 1900, "ttft_ms": ranks,
                        "tpot_ms": ranks, "queue_ms": ranks, "mean_ms": {
                            "queue": 5.0, "match": 0.4, "load": 60.0, "compute": 300.0,
                            "transfer": 40.0, "decode": 1900.0}},
            "totals": {"answers": 9_000_000, "good_answers": 8_000_000, "generated": 10**9,
                       "compute_s": 1e6, "decode_s": 1e7, "avoided_s": 3.2e6},
            "history": {"span": "week" if week else "hour", "begins": first,
                        "step_s": step, "points": points},
            "nodes": [self.node(number, now) for number in range(NODES)]}

    def node(self, number, now):
        moved = int((now - self.begun) * 1e8)
        tiers = [{"name": name, "capacity_bytes": size << 30, "used_bytes": (size << 30) * 7 // 10,
                  "objects": 10**6, "hit_blocks": moved // 10**5, "read_bytes": moved,
                  "written_bytes": moved // 2, "evicted": moved // 10**6}
                 for name, size in (("device", 80), ("host", 512), ("disk", 8192))]
        return {"name": f"decode-{number}{MARKUP if number == 1 else ''}", "role": "decode",
                "tiers": tiers, "error": None, "told_ms_ago": 12, "attached_to": MARKUP,
                "draining": number == 2, "disk_offline": number == 3, "running": 3, "queued": 1,
                "uptime_s": 500_000, "sent_bytes": moved, "received_bytes": moved}

    def requests(self, query):
        newest = 100 + int((time.time() - self.begun) * A_MINUTE / 60)
        after, limit = int(query.get("after", 0)), int(query.get("limit", 50))
        rows = []
        for number in range(newest, max(after, newest - limit), -1):
            rows.append({
                "number": number, "id": f"chatcmpl-{number:032x}", "route": "chat",
                "arrived_ms": int(time.time() * 1000), "code": 500 if number % 50 == 0 else 200,
                "tenant": MARKUP if number % 3 else "", "agent": "planner", "node": "decode-0",
                "prefilled_by": "prefill-0", "reason": "evicted:host", "generated": 200,
                "tokens": tokens(4000 + number % 1000, number % 10 / 10),
                "ms": {"queue": 3.1, "match": 0.2, "load": 50.0, "compute": 90.0 * (number % 10),
                       "transfer": 20.0, "decode": 1500.0}})
        return {"object": "list", "data": rows}

    def contexts(self, query):
        offset, limit = int(query.get("offset", 0)), int(query.get("limit", 50))
        now = int(time.time() * 1000)
        rows = [{"key": f"{number:064x}", "node": MARKUP, "tokens": 16 * (1 + number % 4000),
                 "bytes": 368_640 * (1 + number % 4000),
                 "tier": ("device", "host", "disk")[number % 3],
                 "used_ms": now - number * 1000, "expires_ms": None,
                 "pinned_until_ms": now + 10**6 if number % 9 == 0 else None,
                 "priority": "interactive", "tenant": MARKUP}
                for number in range(offset, min(offset + limit, CONTEXTS))]
        tiers = {name: {"contexts": CONTEXTS // 3, "tokens": 10**7}
                 for name in ("device", "host", "disk")}
        return {"object": "list", "total": CONTEXTS, "offset": offset, "nodes": NODES,
                "nodes_told": NODES, "told_ms_ago": 800, "tiers": tiers, "data": rows}


    def audit(self, query):
        rows = [{"kind": kind, "tenant": MARKUP, "template": "planner", "session": None,
                 "unit": "tokens", "at": 17 + number, "count": 40 - number, "cost": 90_000,
                 "cost_seconds": 31.5, "first_unix_ms": 1, "last_unix_ms": 2,
                 "before": "You are a planner.\nThe time is ", "was": MARKUP, "is": "12:31:09",
                 "after": ".\nTools: " + "search, read, write, " * 12,
                 "was_request": f"chatcmpl-{number:032x}",
                 "is_request": f"chatcmpl-{number + 1:032x}",
                 "do": "Move the time behind what stays the same, or leave it out."}
                for number, kind in enumerate(("timestamp", "uuid", "json-keys", "tools"))]
        return {"object": "list", "enabled": True, "data": rows[:int(query.get("limit", 50))],
                "totals": {"prompts": 1000, "compared": 900, "findings": 40, "cost": 360_000}}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    policy = policy()

    def log_message(self, *arguments):
        pass

    def do_GET(self):  # noqa: N802
        if self.server.is_gone:
            self.close_connection = True
            return
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        doors = {"/v1/overview": self.server.figures.overview,
                 "/v1/requests": self.server.figures.requests,
                 "/v1/contexts": self.server.figures.contexts,
                 "/v1/audit": self.server.figures.audit}
        if url.path in doors:
            if self.server.wants_key and self.headers.get("Authorization") != f"Bearer {KEY}":
                self.reply(401, "application/json", b'{"error":{"message":"a key"}}')
                return
            body = json.dumps(doors[url.path](query), separators=(",", ":")).encode()
            self.reply(200, "application/json", body)
            return
        name = "index.html" if url.path == "/" else os.path.basename(url.path)
        path = os.path.join(FOLDER, name)
        if not os.path.exists(path):
            self.reply(404, "text/plain", b"no such file")
            return
        with open(path, "rb") as file:
            self.reply(200, TYPES[os.path.splitext(name)[1]], file.read())

    def reply(self, code, kind, body):
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", self.policy)
        self.end_headers()
        self.wfile.write(body)


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """A browser that goes away in the middle is none."""


class Played:
    """with Played() as played: played.url; played.server.wants_key and .is_gone may be set."""

    def __init__(self):
        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.figures = Figures()
        self.server.wants_key = self.server.is_gone = False
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *arguments):
        self.server.shutdown()
        self.server.server_close()
