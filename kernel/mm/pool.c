/* See pool.h. */
#include "mm/pool.h"
#include "x86_64/paging.h"
#include "core/panic.h"
#include "lib/string.h"
#include "mm/pages.h"

struct pool_page {
    void *free; /* chain of freed objects */
    u32 used, bumped;
    u32 next, prev; /* pfn in the list of pages with room */
};

static u32 capacity(const struct pool *p)
{
    return (PAGE_SIZE - sizeof(struct pool_page)) / p->object_bytes;
}

static struct pool_page *page_of(u64 pfn)
{
    return phys_to_virt(paddr_of(pfn));
}

static void partial_push(struct pool *p, u32 pfn)
{
    struct pool_page *page = page_of(pfn);
    page->prev = 0;
    page->next = p->partial;
    if (p->partial)
        page_of(p->partial)->prev = pfn;
    p->partial = pfn;
}

static void partial_remove(struct pool *p, struct pool_page *page)
{
    if (page->next)
        page_of(page->next)->prev = page->prev;
    if (page->prev)
        page_of(page->prev)->next = page->next;
    else
        p->partial = page->next;
}

static bool page_add(struct pool *p)
{
    u64 pfn = pages_alloc(0, PAGE_POOL, 0, PAGES_RESERVE);
    if (!pfn)
        return false;
    *page_of(pfn) = (struct pool_page){0};
    partial_push(p, (u32)pfn);
    p->pages++;
    return true;
}

static void *page_take(const struct pool *p, struct pool_page *page)
{
    void *object = page->free;
    if (object)
        memcpy(&page->free, object, sizeof(page->free));
    else
        object = (u8 *)(page + 1) + page->bumped++ * p->object_bytes;
    page->used++;
    return object;
}

void *pool_alloc(struct pool *p)
{
    SPIN_GUARD(&p->lock);
    if (!p->partial && !page_add(p))
        return NULL;
    struct pool_page *page = page_of(p->partial);
    void *object = page_take(p, page);
    if (page->used == capacity(p))
        partial_remove(p, page);
    p->live++;
    return memset(object, 0, p->object_bytes);
}

void pool_free(struct pool *p, void *object)
{
    u64 pfn = pfn_of(direct_to_phys(object));
    struct pool_page *page = page_of(pfn);
    SPIN_GUARD(&p->lock);
    KASSERT(page_at(pfn)->kind == PAGE_POOL && page->used, "0x%lx is in no pool", (u64)object);
    if (page->used == capacity(p))
        partial_push(p, (u32)pfn);
    memcpy(object, &page->free, sizeof(page->free));
    page->free = object;
    p->live--;
    if (--page->used)
        return;
    partial_remove(p, page);
    p->pages--;
    int err = pages_free(pfn, 0, PAGE_POOL, 0);
    KASSERT(!err, "pool page 0x%lx: error %d", paddr_of(pfn), err);
}
