"""Tenants: keys, classes, rates, what they may not see of each other, HTTPS, and what no log says.

The gateway runs at debug level. The last case reads all logs: no key, no salt, no prompt.
"""
import json
import os
import signal
import ssl
import subprocess
import urllib.error
import urllib.request

from cluster import ANSWER_LIMIT_S, Answer, Cluster, is_alive, prose, wait_until

CHAT = "/v1/chat/completions"
MARK = "xylophone-quartz-zeppelin"  # in every prompt, and in no log


def why_not():
    try:
        subprocess.run(["openssl", "version"], capture_output=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "openssl, which makes the certificate, is not installed"
    return None


class TenantCluster(Cluster):
    """A cluster whose gateway knows three tenants, made by `kvist tenant new`."""

    def __init__(self, binaries):
        super().__init__(binaries)
        self.file = os.path.join(self.parent, "tenants.yaml")
        self.keys, self.salts, records = {}, [], []
        for name, fields in (("alpha", ""), ("beta", ""),
                             ("small", "    requests_per_minute: 2\n    priority: batch\n"
                               "    host_bytes: 64MiB\n")):
            run = self.kvist("tenant", "new", name)
            assert run.returncode == 0, run.stderr
            self.keys[name] = run.stderr.split()[-1]
            assert self.keys[name] not in run.stdout, "the key is in the record"
            self.salts.append(run.stdout.split("salt:")[1].split()[0])
            records.append(run.stdout + fields)
        self.write(records)
        self.records = records
        self.options = ("--embedded", "--model", os.environ["KVIST_MODEL"],
                        "--node.log_level=debug", f"--gateway.tenants_file={self.file}")

    def write(self, records):
        with open(self.file, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write("tenants:\n" + "".join(records))

    def ask(self, path, body=None, tenant=None, headers=None, endpoint=None, context=None):
        headers = dict(headers or {}, **{"Content-Type": "application/json"})
        if tenant is not None:
            headers["Authorization"] = "Bearer " + self.keys[tenant]
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request((endpoint or self.endpoint) + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_LIMIT_S, context=context) as got:
                answer = Answer(got.status, got.read(), 0)
                answer.headers = got.headers
        except urllib.error.HTTPError as error:
            with error:
                answer = Answer(error.code, error.read(), 0)
                answer.headers = error.headers
        return answer

    def chat_as(self, tenant, seed, headers=None, **more):
        body = {"messages": [{"role": "user", "content": f"{MARK} {prose(seed, 150)}"}],
                "max_tokens": 4, "temperature": 0, **more}
        answer = self.ask(CHAT, body, tenant, headers)
        assert answer.code == 200, answer.body
        return answer

    def gateway_log(self):
        with open(self.node_named("gateway")["log"], encoding="utf-8", errors="replace") as file:
            return file.read()

    def reload(self, expected):
        """SIGHUP, until the log says so once more."""
        before = self.gateway_log().count(expected)
        os.kill(self.node_named("gateway")["pid"], signal.SIGHUP)
        wait_until(lambda: self.gateway_log().count(expected) > before, 30, expected)

    def metric(self, line):
        for found in self.ask("/metrics").body.decode().splitlines():
            if found.startswith(line + " "):
                return float(found.split()[-1])
        return 0.0


def make_cluster(binaries):
    return TenantCluster(binaries)


def test_each_api_refuses_in_its_own_words(cluster):
    messages = [{"role": "user", "content": MARK}]
    for key in (None, "kvist-" + "0" * 64):
        bearer = {"Authorization": "Bearer " + key} if key else {}
        answer = cluster.ask(CHAT, {"messages": messages}, headers=bearer)
        assert answer.code == 401, answer.body
        assert answer.json["error"]["code"] == "invalid_api_key", answer.body
        answer = cluster.ask("/v1/messages", {"messages": messages, "max_tokens": 2, "model": "x"},
                             headers={"x-api-key": key} if key else {})
        assert answer.code == 401, answer.body
        assert answer.json["type"] == "error", answer.body
        assert answer.json["error"]["type"] == "authentication_error", answer.body
        answer = cluster.ask("/v1beta/cachedContents" + (f"?key={key}" if key else ""))
        assert answer.code == 401, answer.body
        assert answer.json["error"]["status"] == "UNAUTHENTICATED", answer.body
    assert cluster.ask("/v1/models").code == 401
    assert cluster.ask("/v1/models", tenant="alpha").code == 200
    assert cluster.ask("/healthz").code == 200


def test_a_key_opens_nothing_of_anothers(cluster):
    first = cluster.chat_as("alpha", 1)
    again = cluster.chat_as("alpha", 1)
    assert first.cached == 0 and again.cached > 100, (first.usage, again.usage)
    other = cluster.chat_as("beta", 1)
    assert other.cached == 0, other.usage
    assert cluster.chat_as("beta", 1).cached == again.cached
    assert other.text == first.text
    answer = cluster.ask(CHAT, {"messages": [{"role": "user", "content": MARK}],
                                "kvist": {"salt": "mine"}}, "alpha")
    assert answer.code == 400 and "kvist.salt" in answer.error(), answer.body


def test_background_work_leaves_the_cache_alone(cluster):
    cluster.chat_as("alpha", 2)
    background = {"x-kvist-priority": "background"}
    answer = cluster.chat_as("alpha", 2, background)
    assert answer.cached == 0 and answer.usage["kvist"]["miss"] == "bypassed", answer.usage
    answer = cluster.chat_as("alpha", 2, kvist={"priority": "background", "cache_mode": "read"})
    assert answer.cached > 100, answer.usage


def test_a_rate_is_kept_and_said(cluster):
    answer = cluster.chat_as("small", 3)
    assert answer.headers["x-ratelimit-limit-requests"] == "2", dict(answer.headers)
    cluster.chat_as("small", 3)
    for _ in range(20):  # a minute's two are gone; one comes back each 30 s
        answer = cluster.ask(CHAT, {"messages": [{"role": "user", "content": MARK}]}, "small")
        if answer.code == 429:
            break
    assert answer.code == 429, answer.body
    assert 1 <= int(answer.headers["Retry-After"]) <= 30, dict(answer.headers)
    assert answer.headers["x-ratelimit-remaining-requests"] == "0", dict(answer.headers)
    assert cluster.chat_as("beta", 3).code == 200


def test_a_quota_reaches_the_decode_node(cluster):
    run = cluster.kvist("quota", "--tenants", "--node", "decode-0", "--json", "--dir",
                        cluster.folder)
    assert run.returncode == 0, run.stderr
    assert str(64 << 20) in run.stdout and "small" in run.stdout, run.stdout


def test_figures_add_up(cluster):
    prefix = "kvist_gateway_"
    planner = prefix + 'agent_prompt_tokens_total{agent="planner_v2"}'
    answer = cluster.chat_as("alpha", 4, {"x-kvist-agent": "planner v2", "x-kvist-step": "7"})
    assert cluster.metric(planner) == answer.usage["prompt_tokens"]
    page = cluster.ask("/metrics").body.decode().splitlines()

    def total(name):
        return sum(float(line.split()[-1]) for line in page if line.startswith(name + "{")
                   or line.startswith(name + " "))
    for by in ("route", "model", "tenant", "agent", "template", "tool_mode", "step", "release"):
        for what in ("prompt_tokens_total", "cached_tokens_total", "completion_tokens_total"):
            assert total(f"{prefix}{by}_{what}") == total(prefix + what), (by, what)
    missed = total(prefix + "missed_tokens_total")
    assert missed == total(prefix + "prompt_tokens_total") - total(prefix + "cached_tokens_total")


def test_the_file_is_read_again(cluster):
    cluster.write(["  - name: alpha\n    salt: none of yours\n"])
    cluster.reload("the tenants of before stay in force")
    assert cluster.ask("/v1/models", tenant="alpha").code == 200
    run = cluster.kvist("tenant", "key")
    assert run.returncode == 0, run.stderr
    old, cluster.keys["alpha"] = cluster.keys["alpha"], run.stderr.split()[-1]
    record = cluster.records[0].split("    key_sha256")[0]
    cluster.write([f"{record}    key_sha256: [{run.stdout.strip()}]\n", *cluster.records[1:]])
    cluster.reload("tenants file ")
    assert cluster.ask("/v1/models", headers={"x-api-key": old}).code == 401
    assert cluster.chat_as("alpha", 1).cached > 100  # what it had cached is still its own
    cluster.keys["replaced"] = old


def make_certificate(folder, name):
    paths = [os.path.join(folder, f"{name}.{end}") for end in ("crt", "key")]
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                    "ec_paramgen_curve:P-256", "-nodes", "-days", "3650", "-subj", "/CN=" + name,
                    "-addext", "subjectAltName=IP:127.0.0.1", "-out", paths[0], "-keyout",
                    paths[1]], capture_output=True, timeout=60, check=True)
    os.chmod(paths[1], 0o600)
    return paths


def trusting(certificate):
    return ssl.create_default_context(cafile=certificate)


class SecureGateway:
    """A second gateway of the cluster, behind HTTPS."""

    def __init__(self, cluster, certificate, key):
        self.log = os.path.join(cluster.parent, "secure.log")
        decode = next(peer for node in cluster.status()["nodes"] if node["role"] == "gateway"
                      for peer in node["peers"])
        words = [os.path.join(cluster.binaries, "kvist-gateway"), "--node.name=secure",
                 f"--node.admin={cluster.parent}/secure.sock", "--gateway.http_port=0",
                 f"--cluster.key_file={cluster.folder}/cluster.key", "--gateway.model_name=x",
                 f"--model.path={os.environ['KVIST_MODEL']}", "--node.log_level=debug",
                 f"--gateway.decode_nodes={decode['address']}",
                 "--gateway.contents_directory=none",
                 f"--gateway.tenants_file={cluster.file}",
                 f"--gateway.tls_certificate={certificate}", f"--gateway.tls_key={key}"]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log)
        wait_until(lambda: " up address " in self.text() or self.process.poll() is not None, 60,
                   "the second gateway")
        assert self.process.poll() is None, self.text()
        port = self.text().split("listening https 127.0.0.1:")[1].split()[0]
        self.endpoint = "https://127.0.0.1:" + port

    def text(self):
        with open(self.log, encoding="utf-8", errors="replace") as file:
            return file.read()

    def end(self):
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


def chat_by_command(cluster, endpoint, certificate):
    """kvist chat: with key and certificate it talks, without either it says which is missing."""
    where = ["chat", "--endpoint", endpoint + "/", "--max-tokens", "2"]
    run = cluster.kvist(*where, "--ca", certificate, "--key", cluster.keys["alpha"], text="Hi\n")
    assert run.returncode == 0 and "prompt tokens" in run.stdout, run.stdout + run.stderr
    run = cluster.kvist(*where, "--ca", certificate, text="Hi\n")
    assert run.returncode == 1 and "HTTP 401" in run.stderr, run.stdout + run.stderr
    assert "KVIST_API_KEY" in run.stderr, run.stderr
    run = cluster.kvist(*where, "--key", cluster.keys["alpha"], text="Hi\n")
    assert run.returncode == 1 and "certificate" in run.stderr, run.stdout + run.stderr
    run = cluster.kvist(*where, "--key", "two words")
    assert run.returncode == 2 and "API key" in run.stderr, run.stderr


def test_https(cluster):
    certificate, key = make_certificate(cluster.parent, "first")
    gateway = SecureGateway(cluster, certificate, key)
    try:
        body = {"messages": [{"role": "user", "content": f"{MARK} {prose(1, 150)}"}],
                "max_tokens": 4, "temperature": 0}
        answer = cluster.ask(CHAT, body, "alpha", endpoint=gateway.endpoint,
                             context=trusting(certificate))
        assert answer.code == 200 and answer.cached > 100, answer.body
        answer = cluster.ask(CHAT, {**body, "stream": True}, "alpha", endpoint=gateway.endpoint,
                             context=trusting(certificate))
        assert answer.body.endswith(b"data: [DONE]\n\n"), answer.body
        chat_by_command(cluster, gateway.endpoint, certificate)
        # Another certificate in its place: new connections see that one.
        second, second_key = make_certificate(cluster.parent, "second")
        os.replace(second, certificate)
        os.replace(second_key, key)
        before = gateway.text().count("read again")
        gateway.process.send_signal(signal.SIGHUP)
        wait_until(lambda: gateway.text().count("read again") > before, 30, "the new certificate")
        answer = cluster.ask("/healthz", endpoint=gateway.endpoint, context=trusting(certificate))
        assert answer.code == 200, answer.body
        # One that is none: the log says so, and the one before serves on.
        context = trusting(certificate)
        with open(certificate, "w", encoding="ascii") as file:
            file.write("no certificate\n")
        gateway.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "the certificate of before stays" in gateway.text(), 30, "the refusal")
        answer = cluster.ask("/healthz", endpoint=gateway.endpoint, context=context)
        assert answer.code == 200, answer.body
    finally:
        gateway.end()
    assert gateway.process.returncode == 0, gateway.text()


def test_wrong_keys_of_the_server(cluster):
    certificate, key = make_certificate(cluster.parent, "good")
    os.chmod(key, 0o644)
    run = subprocess.run(
        [os.path.join(cluster.binaries, "kvist-gateway"), "--gateway.decode_nodes=127.0.0.1:1",
         f"--node.admin={cluster.parent}/wrong.sock", "--gateway.http_port=0",
         "--gateway.contents_directory=none",
         f"--cluster.key_file={cluster.folder}/cluster.key",
         f"--model.path={os.environ['KVIST_MODEL']}", f"--gateway.tls_certificate={certificate}",
         f"--gateway.tls_key={key}"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1 and "gateway.tls_key" in run.stderr, run.stderr
    assert "chmod 600" in run.stderr, run.stderr


def test_logs_tell_no_secret(cluster):
    logs = [node["log"] for node in cluster.nodes().values()]
    logs.append(os.path.join(cluster.parent, "secure.log"))
    secrets = [MARK, *cluster.keys.values(), *cluster.salts]
    seen = 0
    for path in logs:
        with open(path, "rb") as file:
            log = file.read()
        seen += log.count(b" debug ")
        for secret in secrets:
            assert secret.encode() not in log, f"{path} holds {secret}"
        for salt in cluster.salts:
            assert bytes.fromhex(salt)[:8] not in log, f"{path} holds a salt's bytes"
    assert seen > 0, "nothing was logged at debug level: this proves nothing"
    assert all(is_alive(node["pid"]) for node in cluster.nodes().values())
