#include "CCompression.h"

#include <limits.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

/// A cluster has at most 2 MiB, so no honest frame needs a window of more; the compressor may round up.
enum { ZSTD_WINDOW_LOG_LIMIT = 23, DEFLATE_WINDOW_BITS = 12, DEFLATE_MEMORY_LEVEL = 9 };

static int inflate_all(const void *input, size_t input_size, void *output, size_t output_size) {
    z_stream stream;
    memset(&stream, 0, sizeof stream);
    if (input_size > UINT_MAX || output_size > UINT_MAX || inflateInit2(&stream, -MAX_WBITS) != Z_OK) return -1;
    stream.next_in = (Bytef *)(uintptr_t)input;
    stream.avail_in = (uInt)input_size;
    stream.next_out = output;
    stream.avail_out = (uInt)output_size;
    int result = inflate(&stream, Z_FINISH);
    inflateEnd(&stream);
    // Z_BUF_ERROR with a full buffer: there was more to come than a cluster, of which we want the first only.
    return (result == Z_STREAM_END || result == Z_BUF_ERROR) && stream.avail_out == 0 ? 0 : -1;
}

static int zstd_all(const void *input, size_t input_size, void *output, size_t output_size) {
    ZSTD_DCtx *context = ZSTD_createDCtx();
    if (!context) return -1;
    int result = -1;
    ZSTD_inBuffer in = {input, input_size, 0};
    ZSTD_outBuffer out = {output, output_size, 0};
    if (!ZSTD_isError(ZSTD_DCtx_setParameter(context, ZSTD_d_windowLogMax, ZSTD_WINDOW_LOG_LIMIT))) {
        for (;;) {
            size_t before_in = in.pos, before_out = out.pos;
            size_t hint = ZSTD_decompressStream(context, &out, &in);
            if (ZSTD_isError(hint)) break;
            if (out.pos == out.size) {
                result = 0;
                break;
            }
            if (in.pos == before_in && out.pos == before_out) break;
        }
    }
    ZSTD_freeDCtx(context);
    return result;
}

int ccompression_expand(enum ccompression_kind kind, const void *input, size_t input_size, void *output, size_t output_size) {
    return kind == CCOMPRESSION_ZSTD ? zstd_all(input, input_size, output, output_size)
                                     : inflate_all(input, input_size, output, output_size);
}

static ptrdiff_t deflate_all(const void *input, size_t input_size, void *output, size_t output_size) {
    z_stream stream;
    memset(&stream, 0, sizeof stream);
    if (input_size > UINT_MAX || output_size > UINT_MAX) return -1;
    if (deflateInit2(&stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -DEFLATE_WINDOW_BITS, DEFLATE_MEMORY_LEVEL, Z_DEFAULT_STRATEGY) != Z_OK)
        return -1;
    stream.next_in = (Bytef *)(uintptr_t)input;
    stream.avail_in = (uInt)input_size;
    stream.next_out = output;
    stream.avail_out = (uInt)output_size;
    int result = deflate(&stream, Z_FINISH);
    ptrdiff_t written = (ptrdiff_t)(output_size - stream.avail_out);
    deflateEnd(&stream);
    return result == Z_STREAM_END ? written : 0;
}

ptrdiff_t ccompression_shrink(enum ccompression_kind kind, const void *input, size_t input_size, void *output, size_t output_size) {
    if (kind == CCOMPRESSION_DEFLATE) return deflate_all(input, input_size, output, output_size);
    size_t written = ZSTD_compress(output, output_size, input, input_size, ZSTD_CLEVEL_DEFAULT);
    return ZSTD_isError(written) ? 0 : (ptrdiff_t)written;
}
