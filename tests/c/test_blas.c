/* The seam to a BLAS: with a plain Fortran-style gemm behind it, 32-bit or 64-bit integers, results agree with the
 * library's own products, and without it nothing of it is used any more. Also threads, tape size, the peak. */
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

enum { INPUT = 21, HIDDEN = 19, LAYERS = 2, BATCH = 7, STEPS = 5, ROWS = 26 };
static const int64_t OFFSETS[STEPS + 1] = {0, 7, 14, 19, 23, ROWS}; /* ragged: lengths 5 5 5 4 3 2 2, sorted */

typedef struct {
    double *weight_ih[LAYERS], *weight_hh[LAYERS], *bias[LAYERS], *x, *dy;
} numbers;

typedef struct {
    void *y, *dx, *weight_ih[LAYERS], *weight_hh[LAYERS];
} results;

static results train(crnn_dtype dtype, crnn_cell cell, crnn_truncation truncation, const numbers *n)
{
    size_t G = cell == CRNN_LSTM ? 4 : cell == CRNN_GRU ? 3 : 1;
    crnn_weights weights[LAYERS], grads[LAYERS];
    results out = {.y = output_buffer(dtype, ROWS * HIDDEN), .dx = output_buffer(dtype, ROWS * INPUT)};
    for (size_t layer = 0; layer < LAYERS; layer++) {
        size_t width = layer ? HIDDEN : INPUT;
        weights[layer] = (crnn_weights){.weight_ih = from_doubles(dtype, n->weight_ih[layer], G * HIDDEN * width),
                                        .weight_hh = from_doubles(dtype, n->weight_hh[layer], G * HIDDEN * HIDDEN),
                                        .bias_ih = from_doubles(dtype, n->bias[layer], G * HIDDEN)};
        out.weight_ih[layer] = output_buffer(dtype, G * HIDDEN * width);
        out.weight_hh[layer] = output_buffer(dtype, G * HIDDEN * HIDDEN);
        grads[layer] = (crnn_weights){.weight_ih = out.weight_ih[layer], .weight_hh = out.weight_hh[layer]};
    }
    crnn_stack stack = {.dtype = dtype, .cell = cell, .input = INPUT, .hidden = HIDDEN, .layers = LAYERS,
                        .directions = 1, .weights = weights};
    crnn_batch batch = {.batch = BATCH, .steps = STEPS, .offsets = OFFSETS};
    crnn_forward_args forward = {.x = from_doubles(dtype, n->x, ROWS * INPUT), .y = out.y};
    crnn_tape *tape = NULL;
    crnn_status status = crnn_forward(&stack, &batch, &forward, &tape);
    CHECK(status == CRNN_OK && tape, "forward returned %d", (int)status);
    CHECK(crnn_tape_bytes(tape) > ROWS * HIDDEN * element(dtype), "a tape of %zu bytes", crnn_tape_bytes(tape));
    crnn_backward_args backward = {.dy = from_doubles(dtype, n->dy, ROWS * HIDDEN), .truncation = truncation, .k1 = 2,
                                   .k2 = 3, .dx = out.dx, .grads = grads};
    status = crnn_backward(&stack, &batch, tape, &backward);
    CHECK(status == CRNN_OK, "backward returned %d", (int)status);
    crnn_tape_free(tape);
    return out;
}

static void compare(crnn_dtype dtype, size_t G, const results *a, const results *b, double tolerance, const char *where)
{
    const void *got[] = {a->y, a->dx, a->weight_ih[0], a->weight_hh[0], a->weight_ih[1], a->weight_hh[1]};
    const void *want[] = {b->y, b->dx, b->weight_ih[0], b->weight_hh[0], b->weight_ih[1], b->weight_hh[1]};
    const char *names[] = {"y", "dx", "d weight_ih_l0", "d weight_hh_l0", "d weight_ih_l1", "d weight_hh_l1"};
    size_t H = HIDDEN, sizes[] = {ROWS * H, (size_t)ROWS * INPUT, G * H * INPUT, G * H * H, G * H * H, G * H * H};
    for (int i = 0; i < 6; i++) {
        double *expected = allocate(sizes[i] * sizeof *expected);
        for (size_t j = 0; j < sizes[i]; j++) expected[j] = get(dtype, want[i], j);
        check_close(dtype, got[i], expected, sizes[i], tolerance, names[i], where);
        free(expected);
    }
}

static void test(const char *isa, crnn_dtype dtype)
{
    static const struct { const char *name; void (*s)(void), (*d)(void); } BLAS[] = {
        {"LP64", (void (*)(void))sgemm_lp64, (void (*)(void))dgemm_lp64},
        {"ILP64", (void (*)(void))sgemm_ilp64, (void (*)(void))dgemm_ilp64},
    };
    double tolerance = 64 * epsilon(dtype) * sqrt(4 * HIDDEN + INPUT + ROWS) * STEPS;
    numbers n = {.x = random_doubles(ROWS * INPUT, -1, 1.5), .dy = random_doubles(ROWS * HIDDEN, -1, 1.3)};
    for (size_t layer = 0; layer < LAYERS; layer++) {
        n.weight_ih[layer] = random_doubles(4 * HIDDEN * (INPUT + HIDDEN), -0.2, 0.3);
        n.weight_hh[layer] = random_doubles(4 * HIDDEN * HIDDEN, -0.3, 0.2);
        n.bias[layer] = random_doubles(4 * HIDDEN, -0.5, 1);
    }
    for (int cell = CRNN_RNN_TANH; cell <= CRNN_GRU; cell++) {
        size_t G = cell == CRNN_LSTM ? 4 : cell == CRNN_GRU ? 3 : 1;
        for (int truncation = CRNN_FULL; truncation <= CRNN_CHUNK; truncation++) {
            crnn_set_blas(NULL, NULL);
            calls = 0;
            results own = train(dtype, (crnn_cell)cell, (crnn_truncation)truncation, &n);
            CHECK(calls == 0, "%s: %ld calls of a BLAS that was taken away", isa, calls);
            for (int b = 0; b < 2; b++) {
                char where[120];
                snprintf(where, sizeof where, "%s %s, cell %d, truncation %d, %s", isa, dtype_name(dtype), cell, truncation,
                         BLAS[b].name);
                CHECK(crnn_set_blas(BLAS[b].s, BLAS[b].d) == CRNN_OK, "%s: refused", where);
                calls = 0;
                results foreign = train(dtype, (crnn_cell)cell, (crnn_truncation)truncation, &n);
                CHECK(calls > 0, "%s: never called", where);
                compare(dtype, G, &foreign, &own, tolerance, where);
            }
            free_buffers();
        }
    }
    crnn_set_blas(NULL, NULL);
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
