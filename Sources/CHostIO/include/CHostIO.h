/// System calls that Swift cannot reach: variadic ones (`fcntl`, `ioctl`), GNU extensions (`preadv2`, `fallocate`, `statx`) and constants
/// that are macros. One thin function for each call; no logic, no state, no retry.
///
/// Every function gives a result of 0 or more, or a negated errno: nobody has to read the thread's errno, which an `await` may change.
/// What a platform lacks answers `-ENOTSUP`.
#ifndef SWIFT_NBD_CHOSTIO_H
#define SWIFT_NBD_CHOSTIO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "CConfinement.h"
#include "CHostLoop.h"

/// What `fstat` says, in types that do not differ by platform.
struct chostio_stat {
    uint64_t size;
    /// Bytes allocated.
    uint64_t allocated;
    uint32_t mode;
    /// The device that holds the file, and the device that the file is (for device nodes).
    uint32_t device_major, device_minor;
    uint32_t node_major, node_minor;
};

enum chostio_file_type {
    CHOSTIO_REGULAR, CHOSTIO_BLOCK, CHOSTIO_CHARACTER, CHOSTIO_DIRECTORY, CHOSTIO_FIFO, CHOSTIO_SOCKET, CHOSTIO_OTHER
};

int chostio_open(const char *path, bool writable, bool direct);
/// Starts a detached thread that takes no signals.
int chostio_start_thread(void (*body)(void *), void *context);
/// 1: free memory went back to the system; 0: there was none, or the C library has no say in it.
int chostio_trim_memory(void);
int chostio_close(int fd);
/// Makes `fd` a dead number: it stays taken, but every use gives EBADF. Calls in flight keep the file they began with.
int chostio_retire(int fd);
int chostio_stat(int fd, struct chostio_stat *out);
enum chostio_file_type chostio_file_type(uint32_t mode);
/// Memory and offset alignment of O_DIRECT; -ENOTSUP when the kernel does not tell; both 0 when the file cannot do it.
int chostio_direct_alignment(int fd, uint32_t *memory, uint32_t *offset);

int64_t chostio_pread(int fd, void *buffer, size_t count, uint64_t offset);
int64_t chostio_pwrite(int fd, const void *buffer, size_t count, uint64_t offset);
/// RWF_NOWAIT: only what needs no waiting; -EAGAIN when nothing is.
int64_t chostio_pread_now(int fd, void *buffer, size_t count, uint64_t offset);
int64_t chostio_pwrite_now(int fd, const void *buffer, size_t count, uint64_t offset);
/// RWF_DSYNC: durable when it returns.
int64_t chostio_pwrite_durable(int fd, const void *buffer, size_t count, uint64_t offset);
int chostio_datasync(int fd);

int chostio_punch_hole(int fd, uint64_t offset, uint64_t count);
int chostio_zero_range(int fd, uint64_t offset, uint64_t count);
/// Allocates, keeping contents and size.
int chostio_allocate(int fd, uint64_t offset, uint64_t count);
int chostio_truncate(int fd, uint64_t size);
int chostio_will_need(int fd, uint64_t offset, uint64_t count);
int chostio_random_access(int fd);
int64_t chostio_seek_data(int fd, uint64_t offset);
int64_t chostio_seek_hole(int fd, uint64_t offset);

/// Open-file-description locks: a read lock on one byte; and whether somebody else holds any lock on it (1) or nobody (0).
int chostio_lock_byte(int fd, uint64_t offset);
int chostio_unlock_byte(int fd, uint64_t offset);
int chostio_is_byte_locked(int fd, uint64_t offset);

int chostio_device_size(int fd, uint64_t *out);
int chostio_device_sector(int fd, uint32_t *out);
int chostio_device_is_read_only(int fd);
int chostio_device_discard(int fd, uint64_t offset, uint64_t count);
int chostio_device_zero_out(int fd, uint64_t offset, uint64_t count);

// io_uring (Linux 5.12 and later; layouts and numbers: include/uapi/linux/io_uring.h, which some C libraries' headers lack)

/// One submission. Fields that no operation here uses are `zero`.
struct chostio_ring_submission {
    uint8_t operation, flags;
    uint16_t zero_priority;
    int32_t fd;
    uint64_t offset;
    uint64_t address;
    uint32_t count;
    uint32_t operation_flags;
    uint64_t user_data;
    uint64_t zero[3];
};

struct chostio_ring_completion {
    uint64_t user_data;
    int32_t result;
    uint32_t flags;
};

enum { CHOSTIO_RING_READ = 22, CHOSTIO_RING_WRITE = 23 };
/// RWF_DSYNC.
enum { CHOSTIO_RING_DSYNC = 2 };

/// A ring and where its parts are mapped: for as long as the process lives.
struct chostio_ring {
    int fd;
    uint32_t submission_mask, completion_mask;
    /// Indices that only grow, modulo 2^32. The kernel moves `submission_head` and `completion_tail`, we the others.
    uint32_t *submission_head, *submission_tail, *completion_head, *completion_tail;
    struct chostio_ring_submission *submissions;
    const struct chostio_ring_completion *completions;
};

/// Makes a ring for `entries` submissions (a power of two) and twice as many completions. -ENOTSUP: the kernel's is too old.
int chostio_ring_open(uint32_t entries, struct chostio_ring *out);
/// Submits `submit` entries and waits until there are `wait` completions. Returns how many were submitted.
int chostio_ring_enter(int fd, uint32_t submit, uint32_t wait);
/// A counter to wake a thread with: reading it waits until it is not 0.
int chostio_event_open(void);
int chostio_event_signal(int fd);

static inline uint32_t chostio_load_acquire(const uint32_t *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
static inline void chostio_store_release(uint32_t *word, uint32_t value) { __atomic_store_n(word, value, __ATOMIC_RELEASE); }

#endif
