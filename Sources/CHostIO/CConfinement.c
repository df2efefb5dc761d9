#define _GNU_SOURCE
#include "CConfinement.h"
#include "Result.h"

#if defined(__linux__)

#include <dirent.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define CREATE_RULESET 444
#define ADD_RULE 445
#define RESTRICT_SELF 446

struct ruleset {
    uint64_t files;
    uint64_t network;  // version 4
    uint64_t scoped;   // version 6
};

struct __attribute__((packed)) path_beneath {
    uint64_t allowed;
    int32_t parent;
};

int chostio_landlock_version(void) { RESULT((int)syscall(CREATE_RULESET, NULL, (size_t)0, 1)); }

int chostio_landlock_begin(bool keeps_signals) {
    int version = chostio_landlock_version();
    if (version < 0) return version;
    struct ruleset ruleset = {.files = (1 << 13) - 1};
    if (version >= 2) ruleset.files |= 1 << 13;  // renaming and linking between directories
    if (version >= 3) ruleset.files |= 1 << 14;  // truncating
    if (version >= 5) ruleset.files |= 1 << 15;  // ioctl on devices that are opened later
    size_t size = sizeof ruleset.files;
    if (version >= 4) {
        ruleset.network = 3;
        size = 2 * sizeof ruleset.files;
    }
    if (version >= 6) {
        ruleset.scoped = keeps_signals ? 0 : 3;
        size = sizeof ruleset;
    }
    RESULT((int)syscall(CREATE_RULESET, &ruleset, size, 0));
}

int chostio_landlock_allow(int rules, const char *path, uint32_t may) {
    struct path_beneath rule = {.allowed = may, .parent = open(path, O_PATH | O_CLOEXEC)};
    if (rule.parent < 0) return -errno;
    int result = syscall(ADD_RULE, rules, 1, &rule, 0) < 0 ? -errno : 0;
    close(rule.parent);
    return result;
}

int chostio_landlock_confine_thread(int rules) {
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) return -errno;
    RESULT((int)syscall(RESTRICT_SELF, rules, 0));
}

// --- All threads. The kernel knows threads only, so each has to do it for itself: a signal makes it. SIGSYS, because runtimes that block
// signals leave the synchronous ones alone.

static int (*task)(void);
/// The thread that is waited for, and then its answer: 0 or a negated errno.
static _Atomic int asked;
static _Atomic int answer;

static void obey(int number, siginfo_t *info, void *context) {
    (void)number, (void)info, (void)context;
    int interrupted = errno;
    int self = (int)syscall(SYS_gettid);
    if (atomic_load(&asked) == self) {
        atomic_store(&answer, task());
        atomic_store(&asked, 0);
    }
    errno = interrupted;
}

/// Threads of the kernel in our name (io_uring's) open nothing, and take no signals.
static bool belongs_to_kernel(int thread) {
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", thread);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    ssize_t count = read(fd, text, sizeof text - 1);
    close(fd);
    if (count <= 0) return false;
    text[count] = 0;
    // The name, in parentheses, may have anything in it. Behind it: state, five numbers, flags.
    char *rest = strrchr(text, ')');
    unsigned flags = 0;
    if (!rest || sscanf(rest + 1, " %*c %*d %*d %*d %*d %*d %u", &flags) != 1) return false;
    return flags & (0x10 | 0x4000);  // PF_IO_WORKER, PF_USER_WORKER
}

/// 1: done; 0: the thread is gone, or not one to be asked.
static int ask(int thread) {
    if (belongs_to_kernel(thread)) return 0;
    atomic_store(&asked, thread);
    if (syscall(SYS_tgkill, getpid(), thread, SIGSYS) < 0) return errno == ESRCH ? 0 : -errno;
    for (int waits = 0; waits < 100000; waits++) {  // 5 s
        if (atomic_load(&asked) == 0) return atomic_load(&answer) < 0 ? atomic_load(&answer) : 1;
        if (syscall(SYS_tgkill, getpid(), thread, 0) < 0 && errno == ESRCH) return 0;
        struct timespec pause = {.tv_nsec = 50000};
        nanosleep(&pause, NULL);
    }
    return -ETIMEDOUT;
}

#define THREAD_LIMIT 4096

/// Asks all threads that are not in `done` yet. Gives how many there were.
static int ask_others(DIR *tasks, int *done, int *count) {
    int self = (int)syscall(SYS_gettid), asked_now = 0;
    rewinddir(tasks);
    for (struct dirent *entry; (entry = readdir(tasks));) {
        int thread = atoi(entry->d_name);
        if (thread <= 0 || thread == self) continue;
        bool is_done = false;
        for (int i = 0; i < *count; i++) is_done |= done[i] == thread;
        if (is_done) continue;
        int result = ask(thread);
        if (result < 0) return result;
        if (*count == THREAD_LIMIT) return -EAGAIN;
        done[(*count)++] = thread;
        asked_now++;
    }
    return asked_now;
}

/// Has every thread carry out a task. Gives how many there are.
static int on_all_threads(int (*body)(void)) {
    DIR *tasks = opendir("/proc/self/task");
    if (!tasks) return -errno;
    int *done = calloc(THREAD_LIMIT, sizeof *done), count = 0, result = done ? 0 : -ENOMEM;
    struct sigaction action = {.sa_sigaction = obey, .sa_flags = SA_SIGINFO | SA_RESTART}, before;
    task = body;
    if (result == 0 && sigaction(SIGSYS, &action, &before) < 0) result = -errno;
    if (result == 0) {
        // A thread that has not been asked may start another one meanwhile. Once two looks in a row find no new one, all that there are were
        // asked, and what they start is as they are.
        for (int quiet = 0; quiet < 2 && result >= 0;) {
            result = ask_others(tasks, done, &count);
            quiet = result == 0 ? quiet + 1 : 0;
        }
        // Last of all ourselves: from here on /proc may be out of reach.
        if (result >= 0) result = body();
        sigaction(SIGSYS, &before, NULL);
    }
    free(done);
    closedir(tasks);
    return result < 0 ? result : count + 1;
}

static int rules_of_all;

/// What a server of root goes on to need: its files where modes would keep it out, the pages of a ring, what a file system holds back for root.
/// With most others it could do what Landlock does not forbid, or see other processes and the kernel in files of /proc.
static const int kept[] = {CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_IPC_LOCK, CAP_SYS_RESOURCE};

static int give_up_powers(void) {
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct sets[2];
    if (syscall(SYS_capget, &header, sets) < 0) return -errno;
    uint32_t keep[2] = {0, 0}, had = 0;
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++) keep[CAP_TO_INDEX(kept[i])] |= CAP_TO_MASK(kept[i]);
    for (int i = 0; i < 2; i++) {
        had |= sets[i].permitted & ~keep[i];
        sets[i].effective &= keep[i];
        sets[i].permitted &= keep[i];
        sets[i].inheritable &= keep[i];
    }
    if (!had) return 0;
    RESULT((int)syscall(SYS_capset, &header, sets));
}

static int confine(void) {
    int result = give_up_powers();
    return result < 0 ? result : chostio_landlock_confine_thread(rules_of_all);
}

int chostio_landlock_confine_process(int rules) {
    // libdispatch looks into /proc/THREAD/stat now and then whether its workers run, and ends the process when it cannot.
    int result = chostio_landlock_allow(rules, "/proc", CHOSTIO_MAY_READ_FILE);
    if (result < 0 && result != -ENOENT) return result;
    rules_of_all = rules;
    return on_all_threads(confine);
}

static uint32_t user_of_all, group_of_all;

/// The kernel's own calls, which are about the calling thread alone.
static int become(void) {
    unsigned u[3], g[3];
    if (syscall(SYS_getresuid, &u[0], &u[1], &u[2]) < 0 || syscall(SYS_getresgid, &g[0], &g[1], &g[2]) < 0) return -errno;
    bool is_done = true;
    for (int i = 0; i < 3; i++) is_done &= u[i] == user_of_all && g[i] == group_of_all;
    if (is_done) return 0;
    gid_t group = group_of_all;
    if (syscall(SYS_setgroups, (size_t)1, &group) < 0) return -errno;
    if (syscall(SYS_setresgid, group_of_all, group_of_all, group_of_all) < 0) return -errno;
    if (syscall(SYS_setresuid, user_of_all, user_of_all, user_of_all) < 0) return -errno;
    return 0;
}

int chostio_become(uint32_t user, uint32_t group) {
    user_of_all = user;
    group_of_all = group;
    return on_all_threads(become);
}

#else

int chostio_landlock_version(void) { return -ENOSYS; }
int chostio_landlock_begin(bool keeps_signals) { (void)keeps_signals; return -ENOSYS; }
int chostio_landlock_allow(int rules, const char *path, uint32_t may) { (void)rules, (void)path, (void)may; return -ENOSYS; }
int chostio_landlock_confine_thread(int rules) { (void)rules; return -ENOSYS; }
int chostio_landlock_confine_process(int rules) { (void)rules; return -ENOSYS; }
int chostio_become(uint32_t user, uint32_t group) { (void)user, (void)group; return 0; }

#endif
