/* Packing sequences into rows and back, the look for values that are not finite, and memory from the library's cache. */
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

/* Sequences of exactly their own memory, filled with distinct numbers, and what the packed rows must hold. */
typedef struct {
    crnn_rows_args args;
    int64_t *offsets;
    void **starts;
    double *expected;
    size_t rows;
} problem;

static double value(size_t i, size_t t, size_t k) { return (double)(1000 * i + 100 * t + k) + 0.5; }

static problem make(const layout *l)
{
    problem p = {.offsets = allocate((l->steps + 1) * sizeof(int64_t)), .starts = allocate(l->batch * sizeof(void *))};
    ptrdiff_t step = (ptrdiff_t)l->width + (l->gap < 0 ? -l->gap : l->gap);
    p.offsets[0] = 0;
    for (size_t t = 0; t < l->steps; t++) {
        int64_t running = 0;
        for (size_t i = 0; i < l->batch; i++) running += length_of(l, i) > t;
        p.offsets[t + 1] = p.offsets[t] + running;
    }
    p.rows = (size_t)p.offsets[l->steps];
    p.expected = allocate(p.rows * l->width * sizeof(double));
    for (size_t i = 0; i < l->batch; i++) {
        size_t n = length_of(l, i), size = n ? (n - 1) * (size_t)step + l->width : 0;
        char *block = buffer(l->dtype, size);
        for (size_t e = 0; e < size; e++) put(l->dtype, block, e, NAN); /* gaps must not be looked at */
        for (size_t t = 0; t < n; t++)
            for (size_t k = 0; k < l->width; k++) {
                size_t place = l->gap < 0 ? n - 1 - t : t;
                put(l->dtype, block, place * (size_t)step + k, value(i, t, k));
                p.expected[((size_t)p.offsets[t] + i) * l->width + k] = value(i, t, k);
            }
        p.starts[i] = block + (l->gap < 0 && n ? (n - 1) * (size_t)step * element(l->dtype) : 0);
    }
    p.args = (crnn_rows_args){.dtype = l->dtype, .batch = {l->batch, l->steps, p.offsets}, .width = l->width,
                              .sequences = p.starts, .rows = output_buffer(l->dtype, p.rows * l->width),
                              .step = (l->gap < 0 ? -step : step) * (ptrdiff_t)element(l->dtype)};
    return p;
}

static void discard(problem *p)
{
    free(p->offsets), free(p->starts), free(p->expected);
    free_buffers();
}

static void *element_of(const layout *l, const problem *p, size_t i, size_t t, size_t k)
{
    return (char *)p->starts[i] + (ptrdiff_t)t * p->args.step + (ptrdiff_t)(k * element(l->dtype));
}

static void test_layout(layout l)
{
    snprintf(where, sizeof where, "%s %s, batch %zu, steps %zu, width %zu, gap %td, %d threads, misaligned %d", l.isa,
             dtype_name(l.dtype), l.batch, l.steps, l.width, l.gap, l.threads, misaligned);
    crnn_set_threads(l.threads);
    problem p = make(&l);
    int64_t bad = crnn_pack_rows(&p.args);
    CHECK(bad == -1, "%s: finite values, but row %lld is named", where, (long long)bad);
    check_close(l.dtype, p.args.rows, p.expected, p.rows * l.width, 0, "packed rows", where);
    for (size_t e = 0; e < p.rows * l.width; e++) put(l.dtype, p.args.rows, e, -p.expected[e]);
    crnn_unpack_rows(&p.args);
    for (size_t i = 0; i < l.batch; i++)
        for (size_t t = 0; t < length_of(&l, i); t++)
            for (size_t k = 0; k < l.width; k++) {
                double got = get(l.dtype, element_of(&l, &p, i, t, k), 0);
                CHECK(got == -value(i, t, k), "%s: sequence %zu, step %zu, column %zu is %g", where, i, t, k, got);
            }
    /* Whatever is not finite is found, wherever it stands; of several the first row is named. */
    static const double wrong[] = {INFINITY, -INFINITY, NAN};
    for (int tries = 0; tries < 6; tries++) {
        size_t i = random_below(l.batch), n = length_of(&l, i);
        if (!n) continue;
        size_t t = tries == 0 ? n - 1 : random_below(n), k = tries == 1 ? l.width - 1 : random_below(l.width);
        put(l.dtype, element_of(&l, &p, i, t, k), 0, wrong[tries % 3]);
        put(l.dtype, element_of(&l, &p, 0, l.steps - 1, 0), 0, NAN);
        bad = crnn_pack_rows(&p.args);
        int64_t first = p.offsets[t] + (int64_t)i, last_of_longest = p.offsets[l.steps - 1];
        if (first > last_of_longest) first = last_of_longest;
        CHECK(bad == first, "%s: row %lld is named instead of %lld", where, (long long)bad, (long long)first);
        put(l.dtype, element_of(&l, &p, i, t, k), 0, 1);
        put(l.dtype, element_of(&l, &p, 0, l.steps - 1, 0), 0, 1);
    }
    discard(&p);
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
