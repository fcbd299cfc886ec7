/*
 * What travels between host and kernel: the entry of a call and its completion, the same on rings
 * and in frames. The host is not trusted: an entry is copied before it is looked at.
 */
#pragma once
#include "lib/types.h"

#define RPC_ABI_VERSION 1
#define RPC_ARGS        5

struct rpc_entry {
    u16 op;     /* number of the call */
    u16 client; /* frames: on whose behalf; rings: not looked at */
    u32 tag;    /* comes back in the completion */
    u64 arg[RPC_ARGS];
    u32 data_off; /* rings: where in the ring's data area, a multiple of 8 */
    u32 data_len; /* bytes that come with the call */
    u32 data_cap; /* room for bytes of the answer, at data_off */
    u32 reserved;
};
_Static_assert(sizeof(struct rpc_entry) == 64, "an entry is 64 bytes");

struct rpc_completion {
    u32 tag;
    s32 status; /* 0 or a negative errno */
    u64 result[2];
    u32 data_len;
    u32 reserved;
};
_Static_assert(sizeof(struct rpc_completion) == 32, "a completion is 32 bytes");
