"""Reads that the page cache does not answer: past it (`--cache=none`, direct I/O), and through it when it is cold."""

from . import servers


def servers_of(executable):
    """cell → those who take part in it. nbdkit has no direct I/O: its cache=none drops what it has read (posix_fadvise)."""
    cache = {"direct": "none", "cold": "writeback"}
    found = {
        kind: servers.present([
            servers.ours(executable, options=(f"--cache={mode}",)),
            servers.ours(executable, f"{servers.OURS} threads", (f"--cache={mode}", "--aio=threads")),
            servers.qemu("threads", mode), servers.qemu("io_uring", mode)])
        for kind, mode in cache.items()}
    found["direct"] += servers.present([servers.nbdkit("cache=none")])
    found["cold"] += servers.present([servers.nbdkit(), servers.nbd_server()])
    return lambda cell: found[cell.client]
