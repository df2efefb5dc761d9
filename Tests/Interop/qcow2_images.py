"""Images of every kind that qemu-img makes."""

from images import KIB, MIB, checkered, random_file, sparse
from peers import need, run


def create(path, size, *options, backing=None):
    words = [word for option in options for word in ("-o", option)]
    if backing is not None:
        words += ["-b", backing.name, "-F", "qcow2" if backing.suffix == ".qcow2" else "raw"]
    run(need("qemu-img"), "create", "-q", "-f", "qcow2", *words, path, size, cwd=path.parent)
    return path


def write(path, *commands, fmt="qcow2"):
    words = [word for command in commands for word in ("-c", command)]
    run(need("qemu-io"), "-f", fmt, *words, path, cwd=path.parent)
    return path


SCATTER = ("write -P 1 0 100k", "write -P 2 1M 5k", "write -z 2M 300k", "write -z -u 3M 200k", "write -P 3 4095k 130k",
           "write -P 0 5M 70k", "discard 64k 64k", "write -P 4 7M 64k", "write -z 7M 64k")


def scattered(path, *options, size=10 * MIB, backing=None):
    return write(create(path, size, *options, backing=backing), *SCATTER)


def raw_base(directory, size):
    return random_file(directory / "base.raw", size, seed=9)


def holey_base(directory, size):
    return checkered(directory / "base.raw", size, 192 * KIB, seed=8)


def compressed(directory, *options):
    source = sparse(directory / "source.raw", 6 * MIB, [(0, b"text " * 60000), (2 * MIB, bytes(range(256)) * 4096)])
    path = directory / "image.qcow2"
    words = [word for option in options for word in ("-o", option)]
    run(need("qemu-img"), "convert", "-c", "-f", "raw", "-O", "qcow2", *words, source, path)
    return path


def chain(directory, length):
    below = raw_base(directory, 5 * MIB)
    for index in range(length):
        path = create(directory / f"layer{index}.qcow2", (5 + index % 4) * MIB, backing=below)
        write(path, f"write -P {index + 10} {index * 300}k 200k", f"write -z {index * 300 + 220}k 64k",
              f"write -P {index + 30} {4 * MIB + index * 70 * KIB} 10k")
        below = path
    return below


def snapshots(directory):
    path = scattered(directory / "image.qcow2")
    run(need("qemu-img"), "snapshot", "-c", "first", path)
    write(path, "write -P 9 0 2M")
    run(need("qemu-img"), "snapshot", "-c", "second", path)
    return write(path, "write -P 10 1M 3M", "discard 0 1M")


def data_file(directory, *options):
    path = directory / "image.qcow2"
    words = [word for option in (*options, f"data_file={directory / 'image.data'}") for word in ("-o", option)]
    run(need("qemu-img"), "create", "-q", "-f", "qcow2", *words, path, 10 * MIB, cwd=directory)
    return write(path, *SCATTER)


KINDS = {
    "version 3": lambda d: scattered(d / "image.qcow2"),
    "version 2": lambda d: scattered(d / "image.qcow2", "compat=0.10"),
    "clusters of 512": lambda d: scattered(d / "image.qcow2", "cluster_size=512"),
    "clusters of 4k": lambda d: scattered(d / "image.qcow2", "cluster_size=4k", "refcount_bits=1"),
    "clusters of 2M": lambda d: scattered(d / "image.qcow2", "cluster_size=2M", "refcount_bits=64"),
    "refcounts of 8 bits, lazy": lambda d: scattered(d / "image.qcow2", "refcount_bits=8", "lazy_refcounts=on"),
    "subclusters": lambda d: scattered(d / "image.qcow2", "extended_l2=on"),
    "subclusters over raw": lambda d: scattered(d / "image.qcow2", "extended_l2=on", "cluster_size=128k", backing=raw_base(d, 6 * MIB)),
    "zlib": lambda d: compressed(d),
    "zlib, clusters of 512": lambda d: compressed(d, "cluster_size=512"),
    "zstd": lambda d: compressed(d, "compression_type=zstd"),
    "zstd, clusters of 2M": lambda d: compressed(d, "compression_type=zstd", "cluster_size=2M"),
    "over a short raw file": lambda d: scattered(d / "image.qcow2", backing=raw_base(d, 4 * MIB + 77 * KIB)),
    "over a long raw file": lambda d: scattered(d / "image.qcow2", backing=raw_base(d, 12 * MIB)),
    "over a raw file with holes": lambda d: scattered(d / "image.qcow2", backing=holey_base(d, 9 * MIB)),
    "version 2 over raw": lambda d: scattered(d / "image.qcow2", "compat=0.10", backing=raw_base(d, 8 * MIB)),
    "chain of 1": lambda d: chain(d, 1),
    "chain of 3": lambda d: chain(d, 3),
    "chain of 8": lambda d: chain(d, 8),
    "data file": lambda d: data_file(d),
    "raw data file": lambda d: data_file(d, "data_file_raw=on"),
    "snapshots": snapshots,
    "preallocated metadata": lambda d: scattered(d / "image.qcow2", "preallocation=metadata"),
    "preallocated by falloc": lambda d: scattered(d / "image.qcow2", "preallocation=falloc"),
    "preallocated in full": lambda d: scattered(d / "image.qcow2", "preallocation=full"),
    "empty": lambda d: create(d / "image.qcow2", 3 * MIB),
}
