"""`kvist bench`: every line has the one form, whatever the figures."""
import json
import math
import os
import tempfile

KEYS = ["measure", "ours", "unit", "against", "theirs", "ratio", "spread", "target", "ok"]


def check_line(line):
    row = json.loads(line)
    assert list(row) == KEYS, f"other keys than {KEYS}: {line}"
    assert isinstance(row["measure"], str) and row["measure"], line
    assert isinstance(row["unit"], str) and row["unit"], line
    assert row["ours"] > 0 and math.isfinite(row["ours"]), line
    low, high = row["spread"]
    if row["against"] is None:
        assert row["theirs"] is None and row["ratio"] is None, line
        assert low <= row["ours"] <= high, line
    else:
        assert row["theirs"] > 0, line
        assert low <= row["ratio"] <= high, line
    if row["target"] is None:
        assert row["ok"] is None, line
        return row
    judged = row["ours"] if row["against"] is None else row["ratio"]
    if row["unit"] == "x" or row["unit"].endswith("/s"):
        met, reachable = judged >= row["target"], high >= row["target"]
    else:
        met, reachable = judged <= row["target"], low <= row["target"]
    assert row["ok"] == (True if met else None if reachable else False), line
    return row


def bench(cluster, *arguments):
    run = cluster.kvist("bench", *arguments)
    assert run.returncode == 0, f"kvist bench {arguments} failed:\n{run.stdout}{run.stderr}"
    return run


def test_store_json(cluster):
    with tempfile.TemporaryDirectory(prefix="kvist-bench-") as folder:
        run = bench(cluster, "store", "--quick", "--json", "--dir", folder)
        assert os.listdir(folder) == [], f"left behind: {os.listdir(folder)}"
    rows = [check_line(line) for line in run.stdout.splitlines()]
    names = [row["measure"] for row in rows]
    assert len(set(names)) == len(names), f"a measure came twice: {names}"
    for start in ("memory used, ram", "memory used, and as much on disk",
                  "disk get, random 1 MiB", "disk get, chain 16 x 64 KiB",
                  "disk put, random 1 MiB", "disk put, chain", "ram get, random",
                  "ram get, chain", "ram put, random", "verified disk get", "match, context",
                  "put, context", "get, context", "match of 8192 blocks"):
        assert any(name.startswith(start) for name in names), f"no '{start}' in {names}"
    against = {row["against"] for row in rows if row["measure"].startswith("disk get")}
    assert all(text.startswith("fio-") for text in against), against
    for fact in ("# kvist", "# processor:", "# memory:", "# disk:", "# fio-"):
        assert fact in run.stderr, f"'{fact}' is not told:\n{run.stderr}"


def test_store_table(cluster):
    with tempfile.TemporaryDirectory(prefix="kvist-bench-") as folder:
        run = bench(cluster, "store", "--quick", "--only", "match of", "--dir", folder)
    assert "# processor:" in run.stdout and "quartiles" in run.stdout, run.stdout
    assert "match of 8192 blocks" in run.stdout and "of 1 targets" in run.stdout, run.stdout


def test_engine_json(cluster):
    run = bench(cluster, "engine", "--model", os.environ["KVIST_MODEL"], "--repetitions", "1",
                "--json")
    names = [check_line(line)["measure"] for line in run.stdout.splitlines()]
    assert "engine_load" in names and len(names) >= 4, names


def test_codec_json(cluster):
    with tempfile.TemporaryDirectory(prefix="kvist-bench-") as folder:
        run = bench(cluster, "codec", "--model", os.environ["KVIST_MODEL"], "--tokens", "256",
                    "--quick", "--pairs", "1", "--json", "--dir", folder)
        assert os.listdir(folder) == [], f"left behind: {os.listdir(folder)}"
    rows = {row["measure"]: row for row in map(check_line, run.stdout.splitlines())}
    others = [f"{name} on {pieces}" for name in ("lz4", "zstd 1", "zstd 3")
              for pieces in ("units", "blocks")]
    assert list(rows)[:-4] == ["ratio", "encode", "decode", "verified copy out of memory"] + [
        f"{aspect}, beside {other}" for other in others
        for aspect in ("ratio", "encode", "decode")], list(rows)
    assert [name.rsplit(", chain", 1)[0] for name in list(rows)[-4:]] == [
        "disk get", "disk put", "disk get, encrypted", "disk put, encrypted"], list(rows)
    # What follows from the bytes alone holds on every machine.
    assert rows["ratio"]["ok"] is True and rows["decode"]["target"] == 2, rows["ratio"]
    assert all(rows[f"ratio, beside {other}"]["ratio"] > 1 for other in others), rows
    assert "units of 2048 bytes, blocks of 368640" in run.stderr, run.stderr


def test_codec_file(cluster):
    with tempfile.TemporaryDirectory(prefix="kvist-bench-") as folder:
        path = os.path.join(folder, "kv")
        with open(path, "wb") as file:
            file.write(b"\x80\x3f" * 5000)
        run = bench(cluster, "codec", "--file", path, "--unit-bytes", "1000", "--block-bytes",
                    "4000", "--quick", "--pairs", "1", "--only", "ratio", "--json")
        assert len(run.stdout.splitlines()) == 7, run.stdout
        few = cluster.kvist("bench", "codec", "--file", path)
        assert few.returncode == 1 and "--block-bytes" in few.stderr, few.stderr


def test_wire_json(cluster):
    run = bench(cluster, "wire", "--quick", "--json", "--pairs", "1", "--sample-mib", "4")
    rows = [check_line(line) for line in run.stdout.splitlines()]
    names = [row["measure"] for row in rows]
    assert len(set(names)) == len(names), f"a measure came twice: {names}"
    for wire in ("shm", "tcp"):
        for rest in ("run of 1 x 64 KiB", "run of 1 x 64 KiB, alone", "run of 1 x 1 MiB",
                     "layer of 86 x 12 KiB", "run of 1 x 1 MiB, beside eager",
                     "run of 1 x 1 MiB, beside socket"):
            assert f"{wire}, {rest}" in names, f"no '{wire}, {rest}' in {names}"


def test_attach_json(cluster):
    run = bench(cluster, "attach", "--quick", "--json", "--pairs", "1", "--host-gib", "1",
                "--clients", "3")
    names = [check_line(line)["measure"] for line in run.stdout.splitlines()]
    chains = ("chain 64 x 64 KiB", "chain 16 x 1024 KiB")
    moves = [f"{move}, {chain}, depth {depth}" for chain in chains for move in ("get", "put")
             for depth in (1, 8)]
    assert names == ["first service, host tier of 1.0 GiB", *moves,
                     "3 clients, get, chain 16 x 256 KiB, depth 4",
                     "3 clients, slowest / fastest, chain 16 x 256 KiB, depth 4"], names


def test_pd_json(cluster):
    with tempfile.TemporaryDirectory(prefix="kvist-bench-") as folder:
        series, figure = os.path.join(folder, "pace.csv"), os.path.join(folder, "pace.svg")
        run = bench(cluster, "pd", "--model", os.environ["KVIST_MODEL"], "--json", "--pairs", "1",
                    "--prompt-tokens", "700", "--window-ms", "1000", "--idle-s", "1",
                    "--series", series, "--figure", figure)
        with open(series, encoding="utf-8") as file:
            rows = [line.split(",") for line in file.read().splitlines()]
        with open(figure, encoding="utf-8") as file:
            drawn = file.read()
    names = [check_line(line)["measure"] for line in run.stdout.splitlines()]
    assert names == ["idle, prefill-0", "idle, decode-0", "idle, gateway-0", "TTFT, 700 tokens",
                     "exposed transfer, 700 tokens", "TPOT p50, 4 decodes, apart",
                     "TPOT p99, 4 decodes, apart", "TPOT p50, 4 decodes, together",
                     "TPOT p99, 4 decodes, together"], names
    assert rows[0] == ["layout", "round", "decode", "window", "at_s", "gap_ms"], rows[0]
    seen = {(layout, decode, window) for layout, _, decode, window, _, _ in rows[1:]}
    assert len(seen) == 2 * 4 * 2, seen
    assert drawn.startswith("<svg") and drawn.count("h0") == len(rows) - 1, drawn[:200]


def test_serve_adds_up(cluster):
    """Every workload: each prompt token is hit, gap or unseen, and both sides count the same."""
    with tempfile.TemporaryDirectory(prefix="kvist-bench-") as folder:
        trace = os.path.join(folder, "trace.jsonl")
        with open(trace, "w", encoding="utf-8") as file:
            for i in range(4):
                file.write(json.dumps({"timestamp": 100 * i, "input_length": 900,
                                       "output_length": 4, "hash_ids": [1, 2 + i % 2]}) + "\n")
        small = ("--prompt-tokens", "128", "--turn-tokens", "24", "--answer-tokens", "6")
        for workload, *options in (
                ("agents", *small, "--sessions", "3", "--turns", "3", "--pause-ms", "10"),
                ("sweep", *small[:2], "--requests", "3", "--shared", "50,100"),
                ("tree", *small, "--sessions", "1", "--depth", "2", "--branches", "2"),
                ("batch", *small, "--sessions", "2", "--questions", "2",
                 "--concurrency", "1"),
                ("trace", "--trace", trace, "--scale", "20")):
            run = json.loads(bench(cluster, "serve", workload, *options, "--dir", cluster.folder,
                                   "--json", "-").stdout)
            for phase in run["phases"]:
                where, parts, tokens = (workload, phase["label"]), phase["gateway"], phase["tokens"]
                assert phase["requests"]["failed"] == 0, (where, phase["failures"])
                told = {kind: sum(parts[kind].values()) for kind in ("hit", "gap", "unseen")}
                assert sum(told.values()) == parts["prompt"] == parts["asked"], (where, parts)
                assert parts["adds_up"] is True and tokens["foreign"] == 0, (where, tokens)
                assert told["hit"] == tokens["hit"], (where, told, tokens)
                assert tokens["hit"] > 0 or workload == "trace", (where, told, tokens)
                # The gateway counts what was in work as seen, too.
                assert tokens["ideal"] <= told["hit"] + told["gap"], (where, told, tokens)


def test_refused(cluster):
    for arguments in ((), ("stoer",), ("store", "--pairs", "0"), ("store", "--object-kib", "1"),
                      ("engine",), ("codec",), ("codec", "--model", "a", "--file", "b"),
                      ("codec", "--file", "a", "--unit-bytes", "3"), ("wire", "--wire", "rdma"),
                      ("wire", "--depth", "0"), ("attach", "--clients", "1"),
                      ("attach", "--host-gib", "0"), ("pd", "--only", "nothing"),
                      ("pd", "--pairs", "0")):
        run = cluster.kvist("bench", *arguments)
        assert run.returncode == 2, f"kvist bench {arguments}: {run.returncode} {run.stderr}"
        assert run.stderr, arguments
    run = cluster.kvist("bench", "store", "--quick", "--dir", "/dev/null/x")
    assert run.returncode == 1 and "--dir" in run.stderr, run.stderr
    with tempfile.TemporaryDirectory(prefix="kvist-bench-") as folder:
        run = cluster.kvist("bench", "store", "--quick", "--dir", folder, "--against",
                            "/bin/false")
        assert run.returncode == 1 and "ended" in run.stderr, run.stderr
        assert os.listdir(folder) == []
