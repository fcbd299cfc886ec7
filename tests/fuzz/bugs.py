"""Bugs to plant into the decoders: each must be found by a fuzz target."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bug:
    """A bug to plant: text of a source, and what stands there instead."""

    target: str
    source: str
    text: str
    instead: str


FRAME, RING, CALLS, COBS = (
    "kernel/rpc/frame.c",
    "kernel/rpc/ring.c",
    "kernel/rpc/calls.c",
    "kernel/lib/cobs.c",
)
ENTRY_COPY = """\
    struct rpc_entry e;
    struct rpc_completion *cq = ring_at(r, RING_CQ), c;
    memcpy(&e, (u8 *)ring_at(r, RING_SQ) + r->sq_head % RING_ENTRIES * sizeof(e), sizeof(e));
"""
ENTRY_IN_PLACE = """\
#define e (*(struct rpc_entry *)((u8 *)ring_at(r, RING_SQ) + r->sq_head % RING_ENTRIES * 64))
    struct rpc_completion *cq = ring_at(r, RING_CQ), c;
"""
BUGS = {
    "a frame shorter than a CRC": Bug("frames", FRAME, "if (len < 5)", "if (len < 0)"),
    "a CRC that is not compared": Bug(
        "frames", FRAME, "if (crc != crc32(", "if (0 && crc != crc32("
    ),
    "a frame without an end": Bug(
        "frames", FRAME, "else if (rx_len < sizeof(rx))", "else if (rx_len < sizeof(rx) + 8)"
    ),
    "a frame that fills the buffer": Bug(
        "frames", FRAME, "else if (rx_len < sizeof(rx))", "else if (rx_len <= sizeof(rx))"
    ),
    "a frame cut at the buffer's end": Bug("frames", FRAME, "rx_len = sizeof(rx) + 1;", ";"),
    "an entry longer than an entry": Bug("frames", FRAME, "body[0] > sizeof(*e) || ", ""),
    "data of another length": Bug("frames", FRAME, "rest != e->data_len || ", ""),
    "more data than a frame takes": Bug("frames", FRAME, " || rest > FRAME_DATA_MAX)", ")"),
    "an answer larger than the buffer": Bug(
        "frames", FRAME, "e.data_cap = MIN(e.data_cap, (u32)FRAME_DATA_MAX);", ""
    ),
    "a client that is not there": Bug(
        "frames", FRAME, "client_get(e.client ? e.client : CLIENT_WIRE)", "client_get(CLIENT_WIRE)"
    ),
    "a run past the end": Bug("frames", COBS, "if (!run || run - 1 > n - in)", "if (!run)"),
    "a call beyond the table": Bug("frames", CALLS, "number >= CALL_NUMBERS || ", ""),
    "data past the area": Bug(
        "rings", RING, "need <= RING_DATA_BYTES - e->data_off", "need <= RING_DATA_BYTES"
    ),
    "data one word past the area": Bug(
        "rings", RING, "need <= RING_DATA_BYTES -", "need <= RING_DATA_BYTES + 8 -"
    ),
    "data that is not checked": Bug("rings", RING, "if (likely(data_is_inside(&e)))", "if (1)"),
    "data that starts behind the area": Bug("rings", RING, "e->data_off <= RING_DATA_BYTES &&", ""),
    "room for an answer that is not checked": Bug(
        "rings", RING, "MAX(e->data_len, e->data_cap)", "e->data_len"
    ),
    "data that is not aligned": Bug("rings", RING, "e->data_off % 8 == 0 && ", ""),
    "an entry that is not copied": Bug("rings", RING, ENTRY_COPY, ENTRY_IN_PLACE),
    "an entry behind the queue": Bug("rings", RING, "r->sq_head % RING_ENTRIES", "r->sq_head"),
    "a completion behind the queue": Bug(
        "rings", RING, "cq[r->cq_tail % RING_ENTRIES]", "cq[r->cq_tail]"
    ),
    "an index that is read back": Bug(
        "rings", RING, "cq[r->cq_tail % RING_ENTRIES]", "cq[r->header->cq_tail % RING_ENTRIES]"
    ),
    "more entries than the queue has": Bug(
        "rings", RING, "if (waiting > RING_ENTRIES)", "if (waiting > RING_ENTRIES + 1)"
    ),
    "completions that overtake the host": Bug(
        "rings", RING, "MIN(waiting, RING_ENTRIES - used)", "waiting"
    ),
    "a completion queue that is overfull": Bug(
        "rings", RING, "return used < RING_ENTRIES ?", "return used < 2 * RING_ENTRIES ?"
    ),
    "a doorbell too few": Bug("rings", RING, "    ring_notify(r);\n", ""),
    "a word of the host's": Bug(
        "rings", RING, "WRITE_ONCE(r->header->sq_head,", "WRITE_ONCE(r->header->host_waits,"
    ),
    "a number beyond 32 bits": Bug(
        "rings", CALLS, "? e->arg[i] > UINT32_MAX", "? e->arg[i] > UINT64_MAX"
    ),
    "an argument too many": Bug("rings", CALLS, ": !d->args[i].type && e->arg[i])", ": false)"),
    "half a number": Bug("rings", CALLS, "e->data_len % 8", "e->data_len % 4"),
    "data for a call that has none": Bug(
        "rings", CALLS, "if (e->data_len && d->in == CALL_NONE)", "if (0)"
    ),
    "a call of the wire's on a ring": Bug(
        "rings", CALLS, "if (d->scope == CALL_WIRE && !wire)", "if (0)"
    ),
    "another call's tag": Bug("rings", CALLS, ".tag = e->tag", ".tag = e->tag & 0xfff"),
}
