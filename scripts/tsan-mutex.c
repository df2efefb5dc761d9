// Tells the thread sanitizer what it cannot see: Swift's Mutex, when it is contended, locks and unlocks in a library that is not instrumented
// (libswiftSynchronization, Linux), and every use of what it guards looks like a race. To be preloaded into a program built with
// `--sanitize thread`; `./run test --sanitize=thread` does.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>

__attribute__((weak)) void __tsan_acquire(void *address);
__attribute__((weak)) void __tsan_release(void *address);

#define SWIFT __attribute__((swiftcall))
#define SELF __attribute__((swift_context)) void *

// Synchronization._MutexHandle._lockSlow(UInt32) and _unlockSlow()
#define LOCK "$s15Synchronization12_MutexHandleV9_lockSlowyys6UInt32VF"
#define UNLOCK "$s15Synchronization12_MutexHandleV11_unlockSlowyyF"

SWIFT void lock(uint32_t thread, SELF self) __asm__(LOCK);
SWIFT void unlock(SELF self) __asm__(UNLOCK);

SWIFT void lock(uint32_t thread, SELF self) {
    static SWIFT void (*real)(uint32_t, SELF);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, LOCK);
    real(thread, self);
    if (__tsan_acquire) __tsan_acquire(self);
}

SWIFT void unlock(SELF self) {
    static SWIFT void (*real)(SELF);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, UNLOCK);
    if (__tsan_release) __tsan_release(self);
    real(self);
}
