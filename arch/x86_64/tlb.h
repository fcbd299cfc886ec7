/*
 * TLB shootdown. A CPU keeps a client's tables in CR3 until it needs another's, so a mapping that
 * goes away must be flushed on every CPU that may hold it.
 *
 * Lock: tlb_lock, one shootdown at a time. The sender waits for every target with interrupts on, so
 * that two senders cannot wait for each other.
 */
#pragma once
#include "lib/types.h"

struct aspace;

/* Makes the calling CPU use an address space's tables (NULL: only the kernel's). */
void tlb_activate(struct aspace *as);
/* Drops the translation of one page everywhere that the address space is active. */
void tlb_flush_page(struct aspace *as, u64 vaddr);
/* Takes the address space out of every CPU that has it in CR3; it may be freed afterwards. */
void tlb_retire(struct aspace *as);
void tlb_interrupt(void);
