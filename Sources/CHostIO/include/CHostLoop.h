/// The calls of an event loop: readiness of sockets, transfers on them, mappings of files. As in CHostIO.h, one thin function for each call;
/// results are 0 or more, or a negated errno; what a platform lacks answers `-ENOTSUP`.
#ifndef SWIFT_NBD_CHOSTLOOP_H
#define SWIFT_NBD_CHOSTLOOP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

enum { CHOSTIO_READY_INPUT = 1, CHOSTIO_READY_OUTPUT = 2, CHOSTIO_READY_HANGUP = 4 };

/// One descriptor that is ready, and what for (CHOSTIO_READY_…).
struct chostio_ready {
    uint64_t user_data;
    uint32_t what;
};

int chostio_poller_open(void);
/// Tells of changes only (edge-triggered), except `level`: of input as long as there is some.
int chostio_poller_add(int poller, int fd, uint64_t user_data, bool level);
/// Tells of input, and with `output` also when there is room to send.
int chostio_poller_modify(int poller, int fd, uint64_t user_data, bool output);
int chostio_poller_remove(int poller, int fd);
/// Fills `out`, of at most 64 entries. `timeout` in milliseconds, -1 for ever.
int chostio_poller_wait(int poller, struct chostio_ready *out, int limit, int timeout);
/// Takes the count of an event descriptor away.
int chostio_event_drain(int fd);

/// Never wait; a peer that is gone is no signal.
int64_t chostio_receive(int fd, void *buffer, size_t count);
/// `more`: what follows is sent at once, so this need not be on its way before.
int64_t chostio_send(int fd, const struct iovec *parts, int count, bool more);
/// Sends a part of a file by reference to its pages. The socket must not wait and the thread not take SIGPIPE: this call cannot be told.
/// 0: the file ends there.
int64_t chostio_send_file(int fd, int file, uint64_t offset, size_t count);
/// 1 for a Unix socket.
int chostio_is_local(int fd);
/// A congestion control by its name.
struct chostio_pace {
    char name[16];
};
/// Gives a TCP socket the plainest congestion control. What it had; no name: it is as it was.
struct chostio_pace chostio_take_pace(int fd);
/// Gives it back to a connected socket, unless both its ends have the same address.
void chostio_give_pace_back(int fd, struct chostio_pace pace);
/// A second number for the same socket, closed by exec. From now on the socket never waits.
int chostio_duplicate(int fd);
/// Makes room for `bytes` of what is sent and not received yet.
int chostio_send_room(int fd, int bytes);
/// Lets a peer on this host send so many `bytes` of a TCP connection ahead from now on; 0 also for others, which stay as they are.
int chostio_receive_room_within_host(int fd, int bytes);

/// Nanoseconds of a clock that never goes back.
uint64_t chostio_now(void);
void chostio_yield(void);
/// Cores that this process may use, at least 1.
int chostio_core_count(void);
/// How often this thread has waited for a page from a disk (`ru_majflt`).
uint64_t chostio_major_faults(void);
/// Blocks of 512 bytes that were read from disks for this thread (`ru_inblock`).
uint64_t chostio_blocks_read(void);

/// Type of the file system that holds the file (`f_type`), 0 when unknown.
uint64_t chostio_file_system(int fd);
/// Maps `count` bytes of the file for reading, without touching them; NULL when that is not possible.
const void *chostio_map(int fd, size_t count);
/// Puts memory that cannot be read in the place of a mapping: whoever uses it gets EFAULT.
int chostio_map_retire(const void *address, size_t count);
int chostio_unmap(const void *address, size_t count);
/// Which pages of a mapping are in memory, one bit each: at most 512 pages of 4 KiB, into 8 words. -EPERM when the kernel does not tell this
/// process of this file: neither its own nor one that it may write (mincore(2)).
int chostio_resident(int fd, const void *address, size_t count, uint64_t *bits);
/// Enters pages that are in memory into the page table, so that using them causes no faults. A hint.
void chostio_populate(const void *address, size_t count);
/// `count` bytes of zeroes that take no memory until they are written, for `chostio_unmap`; NULL when there are none.
uint64_t *chostio_zeroes(size_t count);
/// Makes them zeroes again.
int chostio_zeroes_again(uint64_t *address, size_t count);

static inline uint64_t chostio_bits(const uint64_t *word) { return __atomic_load_n(word, __ATOMIC_RELAXED); }
static inline void chostio_set_bits(uint64_t *word, uint64_t bits) { __atomic_fetch_or(word, bits, __ATOMIC_RELAXED); }

/// The loop whose thread this is, or NULL.
void *chostio_loop_of_thread(void);
void chostio_set_loop_of_thread(void *loop);

#endif
