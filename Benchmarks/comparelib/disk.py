"""The file that all servers serve, and what of it is in the page cache. A real file on a real file system: tmpfs has neither cache nor disk."""

import ctypes
import mmap
import os

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
_libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class Disk:
    held = None  # address of the locked mapping, while there is one

    def __init__(self, path, size, sparse=False):
        """`size` bytes in which no block is zero; or, sparse, 64 pieces of 1 MiB and holes between them."""
        self.path, self.size = path, size
        block = os.urandom(1 << 20)
        with open(path, "wb") as file:
            file.truncate(size)
            for at in range(0, size, size // 64 if sparse else 1 << 20):
                file.seek(at)
                file.write(block)
        self.cool()

    @classmethod
    def existing(cls, path):
        disk = cls.__new__(cls)
        disk.path, disk.size = path, os.path.getsize(path)
        disk.settle()
        return disk

    def settle(self):
        """Writes dirty pages out: those of one measurement are not the next one's business."""
        descriptor = os.open(self.path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

    def warm(self):
        """Brings the file into the page cache in pages of 4 KiB, as random access does.

        Not by sequential reads or writes: where the readahead is large (8 MiB on some virtual disks) the kernel then makes folios of a megabyte
        or more, and ext4 looks at all of a folio's buffers, under the inode's lock, for each write into it: 25 µs for 4 KiB, whoever asks.
        """
        if self.held is None or self.resident() < 1:
            self.cool()
            descriptor = os.open(self.path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            for at in range(0, self.size, 1 << 20):
                os.pread(descriptor, 1 << 20, at)
            os.close(descriptor)
            self.hold()

    def hold(self):
        """Keeps it there. Some kernels write out what was not looked at for a minute (DAMON's pageout), also while a sample runs."""
        address = self.map()
        if _libc.mlock(address, self.size) == 0:
            self.held = address
        else:
            _libc.munmap(address, self.size)  # over RLIMIT_MEMLOCK: `faults` of the samples tell whether it mattered

    def release(self):
        """Undoes `hold`."""
        if self.held is not None:
            _libc.munmap(self.held, self.size)
            self.held = None

    def cool(self):
        """Drops the file from the page cache. Only clean pages go, and none that a process maps: so before the server starts."""
        self.settle()
        self.release()
        descriptor = os.open(self.path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
        share = self.resident()
        if share > 0.01:
            raise RuntimeError(f"{share:.0%} of {self.path} stay in the page cache")

    def map(self):
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            address = _libc.mmap(None, self.size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        finally:
            os.close(descriptor)
        if address == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), "mmap")
        return address

    def resident(self):
        """The share of the file's pages that are in the page cache, 0…1."""
        address = self.map()
        pages = -(-self.size // mmap.PAGESIZE)
        vector = ctypes.create_string_buffer(pages)
        try:
            if _libc.mincore(address, self.size, vector) != 0:
                raise OSError(ctypes.get_errno(), "mincore")
        finally:
            _libc.munmap(address, self.size)
        # Only the lowest bit of each byte has a meaning.
        return sum(count for value, count in _counts(vector.raw[:pages]) if value & 1) / pages


def _counts(data):
    return [(value, data.count(bytes([value]))) for value in set(data)]
