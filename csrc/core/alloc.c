/* All memory of the library: aligned blocks from malloc or from the caller's allocator.
 *
 * Tapes, workspaces and the caller's results are large and often live for one call, and fresh pages cost more than the
 * arithmetic on them (a fault and a cleared page per 4 KiB). So a few released blocks are kept for the next call,
 * CACHE_BYTES at most. Under a sanitizer, or with an allocator of the caller's, nothing is kept. */
#define _DEFAULT_SOURCE
#include "internal.h"
#include <stdatomic.h>
#include <stdlib.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#define CACHE_BLOCKS 32
#define CACHE_BYTES ((size_t)192 << 20)

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
} cache = {.taken = ATOMIC_FLAG_INIT};

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

void crnn_set_allocator(void *(*allocate)(size_t), void (*release)(void *))
{
    if (caching()) {
        for (int i = 0; i < CACHE_BLOCKS; i++) {
            if (cache.blocks[i]) give_back(cache.blocks[i]);
            cache.blocks[i] = NULL;
        }
        cache.bytes = 0;
        atomic_flag_clear(&cache.taken);
    }
    user_allocate = allocate && release ? allocate : NULL;
    user_release = allocate && release ? release : NULL;
}

/* Of the kept blocks that hold `bytes` and are not more than twice as large, the one used last: its lines are the most
 * likely to be in a cache, and on the right core. */
static void *from_cache(size_t bytes)
{
    if (!caching()) return NULL;
    int best = -1;
    for (int i = 0; i < CACHE_BLOCKS; i++) {
        size_t size = cache.blocks[i] ? head_of(cache.blocks[i])->bytes : 0;
        if (size < bytes || size / 2 > bytes) continue;
        if (best < 0 || head_of(cache.blocks[i])->born > head_of(cache.blocks[best])->born) best = i;
    }
    void *block = NULL;
    if (best >= 0) {
        block = cache.blocks[best];
        cache.blocks[best] = NULL;
        cache.bytes -= head_of(block)->bytes;
    }
    atomic_flag_clear(&cache.taken);
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
    void *kept = from_cache(bytes);
    if (kept) return kept;
    char *raw = user_allocate ? user_allocate(total) : from_system(total);
    if (!raw) return NULL;
    char *aligned = (char *)(((uintptr_t)raw + 2 * CRNN_LINE - 1) & ~(uintptr_t)(CRNN_LINE - 1));
    *head_of(aligned) = (block_head){raw, bytes, 0};
    return aligned;
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

void crnn_release(void *block)
{
    if (!block) return;
    void *dropped[CACHE_BLOCKS];
    int drops = 0;
    if (head_of(block)->bytes >= 4096 && head_of(block)->bytes <= CACHE_BYTES && caching()) {
        /* The oldest make room: sizes that are no longer asked for must not keep others out. */
        int spot = free_spot();
        while (spot < 0 || cache.bytes > CACHE_BYTES - head_of(block)->bytes) {
            spot = oldest_spot();
            dropped[drops++] = cache.blocks[spot];
            cache.bytes -= head_of(cache.blocks[spot])->bytes;
            cache.blocks[spot] = NULL;
        }
        cache.blocks[spot] = block;
        cache.bytes += head_of(block)->bytes;
        head_of(block)->born = cache.clock++;
        block = NULL;
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
