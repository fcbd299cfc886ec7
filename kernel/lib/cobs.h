/*
 * Consistent Overhead Byte Stuffing: turns any bytes into bytes without a zero, so that a zero can
 * end a frame and a reader that joins anywhere is in step after the next one.
 */
#pragma once
#include "lib/types.h"

#define COBS_MAX(n) ((n) + (n) / 254 + 1)

/* Encodes n bytes into dst, which holds COBS_MAX(n); returns the encoded length. */
size_t cobs_encode(u8 *dst, const u8 *src, size_t n);

/*
 * Decodes n bytes in place (the result is never longer). Returns the decoded length, or -1 when the
 * bytes are no encoding: a zero inside, or a run that goes past the end.
 */
long cobs_decode(u8 *buf, size_t n);
