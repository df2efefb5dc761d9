// How every function here ends: with what the call gave, or its errno, negated.
#include <errno.h>

#define RESULT(expression)                    \
    do {                                         \
        __typeof__(expression) r = (expression); \
        return r < 0 ? -errno : r;            \
    } while (0)
