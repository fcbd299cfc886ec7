/*
 * Small objects of one size, carved out of pages. A page starts with its header; free objects are
 * chained through their first word, never-used ones are handed out by bumping. Pages with room are
 * linked by pfn; one that becomes empty goes back at once.
 *
 * Lock: pool.lock.
 */
#pragma once
#include "core/spinlock.h"

struct pool {
    struct spinlock lock;
    u32 object_bytes; /* at least 8 */
    u32 partial;      /* pfn of the first page with room, 0: none */
    u64 live, pages;
};

/* A zeroed object, or NULL when memory is out. */
void *pool_alloc(struct pool *p);
void pool_free(struct pool *p, void *object);
