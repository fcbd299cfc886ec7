/* The calls, as calls.def lists them, and what a handler gets. */
#pragma once
#include "rpc/client.h"
#include "rpc/rpc.h"

struct call {
    struct client *client;
    const u64 *arg; /* the kernel's own copy */
    void *data;     /* the host can write to it at any time: read each byte once */
    u32 data_len;   /* bytes that came */
    u32 data_cap;   /* bytes that the answer may have, at the same place */
    u32 out_len;    /* set by the handler */
    u64 result[2];
};

enum call_type { CALL_TYPE_u32 = 1, CALL_TYPE_u64, CALL_TYPE_paddr, CALL_TYPE_vaddr };
enum call_data { CALL_NONE, CALL_BYTES, CALL_TEXT, CALL_U64S, CALL_STRUCT };
enum call_scope { CALL_ANY, CALL_WIRE };

struct call_value {
    enum call_type type;
    const char *name, *doc;
};

struct call_desc {
    u32 number;
    enum call_scope scope;
    const char *name, *doc, *errors;
    struct call_value args[RPC_ARGS];
    struct call_value results[2];
    enum call_data in, out;
    const char *out_struct;
    long (*handler)(struct call *);
};

#define CALL_NUMBERS 64

extern const struct call_desc calls_begin[], calls_end[];

/* The call with a number, or NULL. */
const struct call_desc *call_by_number(u32 number);
const struct call_desc *call_by_name(const char *name);
u32 call_arg_count(const struct call_desc *d);
/* For handlers: answers with these bytes; what does not fit is -EMSGSIZE, not a part. */
long call_answer(struct call *c, const void *bytes, size_t n);
/* "u32" and so on, as calls.def has it. */
const char *call_type_name(enum call_type type);

/*
 * Serves one entry (already copied) for a client; data and the limits on it are checked by the
 * carrier. Whatever the entry says, there is a completion.
 */
void call_serve(struct client *client, const struct rpc_entry *e, void *data, bool wire,
                struct rpc_completion *c);

#define ARGS(...)            __VA_ARGS__
#define ARG(type, name, doc) u64 name;
#define CALL(number, name, scope, args, in, out, results, errors, doc)                             \
    struct name##_args {                                                                           \
        args                                                                                       \
    };                                                                                             \
    long call_##name(struct call *c, const struct name##_args *a);
#include "rpc/calls.def"
#undef CALL
#undef ARG
#undef ARGS

struct machine_info {
    u64 total_bytes;    /* RAM as the memory map has it */
    u64 managed_bytes;  /* what the zones give out */
    u64 free_bytes;     /* in the zones and magazines */
    u64 magazine_bytes; /* of these, in magazines */
    u64 metadata_bytes; /* struct pages, bitmaps, magazines */
    u64 image_bytes;    /* the kernel image */
    u64 boot_ticks;     /* TSC ticks from entry to ready */
    u64 wire_frames, wire_errors;
    u32 cpus, clients, rings, abi_version;
};

struct cpu_info {
    u32 id, apic_id, asleep, pad;
    u64 calls, interrupts, sleeps, wakeups_sent, tlb_flushes, stack_low, stack_top;
};

struct zone_info {
    char name[16];
    u64 start_pfn, end_pfn, managed, free, watermark_min, watermark_low, watermark_high, failures;
    u64 free_blocks[NR_ORDERS], magazine_blocks[NR_ORDERS];
    u64 taken[NR_ORDERS], given[NR_ORDERS], splits[NR_ORDERS], merges[NR_ORDERS];
    u32 fragmentation[NR_ORDERS]; /* permille */
    u32 pad;
};
