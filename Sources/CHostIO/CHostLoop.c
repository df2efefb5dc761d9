#define _GNU_SOURCE
#include "CHostLoop.h"
#include "Result.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#if defined(__linux__)
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#endif

// Looked at for each job and each closure: not through a function of the dynamic linker.
static _Thread_local void *loop_of_thread __attribute__((tls_model("initial-exec")));

void *chostio_loop_of_thread(void) { return loop_of_thread; }
void chostio_set_loop_of_thread(void *loop) { loop_of_thread = loop; }

uint64_t chostio_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

void chostio_yield(void) { sched_yield(); }

int64_t chostio_receive(int fd, void *buffer, size_t count) { RESULT(recv(fd, buffer, count, MSG_DONTWAIT)); }

int chostio_duplicate(int fd) {
    // Of both: it belongs to the open socket. Who sends a file cannot say it for one call.
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || (!(flags & O_NONBLOCK) && fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)) return -errno;
    RESULT(fcntl(fd, F_DUPFD_CLOEXEC, 0));
}

const void *chostio_map(int fd, size_t count) {
    void *address = mmap(NULL, count, PROT_READ, MAP_SHARED, fd, 0);
    if (address == MAP_FAILED) return NULL;
    // Pages that are not there are not guessed: whoever sends from the mapping knows that its pages are there.
    madvise(address, count, MADV_RANDOM);
    return address;
}

int chostio_unmap(const void *address, size_t count) { RESULT(munmap((void *)address, count)); }

#if defined(__linux__)

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

int chostio_resident(int fd, const void *address, size_t count, uint64_t *bits) {
    enum { PAGES = 512 };
    unsigned char pages[PAGES];
    size_t limit = (size_t)PAGES << 12;
    if (count > limit) count = limit;
    // Of other files mincore says that all of it is there. Rights may have changed since the file was opened.
    struct stat file;
    if (fstat(fd, &file) < 0) return -errno;
    if (geteuid() != file.st_uid && syscall(SYS_faccessat2, fd, "", W_OK, AT_EACCESS | AT_EMPTY_PATH) < 0) return -EPERM;
    if (mincore((void *)address, count, pages) < 0) return -errno;
    for (size_t word = 0; word < PAGES / 64; word++) bits[word] = 0;
    for (size_t page = 0; page < (count + 4095) >> 12; page++) bits[page >> 6] |= (uint64_t)(pages[page] & 1) << (page & 63);
    return 0;
}

void chostio_populate(const void *address, size_t count) { (void)madvise((void *)address, count, MADV_POPULATE_READ); }

int chostio_poller_open(void) { RESULT(epoll_create1(EPOLL_CLOEXEC)); }

int chostio_poller_add(int poller, int fd, uint64_t user_data, bool level) {
    struct epoll_event e = {.events = level ? EPOLLIN : EPOLLIN | EPOLLRDHUP | EPOLLET, .data.u64 = user_data};
    RESULT(epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e));
}

int chostio_poller_modify(int poller, int fd, uint64_t user_data, bool output) {
    struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP | EPOLLET | (output ? EPOLLOUT : 0), .data.u64 = user_data};
    RESULT(epoll_ctl(poller, EPOLL_CTL_MOD, fd, &e));
}

int chostio_poller_remove(int poller, int fd) { RESULT(epoll_ctl(poller, EPOLL_CTL_DEL, fd, NULL)); }

int chostio_poller_wait(int poller, struct chostio_ready *out, int limit, int timeout) {
    struct epoll_event events[64];
    int count = epoll_wait(poller, events, limit < 64 ? limit : 64, timeout);
    if (count < 0) return -errno;
    for (int i = 0; i < count; i++) {
        uint32_t e = events[i].events;
        out[i].user_data = events[i].data.u64;
        out[i].what = (e & EPOLLIN ? CHOSTIO_READY_INPUT : 0) | (e & EPOLLOUT ? CHOSTIO_READY_OUTPUT : 0)
            | (e & (EPOLLRDHUP | EPOLLHUP | EPOLLERR) ? CHOSTIO_READY_HANGUP : 0);
    }
    return count;
}

int chostio_event_drain(int fd) {
    eventfd_t count;
    RESULT(eventfd_read(fd, &count));
}

int64_t chostio_send(int fd, const struct iovec *parts, int count, bool more) {
    struct msghdr message = {.msg_iov = (struct iovec *)parts, .msg_iovlen = (size_t)count};
    RESULT(sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL | (more ? MSG_MORE : 0)));
}

int64_t chostio_send_file(int fd, int file, uint64_t offset, size_t count) {
    off_t place = (off_t)offset;
    RESULT(sendfile(fd, file, &place, count));
}

int chostio_is_local(int fd) {
    int domain = 0;
    socklen_t size = sizeof domain;
    return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 && domain == AF_UNIX;
}

/// Internet addresses that are the same.
static bool are_same(const struct sockaddr_storage *a, const struct sockaddr_storage *b) {
    if (a->ss_family != b->ss_family) return false;
    switch (a->ss_family) {
    case AF_INET:
        return ((const struct sockaddr_in *)a)->sin_addr.s_addr == ((const struct sockaddr_in *)b)->sin_addr.s_addr;
    case AF_INET6:
        return IN6_ARE_ADDR_EQUAL(&((const struct sockaddr_in6 *)a)->sin6_addr, &((const struct sockaddr_in6 *)b)->sin6_addr);
    default:
        return false;
    }
}

static bool is_within_host(int fd) {
    struct sockaddr_storage own, peer;
    socklen_t own_size = sizeof own, peer_size = sizeof peer;
    return getsockname(fd, (struct sockaddr *)&own, &own_size) == 0 && getpeername(fd, (struct sockaddr *)&peer, &peer_size) == 0
        && are_same(&own, &peer);
}

struct chostio_pace chostio_take_pace(int fd) {
    struct chostio_pace pace = {""};
    socklen_t size = sizeof pace.name;
    // "reno" is the one that every kernel has.
    if (getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, pace.name, &size) < 0 || setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4) < 0)
        return (struct chostio_pace){""};
    return pace;
}

void chostio_give_pace_back(int fd, struct chostio_pace pace) {
    if (!is_within_host(fd)) (void)setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, pace.name, (socklen_t)strnlen(pace.name, sizeof pace.name));
}

int chostio_send_room(int fd, int bytes) {
    RESULT(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes));
}

int chostio_receive_room_within_host(int fd, int bytes) {
    if (!is_within_host(fd)) return 0;
    // SO_RCVBUF would end the window's growth, and needs a privilege for more than rmem_max. To wait for so many bytes makes room for them; the
    // room stays.
    int one = 1;
    if (setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &bytes, sizeof bytes) < 0) return -errno;
    RESULT(setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &one, sizeof one));
}

int chostio_core_count(void) {
    cpu_set_t cores;
    int count = sched_getaffinity(0, sizeof cores, &cores) < 0 ? 1 : CPU_COUNT(&cores);
    return count > 0 ? count : 1;
}

uint64_t chostio_major_faults(void) {
    struct rusage usage;
    return getrusage(RUSAGE_THREAD, &usage) < 0 ? 0 : (uint64_t)usage.ru_majflt;
}

uint64_t chostio_blocks_read(void) {
    struct rusage usage;
    return getrusage(RUSAGE_THREAD, &usage) < 0 ? 0 : (uint64_t)usage.ru_inblock;
}

uint64_t chostio_file_system(int fd) {
    struct statfs s;
    return fstatfs(fd, &s) < 0 ? 0 : (uint32_t)s.f_type;
}

int chostio_map_retire(const void *address, size_t count) {
    void *result = mmap((void *)address, count, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    return result == MAP_FAILED ? -errno : 0;
}

uint64_t *chostio_zeroes(size_t count) {
    void *address = mmap(NULL, count, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return address == MAP_FAILED ? NULL : address;
}

int chostio_zeroes_again(uint64_t *address, size_t count) { RESULT(madvise(address, count, MADV_DONTNEED)); }

#else  // Darwin: the loop is not there

int chostio_poller_open(void) { return -ENOTSUP; }
int chostio_poller_add(int poller, int fd, uint64_t data, bool level) { (void)poller; (void)fd; (void)data; (void)level; return -ENOTSUP; }
int chostio_poller_modify(int poller, int fd, uint64_t d, bool output) { (void)poller; (void)fd; (void)d; (void)output; return -ENOTSUP; }
int chostio_poller_remove(int poller, int fd) { (void)poller; (void)fd; return -ENOTSUP; }
int chostio_poller_wait(int poller, struct chostio_ready *out, int limit, int timeout) {
    (void)poller; (void)out; (void)limit; (void)timeout; return -ENOTSUP;
}
int chostio_event_drain(int fd) { (void)fd; return -ENOTSUP; }
int64_t chostio_send(int fd, const struct iovec *parts, int count, bool more) {
    (void)fd; (void)parts; (void)count; (void)more; return -ENOTSUP;
}
int chostio_send_room(int fd, int bytes) { (void)fd; (void)bytes; return -ENOTSUP; }
int chostio_receive_room_within_host(int fd, int bytes) { (void)fd; (void)bytes; return -ENOTSUP; }
int chostio_core_count(void) { return 1; }
int chostio_resident(int fd, const void *address, size_t count, uint64_t *bits) {
    (void)fd; (void)address; (void)count; (void)bits; return -ENOTSUP;
}
void chostio_populate(const void *address, size_t count) { (void)address; (void)count; }
uint64_t chostio_major_faults(void) { return 0; }
uint64_t chostio_blocks_read(void) { return 0; }
int chostio_is_local(int fd) { (void)fd; return 0; }
struct chostio_pace chostio_take_pace(int fd) { (void)fd; return (struct chostio_pace){""}; }
void chostio_give_pace_back(int fd, struct chostio_pace pace) { (void)fd; (void)pace; }
int64_t chostio_send_file(int fd, int file, uint64_t offset, size_t count) {
    (void)fd; (void)file; (void)offset; (void)count; return -ENOTSUP;
}
uint64_t chostio_file_system(int fd) { (void)fd; return 0; }
int chostio_map_retire(const void *address, size_t count) { (void)address; (void)count; return -ENOTSUP; }
uint64_t *chostio_zeroes(size_t count) { (void)count; return NULL; }
int chostio_zeroes_again(uint64_t *address, size_t count) { (void)address; (void)count; return -ENOTSUP; }

#endif
