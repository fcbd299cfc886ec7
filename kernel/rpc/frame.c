/* See frame.h. */
#include "rpc/frame.h"
#include "x86_64/cpu.h"
#include "x86_64/percpu.h"
#include "core/spinlock.h"
#include "drivers/uart.h"
#include "lib/cobs.h"
#include "lib/crc32.h"
#include "lib/errno.h"
#include "lib/string.h"
#include "mm/memmap.h"
#include "rpc/calls.h"
#include "rpc/ring.h"

#define BODY_MAX   (1 + sizeof(struct rpc_entry) + FRAME_DATA_MAX)
#define PLAIN_MAX  (1 + BODY_MAX + 4)
#define POLL_BYTES 1024 /* at a time, so that other work gets its turn */

extern const u8 build_id_note[];
extern u64 boot_tsc;

static struct spinlock wire_lock;
static u64 frames, errors, ready_ticks;

static struct client *offered; /* NULL when there was no memory for its ring */
static u64 offered_ring;

static u8 rx[COBS_MAX(PLAIN_MAX)];
static size_t rx_len; /* more than sizeof(rx): too long, passed over up to its end */

void frame_count_error(void)
{
    __atomic_add_fetch(&errors, 1, __ATOMIC_RELAXED);
}

u64 frame_count(void)
{
    return frames;
}

u64 frame_errors(void)
{
    return errors;
}

u64 frame_boot_ticks(void)
{
    return ready_ticks;
}

void frame_mark_ready(void)
{
    ready_ticks = rdtsc() - boot_tsc;
}

/* Encodes and sends in one pass over a buffer of its own: a frame is never half under the lock. */
static void frame_send_parts(u8 kind, const void *head, size_t head_len, const void *data, size_t n)
{
    static u8 plain[PLAIN_MAX], coded[COBS_MAX(PLAIN_MAX) + 1];
    size_t len = 0;
    plain[len++] = kind;
    memcpy(plain + len, head, head_len);
    len += head_len;
    memcpy(plain + len, data, n);
    len += n;
    u32 crc = crc32(0, plain, len);
    memcpy(plain + len, &crc, sizeof(crc));
    size_t out = cobs_encode(coded, plain, len + sizeof(crc));
    coded[out++] = 0;
    uart_write(&uart_wire, coded, out);
}

static void frame_send(u8 kind, const void *head, size_t head_len, const void *data, size_t n)
{
    SPIN_GUARD(&wire_lock);
    frame_send_parts(kind, head, head_len, data, n);
}

void frame_send_doorbell(void)
{
    SPIN_GUARD(&wire_lock);
    uart_write(&uart_wire, "", 1);
}

void frame_send_bye(void)
{
    frame_send(FRAME_BYE, "", 0, "", 0);
}

void frame_send_panic(const void *record, size_t n)
{
    uart_write(&uart_wire, "", 1);
    frame_send_parts(FRAME_PANIC, record, MIN(n, BODY_MAX - 1), "", 0);
}

void frame_offer_client(void)
{
    if (!client_open("host", &offered) && ring_open(offered, &offered_ring)) {
        client_close(offered);
        offered = NULL;
    }
}

void frame_offer_end(u64 ring)
{
    if (ring == offered_ring)
        offered = NULL;
}

void frame_send_hello(void)
{
    struct frame_hello h = {
        .magic = HELLO_MAGIC,
        .version = RPC_ABI_VERSION,
        .cpus = cpu_count,
        .total_bytes = range_total(&memmap.ram),
        .boot_ticks = ready_ticks,
        .boot_tsc = boot_tsc,
    };
    if (offered) {
        h.client = offered->owner.id;
        h.ring = offered_ring;
    }
    memcpy(h.build_id, build_id_note + 16, sizeof(h.build_id));
    frame_send(FRAME_HELLO, &h, sizeof(h), "", 0);
}

/* A call frame's body: length of the entry, the entry, data. */
static bool call_decode(const u8 *body, size_t n, struct rpc_entry *e, u8 *data)
{
    *e = (struct rpc_entry){0};
    if (n < 1 || body[0] > sizeof(*e) || body[0] > n - 1)
        return false;
    memcpy(e, body + 1, body[0]);
    size_t rest = n - 1 - body[0];
    if (rest != e->data_len || rest > FRAME_DATA_MAX)
        return false;
    memcpy(data, body + 1 + body[0], rest);
    return true;
}

static bool frame_call(const u8 *body, size_t n)
{
    static u8 data[FRAME_DATA_MAX] __attribute__((aligned(8)));
    struct rpc_entry e;
    struct rpc_completion c;
    if (!call_decode(body, n, &e, data))
        return false;
    struct client *client = client_get(e.client ? e.client : CLIENT_WIRE);
    e.data_cap = MIN(e.data_cap, (u32)FRAME_DATA_MAX);
    if (client)
        call_serve(client, &e, data, true, &c);
    else
        c = (struct rpc_completion){.tag = e.tag, .status = -EBADF};
    frame_send(FRAME_REPLY, &c, sizeof(c), data, c.data_len);
    return true;
}

static bool frame_take(u8 *bytes, size_t n)
{
    long len = cobs_decode(bytes, n);
    if (len < 5)
        return false;
    u32 crc;
    len -= 4;
    memcpy(&crc, bytes + len, sizeof(crc));
    if (crc != crc32(0, bytes, (size_t)len))
        return false;
    frames++;
    if (bytes[0] == FRAME_CALL)
        return frame_call(bytes + 1, (size_t)len - 1);
    if (bytes[0] == FRAME_HELLO && len == 1) {
        frame_send_hello();
        return true;
    }
    return false;
}

static void frame_end(void)
{
    size_t n = rx_len;
    rx_len = 0;
    if (n && (n > sizeof(rx) || !frame_take(rx, n))) {
        frame_count_error();
        frame_send(FRAME_ERROR, "", 0, "", 0);
    }
    ring_wake_others(); /* each zero byte is a doorbell, also one that ends a frame or noise */
}

bool frame_poll(void)
{
    int byte, taken = 0;
    for (; taken < POLL_BYTES && (byte = uart_read(&uart_wire)) >= 0; taken++) {
        if (!byte)
            frame_end();
        else if (rx_len < sizeof(rx))
            rx[rx_len++] = (u8)byte;
        else
            rx_len = sizeof(rx) + 1;
    }
    return taken;
}
