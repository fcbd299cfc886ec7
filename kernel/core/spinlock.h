/*
 * Spin locks. Interrupt handlers take none, so interrupts stay on while one is held; a holder never
 * sleeps. SPIN_GUARD releases at the end of the enclosing scope.
 */
#pragma once
#include "x86_64/cpu.h"
#include "lib/types.h"

struct spinlock {
    u8 locked;
};

static inline bool spin_try(struct spinlock *l)
{
    return !__atomic_exchange_n(&l->locked, 1, __ATOMIC_ACQUIRE);
}

static inline void spin_lock(struct spinlock *l)
{
    while (unlikely(!spin_try(l)))
        while (READ_ONCE(l->locked))
            cpu_relax();
}

static inline void spin_unlock(struct spinlock *l)
{
    __atomic_store_n(&l->locked, 0, __ATOMIC_RELEASE);
}

static inline void spin_release(struct spinlock *const *l)
{
    spin_unlock(*l);
}

#define SPIN_GUARD(lock)                                                                           \
    struct spinlock *const CAT(guard_, __LINE__) __attribute__((cleanup(spin_release), unused)) =  \
        (lock);                                                                                    \
    spin_lock(CAT(guard_, __LINE__))
