#!/usr/bin/env python3
"""Mistakes in the real kernels, one at a time, each of which the kernel's own test must find.

A copy of a source of kernels/cuda/ gets the mistake, is compiled as the tests' kernels are and
takes the place of the true one in a test, which then must end badly, and for the reason that stands
beside the mistake: what the stand-in calls a finding, or "comparison" with plain C. A mistake whose
text is no longer in the source fails too: it has to move with the code.

Objects and commands are those of a build by Ninja, in which the tests of kernels are built.

usage: seeded.py --build FOLDER [--source FOLDER] [WORD...]
"""
import argparse
import collections
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading

Mistake = collections.namedtuple("Mistake", "name source test case caught_by true false")

LIMIT_S = 600  # of one test: a mistake that ends in a circle is not caught
RACE, BOUNDS, UNWRITTEN = "race", "out of bounds", "read before written"
LANE, BARRIER, MISALIGNED = "inactive lane", "divergent barrier", "misaligned"
COMPARISON = "comparison"

MISTAKES = [
    # ---- rows, weights ----
    Mistake("norm: no barrier before the warps' sums are added", "rows.cu", "rows", "norm*",
            {UNWRITTEN, RACE}, "    __syncthreads();\n    float sum = 0;", "    float sum = 0;"),
    Mistake("norm: half of the lanes are added", "rows.cu", "rows", "norm*", {COMPARISON},
            "int step = CUDA_WARP / 2; step > 0", "int step = CUDA_WARP / 4; step > 0"),
    Mistake("gate: one quarter of a row too many", "rows.cu", "rows", "norm*", {BOUNDS},
            "if (at >= (size_t)gate.rows.count * quarter)",
            "if (at > (size_t)gate.rows.count * quarter)"),
    Mistake("weights: one group too many", "weights.cu", "rows", "weights*", {BOUNDS},
            "if (group < dequantise.count / GROUP)", "if (group <= dequantise.count / GROUP)"),
    Mistake("weights: a block's scale read as a word", "expand.h", "rows", "weights*",
            {MISALIGNED, BOUNDS},
            "*(const uint16_t *)at)", "(uint16_t)*(const uint32_t *)at)"),
    Mistake("product over rows: no barrier before the parts are added", "product_rows.cu", "rows",
            "products*", {UNWRITTEN, RACE}, "    __syncthreads();\n", ""),
    Mistake("product over rows: outputs past the last are written", "product_rows.cu", "rows",
            "products*", {BOUNDS, COMPARISON},
            "if (adder == 0 && output < product.weight_rows)", "if (adder == 0)"),
    # ---- products over tiles ----
    Mistake("product: no barrier behind the loads", "products_plain.cu", "products", "products*",
            {UNWRITTEN, RACE}, "product.columns, at);\n        __syncthreads();\n",
            "product.columns, at);\n"),
    Mistake("product: no barrier before the next loads", "products_plain.cu", "products",
            "products*", {RACE}, "        }\n        __syncthreads();\n    }\n",
            "        }\n    }\n"),
    Mistake("product: a row past the last is read", "products_plain.cu", "products", "products*",
            {BOUNDS}, "first + row < row_count", "first + row <= row_count"),
    # ---- attention over tiles ----
    Mistake("tiles: keys are read before they have arrived for all", "attend_tiles.cu", "attend",
            "attention_over_tiles*", {RACE, UNWRITTEN},
            "        __syncthreads(); /* the keys have arrived */\n", ""),
    Mistake("tiles: the next keys overwrite those that are read", "attend_tiles.cu", "attend",
            "attention_over_tiles*", {RACE},
            "        __syncthreads(); /* the keys' place is free */\n", ""),
    Mistake("tiles: the next values overwrite those that are read", "attend_tiles.cu", "attend",
            "attention_over_tiles*", {RACE},
            "        __syncthreads(); /* the values' place is free */\n", ""),
    Mistake("tiles: the wait leaves the values' group under way", "attend_tiles.cu", "attend",
            "attention_over_tiles*", {RACE, UNWRITTEN, COMPARISON},
            "kv_copy_async_wait<1>();\n        __syncthreads(); /* the values",
            "kv_copy_async_wait<2>();\n        __syncthreads(); /* the values"),
    Mistake("tiles: the first keys' group is not closed", "attend_tiles.cu", "attend",
            "attention_over_tiles*", {RACE, UNWRITTEN, COMPARISON},
            "tile.known, keys);\n    kv_copy_async_commit();\n", "tile.known, keys);\n"),
    Mistake("tiles: chunks begin between two boundaries", "attend_tiles.cu", "attend",
            "attention_over_tiles*", {MISALIGNED}, "(chunk ^ row % 8) * CHUNK;",
            "(chunk ^ row % 8) * CHUNK + CHUNK / 2;"),
    Mistake("tiles: two groups of values are exchanged", "attend_tiles.cu", "attend",
            "attention_over_tiles*", {COMPARISON}, "kv_mma_bf16(weighted[n], a, b);",
            "kv_mma_bf16(weighted[n], a, b + 2);"),
    Mistake("tiles: each row sees the key behind it", "attend_tiles.cu", "attend",
            "attention_over_tiles*", {COMPARISON}, "if (key > row || key < seen)",
            "if (key > row + 1 || key < seen)"),
    Mistake("tiles: the last key tile is not masked", "attend_tiles.cu", "attend",
            "attention_over_tiles*", {COMPARISON}, "if (first + KEYS > tile.position || first",
            "if (first > tile.position || first"),
    Mistake("tiles: a row's largest score from another row's lanes", "attend_tiles.cu", "attend",
            "attention_over_tiles*", {COMPARISON},
            "__shfl_xor_sync(CUDA_ALL_LANES, peak, 2)", "__shfl_xor_sync(CUDA_ALL_LANES, peak, 4)"),
    Mistake("tiles: a fragment of keys from the wrong lanes' rows", "attend_tiles.cu", "attend",
            "attention_over_tiles*", {COMPARISON}, "lane / 16 * 8 + lane % 8",
            "lane / 8 * 8 + lane % 8"),
    Mistake("tiles: a key past the last is read", "attend_tiles.cu", "attend",
            "attention_over_tiles*", {COMPARISON, BOUNDS}, "const bool valid = first + row < known",
            "const bool valid = first + row <= known"),
    Mistake("tiles: a run is left out when runs are merged", "attend_tiles.cu", "attend", "runs*",
            {COMPARISON}, "run <= tile.last_run; run++) {\n        const size_t line = "
            "partial_line(tiles, tile, head, run, row);\n        const float2 end",
            "run < tile.last_run; run++) {\n        const size_t line = "
            "partial_line(tiles, tile, head, run, row);\n        const float2 end"),
    # ---- attention over rows ----
    Mistake("rows: no barrier between scores and softmax", "attend_rows.cu", "attend",
            "attention_over_rows*", {RACE, UNWRITTEN},
            "    __syncthreads();\n    soften<HEADS>", "    soften<HEADS>"),
    Mistake("rows: every lane of a key writes every head", "attend_rows.cu", "attend",
            "attention_over_rows*", {RACE},
            "if (h % LANES_PER_KEY == threadIdx.x % LANES_PER_KEY && key", "if (key"),
    Mistake("rows: a row sees the key behind it", "attend_rows.cu", "attend",
            "attention_over_rows*", {COMPARISON}, "end = segment.row.position + 1",
            "end = segment.row.position + 2"),
    Mistake("rows: the last segment is left out", "attend_rows.cu", "attend",
            "attention_over_rows*", {COMPARISON},
            "segment <= last; segment++) {\n        const float",
            "segment < last; segment++) {\n        const float"),
    # ---- keys and values into the arena ----
    Mistake("rotate: a row past a sequence's last is stored", "rotate_store.cu", "attend",
            "rotated*", {COMPARISON, BOUNDS}, "if (blockIdx.x >= sequence.row_count)",
            "if (blockIdx.x > sequence.row_count)"),
    # ---- bytes ----
    Mistake("gather: a vector past a range's end", "blocks.cu", "blocks", "*", {BOUNDS, RACE},
            "if (at < bytes) {\n            *(uint4 *)",
            "if (at <= bytes) {\n            *(uint4 *)"),
    Mistake("gather: a thread block goes round one piece too far", "blocks.cu", "blocks", "*",
            {COMPARISON}, "piece += gridDim.x", "piece += gridDim.x + 1"),
    Mistake("seal: the secret is read before it is there", "seal.cu", "seal", "every_short*",
            {RACE, UNWRITTEN}, "SECRET[threadIdx.x];\n    }\n    __syncthreads();\n",
            "SECRET[threadIdx.x];\n    }\n"),
    Mistake("seal: a set of sums is read before it is whole", "seal.cu", "seal", "*",
            {RACE, UNWRITTEN}, "            }\n        }\n        __syncthreads();\n",
            "            }\n        }\n"),
    Mistake("seal: the next unit's sums come too early", "seal.cu", "seal", "*", {RACE},
            "        __syncthreads(); /* the next unit's sums come to where this one's lay */\n",
            ""),
    Mistake("seal: a vector past the unit's end", "seal.cu", "seal", "*", {BOUNDS, RACE},
            "if (mine + CUDA_VECTOR_BYTES <= item->bytes - at)", "if (mine < item->bytes - at)"),
    Mistake("copy: a word beyond what is given", "bytes.h", "codec", "*", {BOUNDS, RACE},
            "(bytes - head - (4 - shift)) / 4", "(bytes - head + shift) / 4"),
    # ---- the codec ----
    Mistake("encode: what goes on overwrites what is not yet read", "codec.cu", "codec", "*",
            {RACE}, "        __syncwarp(); /* all have read before any writes there */\n", ""),
    Mistake("encode: exponents are counted without atomics", "codec.cu", "codec", "*", {RACE},
            "atomicAdd(&encoder->counts[exponent_of(word)], 1u);",
            "encoder->counts[exponent_of(word)] += 1u;"),
    Mistake("decode: the next chunk comes before this one is read", "codec.cu", "codec", "*",
            {RACE}, "        __syncwarp(); /* before the next chunk comes there */\n", ""),
    Mistake("decode: lanes that have nothing leave a shuffle", "codec.cu", "codec", "*", {LANE},
            "    uint32_t low = __shfl_sync(CUDA_ALL_LANES, codes->low, word);",
            "    if (!there) {\n        return 0;\n    }\n"
            "    uint32_t low = __shfl_sync(CUDA_ALL_LANES, codes->low, word);"),
    Mistake("decode: a length that was made up is believed", "codec.cu", "codec", "*", {BOUNDS},
            "return said < bytes ? said : bytes;", "return said + 0 * bytes;"),
    Mistake("scan: totals are overwritten while they are read", "codec.cu", "codec", "*", {RACE},
            "        __syncthreads(); /* before the next totals come there */\n", ""),
    # ---- sampling ----
    Mistake("sample: the bin is read before it is found", "sample.cu", "sample", "tokens*",
            {RACE, UNWRITTEN}, "        __syncthreads();\n        prefix |= board->bin",
            "        prefix |= board->bin"),
    Mistake("sample: the board is written while it is read", "sample.cu", "sample", "tokens*",
            {RACE}, "    __syncthreads(); /* the board has been read */\n", ""),
    Mistake("sample: tokens are counted without atomics", "sample.cu", "sample", "tokens*", {RACE},
            "atomicAdd(&board->counts[bin], 1u);", "board->counts[bin] += 1u;"),
    Mistake("sample: one warp comes to the barrier of another place", "sample.cu", "sample",
            "tokens*", {BARRIER, LANE, RACE},
            "    __syncthreads();\n    return board->token;",
            "    if (warp == owner) {\n        __syncthreads();\n    }\n    return board->token;"),
]


class Build:
    """How the build compiles a checked kernel and links a test of it."""

    def __init__(self, folder):
        self.folder = folder
        listed = subprocess.run(["ninja", "-C", folder, "-t", "compdb"], check=True,
                                stdout=subprocess.PIPE).stdout
        text = listed[listed.index(b"["):]
        self.commands = {entry["output"]: entry["command"] for entry in json.loads(text)}

    def run(self, command):
        done = subprocess.run(command, shell=True, cwd=self.folder, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, errors="replace", check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{command}\n{done.stdout}")

    def make(self, work, source, changed, test):
        """The test's program with the changed source, or with a header changed for its user."""
        unit = source if source.endswith(".cu") else USERS[source]
        true_object = f"kernels/cuda/CMakeFiles/cuda_checked.dir/{unit}.o"
        program, test_program = work / "test", f"tests/cuda_test_{test}"
        command = self.commands[true_object]
        command = re.sub(r"-MD -MT \S+ -MF \S+", "", command).replace(
            f"-o {true_object}", f"-o {work}/changed.o").replace(" -g ", " ")
        path = re.search(r"-c (\S+)", command).group(1)
        if source == unit:
            command = command.replace(f"-c {path}", f"-c {changed}")
        # The changed one comes first wherever it is included.
        self.run(re.sub(r" -I", f" -I{work} -I", command, count=1))
        self.run(self.commands[test_program].replace(true_object, f"{work}/changed.o").replace(
            f"-o {test_program}", f"-o {program}"))
        return program


# Which source a header is compiled with.
USERS = {"expand.h": "weights.cu", "bytes.h": "codec.cu"}


def first_word(line):
    """What a line of a test's output says of the kernel: a finding, or a comparison that failed."""
    finding = re.match(r"simt: ([a-z ]+):", line)
    if finding:
        return finding.group(1)
    return COMPARISON if line.startswith(("[  ERROR", "[  FAILED")) else None


def run_test(program, case, source):
    """The first word of a test that ends badly, and its line; (None, why) of one that does not."""
    child = subprocess.Popen([program], cwd=source, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True, errors="replace",
                             env={**os.environ, "KVIST_TEST_CASES": case})
    clock = threading.Timer(LIMIT_S, child.kill)
    clock.start()
    try:
        for line in child.stdout:
            word = first_word(line)
            if word:
                child.kill()
                return word, line.strip()
        status = child.wait()
    finally:
        clock.cancel()
        child.kill()
        child.stdout.close()
        child.wait()
    if status < 0:
        return None, f"ended by {signal.Signals(-status).name} and said nothing"
    return None, "the test passed" if status == 0 else f"status {status} and no word"


def try_mistake(build, source, mistake):
    """How it was caught; raises LookupError where it was not, or not as it has to be."""
    path = source / "kernels/cuda" / mistake.source
    text = path.read_text()
    times = text.count(mistake.true)
    if times != 1:
        raise LookupError(f"its text stands {times} times in {mistake.source}, not once")
    work = build.folder / "seeded"
    shutil.rmtree(work, ignore_errors=True)
    changed = work / "kernels/cuda" / mistake.source
    changed.parent.mkdir(parents=True)
    changed.write_text(text.replace(mistake.true, mistake.false))
    program = build.make(work, mistake.source, changed, mistake.test)
    word, line = run_test(program, mistake.case, source)
    shutil.rmtree(work)
    if word is None:
        raise LookupError(f"not caught: {line}")
    if word not in mistake.caught_by:
        raise LookupError(f"caught by another thing: {line}")
    return word, line


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--source", type=pathlib.Path,
                        default=pathlib.Path(__file__).resolve().parents[2])
    parser.add_argument("words", nargs="*", help="of the names of mistakes to try; none: all")
    arguments = parser.parse_args()
    build = Build(arguments.build.resolve())
    chosen = [mistake for mistake in MISTAKES
              if all(word in mistake.name for word in arguments.words)]
    failed, caught = 0, collections.Counter()
    for mistake in chosen:
        try:
            word, line = try_mistake(build, arguments.source.resolve(), mistake)
            caught[word] += 1
            print(f"caught   {mistake.name}: {line[:150]}", flush=True)
        except (LookupError, RuntimeError) as error:
            failed += 1
            print(f"[  FAILED  ] {mistake.name}: {error}", flush=True)
    print(", ".join(f"{count} by {word}" for word, count in caught.most_common()))
    print(f"[  FAILED  ] {failed} test(s)" if failed else f"[  PASSED  ] {len(chosen)} test(s)")
    return 1 if failed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
