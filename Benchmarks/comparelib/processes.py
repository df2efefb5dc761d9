"""What processes have used, as the kernel tells it (Linux). A server is a session: whatever it forks stays in it and is counted with it."""

import os
import time

TICK = os.sysconf("SC_CLK_TCK")


def members(session):
    """{process: fields of /proc/PID/stat from the state on} of all processes of a session."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    fields = file.read().rsplit(")", 1)[1].split()
            except OSError:
                continue  # it ended meanwhile
            if int(fields[3]) == session and fields[0] != "Z":
                found[int(entry)] = fields
    return found


def cpu_seconds(session):
    """CPU, user and system, of a session.

    Of running processes by their CPU clocks, in nanoseconds and with threads that have ended; utime and stime would be cut to 10 ms.
    Of children that have ended (nbd-server has one for each client) by their parent's sum: cut to 10 ms, but there is nothing better.
    """
    total = 0.0
    for pid, fields in members(session).items():
        try:
            total += time.clock_gettime((~pid << 3) | 2)  # the clock of another process; 2: what the scheduler counted
        except OSError:
            continue
        total += (int(fields[13]) + int(fields[14])) / TICK
    return total


def major_faults(session):
    """Page faults of a session that waited for a disk."""
    return sum(int(fields[9]) + int(fields[10]) for fields in members(session).values())


def stolen():
    """Ticks of all cores since the start: those that the host gave to others, and all."""
    try:
        with open("/proc/stat") as file:
            fields = [int(field) for field in file.readline().split()[1:9]]
    except OSError:
        return 0, 0
    return fields[7], sum(fields)


def await_children(session, before, limit=0.5):
    """Waits until only processes of `before` are left: one that still ends is in nobody's sum."""
    deadline = time.monotonic() + limit
    while set(members(session)) - set(before) and time.monotonic() < deadline:
        time.sleep(0.002)


def memory(session):
    """Bytes of a session: `pss` (shared pages divided among those that share), `rss` and `rss_anon` (sums over its processes, shared pages of
    forked ones again for each)."""
    names = {"Pss": "pss", "Rss": "rss", "Anonymous": "rss_anon"}
    total = dict.fromkeys(names.values(), 0)
    for pid in members(session):
        try:
            with open(f"/proc/{pid}/smaps_rollup") as file:
                for line in file:
                    key, _, value = line.partition(":")
                    if key in names:
                        total[names[key]] += int(value.split()[0]) * 1024
        except OSError:
            continue
    return total
