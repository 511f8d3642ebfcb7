#include "internal.h"
#include <stdlib.h>

static void *(*user_allocate)(size_t);
static void (*user_release)(void *);

void crnn_set_allocator(void *(*allocate)(size_t), void (*release)(void *))
{
    user_allocate = allocate && release ? allocate : NULL;
    user_release = allocate && release ? release : NULL;
}

/* The block's own start is kept just below the aligned address, so any allocator will do. */
void *crnn_allocate(size_t bytes)
{
    size_t total = bytes + 2 * CRNN_LINE;
    if (total < bytes) return NULL;
    char *raw = user_allocate ? user_allocate(total) : malloc(total);
    if (!raw) return NULL;
    char *aligned = (char *)(((uintptr_t)raw + 2 * CRNN_LINE - 1) & ~(uintptr_t)(CRNN_LINE - 1));
    ((void **)(void *)aligned)[-1] = raw;
    return aligned;
}

void crnn_release(void *block)
{
    if (!block) return;
    void *raw = ((void **)block)[-1];
    if (user_release) user_release(raw);
    else free(raw);
}
