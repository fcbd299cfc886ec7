/* Handlers of the memory calls: decode, one function of kernel/mm, encode. */
#include "x86_64/paging.h"
#include "x86_64/tlb.h"
#include "x86_64/uaccess.h"
#include "lib/errno.h"
#include "lib/string.h"
#include "mm/pages.h"
#include "mm/pcp.h"
#include "mm/zone.h"
#include "rpc/calls.h"

/* The frame at an address, or a number that no frame has. */
static u64 frame_at(u64 paddr)
{
    return paddr % PAGE_SIZE ? UINT64_MAX : pfn_of(paddr);
}

static long alloc(struct call *c, u64 order, bool split)
{
    u64 pfn;
    int err = owned_alloc(&c->client->owner, (unsigned)order, split, &pfn);
    if (!err)
        c->result[0] = paddr_of(pfn);
    return err;
}

long call_buddy_alloc(struct call *c, const struct buddy_alloc_args *a)
{
    return alloc(c, a->order, false);
}

long call_buddy_free(struct call *c, const struct buddy_free_args *a)
{
    return owned_free(&c->client->owner, frame_at(a->addr), (unsigned)a->order);
}

long call_buddy_alloc_array(struct call *c, const struct buddy_alloc_array_args *a)
{
    u32 got = 0;
    if (a->count > c->data_cap / 8)
        return -EMSGSIZE;
    int err =
        owned_alloc_array(&c->client->owner, (unsigned)a->order, (u32)a->count, c->data, &got);
    c->out_len = got * 8;
    return err;
}

static long free_array(struct call *c, unsigned order)
{
    u32 freed = 0;
    int err = owned_free_array(&c->client->owner, order, c->data_len / 8, c->data, &freed);
    c->result[0] = freed;
    return err;
}

long call_buddy_free_array(struct call *c, const struct buddy_free_array_args *a)
{
    return free_array(c, (unsigned)a->order);
}

long call_buddy_drain(struct call *c, const struct buddy_drain_args *a)
{
    (void)a;
    c->result[0] = pcp_drain();
    return 0;
}

long call_page_alloc(struct call *c, const struct page_alloc_args *a)
{
    return alloc(c, a->order, true);
}

long call_page_free(struct call *c, const struct page_free_args *a)
{
    return owned_free(&c->client->owner, frame_at(a->addr), 0);
}

long call_page_free_array(struct call *c, const struct page_free_array_args *a)
{
    (void)a;
    return free_array(c, 0);
}

long call_page_claim(struct call *c, const struct page_claim_args *a)
{
    return owned_claim(&c->client->owner, frame_at(a->addr));
}

long call_page_get(struct call *c, const struct page_get_args *a)
{
    u32 refs = 0;
    int err = owned_get(&c->client->owner, frame_at(a->addr), &refs);
    c->result[0] = refs;
    return err;
}

long call_page_put(struct call *c, const struct page_put_args *a)
{
    u32 refs = 0;
    int err = owned_put(&c->client->owner, frame_at(a->addr), &refs);
    c->result[0] = refs;
    return err;
}

long call_page_info(struct call *c, const struct page_info_args *a)
{
    struct page_info info;
    int err = owned_info(&c->client->owner, pfn_of(a->addr), &info);
    return err ? err : call_answer(c, &info, sizeof(info));
}

long call_page_flags(struct call *c, const struct page_flags_args *a)
{
    return owned_flags(&c->client->owner, frame_at(a->addr), (u32)a->set, (u32)a->clear);
}

long call_page_map(struct call *c, const struct page_map_args *a)
{
    return owned_map(&c->client->owner, frame_at(a->addr), a->vaddr);
}

long call_page_unmap(struct call *c, const struct page_unmap_args *a)
{
    return owned_unmap(&c->client->owner, frame_at(a->addr));
}

/* Makes the caller's tables current; an owner that has none yet has nothing mapped. */
static bool enter(struct call *c)
{
    if (!__atomic_load_n(&c->client->owner.aspace.root, __ATOMIC_ACQUIRE))
        return false;
    tlb_activate(&c->client->owner.aspace);
    return true;
}

long call_mem_read(struct call *c, const struct mem_read_args *a)
{
    u64 fault = a->vaddr;
    if (a->length > c->data_cap)
        return -EMSGSIZE;
    if (!enter(c) || user_copy_in(c->data, a->vaddr, a->length, &fault)) {
        c->result[0] = fault;
        return -EFAULT;
    }
    c->out_len = (u32)a->length;
    return 0;
}

long call_mem_write(struct call *c, const struct mem_write_args *a)
{
    u64 fault = a->vaddr;
    if (!enter(c) || user_copy_out(a->vaddr, c->data, c->data_len, &fault)) {
        c->result[0] = fault;
        return -EFAULT;
    }
    return 0;
}

long call_page_walk(struct call *c, const struct page_walk_args *a)
{
    struct pt_step steps[PT_LEVELS];
    struct aspace *as = &c->client->owner.aspace;
    SPIN_GUARD(&as->lock);
    unsigned n = paging_walk(as->root ? as->root : paging_kernel_root(), a->vaddr, steps);
    if (c->data_cap < n * 8)
        return -EMSGSIZE;
    for (unsigned i = 0; i < n; i++)
        ((u64 *)c->data)[i] = steps[i].entry;
    c->out_len = n * 8;
    return 0;
}

static void zone_counts(const struct zone *z, unsigned o, struct zone_info *info)
{
    info->free_blocks[o] = z->buddy.map[o].blocks;
    info->magazine_blocks[o] = z == pcp_zone ? pcp_blocks(o) : 0;
    info->taken[o] = z->taken[o];
    info->given[o] = z->given[o];
    info->splits[o] = z->buddy.splits[o];
    info->merges[o] = z->buddy.merges[o];
    info->fragmentation[o] = zone_fragmentation(z, o);
}

long call_zone_info(struct call *c, const struct zone_info_args *a)
{
    struct zone_info info = {0};
    if (a->zone >= NR_ZONES)
        return -EINVAL;
    struct zone *z = &zones[a->zone];
    SPIN_GUARD(&z->lock);
    string_copy(info.name, z->name, sizeof(info.name));
    info.start_pfn = z->start_pfn;
    info.end_pfn = z->end_pfn;
    info.managed = z->managed;
    info.free = z->buddy.free_pages;
    info.watermark_min = z->watermark_min;
    info.watermark_low = z->watermark_low;
    info.watermark_high = z->watermark_high;
    info.failures = z->failures;
    for (unsigned o = 0; o < NR_ORDERS; o++)
        zone_counts(z, o, &info);
    return call_answer(c, &info, sizeof(info));
}
