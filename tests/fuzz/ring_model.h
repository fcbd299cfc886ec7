/*
 * The model of rings: what must be in each ring's block, and what a poll must do to it.
 *
 * A poll serves exactly the entries that the indices allow, in order, each as it was when its turn
 * came. Afterwards the header and both queues must be as the model has them, byte for byte: so the
 * kernel has written its own words and the completions, and nothing else. While it polls, the data
 * area is poisoned but for the bytes of the call that is served; around the block is no memory.
 */
#pragma once
#include <sanitizer/asan_interface.h>
#include <string.h>
#include "fuzz.h"
#include "lib/errno.h"
#include "rpc/ring.h"

#define RINGS      6
#define CLIENTS    2
#define QUEUES_END (RING_SQ + RING_ENTRIES * sizeof(struct rpc_entry))

enum { SQ_TAIL, CQ_HEAD, HOST_WAITS, SQ_HEAD = 16, CQ_TAIL, DOORBELL_WANTED };

struct model_ring {
    u64 paddr;
    u8 *block;
    u32 slot; /* of the kernel's table: they are served in that order */
    struct client *client;
    u8 queues[QUEUES_END]; /* what must be in the block: the header and both queues */
    u32 put;               /* where the host puts the next entry */
    u32 sq_head, cq_tail, waits_seen;
    u32 left; /* entries that the running poll has still to serve */
    bool served;
};

/* What the host writes while a handler runs. */
struct intrusion {
    u32 after; /* handlers */
    u32 offset, bytes;
    u64 value;
};

static struct model_ring rings[RINGS]; /* open where there is a client */
static struct client *clients[CLIENTS];
static struct intrusion intrusions[8];
static u32 intrusion_count, doorbells;
static struct model_ring *serving; /* its handler runs */
static u32 serving_tag;

/* ---- The block, past the poison ---- */

static u32 word_of(const struct model_ring *r, u32 index)
{
    u32 value;
    memcpy(&value, r->queues + 4 * index, 4);
    return value;
}

static void model_set_word(struct model_ring *r, u32 index, u32 value)
{
    memcpy(r->queues + 4 * index, &value, 4);
}

/* As another CPU writes: not stopped by what this one may touch. */
__attribute__((no_sanitize("address"))) static void host_write(struct model_ring *r, u32 offset,
                                                               const void *from, u32 n)
{
    const u8 *bytes = from;
    for (u32 i = 0; i < n && offset + i < RING_DATA + RING_DATA_BYTES; i++) {
        ((volatile u8 *)r->block)[offset + i] = bytes[i];
        if (offset + i < QUEUES_END)
            r->queues[offset + i] = bytes[i];
    }
}

static void host_set_word(struct model_ring *r, u32 index, u32 value)
{
    host_write(r, 4 * index, &value, 4);
}

static struct rpc_entry *model_entry(struct model_ring *r, u32 index)
{
    return (struct rpc_entry *)(r->queues + RING_SQ) + index % RING_ENTRIES;
}

/* ---- The model ---- */

static u32 model_waiting(const struct model_ring *r)
{
    u32 used = r->cq_tail - word_of(r, CQ_HEAD), waiting = word_of(r, SQ_TAIL) - r->sq_head;
    return used >= RING_ENTRIES ? 0 : MIN(waiting, RING_ENTRIES - used);
}

static s32 model_status(const struct rpc_entry *e)
{
    u64 bytes = MAX(e->data_len, e->data_cap);
    if (e->data_off % 8 || e->data_off + bytes > RING_DATA_BYTES)
        return -EFAULT;
    return model_refusal(e, false);
}

static void model_complete(struct model_ring *r, const struct rpc_completion *c)
{
    memcpy(r->queues + RING_CQ + r->cq_tail % RING_ENTRIES * sizeof(*c), c, sizeof(*c));
    model_set_word(r, SQ_HEAD, ++r->sq_head);
    model_set_word(r, CQ_TAIL, ++r->cq_tail);
    r->left--;
}

/* Entries that get an error before any handler, up to the first that does not. */
static void model_refuse(struct model_ring *r)
{
    while (r->left) {
        const struct rpc_entry *e = model_entry(r, r->sq_head);
        s32 status = model_status(e);
        if (!status)
            return;
        model_complete(r, &(struct rpc_completion){.tag = e->tag, .status = status});
    }
}

static bool is_on(const struct model_ring *r, u32 cpu)
{
    return r->client && r->slot % cpu_count == cpu;
}

/* The first ring that has entries to be served. */
static struct model_ring *next_ring(void)
{
    struct model_ring *next = NULL;
    for (u32 i = 0; i < RINGS; i++) {
        model_refuse(&rings[i]);
        if (rings[i].left && (!next || rings[i].slot < next->slot))
            next = &rings[i];
    }
    return next;
}

static void intrude(struct model_ring *r)
{
    for (u32 i = 0; i < intrusion_count; i++) {
        struct intrusion *in = &intrusions[i];
        if (in->after-- == 0)
            host_write(r, in->offset, &in->value, in->bytes);
    }
}

void target_call_begins(u32 number, const struct call *c)
{
    struct model_ring *r = next_ring();
    CHECK(r, "call %u is served, but no entry is left", number);
    const struct rpc_entry *e = model_entry(r, r->sq_head);
    CHECK(number == e->op && c->client == r->client, "call %u, expected %u", number, e->op);
    CHECK(!memcmp(c->arg, e->arg, sizeof(e->arg)), "call %u: other arguments", number);
    CHECK(c->data_len == e->data_len && c->data_cap == e->data_cap, "%u, %u bytes, expected %u, %u",
          c->data_len, c->data_cap, e->data_len, e->data_cap);
    CHECK(c->data == r->block + RING_DATA + e->data_off, "call %u: data at %p", number, c->data);
    CHECK((u8 *)c->arg < r->block || (u8 *)c->arg >= r->block + RING_DATA + RING_DATA_BYTES,
          "arguments in the ring");
    serving = r;
    serving_tag = e->tag;
    ASAN_UNPOISON_MEMORY_REGION(c->data, MAX(c->data_len, c->data_cap));
    intrude(r);
}

void target_call_ends(const struct served *s)
{
    model_complete(serving, &(struct rpc_completion){.tag = serving_tag,
                                                     .status = s->status,
                                                     .result = {s->result[0], s->result[1]},
                                                     .data_len = s->data_len});
    ASAN_POISON_MEMORY_REGION(serving->block + RING_DATA, RING_DATA_BYTES);
}

int target_wire_read(void)
{
    return -1;
}

void target_wire_write(const u8 *bytes, size_t n)
{
    CHECK(n == 1 && !*bytes, "%zu bytes are sent", n);
    doorbells++;
}

static void check_block(const struct model_ring *r)
{
    if (!memcmp(r->block, r->queues, QUEUES_END))
        return;
    for (u32 i = 0; i < QUEUES_END; i++)
        CHECK(r->block[i] == r->queues[i], "byte %u of the ring: 0x%02x, expected 0x%02x", i,
              r->block[i], r->queues[i]);
}
