/*
 * What the fuzz targets share. A target feeds the kernel's decoders, which are compiled as they are,
 * and says beforehand what must come of it: its model is written from docs/wire.md, not from the
 * code. What differs ends the program, and libFuzzer keeps the input.
 *
 *   frames.c   bytes on the wire, through frame_poll
 *   rings.c    blocks of memory, through ring_poll, with its model in ring_model.h
 *   handlers.c what each handler is promised, and stand-ins for handlers that need a machine
 *   machine.c  memory, CPUs and all else that the sources reach for
 *   input.h    the input as numbers
 */
#pragma once
#include <stdio.h>
#include <stdlib.h>
#include "x86_64/percpu.h"
#include "rpc/calls.h"

#define CHECK(condition, fmt, ...)                                                                 \
    do {                                                                                           \
        if (__builtin_expect(!(condition), 0)) {                                                   \
            fprintf(stderr, "%s:%d: %s: " fmt "\n", __FILE__, __LINE__, #condition,                \
                    ##__VA_ARGS__);                                                                \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

/* ---- machine.c ---- */

/* RAM, guest-physical: blocks of 64 KiB for rings, with nothing between them. */
void machine_init(void);
u32 machine_blocks_taken(void);
/* CPUs that were woken since it was asked last, a bit each. */
u32 machine_woken(void);

/* ---- handlers.c ---- */

/* What a call came to, and where its answer's data lie. */
struct served {
    s32 status;
    u64 result[2];
    u32 data_len;
    const u8 *data;
};

/* What is said of an entry before any handler: 0 or the error. */
s32 model_refusal(const struct rpc_entry *e, bool wire);
/* The number of the call at a place in a list of all, for inputs that name calls. */
u32 model_call_number(u32 index);
/* The type of an argument; 0 when the call has no such argument. */
enum call_type model_arg_type(u32 number, u32 index);

/* ---- Each target ---- */

/* A handler is about to run; the target compares with what it expects. */
void target_call_begins(u32 number, const struct call *c);
void target_call_ends(const struct served *s);
/* The kernel takes the next byte, -1: there is none; and sends some. */
int target_wire_read(void);
void target_wire_write(const u8 *bytes, size_t n);
