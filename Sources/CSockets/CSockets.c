#define _GNU_SOURCE
#include "CSockets.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int csockets_prepare(int fd) {
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0) return -errno;
    return 0;
}

#if defined(__linux__)

int csockets_open(int family) {
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    return fd < 0 ? -errno : fd;
}

int csockets_accept(int listener) {
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    return fd < 0 ? -errno : fd;
}

int csockets_peer_credentials(int fd, struct csockets_credentials *credentials) {
    int domain = 0;
    socklen_t length = sizeof domain;
    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) < 0) return -errno;
    if (domain != AF_UNIX) return -EAFNOSUPPORT;  // others "have" the user (uid_t)-1
    struct ucred peer;
    length = sizeof peer;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0) return -errno;
    credentials->uid = peer.uid;
    credentials->gid = peer.gid;
    credentials->pid = peer.pid;
    return 0;
}

int csockets_pipe(int ends[2]) { return pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0 ? -errno : 0; }

#else  // Darwin: in two steps, between which another thread may fork

#include <sys/ucred.h>

int csockets_peer_credentials(int fd, struct csockets_credentials *credentials) {
    struct xucred peer;
    socklen_t length = sizeof peer;
    if (getsockopt(fd, SOL_LOCAL, LOCAL_PEERCRED, &peer, &length) < 0) return -errno;
    pid_t pid = 0;
    length = sizeof pid;
    if (getsockopt(fd, SOL_LOCAL, LOCAL_PEERPID, &pid, &length) < 0) pid = 0;
    credentials->uid = peer.cr_uid;
    credentials->gid = peer.cr_ngroups > 0 ? peer.cr_groups[0] : (uint32_t)-1;
    credentials->pid = pid;
    return 0;
}

static int prepared(int fd) {
    if (fd < 0) return -errno;
    int result = csockets_prepare(fd);
    if (result < 0) close(fd);
    return result < 0 ? result : fd;
}

int csockets_open(int family) { return prepared(socket(family, SOCK_STREAM, 0)); }

int csockets_accept(int listener) { return prepared(accept(listener, NULL, NULL)); }

int csockets_pipe(int ends[2]) {
    if (pipe(ends) < 0) return -errno;
    for (int i = 0; i < 2; i++) {
        int result = csockets_prepare(ends[i]);
        if (result < 0) {
            close(ends[0]);
            close(ends[1]);
            return result;
        }
    }
    return 0;
}

#endif
