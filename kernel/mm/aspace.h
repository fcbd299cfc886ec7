/*
 * An owner's address space: 4-level tables whose upper half is the kernel's. Tables are made on
 * demand and freed when their last entry goes; the struct page of a table counts its entries.
 *
 * Lock: aspace.lock for the tables.
 */
#pragma once
#include "core/spinlock.h"

#define ASPACE_LOWEST 0x1000 /* the page at 0 is never mapped */

struct aspace {
    struct spinlock lock;
    u64 root;   /* physical address of the top table; 0 until the first mapping */
    u64 tables; /* pages in tables, the root too */
    u64 mapped; /* pages mapped */
};

/* -EINVAL: not a page-aligned user address; -EEXIST: something is mapped there; -ENOMEM. */
int aspace_map(struct aspace *as, u64 vaddr, u64 pfn);
/* Takes the entry out and flushes it everywhere; *dirty says whether it was written through. */
void aspace_unmap(struct aspace *as, u64 vaddr, bool *dirty);
/* The dirty bit of a mapped page; `clear` takes it away (and flushes). */
bool aspace_dirty(struct aspace *as, u64 vaddr, bool clear);
/* Frees all tables. No CPU uses them afterwards. */
void aspace_destroy(struct aspace *as);
