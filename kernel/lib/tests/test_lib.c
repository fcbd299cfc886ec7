/*
 * The library as it was compiled for the kernel, which is not how the host compiles it: a few cases
 * of each part. The many are in tests/unit/test_lib.c.
 */
#include "debug/ktest.h"
#include "lib/bits.h"
#include "lib/cobs.h"
#include "lib/crc32.h"
#include "lib/printf.h"
#include "lib/string.h"

KTEST(lib, format)
{
    char text[64];
    size_t n = format(text, sizeof(text), "%5d|%-5u|%05x|%.3s|%lu|%c%%", -42, 7u, 0xabcu, "kernel",
                      UINT64_MAX, 'k');
    const char *expected = "  -42|7    |00abc|ker|18446744073709551615|k%";
    KTEST_CHECK(!strcmp(text, expected), "%s", text);
    KTEST_CHECK(n == strlen(text), "%lu", n);
    n = format(text, 8, "%s", "longer than that");
    KTEST_CHECK(n == 16 && !strcmp(text, "longer "), "%lu: %s", n, text);
    text[0] = 'x';
    KTEST_CHECK(format(text, 0, "abc") == 3 && text[0] == 'x', "%s", text);
}

KTEST(lib, crc32)
{
    KTEST_CHECK(crc32(0, "123456789", 9) == 0xcbf43926, "0x%x", crc32(0, "123456789", 9));
    KTEST_CHECK(crc32(crc32(0, "1234", 4), "56789", 5) == 0xcbf43926, "in two parts");
    KTEST_CHECK(crc32(0, "", 0) == 0, "of nothing");
}

KTEST(lib, cobs)
{
    u8 plain[300], coded[COBS_MAX(sizeof(plain))];
    for (size_t n = 0; n <= sizeof(plain); n++) {
        for (size_t i = 0; i < n; i++)
            plain[i] = (u8)(i % 3 && n % 2 ? i : i % 256 ? 1 : 0);
        size_t len = cobs_encode(coded, plain, n);
        KTEST_CHECK(len <= COBS_MAX(n), "%lu bytes became %lu", n, len);
        for (size_t i = 0; i < len; i++)
            KTEST_CHECK(coded[i], "%lu bytes: zero at %lu", n, i);
        long back = cobs_decode(coded, len);
        KTEST_CHECK(back == (long)n && !memcmp(coded, plain, n), "%lu bytes came back as %ld", n,
                    back);
    }
    u8 bad[] = {5, 1, 2};
    KTEST_CHECK(cobs_decode(bad, sizeof(bad)) == -1, "a run past the end");
}

/* Every small distance and length, with the bytes around unharmed. */
KTEST(lib, memmove)
{
    u8 bytes[96], expected[96];
    for (size_t from = 8; from < 40; from += 3)
        for (size_t to = 8; to < 40; to++)
            for (size_t n = 0; n < 40; n += 5) {
                for (size_t i = 0; i < sizeof(bytes); i++)
                    bytes[i] = expected[i] = (u8)(i * 7 + 1);
                for (size_t i = 0; i < n; i++)
                    expected[to + i] = (u8)((from + i) * 7 + 1);
                memmove(bytes + to, bytes + from, n);
                KTEST_CHECK(!memcmp(bytes, expected, sizeof(bytes)), "%lu bytes from %lu to %lu", n,
                            from, to);
            }
}

KTEST(lib, memset)
{
    u8 bytes[200];
    for (size_t n = 0; n < 180; n++) {
        for (size_t i = 0; i < sizeof(bytes); i++)
            bytes[i] = 0x11;
        memset(bytes + 3, 0x1e5, n);
        size_t wrong = 0;
        for (size_t i = 0; i < sizeof(bytes); i++)
            wrong += bytes[i] != (i >= 3 && i < 3 + n ? 0xe5 : 0x11);
        KTEST_CHECK(!wrong, "%lu bytes: %lu wrong", n, wrong);
    }
}

KTEST(lib, strings)
{
    char text[4];
    u64 value = 99;
    KTEST_CHECK(string_copy(text, "kernel", sizeof(text)) == 3 && !strcmp(text, "ker"), "%s", text);
    KTEST_CHECK(strcmp("a", "b") < 0 && strcmp("b", "a") > 0 && strcmp("\xff", "a") > 0, "strcmp");
    KTEST_CHECK(!strncmp("abc", "abd", 2) && strncmp("abc", "abd", 3) < 0, "strncmp");
    KTEST_CHECK(*strchr("abc", 'b') == 'b' && !strchr("abc", 'x') && !*strchr("abc", 0), "strchr");
    KTEST_CHECK(string_parse_u64("0x10", &value) && value == 16, "%lu", value);
    KTEST_CHECK(string_parse_u64("3G", &value) && value == 3ull << 30, "%lu", value);
    KTEST_CHECK(!string_parse_u64("12k", &value) && value == 3ull << 30, "%lu", value);
    KTEST_CHECK(bits_count(0) == 0 && bits_count(UINT64_MAX) == 64 && bits_count(5) == 2, "bits");
}
