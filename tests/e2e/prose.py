"""Pairs of requests' bodies made of prose that others wrote (the docstrings of Python's library):
one kind of difference put into each, or one of the things that are none. Apart from the C
generator of tests/audit, so that neither is held to what the other one takes for granted."""
import datetime
import importlib
import inspect
import json
import random
import re
import uuid

MODULES = """argparse asyncio bisect calendar collections csv ctypes datetime decimal difflib email
 enum fractions ftplib functools gettext heapq imaplib inspect io ipaddress itertools json logging
 mailbox multiprocessing optparse pathlib pickle platform plistlib pprint queue random sched
 secrets shelve shlex shutil smtplib socket sqlite3 statistics string struct subprocess tarfile
 tempfile textwrap threading timeit tokenize traceback typing unittest urllib.request uuid warnings
 wave weakref zipfile""".split()

BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

TIMES = [
    lambda t: t.isoformat(), lambda t: t.isoformat(timespec="seconds") + "Z",
    lambda t: t.ctime(), str, lambda t: str(t.date()), lambda t: t.strftime("%d %b %Y"),
    lambda t: t.strftime("%I:%M:%S %p"), lambda t: str(int(t.timestamp())),
    lambda t: str(t.timestamp()), lambda t: t.strftime("%A %d %B %Y %H:%M"),
    lambda t: t.strftime("%y-%m-%d %H.%M.%S"), lambda t: t.strftime("%m/%d/%Y, %H:%M:%S"),
    lambda t: t.strftime("%Y%m%d-%H%M%S"), lambda t: t.strftime("%b %d, %H:%M UTC"),
    lambda t: t.strftime("%Y/%m/%d"), lambda t: t.strftime("%H:%M")]


def paragraphs():
    """All of them, in an order that does not depend on the run."""
    found = []
    for name in MODULES:
        module = importlib.import_module(name)
        things = [module] + [thing for _, thing in inspect.getmembers(module)
                             if inspect.isclass(thing) or inspect.isfunction(thing)]
        for thing in things:
            text = inspect.getdoc(thing) or ""
            found += [part for part in re.split(r"\n\s*\n", text) if 60 < len(part) < 900]
    return list(dict.fromkeys(found))


def copy(body):
    return json.loads(json.dumps(body))


def insert_line(body, line, share):
    """A line of its own, so far into the system message."""
    lines = body["messages"][0]["content"].split("\n")
    lines.insert(int(len(lines) * share), line)
    body["messages"][0]["content"] = "\n".join(lines)


class Prose:
    def __init__(self, seed):
        self.chance = random.Random(seed)
        self.paragraphs = paragraphs()

    # ---- conversations ----

    def text(self, count=1):
        return "\n\n".join(self.chance.choice(self.paragraphs) for _ in range(count))

    def some(self, least, most):
        return self.text(self.chance.randint(least, most))

    def tool(self, number):
        chance = self.chance
        properties = {name: {"type": chance.choice(["string", "integer"]),
                             "description": self.text()[:60]}
                      for name in chance.sample(["path", "query", "limit", "id", "body", "lang"],
                                                chance.randint(1, 4))}
        verb, noun = chance.choice(["get", "set", "find"]), chance.choice(["file", "user", "page"])
        return {"type": "function", "function": {
            "name": f"{verb}_{noun}{number}", "description": self.text()[:200],
            "parameters": {"type": "object", "properties": properties, "required": []}}}

    def body(self, tools=None):
        chance = self.chance
        system = "\n".join([
            chance.choice(["You are an assistant for Python programmers.", "# Role\nHelp desk."]),
            self.some(2, 6), chance.choice(["", "# Rules\n", "<guide>\n"]) + self.some(2, 6)])
        made = {"model": "m", "messages": [{"role": "system", "content": system}]}
        count = chance.choice([0, 0, 3, 6]) if tools is None else tools
        if count:
            made["tools"] = [self.tool(number) for number in range(count)]
        return made

    def say(self, body, role, least=1, most=1):
        body["messages"].append({"role": role, "content": self.some(least, most)})

    def session(self, body=None):
        was = body or self.body()
        for _ in range(self.chance.randint(2, 5)):
            self.say(was, "user", 1, 3)
            self.say(was, "assistant", 1, 3)
        self.say(was, "user")
        later = copy(was)
        self.say(later, "assistant")
        self.say(later, "user")
        return was, later, "session"

    def template(self, body=None):
        was = body or self.body()
        later = copy(was)
        for one in (was, later):
            for _ in range(self.chance.randint(0, 2)):
                self.say(one, "user", 1, 3)
                self.say(one, "assistant", 1, 3)
            self.say(one, "user", 1, 3)
        return was, later, "template"

    def pair(self, body=None):
        return self.chance.choice([self.session, self.template])(body)

    def put(self, labels, one, other):
        was, later, relation = self.pair()
        label, share = self.chance.choice(labels), self.chance.random() * 0.4
        insert_line(was, label.replace("@", one), share)
        insert_line(later, label.replace("@", other), share)
        return was, later, relation

    # ---- differences ----

    def timestamp(self):
        chance = self.chance
        form, step = chance.choice(TIMES), chance.choice([5, 300, 9000, 200000, 5e6])
        begin = datetime.datetime(2025, 1, 1, tzinfo=datetime.timezone.utc).replace(tzinfo=None)
        time = begin + datetime.timedelta(seconds=chance.random() * 6e7)
        one = other = form(time)
        while one == other:
            time += datetime.timedelta(seconds=step * (1 + chance.random()))
            step *= 3
            other = form(time)
        return self.put(["Current date: @", "The current time is @.", "<now>@</now>",
                         "time=@ tz=UTC", "Last sync @ (auto)", "Generated @"], one, other)

    def identity(self, form):
        chance = self.chance
        return [lambda: str(uuid.UUID(int=chance.getrandbits(128), version=4)),
                lambda: f"{chance.getrandbits(128):032x}",
                lambda: f"{chance.getrandbits(160):040x}",
                lambda: f"run_{chance.getrandbits(64):016x}",
                lambda: "chatcmpl-" + "".join(chance.choices(BASE62, k=29)),
                lambda: "".join(chance.choices(BASE62[:10] + BASE62[36:], k=12))][form]()

    def uuid(self):
        form = self.chance.randrange(6)
        return self.put(["Session id: @", "request=@;", '<trace id="@">', "Ref @.",
                         "ticket @ is open", "cwd: /srv/u/@/src"],
                        self.identity(form), self.identity(form))

    def counter(self):
        count = self.chance.choice([7, 42, 980, 15000])
        return self.put(["Turn @:", "You are at step @ of the plan.", "tokens_used: @",
                         "Context left: @%", "[@ unread messages]", "Retries: @/99", "Balance $@"],
                        str(count), str(count + self.chance.choice([1, 2, 10])))

    def shuffled(self, value):
        if isinstance(value, dict):
            keys = list(value)
            self.chance.shuffle(keys)
            return {key: self.shuffled(value[key]) for key in keys}
        return [self.shuffled(item) for item in value] if isinstance(value, list) else value

    def reordered_json_keys(self):
        if self.chance.random() < 0.5:
            was, later, relation = self.pair(self.body(self.chance.randint(2, 6)))
            while json.dumps(was["tools"][0]) == json.dumps(later["tools"][0]):
                later["tools"] = self.shuffled(later["tools"])
            return was, later, relation
        one = {name: self.text()[:80] for name in "user region plan notes city mode".split()}
        other = one
        while json.dumps(other) == json.dumps(one):
            other = self.shuffled(one)
        indent = self.chance.choice([None, 2, 4])
        return self.put(["Profile: @"], json.dumps(one, indent=indent),
                        json.dumps(other, indent=indent))

    def reordered_tools(self):
        was, later, relation = self.pair(self.body(self.chance.randint(3, 8)))
        while was["tools"] == later["tools"]:
            self.chance.shuffle(later["tools"])
        return was, later, relation

    def whitespace(self):
        was, later, relation = self.pair()
        message = later["messages"][0]
        text, form = message["content"], self.chance.randrange(4)
        blank = text.find("\n" if form > 1 else " ", self.chance.randrange(len(text) // 3))
        message["content"] = (text.replace("\n", "\r\n") if form == 0 else
                              text[:blank] + " \n"[form > 2] + text[blank:])
        return was, later, relation

    def rewritten_summary(self):
        was, later, relation = self.session()
        heading = self.chance.choice(["## Summary of earlier turns\n", "Conversation summary:\n",
                                      "<summary>", "Recap: ", "# Memory\n- "])
        shared, where = self.chance.choice(["", self.text() + " "]), self.chance.randrange(2)
        for body in (was, later):
            text = heading + shared + self.some(1, 3)
            if where == 0:
                body["messages"][0]["content"] += "\n\n" + text
            else:
                body["messages"].insert(1, {"role": "user", "content": text})
        return was, later, relation

    def template_change(self):
        was, later, relation = self.pair(self.body(self.chance.choice([0, 4])))
        lines = later["messages"][0]["content"].split("\n")
        at, form = self.chance.randrange(len(lines) // 3 + 1), self.chance.randrange(3)
        if form == 0:
            lines.insert(at, self.text()[:200])
        elif form == 1 or "tools" not in later:
            lines[at] = "Answer as briefly as you can."
        else:
            later["tools"].pop(self.chance.randrange(2))
        later["messages"][0]["content"] = "\n".join(lines)
        return was, later, relation

    # ---- what is none ----

    def clean_append(self):
        return self.session()

    def clean_new(self):
        return self.template()

    def clean_edit(self):
        was, _, relation = self.session()
        later = copy(was)
        text = later["messages"][-1]["content"]
        at = self.chance.randrange(len(text))
        later["messages"][-1]["content"] = self.chance.choice(
            [text[:at] + " please " + text[at:], text[:at], self.text(), "Hello. " + text])
        return was, later, relation

    def clean_fork(self):
        was, _, relation = self.session()
        later = copy(was)
        at = self.chance.randrange(1, len(was["messages"]))
        later["messages"] = later["messages"][:at]
        for role in ["user", "assistant", "user", "assistant", "user"][1 - at % 2:]:
            self.say(later, role, 1, 2)
        return was, later, relation

    def clean_other(self):
        was, _, relation = self.pair()
        later, _, _ = self.pair()
        return was, later, relation

    def clean_documents(self):
        """The same instructions behind other documents, in the user's message."""
        was = self.body()
        later, rules = copy(was), self.text(2)
        for body in (was, later):
            body["messages"].append({"role": "user", "content":
                                     f"Documents:\n{self.text(4)}\n\nInstructions: {rules}"})
        return was, later, "template"
