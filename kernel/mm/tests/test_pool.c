/* Pools: objects are zeroed and apart, pages come and go with them. */
#include "x86_64/paging.h"
#include "lib/string.h"
#include "mm/pages.h"
#include "mm/pool.h"
#include "mm/tests/mmtest.h"

#define OBJECTS 600

static void *objects[OBJECTS];
static struct pool pool;

static bool is_zero(const u8 *object, u32 n)
{
    for (u32 i = 0; i < n; i++)
        if (object[i])
            return false;
    return true;
}

static bool is_filled(const u8 *object, u32 n, u8 with)
{
    for (u32 i = 0; i < n; i++)
        if (object[i] != with)
            return false;
    return true;
}

static void object_new(struct ktest *t, u32 i)
{
    objects[i] = pool_alloc(&pool);
    KTEST_CHECK(objects[i] && is_zero(objects[i], pool.object_bytes), "%u bytes, object %u",
                pool.object_bytes, i);
    if (objects[i])
        memset(objects[i], (int)(i % 251 + 1), pool.object_bytes);
}

static void object_end(struct ktest *t, u32 i)
{
    if (!objects[i])
        return;
    bool intact = is_filled(objects[i], pool.object_bytes, (u8)(i % 251 + 1));
    KTEST_CHECK(intact, "%u bytes, object %u was written to", pool.object_bytes, i);
    pool_free(&pool, objects[i]);
}

static void check_size(struct ktest *t, u32 bytes)
{
    pool = (struct pool){.object_bytes = bytes};
    u64 free = pages_free_count();
    u32 n = MIN(OBJECTS, 12 * (u32)PAGE_SIZE / bytes); /* a few pages */
    for (u32 i = 0; i < n; i++)
        object_new(t, i);
    KTEST_CHECK(pool.live == n && pages_free_count() == free - pool.pages, "%lu live, %lu pages",
                pool.live, pool.pages);
    u64 full = pool.pages;
    u32 at_least = ((u32)PAGE_SIZE - 32) / bytes; /* of them fit into a page */
    KTEST_CHECK(full <= (n + at_least - 1) / at_least, "%u of %u bytes in %lu pages", n, bytes,
                full);
    for (u32 i = 0; i < n; i += 2) /* every page gets room, and fills again */
        object_end(t, i);
    for (u32 i = 0; i < n; i += 2)
        object_new(t, i);
    KTEST_CHECK(pool.pages == full && pool.live == n, "%u bytes: %lu pages, %lu before", bytes,
                pool.pages, full);
    for (u32 i = 0; i < n; i++)
        object_end(t, (i * 601 + 3) % n); /* 601 is prime: each once */
    KTEST_CHECK(!pool.live && !pool.pages && !pool.partial, "%lu live, %lu pages", pool.live,
                pool.pages);
    KTEST_CHECK(pages_free_count() == free, "%u bytes: %lu free, %lu before", bytes,
                pages_free_count(), free);
}

MM_TEST(pool, sizes)
{
    static const u32 sizes[] = {8, 16, 24, 40, 136, 1000, 2032, 4064};
    for (u32 i = 0; i < ARRAY_SIZE(sizes); i++)
        if (pages_free_count() > 256)
            check_size(t, sizes[i]);
}

MM_TEST(pool, one_object_one_page)
{
    pool = (struct pool){.object_bytes = 24};
    for (int round = 0; round < 3; round++) {
        void *object = pool_alloc(&pool);
        KTEST_CHECK(object && pool.pages == 1 && pool.live == 1, "round %d: %lu pages", round,
                    pool.pages);
        if (!object)
            return;
        u64 pfn = pfn_of(direct_to_phys(object));
        KTEST_CHECK(page_at(pfn)->head == page_head(PAGE_POOL, 0, 0), "0x%lx", page_at(pfn)->head);
        pool_free(&pool, object);
        KTEST_CHECK(!page_at(pfn)->head && !pool.pages, "round %d: %lu pages", round, pool.pages);
    }
}

MM_TEST(pool, out_of_memory)
{
    struct chain all = {0};
    pool = (struct pool){.object_bytes = 2000};
    void *first = pool_alloc(&pool);
    chain_fill(&all, PAGES_RESERVE);
    void *second = pool_alloc(&pool), *third = pool_alloc(&pool);
    KTEST_CHECK(first && second && !third, "%d%d%d", !!first, !!second, !!third);
    KTEST_CHECK(pool.live == 2 && pool.pages == 1, "%lu live, %lu pages", pool.live, pool.pages);
    KTEST_CHECK(!chain_free(&all), "giving back");
    if (first)
        pool_free(&pool, first);
    if (second)
        pool_free(&pool, second);
}
