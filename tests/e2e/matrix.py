"""The failure matrix with real processes: role x phase x fault, and what must hold after each.

An event brings the cluster into a phase (seen in the nodes' status, never by sleeping), hurts one
node there, undoes the fault, and then checks, whatever it was:

1. Every client got the right text, or a clear error where losing the request is allowed.
2. Nobody waited longer than 10 s beyond the request's normal time.
3. All nodes live, and all are connected again; how long that took is noted.
4. No lease, private slot, awaited transfer, piece or link is left over, and every slot of the
   device tier is free or holds a cached block.
5. Known prompts give their known answers, from a cache that was there before and computed anew.
"""
import os
import random
import signal
import time

import admin
from cluster import prose, wait_until
from nodes import Question

HANG_LIMIT_S = 10
SILENCE_S = 2.5      # KV_PEER_SILENCE_MS
LONG_S = SILENCE_S + 1.0
QUIET_LIMIT_S = 10
FRESH_S = 0.7        # until heartbeats have told the gateway who is free
RECONNECT_LIMIT_S = 2.0

PROMPTS = {  # prompt, tokens to generate
    "long": (prose(1, 1000), 12),
    "medium": (prose(2, 400), 24),
    "story": ("Tell me a long story.", 160),
    "hog": ("Tell me a very long story about a hog.", 1700),
}
LONG_BYTES = 23_900_000  # of the long prompt's KV
TO_PREFILL_BYTES_S, TO_DECODE_BYTES_S = 2_500_000, 8_000_000

OPTIONS = {
    "store": ("--store.host_bytes=64MiB", "--store.disk_bytes=256MiB",
              "--store.segment_bytes=16MiB"),
    # A prefill node has room for one long prompt, a decode node for two, or for one and no hog.
    "prefill": ("--store.device_slots=80",),
    "decode": ("--store.device_slots=170", "--decode.reserve_limit=30s"),
}


PHASES = {
    "prefill": ("idle", "queued", "streaming", "fetch", "decoding", "storing", "starting"),
    "decode": ("idle", "reserving", "queued", "streaming", "fetch", "decoding", "storing",
               "starting"),
    "gateway": ("idle", "reserving", "streaming", "decoding", "starting"),
    "client": ("reserving", "queued", "streaming", "fetch", "decoding"),
}
PROCESS_FAULTS = ("kill", "stop_long", "stop_short")
NETWORK_FAULTS = ("reset", "end", "cut_inside", "stall", "half_to", "half_from", "delay", "link",
                  "link_short")


def all_events():
    """The whole matrix: (role, phase, fault)."""
    events = [("client", phase, "abort") for phase in PHASES["client"]]
    events += [("prefill", "streaming", fault) for fault in ("deaf", "deaf_long")]
    for role in ("prefill", "decode", "gateway"):
        for phase in PHASES[role]:
            faults = PROCESS_FAULTS + (NETWORK_FAULTS if phase != "starting" else ())
            events += [(role, phase, fault) for fault in faults]
    return events


def draw(chance, count):
    """Rounds: every kill and stop of the matrix, and half as many of its other events."""
    events, others = [], []
    while len(events) < count:
        matrix = all_events()
        chance.shuffle(matrix)
        deaths = [event for event in matrix if event[2] in PROCESS_FAULTS]
        others += [event for event in matrix if event[2] not in PROCESS_FAULTS]
        events += deaths + others[:len(deaths) // 2]
        del others[:len(deaths) // 2]
    return events[:count]


def crowd():
    """How many want each core: what is normal takes so much longer on a busy machine."""
    return max(1, os.getloadavg()[0] / os.cpu_count())


class Scene:
    """A phase that was reached: who is in it, and which requests."""

    def __init__(self, targets, questions=(), hogs=()):
        self.targets, self.questions, self.hogs = targets, list(questions), list(hogs)


class Matrix:
    def __init__(self, cluster, seed):
        self.cluster = cluster
        self.chance = random.Random(seed)
        self.salts = 0
        self.known = {}    # name -> (text, seconds)
        self.asked = []    # in this event
        self.records = []
        self.slow_spaces = set()

    # ---- requests ----

    def ask(self, name, salt=None):
        """A salt of its own makes the same prompt one that nobody has seen."""
        if salt is None:
            self.salts += 1
            salt = f"event {self.salts}"
        prompt, tokens = PROMPTS[name]
        question = Question(self.cluster, prompt, tokens, salt=salt)
        question.name = name
        self.asked.append(question)
        return question

    def learn(self):
        """The answers of a cluster that nobody disturbs."""
        if self.known:
            return
        for name in ("long", "medium", "story"):
            first = self.ask(name, "known")
            first.thread.join()
            again = self.ask(name, "known")
            again.thread.join()
            for question in (first, again):
                assert question.answered(), f"{name}: {question.error or question.broken}"
            assert first.text == again.text, f"{name}: {first.text!r}, cached {again.text!r}"
            self.known[name] = (first.text, first.seconds)

    def check_answer(self, question, may_fail, may_break):
        """Its text is right; an error is clear, and allowed. Says which it was."""
        expected, _ = self.known[question.name]
        assert question.ended is not None, f"{question.name} hangs for {question.seconds:.1f} s"
        assert expected.startswith(question.text), (
            f"WRONG TOKENS: {question.name} is {expected!r}, got {question.text!r}")
        if question.aborted:
            return "aborted"
        if question.broken is not None:
            assert may_break, f"{question.name}: the connection broke: {question.broken}"
            return "broken"
        if question.error is not None:
            assert may_fail, f"{question.name} was lost: {question.error}"
            return "error"
        assert question.text == expected, (
            f"WRONG TOKENS: {question.name} is {expected!r}, ended as {question.text!r}")
        return "answer"

    # ---- looking ----

    def statuses(self, role):
        found = {name: self.cluster.status(name, 0.5) for name in self.cluster.names(role)}
        return {name: status for name, status in found.items() if status is not None}

    def wait_for(self, role, condition, limit_s, what, questions=()):
        """The first node of the role that meets the condition."""
        deadline = time.monotonic() + limit_s
        while True:
            for name, status in self.statuses(role).items():
                if condition(name, status):
                    return name
            for question in questions:
                if question.ended is not None:
                    return None  # too fast for us
            assert time.monotonic() < deadline, f"waited {limit_s} s for {what}"
            time.sleep(0.002)

    def any_of(self, role):
        return self.chance.choice(self.cluster.names(role))

    # ---- phases; None: it was over before it was seen ----

    def idle(self):
        return Scene({role: self.any_of(role) for role in ("prefill", "decode", "gateway")})

    def reserving(self):
        """A decode node waits for slots that a hog has."""
        hogs = []
        while len(hogs) < len(self.cluster.names("decode")):
            time.sleep(FRESH_S)
            hogs.append(self.ask("hog"))

            def waits():
                return any(s["queued_requests"] and s["running_requests"]
                           for s in self.statuses("decode").values())
            wait_until(lambda: hogs[-1].text or waits(), 15, "a hog to run")
            if waits():
                hogs.pop().abort()  # it came to a node that has one
        question = self.ask("long")
        decode = self.wait_for("decode", lambda _, s: s["queued_requests"] > 0, 10, "reserving")
        for name, status in self.statuses("prefill").items():
            assert status["queued_requests"] + status["running_requests"] == 0, name
        return Scene({"decode": decode, "prefill": self.any_of("prefill"),
                      "gateway": "gateway-0"}, [question], hogs)

    def queued(self):
        """A prompt waits at a prefill node for the slots of another one."""
        questions = [self.ask("long") for _ in range(4)]
        prefill = self.wait_for(
            "prefill", lambda _, s: s["queued_requests"] > 0 and s["running_requests"] > 0, 10,
            "a queued prompt", questions)
        decode = self.wait_for("decode", lambda _, s: s["expectations"] > 0, 1, "a transfer",
                               questions)
        return prefill and decode and Scene(
            {"prefill": prefill, "decode": decode, "gateway": "gateway-0"}, questions)

    def streaming(self):
        """Some of a long prompt's KV has landed, most of it has not."""
        self.slow("prefill", TO_DECODE_BYTES_S)
        before = {name: s["received_bytes"] for name, s in self.statuses("decode").items()}
        question = self.ask("long")

        def middle(name, status):
            landed = status["received_bytes"] - before[name]
            return status["expectations"] > 0 and 0.15 < landed / LONG_BYTES < 0.85
        decode = self.wait_for("decode", middle, 20, "KV to stream", [question])
        prefill = self.wait_for("prefill", lambda _, s: s["leases"] > 0, 1, "its sender",
                                [question]) if decode else None
        return prefill and Scene(
            {"prefill": prefill, "decode": decode, "gateway": "gateway-0"}, [question])

    def fetch(self):
        """A prefill node gets blocks that only the decode node has."""
        self.salts += 1
        salt = f"fetch {self.salts}"
        for question in [self.ask("medium", salt) for _ in self.cluster.names("decode")]:
            question.thread.join()
        for name in self.cluster.names("prefill"):
            admin.drop_all(self.cluster.members[name].admin)
        self.slow("decode", TO_PREFILL_BYTES_S)
        question = self.ask("medium", salt)
        prefill = self.wait_for("prefill", lambda _, s: s["expectations"] > 0, 10, "a fetch",
                                [question])
        decode = self.wait_for("decode", lambda _, s: s["leases"] > 0, 1, "its sender",
                               [question]) if prefill else None
        return decode and Scene(
            {"prefill": prefill, "decode": decode, "gateway": "gateway-0"}, [question])

    def decoding(self):
        question = self.ask("story")
        wait_until(lambda: len(question.text) > 20, 15, "text")
        decode = self.wait_for("decode", lambda _, s: s["running_requests"] > 0, 5, "decoding",
                               [question])
        return decode and Scene({"prefill": self.any_of("prefill"), "decode": decode,
                                 "gateway": "gateway-0"}, [question])

    def storing(self, role):
        """Blocks are sealed and not durable yet."""
        store = "decode" if role == "decode" else "prefill"
        question = self.ask("long")
        node = self.wait_for(store, lambda _, s: s["unsaved_objects"] > 0, 15, "unsaved blocks")
        targets = {"prefill": self.any_of("prefill"), "decode": self.any_of("decode"),
                   "gateway": "gateway-0"}
        return Scene({**targets, store: node}, [question])

    def starting(self, role):
        """The process lives and does not answer yet."""
        name = self.any_of(role)
        self.cluster.kill(name)
        self.cluster.start(name)
        question = self.ask("medium")
        if role != "gateway":  # which is there within milliseconds
            time.sleep(self.chance.uniform(0, 0.5))
        if self.cluster.status(name, 0.1) is not None:
            return None
        return Scene({role: name}, [question])

    def reach(self, phase, role):
        for _ in range(5):
            scene = getattr(self, phase)(role) if phase in ("storing", "starting") else \
                getattr(self, phase)()
            if scene:
                return scene
            self.settle()
        raise AssertionError(f"{phase} was over each time before it was seen")

    # ---- slow links ----

    def slow(self, role, bytes_per_second):
        for name in self.cluster.names(role):
            space = self.cluster.members[name].space
            self.cluster.network.slow(space, bytes_per_second)
            self.slow_spaces.add(space)

    def fast(self):
        for space in self.slow_spaces:
            self.cluster.network.fast(space)
        self.slow_spaces.clear()

    # ---- faults: each ends by itself, and returns the moment from which the node is back ----

    def kill(self, name, scene):
        del scene
        self.cluster.kill(name)
        time.sleep(self.chance.uniform(0, 0.3))
        self.cluster.start(name)

    def stop_long(self, name, scene):
        """Longer than a peer may be silent; others take the slots before it goes on."""
        self.cluster.signal(name, signal.SIGSTOP)
        time.sleep(SILENCE_S + 0.4)
        self.fast()
        if not name.startswith("gateway"):
            scene.questions += [self.ask("long"), self.ask("medium")]
        time.sleep(LONG_S - SILENCE_S - 0.4)
        self.cluster.signal(name, signal.SIGCONT)

    def stop_short(self, name, scene):
        del scene
        self.cluster.signal(name, signal.SIGSTOP)
        time.sleep(1)
        self.cluster.signal(name, signal.SIGCONT)

    def relays_of(self, name):
        """A gateway has no relay of its own to others: theirs stand for it."""
        return self.cluster.names("decode") if name.startswith("gateway") else [name]

    def at_relays(self, name, seconds, **fault):
        for relay in self.relays_of(name):
            self.cluster.tell(relay, "fault", **fault)
        time.sleep(seconds)
        for relay in self.relays_of(name):
            self.cluster.tell(relay, "fault")

    def reset(self, name, scene):
        del scene
        for relay in self.relays_of(name):
            self.cluster.tell(relay, "cut", how="rst")

    def end(self, name, scene):
        del scene
        for relay in self.relays_of(name):
            self.cluster.tell(relay, "cut", how="fin")

    def cut_inside(self, name, scene):
        """For a while every connection ends inside its handshake, or soon after it."""
        del scene
        for relay in self.relays_of(name):
            self.cluster.tell(relay, "cut", how="rst", after=self.chance.randrange(1, 500))
            self.cluster.tell(relay, "cut", how="fin")
        time.sleep(1.5)
        for relay in self.relays_of(name):
            self.cluster.tell(relay, "cut", how="rst", after=0)

    def stall(self, name, scene):
        del scene
        self.at_relays(name, LONG_S, **{"to": "stall", "from": "stall"})

    def half_to(self, name, scene):
        del scene
        self.at_relays(name, LONG_S, to="swallow")

    def half_from(self, name, scene):
        del scene
        self.at_relays(name, LONG_S, **{"from": "swallow"})

    def delay(self, name, scene):
        del scene
        self.at_relays(name, 2, delay_s=0.15)

    def link(self, name, scene):
        del scene
        self.cluster.network.link_down(self.cluster.members[name].space)
        time.sleep(LONG_S)
        self.cluster.network.link_up(self.cluster.members[name].space)

    def link_short(self, name, scene):
        del scene
        self.cluster.network.link_down(self.cluster.members[name].space)
        time.sleep(1)
        self.cluster.network.link_up(self.cluster.members[name].space)

    def spaces(self, scene):
        return {self.cluster.members[scene.targets[role]].space for role in ("decode", "prefill")}

    def deaf(self, name, scene):
        """KV from the prefill node to the decode node is lost, and nothing else."""
        del name
        spaces = [self.cluster.members[scene.targets[role]].space for role in ("decode", "prefill")]
        self.cluster.network.deaf(*spaces)
        time.sleep(LONG_S)
        self.cluster.network.heard(*spaces)

    def deaf_long(self, name, scene):
        """The same for as long as requests are about: their control connections live on, and
        others come meanwhile."""
        del name
        spaces = [self.cluster.members[scene.targets[role]].space for role in ("decode", "prefill")]
        self.cluster.network.deaf(*spaces)
        scene.questions += [self.ask("medium") for _ in range(4)]
        for question in scene.questions:
            question.thread.join(self.known["long"][1] + HANG_LIMIT_S)
        self.cluster.network.heard(*spaces)

    def abort(self, name, scene):
        del name
        for question in scene.questions:
            question.abort()

    # ---- an event ----

    def event(self, role, phase, fault):
        try:
            self.learn()
            return self.play(role, phase, fault)
        except BaseException as error:
            said = self.tell_all()
            for question in self.asked:
                question.abort()
            self.fast()
            raise AssertionError(f"{role} {phase} {fault}: {error}\n{said}") from error

    def tell_all(self):
        """What each node says of itself now."""
        fields = ("queued_requests", "running_requests", "leases", "slots_free", "slots_private",
                  "expectations", "pieces", "links", "unsaved_objects", "dropped_messages")
        lines = []
        for name in self.cluster.members:
            status = self.cluster.status(name, 0.5)
            lines.append(name + ": " + ("no answer" if status is None else ", ".join(
                f"{field} {status[field]}" for field in fields if status[field])))
        return "\n".join(lines)

    def play(self, role, phase, fault):
        self.asked.clear()
        scene = self.reach(phase, role)
        while fault.startswith("deaf") and len(self.spaces(scene)) == 1:
            for question in scene.questions:  # shared memory has no link to cut
                question.abort()
            self.settle()
            scene = self.reach(phase, role)
        name = scene.targets.get(role, "client")
        begun = time.monotonic()
        getattr(self, fault)(name, scene)
        if name in self.cluster.members:
            wait_until(lambda: self.cluster.status(name, 0.1), 60, f"{name} to be back")
        back = time.monotonic()
        self.fast()
        for hog in scene.hogs:
            hog.abort()
        wait_until(self.cluster.healthy, 30, "all nodes to be connected again")
        reconnect_s = time.monotonic() - back
        outcomes = self.conclude(scene, role, phase, fault, begun)
        self.settle()
        self.records.append((role, phase, fault, name, reconnect_s, outcomes,
                             time.monotonic() - begun))
        print(f"         {role:8} {phase:10} {fault:10} hit {name:10} "
              f"{', '.join(outcomes) or 'nobody asked'}; connected after {reconnect_s:.2f} s",
              flush=True)
        return self.records[-1]

    def conclude(self, scene, role, phase, fault, begun):
        """What became of the requests; none may hang."""
        # Without its decode nodes, all at once, a gateway can only say so.
        lossless = role != "gateway" or fault in ("delay", "stop_short", "link_short")
        may_break = role == "gateway" and (fault == "kill" or phase == "starting")
        outcomes = []
        for question in scene.questions + scene.hogs:
            normal_s = self.known.get(question.name, (None, 0))[1] * (1 + len(scene.questions))
            deadline = max(begun, question.begun) + normal_s * crowd() + HANG_LIMIT_S
            question.thread.join(max(0, deadline - time.monotonic()))
        for question in scene.questions:
            outcomes.append(self.check_answer(question, not lossless, may_break))
        return outcomes

    def settle(self):
        """Nothing is left over, and what was known is known."""
        self.fast()
        wait_until(self.cluster.healthy, 30, "all nodes to be connected")
        deadline = time.monotonic() + QUIET_LIMIT_S
        while left := self.left_over():
            assert time.monotonic() < deadline, f"LEAK: {left}"
            time.sleep(0.05)
        for question in [self.ask("medium", "known"), self.ask("medium")]:
            question.thread.join(2 * self.known["medium"][1] * crowd() + HANG_LIMIT_S)
            self.check_answer(question, False, False)

    def left_over(self):
        """What a quiet cluster does not have."""
        left = []
        peers = {"prefill": len(self.cluster.names("decode")),
                 "decode": len(self.cluster.names("prefill"))}
        for role in ("prefill", "decode", "gateway"):
            for name in self.cluster.names(role):
                status = self.cluster.status(name)
                if status is None:
                    left.append(f"{name} does not answer")
                    continue
                zero = ["queued_requests", "running_requests"]
                if role != "gateway":
                    zero += ["leases", "slots_private", "expectations", "pieces"]
                    device = status["tiers"][0]
                    slots = device["capacity_bytes"] // (device["used_bytes"] //
                                                         device["object_count"]) \
                        if device["object_count"] else status["slots_free"]
                    if status["slots_free"] + device["object_count"] != slots:
                        left.append(f"{name} slots {slots}, free {status['slots_free']}, "
                                    f"cached {device['object_count']}")
                    if status["links"] != peers[role]:
                        left.append(f"{name} links {status['links']}")
                left += [f"{name} {field} {status[field]}" for field in zero if status[field]]
        return left

    # ---- what a process holds ----

    def holdings(self):
        """{node: (descriptors, threads, resident MiB)}, and UCX's files in /dev/shm."""
        held = {}
        for name, node in self.cluster.members.items():
            with open(f"/proc/{node.pid}/status", encoding="utf-8") as file:
                lines = dict(line.split(":", 1) for line in file)
            held[name] = (len(os.listdir(f"/proc/{node.pid}/fd")), int(lines["Threads"]),
                          int(lines["VmRSS"].split()[0]) / 1024)
        return held, sum("ucx" in name for name in os.listdir("/dev/shm"))

    def reconnect(self, count):
        """Cuts every connection between nodes again and again; what is held must not grow."""
        self.learn()
        self.settle()
        relays = self.cluster.names("decode") + self.cluster.names("prefill")
        for i in range(count + 5):
            if i == 5:  # the first ones make what is made once
                before, files_before = self.holdings()
            for relay in relays:
                self.cluster.tell(relay, "cut", how="rst" if i % 2 else "fin")
            wait_until(lambda: not self.cluster.healthy(), 5, "the cut to be noticed")
            wait_until(self.cluster.healthy, 30, "all nodes to be connected")
        self.settle()
        after, files_after = self.holdings()
        for name in before:
            print(f"         {name:10} after {count} reconnects: descriptors {before[name][0]} to "
                  f"{after[name][0]}, threads {before[name][1]} to {after[name][1]}, "
                  f"{before[name][2]:.0f} to {after[name][2]:.0f} MiB")
        for name, (files, threads, resident) in after.items():
            assert files <= before[name][0] + 2, f"{name} LEAKS descriptors"
            # io_uring's own threads come and go.
            assert threads <= before[name][1] + 2, f"{name} LEAKS threads"
            assert resident < before[name][2] + 32 + count / 10, f"{name} LEAKS memory"
        assert files_after <= files_before, "files in /dev/shm are LEFT"

    # ---- the report ----

    def report(self):
        outcomes = {}
        for record in self.records:
            for outcome in record[5]:
                outcomes[outcome] = outcomes.get(outcome, 0) + 1
        times = sorted(record[4] for record in self.records)
        print(f"         {len(self.records)} events; requests: "
              + ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())))
        if times:
            print(f"         connected again: median {times[len(times) // 2]:.2f} s, p90 "
                  f"{times[len(times) * 9 // 10]:.2f} s, worst {times[-1]:.2f} s, over "
                  f"{RECONNECT_LIMIT_S:.0f} s: {sum(t > RECONNECT_LIMIT_S for t in times)}")

    def table(self):
        """role x phase, and how often each fault hit there."""
        counts = {}
        for role, phase, fault, *_ in self.records:
            row = counts.setdefault((role, phase), {})
            row[fault] = row.get(fault, 0) + 1
        for (role, phase), row in sorted(counts.items()):
            print(f"         {role:8} {phase:10} "
                  + ", ".join(f"{fault} {count}" for fault, count in sorted(row.items())))
