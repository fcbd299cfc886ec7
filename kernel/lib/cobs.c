/* See cobs.h. A code byte c says: c-1 bytes follow as they are, then a zero unless c is 255. */
#include "lib/cobs.h"

size_t cobs_encode(u8 *dst, const u8 *src, size_t n)
{
    size_t code = 0, out = 1;
    for (size_t i = 0; i < n; i++) {
        if (src[i])
            dst[out++] = src[i];
        if (!src[i] || out - code == 255) {
            dst[code] = (u8)(out - code);
            code = out++;
        }
    }
    dst[code] = (u8)(out - code);
    return out;
}

long cobs_decode(u8 *buf, size_t n)
{
    size_t in = 0, out = 0;
    while (in < n) {
        size_t run = buf[in++];
        if (!run || run - 1 > n - in)
            return -1;
        for (size_t i = 1; i < run; i++) {
            if (!buf[in])
                return -1;
            buf[out++] = buf[in++];
        }
        if (run < 255 && in < n)
            buf[out++] = 0;
    }
    return (long)out;
}
