/* See ring.h. */
#include "rpc/ring.h"
#include "x86_64/paging.h"
#include "x86_64/percpu.h"
#include "x86_64/smp.h"
#include "core/panic.h"
#include "lib/bits.h"
#include "lib/errno.h"
#include "lib/string.h"
#include "mm/pages.h"
#include "rpc/calls.h"
#include "rpc/frame.h"

struct ring {
    struct spinlock lock;
    struct client *client;
    struct ring_header *header;
    u32 sq_head, cq_tail, waits_seen;
};

static struct ring rings[MAX_RINGS];
static u64 live[MAX_CPUS]; /* bit r: rings[r] is open and belongs to the CPU */

#define for_each_ring(r, cpu)                                                                      \
    for (u64 mask_ = __atomic_load_n(&live[cpu], __ATOMIC_ACQUIRE); mask_; mask_ &= mask_ - 1)     \
        for (struct ring *r = &rings[__builtin_ctzll(mask_)]; r; r = NULL)

static void *ring_at(const struct ring *r, u32 offset)
{
    return (u8 *)r->header + offset;
}

static u32 ring_cpu(u32 index)
{
    return index % cpu_count;
}

/* A free slot; on the CPU that serves the fewest rings. */
static u32 slot_find(void)
{
    u32 best = MAX_RINGS, fewest = UINT32_MAX;
    for (u32 i = 0; i < MAX_RINGS; i++) {
        u32 load = bits_count(live[ring_cpu(i)]);
        if (!rings[i].client && load < fewest) {
            best = i;
            fewest = load;
        }
    }
    return best;
}

int ring_open(struct client *c, u64 *paddr)
{
    u32 slot = slot_find();
    if (slot == MAX_RINGS)
        return -ENFILE;
    u64 pfn = pages_alloc(RING_ORDER, PAGE_KERNEL, c->owner.id, 0);
    if (!pfn)
        return -ENOMEM;
    struct ring_header *h = phys_to_virt(paddr_of(pfn));
    memset(h, 0, RING_DATA);
    h->entries = RING_ENTRIES;
    h->cq_offset = RING_CQ;
    h->sq_offset = RING_SQ;
    h->data_offset = RING_DATA;
    h->data_bytes = RING_DATA_BYTES;
    h->cpu = ring_cpu(slot);
    h->client = c->owner.id;
    h->doorbell_wanted = 1;
    struct ring *r = &rings[slot];
    spin_lock(&r->lock); /* a CPU may still look at what was here before */
    r->header = h;
    r->client = c;
    r->sq_head = r->cq_tail = r->waits_seen = 0;
    spin_unlock(&r->lock);
    c->rings++;
    __atomic_or_fetch(&live[ring_cpu(slot)], 1ull << slot, __ATOMIC_SEQ_CST);
    *paddr = paddr_of(pfn);
    return 0;
}

static void slot_close(u32 slot)
{
    struct ring *r = &rings[slot];
    u64 pfn = pfn_of(direct_to_phys(r->header));
    __atomic_and_fetch(&live[ring_cpu(slot)], ~(1ull << slot), __ATOMIC_SEQ_CST);
    /* Its CPU may be serving it: afterwards it finds the client gone. What it serves may wait here. */
    while (!spin_try(&r->lock))
        smp_poll_work(this_cpu());
    struct client *c = r->client;
    r->client = NULL;
    spin_unlock(&r->lock);
    c->rings--;
    frame_offer_end(paddr_of(pfn));
    int err = pages_free(pfn, RING_ORDER, PAGE_KERNEL, c->owner.id);
    KASSERT(!err, "ring at 0x%lx: error %d", paddr_of(pfn), err);
}

int ring_close(u64 paddr)
{
    for (u32 i = 0; i < MAX_RINGS; i++)
        if (rings[i].client && direct_to_phys(rings[i].header) == paddr) {
            slot_close(i);
            return 0;
        }
    return -EINVAL;
}

void ring_close_all(struct client *c)
{
    for (u32 i = 0; i < MAX_RINGS; i++)
        if (rings[i].client == c)
            slot_close(i);
}

u32 ring_count(void)
{
    u32 n = 0;
    for (u32 i = 0; i < MAX_RINGS; i++)
        n += rings[i].client != NULL;
    return n;
}

/* Entries that wait, as far as the indices make sense; others are passed over as a whole. */
static u32 ring_waiting(struct ring *r)
{
    u32 waiting = READ_ONCE(r->header->sq_tail) - r->sq_head;
    if (waiting > RING_ENTRIES) {
        r->sq_head += waiting;
        r->header->sq_head = r->sq_head;
        frame_count_error();
        return 0;
    }
    u32 used = r->cq_tail - READ_ONCE(r->header->cq_head);
    return used < RING_ENTRIES ? MIN(waiting, RING_ENTRIES - used) : 0;
}

static bool data_is_inside(const struct rpc_entry *e)
{
    u32 need = MAX(e->data_len, e->data_cap);
    return e->data_off % 8 == 0 && e->data_off <= RING_DATA_BYTES &&
           need <= RING_DATA_BYTES - e->data_off;
}

static void ring_serve_one(struct ring *r)
{
    struct rpc_entry e;
    struct rpc_completion *cq = ring_at(r, RING_CQ), c;
    memcpy(&e, (u8 *)ring_at(r, RING_SQ) + r->sq_head % RING_ENTRIES * sizeof(e), sizeof(e));
    if (likely(data_is_inside(&e)))
        call_serve(r->client, &e, ring_at(r, RING_DATA + e.data_off), false, &c);
    else
        c = (struct rpc_completion){.tag = e.tag, .status = -EFAULT};
    cq[r->cq_tail % RING_ENTRIES] = c;
    r->sq_head++;
    r->cq_tail++;
    WRITE_ONCE(r->header->sq_head, r->sq_head);
    __atomic_store_n(&r->header->cq_tail, r->cq_tail, __ATOMIC_RELEASE);
}

/* Tells a host that has stopped polling. */
static void ring_notify(struct ring *r)
{
    cpu_fence(); /* completions are visible before the look at host_waits */
    u32 waits = READ_ONCE(r->header->host_waits);
    if (waits == r->waits_seen)
        return;
    r->waits_seen = waits;
    frame_send_doorbell();
}

static bool ring_serve(struct ring *r)
{
    SPIN_GUARD(&r->lock);
    u32 n = r->client ? ring_waiting(r) : 0;
    if (!n)
        return false;
    for (u32 i = 0; i < n; i++)
        ring_serve_one(r);
    ring_notify(r);
    return true;
}

bool ring_poll(u32 cpu)
{
    bool served = false;
    for_each_ring(r, cpu)
        if (READ_ONCE(r->header->sq_tail) != r->sq_head)
            served |= ring_serve(r);
    return served;
}

/* An unlocked look: at worst a halt is put off, or a CPU woken for nothing. */
bool ring_pending(u32 cpu)
{
    for_each_ring(r, cpu) {
        const struct ring_header *h = r->header;
        if (READ_ONCE(h->sq_tail) != r->sq_head &&
            r->cq_tail - READ_ONCE(h->cq_head) < RING_ENTRIES)
            return true;
    }
    return false;
}

void ring_set_doorbell(u32 cpu, bool wanted)
{
    for_each_ring(r, cpu) {
        SPIN_GUARD(&r->lock); /* it may be closed meanwhile, and its memory be another's */
        if (r->client)
            WRITE_ONCE(r->header->doorbell_wanted, wanted);
    }
}

void ring_wake_others(void)
{
    for_each_cpu(c)
        if (c != this_cpu() && ring_pending(c->id))
            smp_wake(c);
}
