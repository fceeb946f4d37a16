"""Damage on disk between two lives: a miss with a counted reason, never a wrong answer."""
import os

from cluster import prose

# No host tier to hide behind.
OPTIONS = ("--embedded", "--store.host_bytes=0")
QUESTION = prose(201, 700) + " What was it about?"


def segments(cluster):
    """The files of records: all large files of the stores, the index left out."""
    found = []
    for folder, _, names in os.walk(os.path.join(cluster.folder, "store")):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.getsize(path) >= 1 << 20 and "index" not in path:
                found.append(path)
    assert found, "no segment file is in the stores"
    return found


def flip(path, offsets):
    with open(path, "r+b") as file:
        for offset in offsets:
            file.seek(offset)
            byte = file.read(1)
            if byte:
                file.seek(offset)
                file.write(bytes([byte[0] ^ 0x40]))


def expect_after(cluster, damage, counted):
    """Stores a context, stops, damages, starts: the answer must be the same."""
    before = cluster.chat(QUESTION)
    assert before.code == 200, before.error()
    cluster.flush()
    cluster.down()
    damage()
    cluster.up()
    after = cluster.chat(QUESTION)
    assert after.code == 200, after.error()
    assert after.text == before.text, f"before {before.text!r}, after damage {after.text!r}"
    damaged = sum(node.get("damaged_objects", 0) for node in cluster.status()["nodes"])
    if counted:
        assert damaged > 0, "the damage was not counted"
        assert after.cached < after.usage["prompt_tokens"] - 16, after.usage
    # What was dropped is stored again and found again.
    again = cluster.chat(QUESTION)
    assert again.cached > again.usage["prompt_tokens"] - 32 and again.text == before.text, (
        again.usage, again.text)


def test_flipped_bytes_in_all_records(cluster):
    """A byte in every 4 KiB of records: whatever is read is refused, and counted."""
    def damage():
        for path in segments(cluster):
            flip(path, range((64 << 10) + 100, os.path.getsize(path), 4096))
    expect_after(cluster, damage, counted=True)


def test_flipped_bytes_in_segment_headers(cluster):
    def damage():
        for path in segments(cluster):
            flip(path, range(0, 64, 7))
    expect_after(cluster, damage, counted=False)


def test_one_flipped_byte_in_the_middle(cluster):
    def damage():
        for path in segments(cluster):
            flip(path, [3_000_000])
    expect_after(cluster, damage, counted=False)


def test_truncated_segments(cluster):
    def damage():
        for path in segments(cluster):
            os.truncate(path, 2_000_000)
    expect_after(cluster, damage, counted=False)


def test_lost_index(cluster):
    """The index is gone: it is made again from the records, or everything is a miss; no refusal."""
    def damage():
        for folder, _, names in os.walk(os.path.join(cluster.folder, "store")):
            if "index" in os.path.basename(folder):
                for name in names:
                    if name.endswith(".sst") or name.startswith(("MANIFEST", "CURRENT")):
                        os.remove(os.path.join(folder, name))
    expect_after(cluster, damage, counted=False)


def test_damaged_cluster_file(cluster):
    cluster.chat(QUESTION)
    path = os.path.join(cluster.folder, "cluster.json")
    with open(path, encoding="utf-8") as file:
        whole = file.read()
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(whole[:100])
        for command in ("status", "down", "up"):
            run = cluster.kvist(command, "--dir", cluster.folder)
            assert run.returncode == 1 and "cluster.json" in run.stderr, run.stderr
    finally:
        with open(path, "w", encoding="utf-8") as file:
            file.write(whole)
    assert cluster.chat(QUESTION).code == 200
