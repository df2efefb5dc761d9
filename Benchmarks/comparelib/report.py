"""Results as Markdown: for the terminal, and for docs/performance.md."""

import os
import pathlib
import platform
import statistics
import subprocess

from .servers import OURS
from .thresholds import best_peer, is_peer, medians, relative

ROOT = pathlib.Path(__file__).resolve().parents[2]


def versions(executable, client):
    def first_line(*command):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20)
            return (done.stdout or done.stderr).strip().splitlines()[0]
        except (OSError, IndexError, subprocess.SubprocessError):
            return "?"
    with open("/proc/cpuinfo") as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "?")
    return {"kernel": platform.release(), "congestion control": pathlib.Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip(),
            "cores": os.cpu_count(), "processor": model, "ours": first_line(executable, "--version"),
            "client": first_line(client, "--version"), "commit": first_line("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
            "swift": first_line("swift", "--version"), "qemu-nbd": first_line("qemu-nbd", "--version"), "nbdkit": first_line("nbdkit", "--version"),
            "nbd-server": first_line("nbd-server", "-V"), "fio": first_line("fio", "--version"), "nbdcopy": first_line("nbdcopy", "--version")}


def head(report):
    about = report["about"]
    how = "" if report["kind"] == "life" else f", {report['repetitions']} × {report['seconds']:g} s, {report['size'] >> 20} MiB"
    return (f"{report['when'].replace('T', ' ')}, {about['cores']} × {about['processor']}, Linux {about['kernel']}, "
            f"TCP {about.get('congestion control', '?')}{how}; commit {about['commit']}; "
            + "; ".join(about[key] for key in ("swift", "qemu-nbd", "nbdkit", "nbd-server", "fio", "nbdcopy")))


def markdown(report):
    parts = [head(report)]
    parts += life(report["results"]) if report["kind"] == "life" else cells(report["results"], report["servers"], report["units"])
    if report["broken"]:
        parts.append("\n".join(["Not measured:", ""] + [f"- {what}: {error}" for what, error in report["broken"].items()]))
    return "\n\n".join(parts)


def row(*words):
    return "| " + " | ".join(words) + " |"


def titled(title, *columns):
    return [f"**{title}**", "", row(*columns), "|---" * len(columns) + "|"]


# --- cells --------------------------------------------------------------------------------------------------------------------------

def cells(results, names, units):
    """One table for each client and socket."""
    groups = {}
    for name in results:
        client, socket, rest = name.split(" ", 2)
        groups.setdefault((client, socket), []).append((rest, name))
    for (client, socket), members in groups.items():
        here = [n for n in names if any(n in results[name] for _, name in members)]
        lines = titled(f"{client}, {'TCP' if socket == 'tcp' else 'Unix socket'}, {units[members[0][1]]}", "cell", *here, "ours ÷ best peer",
                       "CPU/op ours", "that peer's", "least of peers", "p50, p99 ours", "that peer's")
        yield "\n".join(lines + [cell_row(rest, results[name], here) for rest, name in members])


def cell_row(name, samples, names):
    values, cpu, best = medians(samples, "value"), medians(samples, "cpu_us"), best_peer(samples)
    have = OURS in values

    def micro(of, who):
        return f"{of[who]:.1f} µs" if of.get(who) is not None else "-"

    def latency(who):
        some = samples.get(who) or [{}]
        if "p50_us" not in some[0]:
            return "-"
        return ", ".join(f"{statistics.median(s[key] for s in some):,.0f}" for key in ("p50_us", "p99_us")) + " µs"

    least = min((v for n, v in cpu.items() if is_peer(n)), default=None)
    return row(name, *(f"{values[n]:,.0f}" if n in values else "-" for n in names),
               f"**{relative(samples, 'value', best):.2f}** ({best})" if best and have else "-",
               micro(cpu, OURS), micro(cpu, best), "-" if least is None else f"{least:.1f} µs", latency(OURS), latency(best))


# --- life ---------------------------------------------------------------------------------------------------------------------------

def life(results):
    """Of all of these, less is better: the ratio is ours to the lowest of the peers."""
    measures = {}  # name → ({server: number}, how it is written)

    def add(name, values, form):
        if values:
            measures[name] = (values, form)

    add("exec to first byte", {n: statistics.median(v) for n, v in results["start"].items()}, "{:.1f} ms")
    for state in ("idle", "connected"):
        count = next((v["connections"] for v in results["memory"].values()), 0)
        for key, title in {"pss": "Pss", "rss": "Rss", "rss_anon": "RssAnon"}.items():
            add(f"{title}, {'idle' if state == 'idle' else f'{count:,} connections'}",
                {n: v[state][key] / (1 << 20) for n, v in results["memory"].items()}, "{:.1f} MiB")
    for what in ("to null", "to a file"):
        add(f"nbdcopy of 8 GiB with 64 MiB of data, {what}", {n: statistics.median(v[what]) for n, v in results["copy"].items()}, "{:.2f} s")
    names = list(dict.fromkeys(n for values, _ in measures.values() for n in values))
    lines = titled("Life, Unix socket", "measure", *names, "ours ÷ best peer")
    for name, (values, form) in measures.items():
        best = min(filter(is_peer, values), key=values.get, default=None)
        ratio = f"**{values[OURS] / values[best]:.2f}** ({best})" if best and OURS in values else "-"
        lines.append(row(name, *(form.format(values[n]) if n in values else "-" for n in names), ratio))
    yield "\n".join(lines)
    for counted in results["allocations"].values():
        yield "\n".join(titled("Heap allocations for each request, ours", "load", "allocations")
                        + [row(load, f"{value:.4f}") for load, value in counted.items()])
