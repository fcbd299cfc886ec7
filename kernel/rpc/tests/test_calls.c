/*
 * Serving of entries: every way in which one can be wrong, for every call there is, and the memory
 * calls with good and bad arguments. The client is one that exists only here.
 */
#include "rpc/calls.h"
#include "x86_64/paging.h"
#include "lib/errno.h"
#include "lib/string.h"
#include "mm/pages.h"
#include "mm/tests/mmtest.h"

#define BYTES 4096
#define TAG   0x7a6b5c4d
#define FILL  0x5a

static struct client tester;
static u64 data[BYTES / 8];
static struct rpc_completion done;

static struct rpc_entry entry(u16 op, u64 arg0, u64 arg1)
{
    return (struct rpc_entry){.op = op, .tag = TAG, .arg = {arg0, arg1}, .data_cap = BYTES};
}

/* Serves one entry; the completion is in `done`. */
static int serve(struct ktest *t, const struct rpc_entry *e, bool wire)
{
    u64 calls = tester.calls, refused = tester.refused;
    memset(&done, FILL, sizeof(done));
    call_serve(&tester, e, data, wire, &done);
    KTEST_CHECK(done.tag == TAG && !done.reserved, "call %u: tag 0x%x", e->op, done.tag);
    KTEST_CHECK(done.data_len <= e->data_cap, "call %u: %u bytes, room for %u", e->op,
                done.data_len, e->data_cap);
    KTEST_CHECK(tester.calls == calls + 1 && tester.refused == refused + (done.status < 0),
                "call %u: %lu calls, %lu refused", e->op, tester.calls, tester.refused);
    return done.status;
}

/* A call by name, over a ring. */
static int call(struct ktest *t, const char *name, u64 arg0, u64 arg1, u32 len)
{
    struct rpc_entry e = entry((u16)call_by_name(name)->number, arg0, arg1);
    e.data_len = len;
    return serve(t, &e, false);
}

static void expect(struct ktest *t, const struct rpc_entry *e, bool wire, int status,
                   const char *what)
{
    int got = serve(t, e, wire);
    KTEST_CHECK(got == status, "call %u, %s: %d, expected %d", e->op, what, got, status);
    KTEST_CHECK(!done.result[0] && !done.result[1] && !done.data_len, "call %u, %s: an answer",
                e->op, what);
}

static void tester_init(void)
{
    tester = (struct client){.open = true, .owner.id = MMTEST_OWNER};
    memset(data, FILL, sizeof(data));
}

static void check_untouched(struct ktest *t, const char *what)
{
    for (u32 i = 0; i < sizeof(data); i++)
        if (((u8 *)data)[i] != FILL) {
            KTEST_CHECK(false, "%s: byte %u was written", what, i);
            return;
        }
}

static void tester_end(struct ktest *t)
{
    KTEST_CHECK(!tester.owner.blocks && !tester.rings, "%lu blocks, %u rings", tester.owner.blocks,
                tester.rings);
    owned_release_all(&tester.owner);
}

MM_TEST(calls, unknown_numbers)
{
    tester_init();
    for (u32 op = 0; op < 65536; op += op < 512 ? 1 : 997) {
        struct rpc_entry e = entry((u16)op, 0, 0);
        if (!call_by_number(op))
            expect(t, &e, op & 1, -ENOSYS, "unknown");
    }
    struct rpc_entry e = entry(UINT16_MAX, 0, 0);
    expect(t, &e, true, -ENOSYS, "unknown");
    KTEST_CHECK(!call_by_number(UINT32_MAX) && !call_by_number(65536 + 1), "beyond 16 bits");
    check_untouched(t, "unknown");
    tester_end(t);
}

MM_TEST(calls, table)
{
    u64 seen = 0;
    for (const struct call_desc *d = calls_begin; d < calls_end; d++) {
        KTEST_CHECK(d->number && d->number < CALL_NUMBERS && !(seen >> d->number & 1),
                    "%s: number %u", d->name, d->number);
        seen |= 1ull << d->number;
        KTEST_CHECK(call_by_number(d->number) == d && call_by_name(d->name) == d, "%s", d->name);
        KTEST_CHECK(d->handler && d->doc[0], "%s", d->name);
    }
    KTEST_CHECK(!call_by_name("") && !call_by_name("pin") && !call_by_name("pingg"), "names");
}

MM_TEST(calls, arguments_too_many_or_too_large)
{
    static const u64 extra[] = {1, 1ull << 31, 1ull << 32, 1ull << 63, UINT64_MAX};
    tester_init();
    for (const struct call_desc *d = calls_begin; d < calls_end; d++)
        for (u32 i = 0; i < RPC_ARGS; i++)
            for (u32 k = 0; k < ARRAY_SIZE(extra); k++) {
                struct rpc_entry e = entry((u16)d->number, 0, 0);
                e.arg[i] = extra[k];
                if (d->args[i].type == CALL_TYPE_u32 ? extra[k] > UINT32_MAX : !d->args[i].type)
                    expect(t, &e, true, -EINVAL, "argument");
            }
    check_untouched(t, "arguments");
    tester_end(t);
}

MM_TEST(calls, data_where_none_is_taken)
{
    tester_init();
    for (const struct call_desc *d = calls_begin; d < calls_end; d++) {
        struct rpc_entry e = entry((u16)d->number, 0, 0);
        e.data_len = 1;
        if (d->in == CALL_NONE)
            expect(t, &e, true, -EINVAL, "data");
        for (e.data_len = 1; d->in == CALL_U64S && e.data_len < 24; e.data_len++)
            if (e.data_len % 8)
                expect(t, &e, true, -EINVAL, "part of a number");
    }
    check_untouched(t, "data");
    tester_end(t);
}

MM_TEST(calls, wire_only)
{
    u32 wire_calls = 0;
    tester_init();
    for (const struct call_desc *d = calls_begin; d < calls_end; d++) {
        struct rpc_entry e = entry((u16)d->number, 0, 0);
        if (d->scope != CALL_WIRE)
            continue;
        wire_calls++;
        expect(t, &e, false, -EPERM, "over a ring");
    }
    KTEST_CHECK(wire_calls >= 4, "%u", wire_calls);
    tester_end(t);
}

MM_TEST(calls, no_room_for_the_answer)
{
    tester_init();
    for (const struct call_desc *d = calls_begin; d < calls_end; d++) {
        struct rpc_entry e = entry((u16)d->number, 0, 0);
        if (d->out != CALL_STRUCT)
            continue;
        for (u32 i = 1; i < call_arg_count(d); i++)
            e.arg[i] = 1;
        e.data_cap = 0;
        expect(t, &e, true, -EMSGSIZE, "no room");
        check_untouched(t, d->name);
        e.data_cap = BYTES;
        int status = serve(t, &e, true);
        u32 need = done.data_len;
        KTEST_CHECK(!status && need, "%s: %d", d->name, status);
        memset(data, FILL, sizeof(data));
        e.data_cap = need - 1;
        expect(t, &e, true, -EMSGSIZE, "a byte too little");
        check_untouched(t, d->name);
        e.data_cap = need;
        KTEST_CHECK(!serve(t, &e, true) && done.data_len == need, "%s: exact room", d->name);
        memset(data, FILL, sizeof(data));
    }
    tester_end(t);
}

MM_TEST(calls, ping_and_echo)
{
    tester_init();
    KTEST_CHECK(!call(t, "ping", UINT64_MAX, 0, 0) && done.result[0] == UINT64_MAX, "0x%lx",
                done.result[0]);
    for (u32 n = 0; n <= BYTES; n += n < 10 ? 1 : 681)
        KTEST_CHECK(!call(t, "echo", 0, 0, n) && done.data_len == n, "%u bytes, %u came back", n,
                    done.data_len);
    struct rpc_entry e = entry((u16)call_by_name("echo")->number, 0, 0);
    e.data_len = 9;
    e.data_cap = 8;
    expect(t, &e, false, -EMSGSIZE, "no room");
    tester_end(t);
}

MM_TEST(calls, indices_out_of_range)
{
    static const char *const names[] = {"cpu_info", "zone_info", "client_info", "test_name",
                                        "test_run"};
    tester_init();
    for (u32 i = 0; i < ARRAY_SIZE(names); i++) {
        KTEST_CHECK(call(t, names[i], UINT32_MAX, 0, 0) == -EINVAL, "%s: %d", names[i],
                    done.status);
        KTEST_CHECK(call(t, names[i], 5000, 0, 0) == -EINVAL, "%s: %d", names[i], done.status);
    }
    KTEST_CHECK(call(t, "cpu_info", MAX_CPUS, 0, 0) == -EINVAL, "%d", done.status);
    KTEST_CHECK(call(t, "zone_info", NR_ZONES, 0, 0) == -EINVAL, "%d", done.status);
    KTEST_CHECK(call(t, "client_info", MAX_CLIENTS, 0, 0) == -EINVAL, "%d", done.status);
    check_untouched(t, "indices");
    tester_end(t);
}

MM_TEST(calls, clients_that_cannot_close)
{
    static const u64 ids[] = {0,           CLIENT_CONSOLE, CLIENT_WIRE, MAX_CLIENTS - 1,
                              MAX_CLIENTS, UINT32_MAX};
    tester_init();
    u32 clients = client_count();
    for (u32 i = 0; i < ARRAY_SIZE(ids); i++) {
        struct rpc_entry e = entry((u16)call_by_name("client_close")->number, ids[i], 0);
        expect(t, &e, true, -EINVAL, "close");
        e.op = (u16)call_by_name("ring_open")->number;
        expect(t, &e, true, -EINVAL, "ring");
    }
    struct rpc_entry e = entry((u16)call_by_name("ring_close")->number, 0x1000, 0);
    expect(t, &e, true, -EINVAL, "no ring");
    e = entry((u16)call_by_name("client_open")->number, 0, 0);
    e.data_len = CLIENT_NAME;
    expect(t, &e, true, -EINVAL, "name too long");
    KTEST_CHECK(client_count() == clients, "%u clients, %u before", client_count(), clients);
    tester_end(t);
}

MM_TEST(calls, blocks)
{
    tester_init();
    KTEST_CHECK(!call(t, "buddy_alloc", 2, 0, 0), "%d", done.status);
    u64 addr = done.result[0];
    KTEST_CHECK(addr && !(addr & (4 * PAGE_SIZE - 1)), "0x%lx", addr);
    static const u64 off[] = {1, 8, PAGE_SIZE / 2, PAGE_SIZE - 1, PAGE_SIZE, 4 * PAGE_SIZE};
    for (u32 i = 0; i < ARRAY_SIZE(off); i++)
        KTEST_CHECK(call(t, "buddy_free", addr + off[i], 2, 0) == -EINVAL, "off by %lu: %d", off[i],
                    done.status);
    KTEST_CHECK(call(t, "buddy_free", addr, 3, 0) == -EINVAL, "%d", done.status);
    KTEST_CHECK(call(t, "buddy_free", addr, UINT32_MAX, 0) == -EINVAL, "%d", done.status);
    KTEST_CHECK(call(t, "page_free", addr, 0, 0) == -EINVAL, "%d", done.status);
    KTEST_CHECK(!call(t, "buddy_free", addr, 2, 0), "%d", done.status);
    KTEST_CHECK(call(t, "buddy_free", addr, 2, 0) == -EINVAL, "%d", done.status);
    KTEST_CHECK(call(t, "buddy_alloc", NR_ORDERS, 0, 0) == -EINVAL, "%d", done.status);
    KTEST_CHECK(call(t, "page_alloc", UINT32_MAX, 0, 0) == -EINVAL, "%d", done.status);
    tester_end(t);
}

MM_TEST(calls, arrays)
{
    tester_init();
    u32 room = BYTES / 8;
    KTEST_CHECK(call(t, "buddy_alloc_array", 0, room + 1, 0) == -EMSGSIZE, "%d", done.status);
    KTEST_CHECK(call(t, "buddy_alloc_array", 0, UINT32_MAX, 0) == -EMSGSIZE, "%d", done.status);
    KTEST_CHECK(call(t, "buddy_alloc_array", NR_ORDERS, 1, 0) == -EINVAL, "%d", done.status);
    check_untouched(t, "refused arrays");
    KTEST_CHECK(!call(t, "buddy_alloc_array", 1, 20, 0) && done.data_len == 160, "%u bytes",
                done.data_len);
    KTEST_CHECK(tester.owner.blocks == 20 && tester.owner.pages == 40, "%lu blocks",
                tester.owner.blocks);
    u64 good = data[7];
    data[7] += 8;
    KTEST_CHECK(call(t, "buddy_free_array", 1, 0, 160) == -EINVAL && done.result[0] == 7,
                "%d after %lu", done.status, done.result[0]);
    KTEST_CHECK(tester.owner.blocks == 13, "%lu blocks", tester.owner.blocks);
    data[7] = good;
    memmove(data, data + 7, 13 * 8);
    KTEST_CHECK(call(t, "buddy_free_array", 0, 0, 8) == -EINVAL, "another order: %d", done.status);
    KTEST_CHECK(!call(t, "buddy_free_array", 1, 0, 13 * 8) && done.result[0] == 13, "%d after %lu",
                done.status, done.result[0]);
    tester_end(t);
}

MM_TEST(calls, array_without_memory)
{
    struct chain all = {0};
    u64 spare = pages_alloc(0, PAGE_KERNEL, MMTEST_OWNER, 0);
    tester_init();
    chain_fill(&all, 0);
    KTEST_CHECK(call(t, "buddy_alloc_array", 0, 3, 0) == -ENOMEM && !done.data_len, "%d",
                done.status);
    KTEST_CHECK(call(t, "buddy_alloc", 0, 0, 0) == -ENOMEM && !done.result[0], "%d", done.status);
    KTEST_CHECK(!pages_free(spare, 0, PAGE_KERNEL, MMTEST_OWNER), "frame %lu", spare);
    KTEST_CHECK(!call(t, "buddy_alloc_array", 0, 3, 0) && done.data_len == 8, "%d, %u bytes",
                done.status, done.data_len);
    KTEST_CHECK(!call(t, "buddy_free_array", 0, 0, 8) && done.result[0] == 1, "%d", done.status);
    KTEST_CHECK(!chain_free(&all), "giving back");
    tester_end(t);
}

MM_TEST(calls, memory_through_mappings)
{
    const u64 vaddr = 0x123456000;
    tester_init();
    KTEST_CHECK(call(t, "mem_read", vaddr, 8, 0) == -EFAULT && done.result[0] == vaddr,
                "%d at 0x%lx", done.status, done.result[0]);
    KTEST_CHECK(call(t, "mem_write", vaddr, 0, 8) == -EFAULT && done.result[0] == vaddr,
                "%d at 0x%lx", done.status, done.result[0]);
    KTEST_CHECK(!call(t, "page_walk", 0, 0, 0) && done.data_len == 8 && !data[0],
                "%u bytes, first entry 0x%lx", done.data_len, data[0]);
    KTEST_CHECK(!call(t, "page_alloc", 0, 0, 0), "%d", done.status);
    u64 addr = done.result[0];
    KTEST_CHECK(call(t, "page_map", addr + 8, vaddr, 0) == -EINVAL, "%d", done.status);
    KTEST_CHECK(!call(t, "page_map", addr, vaddr, 0), "%d", done.status);
    KTEST_CHECK(!call(t, "page_walk", vaddr, 0, 0) && done.data_len == 32, "%u", done.data_len);
    KTEST_CHECK((data[3] & PTE_ADDRESS) == addr, "0x%lx", data[3]);
    data[0] = 0x1122334455667788;
    KTEST_CHECK(!call(t, "mem_write", vaddr + 16, 0, 8), "%d", done.status);
    KTEST_CHECK(((u64 *)phys_to_virt(addr))[2] == 0x1122334455667788, "what was written");
    data[0] = 0;
    KTEST_CHECK(!call(t, "mem_read", vaddr + 16, 8, 0) && data[0] == 0x1122334455667788, "0x%lx",
                data[0]);
    KTEST_CHECK(call(t, "mem_read", vaddr + 16, BYTES + 1, 0) == -EMSGSIZE, "%d", done.status);
    KTEST_CHECK(call(t, "mem_read", vaddr + PAGE_SIZE - 8, 16, 0) == -EFAULT &&
                    done.result[0] == vaddr + PAGE_SIZE && !done.data_len,
                "%d at 0x%lx", done.status, done.result[0]);
    KTEST_CHECK(call(t, "mem_read", DIRECT_MAP + addr, 8, 0) == -EFAULT, "%d", done.status);
    KTEST_CHECK(call(t, "page_free", addr, 0, 0) == -EBUSY, "%d", done.status);
    KTEST_CHECK(!call(t, "page_unmap", addr, 0, 0), "%d", done.status);
    KTEST_CHECK(call(t, "mem_read", vaddr, 8, 0) == -EFAULT, "%d", done.status);
    KTEST_CHECK(!call(t, "page_put", addr, 0, 0) && !done.result[0], "%d", done.status);
    tester_end(t);
}
