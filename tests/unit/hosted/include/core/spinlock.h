/*
 * Stands for kernel/core/spinlock.h in hosted tests. One thread runs all: a lock that is taken while
 * it is held, or given back while it is not, is a fault, and how often each was taken can be asked.
 */
#pragma once
#include "x86_64/cpu.h"
#include "core/panic.h"
#include "lib/types.h"

struct spinlock {
    u8 locked;
    u32 taken; /* times */
};

extern u32 hosted_locks_held;

static inline bool spin_try(struct spinlock *l)
{
    if (l->locked)
        return false;
    l->locked = 1;
    l->taken++;
    hosted_locks_held++;
    return true;
}

static inline void spin_lock(struct spinlock *l)
{
    KASSERT(spin_try(l), "deadlock");
}

static inline void spin_unlock(struct spinlock *l)
{
    KASSERT(l->locked, "not locked");
    l->locked = 0;
    hosted_locks_held--;
}

static inline void spin_release(struct spinlock *const *l)
{
    spin_unlock(*l);
}

#define SPIN_GUARD(lock)                                                                           \
    struct spinlock *const CAT(guard_, __LINE__) __attribute__((cleanup(spin_release), unused)) =  \
        (lock);                                                                                    \
    spin_lock(CAT(guard_, __LINE__))
