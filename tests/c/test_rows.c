/* Packed rows to where a caller wants them, the look for values that are not finite, and memory from the library's cache. */
#include "check.h"

typedef struct {
    const char *isa;
    crnn_dtype dtype;
    size_t batch, steps, width;
    ptrdiff_t gap; /* elements between the steps of a sequence, beyond its width; negative: steps run backwards */
    int threads;
} layout;

static char where[160];

/* Lengths fall from `steps` to 0; at least the first sequence has a step. */
static size_t length_of(const layout *l, size_t i) { return l->steps - (l->batch > 1 ? l->steps * i / (l->batch - 1) : 0); }

static double value(size_t i, size_t t, size_t k) { return (double)(1000 * i + 100 * t + k) + 0.5; }

/* Sequences of exactly their own memory, gaps between their steps, that are to be filled from packed rows. */
static void test_layout(layout l)
{
    snprintf(where, sizeof where, "%s %s, batch %zu, steps %zu, width %zu, gap %td, %d threads, misaligned %d", l.isa,
             dtype_name(l.dtype), l.batch, l.steps, l.width, l.gap, l.threads, misaligned);
    crnn_set_threads(l.threads);
    int64_t *offsets = allocate((l.steps + 1) * sizeof(int64_t));
    char **starts = allocate(l.batch * sizeof *starts);
    ptrdiff_t step = (ptrdiff_t)l.width + (l.gap < 0 ? -l.gap : l.gap), item = (ptrdiff_t)element(l.dtype);
    offsets[0] = 0;
    for (size_t t = 0; t < l.steps; t++) {
        offsets[t + 1] = offsets[t];
        for (size_t i = 0; i < l.batch; i++) offsets[t + 1] += length_of(&l, i) > t;
    }
    void *rows = buffer(l.dtype, (size_t)offsets[l.steps] * l.width);
    for (size_t i = 0; i < l.batch; i++) {
        size_t n = length_of(&l, i), size = n ? (n - 1) * (size_t)step + l.width : 0;
        starts[i] = output_buffer(l.dtype, size);
        if (l.gap < 0 && n) starts[i] += (ptrdiff_t)(n - 1) * step * item;
        for (size_t t = 0; t < n; t++)
            for (size_t k = 0; k < l.width; k++)
                put(l.dtype, rows, ((size_t)offsets[t] + i) * l.width + k, value(i, t, k));
    }
    if (l.gap < 0) step = -step;
    crnn_rows_args args = {.dtype = l.dtype, .batch = {l.batch, l.steps, offsets}, .width = l.width, .rows = rows,
                           .to = {(void *const *)(void *)starts, step * item}};
    crnn_unpack_rows(&args);
    for (size_t i = 0; i < l.batch; i++)
        for (size_t t = 0; t < length_of(&l, i); t++) {
            const char *at = starts[i] + (ptrdiff_t)t * step * item;
            for (size_t k = 0; k < l.width; k++) {
                double got = get(l.dtype, at, k);
                CHECK(got == value(i, t, k), "%s: sequence %zu, step %zu, column %zu is %g", where, i, t, k, got);
            }
            for (size_t k = l.width; l.gap > 0 && t + 1 < length_of(&l, i) && k < (size_t)step; k++)
                CHECK(isnan(get(l.dtype, at, k)), "%s: the gap after step %zu was written to", where, t);
        }
    free(offsets), free(starts);
    free_buffers();
}

static void test_isa(const char *isa, crnn_dtype dtype)
{
    static const size_t widths[] = {1, 3, 4, 5, 8, 15, 16, 17, 33};
    static const size_t shapes[][2] = {{1, 1}, {1, 7}, {2, 5}, {5, 4}, {9, 3}};
    for (misaligned = 0; misaligned < 2; misaligned++)
        for (size_t w = 0; w < sizeof widths / sizeof *widths; w++)
            for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
                for (ptrdiff_t gap = -2; gap <= 2; gap += 2)
                    test_layout((layout){isa, dtype, shapes[s][0], shapes[s][1], widths[w], gap, 1});
    misaligned = 0;
    for (int threads = 1; threads <= 3; threads++) /* large enough to be shared */
        test_layout((layout){isa, dtype, 13, 40, 77, 3, threads});
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
