#!/usr/bin/env python3
"""Small qcow2 images for the fuzzer, made by qemu-img: `image_seeds.py DIR`. Kept in corpus/image, so that fuzzing needs no qemu-img."""

import hashlib
import pathlib
import subprocess
import sys
import tempfile

KINDS = {
    "plain": ("cluster_size=512", []),
    "old": ("cluster_size=512,compat=0.10", []),
    "narrow": ("cluster_size=512,refcount_bits=1", []),
    "wide": ("cluster_size=512,refcount_bits=64", []),
    "lazy": ("cluster_size=512,lazy_refcounts=on", []),
    "mapped": ("cluster_size=512,preallocation=metadata", []),
    "compressed": ("cluster_size=4096", ["write -c -P 5 0 4096", "write -c -P 6 4096 4096"]),
    "zstd": ("cluster_size=4096,compression_type=zstd", ["write -c -P 5 0 4096"]),
    "snapshot": ("cluster_size=512", []),
    "bitmaps": ("cluster_size=512", []),
    "extended": ("cluster_size=16384,extended_l2=on", []),
}


def run(*argv):
    subprocess.run([str(word) for word in argv], check=True, stdout=subprocess.DEVNULL)


def main():
    target = pathlib.Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        for name, (options, commands) in KINDS.items():
            image = pathlib.Path(directory) / name
            run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, image, "16k" if name != "extended" else "64k")
            for command in commands or ["write -P 1 0 3k", "write -z 4k 1k", "write -P 2 9k 512"]:
                run("qemu-io", "-c", command, image)
            if name == "snapshot":
                run("qemu-img", "snapshot", "-c", "s", image)
                run("qemu-io", "-c", "write -P 3 1k 1k", image)
            if name == "bitmaps":
                run("qemu-img", "bitmap", "--add", "-g", "512", image, "b")
                run("qemu-io", "-c", "write -P 3 1k 1k", image)
            data = image.read_bytes()
            for choice in range(3):
                seed = bytes([choice]) + data
                if len(seed) <= 65536:
                    (target / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)


main()
