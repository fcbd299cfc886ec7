/* See owned.h. */
#include "mm/owned.h"
#include "lib/errno.h"
#include "mm/memmap.h"
#include "mm/pages.h"
#include "mm/pool.h"
#include "mm/zone.h"

struct frame_map {
    struct page_links links; /* the page's, while its word points here */
    u64 vaddr;
};

static struct pool frame_maps = {.object_bytes = sizeof(struct frame_map)};

static struct page_links *links_of(struct page *p)
{
    return p->flags & PG_MAPPED ? &((struct frame_map *)p->descriptor)->links : &p->links;
}

static inline void list_add(struct owner *o, u64 pfn)
{
    *links_of(page_at(pfn)) = (struct page_links){.next = o->first};
    if (o->first)
        links_of(page_at(o->first))->prev = (u32)pfn;
    o->first = (u32)pfn;
    o->blocks++;
}

static inline void list_remove(struct owner *o, struct page *p)
{
    struct page_links l = *links_of(p);
    if (l.next)
        links_of(page_at(l.next))->prev = l.prev;
    if (l.prev)
        links_of(page_at(l.prev))->next = l.next;
    else
        o->first = l.next;
    o->blocks--;
}

/* The page, when the owner has a live block that starts there; else NULL. */
static struct page *owned_page(const struct owner *o, u64 pfn)
{
    if (pfn >= page_end_pfn)
        return NULL;
    struct page *p = page_at(pfn);
    return p->kind == PAGE_CLIENT && p->owner == o->id ? p : NULL;
}

/* One block for the owner, not in its list yet; 0 when there is none. The owner is locked. */
static inline u64 block_take(struct owner *o, unsigned order)
{
    u64 pfn = pages_alloc(order, PAGE_CLIENT, o->id, 0);
    if (pfn)
        o->pages += 1ull << order;
    return pfn;
}

int owned_alloc(struct owner *o, unsigned order, bool split, u64 *pfn)
{
    if (order > MAX_ORDER)
        return -EINVAL;
    SPIN_GUARD(&o->lock);
    u64 first = block_take(o, order);
    if (!first)
        return -ENOMEM;
    *pfn = first;
    if (!split) {
        list_add(o, first);
        return 0;
    }
    pages_split(first, order);
    for (u64 i = 1ull << order; i-- > 0;)
        list_add(o, first + i);
    return 0;
}

int owned_alloc_array(struct owner *o, unsigned order, u32 n, u64 *paddrs, u32 *got)
{
    *got = 0;
    if (order > MAX_ORDER)
        return -EINVAL;
    SPIN_GUARD(&o->lock);
    for (; *got < n; ++*got) {
        u64 pfn = block_take(o, order);
        if (!pfn)
            return *got ? 0 : -ENOMEM;
        list_add(o, pfn);
        WRITE_ONCE(paddrs[*got], paddr_of(pfn));
    }
    return 0;
}

/* Changes a block's flags, and the owner's sums with them. */
static void flags_set(struct owner *o, struct page *p, u8 flags)
{
    o->dirty += !!(flags & PG_DIRTY) - !!(p->flags & PG_DIRTY);
    o->locked += !!(flags & PG_LOCKED) - !!(p->flags & PG_LOCKED);
    p->flags = flags;
}

/* Takes the block from its owner, in a state that pages_free accepts; nothing is left in its page. */
static void block_release(struct owner *o, u64 pfn, struct page *p)
{
    unsigned order = p->order;
    list_remove(o, p);
    if (unlikely(p->flags))
        flags_set(o, p, 0);
    o->extra_refs -= p->refs - 1;
    o->pages -= 1ull << order;
    p->links = (struct page_links){0};
    p->head = page_head(PAGE_CLIENT, order, o->id);
    pages_free(pfn, order, PAGE_CLIENT, o->id);
}

/* The owner is locked. */
static inline int block_free(struct owner *o, u64 pfn, unsigned order)
{
    struct page *p = owned_page(o, pfn);
    if (!p || p->order != order)
        return -EINVAL;
    if (unlikely((p->head & ~PAGE_HEAD_DIRTY) != page_head(PAGE_CLIENT, order, o->id)))
        return -EBUSY;
    block_release(o, pfn, p);
    return 0;
}

int owned_free(struct owner *o, u64 pfn, unsigned order)
{
    SPIN_GUARD(&o->lock);
    return block_free(o, pfn, order);
}

int owned_free_array(struct owner *o, unsigned order, u32 n, const u64 *paddrs, u32 *freed)
{
    SPIN_GUARD(&o->lock);
    for (*freed = 0; *freed < n; ++*freed) {
        u64 paddr = READ_ONCE(paddrs[*freed]);
        int err = paddr % paddr_of(1) ? -EINVAL : block_free(o, pfn_of(paddr), order);
        if (err)
            return err;
    }
    return 0;
}

int owned_claim(struct owner *o, u64 pfn)
{
    SPIN_GUARD(&o->lock);
    struct page *p = owned_page(o, pfn);
    if (p) {
        if (p->order)
            return -EBUSY;
        if (p->refs == UINT32_MAX)
            return -EOVERFLOW;
        p->refs++;
        o->extra_refs++;
        return 0;
    }
    int err = pages_claim(pfn, PAGE_CLIENT, o->id);
    if (err)
        return err;
    o->pages++;
    list_add(o, pfn);
    return 0;
}

int owned_get(struct owner *o, u64 pfn, u32 *refs)
{
    SPIN_GUARD(&o->lock);
    struct page *p = owned_page(o, pfn);
    if (!p)
        return -EINVAL;
    if (p->refs == UINT32_MAX)
        return -EOVERFLOW;
    *refs = ++p->refs;
    o->extra_refs++;
    return 0;
}

int owned_put(struct owner *o, u64 pfn, u32 *refs)
{
    SPIN_GUARD(&o->lock);
    struct page *p = owned_page(o, pfn);
    if (!p)
        return -EINVAL;
    if (p->refs == 1) {
        if (p->flags & (PG_LOCKED | PG_MAPPED))
            return -EBUSY;
        block_release(o, pfn, p);
        *refs = 0;
        return 0;
    }
    *refs = --p->refs;
    o->extra_refs--;
    return 0;
}

int owned_flags(struct owner *o, u64 pfn, u32 set, u32 clear)
{
    if ((set | clear) & ~(u32)(PG_DIRTY | PG_LOCKED))
        return -EINVAL;
    SPIN_GUARD(&o->lock);
    struct page *p = owned_page(o, pfn);
    if (!p)
        return -EINVAL;
    if (clear & PG_DIRTY && p->flags & PG_MAPPED)
        aspace_dirty(&o->aspace, ((struct frame_map *)p->descriptor)->vaddr, true);
    flags_set(o, p, (u8)((p->flags & ~clear) | set));
    return 0;
}

int owned_map(struct owner *o, u64 pfn, u64 vaddr)
{
    SPIN_GUARD(&o->lock);
    struct page *p = owned_page(o, pfn);
    if (!p || p->order)
        return -EINVAL;
    if (p->flags & PG_MAPPED)
        return -EBUSY;
    struct frame_map *map = pool_alloc(&frame_maps);
    if (!map)
        return -ENOMEM;
    int err = aspace_map(&o->aspace, vaddr, pfn);
    if (err) {
        pool_free(&frame_maps, map);
        return err;
    }
    *map = (struct frame_map){.links = p->links, .vaddr = vaddr};
    p->descriptor = map;
    p->flags |= PG_MAPPED;
    return 0;
}

static void unmap(struct owner *o, struct page *p)
{
    struct frame_map *map = p->descriptor;
    bool dirty;
    aspace_unmap(&o->aspace, map->vaddr, &dirty);
    p->links = map->links;
    flags_set(o, p, (u8)((p->flags & ~PG_MAPPED) | (dirty ? PG_DIRTY : 0)));
    pool_free(&frame_maps, map);
}

int owned_unmap(struct owner *o, u64 pfn)
{
    SPIN_GUARD(&o->lock);
    struct page *p = owned_page(o, pfn);
    if (!p || !(p->flags & PG_MAPPED))
        return -EINVAL;
    unmap(o, p);
    return 0;
}

static void info_page(struct owner *o, struct page *p, struct page_info *info)
{
    info->kind = p->kind;
    info->flags = p->flags;
    info->owner = p->owner;
    info->refs = p->refs;
    if (owned_page(o, (u64)(p - page_array)) && p->flags & PG_MAPPED) {
        info->vaddr = ((struct frame_map *)p->descriptor)->vaddr;
        if (aspace_dirty(&o->aspace, info->vaddr, false))
            info->flags |= PG_DIRTY;
    }
}

int owned_info(struct owner *o, u64 pfn, struct page_info *info)
{
    SPIN_GUARD(&o->lock);
    struct page_where w = page_find(pfn);
    if (pfn >= page_end_pfn)
        return -EINVAL;
    *info = (struct page_info){.paddr = paddr_of(pfn),
                               .block = paddr_of(w.block),
                               .place = w.place,
                               .order = w.order,
                               .cpu = w.cpu,
                               .zone = (u32)(zone_of(pfn) - zones)};
    if (w.place == PLACE_LIVE)
        info_page(o, page_at(w.block), info);
    return 0;
}

u64 owned_release_all(struct owner *o)
{
    SPIN_GUARD(&o->lock);
    u64 pages = o->pages;
    while (o->first) {
        u64 pfn = o->first;
        struct page *p = page_at(pfn);
        if (p->flags & PG_MAPPED)
            unmap(o, p);
        block_release(o, pfn, p);
    }
    aspace_destroy(&o->aspace);
    return pages;
}
