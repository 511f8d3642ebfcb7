/* Items of work dealt out to threads before a job begins. Each rank works through its own hand from the front; one that has
 * finished takes from the back of the others'. Cores differ, and on a shared machine neighbours slow them down by the moment:
 * equal shares would all wait for the slowest. What an item gives must not depend on who does it. */
#ifndef CRNN_HANDS_H
#define CRNN_HANDS_H
#include "internal.h"
#include <stdatomic.h>

typedef struct {
    _Alignas(CRNN_LINE) _Atomic uint64_t left; /* the first item still there, and in the upper half the end */
} crnn_hand;

static inline uint64_t crnn_hand_of(size_t first, size_t end) { return (uint64_t)end << 32 | (uint64_t)first; }

/* Before the threads start, or by one of them before all meet. At most 2^32 - 1 items. */
static inline void crnn_deal(crnn_hand *hands, int size, size_t items)
{
    for (int rank = 0; rank < size; rank++) {
        size_t lo, hi;
        crnn_share(items, 1, rank, size, &lo, &hi);
        atomic_store_explicit(&hands[rank].left, crnn_hand_of(lo, hi), memory_order_relaxed);
    }
}

#define CRNN_WHOLE_HAND SIZE_MAX

/* The next items [*lo, *hi) for this rank; 0 when all are taken. Of its own a quarter of what is left, `most` at most, so that
 * little is under way when others run out; of another's a single one. `most` CRNN_WHOLE_HAND, or a hand dealt to one thread:
 * all at once. */
static inline int crnn_take(crnn_hand *hands, int size, int rank, size_t most, size_t *lo, size_t *hi)
{
    for (int k = 0; k < size; k++) {
        _Atomic uint64_t *left = &hands[(rank + k) % size].left;
        uint64_t seen = atomic_load_explicit(left, memory_order_relaxed);
        for (;;) {
            size_t first = (size_t)(seen & 0xffffffffu), end = (size_t)(seen >> 32), count = (end - first + 3) / 4;
            if (first >= end) break;
            if (k > 0) count = 1;
            else if (size == 1 || most == CRNN_WHOLE_HAND) count = end - first;
            else if (count > most) count = most;
            *lo = k > 0 ? end - count : first;
            *hi = *lo + count;
            if (atomic_compare_exchange_weak_explicit(left, &seen, k > 0 ? crnn_hand_of(first, *lo) : crnn_hand_of(*hi, end),
                                                      memory_order_relaxed, memory_order_relaxed))
                return 1;
        }
    }
    return 0;
}
#endif
