/*
 * Frames that belong to an owner, and all that can be asked of one: references, flags, a mapping.
 *
 * An owner's blocks form a list through their struct pages, so that all of them can be given back
 * when the owner goes. A mapped frame has a descriptor (struct frame_map) that holds its address and,
 * meanwhile, its place in the list.
 *
 * The sums in struct owner are those of the list: each state of a block is told twice, so that a look
 * from outside finds a word that went wrong.
 *
 * All functions refuse with -EINVAL what is not the first frame of a live block of this owner.
 *
 * Lock: owner.lock for the list and for every page in it.
 */
#pragma once
#include "mm/aspace.h"
#include "mm/page.h"

struct owner {
    u16 id;    /* not 0 */
    u32 first; /* pfn of the first block in the list, 0: none */
    struct spinlock lock;
    u32 dirty, locked; /* blocks with that flag */
    u64 blocks, pages; /* in the list */
    u64 extra_refs;    /* references beyond each block's first */
    struct aspace aspace;
};

/* What a frame is, as the outside is told. */
struct page_info {
    u64 paddr, block, vaddr; /* vaddr: 0 when not mapped */
    u32 place, kind, order, flags, owner, refs, cpu, zone;
};

/* A block of 2^order frames; split: as frames of their own. -EINVAL: order; -ENOMEM. */
int owned_alloc(struct owner *o, unsigned order, bool split, u64 *pfn);
/* The same for up to n blocks; *got is how many. Fails only when there is none at all. */
int owned_alloc_array(struct owner *o, unsigned order, u32 n, u64 *paddrs, u32 *got);
/* -EINVAL: not a block of that order; -EBUSY: locked, mapped or with other references. */
int owned_free(struct owner *o, u64 pfn, unsigned order);
/*
 * Gives blocks back in order, by physical address; at one that is refused it stops. *freed is how
 * many were. The addresses may change meanwhile: each is read once.
 */
int owned_free_array(struct owner *o, unsigned order, u32 n, const u64 *paddrs, u32 *freed);
/* Takes exactly this free frame, or one more reference to one that the owner has. -EBUSY, -EINVAL. */
int owned_claim(struct owner *o, u64 pfn);
/* Changes the reference count by one; the last put gives the frame back. *refs is what is left. */
int owned_get(struct owner *o, u64 pfn, u32 *refs);
int owned_put(struct owner *o, u64 pfn, u32 *refs);
/* Sets and clears PG_DIRTY and PG_LOCKED. */
int owned_flags(struct owner *o, u64 pfn, u32 set, u32 clear);
int owned_map(struct owner *o, u64 pfn, u64 vaddr);
int owned_unmap(struct owner *o, u64 pfn);
/* Any frame may be asked about; -EINVAL beyond the end of RAM. */
int owned_info(struct owner *o, u64 pfn, struct page_info *info);
/* Gives everything back, whatever its state; returns the frames. */
u64 owned_release_all(struct owner *o);
