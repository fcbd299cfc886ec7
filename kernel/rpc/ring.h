/*
 * Rings: the fast carrier. A ring is a block of guest RAM that the host maps too:
 *
 *   0      struct ring_header: indices, each written by one side only
 *   256    completion queue, 64 entries of 32 bytes
 *   4096   submission queue, 64 entries of 64 bytes
 *   8192   data area
 *
 * The host writes entries and then sq_tail; the kernel copies each entry, serves it, writes its
 * completion and then cq_tail. Indices run freely; the place is index % 64. The kernel keeps its own
 * copies of what it wrote: nothing that it reads back from the block is trusted.
 *
 * A ring belongs to one CPU, which polls it. Before that CPU halts it sets doorbell_wanted and looks
 * once more; a host that sees it set sends one zero byte on the wire. A host that stops polling
 * raises host_waits and looks once more; the kernel answers the change with one zero byte.
 *
 * A host that makes room in a full completion queue while entries wait rings, too.
 *
 * Lock: ring.lock, held while its CPU serves it or writes its header, and while it is opened or closed.
 */
#pragma once
#include "core/spinlock.h"

#define RING_ENTRIES    64
#define RING_ORDER      4
#define RING_CQ         256
#define RING_SQ         4096
#define RING_DATA       8192
#define RING_DATA_BYTES ((4096u << RING_ORDER) - RING_DATA)
#define MAX_RINGS       64

struct ring_header {
    /* written by the host */
    u32 sq_tail, cq_head, host_waits;
    u8 pad0[52];
    /* written by the kernel */
    u32 sq_head, cq_tail, doorbell_wanted;
    u8 pad1[52];
    u32 entries, cq_offset, sq_offset, data_offset, data_bytes, cpu, client;
    u8 pad2[100];
};
_Static_assert(sizeof(struct ring_header) == 256, "the header is 256 bytes");

struct client;

/* -ENFILE, -ENOMEM; *paddr is where the ring lies. */
int ring_open(struct client *c, u64 *paddr);
/* -EINVAL when no ring lies there. */
int ring_close(u64 paddr);
void ring_close_all(struct client *c);
u32 ring_count(void);

/* Serves what is in the CPU's rings, a bounded amount; true when there was something. */
bool ring_poll(u32 cpu);
bool ring_pending(u32 cpu);
void ring_set_doorbell(u32 cpu, bool wanted);
/* A doorbell came: wakes the CPUs that have entries waiting. */
void ring_wake_others(void);
