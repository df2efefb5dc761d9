"""Disks to serve, and what a byte-exact comparison needs."""

import hashlib
import os
import random

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def sparse(path, size, pieces=()):
    """A file of `size` bytes that holds only `pieces` (offset, bytes); the rest are holes."""
    with open(path, "wb") as file:
        file.truncate(size)
        for offset, data in pieces:
            file.seek(offset)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())  # delayed allocation must not decide what SEEK_HOLE says
    return path


def noise(size, seed=1):
    return random.Random(seed).randbytes(size)


def random_file(path, size, seed=1):
    generator = random.Random(seed)
    with open(path, "wb") as file:
        left = size
        while left:
            count = min(left, MIB)
            file.write(generator.randbytes(count))
            left -= count
    return path


def checkered(path, size, step, seed=1):
    """Data and holes in turns of `step` bytes, data first."""
    generator = random.Random(seed)
    return sparse(path, size, [(at, generator.randbytes(min(step, size - at))) for at in range(0, size, 2 * step)])


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(MIB):
            digest.update(block)
    return digest.hexdigest()


def allocated(path):
    """Bytes the file occupies on its disk."""
    return os.stat(path).st_blocks * 512
