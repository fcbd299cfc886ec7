/* Handlers of the calls about the machine itself: clients, rings, CPUs, log, tests. */
#include "x86_64/paging.h"
#include "x86_64/percpu.h"
#include "core/printk.h"
#include "debug/crash.h"
#include "debug/kbench.h"
#include "debug/ktest.h"
#include "lib/errno.h"
#include "lib/string.h"
#include "mm/memmap.h"
#include "mm/pages.h"
#include "mm/pcp.h"
#include "mm/zone.h"
#include "rpc/calls.h"
#include "rpc/frame.h"
#include "rpc/ring.h"

extern u8 kernel_start[], kernel_end[];

long call_ping(struct call *c, const struct ping_args *a)
{
    c->result[0] = a->value;
    return 0;
}

long call_echo(struct call *c, const struct echo_args *a)
{
    (void)a;
    if (c->data_cap < c->data_len)
        return -EMSGSIZE;
    c->out_len = c->data_len; /* the answer has the place of what came */
    return 0;
}

/* The call's text as a string; -EINVAL when it does not fit. */
static int text_copy(const struct call *c, char *buf, size_t cap)
{
    if (c->data_len >= cap)
        return -EINVAL;
    memcpy(buf, c->data, c->data_len);
    buf[c->data_len] = 0;
    return 0;
}

long call_client_open(struct call *c, const struct client_open_args *a)
{
    char name[CLIENT_NAME];
    struct client *client;
    (void)a;
    int err = text_copy(c, name, sizeof(name));
    if (!err)
        err = client_open(name, &client);
    if (err)
        return err;
    err = ring_open(client, &c->result[1]);
    if (err)
        client_close(client);
    else
        c->result[0] = client->owner.id;
    return err;
}

/* A client that came over the wire; the built-in ones neither close nor have rings. */
static struct client *closable(u64 id)
{
    return id < CLIENT_FIRST ? NULL : client_get(id);
}

long call_client_close(struct call *c, const struct client_close_args *a)
{
    struct client *client = closable(a->client);
    if (!client || client == c->client)
        return -EINVAL;
    c->result[0] = client_close(client);
    return 0;
}

long call_ring_open(struct call *c, const struct ring_open_args *a)
{
    struct client *client = closable(a->client);
    return client ? ring_open(client, &c->result[0]) : -EINVAL;
}

long call_ring_close(struct call *c, const struct ring_close_args *a)
{
    (void)c;
    return ring_close(a->ring);
}

long call_machine_info(struct call *c, const struct machine_info_args *a)
{
    struct machine_info info = {
        .total_bytes = range_total(&memmap.ram),
        .free_bytes = paddr_of(pages_free_count()),
        .magazine_bytes = paddr_of(pcp_pages()),
        .metadata_bytes = memmap.metadata_bytes,
        .image_bytes = (u64)(kernel_end - kernel_start),
        .boot_ticks = frame_boot_ticks(),
        .wire_frames = frame_count(),
        .wire_errors = frame_errors(),
        .cpus = cpu_count,
        .clients = client_count(),
        .rings = ring_count(),
        .abi_version = RPC_ABI_VERSION,
    };
    (void)a;
    for (int i = 0; i < NR_ZONES; i++)
        info.managed_bytes += paddr_of(zones[i].managed);
    return call_answer(c, &info, sizeof(info));
}

long call_cpu_info(struct call *c, const struct cpu_info_args *a)
{
    if (a->cpu >= cpu_count)
        return -EINVAL;
    const struct cpu *cpu = &cpus[a->cpu];
    struct cpu_info info = {
        .id = cpu->id,
        .apic_id = cpu->apic_id,
        .asleep = cpu->asleep,
        .calls = cpu->calls,
        .interrupts = cpu->interrupts,
        .sleeps = cpu->sleeps,
        .wakeups_sent = cpu->wakeups_sent,
        .tlb_flushes = cpu->tlb_flushes,
        .stack_low = cpu->stack_low,
        .stack_top = cpu->stack_top,
    };
    return call_answer(c, &info, sizeof(info));
}

long call_client_info(struct call *c, const struct client_info_args *a)
{
    struct client_info info;
    const struct client *client = a->client ? client_get(a->client) : c->client;
    if (!client)
        return -EINVAL;
    client_describe(client, &info);
    return call_answer(c, &info, sizeof(info));
}

long call_log_read(struct call *c, const struct log_read_args *a)
{
    (void)a;
    c->out_len = (u32)printk_copy_tail(c->data, c->data_cap);
    return 0;
}

long call_test_count(struct call *c, const struct test_count_args *a)
{
    (void)a;
    c->result[0] = ktest_count();
    return 0;
}

long call_test_name(struct call *c, const struct test_name_args *a)
{
    const char *name = ktest_name((u32)a->index);
    return name ? call_answer(c, name, strlen(name)) : -EINVAL;
}

long call_test_run(struct call *c, const struct test_run_args *a)
{
    char report[KTEST_REPORT];
    if (a->index >= ktest_count())
        return -EINVAL;
    c->result[0] = ktest_run((u32)a->index, report, sizeof(report));
    return call_answer(c, report, MIN(strlen(report), (size_t)c->data_cap));
}

long call_bench_run(struct call *c, const struct bench_run_args *a)
{
    return kbench_pairs((u32)a->what, (u32)a->order, (u32)a->rounds, &c->result[0]);
}

long call_bench_batch(struct call *c, const struct bench_batch_args *a)
{
    return kbench_batch((u32)a->how, &c->result[0], &c->result[1]);
}

long call_bench_mix(struct call *c, const struct bench_mix_args *a)
{
    struct mix_result r;
    if (c->data_cap < sizeof(r))
        return -EMSGSIZE;
    int err = kbench_mix((u32)a->mode, (u32)a->steps, (u32)a->limit, a->seed, &r);
    return err ? err : call_answer(c, &r, sizeof(r));
}

long call_bench_worst(struct call *c, const struct bench_worst_args *a)
{
    const char *name = kbench_worst_name((u32)a->index);
    int err = name ? kbench_worst((u32)a->index, &c->result[0]) : -EINVAL;
    return err ? err : call_answer(c, name, strlen(name));
}

long call_crash(struct call *c, const struct crash_args *a)
{
    char kind[32];
    (void)a;
    int err = text_copy(c, kind, sizeof(kind));
    return err ? err : crash_now(kind);
}
