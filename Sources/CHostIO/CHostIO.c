#define _GNU_SOURCE
#include "CHostIO.h"
#include "Result.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#if defined(__GLIBC__)
#include <malloc.h>
#endif
#if defined(__linux__)
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/stat.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#define MAJOR(device) gnu_dev_major(device)
#define MINOR(device) gnu_dev_minor(device)
#else
#define MAJOR(device) ((uint32_t)major(device))
#define MINOR(device) ((uint32_t)minor(device))
#endif

int chostio_trim_memory(void) {
#if defined(__GLIBC__)
    return malloc_trim(0);
#else
    return 0;
#endif
}

int chostio_open(const char *path, bool writable, bool direct) {
    // O_NONBLOCK: opening a fifo must not wait for its other end. It has no effect on files and disks.
    int flags = (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
#if defined(__linux__)
    if (direct) flags |= O_DIRECT;
#endif
    int fd = open(path, flags);
    if (fd < 0) return -errno;
    int failed = fcntl(fd, F_SETFL, flags & ~O_NONBLOCK);
#if !defined(__linux__)
    if (direct) failed |= fcntl(fd, F_NOCACHE, 1);
#endif
    if (failed < 0) {
        int code = errno;
        close(fd);
        return -code;
    }
    return fd;
}

struct start {
    void (*body)(void *);
    void *context;
};

static void *run(void *argument) {
    struct start start = *(struct start *)argument;
    free(argument);
    start.body(start.context);
    return NULL;
}

int chostio_start_thread(void (*body)(void *), void *context) {
    struct start *start = malloc(sizeof *start);
    if (!start) return -ENOMEM;
    *start = (struct start){body, context};
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, 512 << 10);
    sigset_t all, before;
    sigfillset(&all);
    sigdelset(&all, SIGSYS);  // by which a thread is asked to confine itself (CConfinement.c)
    pthread_sigmask(SIG_BLOCK, &all, &before);
    pthread_t thread;
    int code = pthread_create(&thread, &attributes, run, start);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    if (code != 0) free(start);
    return -code;
}

int chostio_close(int fd) { RESULT(close(fd)); }

int chostio_retire(int fd) {
#if defined(__linux__)
    int dead = open("/", O_PATH | O_CLOEXEC);
    if (dead < 0) return -errno;
    int result = dup3(dead, fd, O_CLOEXEC);
#else
    int dead = open("/", O_RDONLY | O_CLOEXEC);
    if (dead < 0) return -errno;
    int result = dup2(dead, fd);
#endif
    int code = errno;
    close(dead);
    return result < 0 ? -code : 0;
}

int chostio_stat(int fd, struct chostio_stat *out) {
    struct stat s;
    if (fstat(fd, &s) < 0) return -errno;
    out->size = (uint64_t)s.st_size;
    out->allocated = (uint64_t)s.st_blocks * 512;
    out->mode = s.st_mode;
    out->device_major = MAJOR(s.st_dev);
    out->device_minor = MINOR(s.st_dev);
    out->node_major = MAJOR(s.st_rdev);
    out->node_minor = MINOR(s.st_rdev);
    return 0;
}

enum chostio_file_type chostio_file_type(uint32_t mode) {
    if (S_ISREG(mode)) return CHOSTIO_REGULAR;
    if (S_ISBLK(mode)) return CHOSTIO_BLOCK;
    if (S_ISCHR(mode)) return CHOSTIO_CHARACTER;
    if (S_ISDIR(mode)) return CHOSTIO_DIRECTORY;
    if (S_ISFIFO(mode)) return CHOSTIO_FIFO;
    if (S_ISSOCK(mode)) return CHOSTIO_SOCKET;
    return CHOSTIO_OTHER;
}

int64_t chostio_pread(int fd, void *buffer, size_t count, uint64_t offset) { RESULT(pread(fd, buffer, count, (off_t)offset)); }

int64_t chostio_pwrite(int fd, const void *buffer, size_t count, uint64_t offset) {
    RESULT(pwrite(fd, buffer, count, (off_t)offset));
}

int chostio_truncate(int fd, uint64_t size) { RESULT(ftruncate(fd, (off_t)size)); }

int64_t chostio_seek_data(int fd, uint64_t offset) { RESULT((int64_t)lseek(fd, (off_t)offset, SEEK_DATA)); }

int64_t chostio_seek_hole(int fd, uint64_t offset) { RESULT((int64_t)lseek(fd, (off_t)offset, SEEK_HOLE)); }

#if defined(__linux__)

// The fields are younger than some C libraries' headers; the layout is the kernel's (Linux 6.1, include/uapi/linux/stat.h).
#define CHOSTIO_STATX_DIOALIGN 0x00002000U

int chostio_direct_alignment(int fd, uint32_t *memory, uint32_t *offset) {
    union {
        uint8_t bytes[256];
        uint32_t words[64];
    } s = {{0}};
    if (syscall(SYS_statx, fd, "", 0x1000 /* AT_EMPTY_PATH */, CHOSTIO_STATX_DIOALIGN, &s) < 0) return -errno;
    if (!(s.words[0] & CHOSTIO_STATX_DIOALIGN)) return -ENOTSUP;
    *memory = s.words[0x98 / 4];
    *offset = s.words[0x9c / 4];
    return 0;
}

int64_t chostio_pread_now(int fd, void *buffer, size_t count, uint64_t offset) {
    struct iovec v = {buffer, count};
    RESULT(preadv2(fd, &v, 1, (off_t)offset, RWF_NOWAIT));
}

int64_t chostio_pwrite_now(int fd, const void *buffer, size_t count, uint64_t offset) {
    struct iovec v = {(void *)buffer, count};
    RESULT(pwritev2(fd, &v, 1, (off_t)offset, RWF_NOWAIT));
}

int64_t chostio_pwrite_durable(int fd, const void *buffer, size_t count, uint64_t offset) {
    struct iovec v = {(void *)buffer, count};
    RESULT(pwritev2(fd, &v, 1, (off_t)offset, RWF_DSYNC));
}

int chostio_datasync(int fd) { RESULT(fdatasync(fd)); }

int chostio_punch_hole(int fd, uint64_t offset, uint64_t count) {
    RESULT(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)count));
}

int chostio_zero_range(int fd, uint64_t offset, uint64_t count) {
    RESULT(fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)count));
}

int chostio_allocate(int fd, uint64_t offset, uint64_t count) {
    RESULT(fallocate(fd, FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)count));
}

int chostio_will_need(int fd, uint64_t offset, uint64_t count) {
    return -posix_fadvise(fd, (off_t)offset, (off_t)count, POSIX_FADV_WILLNEED);
}

int chostio_random_access(int fd) { return -posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM); }

#ifndef F_OFD_GETLK
#define F_OFD_GETLK 36
#define F_OFD_SETLK 37
#endif

int chostio_lock_byte(int fd, uint64_t offset) {
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = (off_t)offset, .l_len = 1};
    RESULT(fcntl(fd, F_OFD_SETLK, &lock));
}

int chostio_unlock_byte(int fd, uint64_t offset) {
    struct flock lock = {.l_type = F_UNLCK, .l_whence = SEEK_SET, .l_start = (off_t)offset, .l_len = 1};
    RESULT(fcntl(fd, F_OFD_SETLK, &lock));
}

int chostio_is_byte_locked(int fd, uint64_t offset) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)offset, .l_len = 1};
    if (fcntl(fd, F_OFD_GETLK, &lock) < 0) return -errno;
    return lock.l_type != F_UNLCK;
}

int chostio_device_size(int fd, uint64_t *out) { RESULT(ioctl(fd, BLKGETSIZE64, out)); }

int chostio_device_sector(int fd, uint32_t *out) {
    int size = 0;
    if (ioctl(fd, BLKSSZGET, &size) < 0) return -errno;
    *out = (uint32_t)size;
    return 0;
}

int chostio_device_is_read_only(int fd) {
    int flag = 0;
    if (ioctl(fd, BLKROGET, &flag) < 0) return -errno;
    return flag != 0;
}

int chostio_device_discard(int fd, uint64_t offset, uint64_t count) {
    uint64_t range[2] = {offset, count};
    RESULT(ioctl(fd, BLKDISCARD, range));
}

int chostio_device_zero_out(int fd, uint64_t offset, uint64_t count) {
    uint64_t range[2] = {offset, count};
    RESULT(ioctl(fd, BLKZEROOUT, range));
}

#ifndef SYS_io_uring_setup
#define SYS_io_uring_setup 425
#define SYS_io_uring_enter 426
#define SYS_io_uring_register 427
#endif

struct ring_parameters {
    uint32_t submission_entries, completion_entries, flags, thread_cpu, thread_idle, features, workers_fd, reserved[3];
    // Where things lie in the mapping.
    struct {
        uint32_t head, tail, mask, entries, flags, dropped, array, reserved;
        uint64_t user_address;
    } submission;
    struct {
        uint32_t head, tail, mask, entries, overflow, completions, flags, reserved;
        uint64_t user_address;
    } completion;
};

_Static_assert(sizeof(struct chostio_ring_submission) == 64 && sizeof(struct chostio_ring_completion) == 16
                   && sizeof(struct ring_parameters) == 120, "the kernel's layouts");

#define RING_SUBMIT_ALL (1U << 7)
#define RING_COOPERATIVE (1U << 8)
#define RING_SINGLE_MMAP (1U << 0)
#define RING_NATIVE_WORKERS (1U << 9)  // Linux 5.12: all operations used here, and no accounting against RLIMIT_MEMLOCK
#define RING_ENTER_GETEVENTS 1U
#define RING_REGISTER_WORKER_LIMITS 19
#define RING_OFFSET_QUEUES 0
#define RING_OFFSET_SUBMISSIONS 0x10000000

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

static size_t queues_size(const struct ring_parameters *p) {
    return larger(p->submission.array + p->submission_entries * sizeof(uint32_t),
                  p->completion.completions + p->completion_entries * sizeof(struct chostio_ring_completion));
}

int chostio_ring_open(uint32_t entries, struct chostio_ring *out) {
    struct ring_parameters p = {.flags = RING_SUBMIT_ALL | RING_COOPERATIVE};
    // The descriptor is close-on-exec.
    int fd = (int)syscall(SYS_io_uring_setup, entries, &p);
    if (fd < 0 && errno == EINVAL) {
        p = (struct ring_parameters){0};  // before Linux 5.19
        fd = (int)syscall(SYS_io_uring_setup, entries, &p);
    }
    if (fd < 0) return -errno;
    int code = ENOTSUP;
    void *submissions = MAP_FAILED;
    uint8_t *queues = MAP_FAILED;
    size_t submissions_size = p.submission_entries * sizeof(struct chostio_ring_submission);
    if ((p.features & RING_SINGLE_MMAP) && (p.features & RING_NATIVE_WORKERS)) {
        queues = mmap(NULL, queues_size(&p), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, RING_OFFSET_QUEUES);
        if (queues != MAP_FAILED) {
            submissions = mmap(NULL, submissions_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, RING_OFFSET_SUBMISSIONS);
        }
        code = errno;
    }
    // Some sandboxes allow the setup alone.
    int entered = submissions == MAP_FAILED ? -code : chostio_ring_enter(fd, 0, 0);
    if (entered < 0) {
        if (submissions != MAP_FAILED) munmap(submissions, submissions_size);
        if (queues != MAP_FAILED) munmap(queues, queues_size(&p));
        close(fd);
        return entered;
    }
    // What cannot start without waiting gets a worker thread of the kernel. There must be one for everything in flight: a disk that hangs
    // must not keep them all. Before Linux 5.15 the kernel decides.
    unsigned limits[2] = {entries, 0};
    (void)syscall(SYS_io_uring_register, fd, RING_REGISTER_WORKER_LIMITS, limits, 2);
    // A child made by fork has no thread that would reap, so it must not share the queues either.
    madvise(queues, queues_size(&p), MADV_DONTFORK);
    madvise(submissions, submissions_size, MADV_DONTFORK);
    *out = (struct chostio_ring){
        .fd = fd,
        .submission_mask = *(uint32_t *)(queues + p.submission.mask),
        .completion_mask = *(uint32_t *)(queues + p.completion.mask),
        .submission_head = (uint32_t *)(queues + p.submission.head),
        .submission_tail = (uint32_t *)(queues + p.submission.tail),
        .completion_head = (uint32_t *)(queues + p.completion.head),
        .completion_tail = (uint32_t *)(queues + p.completion.tail),
        .submissions = submissions,
        .completions = (const struct chostio_ring_completion *)(queues + p.completion.completions),
    };
    uint32_t *array = (uint32_t *)(queues + p.submission.array);
    for (uint32_t i = 0; i < p.submission_entries; i++) array[i] = i;
    return 0;
}

int chostio_ring_enter(int fd, uint32_t submit, uint32_t wait) {
    RESULT((int)syscall(SYS_io_uring_enter, fd, submit, wait, RING_ENTER_GETEVENTS, NULL, (size_t)0));
}

int chostio_event_open(void) { RESULT(eventfd(0, EFD_CLOEXEC)); }

int chostio_event_signal(int fd) { RESULT(eventfd_write(fd, 1)); }

#else  // Darwin

#include <sys/disk.h>
#include <sys/mount.h>

int chostio_direct_alignment(int fd, uint32_t *memory, uint32_t *offset) {
    (void)fd; *memory = 1; *offset = 1; return 0;  // F_NOCACHE takes any alignment
}
int64_t chostio_pread_now(int fd, void *b, size_t c, uint64_t o) { (void)fd; (void)b; (void)c; (void)o; return -ENOTSUP; }
int64_t chostio_pwrite_now(int fd, const void *b, size_t c, uint64_t o) { (void)fd; (void)b; (void)c; (void)o; return -ENOTSUP; }
int64_t chostio_pwrite_durable(int fd, const void *b, size_t c, uint64_t o) { (void)fd; (void)b; (void)c; (void)o; return -ENOTSUP; }
// fsync alone does not reach the medium on Darwin; a file system without F_FULLFSYNC gets what it has.
int chostio_datasync(int fd) { if (fcntl(fd, F_FULLFSYNC) == 0) return 0; RESULT(fsync(fd)); }
int chostio_punch_hole(int fd, uint64_t offset, uint64_t count) {
    fpunchhole_t hole = {.fp_flags = 0, .reserved = 0, .fp_offset = (off_t)offset, .fp_length = (off_t)count};
    if (fcntl(fd, F_PUNCHHOLE, &hole) == 0) return 0;
    return errno == EINVAL ? -ENOTSUP : -errno;  // ends that are no multiples of the file system's block
}
int chostio_zero_range(int fd, uint64_t o, uint64_t c) { (void)fd; (void)o; (void)c; return -ENOTSUP; }
int chostio_allocate(int fd, uint64_t o, uint64_t c) { (void)fd; (void)o; (void)c; return -ENOTSUP; }
int chostio_will_need(int fd, uint64_t offset, uint64_t count) {
    struct radvisory advice = {.ra_offset = (off_t)offset, .ra_count = count > INT32_MAX ? INT32_MAX : (int)count};
    RESULT(fcntl(fd, F_RDADVISE, &advice));
}
int chostio_random_access(int fd) { RESULT(fcntl(fd, F_RDAHEAD, 0)); }
int chostio_lock_byte(int fd, uint64_t o) { (void)fd; (void)o; return -ENOTSUP; }
int chostio_unlock_byte(int fd, uint64_t o) { (void)fd; (void)o; return -ENOTSUP; }
int chostio_is_byte_locked(int fd, uint64_t o) { (void)fd; (void)o; return -ENOTSUP; }
int chostio_device_size(int fd, uint64_t *out) {
    uint64_t blocks = 0;
    uint32_t size = 0;
    if (ioctl(fd, DKIOCGETBLOCKCOUNT, &blocks) < 0 || ioctl(fd, DKIOCGETBLOCKSIZE, &size) < 0) return -errno;
    *out = blocks * size;
    return 0;
}
int chostio_device_sector(int fd, uint32_t *out) { RESULT(ioctl(fd, DKIOCGETBLOCKSIZE, out)); }
int chostio_device_is_read_only(int fd) { (void)fd; return 0; }
int chostio_device_discard(int fd, uint64_t o, uint64_t c) { (void)fd; (void)o; (void)c; return -ENOTSUP; }
int chostio_device_zero_out(int fd, uint64_t o, uint64_t c) { (void)fd; (void)o; (void)c; return -ENOTSUP; }
int chostio_ring_open(uint32_t entries, struct chostio_ring *out) { (void)entries; (void)out; return -ENOTSUP; }
int chostio_ring_enter(int fd, uint32_t submit, uint32_t wait) { (void)fd; (void)submit; (void)wait; return -ENOTSUP; }
int chostio_event_open(void) { return -ENOTSUP; }
int chostio_event_signal(int fd) { (void)fd; return -ENOTSUP; }

#endif
