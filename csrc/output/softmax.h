/* Softmax cross entropy over a large vocabulary. W is stored transposed, (H, V) with padded rows, so that logits and
 * weight gradients read and write it without packing. Rows are walked in blocks whose logits fit SOFTMAX_BYTES:
 *   1. logits   tiles of 4 vectors of columns; threads share the columns
 *   2. softmax  row by row: loss, logits -> gradients; threads share the rows
 *   3. slabs    per slab of columns: dH partial (dot products along the columns), then dW or the SGD update
 *   4. dH       partials added in slab order
 * Logits walk upwards, slabs downwards, each thread over its own columns, so that what the second level still holds of W
 * comes first.
 * The number of slabs depends on the vocabulary alone, so sums do not depend on the threads. */
#define SOFTMAX_BYTES ((size_t)16 << 20)
#define SLABS 8
#define SLAB_STEP 1536 /* columns of one dH update: long enough to hide the lane sums, short enough for the L2 cache */

typedef struct {
    const crnn_softmax_args *args;
    T *logits;      /* (block, ldl) */
    T *h;           /* (block, ldh) the block's rows, padded */
    T *h_scaled;    /* -rate * h; null unless the update is folded in */
    T *bias;        /* (Vp) */
    T *bias_sum;    /* (Vp) */
    T *parts;       /* (SLABS, block, ldh) */
    T *rooms;       /* per thread: W turned round; null for few rows */
    double *losses; /* (block) */
    size_t block, rows, first, ldl, ldh, Vp, slabs, slab, room;
    T *probabilities;
    int add;        /* gradients add to what earlier blocks (or the caller) left */
} softmax_call;

/* Columns whose logits a thread makes: those of its slabs, where that is fair, so that no column of W changes hands. */
static void share_columns(const softmax_call *call, int rank, int size, size_t *lo, size_t *hi)
{
    if (call->slabs % (size_t)size) {
        crnn_share(call->Vp, 4 * VW, rank, size, lo, hi);
        return;
    }
    crnn_share(call->slabs, 1, rank, size, lo, hi);
    *lo *= call->slab;
    *hi = *hi * call->slab < call->Vp ? *hi * call->slab : call->Vp;
}

/* Lines of a block of W that is wanted next, too scattered for the hardware to guess: `count` groups, `step` elements apart, of
 * `lines` lines each, `line_step` apart. */
#define LINE (64 / sizeof(T))
typedef struct {
    const T *at;
    size_t count, step, lines, line_step, done;
} block_fetch;

/* Up to `part` / `whole` of the groups. */
INLINE void fetch_upto(block_fetch *f, size_t part, size_t whole)
{
    size_t stop = f->count * part / whole, lines = f->lines, line_step = f->line_step;
    const T *at = f->at + f->done * f->step;
    for (size_t i = f->done; i < stop; i++, at += f->step)
        for (size_t l = 0; l < lines; l++) __builtin_prefetch(at + l * line_step, 0, 2);
    if (stop > f->done) f->done = stop;
}

static void softmax_logits(const softmax_call *call, int rank, int size)
{
    const crnn_softmax_args *args = call->args;
    const T *w = args->weight_t;
    const tile_fetch far = {.far = 1};
    size_t lo, hi;
    share_columns(call, rank, size, &lo, &hi);
    for (size_t v = lo; v < hi; v += 4 * VW) {
        size_t off[4] = {v, v + VW, v + 2 * VW, v + 3 * VW};
        int nv = (int)((hi - v < 4 * VW ? hi - v : 4 * VW) / VW);
        block_fetch next = {w + v + 4 * VW, v + 4 * VW < hi ? args->hidden : 0, args->ld, 4 * VW / LINE, LINE, 0};
        for (size_t done = 0; done < call->rows;) {
            size_t mr = next_rows(call->rows - done, (size_t)tile_rows_max[nv]);
            fetch_upto(&next, done + mr, call->rows);
            tiles[0][nv][mr](args->hidden, call->h + done * call->ldh, call->ldh, 1, w + v, args->ld,
                              call->logits + done * call->ldl, call->ldl, call->bias, 0, off, &far);
            done += mr;
        }
    }
}

/* Logits of one row -> probabilities times `scale`, with 1 taken off at the target; returns -log p(target). */
static double softmax_row(T *row, size_t words, size_t Vp, int64_t target, T scale, int subtract)
{
    for (size_t v = words; v < Vp; v++) row[v] = (T)-INFINITY;
    V most = load(row);
    for (size_t v = VW; v < Vp; v += VW) most = MAXIMUM(load(row + v), most);
    T top = lane_max(most);
    if (!(top > (T)-INFINITY)) top = 0;
    double sum = 0, hit = (double)row[target] - (double)top;
    /* Lane sums of at most 64 vectors, then double: the error of the sum stays near 64 * eps / 2. */
    for (size_t v = 0; v < Vp;) {
        size_t stop = v + 64 * VW < Vp ? v + 64 * VW : Vp;
        V part = (V){0};
        for (; v < stop; v += VW) {
            V e = v_exp(load(row + v) - top);
            store(row + v, e);
            part += e;
        }
        sum += (double)lane_sum(part);
    }
    T factor = (T)((double)scale / sum);
    for (size_t v = 0; v < Vp; v += VW) store(row + v, load(row + v) * factor);
    if (subtract) row[target] -= scale;
    return log(sum) - hit;
}

/* part (rows, H) (+)= d W^T over the columns [v, v + n). A few rows of W at a time pass by a block of rows of d that
 * stays in cache. The next ones are fetched meanwhile where W is too large for its lines to arrive in time by themselves
 * (3 MB: 1 to 3 % of the output layer lost by it; 6 MB: nothing; 8 to 26 MB: 1 to 5 % gained). */
#define DOT_BLOCK 40
#define DOT_FETCH_BYTES ((size_t)6 << 20)
static void softmax_dot(const softmax_call *call, T *part, const T *w, size_t v, size_t n, int add)
{
    size_t H = call->args->hidden, ld = call->args->ld;
    const int fetch = H * ld * sizeof(T) > DOT_FETCH_BYTES;
    for (size_t r0 = 0; r0 < call->rows; r0 += DOT_BLOCK) {
        size_t r1 = r0 + DOT_BLOCK < call->rows ? r0 + DOT_BLOCK : call->rows;
        for (size_t k = 0; k < H; k += 4) {
            size_t columns = H - k < 4 ? H - k : 4, more = H - k - columns < 4 ? H - k - columns : 4;
            block_fetch next = {w + (k + columns) * ld + v, fetch && more ? n / LINE : 0, LINE, more, ld, 0};
            for (size_t r = r0, tile; r < r1; r += tile) {
                tile = next_rows(r1 - r, DOT_ROWS);
                fetch_upto(&next, r + tile - r0, r1 - r0);
                dot_source d = {.W = w + k * ld + v, .ldw = ld, .K = n, .v = call->logits + r * call->ldl + v, .ldv = call->ldl};
                dots[PLAIN][tile](&d, NULL, columns, part + r * call->ldh + k, call->ldh, add, 0);
            }
        }
    }
}

/* The same for many rows: W is turned round first, some of its rows at a time, into a small room that stays in the second
 * level. Its columns then pass by blocks of d as in any other product, without sums over lanes. The two meet at about 200
 * rows (1 to 5 % of the whole output layer at 32 to 64 and, the other way, at 400). */
#define TURN_ROWS 200
#define TURN_STEP 512 /* columns at a time */
#define TURN_UNITS (((size_t)448 << 10) / (TURN_STEP * CRNN_VBYTES)) /* vectors of W's rows at a time */
#define TURN_BLOCK 24 /* rows of d: whole tiles of 6 and of 8 */
static void softmax_turned(const softmax_call *call, T *part, T *room, size_t v, size_t n, const T *next, int add)
{
    size_t H = call->args->hidden, ld = call->args->ld, vectors = tile_count(H, VW), groups = tile_count(vectors, TURN_UNITS);
    for (size_t g = 0; g < groups; g++) {
        size_t u0 = tile_edge(vectors, groups, g), u1 = tile_edge(vectors, groups, g + 1), count = tile_count(u1 - u0, 4);
        const T *w = (const T *)call->args->weight_t + v;
        const int more = g + 1 < groups;
        block_fetch fetch = {more ? w + u1 * VW * ld : next, more ? H - u1 * VW : next ? H : 0, ld, n / LINE, LINE, 0};
        for (size_t i = 0; i < count; i++) {
            unit_tile at = nth_tile(u0, u1, 4, i, 0);
            for (size_t j = 0; j < at.units; j++) {
                size_t unit = (at.u + j) * VW, valid = H - unit < VW ? H - unit : VW;
                pack_transposed(room + (at.u - u0) * VW * n + j * VW, at.units * VW, w + unit * ld, ld, valid, n,
                                NULL);
            }
        }
        for (size_t r = 0, rows; r < call->rows; r += rows) {
            rows = call->rows - r < TURN_BLOCK ? call->rows - r : TURN_BLOCK;
            for (size_t i = 0; i < count; i++) {
                unit_tile at = nth_tile(u0, u1, 4, i, 0);
                T *out = part + r * call->ldh + at.u * VW;
                fetch_upto(&fetch, r * count + (i + 1) * rows, call->rows * count);
                tile_column(rows, (int)at.units, half_left((at.u + at.units) * VW, H), n, call->logits + r * call->ldl + v,
                            call->ldl, 1, room + (at.u - u0) * VW * n, at.units * VW, out, call->ldh, add ? out : NULL,
                            call->ldh, contiguous_off, (fetch_plan){0}, 1);
            }
        }
    }
}

static void softmax_slab(const softmax_call *call, size_t slab, T *room)
{
    const crnn_softmax_args *args = call->args;
    size_t H = args->hidden, rows = call->rows, from = slab * call->slab;
    size_t to = from + call->slab < call->Vp ? from + call->slab : call->Vp;
    T *part = call->parts + slab * call->block * call->ldh, *w = args->weight_t;
    int update = args->rate != 0.0;
    T *out = update ? w : args->grad_w;
    size_t ldo = update ? args->ld : args->ld_grad;
    T *bias = update ? args->bias : args->grad_b;
    const T one = 1;
    const tile_fetch far = {.far = 1}; /* W itself has just been read for dH */
    for (size_t left = to > from ? to - from : 0, n; left; left -= n) { /* backwards: the logits that came last come first */
        n = round_up(next_rows(left, room ? TURN_STEP : SLAB_STEP), 4 * VW);
        if (n > left) n = left;
        size_t v = from + left - n;
        if (args->dh && room) softmax_turned(call, part, room, v, n, left > n ? w + v - n : NULL, from + left < to);
        else if (args->dh) softmax_dot(call, part, w, v, n, from + left < to);
        for (size_t c = v; (out || bias) && c < v + n; c += 4 * VW) {
            int nv = (int)((v + n - c < 4 * VW ? v + n - c : 4 * VW) / VW);
            if (bias)
                tiles[0][nv][1](rows, &one, 0, 0, call->logits + c, call->ldl, call->bias_sum + c, 0, NULL, 0, contiguous_off,
                                NULL);
            for (size_t k = 0; out && k < H;) {
                size_t mr = next_rows(H - k, (size_t)tile_rows_max[4]);
                T *o = out + k * ldo + c;
                tiles[0][nv][mr](rows, (update ? call->h_scaled : call->h) + k, 1, call->ldh, call->logits + c, call->ldl,
                                  o, ldo, update || call->add ? o : NULL, ldo, contiguous_off, update ? NULL : &far);
                k += mr;
            }
        }
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
    size_t lo, hi, H = args->hidden, words = args->vocabulary;
    int size = crnn_team_size(team);
    softmax_logits(call, rank, size);
    crnn_barrier(team);
    crnn_share(call->rows, 1, rank, size, &lo, &hi);
    for (size_t r = lo; r < hi; r++) {
        T *row = call->logits + r * call->ldl;
        if (call->probabilities) {
            softmax_row(row, words, call->Vp, 0, 1, 0);
            memcpy(call->probabilities + (call->first + r) * words, row, words * sizeof(T));
        } else {
            call->losses[r] = softmax_row(row, words, call->Vp, args->targets[call->first + r], (T)args->scale, 1);
        }
    }
    if (!args->dh && !args->grad_w && !args->grad_b && args->rate == 0.0) return;
    crnn_barrier(team);
    size_t first_slab, last_slab; /* the columns whose logits this thread has made, from the last to the first */
    crnn_share(call->slabs, 1, rank, size, &first_slab, &last_slab);
    T *room = call->rooms ? call->rooms + (size_t)rank * call->room : NULL;
    while (last_slab > first_slab) softmax_slab(call, --last_slab, room);
    if (!args->dh) return;
    crnn_barrier(team);
    for (size_t r = lo; r < hi; r++) {
        T *dh = (T *)args->dh + (call->first + r) * H;
        for (size_t k = 0; k < H; k++) dh[k] = call->parts[r * call->ldh + k];
        for (size_t slab = 1; slab < call->slabs; slab++)
            for (size_t k = 0; k < H; k++) dh[k] += call->parts[(slab * call->block + r) * call->ldh + k];
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
    softmax_call call = {.args = args, .probabilities = probabilities};
    call.Vp = round_up(words, VW);
    call.ldl = leading(call.Vp);
    call.ldh = leading(H);
    call.block = next_rows(R, softmax_rows_most(args));
    call.slab = round_up((call.Vp + SLABS - 1) / SLABS, 16);
    call.slabs = (call.Vp + call.slab - 1) / call.slab;
    int update = args->rate != 0.0, threads = crnn_get_threads();
    if ((double)R * (double)H * (double)words < 1e5) threads = 1;
    call.room = TURN_STEP * TURN_UNITS * VW;
    T **pieces[] = {&call.logits, &call.h, &call.h_scaled, &call.bias, &call.bias_sum, &call.parts, &call.rooms};
    size_t counts[] = {call.block * call.ldl + 4 * VW, call.block * call.ldh + 4 * VW,
                       update ? call.block * call.ldh + 4 * VW : 0, call.Vp + 4 * VW, call.Vp + 4 * VW,
                       args->dh ? call.slabs * call.block * call.ldh : 0,
                       args->dh && call.block >= TURN_ROWS ? (size_t)threads * call.room : 0};
    size_t total = round_up(call.block * sizeof(double), CRNN_LINE);
    for (int i = 0; i < 7; i++) total += round_up(counts[i] * sizeof(T), CRNN_LINE);
    char *block = crnn_allocate(total);
    if (!block) return CRNN_NOMEM;
    call.losses = (double *)(void *)block;
    size_t at = round_up(call.block * sizeof(double), CRNN_LINE);
    for (int i = 0; i < 7; i++) {
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
        for (size_t r = 0; r < call.rows; r++) {
            const T *h = (const T *)args->h + (first + r) * H;
            memcpy(call.h + r * call.ldh, h, H * sizeof(T));
            if (update)
                for (size_t k = 0; k < H; k++) call.h_scaled[r * call.ldh + k] = (T)-args->rate * h[k];
        }
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
    T rate = (T)args->rate, *w = args->weight_t, *bias = args->bias;
    for (size_t k = 0; status == CRNN_OK && k < H; k++)
        for (size_t v = 0; v < words; v++) w[k * args->ld + v] -= rate * gradient[k * ld + v];
    for (size_t v = 0; status == CRNN_OK && bias && v < words; v++) bias[v] -= rate * gradient[H * ld + v];
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
    return softmax_run(args, out, NULL);
}
