/* See client.h. Ids are indices into one table; 0 is nobody. */
#include "rpc/client.h"
#include "lib/errno.h"
#include "lib/string.h"
#include "rpc/ring.h"

static struct client clients[MAX_CLIENTS];

static struct client *client_setup(u32 id, const char *name)
{
    struct client *c = &clients[id];
    *c = (struct client){.owner.id = (u16)id};
    string_copy(c->name, name, sizeof(c->name));
    __atomic_store_n(&c->open, true, __ATOMIC_RELEASE);
    return c;
}

void client_init(void)
{
    client_setup(CLIENT_CONSOLE, "console");
    client_setup(CLIENT_WIRE, "wire");
}

struct client *client_get(u64 id)
{
    return id < MAX_CLIENTS && __atomic_load_n(&clients[id].open, __ATOMIC_ACQUIRE) ? &clients[id]
                                                                                    : NULL;
}

int client_open(const char *name, struct client **client)
{
    for (u32 id = CLIENT_FIRST; id < MAX_CLIENTS; id++)
        if (!clients[id].open) {
            *client = client_setup(id, name);
            return 0;
        }
    return -ENFILE;
}

u64 client_close(struct client *c)
{
    ring_close_all(c);
    u64 pages = owned_release_all(&c->owner);
    __atomic_store_n(&c->open, false, __ATOMIC_RELEASE);
    *c = (struct client){0};
    return pages;
}

void client_describe(const struct client *c, struct client_info *info)
{
    *info = (struct client_info){.id = c->owner.id,
                                 .rings = c->rings,
                                 .calls = c->calls,
                                 .refused = c->refused,
                                 .blocks = c->owner.blocks,
                                 .pages = c->owner.pages,
                                 .tables = c->owner.aspace.tables,
                                 .mapped = c->owner.aspace.mapped};
    string_copy(info->name, c->name, sizeof(info->name));
}

void client_name_format(const struct client *c, char name[CLIENT_NAME])
{
    string_copy(name, c->name, CLIENT_NAME);
    for (char *p = name; *p; p++)
        if (*p < ' ' || *p > '~')
            *p = '?';
}

u32 client_count(void)
{
    u32 n = 0;
    for (u32 id = 0; id < MAX_CLIENTS; id++)
        n += clients[id].open;
    return n;
}
