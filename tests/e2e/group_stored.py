"""The commands about what is stored: show, verify, drop, against running nodes."""
import json
import os
import time

from cluster import prose, wait_until

# No host tier: what is stored is on disk.
OPTIONS = ("--embedded", "--store.host_bytes=0")
BLOCK = 16
QUESTION = prose(301, 400) + " What was it about?"


def run_json(cluster, *arguments):
    run = cluster.kvist(*arguments, "--dir", cluster.folder, "--json")
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads(run.stdout)


def refused(cluster, code, expected, *arguments):
    run = cluster.kvist(*arguments, "--dir", cluster.folder)
    assert run.returncode == code, (run.returncode, run.stdout, run.stderr)
    assert expected in run.stderr, run.stderr


def longest(cluster, node="prefill-0"):
    """The last block of the longest context at the node."""
    contexts = [c for c in run_json(cluster, "ls", "--count", "1000") if c["node"] == node]
    return max(contexts, key=lambda context: context["token_count"])


def show(cluster, key, node="prefill-0"):
    return run_json(cluster, "show", key, "--node", node)[0]


def ancestor(cluster, key, position):
    block = show(cluster, key)
    while block["position"] > position:
        block = show(cluster, block["parent"])
    return block


def test_show_says_where_a_block_is(cluster):
    answer = cluster.chat(QUESTION)
    assert answer.code == 200, answer.error()
    cluster.flush()
    leaf = longest(cluster)
    block = show(cluster, leaf["key"])
    assert block["key"] == leaf["key"] and block["token_count"] == leaf["token_count"], block
    assert block["position"] == block["token_count"] // BLOCK - 1, block
    assert "disk" in block["tiers"] and block["stored_bytes"] >= block["bytes"], block
    assert block["origin"] == "prefill-0" and block["children"] == 0, block
    assert 0 < block["created_unix_ns"] <= block["used_unix_ns"] + 10**9, block
    parent = show(cluster, block["parent"][:12])
    assert parent["key"] == block["parent"] and parent["children"] >= 1, parent
    text = cluster.kvist("show", leaf["key"][:16], "--dir", cluster.folder)
    assert text.returncode == 0 and leaf["key"] in text.stdout, text.stdout
    for word in ("prefill-0", "on disk", "last use", "not pinned", "priority", "namespace"):
        assert word in text.stdout, text.stdout


def test_what_is_asked_wrongly_is_refused_with_a_remedy(cluster):
    refused(cluster, 2, "KEY is missing", "show")
    refused(cluster, 2, "KEY is missing", "drop")
    for command in ("show", "drop"):
        refused(cluster, 1, "no stored block's key begins with", command, "00000000000000ff")
        refused(cluster, 1, "hexadecimal digits", command, "1234")
        refused(cluster, 1, "hexadecimal digits", command, "not-a-key!")
        refused(cluster, 1, "prefill-0", command, "0123456789", "--node", "nobody")
    for command in ("show", "pin", "drop", "verify", "quota"):
        run = cluster.kvist(command, "--help")
        assert run.returncode == 0 and run.stdout.startswith(f"usage: kvist {command}"), run.stdout


def test_verify_finds_nothing_wrong(cluster):
    cluster.chat(QUESTION)
    cluster.flush()
    run = cluster.kvist("verify", "--dir", cluster.folder)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "prefill-0" in run.stdout and "damaged 0" in run.stdout, run.stdout
    nodes = {node["node"]: node for node in run_json(cluster, "verify")}
    assert nodes["prefill-0"]["object_count"] > 10, nodes
    assert all(node["damaged_objects"] == 0 for node in nodes.values()), nodes


def test_dropped_is_gone_after_a_restart(cluster):
    before = cluster.chat(QUESTION)
    cluster.flush()
    leaf = longest(cluster)
    keep = ancestor(cluster, leaf["key"], 4)
    for erase in ((), ("--erase",)):
        again = cluster.chat(QUESTION)
        assert again.cached > 10 * BLOCK, again.usage
        cluster.flush()
        child = ancestor(cluster, leaf["key"], 5)
        assert child["parent"] == keep["key"], child
        nodes = run_json(cluster, "drop", child["key"], *erase)
        dropped = sum(node["object_count"] for node in nodes)
        assert dropped >= leaf["token_count"] // BLOCK - 5, nodes
        refused(cluster, 1, "no stored block", "show", leaf["key"])
        cluster.down()
        cluster.up()
        refused(cluster, 1, "no stored block", "show", leaf["key"])
        after = cluster.chat(QUESTION)
        assert after.cached <= 5 * BLOCK, after.usage
        assert after.text == before.text, f"before {before.text!r}, after {after.text!r}"
    assert cluster.kvist("verify", "--dir", cluster.folder).returncode == 0


def test_drop_says_how_many_blocks_went(cluster):
    cluster.chat(QUESTION)
    leaf = longest(cluster)
    run = cluster.kvist("drop", leaf["key"][:20], "--dir", cluster.folder, "--node", "prefill-0")
    assert run.returncode == 0 and run.stdout == "prefill-0: 1 block dropped for good\n", run.stdout


def test_a_pin_is_kept_over_a_restart(cluster):
    cluster.chat(QUESTION)
    leaf = longest(cluster)["key"]
    run = cluster.kvist("pin", leaf[:16], "--for", "2h", "--node", "prefill-0",
                        "--dir", cluster.folder)
    assert run.returncode == 0 and "pinned until" in run.stdout, run.stdout + run.stderr
    until_ns = show(cluster, leaf)["pin_until_unix_ns"]
    assert 7100 < until_ns / 1e9 - time.time() <= 7201, until_ns
    root = ancestor(cluster, leaf, 0)
    assert root["pin_until_unix_ns"] == until_ns, root
    cluster.kill("prefill")
    cluster.up()
    assert show(cluster, leaf)["pin_until_unix_ns"] == until_ns
    listing = cluster.kvist("ls", "--dir", cluster.folder)
    assert "pinned 2 h" in listing.stdout or "pinned 120 min" in listing.stdout, listing.stdout
    run = cluster.kvist("pin", leaf, "--until", "2035-01-01T00:00:00Z", "--node", "prefill-0",
                        "--dir", cluster.folder)
    assert run.returncode == 0, run.stderr
    assert show(cluster, leaf)["pin_until_unix_ns"] == 2051222400 * 10**9
    run = cluster.kvist("pin", leaf, "--remove", "--node", "prefill-0", "--dir", cluster.folder)
    assert run.returncode == 0 and "no longer pinned" in run.stdout, run.stdout
    assert show(cluster, leaf)["pin_until_unix_ns"] == 0


def test_pins_are_refused_clearly(cluster):
    leaf = longest(cluster)["key"]
    refused(cluster, 2, "until when", "pin", leaf)
    refused(cluster, 2, "until when", "pin", leaf, "--for", "1h", "--remove")
    refused(cluster, 2, "no duration", "pin", leaf, "--for", "soon")
    refused(cluster, 2, "no time", "pin", leaf, "--until", "tomorrow")
    refused(cluster, 1, "has passed already", "pin", leaf, "--until", "2020-01-01")


def test_the_quota_can_be_changed(cluster):
    cluster.chat(QUESTION)
    cluster.flush()
    nodes = {node["node"]: node for node in run_json(cluster, "quota")}
    assert nodes["prefill-0"]["used_bytes"] > 0, nodes
    text = cluster.kvist("quota", "--dir", cluster.folder)
    assert text.returncode == 0 and "prefill-0" in text.stdout and "PINNED" in text.stdout, text
    refused(cluster, 2, "whose quota", "quota", "1GiB")
    refused(cluster, 2, "no size", "quota", "much", "--node", "prefill-0")
    refused(cluster, 1, "they must be 2 to", "quota", "1MiB", "--node", "prefill-0")
    refused(cluster, 1, "what fits", "quota", "4000TiB", "--node", "prefill-0")
    for size, size_bytes in (("1GiB", 1 << 30), ("256MiB", 256 << 20)):
        node = run_json(cluster, "quota", size, "--node", "prefill-0")[0]
        assert node["capacity_bytes"] == size_bytes, node
    folder = os.path.join(cluster.folder, "store", "prefill-0")
    wait_until(lambda: sum(name.startswith("segment-") for name in os.listdir(folder)) <= 4, 20,
               "the files to be removed")
    answer = cluster.chat(QUESTION)
    assert answer.cached > 10 * BLOCK, answer.usage
    other = {node["node"]: node for node in run_json(cluster, "quota")}["decode-0"]
    assert other["capacity_bytes"] == nodes["decode-0"]["capacity_bytes"], other


def test_tenants_have_quotas(cluster):
    refused(cluster, 2, "a tenant's quota", "quota", "--tenant", "ann")
    refused(cluster, 2, "a tenant's quota", "quota", "--disk", "1GiB")
    refused(cluster, 1, "tenant is", "quota", "--tenant", "a b", "--disk", "1GiB")
    refused(cluster, 1, "host_bytes of ann", "quota", "--tenant", "ann", "--host", "1B")
    for setting in (("--host", "64MiB", "--disk", "1GiB"), ("--disk", "2GiB"), ("--host", "0")):
        run_json(cluster, "quota", "--tenant", "ann", *setting)
    for node in run_json(cluster, "quota"):
        ann = [row for row in node["tenants"] if row["tenant"] == "ann"]
        assert ann and ann[0]["disk_quota_bytes"] == 2 << 30, node
        assert ann[0]["host_quota_bytes"] == 0 and ann[0]["disk_bytes"] == 0, node
    text = cluster.kvist("quota", "--tenants", "--dir", cluster.folder)
    assert text.returncode == 0 and "TENANT" in text.stdout and "2.0 GiB" in text.stdout, text
    page = cluster.kvist("metrics", "prefill-0", "--dir", cluster.folder).stdout
    assert 'kvist_store_tenant_quota_bytes{tenant="ann",tier="disk"} 2147483648' in page, page


def test_verify_drops_what_is_damaged(cluster):
    cluster.chat(QUESTION)
    cluster.flush()
    leaf = longest(cluster)
    block = ancestor(cluster, leaf["key"], 8)
    cluster.down()
    path = os.path.join(cluster.folder, "store", "prefill-0", f"segment-{block['segment']:05d}")
    with open(path, "r+b") as file:
        file.seek(block["segment_offset"] + block["stored_bytes"] // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0x40]))
    cluster.up()
    run = cluster.kvist("verify", "--dir", cluster.folder)
    assert run.returncode == 1, run.stdout + run.stderr
    expected = leaf["token_count"] // BLOCK - 8
    assert f"damaged {expected}" in run.stdout, (expected, run.stdout)
    refused(cluster, 1, "no stored block", "show", block["key"], "--node", "prefill-0")
    assert show(cluster, block["parent"])["children"] == 0
    assert cluster.kvist("verify", "--dir", cluster.folder).returncode == 0
    answer = cluster.chat(QUESTION)
    assert answer.tiers["disk"] <= 8 * BLOCK, answer.usage  # the decode node has the rest
