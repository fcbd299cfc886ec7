/*
 * struct page: what a frame is now. One for each frame from 0 to page_end_pfn-1, in an array that is
 * only backed by memory where there is RAM; frames in holes read as zero.
 *
 * The first word (head) of a live block's first frame says everything that a free must match. All
 * other frames - free, in a magazine, tail of a block, reserved, not there - have a head of zero.
 * So boot touches nothing, and no wrong free can look like a right one. The second word is zero too
 * wherever the kind does not use it: only PAGE_CLIENT does.
 *
 * Locks: a page belongs to whoever its kind says; PAGE_CLIENT pages are under their owner's lock.
 */
#pragma once
#include "lib/types.h"
#include "mm/mm.h"

enum page_kind {
    PAGE_NONE,   /* nothing lives here, or the frame is a block's tail */
    PAGE_KERNEL, /* a block of the kernel's own */
    PAGE_CLIENT, /* a block that an owner holds */
    PAGE_TABLE,  /* a page table; refs counts its used entries */
    PAGE_POOL,   /* small objects; see pool.c */
};

#define PG_DIRTY  1
#define PG_LOCKED 2
#define PG_MAPPED 4 /* descriptor is a struct frame_map, which holds the links too */

struct page_links {
    u32 next, prev; /* pfn in the owner's list; 0 ends it */
};

struct page {
    union {
        struct {
            u8 kind : 4, order : 4;
            u8 flags;
            u16 owner; /* id */
            u32 refs;
        };
        u64 head;
    };
    union {
        struct page_links links;
        void *descriptor;
    };
};
_Static_assert(sizeof(struct page) == 16, "struct page is 16 bytes");

#ifdef KOS_HOSTED
extern struct page *page_array;
#else
#include "x86_64/layout.h"
#define page_array ((struct page *)VMEMMAP)
#endif

extern u64 page_end_pfn;

static inline struct page *page_at(u64 pfn)
{
    return &page_array[pfn];
}

/* The head that a fresh block has. */
static inline u64 page_head(enum page_kind kind, unsigned order, u16 owner)
{
    return 1ull << 32 | (u64)owner << 16 | (u64)(order << 4) | (u64)kind;
}
#define PAGE_HEAD_DIRTY ((u64)PG_DIRTY << 8)

/* What is at a frame, for people: the kind of place, and the block it belongs to. */
enum page_place {
    PLACE_NOT_RAM,
    PLACE_RESERVED, /* the kernel's image, its tables and metadata */
    PLACE_FREE,
    PLACE_MAGAZINE,
    PLACE_LIVE,
};
struct page_where {
    enum page_place place;
    u64 block; /* pfn of the block's first frame */
    u32 order;
    u32 cpu; /* of the magazine */
};
struct page_where page_find(u64 pfn);
/* The live block that the frame is in: its first frame, or 0. */
u64 page_live_block(u64 pfn);

/* Boot: maps the array over all RAM. */
void page_array_init(void);
