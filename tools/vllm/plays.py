"""The plays: one idea of where a prompt's KV comes from each, timed and compared.

    control   vLLM without Kvist, and with itself: what the answers are, and which are steady:
              computed, from its own prefix cache, each prompt alone, in two processes
    cold      nothing is stored: everything is computed, and saved
    prefix    vLLM's own prefix cache
    ram       that cache is emptied: from kvist-store's memory
    restart   vLLM was restarted: from memory
    disk      vLLM and kvist-store were restarted: from disk
    shared    on a second vLLM that never saw the prompts

handover.py has P/D, beside.py LMCache. Where a prompt's KV is found is timed in turns with a prompt
of the same length that nobody has seen (the twin), on the same server.
"""
import time
from dataclasses import dataclass, field

from figures import Counts, Equality
from servers import Engine, Store, kvist

ANSWER_TOKENS = 16
TIMED_ANSWER_TOKENS = 4


@dataclass
class Play:
    """What one play gave. ttft_s, twin_s: of each repetition, seconds. more: further figures."""
    name: str
    ttft_s: list = field(default_factory=list)
    twin_s: list = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    equality: Equality = None
    more: dict = field(default_factory=dict)
    seconds: float = 0.0


class Host:
    """One machine: a kvist-store, and of vLLM those servers that a play uses, two at most."""

    def __init__(self, children, places, options, say):
        self.children, self.places, self.options, self.say = children, places, options, say
        self.store = Store(children, places, options.store_ram, options.store_disk)
        self.engines = {}

    def use(self, **wanted):
        """The engines of these names, in this order, started where they do not run; all others are
        stopped. wanted: name to transfer configuration, or to a function that makes an Engine."""
        for name in list(self.engines):
            if name not in wanted:
                self.stop(name)
        fresh = []
        for name, transfer in wanted.items():
            if name not in self.engines:
                engine = transfer() if callable(transfer) else Engine(
                    self.children, self.places, name, transfer, self.options.kv_gib)
                self.say(f"starting vLLM {name}")
                engine.start()
                self.engines[name] = engine
                fresh.append(engine)
        for engine in fresh:
            engine.ready()
        return [self.engines[name] for name in wanted]

    def any_engine(self):
        """One that runs; some play always has one."""
        return next(iter(self.engines.values()))

    def use_kvist(self, *names, role="kv_both"):
        return self.use(**{name: kvist(self.store.socket, role) for name in names})

    def stop(self, name):
        self.say(f"stopping vLLM {name}")
        engine = self.engines.pop(name)
        # Not before what it was asked to save is saved.
        engine.client.reset()
        engine.stop()

    def stop_all(self):
        for name in list(self.engines):
            self.stop(name)


def alone(engine, cached=False):
    """A way to ask: each prompt is computed from its first token on, a reply's generated tokens
    too, as a P/D producer has it. cached: then asked again, when only the rest behind its whole
    blocks is computed, as a P/D consumer has it."""
    def ask(tokens, count):
        engine.client.reset()
        answer = engine.client.complete(tokens, count)
        return engine.client.complete(tokens, count) if cached else answer
    return ask


class Plays:
    """prompts: those whose answers are compared. Plays come in the order of the table above."""

    def __init__(self, host, maker, prompts, options, say):
        self.host, self.maker, self.prompts = host, maker, prompts
        self.options, self.say = options, say
        self.earlier = {}  # name: (prompt, answer without Kvist)
        self.steady = set()
        self.timed = [maker.timed("timed", i, options.tokens) for i in range(options.repeat)]

    # What every play is made of.

    def answers(self, complete):
        """{name: token ids} of all compared prompts, one after the other."""
        found = {}
        for prompt in self.prompts:
            prompt.complete(self.earlier)
            found[prompt.name] = complete(prompt.tokens, ANSWER_TOKENS).token_ids
        return found

    def compare(self, play, engine, complete=None):
        """All prompts at an engine (or by another way to it), against the answers of control."""
        self.say(f"{play.name}: {len(self.prompts)} answers")
        ask = complete or engine.client.complete
        before = engine.client.metrics()
        found = self.answers(ask)
        play.counts.add(Counts.between(before, engine.client.metrics()))
        play.equality = Equality()
        for name, tokens in found.items():
            if tokens == self.earlier[name][1]:
                play.equality.equal += 1
            elif name in self.steady:
                play.equality.different.append(name)
            else:
                play.equality.unsteady.append(name)

    def time(self, play, engine, tokens, complete=None):
        """One prompt whose KV is somewhere; returns the answer."""
        before = engine.client.metrics()
        answer = (complete or engine.client.complete)(tokens, TIMED_ANSWER_TOKENS)
        play.counts.add(Counts.between(before, engine.client.metrics()))
        play.ttft_s.append(answer.ttft_s)
        return answer

    def time_twin(self, play, engine, index):
        tokens = self.maker.timed("twin-" + play.name, index, self.options.tokens)
        play.twin_s.append(engine.client.complete(tokens, TIMED_ANSWER_TOKENS).ttft_s)

    def time_pairs(self, play, engine):
        self.say(f"{play.name}: {len(self.timed)} pairs of {self.options.tokens} tokens")
        for index, tokens in enumerate(self.timed):
            self.time_twin(play, engine, index)
            self.time(play, engine, tokens)

    # The plays.

    def control(self):
        play = Play("control")
        engine, = self.host.use(off=None)
        self.say(f"control: {len(self.prompts)} answers, six times without Kvist")
        for prompt in self.prompts:
            prompt.complete(self.earlier)
            answer = engine.client.complete(prompt.tokens, ANSWER_TOKENS)
            self.earlier[prompt.name] = prompt, answer.token_ids
        again = [self.answers(engine.client.complete)]
        self.say(f"control: {len(self.timed)} of {self.options.tokens} tokens")
        for tokens in self.timed:
            self.time(play, engine, tokens)
        play.more["prefix_ttft_s"] = [
            engine.client.complete(tokens, TIMED_ANSWER_TOKENS).ttft_s for tokens in self.timed]
        # Another process, as what comes back to one was computed by another, too.
        self.host.stop_all()
        engine, = self.host.use(off=None)
        again += [self.answers(alone(engine)), self.answers(alone(engine, cached=True)),
                  self.answers(engine.client.complete), self.answers(engine.client.complete)]
        self.steady = {name for name, (_, answer) in self.earlier.items()
                       if all(answers[name] == answer for answers in again)}
        play.equality = Equality(len(self.steady),
                                 unsteady=sorted(set(self.earlier) - self.steady))
        return play

    def cold(self):
        play = Play("cold")
        self.host.store.start()
        engine, = self.host.use_kvist("a")
        self.say(f"cold: {len(self.timed)} of {self.options.tokens} tokens")
        for tokens in self.timed:
            self.time(play, engine, tokens)
        self.compare(play, engine)
        return play

    def prefix(self):
        play = Play("prefix")
        engine, = self.host.use_kvist("a")
        self.time_pairs(play, engine)
        self.compare(play, engine)
        return play

    def ram(self):
        play = Play("ram")
        engine, = self.host.use_kvist("a")
        engine.client.reset()
        self.time_pairs(play, engine)
        self.compare(play, engine)
        return play

    def restart(self):
        play = Play("restart")
        self.host.stop_all()
        return self._after_start(play)

    def disk(self):
        play = Play("disk")
        self.host.stop_all()
        self.host.store.stop()
        self.host.store.start()
        return self._after_start(play)

    def _after_start(self, play):
        begun = time.monotonic()
        engine, = self.host.use_kvist("a")
        play.more["start_s"] = time.monotonic() - begun
        self.time_pairs(play, engine)
        self.compare(play, engine)
        return play

    def shared(self):
        play = Play("shared")
        _, second = self.host.use_kvist("a", "b")
        self.time_pairs(play, second)
        self.compare(play, second)
        return play
