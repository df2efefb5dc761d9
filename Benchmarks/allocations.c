// Counts heap allocations: loaded before everything else (LD_PRELOAD) into a server whose allocations per request are to be known.
//
// Writes to the file $ALLOCATIONS.PID, which others map or read while the process runs: five 64-bit counters, in the byte order of the
// machine: malloc, calloc, realloc, aligned (posix_memalign, aligned_alloc, memalign), free. Linux with glibc.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

// glibc's own names. dlsym(RTLD_NEXT) would allocate before there is anything to allocate with.
extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

enum { MALLOC, CALLOC, REALLOC, ALIGNED, FREE, COUNTERS };

static _Atomic uint64_t early[COUNTERS];  // until the file is there, and in processes without one
static _Atomic uint64_t *_Atomic counters = early;

// Relaxed: totals are wanted, no order among them.
static void count(int which) { atomic_fetch_add_explicit(&atomic_load_explicit(&counters, memory_order_relaxed)[which], 1, memory_order_relaxed); }

__attribute__((constructor)) static void open_counters(void) {
    const char *name = getenv("ALLOCATIONS");
    char path[4096];
    if (!name || snprintf(path, sizeof path, "%s.%d", name, getpid()) >= (int)sizeof path) return;
    int file = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (file < 0) return;
    if (ftruncate(file, sizeof early) == 0) {
        void *map = mmap(NULL, sizeof early, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (map != MAP_FAILED) atomic_store(&counters, map);
    }
    close(file);
}

void *malloc(size_t size) { return count(MALLOC), __libc_malloc(size); }
void *calloc(size_t number, size_t size) { return count(CALLOC), __libc_calloc(number, size); }
void *realloc(void *old, size_t size) { return count(REALLOC), __libc_realloc(old, size); }
void *memalign(size_t alignment, size_t size) { return count(ALIGNED), __libc_memalign(alignment, size); }
void *aligned_alloc(size_t alignment, size_t size) { return count(ALIGNED), __libc_memalign(alignment, size); }
void free(void *memory) { if (memory) count(FREE), __libc_free(memory); }

int posix_memalign(void **memory, size_t alignment, size_t size) {
    count(ALIGNED);
    if (alignment % sizeof(void *) != 0 || (alignment & (alignment - 1)) != 0 || alignment == 0) return EINVAL;
    void *got = __libc_memalign(alignment, size);
    if (!got) return ENOMEM;
    *memory = got;
    return 0;
}
