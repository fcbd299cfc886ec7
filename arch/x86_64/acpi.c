/* See acpi.h. Tables are trusted no further than their lengths. */
#include "x86_64/acpi.h"
#include "x86_64/paging.h"
#include "lib/string.h"

#define TABLE_MAX     65536
#define MADT_LAPIC    0
#define MADT_IOAPIC   1
#define MADT_OVERRIDE 2
#define LAPIC_ENABLED 1

struct rsdp {
    char signature[8];
    u8 checksum;
    char oem[6];
    u8 revision;
    u32 rsdt;
    u32 length;
    u64 xsdt;
} __attribute__((packed));

struct sdt {
    char signature[4];
    u32 length;
    u8 rest[28];
} __attribute__((packed));

struct madt {
    struct sdt header;
    u32 lapic, flags;
    u8 entries[];
} __attribute__((packed));

struct madt_entry {
    u8 type, length;
    union {
        struct {
            u8 processor, apic_id;
            u32 flags;
        } __attribute__((packed)) lapic;
        struct {
            u8 id, reserved;
            u32 address, first_gsi;
        } __attribute__((packed)) ioapic;
        struct {
            u8 bus, irq;
            u32 gsi;
            u16 flags;
        } __attribute__((packed)) override;
    };
} __attribute__((packed));

static bool reachable(u64 paddr)
{
    return paddr && paddr < (4ull << 30) - TABLE_MAX;
}

static const struct rsdp *rsdp_find(u64 paddr)
{
    if (reachable(paddr))
        return phys_to_virt(paddr);
    for (paddr = 0xe0000; paddr < 0x100000; paddr += 16)
        if (!memcmp(phys_to_virt(paddr), "RSD PTR ", 8))
            return phys_to_virt(paddr);
    return NULL;
}

static const struct sdt *table_check(u64 paddr, const char *signature)
{
    const struct sdt *t = phys_to_virt(paddr);
    if (!reachable(paddr) || memcmp(t->signature, signature, 4) || t->length < sizeof(*t) ||
        t->length > TABLE_MAX)
        return NULL;
    return t;
}

static const struct madt *madt_find(const struct rsdp *rsdp)
{
    bool wide = rsdp->revision >= 2 && rsdp->xsdt;
    const struct sdt *root =
        wide ? table_check(rsdp->xsdt, "XSDT") : table_check(rsdp->rsdt, "RSDT");
    unsigned size = wide ? 8 : 4;
    if (!root)
        return NULL;
    for (u32 at = sizeof(*root); at + size <= root->length; at += size) {
        u64 paddr = 0;
        memcpy(&paddr, (const u8 *)root + at, size);
        const struct sdt *t = table_check(paddr, "APIC");
        if (t)
            return (const struct madt *)t;
    }
    return NULL;
}

static void entry_read(const struct madt_entry *e, struct acpi_machine *m)
{
    if (e->type == MADT_LAPIC && e->length >= 8 && e->lapic.flags & LAPIC_ENABLED) {
        if (m->cpus < MAX_CPUS)
            m->apic_ids[m->cpus++] = e->lapic.apic_id;
        else
            m->unused_cpus++;
    } else if (e->type == MADT_IOAPIC && e->length >= 12 && !e->ioapic.first_gsi) {
        m->ioapic = e->ioapic.address;
    } else if (e->type == MADT_OVERRIDE && e->length >= 10 && e->override.irq < 16) {
        m->isa_gsi[e->override.irq] = e->override.gsi;
    }
}

bool acpi_read(u64 rsdp_paddr, struct acpi_machine *m)
{
    *m = (struct acpi_machine){.lapic = 0xfee00000, .ioapic = 0xfec00000};
    for (u32 i = 0; i < ARRAY_SIZE(m->isa_gsi); i++)
        m->isa_gsi[i] = i;
    const struct rsdp *rsdp = rsdp_find(rsdp_paddr);
    const struct madt *madt = rsdp ? madt_find(rsdp) : NULL;
    if (!madt) {
        m->cpus = 1;
        return false;
    }
    m->lapic = madt->lapic;
    for (u32 at = sizeof(*madt); at + 2 <= madt->header.length;) {
        const struct madt_entry *e = (const void *)((const u8 *)madt + at);
        if (e->length < 2 || at + e->length > madt->header.length)
            break;
        entry_read(e, m);
        at += e->length;
    }
    return true;
}
