"""qcow2 images beside qemu-nbd: all allocated, empty before each sample (so that every write allocates), and the top of a chain of three."""

import subprocess

from . import servers
from .cells import Bench, finish
from .disk import Disk

KINDS = ("qcow2", "qcow2-new", "qcow2-chain")
MIB = 1 << 20


def cells():
    found = [Bench("unix", *shape, client="qcow2") for shape in (
        ("randread", "4k", 1, 1), ("randread", "4k", 16, 1), ("randread", "4k", 64, 1), ("randread", "4k", 16, 4), ("randwrite", "4k", 1, 1),
        ("randwrite", "4k", 16, 1), ("read", "64k", 16, 1), ("read", "1m", 16, 1), ("write", "64k", 16, 1), ("write", "1m", 16, 1))]
    found += [Bench("unix", *shape, client="qcow2-new") for shape in (("randwrite", "4k", 16, 1), ("write", "64k", 16, 1), ("write", "1m", 16, 1))]
    return found + [Bench("unix", *shape, client="qcow2-chain") for shape in (("randread", "4k", 1, 1), ("randread", "4k", 16, 1), ("read", "64k", 16, 1))]


def servers_of(executable):
    everyone = servers.present([servers.ours(executable, format="qcow2"), servers.qemu("threads", format="qcow2"),
                                servers.qemu("io_uring", format="qcow2")])
    return lambda cell: everyone


def _run(*words, **options):
    finish(subprocess.run([str(word) for word in words], capture_output=True, text=True, **options))


class Images:
    """What is served, by the kind of a cell: made when it is asked for first."""

    def __init__(self, directory, raw):
        """`raw`: a disk whose bytes the images have."""
        self.directory, self.raw, self.made = directory, raw, {}

    def of(self, kind):
        if kind == "qcow2-new" or kind not in self.made:
            if kind in self.made:
                self.made[kind].release()
            self.made[kind] = Image(self._make(kind), self.raw.size)
        return self.made[kind]

    def _make(self, kind):
        first = self.directory / f"{kind}.qcow2"
        if kind == "qcow2-new":
            _run("qemu-img", "create", "-q", "-f", "qcow2", first, self.raw.size)
            return [first]
        _run("qemu-img", "convert", "-O", "qcow2", self.raw.path, first)
        files = [first]
        # Each overlay has another third of the disk, a MiB here and there.
        for layer in ((1, 2) if kind == "qcow2-chain" else ()):
            top = self.directory / f"{kind}-{layer}.qcow2"
            _run("qemu-img", "create", "-q", "-f", "qcow2", "-b", files[0], "-F", "qcow2", top)
            writes = "".join(f"write -q -P {layer} {at} {MIB}\n" for at in range(layer * MIB, self.raw.size, 3 * MIB))
            _run("qemu-io", "-f", "qcow2", top, input=writes + "quit\n")
            files.insert(0, top)
        return files


class Image:
    """An image and the files below it; to the measurement, a disk."""

    def __init__(self, files, size):
        self.path, self.size, self.files = files[0], size, [Disk.existing(path) for path in files]

    def settle(self):
        self.files[0].settle()

    def warm(self):
        for file in self.files:
            file.warm()

    def release(self):
        for file in self.files:
            file.release()
