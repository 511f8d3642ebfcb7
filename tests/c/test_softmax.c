/* crnn_softmax_loss and crnn_softmax_probabilities against plain loops: loss, every gradient, the update in place. */
#include "check.h"

typedef struct {
    size_t rows, hidden, vocabulary, ld;
    int bias;
    double size; /* of the weights: large ones make logits that would overflow an exponential */
    double *h, *weight, *b; /* (R, H), (V, H), (V) */
    int64_t *targets;
    double loss, *losses, *probabilities, *dh, *dw, *db;
} softmax_case;

static softmax_case now;
static char label[120];
static const double SCALE = 0.37;

static void solve(void)
{
    size_t R = now.rows, H = now.hidden, V = now.vocabulary;
    now.loss = 0;
    now.losses = allocate(R * sizeof(double)), now.probabilities = allocate(R * V * sizeof(double));
    now.dh = allocate(R * H * sizeof(double)), now.dw = allocate(V * H * sizeof(double));
    now.db = allocate(V * sizeof(double));
    memset(now.dw, 0, V * H * sizeof(double)), memset(now.db, 0, V * sizeof(double));
    memset(now.dh, 0, R * H * sizeof(double));
    for (size_t r = 0; r < R; r++) {
        double *p = now.probabilities + r * V, largest = -INFINITY, sum = 0;
        for (size_t v = 0; v < V; v++) {
            p[v] = now.b ? now.b[v] : 0;
            for (size_t k = 0; k < H; k++) p[v] += now.weight[v * H + k] * now.h[r * H + k];
            largest = fmax(largest, p[v]);
        }
        for (size_t v = 0; v < V; v++) sum += exp(p[v] - largest);
        size_t target = (size_t)now.targets[r];
        now.losses[r] = log(sum) + largest - p[target];
        now.loss += now.losses[r];
        for (size_t v = 0; v < V; v++) {
            p[v] = exp(p[v] - largest) / sum;
            double d = SCALE * (p[v] - (v == target));
            now.db[v] += d;
            for (size_t k = 0; k < H; k++) {
                now.dw[v * H + k] += d * now.h[r * H + k];
                now.dh[r * H + k] += d * now.weight[v * H + k];
            }
        }
    }
}

/* (V, H) as it is stored: (H, V) with row stride ld, zeros between V and ld. */
static double *stored(const double *matrix)
{
    double *a = allocate(now.hidden * now.ld * sizeof *a);
    for (size_t k = 0; k < now.hidden; k++)
        for (size_t v = 0; v < now.ld; v++)
            a[k * now.ld + v] = v < now.vocabulary ? matrix[v * now.hidden + k] : 0;
    return a;
}

static void check_matrix(crnn_dtype dtype, const void *got, const double *matrix, double tolerance, const char *what,
                         const char *where)
{
    double *expected = stored(matrix);
    check_close(dtype, got, expected, now.hidden * now.ld, tolerance, what, where);
    free(expected);
}

static crnn_softmax_args new_args(crnn_dtype dtype)
{
    double *weight = stored(now.weight);
    crnn_softmax_args args = {
        .dtype = dtype, .rows = now.rows, .hidden = now.hidden, .vocabulary = now.vocabulary,
        .h = from_doubles(dtype, now.h, now.rows * now.hidden),
        .weight_t = from_doubles(dtype, weight, now.hidden * now.ld), .ld = now.ld,
        .bias = from_doubles(dtype, now.b, now.vocabulary), .targets = now.targets, .scale = SCALE,
    };
    free(weight);
    return args;
}

/* A gradient buffer whose padding holds the zeros that the library keeps there. */
static void *gradient_matrix(crnn_dtype dtype)
{
    void *a = output_buffer(dtype, now.hidden * now.ld);
    for (size_t k = 0; k < now.hidden; k++)
        for (size_t v = now.vocabulary; v < now.ld; v++) put(dtype, a, k * now.ld + v, 0);
    return a;
}

static void test_case(const char *isa, crnn_dtype dtype)
{
    char where[200];
    snprintf(where, sizeof where, "%s %s %s", isa, dtype_name(dtype), label);
    size_t R = now.rows, H = now.hidden, V = now.vocabulary;
    /* A logit is a sum of H products of size `size`; its error enters the probabilities as a relative one. */
    double bound = 8 * epsilon(dtype) * (sqrt((double)H) + 4) * fmax(1, now.size) * sqrt((double)(R + V));
    const void *reference_dh = NULL, *reference_w = NULL;
    for (int threads = 1; threads <= 3; threads++) {
        crnn_set_threads(threads);
        crnn_softmax_args args = new_args(dtype);
        double loss = NAN, *losses = buffer(CRNN_F64, R);
        args.losses = losses;
        args.dh = output_buffer(dtype, R * H);
        args.grad_w = gradient_matrix(dtype), args.ld_grad = now.ld;
        args.grad_b = now.bias ? output_buffer(dtype, V) : NULL;
        crnn_status status = crnn_softmax_loss(&args, &loss);
        CHECK(status == CRNN_OK, "%s: returned %d", where, (int)status);
        CHECK(fabs(loss - now.loss) <= bound * fmax(1, fabs(now.loss)), "%s: loss %.9g, expected %.9g", where, loss,
              now.loss);
        check_close(CRNN_F64, losses, now.losses, R, bound, "losses", where);
        check_close(dtype, args.dh, now.dh, R * H, bound, "dh", where);
        check_matrix(dtype, args.grad_w, now.dw, bound, "grad_w", where);
        if (now.bias) check_close(dtype, args.grad_b, now.db, V, bound, "grad_b", where);

        args.accumulate = 1;
        crnn_softmax_loss(&args, &loss);
        for (size_t i = 0; i < V * H; i++) now.dw[i] *= 2;
        check_matrix(dtype, args.grad_w, now.dw, 2 * bound, "accumulated grad_w", where);
        for (size_t i = 0; i < V * H; i++) now.dw[i] /= 2;

        if (threads == 1) reference_dh = args.dh, reference_w = args.grad_w;
        check_same_bits(args.dh, reference_dh, R * H * element(dtype), "dh of other threads", where);
        check_same_bits(args.grad_w, reference_w, H * now.ld * element(dtype), "grad_w of other threads", where);

        /* The update in place must not leak into dh, which belongs to the old weights. */
        crnn_softmax_args update = new_args(dtype);
        update.dh = output_buffer(dtype, R * H);
        update.rate = 0.5;
        crnn_softmax_loss(&update, &loss);
        check_close(dtype, update.dh, now.dh, R * H, bound, "dh beside an update", where);
        double *moved = allocate(V * H * sizeof *moved);
        for (size_t i = 0; i < V * H; i++) moved[i] = now.weight[i] - 0.5 * now.dw[i];
        check_matrix(dtype, update.weight_t, moved, bound, "updated weight", where);
        free(moved);
        double *moved_bias = allocate(V * sizeof *moved_bias);
        for (size_t v = 0; now.bias && v < V; v++) moved_bias[v] = now.b[v] - 0.5 * now.db[v];
        if (now.bias) check_close(dtype, update.bias, moved_bias, V, bound, "updated bias", where);
        free(moved_bias);

        crnn_softmax_args evaluate = new_args(dtype);
        status = crnn_softmax_loss(&evaluate, &loss);
        CHECK(status == CRNN_OK && fabs(loss - now.loss) <= bound * fmax(1, fabs(now.loss)), "%s: loss alone %.9g", where,
              loss);
        void *out = output_buffer(dtype, R * V);
        status = crnn_softmax_probabilities(&evaluate, out);
        CHECK(status == CRNN_OK, "%s: probabilities returned %d", where, (int)status);
        check_close(dtype, out, now.probabilities, R * V, bound, "probabilities", where);
    }
    free_buffers();
}

static void run(size_t rows, size_t hidden, size_t vocabulary, int bias, double size)
{
    now = (softmax_case){.rows = rows, .hidden = hidden, .vocabulary = vocabulary, .bias = bias, .size = size,
                         .ld = (vocabulary + 15) / 16 * 16};
    now.ld += now.ld / 16 % 2 ? 0 : 16;
    snprintf(label, sizeof label, "rows %zu, hidden %zu, vocabulary %zu, bias %d, size %g", rows, hidden, vocabulary,
             bias, size);
    now.h = random_doubles(rows * hidden, -1, 1);
    now.weight = random_doubles(vocabulary * hidden, -0.7 * size, size);
    now.b = bias ? random_doubles(vocabulary, -0.5, 1) : NULL;
    now.targets = allocate(rows * sizeof *now.targets);
    for (size_t r = 0; r < rows; r++) now.targets[r] = (int64_t)random_below(vocabulary);
    solve();
    misaligned = (int)(random_bits() >> 63);
    on_every_isa(test_case);
    free(now.h), free(now.weight), free(now.b), free(now.targets);
    free(now.losses), free(now.probabilities), free(now.dh), free(now.dw), free(now.db);
}

/* A batch of nothing: no row to write, and a loss of 0. */
static void no_rows(const char *isa, crnn_dtype dtype)
{
    double w[64] = {0.5}, out[2] = {3, 3}, loss = 5;
    crnn_softmax_args args = {.dtype = dtype, .hidden = 2, .vocabulary = 3, .weight_t = w, .ld = 16};
    CHECK(crnn_softmax_probabilities(&args, out) == CRNN_OK, "%s %s: no rows are refused", isa, dtype_name(dtype));
    CHECK(out[0] == 3 && out[1] == 3, "%s %s: no rows, and something is written", isa, dtype_name(dtype));
    CHECK(crnn_softmax_loss(&args, &loss) == CRNN_OK && loss == 0, "%s %s: no rows, loss %g", isa, dtype_name(dtype), loss);
}

int main(void)
{
    announce_isas();
    on_every_isa(no_rows);
    static const size_t ROWS[] = {1, 2, 3, 5, 6, 7, 12, 13, 16, 40, 70}, HIDDEN[] = {1, 3, 16, 7, 20, 33, 8, 100, 2, 5, 17};
    static const size_t VOCABULARY[] = {1, 2, 7, 15, 16, 17, 33, 64, 65, 200, 1000};
    for (size_t i = 0; i < sizeof ROWS / sizeof *ROWS; i++) run(ROWS[i], HIDDEN[i], VOCABULARY[i], i % 3 != 0, 0.5);
    run(9, 20, 50, 1, 100); /* logits in the hundreds */
    run(300, 4, 30, 1, 0.5);
    /* Many rows: weights turned round, in several pieces of columns and of units. */
    run(203, 9, 4200, 1, 0.5);
    run(201, 241, 40, 0, 0.5);
    run(7, 6, 13001, 1, 0.5); /* dot products in several pieces of columns */
    return finish("test_softmax");
}
