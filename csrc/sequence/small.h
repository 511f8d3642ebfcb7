/* A few rows only (a streaming step; few_rows says how many): the weights are read once, as they lie, by dot products along their
 * rows. Every sum runs over the lanes in the same order, whichever tile it falls in: a row's results do not depend on the other
 * rows, but for whether there are so many of them that they fill the lanes (simd/turned.h) or go slab by slab (simd/columns.h). */

/* The rows that enter a step: x and h, where they are there. */
typedef struct {
    size_t rows, all; /* of this thread's; of all threads' in this step, which decides on the order of sums, or 0 */
    const T *x, *h;
    size_t ldx, ldh;
} step_input;

static size_t bytes_of_weights(const run_state *s, const step_input *in, size_t input)
{
    return (size_t)s->shape.gates * s->H * ((in->x ? input : 0) + (in->h ? s->H : 0)) * sizeof(T);
}

/* Whether a step asks for the weights that it reads next (simd/dot.h): the hardware follows a row of weights, but not into the next
 * ones. A core that asks in the order in which it reads gets 125 to 199 GB/s from a third level that is not its own, where it got 91
 * to 156 (19 to 26 MB, two threads).
 * Steps on two threads and one, LSTMs of so many units, against asking in another order, of 4 and more rows, or from 18 MB on only (Zen
 * 5): 2 rows, 300 1.12 and 1.14, 512 1.07 and 1.05 to 1.12, 900 1.11 to 1.29 and 1.21 to 1.27; 4 rows, 300 1.18 to 1.30 and 1.27 to
 * 1.29, 512 1.12 and 1.17; 6 rows, 512 1.07 to 1.13 and 1.13 to 1.17.
 * One row: near, its weights are held in registers or read by whole lines (below), and where gates do not lie apart the hardware
 * follows. A thread's own part counts, OWN_BYTES of four gates, against asking from 8 MB on only (ACROSS_BYTES): LSTMs of 320 to 512 units
 * 1.01 to 1.14 on one thread, of 384 to 512 units 1.00 to 1.11 on two; GRUs of 320 to 512 would be at 0.93 to 1.00. From memory it keeps
 * less on its way than what the hardware reads ahead: 34 to 46 MB on one thread 0.77 to 0.81 of asking for nothing, RNNs of 29 MB on
 * two 0.85; with AVX2 it is still 1.15. */
#define NEAR_BYTES ((size_t)384 << 10)
#define ACROSS_BYTES ((size_t)8 << 20)
#define OWN_BYTES ((size_t)2 << 20)
#define MOST_BYTES ((size_t)24 << 20)
#define MOST_OWN_BYTES (CRNN_VBYTES == 64 ? (size_t)30 << 20 : SIZE_MAX)
static int asks_ahead(size_t rows, int gates, size_t bytes, size_t own)
{
    if (rows > 1) return bytes > NEAR_BYTES;
    return (gates > 3 ? own > OWN_BYTES : bytes > ACROSS_BYTES) && (gates > 1 ? own <= MOST_OWN_BYTES : bytes <= MOST_BYTES);
}

/* Whether it asks for all of the rows that it goes on with, however much shorter the other matrix's rows are that it reads in between:
 * where long rows are not far, the hardware does as well alone (LSTMs, 4 rows, 1000 inputs and 200 units 1.14 to 1.15, or else 0.97 to
 * 1.00; 3 rows, 1000 inputs and 500 units, which had not asked before, 0.93 to 0.95 either way). */
#define LONG_ROW ((size_t)3400)
#define FAR_BYTES ((size_t)13 << 20)
static int asks_alone(size_t K, size_t bytes) { return K * sizeof(T) < LONG_ROW || bytes > FAR_BYTES; }

/* Rows of weights from the p-th product of a vector of units to what comes after it, or would after the last of all. */
static ptrdiff_t rows_to_next(const run_state *s, const cell_product *product, int p, int backwards)
{
    int last = product->gates - 1, here = backwards ? last - p : p;
    int next = p < last ? here + (backwards ? -1 : 1) : backwards ? last : 0;
    ptrdiff_t units = p < last ? 0 : backwards ? -VW : VW;
    return ((ptrdiff_t)product->gate[next] - product->gate[here]) * (ptrdiff_t)s->H + units;
}

/* Gate pre-activations: slot += W_ih x (where x enters that slot) + W_hh h. */
INLINE void product_body(const int across, const run_state *s, const layer_run *run, const cell_product *product, T *gates,
                         const step_input *in, size_t u0, size_t u1, int backwards)
{
    T x_last[SMALL_ROWS * VW], h_last[SMALL_ROWS * VW];
    size_t H = s->H, K = run->input, rows = (size_t)s->shape.gates * H;
    for (size_t i = 0; i < in->rows; i++) {
        if (in->x) last_vector(x_last + i * VW, in->x + i * in->ldx, K);
        if (in->h) last_vector(h_last + i * VW, in->h + i * in->ldh, H);
    }
    const size_t bytes = bytes_of_weights(s, in, K);
    const size_t own = bytes / tile_count(H, VW) * (u1 - u0);
    const int asks = asks_ahead(in->rows, s->shape.gates, bytes, own), alone = in->rows == 1;
    for (size_t n = u0; n < u1; n++) {
        size_t u = backwards ? u1 - 1 - (n - u0) : n;
        size_t valid = H - u * VW < VW ? H - u * VW : VW;
        for (int p = 0; p < product->gates; p++) {
            int q = backwards ? product->gates - 1 - p : p;
            size_t row = (size_t)product->gate[q] * H + u * VW;
            const ptrdiff_t then = asks ? rows_to_next(s, product, p, backwards) : 0;
            dot_source h = {run->whh + row * H, H, H, (rows - row) * H, in->h, in->ldh, h_last, 0, NULL, NULL, H, H};
            dot_source x = {run->wih + row * K, K, K, (rows - row) * K, in->x, in->ldx, x_last, 0, NULL, NULL, K, K};
            h.ask = h.W + then * (ptrdiff_t)H, x.ask = x.W + then * (ptrdiff_t)K;
            if (asks_alone(H, bytes)) h.own = h.ask;
            if (asks_alone(K, bytes)) x.own = x.ask;
            T *out = gates + (size_t)product->slot[q] * s->Hp + u * VW;
            const int inner = across && row > 0 && row + valid < rows; /* the matrices go on on both sides */
            if (product->slot[q] != product->gate[q]) { /* GRU, reset after: the candidate's two products stay apart */
                dot_source only = h, none = x;
                none.v = NULL;
                if (h.v && x.v) only.ask = x.W, only.ldask = only.asked = K, x.ask = h.ask, x.ldask = x.asked = H;
                if (alone) dot_row(inner, asks, only, none, valid, out);
                else dot_columns(only, none, in->rows, valid, out, s->ldg, asks);
                h.v = NULL;
                out = gates + (size_t)product->gate[q] * s->Hp + u * VW;
            }
            if (alone) dot_row(inner, asks, h, x, valid, out);
            else dot_columns(h, x, in->rows, valid, out, s->ldg, asks);
        }
    }
}

NOINLINE void product_across(const run_state *s, const layer_run *run, const cell_product *product, T *gates,
                             const step_input *in, size_t u0, size_t u1, int backwards)
{
    product_body(1, s, run, product, gates, in, u0, u1, backwards);
}

/* One row, of weights that lie across lines and are near: LSTMs of 250 to 499 units, one thread and two, 1.13 to 1.18 and 1.10 to
 * 1.17 times as fast. From memory it is slower (600 units, 0.5 to 1.0): each line takes more operations, so fewer are on their way. */
static int reads_across(const run_state *s, const layer_run *run, const step_input *in)
{
    size_t K = run->input;
    if (!ACROSS || in->rows > 1 || bytes_of_weights(s, in, K) > ACROSS_BYTES) return 0;
    return (in->h && lies_across(run->whh, s->H)) || (in->x && lies_across(run->wih, K));
}

/* One input for some of `all` rows, whose number decides on the order of sums; `slots`: of the gates that it enters. */
#define INPUT_ARGUMENTS                                                                                                            \
    const run_state *s, const cell_product *product, const int *slots, const T *W, size_t K, const T *v, size_t ldv, size_t rows, \
        size_t all, T *gates, size_t u0, size_t u1, int backwards
typedef void (*input_function)(INPUT_ARGUMENTS);

/* As many rows as are turned together, a slab at a time. Weights from memory are asked for: 37 MB (LSTMs of 1500 units) 20 to 48 rows 1.19
 * to 1.31 times as fast; of 17 and 19 MB 24 rows 0.96 to 0.99. */
#define MEMORY_BYTES ((size_t)24 << 20)
static void turned_input(INPUT_ARGUMENTS)
{
    (void)all;
    _Alignas(64) T turned[TURNED_VECTORS * VW * TURNED_DEPTH];
    const size_t nv = (rows + VW - 1) / VW;
    const int far = (size_t)s->shape.gates * s->H * K * sizeof(T) > MEMORY_BYTES;
    for (size_t k = 0, slab; k < K; k += slab) {
        slab = next_rows(K - k, TURNED_DEPTH);
        for (size_t i = 0; i < rows; i += VW)
            pack_transposed(turned + i, nv * VW, v + i * ldv + k, ldv, rows - i < VW ? rows - i : VW, slab, NULL);
        for (size_t n = u0; n < u1; n++) {
            const size_t u = backwards ? u1 - 1 - (n - u0) : n, valid = s->H - u * VW < VW ? s->H - u * VW : VW;
            for (int p = 0; p < product->gates; p++) {
                const int q = backwards ? product->gates - 1 - p : p;
                const T *w = W + ((size_t)product->gate[q] * s->H + u * VW) * K + k;
                turned_units(slab, w, K, valid, turned, rows, gates + (size_t)slots[q] * s->Hp + u * VW, s->ldg,
                             far ? rows_to_next(s, product, p, backwards) : 0);
            }
        }
    }
}

/* Up to SMALL_ROWS rows by dot products, a slab at a time. */
static void slab_input(INPUT_ARGUMENTS)
{
    T last[SMALL_ROWS * VW];
    for (size_t i = 0; i < rows; i++) last_vector(last + i * VW, v + i * ldv, K);
    const size_t group = next_rows(all, GROUP_ROWS), height = (size_t)s->shape.gates * s->H;
    for (size_t k = 0, slab; k < K; k += slab) {
        slab = next_slab(K - k, group);
        for (size_t n = u0; n < u1; n++) {
            const size_t u = backwards ? u1 - 1 - (n - u0) : n, valid = s->H - u * VW < VW ? s->H - u * VW : VW;
            for (int p = 0; p < product->gates; p++) {
                const int q = backwards ? product->gates - 1 - p : p;
                const size_t row = (size_t)product->gate[q] * s->H + u * VW;
                T *out = gates + (size_t)slots[q] * s->Hp + u * VW;
                for (size_t i = 0, m; i < rows; i += m) {
                    m = next_rows(rows - i, GROUP_ROWS);
                    const size_t room = (height - row) * K - k;
                    const T *w = W + row * K + k, *then = w + rows_to_next(s, product, p, backwards) * (ptrdiff_t)K;
                    dot_source part = {w, K, slab, room, v + i * ldv + k, ldv, last + i * VW, 0, then, then, K, slab}, none = {0};
                    dot_columns(part, none, m, valid, out + i * s->ldg, s->ldg, 1);
                }
            }
        }
    }
}

static void each_input(input_function one, size_t most, const run_state *s, const layer_run *run, const cell_product *product, T *gates,
                       const step_input *in, size_t u0, size_t u1, int backwards)
{
    for (size_t i = 0, n; i < in->rows; i += n, gates += n * s->ldg) {
        const T *x = in->x ? in->x + i * in->ldx : NULL, *h = in->h ? in->h + i * in->ldh : NULL;
        n = in->rows - i < most ? in->rows - i : most;
        if (x) one(s, product, product->gate, run->wih, run->input, x, in->ldx, n, in->all, gates, u0, u1, backwards);
        if (h) one(s, product, product->slot, run->whh, s->H, h, in->ldh, n, in->all, gates, u0, u1, backwards);
    }
}

NOINLINE void small_product(const run_state *s, const layer_run *run, const cell_product *product, T *gates,
                            const step_input *in, size_t u0, size_t u1, int backwards)
{
    const size_t K = in->x ? run->input : 0, together = turned_together(in->all);
    if (in->all > SMALL_ROWS || turning_pays(in->all, K + s->H)) /* so many are here since it pays for the layer with most inputs */
        each_input(turned_input, together, s, run, product, gates, in, u0, u1, backwards);
    else if (apart_pays(in->all, K + s->H)) each_input(slab_input, SMALL_ROWS, s, run, product, gates, in, u0, u1, backwards);
    else if (reads_across(s, run, in)) product_across(s, run, product, gates, in, u0, u1, backwards);
    else product_body(0, s, run, product, gates, in, u0, u1, backwards);
}

/* Pre-activations of many rows, on top of the bias. */
static void project_lying(const run_state *s, const layer_run *run, size_t gate_row, size_t rows, size_t u0, size_t u1,
                          const T *x, size_t ldx)
{
    const cell_product *product = &s->shape.input;
    for (size_t done = 0, n; done < rows; done += n) {
        n = next_rows(rows - done, SMALL_ROWS);
        T *gates = run->gates + (gate_row + done) * s->ldg + u0 * VW;
        for (size_t i = 0; i < n; i++)
            for (int p = 0; p < product->gates; p++) {
                size_t at = (size_t)product->slot[p] * s->Hp;
                memcpy(gates + i * s->ldg + at, run->bias + u0 * VW + at, (u1 - u0) * VW * sizeof(T));
            }
        step_input in = {.rows = n, .x = x + done * ldx, .ldx = ldx};
        small_product(s, run, product, gates - u0 * VW, &in, u0, u1, 0);
    }
}

static void small_step(const run_state *s, const layer_run *run, const cell_product *product, size_t t, size_t gate_base,
                       const T *x, size_t ldx, size_t i0, size_t i1, size_t u0, size_t u1, int candidate, int backwards)
{
    size_t n = block_rows(s, t), hi = i1 < n ? i1 : n;
    if (i0 >= hi || u0 >= u1) return;
    size_t row = (size_t)s->offsets[t] + i0, col = u0 * VW;
    size_t first = rows_after(s, backwards), after = first + row; /* a stepper's direction is its turn */
    size_t before = (t ? state_row_before(s, t) : s->B - first) + i0;
    T *gates = run->gates + (row - gate_base) * s->ldg;
    step_input in = {.rows = hi - i0, .all = n, .x = x ? x + row * ldx : NULL, .ldx = ldx};
    in.h = candidate ? run->reset + (row - gate_base) * s->ldh : run->h + before * s->ldh;
    in.ldh = s->ldh;
    if (t == 0 && s->zero_start) in.h = NULL;
    small_product(s, run, product, gates, &in, u0, u1, backwards);
    size_t prev = before * s->ldh + col, next = after * s->ldh + col;
    size_t prev_c = cell_row(s, before, i0) * s->ldh + col, next_c = cell_row(s, after, i0) * s->ldh + col;
    forward_patch patch = {gates + col, s->ldg, s->Hp, run->h + prev, run->c ? run->c + prev_c : NULL, run->h + next,
                           run->c ? run->c + next_c : NULL, s->ldh,
                           run->reset ? run->reset + (row - gate_base) * s->ldh + col : NULL};
    if (candidate) gru_before_state(&patch, hi - i0, u1 - u0, s->shape.z_state);
    else cell_forward(&s->shape, &patch, hi - i0, u1 - u0);
}

/* `last`: of the layers, so that the end of the whole job serves as its last barrier. */
static void small_loop(const run_state *s, const layer_run *run, const T *x, size_t ldx, size_t i0, size_t i1, size_t u0,
                       size_t u1, int turn, int last, crnn_team *team)
{
    const cell_product *candidate = &s->shape.candidate;
    for (size_t t = 0; t < s->steps; t++) {
        size_t gate_base = s->keep_gates ? 0 : (size_t)s->offsets[t], n = block_rows(s, t), hi = i1 < n ? i1 : n;
        int backwards = (int)(t & 1) ^ turn, meet = s->plan.forward == BY_UNITS && !(last && t + 1 == s->steps);
        for (size_t i = i0; i < hi && u0 < u1; i++) {
            size_t row = (size_t)s->offsets[t] + i;
            T *gates = run->gates + (row - gate_base) * s->ldg;
            start_gates(s, run, gates, u0, u1);
            if (!x) project_onehot(s, run, gates, gates, row, 1, u0, u1);
        }
        small_step(s, run, &s->shape.recurrent, t, gate_base, x, ldx, i0, i1, u0, u1, 0, backwards);
        if (candidate->gates) {
            if (s->plan.forward == BY_UNITS) crnn_barrier(team);
            small_step(s, run, candidate, t, gate_base, x, ldx, i0, i1, u0, u1, 1, backwards);
        }
        if (meet) crnn_barrier(team);
    }
    if (s->plan.forward != BY_UNITS && !last) crnn_barrier(team);
}
