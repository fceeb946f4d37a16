#!/usr/bin/env python3
"""One small library in the place of CUDA's, so that PyPI's torch imports without 3 GB of wheels.

usage: PYTHON stand_in.py        with the interpreter of the environment that torch is in

torch's libraries name CUDA's libraries as needed, and functions of theirs as undefined. Both are
read out of the files themselves: every function that neither torch nor the C and C++ runtime has
becomes one that answers 100 (cudaErrorNoDevice, CUDA_ERROR_NO_DEVICE), in one library that stands
under each of those names beside torch's own, where the loader looks before it looks anywhere else:
a CUDA that the machine has is not used, so that the environment is the same on every machine.
torch.cuda.is_available() is then False, and the CPU's path runs.

Needs: cc, nm, readelf, ldd.
"""
import os
import re
import subprocess
import sys
import sysconfig
import tempfile

NAME = "libkvist_stand_in.so"
# These answer with a text.
TEXTS = re.compile(r"Error(String|Name)|GetErrorString|GetLastError$")
ANSWER = 100
# What every machine and every Python has.
RUNTIME = re.compile(r"(ld-linux.*|lib(c|m|dl|rt|pthread|util|z|stdc\+\+|gcc_s|gomp|python.*))\.so")


def output(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"error: {' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def needed(path):
    """The names of the libraries that a file asks for."""
    return set(re.findall(r"\(NEEDED\).*\[(.*)\]", output("readelf", "-dW", path)))


def runtime_files(path):
    """Where the loader finds the runtime that a file asks for."""
    lines = (line.strip().split(" => ") for line in output("ldd", path).splitlines())
    return {os.path.realpath(words[1].split(" (")[0]) for words in lines
            if len(words) == 2 and RUNTIME.match(words[0]) and words[1].startswith("/")}


def symbols(path, kind):
    """{name: version or ""} of a file's dynamic symbols; kind is "defined" or "undefined"."""
    names = {}
    for line in output("nm", "-D", f"--{kind}-only", path).splitlines():
        words = line.split()
        if words[-2] in "wv":  # weak: may stay away
            continue
        name, _, version = words[-1].partition("@")
        names[name] = version.lstrip("@")
    return names


def collect(folder):
    """(names of libraries, {function: version}) that the libraries in a folder lack."""
    files = [os.path.join(folder, name) for name in sorted(os.listdir(folder))
             if ".so" in name and not os.path.islink(os.path.join(folder, name))]
    names = {os.path.basename(path) for path in files}
    libraries = {name for path in files for name in needed(path) - names
                 if not RUNTIME.match(name)}
    interpreter = os.path.realpath(sys.executable)
    providers = {interpreter, *files}.union(*map(runtime_files, files + [interpreter]))
    provided = set().union(*(symbols(path, "defined") for path in providers))
    wanted = {}
    for path in files:
        wanted.update(symbols(path, "undefined"))
    return libraries, {name: version for name, version in wanted.items() if name not in provided}


def source(functions):
    lines = ['static const char *text(void) { return "no CUDA here: a stand-in library"; }',
             f"static int answer(void) {{ return {ANSWER}; }}"]
    for name in sorted(functions):
        target = "text" if TEXTS.search(name) else "answer"
        kind = "const char *" if target == "text" else "int "
        lines.append(f"{kind}{name}(void) {{ return {target}(); }}")
    return "\n".join(lines) + "\n"


def versions(functions):
    """The loader insists that a function's version is defined where the function is."""
    by_version = {}
    for name, version in functions.items():
        by_version.setdefault(version, []).append(name)
    unversioned = by_version.pop("", [])
    text = "".join(f"{version} {{ global: {'; '.join(sorted(names))}; }};\n"
                   for version, names in sorted(by_version.items()))
    names = "; ".join(sorted(unversioned) + [""])
    return text + f"KVIST_STAND_IN {{ global: {names}local: *; }};\n"


def build(folder, functions):
    with tempfile.TemporaryDirectory() as scratch:
        code, script = os.path.join(scratch, "all.c"), os.path.join(scratch, "all.map")
        with open(code, "w", encoding="ascii") as file:
            file.write(source(functions))
        with open(script, "w", encoding="ascii") as file:
            file.write(versions(functions))
        output("cc", "-shared", "-fPIC", "-O1", "-w", "-fno-builtin", f"-Wl,-soname,{NAME}",
               f"-Wl,--version-script={script}", "-o", os.path.join(folder, NAME), code)


def main():
    folder = os.path.join(sysconfig.get_paths()["purelib"], "torch", "lib")
    if not os.path.isdir(folder):
        sys.exit(f"error: no torch in this environment: {folder} is not there")
    libraries, functions = collect(folder)
    build(folder, functions)
    for name in libraries:
        os.symlink(NAME, os.path.join(folder, name))
    print(f"{len(functions)} functions stand for {', '.join(sorted(libraries))}")


if __name__ == "__main__":
    main()
