/*
 * See ksym.h. Two sorted tables, offsets counted from kernel_start: functions, and the first address
 * of each run of code that comes from one source line. scripts/ksyms.py writes them.
 */
#include "core/ksym.h"
#include "lib/printf.h"

struct ksym_function {
    u32 offset, name;
};
struct ksym_line {
    u32 offset;
    u16 file, line;
};

extern const struct ksym_function ksym_functions[];
extern const struct ksym_line ksym_lines[];
extern const u32 ksym_files[], ksym_function_count, ksym_line_count;
extern const char ksym_strings[];
extern const u8 kernel_start[], text_end[];

bool ksym_is_text(u64 address)
{
    return address >= (u64)kernel_start && address < (u64)text_end;
}

/* The last entry at or below offset in a table of entries that start with their offset. */
static const void *last_below(const void *table, u32 count, u32 size, u32 offset)
{
    u32 low = 0, high = count;
    while (low < high) {
        u32 mid = (low + high) / 2;
        if (*(const u32 *)((const u8 *)table + mid * size) <= offset)
            low = mid + 1;
        else
            high = mid;
    }
    return low ? (const u8 *)table + (low - 1) * size : NULL;
}

void ksym_format(char *buf, size_t cap, u64 address)
{
    u32 offset = (u32)(address - (u64)kernel_start);
    const struct ksym_function *f =
        last_below(ksym_functions, ksym_function_count, sizeof(*f), offset);
    if (!ksym_is_text(address) || !f) {
        format(buf, cap, "0x%lx", address);
        return;
    }
    size_t n = format(buf, cap, "%s+0x%x", ksym_strings + f->name, offset - f->offset);
    const struct ksym_line *l = last_below(ksym_lines, ksym_line_count, sizeof(*l), offset);
    if (l && l->line && n < cap)
        format(buf + n, cap - n, " (%s:%u)", ksym_strings + ksym_files[l->file], l->line);
}
