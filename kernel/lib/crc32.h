/* CRC-32 (IEEE 802.3, reflected, as zlib's crc32). */
#pragma once
#include "lib/types.h"

/* Continues a checksum over n more bytes; start with 0. */
u32 crc32(u32 crc, const void *data, size_t n);
