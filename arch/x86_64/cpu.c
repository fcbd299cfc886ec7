/* CPU features: found once, turned on by every CPU for itself. */
#include "x86_64/cpu.h"

struct cpu_features cpu_features;

void cpu_features_detect(void)
{
    struct cpuid leaf1 = cpu_id(1, 0);
    struct cpuid leaf7 = cpu_id(0, 0).eax >= 7 ? cpu_id(7, 0) : (struct cpuid){0};
    struct cpuid ext = cpu_id(0x80000001, 0);
    cpu_features = (struct cpu_features){
        .nx = ext.edx >> 20 & 1,
        .gigabyte_pages = ext.edx >> 26 & 1,
        .pge = leaf1.edx >> 13 & 1,
        .smep = leaf7.ebx >> 7 & 1,
        .smap = leaf7.ebx >> 20 & 1,
        .umip = leaf7.ecx >> 2 & 1,
    };
}

void cpu_features_enable(void)
{
    u64 cr4 = read_cr4();
    if (cpu_features.nx)
        wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_NXE);
    if (cpu_features.pge)
        cr4 |= CR4_PGE;
    if (cpu_features.smep)
        cr4 |= CR4_SMEP;
    if (cpu_features.smap)
        cr4 |= CR4_SMAP;
    if (cpu_features.umip)
        cr4 |= CR4_UMIP;
    write_cr4(cr4);
    write_cr0(read_cr0() | CR0_WP);
}
