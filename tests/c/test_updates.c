/* Update rules, dense and by rows, against their formulas; sums of squares, scaling, scattered additions. */
#include "check.h"

typedef struct {
    double p, s1, s2;
} scalar;

static double rate = 0.1, a = 0.9, b = 0.98, eps = 1e-6, decay = 0.03;
static uint64_t step = 3;

/* One element of every rule, in PyTorch's formulas. */
static scalar updated(crnn_rule rule, scalar v, double g)
{
    switch (rule) {
    case CRNN_SGD: v.p -= rate * g; break;
    case CRNN_MOMENTUM:
        v.s1 = a * v.s1 + g;
        v.p -= rate * v.s1;
        break;
    case CRNN_ADAGRAD:
        v.s1 += g * g;
        v.p -= rate * g / (sqrt(v.s1) + eps);
        break;
    case CRNN_RMSPROP:
        v.s1 = a * v.s1 + (1 - a) * g * g;
        v.p -= rate * g / (sqrt(v.s1) + eps);
        break;
    case CRNN_ADAM:
        v.p -= rate * decay * v.p;
        v.s1 = a * v.s1 + (1 - a) * g;
        v.s2 = b * v.s2 + (1 - b) * g * g;
        v.p -= rate * (v.s1 / (1 - pow(a, (double)step))) / (sqrt(v.s2 / (1 - pow(b, (double)step))) + eps);
        break;
    }
    return v;
}

static int moments(crnn_rule rule) { return rule == CRNN_SGD ? 0 : rule == CRNN_ADAM ? 2 : 1; }

static crnn_update_args new_args(crnn_dtype dtype, crnn_rule rule)
{
    return (crnn_update_args){.dtype = dtype, .rule = rule, .rate = rate, .a = a, .b = b, .eps = eps,
                              .decay = rule == CRNN_ADAM ? decay : 0, .step = step};
}

static void test_dense(const char *isa, crnn_dtype dtype, crnn_rule rule, size_t n)
{
    char where[120];
    snprintf(where, sizeof where, "%s %s, rule %d, %zu elements", isa, dtype_name(dtype), (int)rule, n);
    double *p = random_doubles(n, -1, 2), *g = random_doubles(n, -2, 1), *s1 = random_doubles(n, 0.1, 1);
    double *s2 = random_doubles(n, 0.1, 1);
    crnn_update_args args = new_args(dtype, rule);
    args.n = n;
    args.p = from_doubles(dtype, p, n), args.g = from_doubles(dtype, g, n);
    args.s1 = moments(rule) > 0 ? from_doubles(dtype, s1, n) : NULL;
    args.s2 = moments(rule) > 1 ? from_doubles(dtype, s2, n) : NULL;
    crnn_status status = crnn_update(&args);
    CHECK(status == CRNN_OK, "%s: returned %d", where, (int)status);
    for (size_t i = 0; i < n; i++) {
        scalar v = updated(rule, (scalar){p[i], s1[i], s2[i]}, g[i]);
        p[i] = v.p, s1[i] = v.s1, s2[i] = v.s2;
    }
    check_close(dtype, args.p, p, n, 16 * epsilon(dtype), "p", where);
    if (args.s1) check_close(dtype, args.s1, s1, n, 16 * epsilon(dtype), "first moment", where);
    if (args.s2) check_close(dtype, args.s2, s2, n, 16 * epsilon(dtype), "second moment", where);
    free(p), free(g), free(s1), free(s2);
    free_buffers();
}

/* Rows that are not named count as gradient zero: the result is the dense rule's. */
static void test_rows(const char *isa, crnn_dtype dtype, crnn_rule rule, size_t width, size_t ld)
{
    enum { ROWS = 7, NAMED = 3 };
    static const int64_t ids[NAMED] = {0, 3, 6};
    char where[120];
    snprintf(where, sizeof where, "%s %s, rule %d, rows of %zu in %zu", isa, dtype_name(dtype), (int)rule, width, ld);
    size_t n = ROWS * ld;
    double *p = random_doubles(n, -1, 2), *g = random_doubles(NAMED * width, -2, 1), *s1 = random_doubles(n, 0.1, 1);
    double *s2 = random_doubles(n, 0.1, 1);
    for (size_t i = 0; i < n; i++)
        if (i % ld >= width) p[i] = s1[i] = s2[i] = 0;
    int64_t *own_ids = allocate(sizeof ids);
    memcpy(own_ids, ids, sizeof ids);
    crnn_update_args args = new_args(dtype, rule);
    args.p = from_doubles(dtype, p, n), args.g = from_doubles(dtype, g, NAMED * width);
    args.s1 = moments(rule) > 0 ? from_doubles(dtype, s1, n) : NULL;
    args.s2 = moments(rule) > 1 ? from_doubles(dtype, s2, n) : NULL;
    args.ids = own_ids, args.n_ids = NAMED, args.rows = ROWS, args.width = width, args.ld = ld;
    crnn_status status = crnn_update(&args);
    CHECK(status == CRNN_OK, "%s: returned %d", where, (int)status);
    size_t named = 0;
    for (size_t row = 0; row < ROWS; row++) {
        int hit = named < NAMED && ids[named] == (int64_t)row;
        for (size_t j = 0; j < width; j++) {
            size_t i = row * ld + j;
            scalar v = updated(rule, (scalar){p[i], s1[i], s2[i]}, hit ? g[named * width + j] : 0);
            p[i] = v.p, s1[i] = v.s1, s2[i] = v.s2;
        }
        named += (size_t)hit;
    }
    check_close(dtype, args.p, p, n, 16 * epsilon(dtype), "p", where);
    if (args.s1) check_close(dtype, args.s1, s1, n, 16 * epsilon(dtype), "first moment", where);
    if (args.s2) check_close(dtype, args.s2, s2, n, 16 * epsilon(dtype), "second moment", where);
    free(p), free(g), free(s1), free(s2), free(own_ids);
    free_buffers();
}

/* Neumaier's compensated sum: its own error is some 1e-16 of the result, a plain one's grows with the root of n. */
static double exact_squares(const double *v, size_t n)
{
    double sum = 0, lost = 0;
    for (size_t i = 0; i < n; i++) {
        const double square = v[i] * v[i], next = sum + square;
        lost += sum >= square ? (sum - next) + square : (square - next) + sum;
        sum = next;
    }
    return sum + lost;
}

static void test_vectors(const char *isa, crnn_dtype dtype, size_t n)
{
    char where[80];
    snprintf(where, sizeof where, "%s %s, %zu elements", isa, dtype_name(dtype), n);
    double *v = random_doubles(n, -1, 2), squares;
    void *array = from_doubles(dtype, v, n), *shifted = buffer(dtype, n + 1);
    void *same = (char *)shifted + element(dtype);
    memcpy(same, array, n * element(dtype));
    squares = exact_squares(v, n);
    double got = crnn_sum_squares(dtype, array, n);
    CHECK(fabs(got - squares) <= 1e-13 * (squares + 1), "%s: sum of squares %.17g, expected %.17g", where, got, squares);
    CHECK(got == crnn_sum_squares(dtype, same, n), "%s: the sum of squares depends on the alignment", where);
    crnn_scale(dtype, array, n, -0.3);
    for (size_t i = 0; i < n; i++) v[i] *= -0.3;
    check_close(dtype, array, v, n, 2 * epsilon(dtype), "scaled", where);
    free(v);
    free_buffers();
}

static void test_add_rows(const char *isa, crnn_dtype dtype, size_t width, int columns)
{
    enum { ROWS = 6, N = 9 };
    static const int64_t ids[N] = {5, 0, 5, 2, 2, 2, 0, 5, 4};
    char where[80];
    snprintf(where, sizeof where, "%s %s, add %d rows of %zu to %s", isa, dtype_name(dtype), N, width,
             columns ? "columns" : "rows");
    size_t row_step = columns ? 1 : width, element_step = columns ? ROWS : 1;
    double *dst = random_doubles(ROWS * width, -1, 2), *rows = random_doubles(N * width, -2, 1);
    void *got = from_doubles(dtype, dst, ROWS * width), *source = from_doubles(dtype, rows, N * width);
    crnn_add_rows(dtype, got, row_step, element_step, ids, source, N, width, -0.7);
    for (size_t r = 0; r < N; r++)
        for (size_t e = 0; e < width; e++)
            dst[(size_t)ids[r] * row_step + e * element_step] += -0.7 * rows[r * width + e];
    check_close(dtype, got, dst, ROWS * width, 8 * epsilon(dtype), "destination", where);
    free(dst), free(rows);
    free_buffers();
}

static void test_all(const char *isa, crnn_dtype dtype)
{
    static const size_t SIZES[] = {0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 1000, 20011, 150001};
    for (size_t i = 0; i < sizeof SIZES / sizeof *SIZES; i++) {
        misaligned = (int)(i % 2);
        for (int rule = CRNN_SGD; rule <= CRNN_ADAM; rule++) test_dense(isa, dtype, (crnn_rule)rule, SIZES[i]);
        test_vectors(isa, dtype, SIZES[i]);
    }
    for (size_t i = 1; i < 12; i++) {
        for (int rule = CRNN_SGD; rule <= CRNN_ADAM; rule++)
            test_rows(isa, dtype, (crnn_rule)rule, SIZES[i], SIZES[i] + i % 3 * 5);
        test_add_rows(isa, dtype, SIZES[i], 0);
        test_add_rows(isa, dtype, SIZES[i], 1);
    }
}

/* The sum of many pieces, more than are added up at a time, has the same bits for any number of threads. */
static void test_long_sum(const char *isa, crnn_dtype dtype)
{
    size_t n = ((size_t)1 << 24) + 70001;
    double *v = random_doubles(n, -1, 2), squares;
    void *array = from_doubles(dtype, v, n);
    squares = exact_squares(v, n);
    crnn_set_threads(1);
    double alone = crnn_sum_squares(dtype, array, n);
    CHECK(fabs(alone - squares) <= 1e-12 * squares, "%s: sum of squares %.17g, expected %.17g", isa, alone, squares);
    for (int threads = 2; threads <= 3; threads++) {
        crnn_set_threads(threads);
        double got = crnn_sum_squares(dtype, array, n);
        CHECK(got == alone, "%s %s: %.17g on %d threads, %.17g on one", isa, dtype_name(dtype), got, threads, alone);
    }
    free(v);
    free_buffers();
}

int main(void)
{
    announce_isas();
    test_long_sum(crnn_isa_active(), CRNN_F32);
    test_long_sum(crnn_isa_active(), CRNN_F64);
    for (int threads = 1; threads <= 2; threads++) {
        crnn_set_threads(threads);
        on_every_isa(test_all);
    }
    return finish("test_updates");
}
