// SPDX-License-Identifier: GPL-2.0
/* Objects: caches of one size, kmalloc and krealloc, and what is too large for a cache. A size is
 * volatile where the allocator has to look up what to do with it. */
#include <linux/slab.h>
#include <linux/vmalloc.h>
#include "kbench.h"

static void bench_cache(int size)
{
    char name[48];
    int i;
    struct kmem_cache *cache;
    snprintf(name, sizeof(name), "kbench-%d", size);
    cache = kmem_cache_create(name, size, 0, 0, NULL);
    if (!cache) {
        print("FAIL %s 0\n", name);
        return;
    }
    snprintf(name, sizeof(name), "cache_pair_%d", size);
    BENCH(name, 1000, 100, ,
          for (i = 0; i < 1000; i++) kmem_cache_free(cache, kmem_cache_alloc(cache, GFP_KERNEL)), );
#define FREE_OBJECT(object) kmem_cache_free(cache, object)
    snprintf(name, sizeof(name), "cache_batch1024_%d", size);
    permute(FREE_LIFO);
    BENCH_ALL(name, FREE_LIFO, kmem_cache_alloc(cache, GFP_KERNEL), FREE_OBJECT);
    permute(FREE_RANDOM);
    BENCH_ALL(name, FREE_RANDOM, kmem_cache_alloc(cache, GFP_KERNEL), FREE_OBJECT);
    kmem_cache_destroy(cache);
}

static void bench_kmalloc_pairs(void)
{
    size_t size;
    size_t volatile kilobyte = 1024;
    int i;
    for (size = 8; size <= 8192; size *= 2) {
        size_t volatile looked_up = size;
        char name[32];
        snprintf(name, sizeof(name), "kmalloc_pair_%zu", size);
        BENCH(name, 1000, 100, ,
              for (i = 0; i < 1000; i++) kfree(kmalloc(looked_up, GFP_KERNEL)), );
    }
    BENCH(
        "kmalloc_pair_64_constant", 1000, 100, , for (i = 0; i < 1000; i++) {
            void *p = kmalloc(64, GFP_KERNEL);
            barrier_data(p);
            kfree(p);
        }, );
    BENCH("kzalloc_pair_1024", 1000, 50, ,
          for (i = 0; i < 1000; i++) kfree(kzalloc(kilobyte, GFP_KERNEL)), );
}

static void bench_kmalloc_all(void)
{
    size_t volatile size = 128;
    permute(FREE_LIFO);
    BENCH_ALL("kmalloc_batch1024_128", FREE_LIFO, kmalloc(size, GFP_KERNEL), kfree);
    permute(FREE_RANDOM);
    BENCH_ALL("kmalloc_batch1024_128", FREE_RANDOM, kmalloc(size, GFP_KERNEL), kfree);
}

static void bench_krealloc(void)
{
    /* 16, 32, ... 8192 bytes and freed: eleven calls are one operation. */
    BENCH("krealloc_chain_16_to_8192", 1, 100, , ({
              size_t volatile size;
              void *p = kmalloc(16, GFP_KERNEL);
              for (size = 32; size <= 8192; size *= 2)
                  p = krealloc(p, size, GFP_KERNEL);
              kfree(p);
          }), );
    /* Byte by byte, in one size class. */
    BENCH("krealloc_in_place_33_to_64", 31, 100, , ({
              size_t volatile size;
              void *p = kmalloc(33, GFP_KERNEL);
              for (size = 34; size <= 64; size++)
                  p = krealloc(p, size, GFP_KERNEL);
              kfree(p);
          }), );
}

static void bench_large(void)
{
    size_t volatile small = 64 << 10, large = 1 << 20;
    int i;
    BENCH("kmalloc_pair_64K", 100, 30, ,
          for (i = 0; i < 100; i++) kfree(kmalloc(small, GFP_KERNEL)), );
    BENCH("kmalloc_pair_1M", 20, 30, ,
          for (i = 0; i < 20; i++) kfree(kmalloc(large, GFP_KERNEL)), );
    BENCH("vmalloc_pair_64K", 20, 30, , for (i = 0; i < 20; i++) vfree(vmalloc(small)), );
    BENCH("vmalloc_pair_1M", 4, 20, , for (i = 0; i < 4; i++) vfree(vmalloc(large)), );
}

void bench_slab(void)
{
    bench_cache(64);
    bench_cache(256);
    bench_cache(1024);
    bench_kmalloc_pairs();
    bench_kmalloc_all();
    bench_krealloc();
    bench_large();
}
