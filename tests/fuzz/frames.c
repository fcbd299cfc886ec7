/*
 * Fuzz target: bytes on the wire, through the kernel's frame_poll, cobs.c, crc32.c and calls.c.
 *
 * An input is a list of items: bytes as they are, frames with a right CRC around any content, calls
 * with fields at their edges, frames that are damaged after the CRC, long runs, and places where the
 * line falls silent for a while. So the fuzzer gets behind the CRC without having to guess it.
 *
 * The model reads each byte with the kernel. At the zero byte that ends a frame it says what must be
 * sent for it: a reply with this tag, this status, these results; an error; a hello. Each thing that
 * the kernel sends must be a whole frame, and exactly that one. At the end of every input the line is
 * ended with a zero byte, and a ping must be answered.
 */
#include <sanitizer/asan_interface.h>
#include "fuzz.h"
#include "input.h"
#include "lib/cobs.h"
#include "lib/errno.h"
#include "rpc/frame.h"
#include "rpc/ring.h"

#define LINE_BYTES 65536
#define ITEMS_MAX  64
#define CALL_MAX   (2 + sizeof(struct rpc_entry) + FRAME_DATA_MAX)
#define CODED_MAX  COBS_MAX(CALL_MAX + 4) /* no frame that makes sense is longer */
#define POLL_MAX   1024                   /* bytes that one frame_poll takes at most */

/* The line to the kernel: bytes that the input made and that the kernel has not taken. */
static u8 line[LINE_BYTES];
static size_t line_end, line_at, line_open; /* open: up to here the bytes have arrived */

/* What the model has of the frame that is arriving. */
static u8 coded[LINE_BYTES], plain[LINE_BYTES];
static size_t coded_len;
static size_t dirty = CODED_MAX; /* bytes of the kernel's buffer that were written to */

/* What must be sent for the frame that ended last; kind 0: nothing. */
static struct {
    u8 kind;
    bool to_handler; /* the status and results come from there */
    struct rpc_entry e;
    const u8 *data; /* that came */
    struct served served;
} expected;

static u64 model_frames, model_errors;
static bool clients_opened;

/* ---- COBS and CRC once more, in other words than the kernel's ---- */

static u32 crc_table[256];

static void crc_init(void)
{
    for (u32 i = 0; i < 256; i++) {
        u32 c = i;
        for (int bit = 0; bit < 8; bit++)
            c = c & 1 ? 0xedb88320 ^ c >> 1 : c >> 1;
        crc_table[i] = c;
    }
}

static u32 model_crc(const u8 *bytes, size_t n)
{
    u32 crc = UINT32_MAX;
    while (n--)
        crc = crc_table[(u8)crc ^ *bytes++] ^ crc >> 8;
    return ~crc;
}

static long model_decode(u8 *to, const u8 *from, size_t n)
{
    size_t out = 0;
    for (size_t at = 0; at < n;) {
        size_t next = at + from[at];
        bool zero = from[at] < 255 && next < n;
        if (!from[at] || next > n)
            return -1;
        while (++at < next)
            if (!(to[out++] = from[at]))
                return -1;
        if (zero)
            to[out++] = 0;
    }
    return (long)out;
}

/* ---- The model ---- */

static bool model_call(const u8 *body, size_t n)
{
    struct rpc_entry *e = &expected.e;
    if (n < 1 || body[0] > 64 || n < 1u + body[0])
        return false;
    memset(e, 0, sizeof(*e));
    memcpy(e, body + 1, body[0]);
    expected.data = body + 1 + body[0];
    if (e->data_len != n - 1 - body[0] || e->data_len > FRAME_DATA_MAX)
        return false;
    if (e->data_cap > FRAME_DATA_MAX)
        e->data_cap = FRAME_DATA_MAX;
    expected.served = (struct served){.data = plain};
    expected.served.status =
        client_get(e->client ? e->client : CLIENT_WIRE) ? model_refusal(e, true) : -EBADF;
    expected.to_handler = !expected.served.status;
    return true;
}

/* Whether the frame is one; *count is whether it counts as a frame, understood or not. */
static bool model_frame(long n, bool *count)
{
    u32 crc;
    *count = false;
    if (n < 5)
        return false;
    memcpy(&crc, plain + n - 4, 4);
    if (crc != model_crc(plain, (size_t)n - 4))
        return false;
    *count = true;
    expected.kind = plain[0] == FRAME_CALL ? FRAME_REPLY : FRAME_HELLO;
    if (plain[0] == FRAME_CALL)
        return model_call(plain + 1, (size_t)n - 5);
    return plain[0] == FRAME_HELLO && n == 5;
}

static void model_end(void)
{
    bool count;
    if (coded_len && !model_frame(model_decode(plain, coded, coded_len), &count)) {
        expected.kind = FRAME_ERROR;
        expected.to_handler = false;
        model_errors++;
        model_frames += count && coded_len <= CODED_MAX;
    } else if (coded_len) {
        model_frames++;
    }
    dirty = MAX(dirty, MIN(coded_len, CODED_MAX));
    coded_len = 0;
}

static void check_done(void)
{
    CHECK(!expected.kind, "'%c' was not sent, tag 0x%x", expected.kind, expected.e.tag);
}

int target_wire_read(void)
{
    check_done();
    if (line_at == line_open)
        return -1;
    u8 byte = line[line_at++];
    if (byte)
        coded[coded_len++] = byte;
    else
        model_end();
    return byte;
}

void target_call_begins(u32 number, const struct call *c)
{
    const struct rpc_entry *e = &expected.e;
    CHECK(expected.kind == FRAME_REPLY && expected.to_handler && e->op == number, "%u", number);
    CHECK(!memcmp(c->arg, e->arg, sizeof(e->arg)), "call %u: other arguments", number);
    CHECK(c->data_len == e->data_len && c->data_cap == e->data_cap, "%u, %u bytes, expected %u, %u",
          c->data_len, c->data_cap, e->data_len, e->data_cap);
    CHECK(!memcmp(c->data, expected.data, e->data_len), "call %u: other data", number);
    CHECK(c->client == client_get(e->client ? e->client : CLIENT_WIRE), "client %u", e->client);
    CHECK(!__asan_region_is_poisoned(c->data, FRAME_DATA_MAX), "%p", c->data);
    clients_opened |= number == 3;
}

void target_call_ends(const struct served *s)
{
    expected.served = *s;
    expected.to_handler = false;
}

static void check_reply(const u8 *body, size_t n)
{
    struct rpc_completion c;
    const struct served *s = &expected.served;
    CHECK(!expected.to_handler, "call %u was not served", expected.e.op);
    CHECK(n == sizeof(c) + s->data_len, "%zu bytes, expected %u of data", n, s->data_len);
    memcpy(&c, body, sizeof(c));
    CHECK(c.tag == expected.e.tag, "tag 0x%x, expected 0x%x", c.tag, expected.e.tag);
    CHECK(c.status == s->status, "status %d, expected %d", c.status, s->status);
    CHECK(!memcmp(c.result, s->result, sizeof(c.result)), "results 0x%lx 0x%lx", c.result[0],
          c.result[1]);
    CHECK(c.data_len == s->data_len && !c.reserved, "%u bytes", c.data_len);
    CHECK(!memcmp(body + sizeof(c), s->data, s->data_len), "other data");
}

static void check_hello(const u8 *body, size_t n)
{
    struct frame_hello h;
    CHECK(n == sizeof(h), "%zu bytes", n);
    memcpy(&h, body, n);
    CHECK(h.magic == HELLO_MAGIC && h.version == RPC_ABI_VERSION, "0x%x %u", h.magic, h.version);
    CHECK(h.cpus == cpu_count && !h.reserved, "%u CPUs", h.cpus);
    CHECK(!h.client || client_get(h.client), "no client %u", h.client);
}

void target_wire_write(const u8 *bytes, size_t n)
{
    static u8 sent[LINE_BYTES];
    CHECK(n > 1 && n < LINE_BYTES && memchr(bytes, 0, n) == bytes + n - 1, "%zu bytes", n);
    long len = model_decode(sent, bytes, n - 1);
    CHECK(len >= 5, "no COBS");
    u32 crc;
    memcpy(&crc, sent + len - 4, 4);
    CHECK(crc == model_crc(sent, (size_t)len - 4), "CRC 0x%x", crc);
    CHECK(sent[0] == expected.kind, "'%c', expected '%c'", sent[0], expected.kind);
    if (expected.kind == FRAME_REPLY)
        check_reply(sent + 1, (size_t)len - 5);
    else if (expected.kind == FRAME_HELLO)
        check_hello(sent + 1, (size_t)len - 5);
    else
        CHECK(len == 5, "%ld bytes", len);
    expected.kind = 0;
}

/* ---- What the input says ---- */

static void line_add(const u8 *bytes, size_t n)
{
    n = MIN(n, LINE_BYTES - line_end);
    memcpy(line + line_end, bytes, n);
    line_end += n;
}

static void line_add_byte(u8 byte)
{
    if (line_end < LINE_BYTES)
        line[line_end++] = byte;
}

/* COBS byte by byte, with the CRC; the zero byte that ends the frame follows. */
static void line_add_frame(u8 *content, size_t n)
{
    u32 crc = model_crc(content, n);
    memcpy(content + n, &crc, 4);
    n += 4;
    for (size_t at = 0, run = 0; at <= n && !(run == 254 && at == n); at += run < 254) {
        size_t code = line_end;
        line_add_byte(0);
        for (run = 0; run < 254 && at < n && content[at]; run++)
            line_add_byte(content[at++]);
        line[code] = (u8)(run + 1);
    }
    line_add_byte(0);
}

static u8 content[LINE_BYTES];

/* The content of a call's frame; its lengths may or may not agree. */
static size_t make_call(struct input *in, bool twisted)
{
    struct rpc_entry e = {.tag = input_u16(in)};
    u8 how = input_u8(in);
    e.op = how & 1 ? (u16)input_number(in, CALL_NUMBERS) : (u16)model_call_number(input_u8(in));
    e.client = how & 2 ? (u16)input_number(in, MAX_CLIENTS) : 0;
    for (u32 i = 0; i < RPC_ARGS && how & 4; i++)
        if (e.op >= CALL_NUMBERS || model_arg_type(e.op, i) || how & 128)
            e.arg[i] = input_number(in, UINT32_MAX);
    u32 bytes = how & 8 ? (u32)input_number(in, FRAME_DATA_MAX) : 0;
    if (bytes - (FRAME_DATA_MAX - 16) > 64) /* most are short, which is fast; or at the limit */
        bytes %= 600;
    e.data_cap = how & 16 ? (u32)input_number(in, FRAME_DATA_MAX) : 64;
    e.data_len = how & 32 ? (u32)input_number(in, bytes) : bytes;
    if (twisted)
        input_twist(in, &e);
    u8 entry_len = how & 64 ? input_u8(in) : sizeof(e), fill = bytes ? input_u8(in) : 0;
    content[0] = FRAME_CALL;
    content[1] = entry_len;
    memset(content + 2, 0, 256);
    memcpy(content + 2, &e, sizeof(e));
    size_t n = 2 + MIN(entry_len, sizeof(e));
    memset(content + n, fill, bytes);
    input_bytes(in, content + n, MIN(bytes, 16u));
    return n + bytes;
}

static void poll_line(void)
{
    size_t before = line_at;
    bool some = frame_poll();
    CHECK(some == (line_at > before), "%zu bytes taken", line_at - before);
    CHECK(line_at - before <= POLL_MAX, "%zu bytes taken at once", line_at - before);
    check_done();
}

static void poll_up_to(size_t open)
{
    line_open = open;
    while (line_at < line_open)
        poll_line();
}

static void add_run(u8 byte, size_t n)
{
    memset(content, byte, n);
    line_add(content, n);
}

/* Damages what was made last: a bit turned, or bytes cut off. */
static void damage(struct input *in)
{
    size_t at = input_u16(in), n = line_end - line_at;
    u8 how = input_u8(in);
    if (n && how & 1)
        line[line_at + at % n] ^= how;
    else if (n)
        line_end -= at % n;
}

static void take_item(struct input *in)
{
    u8 kind = input_u8(in), n = kind >> 3;
    switch (kind & 7) {
    case 0:
        input_bytes(in, content, n);
        line_add(content, n);
        break;
    case 1:
        input_bytes(in, content, n);
        line_add_frame(content, n);
        break;
    case 2:
    case 3:
        line_add_frame(content, make_call(in, kind & 1));
        break;
    case 4: {
        size_t len = make_call(in, false), at = input_u16(in) % len;
        content[at] ^= input_u8(in);
        line_add_frame(content, len - n % len);
        break;
    }
    case 5:
        add_run(input_u8(in), n < 31 ? n * 17 : CODED_MAX - 8 + input_u8(in) % 16);
        break;
    case 6:
        damage(in);
        break;
    default:
        line_add(&(u8){0}, n & 1);
        poll_up_to(line_end - MIN(n / 2, line_end - line_at));
    }
}

/* Whatever came before, a call is answered. */
static void check_ping(u32 tag)
{
    struct rpc_entry e = {.op = 1, .tag = tag, .arg = {tag}};
    line_add_byte(0);
    content[0] = FRAME_CALL;
    content[1] = sizeof(e);
    memcpy(content + 2, &e, sizeof(e));
    line_add_frame(content, 2 + sizeof(e));
    poll_up_to(line_end);
    CHECK(!expected.served.status && expected.served.result[0] == tag, "status %d",
          expected.served.status);
    CHECK(expected.e.tag == tag, "tag 0x%x", expected.e.tag);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    crc_init();
    machine_init();
    return 0;
}

static void close_clients(void)
{
    for (u32 id = CLIENT_FIRST; id < MAX_CLIENTS && (clients_opened || id == CLIENT_FIRST); id++)
        if (client_get(id))
            client_close(client_get(id));
    clients_opened = false;
    CHECK(!ring_count() && !machine_blocks_taken(), "%u rings, %u blocks", ring_count(),
          machine_blocks_taken());
}

/* What earlier inputs have left in the kernel's buffer must not change what this one does. */
static void wipe(void)
{
    add_run(UINT8_MAX, dirty);
    line_add_byte(0);
    poll_up_to(line_end);
    dirty = 0;
}

int LLVMFuzzerTestOneInput(const u8 *bytes, size_t n)
{
    struct input in = {bytes, bytes + n};
    line_end = line_at = line_open = 0;
    model_frames = frame_count();
    model_errors = frame_errors();
    frame_offer_client();
    wipe();
    for (u32 i = 0; i < ITEMS_MAX && in.at < in.end && line_end < LINE_BYTES - 2 * CALL_MAX; i++)
        take_item(&in);
    line_end = MIN(line_end, LINE_BYTES - 512);
    check_ping((u32)n * 0x10001);
    CHECK(frame_count() == model_frames, "%lu frames", frame_count() - model_frames);
    CHECK(frame_errors() == model_errors, "%lu errors", frame_errors() - model_errors);
    close_clients();
    return 0;
}
