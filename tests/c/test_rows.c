/* The look for values that are not finite, and memory from the library's cache. */
#include "check.h"

static void test_isa(const char *isa, crnn_dtype dtype)
{
    for (size_t n = 1; n <= 70; n++) {
        void *a = buffer(dtype, n);
        for (size_t e = 0; e < n; e++) put(dtype, a, e, e % 2 ? -1e30 : 1e-40);
        CHECK(crnn_all_finite(dtype, a, n), "%s %s: %zu finite values", isa, dtype_name(dtype), n);
        for (size_t e = 0; e < n; e++) {
            put(dtype, a, e, e % 3 == 0 ? NAN : e % 3 == 1 ? INFINITY : -INFINITY);
            CHECK(!crnn_all_finite(dtype, a, n), "%s %s: element %zu of %zu is not finite", isa, dtype_name(dtype), e, n);
            put(dtype, a, e, 0);
        }
        free_buffers();
    }
}

/* Blocks are aligned, whole and apart from each other, whether they are fresh or come from the cache. */
static void test_memory(void)
{
    static const size_t sizes[] = {1, 63, 4096, 70000, 1 << 21, (1 << 21) + 1, 5000000, 4096, 70000, 1 << 21};
    enum { COUNT = sizeof sizes / sizeof *sizes };
    for (int round = 0; round < 3; round++) {
        unsigned char *blocks[COUNT];
        for (int i = 0; i < COUNT; i++) {
            blocks[i] = crnn_allocate(sizes[i]);
            CHECK(blocks[i] && (uintptr_t)blocks[i] % 64 == 0, "a block of %zu bytes at %p", sizes[i], (void *)blocks[i]);
            if (!blocks[i]) exit(2);
            memset(blocks[i], i + 1, sizes[i]);
        }
        for (int i = 0; i < COUNT; i++) {
            CHECK(blocks[i][0] == i + 1 && blocks[i][sizes[i] - 1] == i + 1, "block %d was written to by another", i);
            crnn_release(blocks[i]);
        }
    }
    crnn_release(NULL);
    CHECK(crnn_allocate(SIZE_MAX - 10) == NULL, "more memory than there is was handed out");
}

int main(void)
{
    announce_isas();
    on_every_isa(test_isa);
    test_memory();
    return finish("test_rows");
}
