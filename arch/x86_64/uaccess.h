/* Copies between the kernel and a client's pages through the client's tables (those in CR3). */
#pragma once
#include "x86_64/trap.h"

/* Returns the number of bytes that could not be copied; *fault is then the address that faulted. */
size_t user_copy_in(void *dst, u64 user_src, size_t n, u64 *fault);
size_t user_copy_out(u64 user_dst, const void *src, size_t n, u64 *fault);
/* No access to user pages from here on: what a trap does, also one that interrupts a copy. */
void user_access_end(void);
/* Called by the page-fault handler: true when the fault was in a copy, which then returns early. */
bool user_copy_fixup(struct pt_regs *regs, u64 address);
