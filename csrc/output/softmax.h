/* Softmax cross entropy over a large vocabulary. W is stored transposed, (H, V) with padded rows, so that logits and
 * weight gradients read and write it without packing. Rows are walked in blocks whose logits fit SOFTMAX_BYTES:
 *   1. logits   tiles of 4 vectors of columns, and the largest logit of each row
 *   2. powers   e = exp(logit - largest) in their place, and their sum per slab of columns
 *   3. rows     loss; p = f e with f = scale / sum, but it is h and dH that are multiplied by f, a thousandth of the e's
 *   4. slabs    per slab of columns: dH partial (dot products along the columns), then dW or the SGD update
 *   5. dH       partials added in slab order
 * Threads share the columns in 1, 2 and 4, so that hardly a line of W and of the logits changes hands, and the rows in 3 and 5 (of
 * a small vocabulary in 2 as well).
 * The logits of a slab lie together, and away from the next one's.
 * Logits walk upwards, slabs downwards, so that what the second level still holds of W comes first.
 * The number of slabs depends on the vocabulary alone, so sums do not depend on the threads. */
#define SOFTMAX_BYTES ((size_t)16 << 20)
#define SLABS 8
/* Between what threads write at the same time lies as much as the hardware fetches ahead, of lines in a row and of rows at equal
 * distances: what it fetches of another thread's has to be fetched back. With nothing between the logits of two threads, one of
 * them took twice as long for its powers where cores are far from each other. */
#define LINES_BEYOND 32
#define ROWS_BEYOND 48
#define BYTES_BEYOND ((size_t)256 << 10) /* of rows, at most */
#define LINE (64 / sizeof(T))

typedef struct {
    const crnn_softmax_args *args;
    T *logits;      /* slab after slab, `apart` from each other: rows of `ldl` in each; or, if narrow, side by side in whole rows */
    T *h;           /* (block, ldh) the block's rows, padded; from 3 on f h, -rate f h where the update is folded in */
    T *factors;     /* (block) f */
    T *tops;        /* (threads, room_tops) largest logits of each thread's columns, by row and lane, then by row */
    T *bias;        /* (Vp) */
    T *bias_sum;    /* (Vp) */
    T *parts;       /* (SLABS, block, ldh) */
    T *rooms;       /* per thread: W turned round; null for few rows */
    T *columns;     /* per thread: columns of W or of h; null where none are copied */
    double *sums;   /* (SLABS, 2, doubles) of each slab: sums of powers, and exponents of targets */
    double *losses; /* (block) nats */
    size_t doubles; /* block, as whole lines: what threads write meanwhile lies apart */
    size_t block, rows, first, ldl, ldh, Vp, slabs, slab, apart, room, room_tops, column_room;
    T *probabilities;
    int narrow;     /* slabs narrower than a tile */
    int blas;       /* does the products; asked once, so that all threads agree */
    int add;        /* gradients add to what earlier blocks (or the caller) left */
} softmax_call;

INLINE size_t slab_begin(const softmax_call *call, size_t slab) { return slab * call->slab; }
INLINE size_t slab_end(const softmax_call *call, size_t slab)
{
    size_t end = (slab + 1) * call->slab;
    return end < call->Vp ? end : call->Vp;
}
/* The rows' logits in one slab. */
INLINE T *slab_logits(const softmax_call *call, size_t slab) { return call->logits + slab * call->apart; }

/* Columns whose logits a thread makes: those of its slabs, where that is fair. */
static void share_columns(const softmax_call *call, int rank, int size, size_t *lo, size_t *hi)
{
    if (call->slabs % (size_t)size) {
        crnn_share(call->Vp, 4 * VW, rank, size, lo, hi);
        return;
    }
    crnn_share(call->slabs, 1, rank, size, lo, hi);
    *lo = slab_begin(call, *lo);
    *hi = slab_begin(call, *hi) < call->Vp ? slab_begin(call, *hi) : call->Vp;
}

/* What a topped tile does, for columns of which the last `pads` do not count. */
static void pad_row(T *row, size_t n, size_t pads, T *tops)
{
    V top = load(tops);
    for (size_t v = n - pads; v < n; v++) row[v] = (T)-INFINITY;
    for (size_t v = 0; v < n; v += VW) top = MAXIMUM(load(row + v), top);
    store(tops, top);
}

/* The weights' columns are copied to where their rows lie close to each other, a tile's width at a time, and the weight gradient is a
 * product in blocks for the caches (gemm.h), from so many rows on. The whole output layer of 10,000 words on one thread, 400 rows of 200
 * units and 700 rows of 650: on Zen 4 with AVX2 1.12 and 1.22 times as fast, on Emerald Rapids with AVX-512 1.11 and 1.24. Of the gradient
 * 64 rows would lose 1 %, 24 rows 6. */
#define COPIED_ROWS 96
INLINE int copies_columns(size_t rows) { return rows >= COPIED_ROWS; }

static void softmax_logits(const softmax_call *call, T *room, int rank, int size)
{
    const crnn_softmax_args *args = call->args;
    const T *w = args->weight_t;
    const size_t words = args->vocabulary;
    T *tops = call->tops + (size_t)rank * call->room_tops;
    size_t lo, hi;
    share_columns(call, rank, size, &lo, &hi);
    for (size_t r = 0; r < call->rows; r++) store(tops + r * VW, splat((T)-INFINITY));
    for (size_t v = lo, ahead; v < hi; v = ahead) {
        const size_t slab = v / call->slab, end = call->narrow || hi < slab_end(call, slab) ? hi : slab_end(call, slab);
        ahead = v + 4 * VW < end ? v + 4 * VW : end;
        const size_t pads = ahead > words ? ahead - words : 0;
        const int nv = (int)((ahead - v) / VW);
        const size_t wanted = ahead < hi ? args->hidden : 0; /* rows of W's next columns */
        const int copied = copies_columns(call->rows);
        const T *b = copied ? room : w + v;
        const size_t ldb = copied ? (size_t)nv * VW : args->ld;
        if (copied) copy_tile(room, ldb, w + v, args->ld, ldb, args->hidden);
        for (size_t done = 0, asked = 0; done < call->rows;) {
            const size_t mr = tile_rows(call->rows - done, nv), upto = wanted * (done + mr) / call->rows;
            const tile_fetch fetch = {.far = 1, .at = (const char *)(w + ahead + asked * args->ld), .rows = upto - asked,
                                      .step = args->ld * sizeof(T), .tops = tops + done * VW};
            T *out = slab_logits(call, slab) + done * call->ldl + (v - slab_begin(call, slab));
            (pads ? tiles[0] : topped_tiles)[nv][mr](args->hidden, call->h + done * call->ldh, call->ldh, b, ldb, out, call->ldl,
                                                     call->bias + v, 0, contiguous_off, &fetch);
            for (size_t r = 0; pads && r < mr; r++, out += call->ldl) pad_row(out, ahead - v, pads, fetch.tops + r * VW);
            done += mr;
            asked = upto; /* asked for while tiles are at work */
        }
    }
    for (size_t r = 0; r < call->rows; r++) tops[r] = lane_max(load(tops + r * VW));
}

/* The largest logit of row r; 0 where none is larger than -inf. */
static T largest_logit(const softmax_call *call, size_t r, int size)
{
    T top = (T)-INFINITY;
    for (const T *at = call->tops + r, *end = at + (size_t)size * call->room_tops; at < end; at += call->room_tops)
        top = *at > top ? *at : top;
    return top > (T)-INFINITY ? top : 0;
}

/* n logits of a row -> powers e = exp(logit - top); returns their sums by lane, of 64 and then of those: their error is at most
 * (64 + n / (64 VW)) eps / 2. */
INLINE V power_row(T *row, size_t n, T top)
{
    V sums = {0};
    for (size_t v = 0; v < n;) {
        const size_t stop = v + 64 * VW < n ? v + 64 * VW : n;
        V part = {0};
        for (; v < stop; v += VW) {
            V e = v_exp(load(row + v) - top);
            store(row + v, e);
            part += e;
        }
        sums += part;
    }
    return sums;
}

/* The powers of rows [r0, r0 + rows), at most VW, in a slab, and the exponents of the targets there. */
static void slab_powers(const softmax_call *call, size_t slab, size_t r0, size_t rows, int size)
{
    const size_t from = slab_begin(call, slab), n = slab_end(call, slab) - from;
    double *sums = call->sums + slab * 2 * call->doubles + r0, *exponents = sums + call->doubles;
    V parts[VW];
    T lanes[VW];
    for (size_t i = 0; i < VW; i++) {
        parts[i] = (V){0};
        if (i >= rows) continue;
        T *row = slab_logits(call, slab) + (r0 + i) * call->ldl, top = largest_logit(call, r0 + i, size);
        size_t target = call->probabilities ? SIZE_MAX : (size_t)call->args->targets[call->first + r0 + i] - from;
        if (target < n) exponents[i] = (double)row[target] - (double)top;
        parts[i] = power_row(row, n, top);
    }
    store(lanes, lane_sums(parts, (int)VW));
    for (size_t i = 0; i < rows; i++) sums[i] = (double)lanes[i];
}

/* A thread's own slabs, or, where they lie side by side, its share [lo, hi) of the rows. */
static void softmax_powers(const softmax_call *call, size_t first_slab, size_t last_slab, size_t lo, size_t hi, int size)
{
    if (!call->narrow) lo = 0, hi = call->rows;
    else first_slab = 0, last_slab = call->slabs;
    const size_t block = call->narrow ? VW : call->rows;
    for (size_t first = lo; first < hi; first += block)
        for (size_t slab = first_slab; slab < last_slab; slab++)
            for (size_t r = first; r < hi && r < first + block; r += VW) slab_powers(call, slab, r, hi - r < VW ? hi - r : VW, size);
}

/* Rows [lo, hi), once all powers are there: probabilities; or losses, and what the products need. p - 1 at the target is
 * f (e - sum). */
static void softmax_rows(const softmax_call *call, size_t lo, size_t hi, int gradients)
{
    const crnn_softmax_args *args = call->args;
    size_t H = args->hidden, words = args->vocabulary;
    for (size_t r = lo; r < hi; r++) {
        double sum = 0;
        for (size_t slab = 0; slab < call->slabs; slab++) sum += call->sums[slab * 2 * call->doubles + r];
        if (call->probabilities) {
            T factor = (T)(1 / sum), *out = call->probabilities + (call->first + r) * words;
            for (size_t slab = 0; slab < call->slabs; slab++) {
                const T *row = slab_logits(call, slab) + r * call->ldl;
                for (size_t v = slab_begin(call, slab); v < words && v < slab_end(call, slab); v++) *out++ = factor * *row++;
            }
            continue;
        }
        const size_t target = (size_t)args->targets[call->first + r], slab = target / call->slab;
        call->losses[r] = log(sum) - call->sums[(slab * 2 + 1) * call->doubles + r];
        if (!gradients) continue;
        const double factor = args->scale / sum;
        T *at_target = slab_logits(call, slab) + r * call->ldl + (target - slab_begin(call, slab));
        T of_h = (T)(args->rate != 0.0 ? -args->rate * factor : factor);
        *at_target = (T)((double)*at_target - sum);
        call->factors[r] = (T)factor;
        for (size_t k = 0; k < H; k++) call->h[r * call->ldh + k] *= of_h;
    }
}

#include "states.h"

static void softmax_slab(const softmax_call *call, size_t slab, T *room, T *columns)
{
    const crnn_softmax_args *args = call->args;
    size_t H = args->hidden, rows = call->rows, from = slab_begin(call, slab), to = slab_end(call, slab);
    T *part = call->parts + slab * call->block * call->ldh, *w = args->weight_t, *e = slab_logits(call, slab);
    int update = args->rate != 0.0;
    T *out = update ? w : args->grad_w;
    size_t ldo = update ? args->ld : args->ld_grad;
    T *bias = update ? args->bias : args->grad_b;
    const tile_fetch far = {.far = 1}; /* W itself has just been read for dH */
    for (size_t left = to > from ? to - from : 0, n; left; left -= n) { /* backwards: the logits that came last come first */
        n = round_up(next_rows(left, room ? TURN_STEP : SLAB_STEP), 4 * VW);
        if (n > left) n = left;
        const size_t at = left - n, v = from + at;
        if (args->dh && room) softmax_turned(call, part, room, e + at, w + v, n, at ? w + v - n : NULL, from + left < to);
        else if (args->dh) softmax_dot(call, part, e + at, w + v, n, from + left < to, slab & 1);
        const int copied = out && copies_columns(rows);
        for (size_t c = v; (out || bias) && c < v + n; c += 4 * VW) {
            int nv = (int)((v + n - c < 4 * VW ? v + n - c : 4 * VW) / VW);
            if (bias)
                tiles[0][nv][1](rows, call->factors, 0, e + (c - from), call->ldl, call->bias_sum + c, 0, NULL, 0, contiguous_off,
                                NULL);
            for (size_t k = 0; out && !copied && k < H;) {
                size_t mr = tile_rows(H - k, 4);
                T *o = out + k * ldo + c;
                turned_rows[0][nv][mr](rows, call->h + k, call->ldh, e + (c - from), call->ldl,
                                  o, ldo, update || call->add ? o : NULL, ldo, contiguous_off, update ? NULL : &far);
                k += mr;
            }
        }
        if (!copied) continue;
        const product_call p = {.N = n, .K = rows, .A = call->h, .lda = call->ldh, .turned = 1, .B = e + at, .ldb = call->ldl,
                                .depth = COLUMNS_DEPTH, .room = columns, .C = out + v, .ldc = ldo, .accumulate = update || call->add,
                                .blas = call->blas};
        product_rows(&p, 0, H);
    }
    if (!bias) return;
    for (size_t c = from; c < to && c < args->vocabulary; c++) {
        if (update) bias[c] -= (T)args->rate * call->bias_sum[c];
        else bias[c] = (call->add ? bias[c] : 0) + call->bias_sum[c];
    }
}

static void softmax_work(void *context, int rank, crnn_team *team)
{
    const softmax_call *call = context;
    const crnn_softmax_args *args = call->args;
    size_t lo, hi, first_slab, last_slab, H = args->hidden;
    int size = crnn_team_size(team), gradients = args->dh || args->grad_w || args->grad_b || args->rate != 0.0;
    crnn_share(call->rows, 1, rank, size, &lo, &hi);
    crnn_share(call->slabs, 1, rank, size, &first_slab, &last_slab);
    T *columns = call->columns ? call->columns + (size_t)rank * call->column_room : NULL;
    softmax_logits(call, columns, rank, size);
    crnn_barrier(team);
    softmax_powers(call, first_slab, last_slab, lo, hi, size);
    crnn_barrier(team);
    softmax_rows(call, lo, hi, gradients);
    if (!gradients) return;
    crnn_barrier(team);
    T *room = call->rooms ? call->rooms + (size_t)rank * call->room : NULL;
    while (last_slab > first_slab) softmax_slab(call, --last_slab, room, columns); /* the columns that came last come first */
    if (!args->dh) return;
    crnn_barrier(team);
    for (size_t r = lo; r < hi; r++) {
        T *dh = (T *)args->dh + (call->first + r) * H;
        for (size_t k = 0; k < H; k++) dh[k] = call->parts[r * call->ldh + k];
        for (size_t slab = 1; slab < call->slabs; slab++)
            for (size_t k = 0; k < H; k++) dh[k] += call->parts[(slab * call->block + r) * call->ldh + k];
        for (size_t k = 0; k < H; k++) dh[k] *= call->factors[r];
    }
}

/* Rows whose logits are held at a time. */
static size_t softmax_rows_most(const crnn_softmax_args *args)
{
    size_t most = SOFTMAX_BYTES / (leading(round_up(args->vocabulary, VW)) * sizeof(T));
    return most < 16 ? 16 : most;
}

static crnn_status softmax_run(const crnn_softmax_args *args, T *probabilities, double *loss)
{
    size_t words = args->vocabulary, H = args->hidden, R = args->rows;
    softmax_call call = {.args = args, .probabilities = probabilities, .blas = crnn_blas_wanted()};
    call.Vp = round_up(words, VW);
    call.ldh = leading(H);
    call.block = next_rows(R, softmax_rows_most(args));
    call.slab = round_up((call.Vp + SLABS - 1) / SLABS, 16);
    call.slabs = (call.Vp + call.slab - 1) / call.slab;
    call.narrow = call.slab < 4 * VW;
    call.ldl = leading(call.narrow ? call.Vp : call.slab);
    size_t beyond = ROWS_BEYOND * call.ldl < BYTES_BEYOND / sizeof(T) ? ROWS_BEYOND * call.ldl : BYTES_BEYOND / sizeof(T);
    call.apart = call.narrow ? call.slab : call.block * call.ldl + beyond;
    int threads = crnn_get_threads();
    if ((double)R * (double)H * (double)words < 1e5) threads = 1;
    call.room = TURN_STEP * TURN_UNITS * VW;
    call.column_room = product_room(COLUMNS_DEPTH, 1);
    if (call.column_room < H * 4 * VW) call.column_room = H * 4 * VW;
    call.room_tops = call.block * VW + LINES_BEYOND * LINE;
    T **pieces[] = {&call.logits, &call.h, &call.factors, &call.tops, &call.bias, &call.bias_sum, &call.parts,
                    &call.rooms, &call.columns};
    enum { PIECES = sizeof pieces / sizeof *pieces };
    /* None of it wraps around: a block's logits are bounded, and the caller's own h, W and targets are as large as the rest. */
    size_t counts[PIECES] = {call.narrow ? call.block * call.ldl + 4 * VW : call.slabs * call.apart, call.block * call.ldh + 4 * VW,
                             call.block, (size_t)threads * call.room_tops, call.Vp + 4 * VW, call.Vp + 4 * VW,
                             args->dh ? call.slabs * call.block * call.ldh : 0,
                             args->dh && call.block >= TURN_ROWS ? (size_t)threads * call.room : 0,
                             copies_columns(call.block) ? (size_t)threads * call.column_room : 0};
    call.doubles = round_up(call.block, CRNN_LINE / sizeof(double));
    const size_t doubles = (2 * SLABS + 1) * call.doubles * sizeof(double);
    size_t total = doubles;
    for (int i = 0; i < PIECES; i++) total += round_up(counts[i] * sizeof(T), CRNN_LINE);
    char *block = crnn_allocate(total);
    if (!block) return CRNN_NOMEM;
    call.sums = (double *)(void *)block;
    call.losses = call.sums + 2 * SLABS * call.doubles;
    size_t at = doubles;
    for (int i = 0; i < PIECES; i++) {
        *pieces[i] = counts[i] ? (T *)(void *)(block + at) : NULL;
        at += round_up(counts[i] * sizeof(T), CRNN_LINE);
    }
    memset(call.bias, 0, (call.Vp + 4 * VW) * sizeof(T));
    double sum = 0;
    for (size_t first = 0; first < R; first += call.block) {
        call.first = first;
        call.rows = R - first < call.block ? R - first : call.block;
        call.add = args->accumulate || first > 0;
        if (args->bias) memcpy(call.bias, args->bias, words * sizeof(T));
        for (size_t r = 0; r < call.rows; r++)
            memcpy(call.h + r * call.ldh, (const T *)args->h + (first + r) * H, H * sizeof(T));
        crnn_parallel(threads, 0, softmax_work, &call);
        for (size_t r = 0; r < call.rows && !probabilities; r++) {
            sum += call.losses[r];
            if (args->losses) args->losses[first + r] = call.losses[r];
        }
    }
    if (loss) *loss = sum;
    crnn_release(block);
    return CRNN_OK;
}

/* No rows: nothing to add, and gradients that are not accumulated are zero. */
static void softmax_nothing(const crnn_softmax_args *args)
{
    if (args->accumulate) return;
    for (size_t k = 0; args->grad_w && k < args->hidden; k++)
        memset((T *)args->grad_w + k * args->ld_grad, 0, args->vocabulary * sizeof(T));
    if (args->grad_b) memset(args->grad_b, 0, args->vocabulary * sizeof(T));
}

typedef struct {
    const crnn_softmax_args *args;
    const T *gradient;
    size_t ld;
} late_update;

static void subtract_gradient(void *context, int rank, crnn_team *team)
{
    const late_update *update = context;
    const crnn_softmax_args *args = update->args;
    const T rate = (T)args->rate, *g = update->gradient;
    size_t lo, hi;
    crnn_share(args->hidden + (args->bias ? 1 : 0), 1, rank, crnn_team_size(team), &lo, &hi);
    for (size_t k = lo; k < hi; k++) {
        T *w = k < args->hidden ? (T *)args->weight_t + k * args->ld : args->bias;
        for (size_t v = 0; v < args->vocabulary; v++) w[v] -= rate * g[k * update->ld + v];
    }
}

/* An update folded into the products is only right while one block holds all rows: later blocks would see weights that
 * earlier ones have changed. Otherwise the gradient is built once and subtracted at the end. */
static crnn_status softmax_update_apart(const crnn_softmax_args *args, double *loss)
{
    size_t H = args->hidden, words = args->vocabulary, ld = leading(words);
    T *gradient = crnn_allocate((H + 1) * ld * sizeof(T));
    if (!gradient) return CRNN_NOMEM;
    crnn_softmax_args apart = *args;
    apart.rate = 0.0;
    apart.accumulate = 0;
    apart.grad_w = gradient;
    apart.ld_grad = ld;
    apart.grad_b = args->bias ? gradient + H * ld : NULL;
    crnn_status status = softmax_run(&apart, NULL, loss);
    late_update update = {args, gradient, ld};
    if (status == CRNN_OK) crnn_parallel(crnn_get_threads(), 0, subtract_gradient, &update);
    crnn_release(gradient);
    return status;
}

static crnn_status kernel_softmax_loss(const crnn_softmax_args *args, double *loss)
{
    if (args->rows == 0) {
        softmax_nothing(args);
        *loss = 0.0;
        return CRNN_OK;
    }
    if (args->rate != 0.0 && args->rows > softmax_rows_most(args)) return softmax_update_apart(args, loss);
    return softmax_run(args, NULL, loss);
}

static crnn_status kernel_softmax_probabilities(const crnn_softmax_args *args, void *out)
{
    return args->rows ? softmax_run(args, out, NULL) : CRNN_OK;
}
