/* The seam to a BLAS: with a plain Fortran-style gemm behind it, 32-bit or 64-bit integers, results agree with the
 * library's own products, and without it nothing of it is used any more. A call keeps to what it found when it began. Also threads,
 * tape size, the peak. */
#include "check.h"

static long calls, bad_leading_dimensions;

/* Column-major, as Fortran defines it; C is not read where beta is 0. */
#define PLAIN_GEMM(name, real, integer)                                                                               \
    static void name(const char *ta, const char *tb, const integer *pm, const integer *pn, const integer *pk,         \
                     const real *alpha, const real *A, const integer *lda, const real *B, const integer *ldb,         \
                     const real *beta, real *C, const integer *ldc)                                                   \
    {                                                                                                                 \
        integer m = *pm, n = *pn, k = *pk;                                                                            \
        __atomic_fetch_add(&calls, 1, __ATOMIC_RELAXED);                                                              \
        if (*lda < (*ta == 'N' ? m : k) || *ldb < (*tb == 'N' ? k : n) || *ldc < m)                                   \
            __atomic_fetch_add(&bad_leading_dimensions, 1, __ATOMIC_RELAXED);                                         \
        for (integer j = 0; j < n; j++)                                                                               \
            for (integer i = 0; i < m; i++) {                                                                         \
                double sum = 0;                                                                                       \
                for (integer l = 0; l < k; l++)                                                                       \
                    sum += (double)A[*ta == 'N' ? i + l * *lda : l + i * *lda]                                        \
                         * (double)B[*tb == 'N' ? l + j * *ldb : j + l * *ldb];                                       \
                C[i + j * *ldc] = (real)((double)*alpha * sum + (*beta == 0 ? 0 : (double)(*beta * C[i + j * *ldc])));  \
            }                                                                                                         \
    }
PLAIN_GEMM(sgemm_lp64, float, int32_t)
PLAIN_GEMM(dgemm_lp64, double, int32_t)
PLAIN_GEMM(sgemm_ilp64, float, int64_t)
PLAIN_GEMM(dgemm_ilp64, double, int64_t)

typedef struct {
    const char *name;
    void (*s)(void), (*d)(void);
} blas;
static const blas BLAS[] = {{"LP64", (void (*)(void))sgemm_lp64, (void (*)(void))dgemm_lp64},
                            {"ILP64", (void (*)(void))sgemm_ilp64, (void (*)(void))dgemm_ilp64}};

/* null: the library's own products. */
static crnn_status use(const blas *b) { return crnn_set_blas(b ? b->s : NULL, b ? b->d : NULL); }

/* What another thread may do while a call is under way: each call allocates between planning its memory and using it. */
static const blas *meanwhile;
static void *changing_allocate(size_t bytes)
{
    use(meanwhile);
    return malloc(bytes);
}

enum { INPUT = 21, HIDDEN = 19, LAYERS = 2, MOST_STEPS = 5, MOST_ROWS = 160 };
static const int64_t RAGGED[] = {0, 7, 14, 19, 23, 26}, EVEN[] = {0, 40, 80, 120, MOST_ROWS};
static const crnn_batch BATCHES[] = {{7, 5, RAGGED}, {40, 4, EVEN}}; /* lengths 5 5 5 4 3 2 2; in two halves */

typedef struct {
    double *weight_ih[LAYERS], *weight_hh[LAYERS], *bias[LAYERS], *x, *dy;
} numbers;

enum { RESULTS = 2 + 2 * LAYERS };
typedef struct {
    void *of[RESULTS];
    size_t sizes[RESULTS];
} results;
static const char *const NAMES[RESULTS] = {"y", "dx", "d weight_ih_l0", "d weight_hh_l0", "d weight_ih_l1", "d weight_hh_l1"};

static results train(crnn_dtype dtype, crnn_cell cell, crnn_truncation truncation, const numbers *n, const crnn_batch *batch,
                     const blas *b)
{
    size_t G = cell == CRNN_LSTM ? 4 : cell == CRNN_GRU ? 3 : 1, H = HIDDEN, rows = (size_t)batch->offsets[batch->steps];
    crnn_weights weights[LAYERS], grads[LAYERS];
    results out = {.sizes = {rows * H, rows * INPUT, G * H * INPUT, G * H * H, G * H * H, G * H * H}};
    for (int i = 0; i < RESULTS; i++) out.of[i] = output_buffer(dtype, out.sizes[i]);
    for (size_t layer = 0; layer < LAYERS; layer++) {
        size_t width = layer ? HIDDEN : INPUT;
        weights[layer] = (crnn_weights){.weight_ih = from_doubles(dtype, n->weight_ih[layer], G * HIDDEN * width),
                                        .weight_hh = from_doubles(dtype, n->weight_hh[layer], G * HIDDEN * HIDDEN),
                                        .bias_ih = from_doubles(dtype, n->bias[layer], G * HIDDEN)};
        grads[layer] = (crnn_weights){.weight_ih = out.of[2 + 2 * layer], .weight_hh = out.of[3 + 2 * layer]};
    }
    crnn_stack stack = {.dtype = dtype, .cell = cell, .input = INPUT, .hidden = HIDDEN, .layers = LAYERS,
                        .directions = 1, .weights = weights};
    crnn_forward_args forward = {.x = from_doubles(dtype, n->x, rows * INPUT), .y = out.of[0]};
    crnn_tape *tape = NULL;
    CHECK(use(b) == CRNN_OK, "%s: refused", b ? b->name : "none");
    crnn_status status = crnn_forward(&stack, batch, &forward, &tape);
    CHECK(status == CRNN_OK && tape, "forward returned %d", (int)status);
    CHECK(crnn_tape_bytes(tape) > rows * HIDDEN * element(dtype), "a tape of %zu bytes", crnn_tape_bytes(tape));
    CHECK(crnn_tape_in_halves(tape) == (batch == &BATCHES[1]), "%zu sequences in halves, or not", batch->batch);
    crnn_backward_args backward = {.dy = from_doubles(dtype, n->dy, rows * HIDDEN), .truncation = truncation, .k1 = 2,
                                   .k2 = 3, .dx = out.of[1], .grads = grads};
    use(b);
    status = crnn_backward(&stack, batch, tape, &backward);
    CHECK(status == CRNN_OK, "backward returned %d", (int)status);
    crnn_tape_free(tape);
    return out;
}

static void compare(crnn_dtype dtype, const results *a, const results *b, double tolerance, const char *where)
{
    for (int i = 0; i < RESULTS; i++) {
        double *expected = allocate(b->sizes[i] * sizeof *expected);
        for (size_t j = 0; j < b->sizes[i]; j++) expected[j] = get(dtype, b->of[i], j);
        check_close(dtype, a->of[i], expected, b->sizes[i], tolerance, NAMES[i], where);
        free(expected);
    }
}

static void test_batch(const char *isa, crnn_dtype dtype, crnn_cell cell, crnn_truncation truncation, const numbers *n,
                       const crnn_batch *batch)
{
    char where[120];
    double tolerance = 64 * epsilon(dtype) * sqrt(4 * HIDDEN + INPUT + (double)batch->offsets[batch->steps]) * MOST_STEPS;
    calls = 0;
    results own = train(dtype, cell, truncation, n, batch, NULL), foreign = own, again;
    CHECK(calls == 0, "%s: %ld calls of a BLAS that was taken away", isa, calls);
    for (int b = 0; b < 2; b++) {
        snprintf(where, sizeof where, "%s %s, cell %d, truncation %d, %zu sequences, %s", isa, dtype_name(dtype), (int)cell,
                 (int)truncation, batch->batch, BLAS[b].name);
        calls = 0;
        foreign = train(dtype, cell, truncation, n, batch, BLAS + b);
        CHECK(calls > 0, "%s: never called", where);
        compare(dtype, &foreign, &own, tolerance, where);
    }
    crnn_set_allocator(changing_allocate, free);
    meanwhile = BLAS;
    calls = 0;
    again = train(dtype, cell, truncation, n, batch, NULL);
    CHECK(calls == 0, "%s: %ld calls of a BLAS that came later", where, calls);
    for (int i = 0; i < RESULTS; i++) check_same_bits(again.of[i], own.of[i], own.sizes[i] * element(dtype), NAMES[i], where);
    meanwhile = NULL;
    again = train(dtype, cell, truncation, n, batch, BLAS);
    for (int i = 0; i < RESULTS; i++) check_same_bits(again.of[i], foreign.of[i], own.sizes[i] * element(dtype), NAMES[i], where);
    crnn_set_allocator(NULL, NULL);
}

static void test(const char *isa, crnn_dtype dtype)
{
    numbers n = {.x = random_doubles(MOST_ROWS * INPUT, -1, 1.5), .dy = random_doubles(MOST_ROWS * HIDDEN, -1, 1.3)};
    for (size_t layer = 0; layer < LAYERS; layer++) {
        n.weight_ih[layer] = random_doubles(4 * HIDDEN * (INPUT + HIDDEN), -0.2, 0.3);
        n.weight_hh[layer] = random_doubles(4 * HIDDEN * HIDDEN, -0.3, 0.2);
        n.bias[layer] = random_doubles(4 * HIDDEN, -0.5, 1);
    }
    for (int cell = CRNN_RNN_TANH; cell <= CRNN_GRU; cell++)
        for (int truncation = CRNN_FULL; truncation <= CRNN_CHUNK; truncation++)
            for (int b = 0; b < 2; b++) {
                test_batch(isa, dtype, (crnn_cell)cell, (crnn_truncation)truncation, &n, BATCHES + b);
                free_buffers();
            }
    use(NULL);
    CHECK(bad_leading_dimensions == 0, "%s: %ld calls with a leading dimension that Fortran forbids", isa,
          bad_leading_dimensions);
    for (size_t layer = 0; layer < LAYERS; layer++) free(n.weight_ih[layer]), free(n.weight_hh[layer]), free(n.bias[layer]);
    free(n.x), free(n.dy);
}

int main(void)
{
    announce_isas();
    for (int threads = 1; threads <= 2; threads++) {
        crnn_set_threads(threads);
        CHECK(crnn_get_threads() == threads, "%d threads were set, there are %d", threads, crnn_get_threads());
        on_every_isa(test);
    }
    crnn_set_threads(0);
    CHECK(crnn_get_threads() == 1, "at least one thread must remain, there are %d", crnn_get_threads());
    double peak = crnn_fma_peak(CRNN_F32, 1, 0.01);
    CHECK(isfinite(peak) && peak > 0, "a peak of %g GFLOP/s", peak);
    return finish("test_blas");
}
