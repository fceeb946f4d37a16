#!/usr/bin/env python3
"""Packaging: what is installed, the systemd units, the container's file, held to the programs.

usage: check.py [--build FOLDER]

The last line is "packaging: N passed, N failed, N skipped".
"""
import argparse
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROGRAMS = ["kvist", "kvist-store", "kvist-prefill", "kvist-decode", "kvist-gateway"]
UNITS = ["kvist-store.service", "kvist-prefill@.service", "kvist-decode@.service",
         "kvist-gateway.service"]


class Skipped(Exception):
    """Why a case cannot be tried here."""


def read(*path):
    with open(os.path.join(*path), encoding="utf-8") as file:
        return file.read()


def run(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def need(tool):
    if shutil.which(tool) is None:
        raise Skipped(f"{tool} is not installed")


class Image:
    """An installation below a folder of its own."""

    def __init__(self, build, folder):
        self.build, self.folder = build, folder
        done = run("cmake", "--install", build, env=dict(os.environ, DESTDIR=folder))
        assert done.returncode == 0, done.stdout[-500:] + done.stderr[-500:]
        self.prefix = re.search(r"^CMAKE_INSTALL_PREFIX:\w+=(.*)$",
                                read(build, "CMakeCache.txt"), re.M).group(1)

    def path(self, *parts):
        return os.path.join(self.folder + self.prefix, *parts)

    def program(self, name):
        return self.path("bin", name)

    def unit(self, name):
        return read(self.path("lib/systemd/system", name))


def settings(unit):
    """KEY=VALUE lines of a unit, continued lines joined; of a key given twice the last."""
    joined = unit.replace("\\\n", " ")
    return dict(re.findall(r"^([A-Za-z]+)=(.*)$", joined, re.M))


def check_installed(image):
    """all programs, units and the example are installed"""
    wanted = [f"bin/{name}" for name in PROGRAMS]
    wanted += [f"lib/systemd/system/{name}" for name in UNITS]
    wanted += ["lib/sysusers.d/kvist.conf", "share/doc/kvist/kvist.yaml"]
    missing = [path for path in wanted if not os.path.exists(image.path(path))]
    assert not missing, f"not installed: {missing}"
    for unit in UNITS:
        left = re.findall(r"@[A-Z_]+@", image.unit(unit))
        assert not left, f"{unit}: {left} was not filled in"
        started = settings(image.unit(unit))["ExecStart"].split()[0]
        assert os.path.exists(image.folder + started), f"{unit} starts {started}: there is none"


def check_units_verified(image):
    """systemd-analyze verify finds nothing"""
    need("systemd-analyze")
    with tempfile.TemporaryDirectory() as folder:
        for name in UNITS:
            # The programs are not at /usr/bin of this machine; any program will do for systemd.
            text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", image.unit(name), flags=re.M)
            path = os.path.join(folder, name.replace("@.", "@one."))
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
            done = run("systemd-analyze", "--man=no", "--recursive-errors=no", "verify", path)
            assert done.returncode == 0 and not done.stderr.strip(), done.stderr


def check_units_are_closed(image):
    """systemd-analyze security calls every unit's exposure low"""
    need("systemd-analyze")
    with tempfile.TemporaryDirectory() as folder:
        for name in UNITS:
            path = os.path.join(folder, name.replace("@.", "@one."))
            with open(path, "w", encoding="utf-8") as file:
                file.write(image.unit(name))
            done = run("systemd-analyze", "security", "--offline=true", "--threshold=25", path)
            line = (done.stdout.strip().split("\n") or [""])[-1]
            assert done.returncode == 0, f"{name}: {line} {done.stderr[-300:]}"


def seconds(text):
    number, unit = re.fullmatch(r"([0-9.]+)(ms|s|m|h)?", text).groups()
    return float(number) * {"ms": 0.001, "s": 1, None: 1, "m": 60, "h": 3600}[unit]


def check_drain_fits(image):
    """a unit's stop leaves time for the drain and the store; the first signal goes to the node"""
    for name in UNITS:
        unit = settings(image.unit(name))
        program = os.path.basename(unit["ExecStart"].split()[0])
        help_text = run(image.program(program), "--help").stdout
        limit = seconds(re.search(r"--node\.drain_limit=(\S+)", help_text).group(1))
        stop = seconds(unit["TimeoutStopSec"])
        assert stop >= limit + 60, f"{name}: {stop} s for a drain of {limit} s and the store"
        assert unit["KillMode"] == "mixed" and unit["Type"] == "notify", name
        assert unit["Restart"] == "on-failure", name


def check_options_exist(image):
    """every option in a unit is one that its program has"""
    for name in UNITS:
        words = settings(image.unit(name))["ExecStart"].split()
        known = run(image.program(os.path.basename(words[0])), "--help").stdout
        for option in re.findall(r"(--[a-z_.]+)=?", " ".join(words[1:])):
            assert option in known, f"{name}: {words[0]} has no option {option}"


def check_example_is_read(image):
    """the programs accept kvist.yaml, and refuse it with one name changed"""
    text = read(ROOT, "packaging/kvist.yaml")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "kvist.yaml")
        for program in PROGRAMS[1:]:
            for broken in (False, True):
                with open(path, "w", encoding="utf-8") as file:
                    file.write(text.replace("key_file:", "keyfiles:") if broken else text)
                # Model and key are not here: that they are asked for means that the file was
                # accepted.
                done = run(image.program(program), "--config", path, "--store.directory=none"
                           if program != "kvist-gateway" else "--gateway.http_port=0",
                           f"--node.admin={folder}/a.sock", timeout=30)
                said = done.stdout + done.stderr
                missing = "cluster.key" if program == "kvist-store" else "/srv/kvist/model.gguf"
                expected = "keyfiles" if broken else missing
                assert done.returncode != 0 and expected in said, f"{program}: {said[-300:]}"


def check_container_packages(image):
    """the image has the libraries that the programs need, and no others"""
    need("dpkg-query")
    text = read(ROOT, "packaging/Containerfile")
    last = text[text.rindex("\nFROM"):]
    listed = set(re.findall(r"^    (lib\S+) \\$", last, re.M))
    wanted = set()
    for program in PROGRAMS:
        path = image.program(program)
        names = re.findall(r"\(NEEDED\).*\[(.*)\]", run("readelf", "-d", path).stdout)
        where = dict(re.findall(r"(\S+) => (\S+)", run("ldd", path).stdout))
        for name in names:
            if name in where:
                owner = run("dpkg-query", "-S", os.path.realpath(where[name])).stdout
                wanted.add(owner.split(":")[0])
    wanted -= {"libc6", "libgcc-s1", "libstdc++6", ""}
    assert wanted, "no library of the programs is of a package"
    assert listed == wanted, f"too many {listed - wanted}, missing {wanted - listed}"


def check_old_toolkits(image):
    """a CUDA Toolkit that is too old is left out, and no error"""
    del image
    for release, device in (("12.8", "OFF"), ("12.9", "ON"), ("13.0", "ON")):
        with tempfile.TemporaryDirectory() as folder:
            nvcc = os.path.join(folder, "nvcc")
            with open(nvcc, "w", encoding="utf-8") as file:
                file.write(f"#!/bin/sh\necho Cuda compilation tools, release {release}, V1\n")
            os.chmod(nvcc, 0o755)
            with open(os.path.join(folder, "CMakeLists.txt"), "w", encoding="utf-8") as file:
                file.write("cmake_minimum_required(VERSION 3.25)\nproject(toolkit LANGUAGES C)\n"
                           f"include({ROOT}/cmake/Cuda.cmake)\n"
                           'message(STATUS "a device: ${KVIST_CUDA}")\n')
            done = run("cmake", "-S", folder, "-B", os.path.join(folder, "build"),
                       f"-DKVIST_NVCC={nvcc}")
            assert done.returncode == 0, done.stdout[-500:] + done.stderr[-500:]
            assert f"-- a device: {device}\n" in done.stdout, f"{release}: {done.stdout[-300:]}"
            assert (f"nvcc is of CUDA {release}" in done.stdout) == (device == "OFF"), done.stdout


def check_container_build(image):
    """the image is built with tools/packages.txt and runs as nobody in particular"""
    text = read(ROOT, "packaging/Containerfile")
    first = text[:text.rindex("\nFROM")]
    assert re.search(r"^COPY tools/packages\.txt .*tools/setup .*$", first, re.M)
    assert re.search(r"^RUN /kvist/tools/setup$", first, re.M)
    assert not re.search(r"apt-get", first), "packages of the build belong in tools/packages.txt"
    user = re.findall(r"^USER (\S+)$", text, re.M)
    assert user == ["kvist"], f"the image runs as {user}"
    stages = re.findall(r"^FROM (\S+)", text, re.M)
    assert len(set(stages)) == 1, f"built on one system, run on another: {stages}"
    for source in re.findall(r"^COPY ([^-\n].*) \S+$", text, re.M):
        for path in source.split():
            assert glob.glob(os.path.join(ROOT, path)), f"COPY {path}: there is none"


def try_all(suite, checks, subject):
    """Runs the checks, each on the subject; prints a line for each and the counts at the end."""
    passed = failed = skipped = 0
    for check in checks:
        label = f"{suite}.{check.__name__[6:]} ({check.__doc__})"
        try:
            check(subject)
        except Skipped as why:
            print(f"skipped  {label}: {why}")
            skipped += 1
            continue
        except Exception as error:  # one that fails must not hide the others
            failed += 1
            print(f"FAILED   {label}\n         " + str(error).replace("\n", "\n         "))
            continue
        passed += 1
        print(f"ok       {label}")
    print(f"{suite}: {passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--build", default=os.path.join(ROOT, "build"))
    arguments = parser.parse_args()
    checks = [value for name, value in globals().items() if name.startswith("check_")]
    with tempfile.TemporaryDirectory() as folder:
        return try_all("packaging", checks, Image(os.path.abspath(arguments.build), folder))


if __name__ == "__main__":
    sys.exit(main())
