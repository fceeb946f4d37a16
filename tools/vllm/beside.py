"""LMCache's server beside kvist-store: two vLLM servers in one run, asked in turns.

LMCache runs as its multi-process server, engine-driven (what it has for a CPU), in two plays:

    lmcache          KV travels through its sockets, which is what it does unless told otherwise
    lmcache-memory   through shared memory, the fastest that it has (--shm-name)

Its chunks are 256 tokens, its default. Prompts are one token longer than whole chunks, so that both
sides load as many tokens and compute that one.

Rates are each system's own word, prompt by prompt: Kvist's time goes from when a load (a save) is
asked for to the last byte in vLLM's pages (to its being sealed), LMCache's is what its server logs
of it. What vLLM's user sees of them is in the times to the first token.
"""
import os
import re

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

    def rates(self, what):
        """GB/s of each prompt that it logged as "Stored" or "Retrieved"."""
        with open(self.log, encoding="utf-8", errors="replace") as file:
            return [int(tokens) * TOKEN_BYTES / float(seconds) / 1e9
                    for verb, tokens, seconds in LOGGED.findall(file.read())
                    if verb == what and float(seconds) > 0]

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


class Side:
    """One vLLM and what it was seen to do; rates: Kvist's."""

    def __init__(self, engine):
        self.client = engine.client
        self.cold_s, self.prefix_s, self.ram_s, self.retrieved_tokens = [], [], [], []
        self.retrieve_rates, self.store_rates = [], []

    def ask(self, tokens):
        """(seconds to the first token, what the counters say of it)."""
        before = self.client.metrics()
        answer = self.client.complete(tokens, TIMED_ANSWER_TOKENS)
        return answer.ttft_s, Counts.between(before, self.client.metrics())

    def cold(self, tokens):
        self.cold_s.append(self.ask(tokens)[0])
        # Stored before the next is asked.
        self.client.reset()

    def ram(self, tokens):
        ttft_s, counts = self.ask(tokens)
        self.ram_s.append(ttft_s)
        self.retrieved_tokens.append(counts.sources["external_kv_transfer"])
        # Its steps brought word of the saves that came before, too.
        self.retrieve_rates += filter(None, [counts.load_rate()])
        self.store_rates += filter(None, [counts.save_rate()])

    def prefix(self, tokens):
        self.prefix_s.append(self.ask(tokens)[0])

    def plain(self):
        return {"cold_ttft_s": self.cold_s, "prefix_ttft_s": self.prefix_s,
                "ram_ttft_s": self.ram_s, "retrieved_tokens": self.retrieved_tokens,
                "retrieve_GB_s": self.retrieve_rates, "store_GB_s": self.store_rates}


def over_sockets(plays):
    return play(plays, Play("lmcache"), False)


def over_memory(plays):
    return play(plays, Play("lmcache-memory"), True)


def play(plays, result, shares_memory):
    """Each prompt on both sides before the next: cold, from RAM, from vLLM's own cache."""
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
        ours_theirs = Side(kvist_engine), Side(lmcache_engine)
        for index in range(plays.options.repeat):
            plays.say(f"{result.name}: prompt {index + 1} of {plays.options.repeat}, both sides")
            tokens = plays.maker.timed(result.name, index, length)
            for part in (Side.cold, Side.ram, Side.prefix):
                for side in ours_theirs if index % 2 == 0 else reversed(ours_theirs):
                    part(side, tokens)
        ours, theirs = ours_theirs
        theirs.retrieve_rates = server.rates("Retrieved")
        theirs.store_rates = server.rates("Stored")
        result.more = {"kvist": ours.plain(), "lmcache": theirs.plain()}
        host.stop("lmcache")
    finally:
        server.stop()
    return result
