/*
 * Clients: one for each connection from the host, one for the console, one for the bare wire. A
 * client owns what it allocated; closing it gives all of that back.
 *
 * Clients are opened and closed on the boot CPU only (from the wire). A client's rings are closed
 * first, so that no CPU serves it when its memory goes.
 */
#pragma once
#include "mm/owned.h"

#define MAX_CLIENTS    256
#define CLIENT_NAME    24
#define CLIENT_CONSOLE 1 /* the serial console's own */
#define CLIENT_WIRE    2 /* frames that name no client */
#define CLIENT_FIRST   3

struct client {
    bool open;
    char name[CLIENT_NAME];
    u32 rings;
    u64 calls, refused;
    struct owner owner; /* owner.id is the client's id */
};

struct client_info {
    char name[CLIENT_NAME];
    u32 id, rings;
    u64 calls, refused, blocks, pages, tables, mapped;
};

/* Makes the clients that are always there. */
void client_init(void);
/* A client by id, or NULL when there is none open. */
struct client *client_get(u64 id);
/* -ENFILE when all ids are in use. */
int client_open(const char *name, struct client **client);
/* Gives everything back; returns the frames it held. */
u64 client_close(struct client *c);
void client_describe(const struct client *c, struct client_info *info);
/* The name for the console: what is not printable shows as '?'. */
void client_name_format(const struct client *c, char name[CLIENT_NAME]);
u32 client_count(void);
