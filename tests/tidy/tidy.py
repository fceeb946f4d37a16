#!/usr/bin/env python3
"""Tidy: the rules of the house that a machine can check, each one a case of its own.

A rule is a function from a Tree to a list of complaints ("path:line: what; do what"). Before the
real tree is judged, every rule is fed a bad sample that it must refuse and a good one that it must
let pass: a rule that cannot fail proves nothing.

usage: tidy.py [RULE...]        without names: all of them
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# Who may include whom: the table of docs/ARCHITECTURE.md. Every folder may include itself.
ENGINE_SIDE = ["base", "proto", "kernels", "kvstore", "transport", "cluster", "engine", "node",
               "holder", "runtime"]
MAY_INCLUDE = {
    "base": [],
    "proto": ["base"],
    "kernels": ["base"],
    "kvstore": ["base", "proto", "kernels"],
    "transport": ["base", "proto", "kernels"],
    "cluster": ["base", "proto", "node", "transport"],
    "engine": ["base", "kernels"],
    "node": ["base", "proto"],
    "holder": ["base", "proto", "kernels", "kvstore", "transport", "cluster", "node"],
    "runtime": ["base", "proto", "kernels", "kvstore", "transport", "cluster", "engine", "node",
                "holder"],
    "store": ["base", "proto", "kernels", "kvstore", "transport", "cluster", "node", "holder"],
    "prefill": ENGINE_SIDE,
    "decode": ENGINE_SIDE,
    "audit": ["base", "engine"],
    "gateway": ["base", "proto", "transport", "cluster", "engine", "kvstore", "node", "audit"],
    "tools": ["base", "proto", "kernels", "node", "engine", "kvstore", "transport", "cluster",
              "gateway", "audit"],
    "docs": ["kvstore"],
}
# Where only some headers of a folder are public enough for the including folder.
ONLY_HEADERS = {
    ("gateway", "kvstore"): ["kvstore/kvist.h"],
    ("docs", "kvstore"): ["kvstore/kvist.h"],
    ("tools", "kernels"): ["kernels/device.h", "kernels/moves.h", "kernels/plugin.h"],
    ("tools", "cluster"): ["cluster/holdings.h"],
    ("tools", "gateway"): ["gateway/routing/branches.h", "gateway/routing/router.h"],
    ("tools", "kvstore"): ["kvstore/kvist.h", "kvstore/codec/codec.h", "kvstore/simulated.h",
                           "kvstore/unverified.h"],
    ("tools", "transport"): ["transport/mover.h", "transport/ucx/ucx_bare.h"],
}

# A foreign header: the one file, or for a pattern that ends in "/" the one folder, that may see it.
SEAM_ONE_FILE = [
    "liburing.h", "rocksdb/c.h", "lz4.h", "microhttpd.h", "dnnl.h", "xxhash.h", "pcre2.h",
    "cyaml/cyaml.h", "curl/curl.h", "zstd.h", "openssl/kdf.h",
    "openssl/x509.h",
]
SEAM_FOLDER = {"ucp/": "transport/ucx/", "ucs/": "transport/ucx/", "uct/": "transport/ucx/",
               "cuda": "kernels/cuda/", "cublas": "kernels/cuda/"}

# Functions that overflow, guess, hide state or hand a string to a shell.
BANNED = {
    "strcpy": "snprintf", "strcat": "snprintf", "stpcpy": "snprintf", "sprintf": "snprintf",
    "vsprintf": "vsnprintf", "gets": "fgets", "scanf": "strtoull and friends",
    "strtok": "strchr or strcspn", "system": "posix_spawn",
    "popen": "posix_spawn", "alloca": "kv_allocate", "atoi": "strtol", "atol": "strtol",
    "atoll": "strtoll", "atof": "strtod", "rand": "a seeded generator",
    "srand": "a seeded generator", "mktemp": "mkstemp", "tmpnam": "mkstemp",
    "tempnam": "mkstemp", "asctime": "strftime", "ctime": "strftime", "gmtime": "gmtime_r",
    "localtime": "localtime_r",
    "setlocale": "nothing: numbers are read and written in the C locale",
}

COLUMNS_MAX = 100
HIDDEN = ("build", ".git", ".cache", "shared", "__pycache__")


class Tree:
    """The files of a folder: {path: text}, paths relative to it."""

    def __init__(self, folder):
        self.folder = folder
        self.files = {}
        for parent, folders, names in os.walk(folder):
            top = parent == folder
            folders[:] = sorted(f for f in folders if not (
                f in ("__pycache__", ".git") or top and f.startswith(HIDDEN)))
            for name in sorted(names):
                path = os.path.relpath(os.path.join(parent, name), folder)
                try:
                    with open(os.path.join(parent, name), encoding="utf-8") as file:
                        self.files[path] = file.read()
                except UnicodeDecodeError:
                    self.files[path] = None  # no text

    def texts(self, *endings):
        for path, text in self.files.items():
            if text is not None and (not endings or path.endswith(endings)):
                yield path, text

    def c_files(self):
        return self.texts(".c", ".h", ".cu", ".cuh")

    def scripts(self):
        for path, text in self.texts():
            first = text.split("\n", 1)[0]
            if path.endswith((".py", ".sh")) or first.startswith("#!"):
                yield path, text


def code_only(text):
    """C text with comments, strings and character constants blanked; lines keep their numbers."""
    def blank(match):
        return re.sub(r"[^\n]", " ", match.group(0))
    return re.sub(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', blank, text,
                  flags=re.S)


def includes(text):
    """(line number, header, is it in quotes) of each #include."""
    for number, line in enumerate(text.split("\n"), 1):
        match = re.match(r'\s*#\s*include\s*(["<])([^">]+)[">]', line)
        if match:
            yield number, match.group(2), match.group(1) == '"'


def top_folder(path):
    return path.split("/", 1)[0] if "/" in path else ""


def direction(tree):
    """folders include only what they may"""
    found = []
    for path, text in tree.c_files():
        own = top_folder(path)
        for number, header, quoted in includes(text):
            if not quoted:
                continue
            if own == "tests" and "/" not in header:
                continue  # a helper beside the test
            if "/" not in header:
                found.append(f'{path}:{number}: "{header}" is not named from the root; '
                             f'write "{os.path.dirname(path)}/{header}"')
                continue
            other = top_folder(header)
            if own == "tests" or other == own:
                continue
            if own not in MAY_INCLUDE:
                found.append(f"{path}:{number}: folder {own or '(root)'} has no row in MAY_INCLUDE")
            elif other not in MAY_INCLUDE[own]:
                if own == "kvstore" and other == "transport" and "/remote" in path:
                    continue  # the remote tier alone
                found.append(f"{path}:{number}: {own}/ may not include {header}; it may include "
                             f"{', '.join(MAY_INCLUDE[own]) or 'nothing'}")
            elif header not in ONLY_HEADERS.get((own, other), [header]):
                found.append(f"{path}:{number}: of {other}/, {own}/ may include only "
                             f"{', '.join(ONLY_HEADERS[(own, other)])}")
    return found


def seams(tree):
    """each foreign API is included by one file (UCX, CUDA: one folder)"""
    found, users = [], {}
    for path, text in tree.c_files():
        if path.startswith("tools/peers/"):
            continue  # programs of their own, beside which Kvist is timed
        for number, header, _ in includes(text):
            for prefix, folder in SEAM_FOLDER.items():
                if header.startswith(prefix) and not path.startswith(folder):
                    found.append(f"{path}:{number}: {header} is only for {folder}")
            if header in SEAM_ONE_FILE:
                users.setdefault(header, []).append(path)
    for header, paths in sorted(users.items()):
        if len(paths) > 1:
            found.append(f"{header} is included by {len(paths)} files ({', '.join(paths)}); "
                         "one of them is its seam, the others use that one's header")
    return found


def banned_functions(tree):
    """no function that overflows, guesses or asks a shell"""
    found = []
    pattern = re.compile(r"(?<![\w.>])(" + "|".join(BANNED) + r")\s*\(")
    for path, text in tree.c_files():
        if path.startswith("tests/"):
            continue  # tests run under sanitizers, on input of their own
        for number, line in enumerate(code_only(text).split("\n"), 1):
            for match in pattern.finditer(line):
                name = match.group(1)
                found.append(f"{path}:{number}: {name}() is banned; use {BANNED[name]}")
    return found


def left_open(tree):
    """nothing is marked as still to be done"""
    words = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"))
                       + r")\b")
    found = []
    for path, text in tree.texts(".c", ".h", ".cu", ".py", ".sh", ".proto", ".cmake", ".txt",
                                 ".md", ".yml", ".yaml"):
        for number, line in enumerate(text.split("\n"), 1):
            if words.search(line):
                found.append(f"{path}:{number}: {words.search(line).group(0)}; do it or file it")
    return found


def columns(tree):
    """no line of code is longer than 100 columns"""
    found = []
    judged = dict(tree.c_files())
    judged.update(tree.scripts())
    for path, text in judged.items():
        for number, line in enumerate(text.split("\n"), 1):
            if len(line) > COLUMNS_MAX:
                found.append(f"{path}:{number}: {len(line)} columns")
    return found


def whitespace(tree):
    """no tab, no trailing blank, one newline at the end"""
    found = []
    judged = dict(tree.c_files())
    judged.update(tree.scripts())
    judged.update(tree.texts(".proto", ".md", ".txt", ".cmake"))
    for path, text in judged.items():
        for number, line in enumerate(text.split("\n"), 1):
            if "\t" in line:
                found.append(f"{path}:{number}: a tab")
            if line != line.rstrip():
                found.append(f"{path}:{number}: blanks at the end of the line")
        if text and (not text.endswith("\n") or text.endswith("\n\n")):
            found.append(f"{path}: must end in exactly one newline")
    return found


def readmes(tree):
    """each top folder says in a README.md what lives there"""
    folders = {top_folder(path) for path in tree.files}
    return [f"{folder}/README.md is missing or says nothing" for folder in sorted(folders)
            if folder and not folder.startswith(".") and folder != "cmake"
            and len((tree.files.get(f"{folder}/README.md") or "").strip()) < 40]


def machine_paths(tree):
    """no path of somebody's own machine"""
    places = ("work", "farm", "root", r"home/\w+", r"Users/\w+", r"tmp/build-\w+")
    pattern = re.compile(r"(?<![\w$}.*-])/(" + "|".join(places) + r")(?=[/\"'\s]|$)/?")
    found = []
    for path, text in tree.texts():
        if path == "tests/tidy/tidy.py":
            continue
        for number, line in enumerate(text.split("\n"), 1):
            match = re.search(pattern, line)
            if match and match.group(0).endswith("/"):
                found.append(f"{path}:{number}: {match.group(0)} is a place on one machine")
    return found


def header_guards(tree):
    """a header opens with a comment and is guarded"""
    found = []
    for path, text in tree.texts(".h"):
        if not text.startswith("/*"):
            found.append(f"{path}:1: a header begins with a comment that says what the thing is")
        if not re.search(r"#ifndef (KV\w*_H)\n#define \1\n", text):
            found.append(f"{path}: no include guard KV..._H")
    return found


def python_and_shell(tree):
    """scripts parse"""
    found = []
    for path, text in tree.scripts():
        first = text.split("\n", 1)[0]
        if path.endswith(".py") or "python" in first:
            try:
                compile(text, path, "exec")
            except SyntaxError as error:
                found.append(f"{path}:{error.lineno}: {error.msg}")
        elif "bash" in first or path.endswith(".sh"):
            run = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
            if run.returncode != 0:
                found.append(f"{path}: {run.stderr.strip()}")
    return found


def foreign_flags():
    """Include paths of the libraries, as the build finds them."""
    names = re.findall(r"foreach\(library ([^)]*)\)",
                       open(os.path.join(ROOT, "cmake/Dependencies.cmake")).read(), re.S)
    flags = []
    for name in " ".join(names).split():
        run = subprocess.run(["pkg-config", "--cflags", name], capture_output=True, text=True)
        flags += run.stdout.split()
    return flags


def headers_alone(tree):
    """every header compiles alone"""
    if shutil.which("gcc") is None:
        return Skipped("gcc is not installed")
    with tempfile.TemporaryDirectory() as made:
        for path, _ in tree.texts(".proto"):
            subprocess.run(["protoc-c", f"--c_out={made}", f"--proto_path={tree.folder}",
                            os.path.join(tree.folder, path)], check=True)
        # The kernels' headers are for files that are compiled for an instruction set.
        flags = ["-std=gnu17", "-D_GNU_SOURCE", '-DKVIST_VERSION="0"', "-Wall", "-Wextra",
                 "-Wno-unused-function", "-mavx2", "-mfma", "-mf16c", "-I", tree.folder,
                 "-I", os.path.join(tree.folder, "tests"), "-I", made]
        flags += foreign_flags()

        # What CUDA sources see is C++: without nvcc, that of the stand-in.
        cuda_flags = ["-std=gnu++17", "-D_GNU_SOURCE", "-DKVIST_SIMT", "-Wall", "-Wextra",
                      "-Wno-unused-function", "-Wno-unknown-pragmas", "-I", tree.folder,
                      "-I", made]

        def compiles(path):
            # Twice, so that the guard is tried as well.
            text = f'#include "{os.path.join(tree.folder, path)}"\n' * 2
            cuda = path.startswith("kernels/cuda/") or path == "kernels/simt/simt.h"
            command = ["g++", "-x", "c++", *cuda_flags] if cuda else ["gcc", "-x", "c", *flags]
            run = subprocess.run([*command, "-fsyntax-only", "-Werror", "-"],
                                 input=text, capture_output=True, text=True)
            return None if run.returncode == 0 else (
                f"{path}: does not compile alone:\n"
                + "\n".join(run.stderr.strip().split("\n")[:8]))
        headers = [path for path, _ in tree.texts(".h")]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return [found for found in pool.map(compiles, headers) if found]


def formatting(tree):
    """clang-format would change nothing"""
    if shutil.which("clang-format") is None:
        return Skipped("clang-format is not installed (tools/setup installs it)")
    paths = [path for path, _ in tree.c_files()]
    if not paths:
        return []
    run = subprocess.run(["clang-format", "--dry-run", "--ferror-limit=1", *paths],
                         cwd=tree.folder, capture_output=True, text=True)
    bad = sorted({line.split(":", 1)[0] for line in run.stderr.split("\n")
                  if "code should be clang-formatted" in line})
    return [f"{path}: not as .clang-format says; clang-format -i {path}" for path in bad]


class Skipped:
    def __init__(self, reason):
        self.reason = reason


# Each rule with a tree that it must refuse and one that it must let pass.
GUARD = "/* What it is. */\n#ifndef KV_X_H\n#define KV_X_H\n\n{}\n#endif\n"
RULES = [
    (direction, {"base/a.c": '#include "engine/engine.h"\n'},
     {"engine/a.c": '#include "base/log.h"\n#include <stdio.h>\n'}),
    (seams, {"engine/a.c": "#include <lz4.h>\n", "kvstore/b.c": "#include <lz4.h>\n"},
     {"kvstore/b.c": "#include <lz4.h>\n", "transport/ucx/c.c": "#include <ucp/api/ucp.h>\n"}),
    (seams, {"transport/a.c": "#include <ucp/api/ucp.h>\n"}, {"base/a.c": "#include <time.h>\n"}),
    (seams, {"tools/a.c": "#include <lz4.h>\n", "kvstore/b.c": "#include <lz4.h>\n"},
     {"tools/peers/a.c": "#include <lz4.h>\n", "kvstore/b.c": "#include <lz4.h>\n"}),
    (seams, {"kernels/cpu/a.c": "#include <cuda_runtime.h>\n"},
     {"kernels/cuda/a.c": "#include <cuda_runtime.h>\n"}),
    (banned_functions, {"base/a.c": "void f(char *a) { sprintf (a, \"x\"); }\n"},
     {"base/a.c": "/* gets( */ int f(void) { return kv_system(\"strcpy(\"), a.rand(1); }\n"}),
    (left_open, {"base/a.c": "/* TO" "DO: later */\n"}, {"base/a.c": "/* a todo_list */\n"}),
    (columns, {"base/a.c": "/*" + "x" * 99 + "*/\n"}, {"base/a.c": "/*" + "x" * 96 + "*/\n"}),
    (whitespace, {"base/a.c": "int a; \n"}, {"base/a.c": "int a;\n"}),
    (whitespace, {"base/a.c": "int a;"}, {"base/a.c": "    int a;\n"}),
    (readmes, {"base/a.c": "int a;\n"}, {"base/README.md": "# base\n\n" + "What lives here. " * 4}),
    (machine_paths, {"base/a.c": 'open("/home/somebody/x");\n'},
     {"base/a.c": 'open("/tmp/x"); run("$HOME/work/x");\n'}),
    (header_guards, {"base/a.h": "int a;\n"}, {"base/a.h": GUARD.format("int a;")}),
    (python_and_shell, {"tools/a": "#!/usr/bin/env bash\nif true; then\n"},
     {"tools/a": "#!/usr/bin/env bash\ntrue\n", "tools/b.py": "pass\n"}),
    (headers_alone, {"base/a.h": GUARD.format("size_t kv_x(void);")},
     {"base/a.h": GUARD.format("#include <stddef.h>\nsize_t kv_x(void);")}),
    (formatting, {"base/a.c": "int  a;\n"}, {"base/a.c": "int a;\n"}),
]


def self_test():
    """every rule refuses its bad sample and lets its good one pass"""
    found = []
    for rule, bad, good in RULES:
        for files, must_fail in ((bad, True), (good, False)):
            with tempfile.TemporaryDirectory() as folder:
                shutil.copy(os.path.join(ROOT, ".clang-format"), folder)
                for path, text in files.items():
                    os.makedirs(os.path.dirname(os.path.join(folder, path)), exist_ok=True)
                    with open(os.path.join(folder, path), "w", encoding="utf-8") as file:
                        file.write(text)
                result = rule(Tree(folder))
                if isinstance(result, Skipped):
                    continue
                if must_fail and not result:
                    found.append(f"rule {rule.__name__} lets {files} pass")
                if not must_fail and result:
                    found.append(f"rule {rule.__name__} refuses {files}: {result}")
    return found


def main():
    names = sys.argv[1:]
    rules = [self_test] + list(dict.fromkeys(rule for rule, _, _ in RULES))
    unknown = set(names) - {rule.__name__ for rule in rules}
    if unknown:
        sys.exit(f"no rule {', '.join(unknown)}; rules: {', '.join(r.__name__ for r in rules)}")
    tree = Tree(ROOT)
    passed = failed = 0
    for rule in rules:
        if names and rule.__name__ not in names:
            continue
        started = time.monotonic()
        result = rule() if rule is self_test else rule(tree)
        label = f"tidy.{rule.__name__} ({rule.__doc__})"
        seconds = time.monotonic() - started
        if isinstance(result, Skipped):
            print(f"skipped  {label}: {result.reason}")
        elif result:
            failed += 1
            print(f"FAILED   {label}")
            for complaint in result[:40]:
                print("         " + complaint)
            if len(result) > 40:
                print(f"         and {len(result) - 40} more")
        else:
            passed += 1
            print(f"ok       {label}, {seconds:.1f} s")
    print(f"tidy: {passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
