/*
 * Console commands that make calls, as the console's client: call makes any, alloc and free are short
 * for buddy_alloc and buddy_free and say in words why something was refused.
 *
 * Runs on the boot CPU's loop only, so that the one buffer for data needs no lock.
 */
#include "console/command.h"
#include "lib/errno.h"
#include "lib/printf.h"
#include "lib/string.h"
#include "mm/pages.h"
#include "mm/zone.h"
#include "rpc/calls.h"

#define DATA_BYTES 4096

static u8 data[DATA_BYTES] __attribute__((aligned(8)));

static void serve(struct rpc_entry *e, struct rpc_completion *c)
{
    e->client = CLIENT_CONSOLE;
    e->data_cap = DATA_BYTES;
    call_serve(client_get(CLIENT_CONSOLE), e, data, false, c);
}

/* ---- the words of `call` ---- */

static bool parse_args(const struct call_desc *d, int n, char **words, struct rpc_entry *e)
{
    char what[64];
    for (u32 i = 0; i < call_arg_count(d); i++) {
        const struct call_value *v = &d->args[i];
        if ((int)i >= n) {
            cprintf("'%s': expected <%s> (%s), %s\n", d->name, v->name, call_type_name(v->type),
                    v->doc);
            return false;
        }
        format(what, sizeof(what), "%s (%s)", v->name, call_type_name(v->type));
        u64 max = v->type == CALL_TYPE_u32 ? UINT32_MAX : UINT64_MAX;
        if (!command_number(words[i], what, 0, max, &e->arg[i]))
            return false;
    }
    return true;
}

static bool parse_numbers(int n, char **words, struct rpc_entry *e)
{
    for (int i = 0; i < n; i++)
        if (!command_number(words[i], "data", 0, UINT64_MAX, (u64 *)data + i))
            return false;
    e->data_len = (u32)n * 8;
    return true;
}

/* What follows the arguments; more words than the console splits a line into would be cut off. */
static bool parse_data(const struct call_desc *d, int n, char **words, bool cut,
                       struct rpc_entry *e)
{
    if (n && (cut || d->in == CALL_NONE))
        return !command_expected(cut ? words[n - 1] : words[0], "the end of the line");
    if (d->in == CALL_U64S)
        return parse_numbers(n, words, e);
    if (d->in != CALL_NONE)
        e->data_len = (u32)command_join((char *)data, sizeof(data), n, words);
    return true;
}

/* ---- what came back ---- */

static const char *error_name(s32 status)
{
    static const struct {
        int number;
        const char *name;
    } names[] = {
        {EPERM, "EPERM"},   {ENOENT, "ENOENT"},     {ENXIO, "ENXIO"},         {E2BIG, "E2BIG"},
        {EBADF, "EBADF"},   {EAGAIN, "EAGAIN"},     {ENOMEM, "ENOMEM"},       {EACCES, "EACCES"},
        {EFAULT, "EFAULT"}, {EBUSY, "EBUSY"},       {EEXIST, "EEXIST"},       {ENODEV, "ENODEV"},
        {EINVAL, "EINVAL"}, {ENFILE, "ENFILE"},     {ENOSPC, "ENOSPC"},       {ERANGE, "ERANGE"},
        {ENOSYS, "ENOSYS"}, {EMSGSIZE, "EMSGSIZE"}, {EOVERFLOW, "EOVERFLOW"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        if (names[i].number == -status)
            return names[i].name;
    return "?";
}

/* An address of 0 is none; a failed call's results are shown when it set them. */
static bool print_result(const struct call_value *v, u64 value, bool failed)
{
    bool is_address = v->type == CALL_TYPE_paddr || v->type == CALL_TYPE_vaddr;
    if (!v->type || (!value && (failed || is_address)))
        return false;
    cprintf(is_address ? "%s 0x%lx\n" : "%s %lu\n", v->name, value);
    return true;
}

static void print_text(const char *text, u32 n)
{
    for (u32 at = 0; at < n; at += 256)
        cprintf("%.*s", (int)MIN(n - at, 256u), text + at);
    if (text[n - 1] != '\n')
        cprintf("\n");
}

static void print_hex(const u8 *bytes, u32 len)
{
    for (u32 at = 0; at < len; at += 16) {
        char hex[16 * 3 + 2], text[16];
        int n = (int)MIN(len - at, 16u), h = 0;
        for (int i = 0; i < n; i++) {
            u8 b = bytes[at + (u32)i];
            h += (int)format(hex + h, sizeof(hex) - (size_t)h, "%s%02x", i == 8 ? "  " : " ", b);
            text[i] = b >= ' ' && b <= '~' ? (char)b : '.';
        }
        cprintf("%04x %-49s  |%.*s|\n", at, hex, n, text);
    }
}

static void print_data(const struct call_desc *d, u32 n)
{
    if (d->out == CALL_TEXT) {
        print_text((const char *)data, n);
    } else if (d->out == CALL_U64S) {
        for (u32 i = 0; i < n / 8; i++)
            cprintf("0x%lx\n", ((const u64 *)data)[i]);
    } else {
        if (d->out == CALL_STRUCT)
            cprintf("struct %s, %u bytes\n", d->out_struct, n);
        print_hex(data, n);
    }
}

static void print_completion(const struct call_desc *d, const struct rpc_completion *c)
{
    bool said = c->data_len > 0;
    if (c->status)
        cprintf("%d %s\n", c->status, error_name(c->status));
    for (u32 i = 0; i < ARRAY_SIZE(d->results); i++)
        said |= print_result(&d->results[i], c->result[i], c->status);
    if (c->data_len)
        print_data(d, c->data_len);
    if (!said && !c->status)
        cprintf("ok\n");
}

COMMAND(call, "<name> [argument...]", "makes a call; 'calls' lists them")
{
    struct rpc_completion c;
    if (argc < 2)
        return false;
    const struct call_desc *d = call_by_name(argv[1]);
    if (!d)
        return command_expected(argv[1], "the name of a call; 'calls' lists them");
    struct rpc_entry e = {.op = (u16)d->number};
    int args = (int)call_arg_count(d);
    if (!parse_args(d, argc - 2, argv + 2, &e) ||
        !parse_data(d, argc - 2 - args, argv + 2 + args, argc == COMMAND_WORDS, &e))
        return true;
    serve(&e, &c);
    print_completion(d, &c);
    return true;
}

/* ---- alloc, free ---- */

/* Frames that are kept for the kernel's own needs. */
static u64 reserve(void)
{
    u64 frames = 0;
    for (int i = 0; i < NR_ZONES; i++)
        frames += zones[i].watermark_min;
    return frames;
}

COMMAND(alloc, "<order>", "takes a block of 2^order frames")
{
    struct rpc_entry e = {.op = (u16)call_by_name("buddy_alloc")->number};
    struct rpc_completion c;
    if (argc < 2)
        return false;
    if (command_extra(argc, argv, 1) ||
        !command_number(argv[1], "an order", 0, MAX_ORDER, &e.arg[0]))
        return true;
    serve(&e, &c);
    if (c.status)
        cprintf("refused: no block of order %lu; %lu frames are free, %lu kept in reserve\n",
                e.arg[0], pages_free_count(), reserve());
    else
        cprintf("0x%lx, order %lu, %lu KiB\n", c.result[0], e.arg[0], 4ul << e.arg[0]);
    return true;
}

/* Why a live block cannot be given back by the console's client. */
static void explain_live(char *buf, size_t cap, u64 addr, const struct page_where *w, u64 order)
{
    const struct page *p = page_at(w->block);
    const struct client *owner = client_get(p->owner);
    char name[CLIENT_NAME];
    if (pfn_of(addr) != w->block)
        format(buf, cap, "it is inside the block of order %u at 0x%lx", w->order,
               paddr_of(w->block));
    else if (p->kind != PAGE_CLIENT || !owner)
        format(buf, cap, "it belongs to the kernel");
    else if (p->owner != CLIENT_CONSOLE) {
        client_name_format(owner, name);
        format(buf, cap, "it belongs to client %u, %s", p->owner, name);
    } else if (p->order != order)
        format(buf, cap, "its order is %u, not %lu", w->order, order);
    else if (p->flags & (PG_LOCKED | PG_MAPPED))
        format(buf, cap, "it is %s", p->flags & PG_MAPPED ? "mapped" : "locked");
    else
        format(buf, cap, "it has %u references", p->refs);
}

static void explain(char *buf, size_t cap, u64 addr, u64 order)
{
    struct page_where w = page_find(pfn_of(addr));
    if (w.place == PLACE_NOT_RAM)
        format(buf, cap, "it is not RAM");
    else if (addr % paddr_of(1))
        format(buf, cap, "it is not the start of a frame, a multiple of 4096");
    else if (w.place == PLACE_RESERVED)
        format(buf, cap, "it is reserved for the kernel");
    else if (w.place == PLACE_LIVE)
        explain_live(buf, cap, addr, &w, order);
    else
        format(buf, cap, "it is free already");
}

COMMAND(free, "<addr> <order>", "gives a block back")
{
    struct rpc_entry e = {.op = (u16)call_by_name("buddy_free")->number};
    struct rpc_completion c;
    char why[96];
    if (argc < 3)
        return false;
    if (command_extra(argc, argv, 2) ||
        !command_number(argv[1], "an address", 0, UINT64_MAX, &e.arg[0]) ||
        !command_number(argv[2], "an order", 0, MAX_ORDER, &e.arg[1]))
        return true;
    serve(&e, &c);
    if (!c.status) {
        cprintf("freed 0x%lx, order %lu\n", e.arg[0], e.arg[1]);
        return true;
    }
    explain(why, sizeof(why), e.arg[0], e.arg[1]);
    cprintf("refused: 0x%lx: %s\n", e.arg[0], why);
    return true;
}
