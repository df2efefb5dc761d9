/// The two compressors of qcow2, zlib and zstd, one call each way: both libraries are used through macros and structures that Swift cannot
/// see. Nothing is kept between calls.
#ifndef SWIFT_NBD_CCOMPRESSION_H
#define SWIFT_NBD_CCOMPRESSION_H

#include <stddef.h>
#include <stdint.h>

enum ccompression_kind { CCOMPRESSION_DEFLATE, CCOMPRESSION_ZSTD };

/// Fills all of `output` from the front of `input`; what follows there is ignored. 0, or -1 when the input is damaged, ends too early, or
/// wants more memory than a cluster can need (zstd's window is limited to 8 MiB).
int ccompression_expand(enum ccompression_kind kind, const void *input, size_t input_size, void *output, size_t output_size);

/// Compresses all of `input`. The number of bytes written, or 0 when they do not fit in `output`, or -1 when there is no memory.
/// Deflate is raw, with a window of 4 KiB as other readers of qcow2 expect; zstd is one frame.
ptrdiff_t ccompression_shrink(enum ccompression_kind kind, const void *input, size_t input_size, void *output, size_t output_size);

#endif
