/*
 * Frames: the carrier that needs only a serial line, and the handshake.
 *
 * A frame is COBS(kind, body, CRC-32 of both, little endian) and a zero byte. An empty frame - a
 * zero byte alone - is the doorbell. What cannot be decoded is counted, answered with an error
 * frame, and harms nothing: the next zero byte starts afresh.
 *
 *   'C'  to the kernel: struct rpc_entry (trailing zero bytes may be left out), preceded by its
 *        length as one byte, then the call's data
 *   'R'  from the kernel: struct rpc_completion, then the answer's data
 *   'H'  from the kernel: struct frame_hello, once after boot and as the answer to 'H'
 *   'E'  from the kernel: a frame was not understood
 *   'P'  from the kernel: it has panicked (core/panic.c)
 *   'B'  from the kernel: it is about to reboot on request
 *
 * Lock: wire_lock for sending.
 */
#pragma once
#include "lib/types.h"

#define FRAME_DATA_MAX 4096
#define FRAME_CALL     'C'
#define FRAME_REPLY    'R'
#define FRAME_HELLO    'H'
#define FRAME_ERROR    'E'
#define FRAME_PANIC    'P'
#define FRAME_BYE      'B'

struct frame_hello {
    u32 magic;   /* "KOS!" */
    u32 version; /* RPC_ABI_VERSION */
    u8 build_id[20];
    u32 cpus;
    u64 total_bytes;
    u64 boot_ticks; /* TSC ticks from entry to ready */
    u64 boot_tsc;   /* tells one boot from the next */
    u64 ring;       /* physical address of a ring that is ready for whoever connects first */
    u32 client;     /* the client that it belongs to; 0: none, or it was closed */
    u32 reserved;
};
#define HELLO_MAGIC 0x21534f4b

/* Makes the client that hello offers, so that connecting takes no further frames. */
void frame_offer_client(void);
/* A ring is closed: if it is the offered one, it is not offered again. */
void frame_offer_end(u64 ring);
void frame_send_hello(void);
void frame_send_doorbell(void);
void frame_send_bye(void);
/* Takes no lock: whatever was being sent, the receiver is brought into step first. */
void frame_send_panic(const void *record, size_t n);
/* Takes in what has arrived on the wire; true when there was something. */
bool frame_poll(void);

void frame_count_error(void);
u64 frame_count(void);
u64 frame_errors(void);
/* The boot time counter's value when the kernel was ready, minus that at its entry. */
u64 frame_boot_ticks(void);
void frame_mark_ready(void);
