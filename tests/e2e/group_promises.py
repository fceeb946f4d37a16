"""Promises that hold at nodes, and sessions: what is suspended leaves memory and comes back."""
import json
import urllib.error
import urllib.request

from cluster import ANSWER_LIMIT_S, Cluster, prose, wait_until

OPTIONS = ("--decode", "2", "--colocated", "--decode-threads", "1", "--embedded")
LIMIT_S = 60


class Told:
    """An answer with its headers."""

    def __init__(self, code, headers, body):
        self.code, self.headers, self.body = code, headers, body
        self.json = json.loads(body) if body[:1] == b"{" else None


def call(cluster, path, body=None, method=None, **headers):
    data = None if body is None else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(cluster.endpoint + path, data=data, method=method,
                                     headers={"Content-Type": "application/json", **named})
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_LIMIT_S) as answer:
            return Told(answer.status, answer.headers, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Told(error.code, error.headers, error.read())


def message(cluster, text, question, ttl="5m", **fields):
    """Anthropic's API, with a breakpoint behind the text."""
    control = {"type": "ephemeral", "ttl": ttl}
    content = [{"type": "text", "text": text, "cache_control": control},
               {"type": "text", "text": question}]
    model = call(cluster, "/v1/models").json["data"][0]["id"]
    body = {"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": content}]}
    return call(cluster, "/v1/messages", {**body, **fields}, anthropic_version="2023-06-01")


def granted_s(answer):
    assert answer.code == 200, answer.body
    return int(answer.headers["x-kvist-cache-ttl"])


def session(cluster, **fields):
    opened = call(cluster, "/v1/sessions", fields)
    assert opened.code == 200 and opened.json["state"] == "open", opened.body
    return opened.json["id"]


def chat(cluster, name, text):
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 4, "temperature": 0,
            "ignore_eos": True}
    answer = call(cluster, "/v1/chat/completions", body, x_kvist_session=name)
    assert answer.code == 200, answer.body
    return answer


def become(cluster, name, state):
    def is_so():
        told = call(cluster, f"/v1/sessions/{name}").json
        assert told["error"] is None, told
        return told["state"] == state
    wait_until(is_so, LIMIT_S, f"{name} to be {state}")
    return call(cluster, f"/v1/sessions/{name}").json


def test_a_breakpoint_is_promised_and_renewed(cluster):
    text = prose(401, 200)
    first = message(cluster, text, "What is it about?")
    usage = first.json["usage"]
    assert 200 < granted_s(first) <= 301, first.headers
    assert usage["cache_creation_input_tokens"] >= 128, usage
    again = message(cluster, text, "Who wrote it?")
    assert again.json["usage"]["cache_read_input_tokens"] >= 128, again.json["usage"]
    assert 200 < granted_s(again) <= 301, again.headers
    assert again.headers["x-kvist-tier"] == "device", again.headers
    page = urllib.request.urlopen(cluster.endpoint + "/metrics", timeout=LIMIT_S).read().decode()
    assert "\nkvist_gateway_pins 1\n" in page, page
    longer = message(cluster, text, "Who wrote it?", ttl="1h")
    assert 3400 < granted_s(longer) <= 3601, longer.headers
    # What was promised for an hour stays so, whoever asks for less.
    assert 3400 < granted_s(message(cluster, text, "Where?")) <= 3601


def test_a_stream_says_it_before_its_text(cluster):
    streamed = message(cluster, prose(402, 200), "What is it about?", stream=True)
    assert 200 < granted_s(streamed) <= 301, streamed.headers


def test_a_suspended_session_is_on_disk_and_wakes(cluster):
    text = prose(403, 300)
    name = session(cluster, ttl=600, agent="planner")
    chat(cluster, name, text)
    assert chat(cluster, name, text).headers["x-kvist-tier"] == "device"
    before = call(cluster, f"/v1/sessions/{name}").json
    assert before["requests"] == 2 and before["tokens"] > 256, before
    assert call(cluster, f"/v1/sessions/{name}/suspend", {}).json["state"] == "suspending"
    told = become(cluster, name, "suspended")
    assert told["stored_tokens"] >= 256 and told["spilled_bytes"] > 0, told
    woken = chat(cluster, name, text)
    assert woken.headers["x-kvist-tier"] == "disk", woken.headers
    assert int(woken.headers["x-kvist-hit-tokens"]) >= 256, woken.headers
    assert call(cluster, f"/v1/sessions/{name}").json["state"] == "open"


def test_resume_by_brings_it_back_before_anybody_asks(cluster):
    text = prose(404, 300)
    name = session(cluster)
    first = chat(cluster, name, text)
    begun = call(cluster, f"/v1/sessions/{name}/suspend", {"resume_by": 4})
    assert begun.code == 200 and begun.json["resume_by"] is not None, begun.body
    wait_until(lambda: call(cluster, f"/v1/sessions/{name}").json["spilled_bytes"] > 0, LIMIT_S,
               "the session to be spilled")
    become(cluster, name, "open")
    back = chat(cluster, name, text)
    assert back.headers["x-kvist-tier"] == "device", back.headers
    assert back.json["choices"] == first.json["choices"], (back.json, first.json)
    assert call(cluster, f"/v1/sessions/{name}/suspend", {}).code == 200
    become(cluster, name, "suspended")
    assert call(cluster, f"/v1/sessions/{name}/resume", {}).json["state"] == "resuming"
    become(cluster, name, "open")


def test_branches_share_their_prefix(cluster):
    text = prose(405, 300)
    root = session(cluster, ttl=600)
    chat(cluster, root, text)
    branches = [call(cluster, f"/v1/sessions/{root}/fork", {}).json for _ in range(3)]
    for number, branch in enumerate(branches):
        assert branch["parent"] == root and branch["ttl"] == 600, branch
        answer = chat(cluster, branch["id"], text + f" Ending number {number}.")
        assert int(answer.headers["x-kvist-hit-tokens"]) >= 256, answer.headers
    for branch in branches[:2]:
        closed = call(cluster, f"/v1/sessions/{branch['id']}", method="DELETE")
        assert closed.json["deleted"] is True, closed.body
        assert call(cluster, f"/v1/sessions/{branch['id']}").code == 404
    left = chat(cluster, branches[2]["id"], text + " Ending number 2.")
    assert int(left.headers["x-kvist-hit-tokens"]) >= 256, left.headers


def test_bad_input_is_named(cluster):
    name = session(cluster)
    for path, body, field in (("", {"ttl": -1}, "ttl"), ("", {"ttl": "long"}, "ttl"),
                              ("", {"agent": 7}, "agent"), ("", {"priority": "high"}, "priority"),
                              ("", {"colour": "red"}, "colour"), ("", [], "object"),
                              (f"/{name}/suspend", {"resume_by": 10**9}, "resume_by"),
                              (f"/{name}/suspend", {"resume_by": "soon"}, "resume_by")):
        refused = call(cluster, "/v1/sessions" + path, body)
        assert refused.code == 400 and field in refused.json["error"]["message"], refused.body
    nothing_yet = call(cluster, f"/v1/sessions/{name}/suspend", {})
    assert nothing_yet.code == 409 and "no context" in nothing_yet.json["error"]["message"]
    for path in ("session-0", f"{name}/dance", f"{name}x", "", "a" * 300):
        assert call(cluster, f"/v1/sessions/{path}").code == 404, path
    for path, method, allowed in (("", "GET", "POST"), (f"/{name}", "POST", "GET, HEAD, DELETE"),
                                  (f"/{name}/fork", "GET", "POST")):
        refused = call(cluster, f"/v1/sessions{path}", method=method)
        assert (refused.code, refused.headers["Allow"]) == (405, allowed), refused.body


def device_blocks(cluster, name):
    node = next(node for node in cluster.status()["nodes"] if node["name"] == name)
    return next(tier for tier in node["tiers"] if tier["name"] == "device")["object_count"]


def test_through_a_shared_store(cluster):
    """The kvist-store of the machine keeps the promise: of a whole answer it is said."""
    shared = Cluster(cluster.binaries)
    try:
        shared.up()
        text = prose(406, 200)
        assert 200 < granted_s(message(shared, text, "What is it about?")) <= 301
        name = session(shared)
        before, own = device_blocks(shared, "prefill-0"), prose(407, 200)
        chat(shared, name, own)
        wait_until(lambda: device_blocks(shared, "prefill-0") > before, LIMIT_S,
                   "the prefill node to have a copy")
        assert call(shared, f"/v1/sessions/{name}/suspend", {}).code == 200
        told = become(shared, name, "suspended")
        assert told["spilled_bytes"] > 0, told
        # The prefill node's copy leaves memory too, but for what others go on from.
        wait_until(lambda: device_blocks(shared, "prefill-0") <= before, LIMIT_S,
                   "the prefill node's copy to leave memory")
        assert int(chat(shared, name, own).headers["x-kvist-hit-tokens"]) >= 128
    finally:
        shared.close(keep=False)
