/* The dispatch table, which is also the calls' description, and serving one entry. */
#include "rpc/calls.h"
#include "x86_64/percpu.h"
#include "lib/errno.h"
#include "lib/string.h"

/* Handlers take their arguments by name; the table needs one type for all. */
#define CALL(number, name, ...)                                                                    \
    static long serve_##name(struct call *c)                                                       \
    {                                                                                              \
        return call_##name(c, (const struct name##_args *)c->arg);                                 \
    }
#include "rpc/calls.def"
#undef CALL

#define ARGS(...)               .args = {__VA_ARGS__}
#define ARG(type, name, doc)    {CALL_TYPE_##type, #name, doc},
#define RESULTS(...)            .results = {__VA_ARGS__}
#define RESULT(type, name, doc) {CALL_TYPE_##type, #name, doc},
#define IN(kind)                .in = CALL_##kind
#define OUT(kind, struct_name)  .out = CALL_##kind, .out_struct = #struct_name
#define CALL(num, nam, sco, arguments, in_data, out_data, res, err, text)                          \
    {.number = num,                                                                                \
     .scope = CALL_##sco,                                                                          \
     .name = #nam,                                                                                 \
     .doc = text,                                                                                  \
     .errors = err,                                                                                \
     .handler = serve_##nam,                                                                       \
     arguments,                                                                                    \
     in_data,                                                                                      \
     out_data,                                                                                     \
     res},
static const struct call_desc table[] __attribute__((section(".kos.calls"), used)) = {
#include "rpc/calls.def"
};
#undef CALL

static u8 index_of[CALL_NUMBERS]; /* position in the table plus one */

static void index_fill(void)
{
    for (const struct call_desc *d = calls_begin; d < calls_end; d++)
        index_of[d->number] = (u8)(d - calls_begin + 1);
}

const struct call_desc *call_by_number(u32 number)
{
    if (unlikely(!index_of[table[0].number]))
        index_fill();
    if (number >= CALL_NUMBERS || !index_of[number])
        return NULL;
    return &calls_begin[index_of[number] - 1];
}

const struct call_desc *call_by_name(const char *name)
{
    for (const struct call_desc *d = calls_begin; d < calls_end; d++)
        if (!strcmp(d->name, name))
            return d;
    return NULL;
}

u32 call_arg_count(const struct call_desc *d)
{
    u32 n = 0;
    while (n < RPC_ARGS && d->args[n].type)
        n++;
    return n;
}

const char *call_type_name(enum call_type type)
{
    static const char *const names[] = {"", "u32", "u64", "paddr", "vaddr"};
    return names[type];
}

long call_answer(struct call *c, const void *bytes, size_t n)
{
    if (c->data_cap < n)
        return -EMSGSIZE;
    memcpy(c->data, bytes, n);
    c->out_len = (u32)n;
    return 0;
}

/* What can be checked without knowing the call. */
static long check(const struct call_desc *d, const struct rpc_entry *e, bool wire)
{
    if (!d)
        return -ENOSYS;
    if (d->scope == CALL_WIRE && !wire)
        return -EPERM;
    if (e->data_len && d->in == CALL_NONE)
        return -EINVAL;
    if (d->in == CALL_U64S && e->data_len % 8)
        return -EINVAL;
    for (u32 i = 0; i < RPC_ARGS; i++)
        if (d->args[i].type == CALL_TYPE_u32 ? e->arg[i] > UINT32_MAX
                                             : !d->args[i].type && e->arg[i])
            return -EINVAL;
    return 0;
}

void call_serve(struct client *client, const struct rpc_entry *e, void *data, bool wire,
                struct rpc_completion *c)
{
    const struct call_desc *d = call_by_number(e->op);
    struct call call = {
        .client = client,
        .arg = e->arg,
        .data = data,
        .data_len = e->data_len,
        .data_cap = e->data_cap,
    };
    struct cpu *cpu = this_cpu();
    long status = check(d, e, wire);
    if (!status) {
        cpu->current_call = d->name;
        status = d->handler(&call);
        cpu->current_call = NULL;
    }
    cpu->calls++;
    /* Its rings may be on several CPUs. */
    __atomic_fetch_add(&client->calls, 1, __ATOMIC_RELAXED);
    if (status < 0)
        __atomic_fetch_add(&client->refused, 1, __ATOMIC_RELAXED);
    *c = (struct rpc_completion){.tag = e->tag,
                                 .status = (s32)status,
                                 .result = {call.result[0], call.result[1]},
                                 .data_len = call.out_len};
}
