"""The other people's programs. In CI a missing one fails the test; elsewhere it skips it."""

import os
import shutil
import subprocess

import pytest


def missing(what):
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is missing: `./run test` installs the peers")
    pytest.skip(f"{what} is missing")


def need(*programs):
    """The paths of programs, or the end of this test."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    found = [shutil.which(program, path=path) or missing(program) for program in programs]
    return found[0] if len(found) == 1 else found


def need_libnbd():
    try:
        import nbd
    except ImportError:
        missing("python3-libnbd")
    return nbd


def run(*argv, status=0, limit=120, input=None, env=None, **options):
    """Runs a peer to its end and gives what it wrote; fails the test when its status is another one."""
    done = subprocess.run(
        [str(word) for word in argv], input=input, capture_output=True, text=True, timeout=limit,
        env={**os.environ, **(env or {})}, **options)
    assert done.returncode == status, (
        f"{' '.join(map(str, argv))}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def out(*argv, **options):
    return run(*argv, **options).stdout
