"""Every cell with every server, one after the other, and then all of it again: what the machine does to one, it does to all."""

import sys

from . import processes
from .servers import FLOOR, Place


STEAL_LIMIT = 0.05  # share of the cores' time that the host may give to others during a sample
TRIES = 3


def floor_rounds(repetitions):
    """The floor is a line to look at, not one to compare with: fewer rounds will do."""
    return max(1, repetitions // 2)


class Settings:
    """What every sample needs to know."""

    def __init__(self, directory, disk, seconds, repetitions, client, source=None):
        self.directory, self.disk, self.seconds, self.repetitions, self.client, self.source = directory, disk, seconds, repetitions, client, source


def minutes(cells, servers_of, settings, overhead=0.5):
    """How long it will take, about: each sample and what is around it: ramp, start, stop, dirty pages."""
    samples = 0
    for cell in cells:
        names = [s.name for s in servers_of(cell)]
        samples += (len(names) - (FLOOR in names)) * settings.repetitions + (FLOOR in names) * floor_rounds(settings.repetitions)
    return samples * (settings.seconds + overhead) / 60


def measure(cells, servers_of, settings, prepare):
    """({cell: {server: [sample]}}, {"cell, server": error}). `prepare(cell)` brings the disk into the state that the cell wants.

    Ends early, with what there is, on Ctrl-C. A server that fails in a cell is not tried there again.
    """
    results, broken = {}, {}
    try:
        for round in range(settings.repetitions):
            for cell in cells:
                servers = servers_of(cell)
                # Each round begins with another server, so that none always comes first.
                first = round % len(servers)
                for server in servers[first:] + servers[:first]:
                    what = f"{cell.name}, {server.name}"
                    if what in broken or (server.name == FLOOR and round >= floor_rounds(settings.repetitions)):
                        continue
                    try:
                        sample = _quiet_sample(cell, server, settings, prepare)
                    except Exception as error:  # whatever it was, the other cells are worth having
                        broken[what] = str(error) or type(error).__name__
                        print(f"note: {what}: {broken[what]}", file=sys.stderr)
                        continue
                    results.setdefault(cell.name, {}).setdefault(server.name, []).append(sample)
                    print(f"{round + 1}/{settings.repetitions} {cell.name:<34} {server.name:<18} {sample['value']:>10.0f} {cell.unit} "
                          f"{sample['cpu_us']:>7.2f} µs" + f"  {sample['faults']} major faults" * bool(sample["faults"])
                          + f"  {sample['steal']:.0%} stolen" * (sample["steal"] > STEAL_LIMIT), file=sys.stderr)
    except KeyboardInterrupt:
        broken["the rest"] = "interrupted"
    return results, broken


def _quiet_sample(cell, server, settings, prepare):
    """Of at most three samples the one during which the host took least of our cores: its other guests come and go within seconds, so what they
    take from one server they do not take from the next."""
    samples = []
    while len(samples) < TRIES and (not samples or samples[-1]["steal"] > STEAL_LIMIT):
        samples.append(_sample(cell, server, settings, prepare))
    return min(samples, key=lambda sample: sample["steal"])


def _sample(cell, server, settings, prepare):
    prepare(cell)
    running = server.start(Place(settings.directory, settings.disk, cell.socket == "tcp")).wait()
    try:
        faults, (stolen, total) = running.major_faults(), processes.stolen()
        sample = cell.run(running, settings)
        stolen, total = (after - before for after, before in zip(processes.stolen(), (stolen, total)))
        return sample | {"faults": running.major_faults() - faults, "steal": stolen / max(total, 1)}
    finally:
        running.stop()
        if cell.writes:
            settings.disk.settle()
