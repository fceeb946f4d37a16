"""LMCache's server beside kvist-store: two vLLM servers in one run, asked in turns.

LMCache runs as its multi-process server, engine-driven (what it has for a CPU), in two plays:

    lmcache          KV travels through its sockets, which is what it does unless told otherwise
    lmcache-memory   through shared memory, the fastest that it has (--shm-name)

Its chunks are 256 tokens, its default. Prompts are one token longer than whole chunks, so that both
sides load as many tokens and compute that one.

Two rates of retrieving are told. `own` is each system's word: Kvist's load time goes from when the
load is asked for to the last byte in vLLM's pages, LMCache's is what its server logs. `seen` is
what vLLM's user sees of it, the same for both: bytes that came, over what they made the first token
later than vLLM's own prefix cache does (medians).
"""
import os
import re
import statistics

from children import ChildError
from figures import Counts
from plays import TIMED_ANSWER_TOKENS, Play
from servers import ENGINE_ENVIRONMENT, Engine, free_port, kvist

GIB = 1 << 30
MEMORY_GIB = 2
CHUNK_TOKENS = 256
TOKEN_BYTES = 23040  # of this model in bfloat16
LOGGED = re.compile(r"(Stored|Retrieved) (\d+) tokens in ([\d.]+) seconds")


class LmcacheServer:
    def __init__(self, children, places, shares_memory):
        self.children, self.places, self.shares_memory = children, places, shares_memory
        self.port, self.http_port = free_port(), free_port()
        self.log = places.log("lmcache-memory" if shares_memory else "lmcache")
        self.segment = f"lmcache_l1_pool_kvist-{os.getpid()}"
        self.child = None

    def command(self):
        home = os.path.join(self.places.environment, "lmcache", "bin")
        words = [os.path.join(home, "python"), os.path.join(home, "lmcache"), "server",
                 "--host", "127.0.0.1", "--port", str(self.port),
                 "--http-host", "127.0.0.1", "--http-port", str(self.http_port),
                 "--l1-size-gb", str(MEMORY_GIB), "--eviction-policy", "LRU",
                 "--chunk-size", str(CHUNK_TOKENS),
                 "--supported-transfer-mode", "engine_driven"]
        if self.shares_memory:
            words += ["--shm-name", self.segment, "--no-l1-use-lazy"]
        return words

    def start(self):
        room = os.statvfs("/dev/shm")
        if self.shares_memory and room.f_bavail * room.f_frsize < (MEMORY_GIB + 1) * GIB:
            raise ChildError(f"LMCache's server: /dev/shm has less than {MEMORY_GIB + 1} GiB free; "
                             "leave lmcache-memory out of --plays")
        self.child = self.children.start("LMCache's server", self.command(), ENGINE_ENVIRONMENT,
                                         self.log)
        self.child.wait_until(self._ready, 300, "its start")

    def _ready(self):
        with open(self.log, encoding="utf-8", errors="replace") as file:
            return "Application startup complete" in file.read()

    def transfer(self):
        return {"kv_connector": "LMCacheMPConnector", "kv_role": "kv_both",
                "kv_connector_extra_config": {"lmcache.mp.host": "tcp://127.0.0.1",
                                              "lmcache.mp.port": self.port}}

    def logged(self):
        """{"Stored": (tokens, seconds), "Retrieved": ...} of all that it logged so far."""
        sums = {"Stored": [0, 0.0], "Retrieved": [0, 0.0]}
        with open(self.log, encoding="utf-8", errors="replace") as file:
            for what, tokens, seconds in LOGGED.findall(file.read()):
                sums[what][0] += int(tokens)
                sums[what][1] += float(seconds)
        return sums

    def check_transport(self):
        """ChildError: KV does not travel as this play says."""
        with open(self.log, encoding="utf-8", errors="replace") as file:
            if ("Using shm non-GPU" in file.read()) != self.shares_memory:
                raise ChildError(f"LMCache's server chose another transport; see {self.log}")

    def stop(self):
        self.children.stop(self.child)
        try:
            os.unlink("/dev/shm/" + self.segment)
        except FileNotFoundError:
            pass


def own_rates(server, before):
    """GB/s by LMCache's log, of what it logged since."""
    rates = {}
    for what, name in (("Stored", "own_store_GB_s"), ("Retrieved", "own_retrieve_GB_s")):
        tokens, seconds = (now - then for now, then in zip(server.logged()[what], before[what]))
        rates[name] = rate(tokens, seconds)
    return rates


def rate(tokens, seconds):
    """GB/s; None: nothing that takes time."""
    return tokens * TOKEN_BYTES / seconds / 1e9 if seconds > 0 else None


class Side:
    """One vLLM and what it was seen to do."""

    def __init__(self, engine):
        self.engine = engine
        self.cold_s, self.prefix_s, self.ram_s, self.external_tokens = [], [], [], []

    def ask(self, tokens):
        return self.engine.client.complete(tokens, TIMED_ANSWER_TOKENS).ttft_s

    def round(self, tokens, part):
        if part == "cold":
            self.cold_s.append(self.ask(tokens))
        elif part == "prefix":
            self.prefix_s.append(self.ask(tokens))
            self.engine.client.reset()
        else:
            before = self.engine.client.metrics()
            self.ram_s.append(self.ask(tokens))
            counts = Counts.between(before, self.engine.client.metrics())
            self.external_tokens.append(counts.sources["external_kv_transfer"])

    def plain(self):
        tokens = statistics.median(self.external_tokens)
        later = statistics.median(self.ram_s) - statistics.median(self.prefix_s)
        return {"cold_ttft_s": self.cold_s, "prefix_ttft_s": self.prefix_s,
                "ram_ttft_s": self.ram_s, "retrieved_tokens": self.external_tokens,
                "seen_GB_s": rate(tokens, later)}


def over_sockets(plays):
    return play(plays, Play("lmcache"), False)


def over_memory(plays):
    return play(plays, Play("lmcache-memory"), True)


def play(plays, result, shares_memory):
    """Each prompt on both sides before the next: cold, from vLLM's own cache, from RAM."""
    host = plays.host
    server = LmcacheServer(host.children, host.places, shares_memory)
    plays.say(f"{result.name}: starting its server")
    server.start()
    try:
        kvist_engine, lmcache_engine = host.use(
            a=kvist(host.store.socket),
            lmcache=lambda: Engine(host.children, host.places, "lmcache", server.transfer(),
                                   plays.options.kv_gib, python="lmcache"))
        server.check_transport()
        length = plays.options.tokens // CHUNK_TOKENS * CHUNK_TOKENS + 1
        sides = {"kvist": Side(kvist_engine), "lmcache": Side(lmcache_engine)}
        before, logged = kvist_engine.client.metrics(), server.logged()
        for index in range(plays.options.repeat):
            plays.say(f"{result.name}: prompt {index + 1} of {plays.options.repeat}, both sides")
            tokens = plays.maker.timed(result.name, index, length)
            for part in ("cold", "prefix", "ram"):
                order = list(sides.values())
                for side in order if index % 2 == 0 else reversed(order):
                    side.round(tokens, part)
        kvist_engine.client.reset()
        counts = Counts.between(before, kvist_engine.client.metrics())
        result.more = {name: side.plain() for name, side in sides.items()}
        result.more["kvist"].update(own_retrieve_GB_s=counts.load_rate(),
                                    own_store_GB_s=counts.save_rate())
        result.more["lmcache"].update(own_rates(server, logged))
        host.stop("lmcache")
    finally:
        server.stop()
    return result
