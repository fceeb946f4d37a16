"""What comes back to a GPU's memory (played by the stand-in) comes layer by layer, and is computed
with meanwhile."""
from cluster import prose
from group_device import LIMIT_S, DeviceCluster

# What leaves device memory goes to host memory, which has room for all of it.
OPTIONS = ("--embedded", "--store.device_slots=16", "--store.host_bytes=32MiB",
           "--store.disk_bytes=64MiB", "--store.segment_bytes=8MiB", "--store.persist=spill",
           "--gateway.node_wait=300s")
QUESTION = prose(902, 90)
SALTS = ("1", "2", "3")  # prompts that share nothing: more blocks than device memory has slots
ROUNDS = 8               # at most: a poll that comes late finds all layers there


def make_cluster(binaries):
    return DeviceCluster(binaries, *OPTIONS)


def metric(cluster, node, name):
    page = cluster.kvist("metrics", node, "--dir", cluster.folder).stdout
    return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith(name))


def test_a_prompt_is_computed_while_its_prefix_comes(cluster):
    wanted = None
    for turn in range(ROUNDS):
        for salt in SALTS:
            answer = cluster.chat(QUESTION, max_tokens=2, ignore_eos=True, limit_s=LIMIT_S,
                                  kvist={"salt": salt})
            assert answer.code == 200, answer.error()
            wanted = wanted or answer.text
            assert answer.text == wanted, f"wanted {wanted!r}, then {answer.text!r}"
            assert (answer.cached > 0) == (turn > 0), answer.body
        if metric(cluster, "prefill-0", "kvist_prefills_overlapped_total") > 0:
            return
    hits = metric(cluster, "prefill-0", 'kvist_store_hit_blocks_total{tier="host"}')
    raise AssertionError(f"{hits:.0f} blocks came from host memory; nothing was computed meanwhile")
