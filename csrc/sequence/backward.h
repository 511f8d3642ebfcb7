/* Backward through the stack. One cell backward, three schedules:
 *   Full    one range of steps, block by block from the last to the first
 *   Chunk   one such range per chunk; where reaches overlap, the ranges' d_pre are summed
 *   Window  k passes over a block of losses, each one step further back (window.h)
 * All end with one set of weight gradients from the summed d_pre (weights.h). */

typedef struct {
    T *d;      /* (R, ldg) gradients of the pre-activations in work */
    T *sum;    /* (R, ldg) their sum over ranges or passes; the same memory as d where nothing overlaps */
    T *dh;     /* (B + R, ldh) gradients of the states; window: (window_rows, ldh), of the losses in work */
    int lying; /* what comes from above is read where it lies; then dh is (2, B, ldh): of two steps in turn */
    T *dc;     /* LSTM: (B, ldh), the row of each sequence moves back with time; window: as dh */
    T *dh0, *dc0; /* (B, ldh) what reached the initial state */
    T *pack_hh;   /* W_hh for dh = d W_hh: all gates that multiply h_{t-1} itself; null: read as it lies */
    T *pack_n;    /* GRU reset before: W_n */
    T *pack_ih;   /* W_ih; null: read as it lies */
    int packed;   /* another half of the batch has done so */
    T *h_prev;    /* (R, ldh) states that enter each row, where they are not simply h's first R rows */
} layer_back;

/* Of the losses in work (window.h), one layer at a time: gradients of the pre-activations and of the input, and as below. */
typedef struct {
    T *d, *dx, *reset;
} loss_room;

typedef struct {
    const run_state *s;
    const crnn_stack *stack;
    const crnn_backward_args *args;
    layer_back *layers;
    T *dx;       /* (R, ldx) gradient of the output of the layer below, natural row order */
    T *reset;    /* GRU reset before: (R, ldh) gradient of r * h_{t-1}, per direction */
    loss_room room; /* window: window_rows rows each */
    size_t ldx;
    size_t view_ld; /* of args->dy_view (even_rows) */
    int wants_dx;   /* the caller does, and not of ids */
    crnn_hand *hands; /* per layer, gradient and thread: the rows that the thread begins with, GRADIENT_ROWS an item */
    T *rooms;    /* per thread: of a product with nothing packed beforehand */
    T *bias_sum; /* (G*H) */
    T *blocks;   /* per thread: rows on their way to where they belong */
    size_t ld_block;
    int overlap; /* sums apart from d */
    int blas;    /* as in run_state, but of this call */
    int64_t *bad; /* per direction and rank: the first row of dy_view that is not finite, or -1 */
} backward_call;

/* Rows that repay asking for what they read next (RNN, one sequence: 2 % lost). */
#define FETCH_ROWS 4
#include "upstream.h"

/* Gradients whose rows threads take as they come, since no sum crosses them. */
enum { OF_WEIGHT_IH, OF_WEIGHT_HH, OF_INPUT, OF_COUNT };
#define GRADIENT_ROWS 24 /* whole tiles of 6 and of 8 */

static crnn_hand *hands_of(const backward_call *call, size_t q, int what)
{
    return call->hands + (q * OF_COUNT + (size_t)what) * (size_t)call->s->plan.threads;
}

/* Rows in one group (of weight gradients: a gate) are cut into items of nearly equal height. */
static size_t items_in(size_t group) { return tile_count(group, GRADIENT_ROWS); }
static size_t row_of_item(size_t item, size_t group)
{
    return item / items_in(group) * group + tile_edge(group, items_in(group), item % items_in(group));
}

static void deal_rows_of(const backward_call *call, size_t q, int what, size_t groups, size_t group)
{
    crnn_deal(hands_of(call, q, what), call->s->plan.threads, groups * items_in(group));
}

/* The next rows [*lo, *hi); 0: none are left. Input gradients read all of W_ih for a few rows or many: many at a time. BLAS
 * blocks for itself. */
static int take_rows_of(const backward_call *call, size_t q, int what, size_t group, int rank, size_t *lo, size_t *hi)
{
    size_t most = call->blas ? CRNN_WHOLE_HAND : what == OF_INPUT ? 32 : PRODUCT_ROWS / GRADIENT_ROWS;
    if (!crnn_take(hands_of(call, q, what), call->s->plan.threads, rank, most, lo, hi)) return 0;
    *lo = row_of_item(*lo, group);
    *hi = row_of_item(*hi, group);
    return 1;
}

/* What the step before this one reads, while this one's tiles are at work: in this order the hardware does not guess it, and on
 * a busy machine it comes from memory. */
typedef struct {
    const char *at;
    size_t lines;     /* still to fetch, */
    size_t row, left; /* of each row and of this one, */
    ptrdiff_t gap;    /* bytes from the last one's end to the next row */
} fetch_run;
typedef struct {
    fetch_run gates, states, above;
} step_fetch;

static fetch_run fetch_rows(const void *at, size_t rows, size_t width, size_t ld)
{
    size_t row = tile_count(width * sizeof(T), CRNN_LINE);
    return (fetch_run){at, rows * row, row, row, (ptrdiff_t)(ld * sizeof(T)) - (ptrdiff_t)(row * CRNN_LINE)};
}

INLINE void fetch_lines(fetch_run *run, size_t tiles_left)
{
    for (size_t n = tile_count(run->lines, tiles_left); n; n--, run->lines--, run->at += CRNN_LINE) {
        if (!run->left) run->at += run->gap, run->left = run->row;
        run->left--;
        __builtin_prefetch(run->at, 0, 2);
    }
}

INLINE void fetch_for_tile(step_fetch *f, size_t tiles_left)
{
    if (!f) return;
    fetch_lines(&f->gates, tiles_left);
    fetch_lines(&f->states, tiles_left);
    fetch_lines(&f->above, tiles_left);
}

/* Step t of the sequences [i0, i1), units [u0, u1): gates and the states that their gradients need, of which RNNs have no gates,
 * and what comes from above one step earlier. Of rows of gates only whole ones. */
static step_fetch fetch_of_step(const backward_call *call, size_t q, size_t t, size_t lo, size_t loss_lo, size_t i0, size_t i1,
                                size_t u0, size_t u1)
{
    const run_state *s = call->s;
    const layer_run *run = s->layers + q;
    size_t n = block_rows(s, t), rows = (i1 < n ? i1 : n) - i0, columns = (u1 - u0) * VW;
    size_t row = (size_t)s->offsets[t] + i0, before = state_row_before(s, t) + i0;
    const int rnn = s->shape.slots == 1;
    const T *states = rnn ? run->h + (s->B + row) * s->ldh : (run->c ? run->c : run->h) + before * s->ldh;
    step_fetch f = {.states = fetch_rows(states + u0 * VW, rows, columns, s->ldh)};
    if (!rnn && columns == s->Hp) f.gates = fetch_rows(run->gates + row * s->ldg, rows, s->ldg, s->ldg);
    if (call->layers[q].lying && t > lo && has_upstream(call, q, t - 1, loss_lo))
        f.above = fetch_rows(upstream_row(call, q, t - 1, i0) + u0 * VW * sizeof(T), rows, columns, upstream_ld(call, q));
    return f;
}

/* The same as product_back of a single row, by weights that are near, in whole vectors. */
static void product_back_row(const run_state *s, const cell_product *product, const T *d, const T *pack, size_t u0, size_t u1, T *out,
                             const T *init)
{
    const size_t H = s->H, K = (size_t)product->gates * H, count = tile_count(u1 - u0, BACK_UNITS);
    for (size_t n = 0; n < count;) {
        const unit_tile tile = nth_tile(u0, u1, BACK_UNITS, n++, 0);
        const size_t gate = H * tile.units * VW;
        const T *b = pack + tile.u * VW * K, *from = init ? init + (tile.u - u0) * VW : NULL, *of_gate[4];
        T *c = out + tile.u * VW;
        for (int g = 0; g < product->gates; g++) of_gate[g] = d + (size_t)product->slot[g] * s->Hp;
        if (product->gates == 1 && n < count) {
            const unit_tile next = nth_tile(u0, u1, BACK_UNITS, n++, 0);
            chains[tile.units][next.units](H, of_gate[0], b, pack + next.u * VW * K, c, from, contiguous_off);
            continue;
        }
        int g = 0;
        for (; g + 1 < product->gates; g += 2, b += 2 * gate, from = c)
            two_gates[tile.units](H, of_gate[g], of_gate[g + 1], b, b + gate, c, from);
        if (g < product->gates)
            tiles[0][tile.units][1](H, of_gate[g], s->ldg, b, tile.units * VW, c, 0, from, 0, contiguous_off, NULL);
    }
}

/* out (rows, vectors [u0, u1) of `width` columns) = init + d W, d's gates side by side in rows of gates.
 * No init: 0. Unless init is out, whole vectors are written where rows have room for them. backwards: tiles from the last to the
 * first. next may be null. */
static void product_back(const run_state *s, const cell_product *product, const T *d, const T *pack, size_t width, size_t u0,
                         size_t u1, size_t rows, T *out, size_t ldo, step_rows init, int backwards, step_fetch *next)
{
    const tile_fetch far = {.far = 1};
    size_t H = s->H, K = (size_t)product->gates * H;
    size_t count = u1 > u0 ? tile_count(u1 - u0, BACK_UNITS) : 0;
    if (rows == 1 && ldo >= u1 * VW && (!init.at || init.at == out + u0 * VW) && K * (u1 - u0) * VW * sizeof(T) <= s->first_level) {
        product_back_row(s, product, d, pack, u0, u1, out, init.at);
        return;
    }
    size_t left = count * tiles_high(rows, BACK_UNITS); /* tiles to come, at most: narrow ones may be higher */
    for (size_t n = 0; n < count; n++) {
        unit_tile tile = nth_tile(u0, u1, BACK_UNITS, n, backwards);
        size_t u = tile.u, units = tile.units;
        const int half = half_left((u + units) * VW, width);
        const T *b = pack + u * VW * K;
        for (size_t row = 0; row < rows;) {
            size_t mr = tile_rows(rows - row, (int)units);
            T *c = out + row * ldo + u * VW;
            fetch_for_tile(next, left--);
            for (int g = 0; g < product->gates; g++) {
                const T *from = g ? c : init.at ? init.at + row * init.ld + (u - u0) * VW : NULL;
                tiles[half][units][mr](H, d + row * s->ldg + (size_t)product->slot[g] * s->Hp, s->ldg,
                                       b + (size_t)g * H * units * VW, units * VW, c, ldo, from, g ? ldo : init.ld,
                                       contiguous_off, g ? NULL : &far);
            }
            row += mr;
        }
        if (!half || init.at == out + u0 * VW || ldo < u1 * VW) continue;
        for (size_t row = 0; row < rows; row++) memset(out + row * ldo + u1 * VW - VW / 2, 0, VW / 2 * sizeof(T));
    }
}

/* The same for one row and W as it lies, added to what is in out: a few of W's rows at a time, along their whole length. The
 * columns of a vector that is not whole are summed up in one that ends where W's rows end. Rows that begin anywhere cross cache
 * lines all along, and are better packed unless they are used few times (one thread and two, forward and backward: 3 steps of
 * 650 to 686 units gain 11 to 56 %, 12 steps nothing to 8, 35 steps lose up to 7). */
#define LYING_STEPS_BACK 12
static int recurrent_lies_back(const run_state *s) { return one_sequence_lies(s, LYING_STEPS_BACK); }

INLINE void lying_body(const size_t rows, const int asks, const cell_product *product, size_t H, size_t Hp, const T *d, const T *W,
                       size_t u0, size_t u1, T *out, int backwards)
{
    const size_t each = tile_count(H, rows), blocks = each * (size_t)product->gates, rest = H % VW;
    const size_t whole = u1 * VW > H ? H - rest : u1 * VW;
    const ptrdiff_t next = (backwards ? -(ptrdiff_t)rows : (ptrdiff_t)rows) * (ptrdiff_t)H;
    const int ends = u1 * VW > H;
    V last = {0};
    for (size_t n = 0; n < blocks; n++) {
        size_t place = backwards ? blocks - 1 - n : n, g = place / each, k = place % each * rows;
        const T *from = d + (size_t)product->slot[g] * Hp, *w = W + ((size_t)product->gate[g] * H + k) * H;
        const uintptr_t ask = (uintptr_t)w + (uintptr_t)(next * (ptrdiff_t)sizeof(T)); /* nothing is read there */
        const T *row[8];
        V factor[8];
        UNROLL(8) for (size_t i = 0; i < rows; i++) {
            const size_t r = backwards ? rows - 1 - i : i; /* one order of sums, however many rows at a time */
            factor[i] = splat(k + r < H ? from[k + r] : 0);
            row[i] = w + (k + r < H ? r : 0) * H;
        }
        for (size_t c = u0 * VW; c < whole; c += VW) {
            V sum = load(out + c);
            if (asks) UNROLL(8) for (size_t i = 0; i < rows; i++)
                __builtin_prefetch((const void *)(ask + (i * H + c) * sizeof(T)), 0, 3);
            UNROLL(8) for (size_t i = 0; i < rows; i++) sum = MULADD(factor[i], load(row[i] + c), sum);
            store(out + c, sum);
        }
        if (ends) UNROLL(8) for (size_t i = 0; i < rows; i++) last = MULADD(factor[i], load(row[i] + H - VW), last);
    }
    T sums[VW];
    store(sums, last);
    for (size_t l = 0; ends && l < rest; l++) out[whole + l] += sums[VW - rest + l];
}

/* What is far is read four rows at a time, which ask for the next ones; near, eight rows touch out half as often. Backward of 50
 * steps on two threads and one, LSTMs of 512 units 1.04 and 1.03 to 1.07, GRUs 1.03 and 1.03 to 1.06, LSTMs of 720 units on two 1.04;
 * LSTMs of 320 and 384 units on two, 0.8 and 1.2 MB each, would be at 0.93 and 0.96 (Zen 5). */
#define LYING_OWN_BYTES ((size_t)1280 << 10)
static void product_lying(const cell_product *product, size_t H, size_t Hp, const T *d, const T *W, size_t u0, size_t u1, T *out,
                          int backwards)
{
    const size_t own = (size_t)product->gates * H * (u1 - u0) * VW * sizeof(T);
    if (own > LYING_OWN_BYTES) lying_body(4, 1, product, H, Hp, d, W, u0, u1, out, backwards);
    else lying_body(8, 0, product, H, Hp, d, W, u0, u1, out, backwards);
}

/* Cell backward of `rows` rows that start at packed row `row`, units [u0, u1). d, dh, dc: their rows in these buffers; base: from
 * unit u0 on. */
static void cell_rows(const run_state *s, const layer_run *run, size_t row, size_t before, size_t rows, size_t u0, size_t u1, T *d,
                      const T *dh, const T *dc, T *dc_prev, T *dh_prev, step_rows base)
{
    size_t col = u0 * VW, state = (s->B + row) * s->ldh + col, prev = before * s->ldh + col, gate = row * s->ldg + col;
    if (u1 <= u0 || rows == 0) return;
    backward_patch patch = {.g = s->keep_gates ? run->gates + gate : NULL, .d = d + col, .ldg = s->ldg, .Hp = s->Hp,
                            .h_prev = run->h + prev, .h = run->h + state, .dh = dh + col,
                            .dh_prev = dh_prev ? dh_prev + col : NULL, .base = base.at, .ldb = base.ld, .ldh = s->ldh};
    if (run->c) {
        patch.c = run->c + state;
        patch.c_prev = run->c + prev;
        patch.dc = dc + col;
        patch.dc_prev = dc_prev + col;
    }
    cell_backward(&s->shape, &patch, rows, u1 - u0);
}

/* GRU, reset before: d_r and the part of dh_{t-1} that passes r * h_{t-1}, whose gradient is `reset`: d_n W_n, for which d_n of all
 * units is needed. */
static void reset_rows(const run_state *s, const layer_run *run, size_t row, size_t before, size_t rows, size_t u0, size_t u1, T *d,
                       const T *reset, T *dh_prev)
{
    size_t col = u0 * VW, prev = before * s->ldh + col, gate = row * s->ldg + col;
    if (u1 <= u0 || rows == 0) return;
    backward_patch patch = {.g = run->gates + gate, .d = d + col, .ldg = s->ldg, .Hp = s->Hp,
                            .h_prev = run->h + prev, .dh_prev = dh_prev + col, .d_reset = reset + col, .ldh = s->ldh,
                            .ldr = s->ldh};
    gru_before_reset(&patch, rows, u1 - u0);
}

/* Rows of dh for step t, one per sequence. t = -1: of the initial state. */
static T *dh_of_step(const backward_call *call, size_t q, size_t t)
{
    const run_state *s = call->s;
    return call->layers[q].dh + (call->layers[q].lying ? (t & 1) * s->B : state_row_before(s, t + 1)) * s->ldh;
}

/* The steps from own.t down to lo of one layer, in the range of steps [lo, hi). The state that enters step lo is a constant unless lo is 0. */
static void steps_back(const backward_call *call, size_t q, size_t lo, size_t hi, size_t loss_lo, crnn_stretch own, int rank,
                       crnn_team *team)
{
    const run_state *s = call->s;
    const layer_run *run = s->layers + q;
    const layer_back *back = call->layers + q;
    const size_t i0 = own.i0;
    size_t i1 = own.i1, u0, u1;
    share_units(s, s->plan.backward, rank, crnn_team_size(team), &u0, &u1);
    for (size_t t = own.t + 1; t-- > lo;) {
        if (s->plan.backward == BY_SEQUENCES && t + 1 < hi) {
            const size_t running = block_rows(s, t), last = i1 < running ? i1 : running;
            offer_half(s, team, (crnn_stretch){t, 0, i0, i1}, t - lo + 1, last > i0 ? last - i0 : 0, s->H, &i1);
        }
        size_t n = block_rows(s, t), end = i1 < n ? i1 : n, rows = end > i0 ? end - i0 : 0;
        size_t row = (size_t)s->offsets[t] + i0, before = state_row_before(s, t) + i0;
        int cut = t == lo && lo > 0; /* what would pass on is written to rows that the range below fills anew */
        T *dh = dh_of_step(call, q, t), *dh_prev = dh_of_step(call, q, t - 1) + i0 * s->ldh;
        T *dc = back->dc ? back->dc + i0 * s->ldh : NULL;
        step_rows init = {dh_prev + u0 * VW, s->ldh}, above = init;
        if (back->lying) {
            size_t running = t + 1 < hi ? block_rows(s, t + 1) : 0; /* rows to which step t + 1 has passed something on */
            for (size_t i = running > i0 ? running : i0; i < end; i++)
                start_row(call, q, t, loss_lo, i, u0, u1, dh + i * s->ldh, rank);
            above = t > lo ? upstream_of_step(call, q, t - 1, loss_lo, i0, end, u0, u1, rank) : (step_rows){0};
        }
        T *d = back->d + row * s->ldg;
        cell_rows(s, run, row, before, rows, u0, u1, d, dh + i0 * s->ldh, dc, dc, dh_prev, above);
        if (s->plan.backward == BY_UNITS) crnn_barrier(team);
        if (s->shape.candidate.gates) {
            T *reset = call->reset + ((run->reversed ? s->R : 0) + row) * s->ldh;
            product_back(s, &s->shape.candidate, d, back->pack_n, s->H, u0, u1, rows, reset, s->ldh, (step_rows){0}, 0, NULL);
            reset_rows(s, run, row, before, rows, u0, u1, d, reset, dh_prev);
            if (s->plan.backward == BY_UNITS) crnn_barrier(team);
        }
        if (cut || !rows) continue;
        if (!back->pack_hh) {
            product_lying(&s->shape.recurrent, s->H, s->Hp, d, run->whh, u0, u1, dh_prev, t & 1);
            continue;
        }
        step_fetch next = {0};
        if (t > lo && rows >= FETCH_ROWS) next = fetch_of_step(call, q, t - 1, lo, loss_lo, i0, i1, u0, u1);
        product_back(s, &s->shape.recurrent, d, back->pack_hh, s->H, u0, u1, rows, dh_prev, s->ldh,
                     is_gru(s) ? init : above, t & 1, &next);
    }
}

/* Steps hi-1 .. lo of one layer. */
static void time_loop(const backward_call *call, size_t q, size_t lo, size_t hi, size_t loss_lo, int rank, crnn_team *team)
{
    const run_state *s = call->s;
    crnn_stretch stretch = {.t = hi - 1};
    share_sequences(s, s->plan.backward, rank, crnn_team_size(team), &stretch.i0, &stretch.i1);
    do steps_back(call, q, lo, hi, loss_lo, stretch, rank, team);
    while (s->plan.backward == BY_SEQUENCES && crnn_rest(team, &stretch));
}

/* out (rows, ldo) = d W_ih for rows of one direction in its own order. Where W_ih is read as it lies, blocks of it have
 * LYING_DEPTH rows: in rows of a power of two all lines of a column fall into a few sets of the cache. */
#define LYING_DEPTH 256
static size_t room_size(void)
{
    const size_t lying = product_room(LYING_DEPTH, 0), columns = product_room(COLUMNS_DEPTH, 1);
    return lying > columns ? lying : columns;
}

static T *room_of(const backward_call *call, int rank) { return call->rooms + (size_t)rank * room_size(); }

static void input_rows(const backward_call *call, size_t q, const T *d, size_t rows, T *out, size_t ldo, int rank)
{
    const run_state *s = call->s;
    const layer_back *back = call->layers + q;
    size_t width = s->layers[q].input;
    if (back->pack_ih) {
        product_back(s, &s->shape.input, d, back->pack_ih, width, 0, tile_count(width, VW), rows, out,
                     ldo, (step_rows){0}, 0, NULL);
        return;
    }
    for (size_t g = 0; g < (size_t)s->shape.gates; g++) {
        product_call p = {.N = width, .K = s->H, .A = d + g * s->Hp, .lda = s->ldg,
                          .B = (const T *)call->stack->weights[q].weight_ih + g * s->H * width, .ldb = width,
                          .depth = LYING_DEPTH, .room = room_of(call, rank), .C = out,
                          .ldc = ldo, .accumulate = g > 0, .blas = call->blas};
        product_rows(&p, 0, rows);
    }
}

/* Rows of an input gradient: packed in natural order, or a caller's. */
typedef struct {
    T *packed;
    size_t ld;
    const crnn_view *view; /* null: packed */
} input_target;

/* to = d W_ih of the first direction, += of the second; rows are the direction's own [lo, hi). */
static void input_gradient(const backward_call *call, size_t q, size_t lo, size_t hi, input_target target, int rank)
{
    const run_state *s = call->s;
    const layer_run *run = s->layers + q;
    const T *d = call->layers[q].d;
    const crnn_view *view = target.view;
    /* Packed weights give whole vectors of columns, or half a one at the end. */
    const size_t half = HALVES ? VW / 2 : VW;
    if (!view && !run->reversed && (!call->layers[q].pack_ih || run->input % half == 0)) {
        input_rows(call, q, d + lo * s->ldg, hi - lo, target.packed + lo * target.ld, target.ld, rank);
        return;
    }
    T *block = call->blocks + (size_t)rank * PRODUCT_ROWS * call->ld_block;
    for (size_t row = lo; row < hi; row += PRODUCT_ROWS) {
        size_t rows = hi - row < PRODUCT_ROWS ? hi - row : PRODUCT_ROWS;
        input_rows(call, q, d + row * s->ldg, rows, block, call->ld_block, rank);
        for (row_walk w = walk_rows(s, row, row + rows); next_row(s, &w);) {
            T *to = view ? (T *)(void *)view_row(s, view, run->reversed, w.t, w.i)
                         : target.packed + flipped(s, run->reversed, w.row) * target.ld;
            const T *from = block + (w.row - row) * call->ld_block;
            if (!run->reversed) memcpy(to, from, run->input * sizeof(T));
            else
                for (size_t k = 0; k < run->input; k++) to[k] += from[k];
        }
    }
}

/* Gradients of the final cell states enter at each sequence's last step, if that step's losses belong to [loss_lo, hi). */
static void fill_final_cell(const backward_call *call, size_t q, size_t loss_lo, size_t hi)
{
    const run_state *s = call->s;
    T *dc = call->layers[q].dc;
    const T *dc_n = call->args->dc_n ? (const T *)call->args->dc_n + q * s->B * s->H : NULL;
    for (size_t i = 0; dc && i < s->B; i++) {
        memset(dc + i * s->ldh, 0, s->ldh * sizeof(T));
        if (dc_n && s->length[i] > loss_lo && s->length[i] <= hi) memcpy(dc + i * s->ldh, dc_n + i * s->H, s->H * sizeof(T));
    }
}

static void add_rows_to(T *dst, const T *src, size_t rows, size_t ld)
{
    for (size_t k = 0; k < rows * ld; k++) dst[k] += src[k];
}

/* Packed rows [lo, hi) of dh, before the loop: of both directions, since the first one's input gradient takes the place of what
 * the second one reads here. */
static void start_rows(const backward_call *call, size_t q, size_t loss_lo, size_t lo, size_t hi, int rank)
{
    const run_state *s = call->s;
    const layer_back *back = call->layers + q;
    if (back->lying) return;
    for (row_walk w = walk_rows(s, lo, hi); next_row(s, &w);)
        start_row(call, q, w.t, loss_lo, w.i, 0, s->UV, back->dh + (s->B + w.row) * s->ldh, rank);
}

/* One range of steps through all layers, losses from step loss_lo on. */
static void range_backward(const backward_call *call, size_t lo, size_t hi, size_t loss_lo, int rank, crnn_team *team)
{
    const run_state *s = call->s;
    size_t r0, r1, first = (size_t)s->offsets[lo], last = (size_t)s->offsets[hi];
    crnn_share(last - first, 1, rank, crnn_team_size(team), &r0, &r1);
    r0 += first, r1 += first;
    for (size_t l = s->L; l-- > 0;) {
        const size_t begin = l * s->D, end = begin + s->D;
        for (size_t q = begin; q < end; q++) {
            start_rows(call, q, loss_lo, r0, r1, rank);
            if (rank > 0) continue;
            fill_final_cell(call, q, loss_lo, hi);
            if (lo == 0) memset(dh_of_step(call, q, (size_t)-1), 0, s->B * s->ldh * sizeof(T));
            if (l > 0) deal_rows_of(call, q, OF_INPUT, 1, last - first);
        }
        crnn_barrier(team);
        if (goes_apart(s, team)) {
            int own = rank;
            crnn_team *half = crnn_half(team, &own);
            time_loop(call, begin + (size_t)(rank & 1), lo, hi, loss_lo, own, half);
        } else {
            for (size_t q = begin; q < end; q++) time_loop(call, q, lo, hi, loss_lo, rank, team);
        }
        if (s->plan.backward != BY_SEQUENCES || goes_apart(s, team)) crnn_barrier(team); /* otherwise all have rested */
        for (size_t q = begin; q < end; q++) {
            layer_back *back = call->layers + q;
            size_t a, b;
            if (rank == 0 && lo == 0) {
                size_t n = block_rows(s, 0);
                add_rows_to(back->dh0, dh_of_step(call, q, (size_t)-1), n, s->ldh);
                if (back->dc) add_rows_to(back->dc0, back->dc, n, s->ldh);
            }
            if (call->overlap) add_rows_to(back->sum + r0 * s->ldg, back->d + r0 * s->ldg, r1 - r0, s->ldg);
            while (l > 0 && take_rows_of(call, q, OF_INPUT, last - first, rank, &a, &b))
                input_gradient(call, q, first + a, first + b, (input_target){call->dx, call->ldx, NULL}, rank);
            crnn_barrier(team);
        }
    }
}
