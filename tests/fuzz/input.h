/* The input as numbers: whoever takes more than there is gets zeros. */
#pragma once
#include <string.h>
#include "lib/types.h"
#include "rpc/rpc.h"

struct input {
    const u8 *at, *end;
};

static inline void input_bytes(struct input *in, void *to, size_t n)
{
    size_t have = MIN(n, (size_t)(in->end - in->at));
    memset(to, 0, n);
    memcpy(to, in->at, have);
    in->at += have;
}

#define DEFINE_INPUT(type)                                                                         \
    static inline type input_##type(struct input *in)                                              \
    {                                                                                              \
        type value;                                                                                \
        input_bytes(in, &value, sizeof(value));                                                    \
        return value;                                                                              \
    }
DEFINE_INPUT(u8)
DEFINE_INPUT(u16)
DEFINE_INPUT(u32)
DEFINE_INPUT(u64)
#undef DEFINE_INPUT

/* A number for a field with a limit: mostly small, or at an edge, or anything. */
static inline u64 input_number(struct input *in, u64 limit)
{
    u8 how = input_u8(in);
    switch (how & 7) {
    case 0:
    case 1:
        return how >> 3;
    case 2:
        return limit + (how >> 3) - 16;
    case 3:
        return limit / 2 + (how >> 3);
    case 4:
        return (1ull << (how >> 2)) - (how >> 3 & 1);
    case 5:
        return input_u16(in) * 8ull;
    case 6:
        return input_u32(in);
    default:
        return input_u64(in);
    }
}

/* Moves one field of an entry a little, or by a power of two. */
static inline void input_twist(struct input *in, struct rpc_entry *e)
{
    static const u64 steps[] = {1,       -1ull,  2,          4,         -4ull,      8,
                                -8ull,   16,     1u << 12,   1u << 16,  1ull << 31, 1ull << 32,
                                7 << 13, -64ull, 1ull << 48, 1ull << 63};
    u8 what = input_u8(in);
    u64 step = steps[what >> 4];
    switch (what & 15) {
    case 0:
        e->op += step;
        break;
    case 1:
        e->client += step;
        break;
    case 2:
    case 3:
        e->data_off += step;
        break;
    case 4:
    case 5:
    case 6:
        e->data_len += step;
        break;
    case 7:
    case 8:
        e->data_cap += step;
        break;
    default:
        e->arg[what % RPC_ARGS] += step;
    }
}
