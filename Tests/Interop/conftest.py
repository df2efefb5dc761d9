"""Fixtures. Every test owns its directory, its sockets and its servers, so any number of tests may run at once."""

import faulthandler
import os
import pathlib
import shutil
import tempfile

import pytest

import encrypted
import server as servers


def pytest_configure(config):
    if not os.access(servers.NBD, os.X_OK):
        pytest.exit(f"{servers.NBD} is not there: build it (swift build -c release --product nbd) or set NBD=", 2)


# Seconds for one test. The slowest takes some; waiting inside C (libnbd for its child) can only be ended with the process.
TEST_LIMIT = 240


@pytest.fixture(autouse=True)
def watchdog():
    faulthandler.dump_traceback_later(TEST_LIMIT, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def directory():
    """A short path: the address of a Unix socket holds 107 bytes."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="nbd-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def start(directory):
    """Starts any server command line; whatever still runs after the test is killed."""
    running = []

    def start(*argv, **options):
        process = servers.Server(argv, **options)
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()


@pytest.fixture
def serve(directory, start):
    """`serve(image, …)` gives a server on a private Unix socket, `serve(image, tcp=["127.0.0.1"])` one on TCP.

    A server the test did not stop itself is stopped at its end, and has to end well:
    status 0, nothing on stderr, no socket left.
    """
    running = []
    count = 0

    def serve(*images, check=True, env=None, preexec=None, stderr="", wrap=(), **options):
        nonlocal count
        count += 1
        if "sockets" not in options and "tcp" not in options:
            options["sockets"] = [directory / f"socket{count}"]
        wanted = servers.Options(images=list(images), **options)
        process = start(*wrap, servers.NBD, *wanted.arguments(), env=env, preexec=preexec)
        process.sockets = list(wanted.sockets)
        if check:
            running.append((process, stderr))
        return process

    yield serve
    for process, stderr in running:
        if process.process.poll() is None:
            process.stop(stderr=stderr)


@pytest.fixture
def disk(directory):
    """A sparse file of 64 MiB."""
    path = directory / "disk"
    with open(path, "wb") as file:
        file.truncate(64 << 20)
    return path


@pytest.fixture(scope="session")
def pki(tmp_path_factory):
    """An authority with directories for a server, its clients and others; and another authority."""
    from pki import PKI, psk_directory
    pki = PKI(tmp_path_factory.mktemp("pki"))
    pki.server = pki.directory("server", server=pki.sign_server())
    pki.client = pki.directory("client", client=pki.sign_client())
    pki.bare = pki.directory("bare")
    pki.psk = psk_directory(pki.root / "psk", "alice", "qemu")
    other = PKI(pki.root / "other")
    pki.other_client = pki.directory("other-client", client=other.sign_client())
    pki.other_authority = other.certificate
    pki.other = other
    return pki


@pytest.fixture
def serve_tls(serve, pki, disk):
    """`serve` with TLS of one kind (see `encrypted`): `serve_tls(PSK, "--tls", "optional")`."""
    def serve_tls(kind=encrypted.X509, *extra, directory=None, stderr=None, images=None, **options):
        words = encrypted.server_options(pki, kind, *extra, directory=directory)
        return serve(*(images if images is not None else [disk]), extra=words, stderr=stderr, **options)
    return serve_tls


@pytest.fixture
def connect():
    """A libnbd handle on a URI; `strict=False` lets it send what a client must not."""
    from peers import need_libnbd
    nbd = need_libnbd()
    handles = []

    def connect(uri, *, strict=True, contexts=("base:allocation",), structured=True):
        handle = nbd.NBD()
        handle.set_request_structured_replies(structured)
        for context in contexts if structured else ():
            handle.add_meta_context(context)
        if not strict:
            handle.set_strict_mode(0)
        handle.connect_uri(uri)
        handles.append(handle)
        return handle

    yield connect
    for handle in handles:
        try:
            handle.shutdown()
        except nbd.Error:
            pass  # the test may have driven it into a wall
