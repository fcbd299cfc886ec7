/*
 * Around every handler: what calls.c promises to it is checked before, and what it answers is noted
 * for the target after. The linker's --wrap puts these functions in the handlers' places.
 *
 * Handlers that work on the machine's memory are not linked. A stand-in takes their place, which
 * uses what it may use and answers by its arguments alone.
 */
#include <sanitizer/asan_interface.h>
#include <string.h>
#include "fuzz.h"
#include "lib/errno.h"

struct model_call {
    const char *name;
    enum call_scope scope;
    enum call_type args[RPC_ARGS];
    enum call_data in, out;
};

#define ARGS(...)                                                                                  \
    {                                                                                              \
        __VA_ARGS__                                                                                \
    }
#define ARG(type, name, doc) CALL_TYPE_##type,
#define IN(kind)             CALL_##kind
#define OUT(kind, name)      CALL_##kind
#define CALL(number, name, scope, args, in, out, ...)                                              \
    [number] = {#name, CALL_##scope, args, in, out},
static const struct model_call calls[CALL_NUMBERS] = {
#include "rpc/calls.def"
};
#undef CALL
#undef ARG
#undef ARGS

#define CALL(number, ...) number,
static const u8 numbers[] = {
#include "rpc/calls.def"
};
#undef CALL

u32 model_call_number(u32 index)
{
    return numbers[index % ARRAY_SIZE(numbers)];
}

enum call_type model_arg_type(u32 number, u32 index)
{
    return calls[number].args[index];
}

s32 model_refusal(const struct rpc_entry *e, bool wire)
{
    if (e->op >= CALL_NUMBERS || !calls[e->op].name)
        return -ENOSYS;
    const struct model_call *m = &calls[e->op];
    if (m->scope == CALL_WIRE && !wire)
        return -EPERM;
    if ((m->in == CALL_NONE && e->data_len) || (m->in == CALL_U64S && e->data_len % 8))
        return -EINVAL;
    for (u32 i = 0; i < RPC_ARGS; i++)
        if ((m->args[i] == CALL_TYPE_u32 && e->arg[i] >> 32) || (!m->args[i] && e->arg[i]))
            return -EINVAL;
    return 0;
}

static void handler_begins(u32 number, const struct call *c, const void *args)
{
    const struct model_call *m = &calls[number];
    CHECK(!strcmp(this_cpu()->current_call, m->name), "%s", m->name);
    CHECK(args == (const void *)c->arg, "%s: arguments at two places", m->name);
    for (u32 i = 0; i < RPC_ARGS; i++)
        CHECK(m->args[i] == CALL_TYPE_u32 ? c->arg[i] <= UINT32_MAX : m->args[i] || !c->arg[i],
              "%s: argument %u is 0x%lx", m->name, i, c->arg[i]);
    CHECK(m->in != CALL_NONE || !c->data_len, "%s: %u bytes", m->name, c->data_len);
    CHECK(m->in != CALL_U64S || c->data_len % 8 == 0, "%s: %u bytes", m->name, c->data_len);
    CHECK(!c->out_len && !c->result[0] && !c->result[1], "%s: answered already", m->name);
    CHECK((u64)c->data % 8 == 0, "%s: data at %p", m->name, c->data);
    target_call_begins(number, c);
    u32 bytes = MAX(c->data_len, c->data_cap);
    CHECK(!bytes || !__asan_region_is_poisoned(c->data, bytes),
          "%s: %u bytes at %p are not its own", m->name, bytes, c->data);
}

static long handler_ends(u32 number, const struct call *c, long status)
{
    CHECK(c->out_len <= c->data_cap, "%s: answers %u bytes", calls[number].name, c->out_len);
    target_call_ends(&(struct served){.status = (s32)status,
                                      .result = {c->result[0], c->result[1]},
                                      .data_len = c->out_len,
                                      .data = c->data});
    return status;
}

/* Any mix of all that the call has, so that answers differ. */
static u64 mix(u64 hash, u64 word)
{
    return (hash ^ word) * 0x9e3779b97f4a7c15 >> 3;
}

/* Reads the ends of what came, and writes the ends of what may be answered. */
static u64 touch(const struct call *c, u32 out_len)
{
    u8 *data = c->data;
    u64 hash = c->data_len;
    if (c->data_len)
        hash = mix(data[0], data[c->data_len - 1]);
    if (out_len) {
        data[0] = (u8)hash;
        data[out_len - 1] = (u8)~hash;
    }
    return hash;
}

static long stand_in(u32 number, struct call *c)
{
    static const s32 statuses[] = {0, 0, 0, -EINVAL, -EBUSY, -ENOMEM, -EFAULT, 0};
    u64 hash = number;
    for (u32 i = 0; i < RPC_ARGS; i++)
        hash = mix(hash, c->arg[i]);
    touch(c, calls[number].out == CALL_NONE ? 0 : c->data_cap);
    s32 status = statuses[hash % ARRAY_SIZE(statuses)];
    if (status)
        return status;
    c->out_len = calls[number].out == CALL_NONE ? 0 : c->data_cap;
    c->result[0] = hash;
    c->result[1] = ~hash;
    return 0;
}

#define CALL(number, name, ...)                                                                    \
    __attribute__((weak)) long call_##name(struct call *c, const struct name##_args *a)            \
    {                                                                                              \
        (void)a;                                                                                   \
        return stand_in(number, c);                                                                \
    }                                                                                              \
    long __real_call_##name(struct call *c, const struct name##_args *a);                          \
    long __wrap_call_##name(struct call *c, const struct name##_args *a);                          \
    long __wrap_call_##name(struct call *c, const struct name##_args *a)                           \
    {                                                                                              \
        handler_begins(number, c, a);                                                              \
        return handler_ends(number, c, __real_call_##name(c, a));                                  \
    }
#include "rpc/calls.def"
#undef CALL
