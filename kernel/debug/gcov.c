/*
 * Only in a kernel that counts what runs in it (COVERAGE=1 in scripts/kernel.mk): tells the host where
 * the counters are. It reads them out of guest RAM, so nothing here ever runs; see
 * host/kos/coverage.py.
 */
#include "lib/types.h"

struct gcov_table {
    const void *begin, *end; /* pointers to gcc's struct gcov_info, one for each source file */
    const u8 *build_id;
};

extern const void *const gcov_info_begin[], *const gcov_info_end[];
extern const u8 build_id_note[];
void __gcov_merge_add(void);

const struct gcov_table gcov_table = {gcov_info_begin, gcov_info_end, build_id_note + 16};

/* The compiler's descriptions name this function, for a program that adds to its own files. */
void __gcov_merge_add(void)
{
}
