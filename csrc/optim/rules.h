/* Update rules, element by element, in PyTorch's formulas. One row function per rule; the dense form is one long row,
 * the row-sparse form walks every row and takes the gradient of rows that are not named as zero (moments still decay),
 * so both give the same numbers. */
typedef struct {
    T rate, a, b, eps, decay, bias1, bias2; /* adam: bias1 = rate / (1 - a^step), bias2 = 1 / sqrt(1 - b^step) */
    T not_a, not_b;                         /* 1 - a and 1 - b, taken in double: near 1, a float has lost their digits */
} rule_numbers;

#define RULE_ROW(name, BODY)                                                                            \
    NOINLINE void row_##name(T *restrict p, T *restrict s1, T *restrict s2, const T *restrict gradient, \
                             size_t n, const rule_numbers *q)                                           \
    {                                                                                                   \
        (void)s1, (void)s2;                                                                             \
        for (size_t i = 0; i < n; i++) {                                                                \
            T g = gradient ? gradient[i] : 0;                                                           \
            BODY                                                                                        \
        }                                                                                               \
    }
#if CRNN_DOUBLE
#define ROOT sqrt
#else
#define ROOT sqrtf
#endif
RULE_ROW(sgd, p[i] -= q->rate * g;)
RULE_ROW(momentum, s1[i] = q->a * s1[i] + g; p[i] -= q->rate * s1[i];)
RULE_ROW(adagrad, s1[i] += g * g; p[i] -= q->rate * g / (ROOT(s1[i]) + q->eps);)
RULE_ROW(rmsprop, s1[i] = q->a * s1[i] + q->not_a * g * g; p[i] -= q->rate * g / (ROOT(s1[i]) + q->eps);)
RULE_ROW(adam, p[i] *= q->decay; s1[i] = q->a * s1[i] + q->not_a * g;
         s2[i] = q->b * s2[i] + q->not_b * g * g;
         p[i] -= q->bias1 * s1[i] / (ROOT(s2[i]) * q->bias2 + q->eps);)

typedef void (*rule_row)(T *restrict, T *restrict, T *restrict, const T *restrict, size_t, const rule_numbers *);

typedef struct {
    const crnn_update_args *args;
    const rule_numbers *numbers;
    rule_row rule;
} update_call;

/* Elements from which two threads update (or scale) a dense tensor faster than one: near cores, all in cache, SGD 1.4 times as
 * fast with 16384 and twice with 131072, Adam 1.5 to 1.9 times. Gradients come from all threads, and parameters that another core
 * has read take several times as long to write: far ones cost more than they bring while
 * one thread walks the layer alone (LSTM and GRU of 100 units, 40000 and 30000 elements: 7 to 8 % of a sentence of 24 words; an LSTM
 * of 200 units, 160000, which two walk, would lose some 9 by it). Told by the time alone: where slow cores share a cache it made no
 * difference. */
#define UPDATE_SHARED ((size_t)1 << 14)
#define UPDATE_SHARED_FAR ((size_t)1 << 16)
static int update_threads(size_t n)
{
    const int threads = n < UPDATE_SHARED ? 1 : crnn_get_threads();
    return threads > 1 && n < UPDATE_SHARED_FAR && crnn_handover(threads) > CRNN_FAR ? 1 : threads;
}

static void update_dense(void *context, int rank, crnn_team *team)
{
    const update_call *call = context;
    const crnn_update_args *args = call->args;
    size_t lo, hi;
    crnn_share(args->n, 64, rank, crnn_team_size(team), &lo, &hi);
    T *s1 = args->s1, *s2 = args->s2;
    if (hi > lo)
        call->rule((T *)args->p + lo, s1 ? s1 + lo : NULL, s2 ? s2 + lo : NULL, (const T *)args->g + lo, hi - lo, call->numbers);
}

static void kernel_update(const crnn_update_args *args)
{
    static const rule_row rules[] = {row_sgd, row_momentum, row_adagrad, row_rmsprop, row_adam};
    rule_numbers q = {.rate = (T)args->rate, .a = (T)args->a, .b = (T)args->b, .eps = (T)args->eps};
    q.decay = (T)(1.0 - args->rate * args->decay);
    q.not_a = (T)(1.0 - args->a), q.not_b = (T)(1.0 - args->b);
    if (args->rule == CRNN_ADAM) {
        q.bias1 = (T)(args->rate / (1.0 - pow(args->a, (double)args->step)));
        q.bias2 = (T)(1.0 / sqrt(1.0 - pow(args->b, (double)args->step)));
    }
    if (!args->ids) {
        update_call call = {args, &q, rules[args->rule]};
        crnn_parallel(update_threads(args->n), 1, update_dense, &call);
        return;
    }
    T *p = args->p, *s1 = args->s1, *s2 = args->s2;
    const T *g = args->g;
    int still = args->rule == CRNN_SGD || args->rule == CRNN_ADAGRAD; /* a zero gradient changes nothing */
    for (size_t row = 0, next = 0; row < args->rows; row++) {
        if (still) {
            if (next == args->n_ids) break;
            row = (size_t)args->ids[next];
        }
        int named = next < args->n_ids && (size_t)args->ids[next] == row;
        size_t at = row * args->ld;
        rules[args->rule](p + at, s1 ? s1 + at : NULL, s2 ? s2 + at : NULL, named ? g + next * args->width : NULL,
                          args->width, &q);
        next += (size_t)named;
    }
}

/* Sums of pieces of SQUARES_PIECE elements, added in their order: the same bits for any number of threads. */
#define SQUARES_PIECE 65536

/* The same lanes, hence the same bits, for every instruction set. With eight, sums wait for the ones before: in the second level three
 * times as long with AVX-512, 2.3 with AVX2 (with SSE2, which has no room for 32, 0.8 to 0.9 times, with neither half as long). */
#define SQUARES_LANES ((size_t)32)
static double squares(const T *a, size_t n)
{
    double lanes[SQUARES_LANES] = {0};
    size_t i = 0;
    for (; i + SQUARES_LANES <= n; i += SQUARES_LANES)
        for (size_t l = 0; l < SQUARES_LANES; l++) lanes[l] += (double)a[i + l] * (double)a[i + l];
    for (size_t l = 0; i < n; i++, l++) lanes[l] += (double)a[i] * (double)a[i];
    for (size_t half = SQUARES_LANES / 2; half; half /= 2)
        for (size_t l = 0; l < half; l++) lanes[l] += lanes[half + l];
    return lanes[0];
}

typedef struct {
    const T *a;
    size_t n, first, count;
    double sums[256];
} squares_call;

static void squares_work(void *context, int rank, crnn_team *team)
{
    squares_call *call = context;
    size_t lo, hi;
    crnn_share(call->count, 1, rank, crnn_team_size(team), &lo, &hi);
    for (size_t piece = lo; piece < hi; piece++) {
        size_t at = (call->first + piece) * SQUARES_PIECE;
        call->sums[piece] = squares(call->a + at, call->n - at < SQUARES_PIECE ? call->n - at : SQUARES_PIECE);
    }
}

static double kernel_sum_squares(const void *values, size_t n)
{
    squares_call call = {.a = values, .n = n};
    size_t pieces = (n + SQUARES_PIECE - 1) / SQUARES_PIECE;
    double sum = 0;
    for (; call.first < pieces; call.first += call.count) {
        call.count = pieces - call.first < 256 ? pieces - call.first : 256;
        crnn_parallel(call.count == 1 ? 1 : crnn_get_threads(), 1, squares_work, &call);
        for (size_t piece = 0; piece < call.count; piece++) sum += call.sums[piece];
    }
    return sum;
}

typedef struct {
    T *a;
    size_t n;
    T factor;
} scale_call;

static void scale_work(void *context, int rank, crnn_team *team)
{
    const scale_call *call = context;
    size_t lo, hi;
    crnn_share(call->n, 64, rank, crnn_team_size(team), &lo, &hi);
    for (size_t i = lo; i < hi; i++) call->a[i] *= call->factor;
}

static void kernel_scale(void *values, size_t n, double factor)
{
    scale_call call = {values, n, (T)factor};
    crnn_parallel(update_threads(n), 1, scale_work, &call);
}

static void kernel_add_rows(void *dst, size_t row_step, size_t element_step, const int64_t *ids, const void *rows,
                            size_t n, size_t width, double alpha)
{
    T f = (T)alpha;
    for (size_t r = 0; r < n; r++) {
        T *to = (T *)dst + (size_t)ids[r] * row_step;
        const T *from = (const T *)rows + r * width;
        if (element_step == 1)
            for (size_t k = 0; k < width; k++) to[k] += f * from[k];
        else
            for (size_t k = 0; k < width; k++) to[k * element_step] += f * from[k];
    }
}

static void kernel_function(char f, const void *x, void *y, size_t n)
{
    for (size_t i = 0; i < n; i += VW) {
        T lanes[VW];
        size_t m = n - i < VW ? n - i : VW;
        for (size_t l = 0; l < VW; l++) lanes[l] = l < m ? ((const T *)x)[i + l] : 0;
        V v = load(lanes);
        store(lanes, f == 'e' ? v_exp(v) : f == 't' ? v_tanh(v) : v_sigmoid(v));
        memcpy((T *)y + i, lanes, m * sizeof(T));
    }
}
