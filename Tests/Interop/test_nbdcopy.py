"""nbdcopy, both ways."""

import pytest

from images import KIB, MIB, allocated, checkered, random_file, sha256, sparse
from peers import need, run


@pytest.fixture
def nbdcopy():
    return need("nbdcopy")


CONTENTS = {
    "random": lambda path: random_file(path, 24 * MIB),
    "sparse": lambda path: checkered(path, 24 * MIB, 512 * KIB),
    "odd": lambda path: random_file(path, 3 * MIB + 1),
    "hole": lambda path: sparse(path, 24 * MIB),
}


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("content", CONTENTS)
class TestCopies:
    def test_out(self, serve, directory, nbdcopy, content, connections):
        image = CONTENTS[content](directory / "image")
        before = allocated(image)
        run(nbdcopy, f"--connections={connections}", serve(image, read_only=True).uri, directory / "copy")
        assert sha256(directory / "copy") == sha256(image)
        # S-CMD-06, S-BST-07: holes arrive as holes
        assert allocated(directory / "copy") <= before + 256 * KIB

    def test_in(self, serve, directory, nbdcopy, content, connections):
        image = CONTENTS[content](directory / "image")
        target = random_file(directory / "target", image.stat().st_size, seed=9)
        server = serve(target)
        run(nbdcopy, "--flush", f"--connections={connections}", image, server.uri)
        server.stop()
        assert sha256(target) == sha256(image)
        # S-CMD-14: zeroes without NO_HOLE free the space they replace
        assert allocated(target) <= allocated(image) + 256 * KIB

    def test_across(self, serve, directory, nbdcopy, content, connections):
        image = CONTENTS[content](directory / "image")
        target = sparse(directory / "target", image.stat().st_size)
        source, sink = serve(image, read_only=True), serve(target)
        run(nbdcopy, "--flush", f"--connections={connections}", source.uri, sink.uri)
        sink.stop()
        assert sha256(target) == sha256(image)


def test_keeps_provisioned_space_with_allocated(serve, directory, nbdcopy):
    # P-CMD-ZERO-1: NO_HOLE keeps the blocks
    image, target = sparse(directory / "image", 8 * MIB), sparse(directory / "target", 8 * MIB)
    server = serve(target)
    run(nbdcopy, "--allocated", image, server.uri)
    server.stop()
    assert allocated(target) >= 8 * MIB


def test_many_requests_in_flight(serve, directory, nbdcopy):
    # S-CO-03, S-REP-10
    image, target = random_file(directory / "image", 16 * MIB), sparse(directory / "target", 16 * MIB)
    source, sink = serve(image, read_only=True), serve(target)
    run(nbdcopy, "--requests=256", "--request-size=16384", "--connections=4", source.uri, sink.uri)
    sink.stop()
    assert sha256(target) == sha256(image)


def test_over_tcp(serve, directory, nbdcopy):
    image = random_file(directory / "image", 8 * MIB)
    server = serve(image, read_only=True, tcp=["127.0.0.1"])
    run(nbdcopy, server.uri, directory / "copy")
    assert sha256(directory / "copy") == sha256(image)


def test_into_memory_and_back(serve, directory, nbdcopy):
    image = checkered(directory / "image", 8 * MIB, 64 * KIB)
    server = serve("memory:8M")
    run(nbdcopy, image, server.uri)
    run(nbdcopy, server.uri, directory / "copy")
    assert sha256(directory / "copy") == sha256(image)
