/*
 * Fuzz target: rings, through the kernel's ring_poll, ring_open, ring_close and calls.c.
 *
 * An input is a list of steps of a host that is not to be trusted: it writes entries, indices, data
 * and the kernel's own words, polls, rings, opens and closes; and, as another CPU would, it writes
 * while a handler runs. After each poll a ring's block must be as ring_model.h has it, and at the end
 * of every input each ring must answer a ping.
 */
#include "input.h"
#include "mm/mm.h"
#include "ring_model.h"
#include "rpc/frame.h"
#include "x86_64/paging.h"

#define STEPS_MAX 128

/* ---- Polling ---- */

/* Takes in the indices as the kernel finds them; whether all of it is passed over. */
static bool poll_begins(struct model_ring *r)
{
    u32 waiting = word_of(r, SQ_TAIL) - r->sq_head;
    bool over = waiting > RING_ENTRIES;
    if (over) {
        r->sq_head += waiting;
        model_set_word(r, SQ_HEAD, r->sq_head);
    }
    r->left = over ? 0 : model_waiting(r);
    r->served = r->left;
    ASAN_POISON_MEMORY_REGION(r->block + RING_DATA, RING_DATA_BYTES);
    return over;
}

/* Whether the host was waiting for a doorbell. */
static bool poll_ends(struct model_ring *r)
{
    bool rings_bell = r->served && word_of(r, HOST_WAITS) != r->waits_seen;
    ASAN_UNPOISON_MEMORY_REGION(r->block + RING_DATA, RING_DATA_BYTES);
    if (rings_bell)
        r->waits_seen = word_of(r, HOST_WAITS);
    check_block(r);
    return rings_bell;
}

static void poll(u32 cpu)
{
    u64 errors = frame_errors();
    u32 bells = 0;
    bool served = false;
    fuzz_cpu = cpu;
    doorbells = 0;
    for (u32 i = 0; i < RINGS; i++)
        if (is_on(&rings[i], cpu)) {
            errors += poll_begins(&rings[i]);
            served |= rings[i].served;
        }
    bool said = ring_poll(cpu);
    CHECK(said == served, "%d", said);
    CHECK(!next_ring(), "%u entries were not served", next_ring()->left);
    for (u32 i = 0; i < RINGS; i++)
        if (is_on(&rings[i], cpu))
            bells += poll_ends(&rings[i]);
    CHECK(doorbells == bells, "%u doorbells, expected %u", doorbells, bells);
    CHECK(frame_errors() == errors, "%lu errors too many", frame_errors() - errors);
    intrusion_count = 0;
}

static bool model_pending(u32 cpu)
{
    for (u32 i = 0; i < RINGS; i++)
        if (is_on(&rings[i], cpu) && word_of(&rings[i], SQ_TAIL) != rings[i].sq_head &&
            rings[i].cq_tail - word_of(&rings[i], CQ_HEAD) < RING_ENTRIES)
            return true;
    return false;
}

static void check_wake(u32 cpu)
{
    u32 expected = 0;
    fuzz_cpu = cpu;
    for (u32 other = 0; other < cpu_count; other++) {
        CHECK(ring_pending(other) == model_pending(other), "CPU %u", other);
        expected |= (u32)(other != cpu && model_pending(other)) << other;
    }
    ring_wake_others();
    u32 woken = machine_woken();
    CHECK(woken == expected, "woke 0x%x, expected 0x%x", woken, expected);
}

static void set_doorbell(u32 cpu, bool wanted)
{
    ring_set_doorbell(cpu, wanted);
    for (u32 i = 0; i < RINGS; i++)
        if (is_on(&rings[i], cpu)) {
            model_set_word(&rings[i], DOORBELL_WANTED, wanted);
            check_block(&rings[i]);
        }
}

/* ---- Opening and closing ---- */

static void open_ring(struct model_ring *r, struct client *client)
{
    struct ring_header h;
    u64 paddr;
    if (r->client)
        return;
    int err = ring_open(client, &paddr);
    CHECK(!err, "error %d", err);
    *r = (struct model_ring){.paddr = paddr, .client = client};
    r->block = phys_to_virt(paddr);
    memcpy(r->queues, r->block, QUEUES_END);
    memcpy(&h, r->block, sizeof(h));
    CHECK(h.entries == RING_ENTRIES && h.cq_offset == RING_CQ && h.sq_offset == RING_SQ &&
              h.data_offset == RING_DATA && h.data_bytes == RING_DATA_BYTES,
          "shape of the ring");
    CHECK(h.client == client->owner.id && h.doorbell_wanted == 1, "client %u", h.client);
    CHECK(!h.sq_tail && !h.cq_head && !h.host_waits && !h.sq_head && !h.cq_tail, "indices");
    /* The lowest slot of that CPU that is free. */
    for (r->slot = h.cpu;; r->slot += cpu_count) {
        bool used = false;
        for (u32 i = 0; i < RINGS; i++)
            used |= &rings[i] != r && rings[i].client && rings[i].slot == r->slot;
        if (!used)
            return;
    }
}

static void close_ring(struct model_ring *r)
{
    if (!r->client)
        return;
    int err = ring_close(r->paddr);
    CHECK(!err, "error %d", err);
    r->client = NULL;
}

static void close_any(u64 paddr)
{
    for (u32 i = 0; i < RINGS; i++)
        if (rings[i].client && rings[i].paddr == paddr)
            return;
    int err = ring_close(paddr);
    CHECK(err == -EINVAL, "0x%lx: error %d", paddr, err);
}

/* ---- What the input says ---- */

static void put_entry(struct model_ring *r, const struct rpc_entry *e)
{
    host_write(r, RING_SQ + r->put++ % RING_ENTRIES * sizeof(*e), e, sizeof(*e));
}

static void put_call(struct model_ring *r, struct input *in)
{
    struct rpc_entry e = {.tag = input_u16(in)};
    u8 how = input_u8(in);
    e.op = how & 1 ? (u16)input_number(in, CALL_NUMBERS) : (u16)model_call_number(input_u8(in));
    for (u32 i = 0; i < RPC_ARGS && how & 2; i++)
        if (e.op >= CALL_NUMBERS || model_arg_type(e.op, i) || how & 128)
            e.arg[i] = input_number(in, UINT32_MAX);
    if (how & 4)
        e.data_off = (u32)input_number(in, RING_DATA_BYTES);
    if (how & 8)
        e.data_len = (u32)input_number(in, RING_DATA_BYTES - (how & 16 ? e.data_off : 0));
    if (how & 32)
        e.data_cap = (u32)input_number(in, RING_DATA_BYTES - (how & 64 ? e.data_off : 0));
    put_entry(r, &e);
}

static void put_again(struct model_ring *r, u32 times)
{
    struct rpc_entry e = *model_entry(r, r->put - 1);
    for (; times; times--, e.tag++)
        put_entry(r, &e);
}

static void add_intrusion(struct input *in)
{
    struct intrusion *next = &intrusions[intrusion_count];
    u8 how = input_u8(in);
    u32 offset = input_u16(in);
    if (intrusion_count == ARRAY_SIZE(intrusions))
        return;
    if ((how & 3) == 0)
        offset %= 72; /* the indices */
    else if ((how & 3) == 1)
        offset = RING_SQ + offset % (RING_ENTRIES * sizeof(struct rpc_entry));
    *next = (struct intrusion){.after = how >> 4, .offset = offset, .bytes = how >> 2 & 3};
    next->bytes = 1u << next->bytes;
    input_bytes(in, &next->value, next->bytes);
    intrusion_count++;
}

static void twist(struct model_ring *r, struct input *in)
{
    struct rpc_entry e = *model_entry(r, --r->put);
    input_twist(in, &e);
    put_entry(r, &e);
}

/* Everything that was put is there to be served, and what was answered is taken. */
static void publish(struct model_ring *r)
{
    host_set_word(r, CQ_HEAD, r->cq_tail);
    host_set_word(r, SQ_TAIL, r->put);
}

static void take_step(struct model_ring *r, struct input *in, u32 what)
{
    u8 raw[sizeof(struct rpc_entry)];
    u32 cpu = r->slot % cpu_count;
    switch (what) {
    case 0:
        put_call(r, in);
        break;
    case 1:
        twist(r, in);
        break;
    case 2:
        input_bytes(in, raw, sizeof(raw));
        put_entry(r, (struct rpc_entry *)raw);
        break;
    case 3:
        put_again(r, input_u8(in) % 70);
        break;
    case 4:
    case 5:
        publish(r);
        poll(cpu);
        r->put = r->sq_head;
        break;
    case 6:
        host_set_word(r, SQ_TAIL, r->put);
        poll(cpu);
        break;
    case 7:
        host_set_word(r, SQ_TAIL, r->sq_head + (u32)input_number(in, RING_ENTRIES));
        break;
    case 8:
        host_set_word(r, CQ_HEAD, r->cq_tail - (u32)input_number(in, RING_ENTRIES));
        break;
    case 9: {
        u32 index = input_u8(in) % 64;
        host_set_word(r, index, (u32)input_number(in, UINT32_MAX));
        break;
    }
    case 10:
        host_set_word(r, HOST_WAITS, word_of(r, HOST_WAITS) + 1);
        break;
    case 11: {
        u32 offset = input_u16(in), n = input_u8(in) % sizeof(raw);
        input_bytes(in, raw, n);
        host_write(r, offset, raw, n);
        break;
    }
    case 12:
        add_intrusion(in);
        break;
    case 13:
        check_wake(input_u8(in) % cpu_count);
        break;
    case 14:
        set_doorbell(cpu, input_u8(in) & 1);
        break;
    default:
        poll(cpu);
    }
}

/* Opens, closes, and steps of a ring that is not open. */
static void take_other(struct model_ring *r, struct input *in)
{
    u8 how = input_u8(in);
    if (how & 1)
        open_ring(r, clients[how >> 1 & 1]);
    else if (how & 2)
        close_ring(r);
    else
        close_any(how & 4 ? r->paddr + (how >> 3) : input_u64(in));
}

/* Whatever came before, each ring answers. */
static void check_ping(struct model_ring *r, u64 value)
{
    struct rpc_completion c;
    struct rpc_entry e = {.op = 1, .tag = (u32)value, .arg = {value}};
    r->put = r->sq_head;
    put_entry(r, &e);
    publish(r);
    u32 at = RING_CQ + r->cq_tail % RING_ENTRIES * (u32)sizeof(c);
    poll(r->slot % cpu_count);
    memcpy(&c, r->block + at, sizeof(c));
    CHECK(c.tag == e.tag && !c.status && c.result[0] == value, "tag 0x%x, status %d", c.tag,
          c.status);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    machine_init();
    return 0;
}

static void begin(void)
{
    for (u32 i = 0; i < CLIENTS; i++) {
        int err = client_open("fuzz", &clients[i]);
        CHECK(!err, "error %d", err);
    }
    for (u32 i = 0; i < 3; i++)
        open_ring(&rings[i], clients[i % CLIENTS]);
}

static void end(void)
{
    for (u32 i = 0; i < CLIENTS; i++)
        client_close(clients[i]);
    for (u32 i = 0; i < RINGS; i++)
        rings[i].client = NULL;
    CHECK(!ring_count() && !machine_blocks_taken(), "%u rings, %u blocks", ring_count(),
          machine_blocks_taken());
}

int LLVMFuzzerTestOneInput(const u8 *bytes, size_t n)
{
    struct input in = {bytes, bytes + n};
    begin();
    for (u32 i = 0; i < STEPS_MAX && in.at < in.end; i++) {
        u8 step = input_u8(&in);
        struct model_ring *r = &rings[(step >> 5) % RINGS];
        if ((step & 31) == 31 || !r->client)
            take_other(r, &in);
        else
            take_step(r, &in, step & 15);
    }
    intrusion_count = 0;
    for (u32 i = 0; i < RINGS; i++)
        if (rings[i].client)
            check_ping(&rings[i], n * 0x100000001 + i);
    end();
    return 0;
}
