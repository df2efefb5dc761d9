"""The judge of how fast we are (Benchmarks/compare) judges as it says, and its floor is a server."""

import json
import pathlib
import subprocess
import sys

import pytest

from peers import missing, need, out, run
from server import NBD, REPOSITORY, unix_uri

sys.path.insert(0, str(REPOSITORY / "Benchmarks"))
from comparelib import cells, processes, qcow2, report, rounds, servers, thresholds  # noqa: E402

COMPARE = REPOSITORY / "Benchmarks/compare"


def samples(**values):
    """{server: samples} whose median is the given (throughput, CPU)."""
    return {name.replace("_", " "): [{"value": value + shift, "cpu_us": cpu} for shift in (-1, 0, 1000)] for name, (value, cpu) in values.items()}


def missed(results, wanted):
    return [line for passed, line in thresholds.verdicts(results, wanted) if not passed]


def rules(directory, *lines):
    path = directory / "thresholds.tsv"
    path.write_text("# a comment\n\n" + "\n".join("\t".join(line.split()) for line in lines) + "\n")
    return thresholds.load(path)


@pytest.mark.parametrize("ours, passes", [(199, False), (200, True)])
def test_throughput_is_compared_with_the_best_peer(directory, ours, passes):
    wanted = rules(directory, "throughput .* best 2.0 0")
    found = missed({"a": samples(ours=(ours, 1), slow=(50, 1), quick=(100, 1), floor=(9999, 1))}, wanted)
    assert not found if passes else "1.99 of quick, want at least 2" in found[0]


@pytest.mark.parametrize("cpu, passes", [(10.5, True), (10.6, False)])
def test_cpu_is_compared_with_the_peer_of_best_throughput_within_the_noise(directory, cpu, passes):
    wanted = rules(directory, "cpu .* best 1.0 0.05")
    found = missed({"a": samples(ours=(100, cpu), lean=(50, 1), quick=(100, 10))}, wanted)
    assert not found if passes else "1.06 of quick, want at most 1 within 5%" in found[0]


def test_the_last_threshold_that_matches_the_whole_name_counts(directory):
    wanted = rules(directory, "throughput .* best 1.0 0", "throughput cell...c1 best 3.0 0", "throughput cell best 9.0 0")
    found = missed({"cell 1 c1": samples(ours=(200, 1), peer=(100, 1)), "cell 1 c4": samples(ours=(200, 1), peer=(100, 1))}, wanted)
    assert len(found) == 1 and found[0].startswith("cell 1 c1:")


def test_allocations_have_a_highest_number(directory):
    wanted = rules(directory, "allocations .* - 0.01 0")
    assert [passed for passed, _ in thresholds.allocation_verdicts({"a": 0.01, "b": 0.02}, wanted)] == [True, False]


@pytest.mark.parametrize("line", ["throughput .* best 1.0", "latency .* best 1.0 0", "cpu ( best 1.0 0", "cpu .* best much 0"])
def test_a_line_that_says_nothing_is_refused(directory, line):
    with pytest.raises(SystemExit, match="thresholds.tsv:3: want"):
        rules(directory, line)


@pytest.mark.parametrize("steals, taken, kept", [([0.01, 0.5], 1, 0.01), ([0.2, 0.04, 0.5], 2, 0.04), ([0.2, 0.1, 0.3, 0], 3, 0.1)])
def test_a_sample_whose_cores_went_to_others_is_taken_again(monkeypatch, steals, taken, kept):
    samples = iter([{"steal": steal} for steal in steals])
    monkeypatch.setattr(rounds, "_sample", lambda *_: next(samples))
    assert rounds._quiet_sample(None, None, None, None) == {"steal": kept}
    assert len(list(samples)) == len(steals) - taken
    stolen, total = processes.stolen()
    assert 0 <= stolen <= total


def test_every_threshold_has_a_cell_and_every_cell_one():
    names = [c.name for c in cells.matrix(["unix", "tcp"]) + cells.direct() + qcow2.cells()]
    wanted = thresholds.load()
    for threshold in wanted:
        assert threshold.measure == "allocations" or any(threshold.cell.fullmatch(name) for name in names), threshold
    for name in names:
        assert name.startswith(("direct", "cold")) or any(t.cell.fullmatch(name) for t in wanted), name
    assert {c.name for c in cells.quick()} <= set(names)


def test_the_floor_serves(directory, start):
    need("cc")
    floor, = servers.floor(directory)
    info, io = need("nbdinfo", "qemu-io")
    start(directory / "floor", 64 << 20, "-u", directory / "socket", await_uri=False).wait_for_socket(directory / "socket")
    uri = unix_uri(directory / "socket")
    assert out(info, "--size", uri).strip() == str(64 << 20)
    # A write longer than what it receives at once, and reads before and behind it.
    done = run(io, "-f", "raw", "-c", "read -P 0x5a 0 1M", "-c", "aio_write 0 10M", "-c", "aio_write 1M 300k", "-c", "aio_read -P 0x5a 5M 64k",
               "-c", "aio_flush", "-c", "flush", uri)
    assert "failed" not in done.stdout and floor.name == servers.FLOOR


def test_a_small_run_measures_reports_and_checks(directory):
    if subprocess.run([NBD, "bench", "--help"], capture_output=True).returncode != 0:
        missing("nbd bench")
    need("nbdkit")
    argv = [sys.executable, COMPARE, "--ours", NBD, "--results", directory, "--directory", directory, "--size", 16, "--seconds", "0.2",
            "--repetitions", "2", "--servers", "ours,nbdkit", "--socket", "unix", "--cells", "^bench .* (randread|randwrite) 4k qd16 c1"]
    printed = run(*argv, "--no-check").stdout
    path, = pathlib.Path(directory).glob("*.json")
    found = json.loads(path.read_text())
    assert found["broken"] == {}
    for cell in ("bench unix randread 4k qd16 c1", "bench unix randwrite 4k qd16 c1"):
        for server in ("ours", "nbdkit file"):
            assert len(found["results"][cell][server]) == 2
            assert all(sample["value"] > 0 and sample["cpu_us"] > 0 for sample in found["results"][cell][server])
    assert report.markdown(found) in printed
    found["results"]["bench unix randread 4k qd16 c1"]["ours"] = [{"value": 1, "cpu_us": 1e6, "p50_us": 1, "p99_us": 1}]
    path.write_text(json.dumps(found))
    again = run(sys.executable, COMPARE, "--report", path, status=1).stdout
    assert "bench unix randread 4k qd16 c1: throughput 0.00 of nbdkit file, want at least 2" in again
    assert "bench unix randread 4k qd16 c1: cpu " in again
