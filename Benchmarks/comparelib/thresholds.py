"""Benchmarks/thresholds.tsv against what was measured."""

import dataclasses
import pathlib
import re
import statistics

from .servers import FLOOR, OURS

FILE = pathlib.Path(__file__).resolve().parents[1] / "thresholds.tsv"


@dataclasses.dataclass
class Threshold:
    measure: str
    cell: re.Pattern
    against: str
    target: float
    noise: float

    def passes(self, value):
        # The measures of which less is better have a highest value, throughput a least.
        return value >= self.target * (1 - self.noise) if self.measure == "throughput" else value <= self.target * (1 + self.noise)

    def words(self, value, than=""):
        limit = "at least" if self.measure == "throughput" else "at most"
        return f"{self.measure} {value:.2f}{than}, want {limit} {self.target:g}" + (f" within {self.noise:.0%}" if self.noise else "")


def load(path=FILE):
    found = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            measure, cell, against, target, noise = line.split("\t")
            if measure not in ("throughput", "cpu", "allocations"):
                raise ValueError(f"no measure '{measure}'")
            found.append(Threshold(measure, re.compile(cell), against, float(target), float(noise)))
        except (ValueError, re.error) as error:
            raise SystemExit(f"{path}:{number}: want `measure <TAB> cell <TAB> against <TAB> target <TAB> noise`: {error}") from None
    return found


def medians(samples, key):
    """{server: median} of one cell."""
    return {name: statistics.median(s[key] for s in some) for name, some in samples.items() if some}


def is_peer(name):
    return not name.startswith((OURS, FLOOR))


def best_peer(samples):
    """The peer with the highest throughput, or None."""
    values = medians(samples, "value")
    return max(filter(is_peer, values), key=values.get, default=None)


def relative(samples, key, other):
    """Ours ÷ theirs: the median over the rounds, as what a busy host does to a round it does to both; None when one was not measured."""
    pairs = [(ours[key], theirs[key]) for ours, theirs in zip(samples.get(OURS, []), samples.get(other, [])) if theirs[key]]
    return statistics.median(ours / theirs for ours, theirs in pairs) if pairs else None


def ratio(samples, threshold):
    """(ours ÷ theirs, their name), or None when one of them was not measured."""
    other = best_peer(samples) if threshold.against == "best" else threshold.against
    value = relative(samples, "cpu_us" if threshold.measure == "cpu" else "value", other)
    return None if value is None else (value, other)


def verdicts(results, thresholds):
    """(passed, line) for each threshold that applies to what was measured. Of those for one measure of a cell, the last in the file counts."""
    for cell, samples in results.items():
        for measure in ("throughput", "cpu"):
            threshold = last(thresholds, measure, cell)
            found = threshold and ratio(samples, threshold)
            if found:
                yield threshold.passes(found[0]), f"{cell}: {threshold.words(found[0], f' of {found[1]}')}"


def allocation_verdicts(results, thresholds):
    """The same for {load: allocations per request}."""
    for load, value in results.items():
        threshold = last(thresholds, "allocations", load)
        if threshold:
            yield threshold.passes(value), f"{load}: {threshold.words(value, ' per request')}"


def last(thresholds, measure, name):
    return next((t for t in reversed(thresholds) if t.measure == measure and t.cell.fullmatch(name)), None)
