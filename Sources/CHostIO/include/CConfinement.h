/// Landlock: from some moment on, this process reaches no files but those below a few paths. Linux 5.13 and later; see landlock(7). The numbers
/// are those of include/uapi/linux/landlock.h, which some C libraries' headers lack.
#ifndef SWIFT_NBD_CCONFINEMENT_H
#define SWIFT_NBD_CCONFINEMENT_H

#include <stdbool.h>
#include <stdint.h>

enum {
    CHOSTIO_MAY_WRITE_FILE = 1 << 1,
    CHOSTIO_MAY_READ_FILE = 1 << 2,
    CHOSTIO_MAY_READ_DIRECTORY = 1 << 3,
    CHOSTIO_MAY_REMOVE_DIRECTORY = 1 << 4,
    CHOSTIO_MAY_REMOVE_FILE = 1 << 5,
};

/// Which version of Landlock the kernel has: 1 and up. -ENOSYS, -EOPNOTSUPP: none.
int chostio_landlock_version(void);
/// A descriptor for rules that allow nothing yet: no access to files, and no TCP socket that is bound or connected (version 4).
/// - keeps_signals: with version 6, processes outside may still be signalled, and abstract sockets outside be reached.
int chostio_landlock_begin(bool keeps_signals);
/// Allows something below a path, which must be there.
int chostio_landlock_allow(int rules, const char *path, uint32_t may);
/// Puts the calling thread under the rules, for good, and all that it starts: threads and processes. They gain no privileges by exec any more.
int chostio_landlock_confine_thread(int rules);
/// Puts every thread of the process under the rules. Call it once, from one thread. Gives the number of threads. -ETIMEDOUT: a thread did not
/// answer within seconds, and some are confined while others are not: end the process.
///
/// Files of /proc may still be read, as libdispatch must; the kernel keeps what is secret there from a confined process: it may not trace one
/// outside (environment, memory, maps), and files behind the links there are judged by where they are. Capabilities that would open these
/// are given up: CAP_SYS_RAWIO, CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_SYSLOG, CAP_PERFMON.
int chostio_landlock_confine_process(int rules);

/// Makes every thread of the process this user and group, with no other group, where it is not yet. Linux; elsewhere nothing is left to do.
/// For use after the C library's calls, which leave out a thread that has ended itself while its process lives on: as the main thread of a
/// Swift program does. Gives the number of threads.
int chostio_become(uint32_t user, uint32_t group);

#endif
