/* All memory of the library: aligned blocks from malloc or from the caller's allocator.
 *
 * Tapes, workspaces and the caller's results are large and often live for one call, and fresh pages cost more than the
 * arithmetic on them (a fault and a cleared page per 4 KiB; in a virtual machine whose host has yet to find them, some
 * 2 ms per MiB). So a few released blocks are kept for the next call: with those in use, as many bytes as were in use at
 * once lately, and CACHE_BYTES more. A loop finds again what it has released, however large, and the process never holds
 * much more than it has needed (against CACHE_BYTES beside what is in use, forward and backward: GRU of 650 units, batch
 * 64, T 200, 1.08 to 1.10 times as fast; RNN of 800 units, batch 256, T 100, 1.03 and 1.04, and every third call no longer
 * takes a quarter to a half longer). Under a sanitizer, or with an allocator of the caller's, nothing is kept. */
#define _DEFAULT_SOURCE
#include "internal.h"
#include <stdatomic.h>
#include <stdlib.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#define CACHE_BLOCKS 32
#define LEAST_KEPT 4096
#define CACHE_BYTES ((size_t)192 << 20)
#define LATELY 256 /* blocks released: some tens of calls */

typedef struct {
    void *raw;
    size_t bytes;       /* of the aligned part */
    unsigned long born; /* when it entered the cache */
} block_head;

static void *(*user_allocate)(size_t);
static void (*user_release)(void *);

static struct {
    atomic_flag taken; /* whoever finds it taken does without the cache: no waiting, nothing to repair after a fork */
    void *blocks[CACHE_BLOCKS];
    size_t bytes;
    unsigned long clock;
    size_t most, most_before; /* bytes in use at once in this run of LATELY blocks, and in the one before */
    unsigned released;        /* blocks of this run */
} cache = {.taken = ATOMIC_FLAG_INIT};

static atomic_size_t in_use;

static block_head *head_of(void *block) { return (block_head *)block - 1; }

static int caching(void)
{
#if defined(CRNN_ADDRESS_SANITIZER)
    return 0;
#else
    return user_allocate == NULL && !atomic_flag_test_and_set(&cache.taken);
#endif
}

static void give_back(void *block)
{
    void *raw = head_of(block)->raw;
    if (user_release) user_release(raw);
    else free(raw);
}

/* Most is in use just before something is released. */
static void note_use(size_t used)
{
    if (cache.released++ == LATELY) {
        cache.released = 0;
        cache.most_before = cache.most;
        cache.most = 0;
    }
    if (cache.most < used) cache.most = used;
}

/* Bytes that may be kept beside those in use. */
static size_t room_to_keep(size_t used)
{
    const size_t most = cache.most > cache.most_before ? cache.most : cache.most_before;
    return CACHE_BYTES + (most > used ? most - used : 0);
}

static int free_spot(void)
{
    for (int i = 0; i < CACHE_BLOCKS; i++)
        if (!cache.blocks[i]) return i;
    return -1;
}

static int oldest_spot(void)
{
    int oldest = -1;
    for (int i = 0; i < CACHE_BLOCKS; i++)
        if (cache.blocks[i] && (oldest < 0 || head_of(cache.blocks[i])->born < head_of(cache.blocks[oldest])->born))
            oldest = i;
    return oldest;
}

/* Takes the oldest blocks out until no more than `most` bytes are kept, and there is a spot for another block if it is wanted: sizes
 * that are no longer asked for must not keep others out. How many, for the caller to give back. */
static int take_oldest(int spot_wanted, size_t most, void *taken[CACHE_BLOCKS])
{
    int count = 0;
    while (cache.bytes > most || (spot_wanted && free_spot() < 0)) {
        const int spot = oldest_spot();
        taken[count++] = cache.blocks[spot];
        cache.bytes -= head_of(cache.blocks[spot])->bytes;
        cache.blocks[spot] = NULL;
    }
    return count;
}

void crnn_release_kept(void)
{
    void *dropped[CACHE_BLOCKS];
    if (!caching()) return;
    const int drops = take_oldest(0, 0, dropped);
    cache.most = cache.most_before = atomic_load_explicit(&in_use, memory_order_relaxed);
    atomic_flag_clear(&cache.taken);
    for (int i = 0; i < drops; i++) give_back(dropped[i]);
}

void crnn_set_allocator(void *(*allocate)(size_t), void (*release)(void *))
{
    crnn_release_kept();
    user_allocate = allocate && release ? allocate : NULL;
    user_release = allocate && release ? release : NULL;
}

/* Of the kept blocks that hold `bytes` and are not more than twice as large, the one used last: its lines are the most
 * likely to be in a cache, and on the right core. */
static void *from_cache(size_t bytes)
{
    if (!caching()) return NULL;
    const size_t used = atomic_load_explicit(&in_use, memory_order_relaxed);
    void *block = NULL, *dropped[CACHE_BLOCKS];
    int best = -1, drops = 0;
    for (int i = 0; i < CACHE_BLOCKS; i++) {
        size_t size = cache.blocks[i] ? head_of(cache.blocks[i])->bytes : 0;
        if (size < bytes || size / 2 > bytes) continue;
        if (best < 0 || head_of(cache.blocks[i])->born > head_of(cache.blocks[best])->born) best = i;
    }
    if (best >= 0) {
        block = cache.blocks[best];
        cache.blocks[best] = NULL;
        cache.bytes -= head_of(block)->bytes;
    } else {
        drops = take_oldest(0, room_to_keep(bytes < SIZE_MAX - used ? used + bytes : SIZE_MAX), dropped);
    }
    atomic_flag_clear(&cache.taken);
    for (int i = 0; i < drops; i++) give_back(dropped[i]);
    return block;
}

/* A block of at least one large page starts on one, and asks for more of them: walking down the columns of a matrix
 * touches a new page per row. */
#define LARGE_PAGE ((size_t)2 << 20)
static char *from_system(size_t bytes)
{
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (bytes >= LARGE_PAGE - LARGE_PAGE / 8) {
        size_t whole = (bytes + LARGE_PAGE - 1) & ~(LARGE_PAGE - 1);
        void *block = NULL;
        if (whole < bytes || posix_memalign(&block, LARGE_PAGE, whole)) return NULL;
        (void)madvise(block, whole, MADV_HUGEPAGE);
        return block;
    }
#endif
    return malloc(bytes);
}

void *crnn_allocate(size_t bytes)
{
    size_t total = bytes + 2 * CRNN_LINE;
    if (total < bytes) return NULL;
    void *block = from_cache(bytes);
    if (!block) {
        char *raw = user_allocate ? user_allocate(total) : from_system(total);
        if (!raw) return NULL;
        block = (void *)(((uintptr_t)raw + 2 * CRNN_LINE - 1) & ~(uintptr_t)(CRNN_LINE - 1));
        *head_of(block) = (block_head){raw, bytes, 0};
    }
    atomic_fetch_add_explicit(&in_use, head_of(block)->bytes, memory_order_relaxed);
    return block;
}

void crnn_release(void *block)
{
    if (!block) return;
    void *dropped[CACHE_BLOCKS];
    int drops = 0;
    const size_t bytes = head_of(block)->bytes;
    const size_t used = atomic_fetch_sub_explicit(&in_use, bytes, memory_order_relaxed);
    if (bytes >= LEAST_KEPT && caching()) {
        note_use(used);
        const size_t most = room_to_keep(used - bytes);
        if (bytes <= most) {
            drops = take_oldest(1, most - bytes, dropped);
            cache.blocks[free_spot()] = block;
            cache.bytes += bytes;
            head_of(block)->born = cache.clock++;
            block = NULL;
        }
        atomic_flag_clear(&cache.taken);
    }
    for (int i = 0; i < drops; i++) give_back(dropped[i]);
    if (block) give_back(block);
}

void crnn_push_out(const void *data, size_t bytes)
{
    const char *p = data;
#if defined(CRNN_ADDRESS_SANITIZER) /* which does not look at what clflush gets */
    if (bytes) (void)(*(const volatile char *)p + *(const volatile char *)(p + bytes - 1));
#endif
#if defined(__x86_64__)
    for (size_t at = 0; at < bytes; at += CRNN_LINE) __builtin_ia32_clflush(p + at);
#else
    (void)p, (void)bytes;
#endif
}
