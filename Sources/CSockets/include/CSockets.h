/// Calls of NBDServer that Swift cannot import (`accept4`, `pipe2`), or that are the same everywhere only from here. Every function gives a
/// result of 0 or more, or a negated errno. All descriptors that they make or prepare never wait, and are closed by exec.
#ifndef SWIFT_NBD_CSOCKETS_H
#define SWIFT_NBD_CSOCKETS_H

#include <stdint.h>

/// A stream socket of this address family (AF_…).
int csockets_open(int family);
/// The next client of a listening socket.
int csockets_accept(int listener);
/// `ends[0]` is for reading, `ends[1]` for writing.
int csockets_pipe(int ends[2]);
/// For a descriptor that somebody else has made. What "never waits" says is shared with whoever has the same socket.
int csockets_prepare(int fd);

struct csockets_credentials {
    uint32_t uid;
    uint32_t gid;
    int32_t pid;
};
/// Who has connected to this Unix socket, or had when it did.
int csockets_peer_credentials(int fd, struct csockets_credentials *credentials);

#endif
