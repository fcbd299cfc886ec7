// SPDX-License-Identifier: GPL-2.0
/* The page allocator: pairs of each order, and many pages at once. */
#include <linux/gfp.h>
#include "kbench.h"

static void bench_pairs(void)
{
    unsigned int order;
    int i;
    for (order = 0; order < MAX_ORDER; order++) {
        int pairs = order <= 4 ? 1000 : order <= 6 ? 100 : 10;
        int batches = order <= 4 ? 100 : 30;
        char name[32];
        snprintf(name, sizeof(name), "pages_pair_o%u", order);
        BENCH(
            name, pairs, batches, , for (i = 0; i < pairs; i++) {
                struct page *page = alloc_pages(GFP_KERNEL, order);
                if (unlikely(!page)) {
                    print("FAIL %s 0\n", name);
                    return;
                }
                __free_pages(page, order);
            }, );
    }
}

static void bench_order_0(void)
{
    int i;
    BENCH("pages_pair_o0_single", 1, 100, , __free_pages(alloc_pages(GFP_KERNEL, 0), 0), );
    BENCH("pages_pair_o0_zeroed", 200, 50, ,
          for (i = 0; i < 200; i++) __free_pages(alloc_pages(GFP_KERNEL | __GFP_ZERO, 0), 0), );
}

#define FREE_PAGE(page) __free_pages(page, 0)

void bench_pages(void)
{
    enum free_order order;
    bench_pairs();
    bench_order_0();
    for (order = FREE_LIFO; order <= FREE_RANDOM; order++) {
        permute(order);
        BENCH_ALL("pages_batch1024", order, alloc_pages(GFP_KERNEL, 0), FREE_PAGE);
    }
}
