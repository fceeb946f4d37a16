"""The main job: what was computed once is found again, in memory, over turns, after a restart."""
import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor

from cluster import prose, wait_until

BLOCK = 16
LIMIT_S = 120
CONTEXT = prose(1, 700)


def conversation(*turns):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]


def bypass(cluster, messages, **fields):
    answer = cluster.chat(messages, kvist={"cache_mode": "bypass"}, **fields)
    assert answer.code == 200, answer.error()
    assert answer.cached == 0, f"bypass, and yet {answer.cached} tokens from the cache"
    return answer


def test_cold_is_cold(cluster):
    answer = cluster.chat(CONTEXT + " What was it about?")
    assert answer.code == 200, answer.error()
    assert answer.cached < answer.usage["prompt_tokens"] / 10, answer.usage
    assert answer.text.strip(), "an empty answer"


def test_same_context_is_a_hit(cluster):
    again = cluster.chat(CONTEXT + " Who wrote it?")
    prompt = again.usage["prompt_tokens"]
    assert again.cached >= prompt - 4 * BLOCK, again.usage
    assert again.cached == sum(again.tiers.values()), again.usage
    assert again.tiers["device"] + again.tiers["host"] == again.cached, again.tiers
    fresh = bypass(cluster, CONTEXT + " Who wrote it?")
    assert again.text == fresh.text, f"cached {again.text!r}, recomputed {fresh.text!r}"


def test_whole_prompt_again(cluster):
    first = cluster.chat(CONTEXT + " Say it in one word.")
    second = cluster.chat(CONTEXT + " Say it in one word.")
    assert second.cached >= second.usage["prompt_tokens"] - BLOCK - 1, second.usage
    assert second.cached < second.usage["prompt_tokens"], "one token must always be computed"
    assert first.text == second.text, f"{first.text!r} then {second.text!r}"


def test_second_turn_reuses_the_answer(cluster):
    opening = prose(2, 300) + " Go on with the story, at length."
    first = cluster.chat(conversation(opening), max_tokens=80, ignore_eos=True)
    turn = conversation(opening, first.text, "And then?")
    second = cluster.chat(turn)
    before = first.usage["prompt_tokens"]
    assert second.cached > before + 2 * BLOCK, (
        f"the first prompt had {before} tokens, its answer 80; cached are {second.cached}: "
        f"{second.usage}")
    fresh = bypass(cluster, turn)
    if not second.usage["kvist"]["decode_kv_reused"]:
        assert second.text == fresh.text, f"cached {second.text!r}, recomputed {fresh.text!r}"


def test_streaming_says_the_same(cluster):
    whole = cluster.chat(CONTEXT + " Count to ten.", max_tokens=24)
    stream = cluster.stream(CONTEXT + " Count to ten.", max_tokens=24)
    stream.read()
    assert stream.done and stream.error is None, stream.error
    assert stream.text == whole.text, f"streamed {stream.text!r}, whole {whole.text!r}"
    assert stream.usage["prompt_tokens"] == whole.usage["prompt_tokens"], stream.usage
    assert stream.usage["completion_tokens"] == whole.usage["completion_tokens"], stream.usage


def test_salts_share_nothing(cluster):
    question = prose(3, 200)
    mine = cluster.chat(question, kvist={"salt": "mine"})
    other = cluster.chat(question, kvist={"salt": "other"})
    again = cluster.chat(question, kvist={"salt": "mine"})
    assert mine.cached == 0 and other.cached == 0, (mine.usage, other.usage)
    assert again.cached > 0, again.usage
    assert mine.text == other.text == again.text


def test_completions_and_token_ids(cluster):
    body = {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
    text = cluster.request("/v1/completions", body)
    assert text.code == 200 and text.text, text.body
    tokens = cluster.kvist("tokenize", "--model", os.environ["KVIST_MODEL"],
                           text='{"id": 1, "text": "Once upon a time"}\n')
    ids = json.loads(tokens.stdout)["ids"]
    again = cluster.request("/v1/completions", {**body, "prompt": ids})
    assert again.code == 200 and again.text == text.text, again.body


def test_parallel_requests_do_not_mix(cluster):
    questions = [prose(seed, 60) + " What is it?" for seed in range(20, 26)]
    alone = [bypass(cluster, question, max_tokens=12).text for question in questions]
    with ThreadPoolExecutor(len(questions)) as pool:
        together = list(pool.map(lambda q: cluster.chat(q, max_tokens=12), questions))
    for question, one, answer in zip(questions, alone, together):
        assert answer.code == 200, answer.error()
        assert answer.text == one, f"{question[:30]}: alone {one!r}, with others {answer.text!r}"


def ask_gemini(cluster, model, question, **fields):
    answer = cluster.request(f"/v1beta/{model}:generateContent", {
        "contents": [{"parts": [{"text": question}]}],
        "generationConfig": {"temperature": 0, "maxOutputTokens": 8}, **fields})
    assert answer.code == 200, answer.error()
    return answer.json["candidates"], answer.json["usageMetadata"]


def read_hits(cluster, text):
    """Prompt tokens that are found, while nothing is stored."""
    answer = cluster.chat(text, kvist={"cache_mode": "read"}, max_tokens=1)
    assert answer.code == 200, answer.error()
    return answer.cached


def test_restart_finds_it_on_disk(cluster):
    question = CONTEXT + " What was it about?"
    before = cluster.chat(question)
    model = cluster.request("/v1beta/models").json["models"][0]["name"]
    content = cluster.request("/v1beta/cachedContents", {
        "model": model, "contents": [{"parts": [{"text": prose(77, 200)}]}]})
    assert content.code == 200, content.error()
    name = content.json["name"]
    named, _ = ask_gemini(cluster, model, "Go on.", cachedContent=name)
    cluster.down()
    assert not cluster.alive(), cluster.alive()
    cluster.up()
    after = cluster.chat(question)
    assert after.tiers["disk"] >= after.usage["prompt_tokens"] - 2 * BLOCK, after.usage
    assert after.text == before.text, f"before {before.text!r}, after {after.text!r}"
    again = cluster.chat(question)
    assert again.tiers["disk"] == 0 and again.cached > 0, again.usage
    # A cached content outlives it too: its name, and what was computed for it.
    assert cluster.request(f"/v1beta/{name}").json == content.json
    after, usage = ask_gemini(cluster, model, "Go on.", cachedContent=name)
    assert after == named, (after, named)
    tokens = content.json["usageMetadata"]["totalTokenCount"]
    assert usage["cachedContentTokenCount"] >= tokens - 2 * BLOCK, usage
    assert read_hits(cluster, prose(77, 200)) > 8 * BLOCK
    assert cluster.request(f"/v1beta/{name}", method="DELETE").json == {}
    contents = os.path.join(cluster.folder, "contents", "gateway-0")
    assert os.listdir(contents) == ["lock"], os.listdir(contents)
    # And its KV is gone, from every node that had any; what the template begins with is others'.
    wait_until(lambda: read_hits(cluster, prose(77, 200)) <= 4 * BLOCK, LIMIT_S,
               "the deleted content's KV to be gone")


def test_metrics_and_health(cluster):
    assert cluster.request("/healthz").code == 200
    models = cluster.request("/v1/models").json
    assert models["data"][0]["id"], models
    page = cluster.request("/metrics").body.decode()
    assert "# TYPE kvist_" in page, page[:300]


def test_status_ls_chat(cluster):
    cluster.chat(prose(4, 200))
    status = cluster.kvist("status", "--dir", cluster.folder)
    assert status.returncode == 0 and status.stdout.startswith("hit rate"), status.stdout
    listing = cluster.kvist("ls", "--dir", cluster.folder)
    assert listing.returncode == 0 and "store-0" in listing.stdout, listing.stdout
    chat = cluster.kvist("chat", "--dir", cluster.folder, "--max-tokens", "12",
                         text="Hello, who are you?\nAnd what can you do?\n")
    assert chat.returncode == 0, chat.stdout + chat.stderr
    assert chat.stdout.count("TTFT") == 2 and "cached" in chat.stdout, chat.stdout


def test_up_and_down_again_change_nothing(cluster):
    pids = {name: node["pid"] for name, node in cluster.nodes().items()}
    run = cluster.up()
    assert "already up" in run.stderr, run.stderr
    run = cluster.kvist("up", "--dir", cluster.folder, "--decode", "5")
    assert run.returncode == 0 and "'kvist down' first" in run.stderr, run.stderr
    assert pids == {name: node["pid"] for name, node in cluster.nodes().items()}
    cluster.down()
    run = cluster.down()
    assert "nothing to stop" in run.stdout, run.stdout


def test_key_is_private(cluster):
    key = os.path.join(cluster.folder, "cluster.key")
    assert os.stat(key).st_mode & 0o777 == 0o600
    with open(key, encoding="ascii") as file:
        secret = file.read().strip()
    assert len(secret) == 64
    logs = subprocess.run(["grep", "-rl", secret, os.path.join(cluster.folder, "logs")],
                          capture_output=True, text=True)
    assert logs.stdout == "", f"the key is in {logs.stdout}"
