/* Forward through the stack: input projection in blocks of steps, then the time loop of each block. */

/* On cache lines of its own: workers read it first of all. */
typedef struct {
    _Alignas(2 * CRNN_LINE) run_state *s;
    int turn; /* of steps one by one: they walk the weights up and down, so that those still in cache come first */
    crnn_forward_args args;
    int64_t bad[CRNN_MAX_THREADS]; /* per rank: the first row of x_view that is not finite, or -1 */
} forward_call;

/* Row of direction e that holds the same time step as packed row r. */
INLINE size_t flipped(const run_state *s, int reversed, size_t r) { return reversed ? (size_t)s->flip[r] : r; }

/* One row of the caller's, and whether it is finite. x_base: packed row kept in the first row of x. */
INLINE void take_row(const run_state *s, const forward_call *call, const layer_run *run, size_t t, size_t i, size_t x_base,
                     int64_t *bad)
{
    const size_t row = (size_t)s->offsets[t] + i, width = run->input;
    T *x = run->x + (row - x_base) * run->ldx;
    if (!copy_finite(x, view_row(s, &call->args.x_view, run->reversed, t, i), width) && !run->reversed) note_bad(bad, row);
    memset(x + width, 0, (run->ldx - width) * sizeof(T));
}

/* The input of a layer, in the row order of its direction. */
static void gather_input(const run_state *s, const forward_call *call, size_t l, layer_run *run, size_t lo, size_t hi,
                         int64_t *bad)
{
    size_t width = run->input, H = s->H;
    const crnn_view *view = l == 0 && call->args.x_view.sequences ? &call->args.x_view : NULL;
    for (row_walk w = walk_rows(s, lo, view ? hi : lo); next_row(s, &w);) take_row(s, call, run, w.t, w.i, 0, bad);
    for (size_t r = lo; r < hi && !view; r++) {
        size_t row = flipped(s, run->reversed, r);
        T *x = run->x + r * run->ldx;
        if (l == 0) {
            memcpy(x, (const T *)call->args.x + row * width, width * sizeof(T));
        } else {
            for (size_t e = 0; e < s->D; e++) {
                const layer_run *below = s->layers + (l - 1) * s->D + e;
                size_t from = rows_after(s, call->turn) + flipped(s, below->reversed, row);
                memcpy(x + e * H, below->h + from * s->ldh, H * sizeof(T));
            }
            if (s->masks) {
                const T *mask = s->masks + ((l - 1) * s->R + row) * width;
                for (size_t k = 0; k < width; k++) x[k] *= mask[k];
            }
        }
        memset(x + width, 0, (run->ldx - width) * sizeof(T));
    }
}

/* Rows that project() has several threads share, or that all project. */
INLINE void share_rows(const run_state *s, size_t t0, size_t t1, int rank, int size, size_t *begin, size_t *end)
{
    const size_t first = (size_t)s->offsets[t0];
    size_t lo, hi;
    crnn_share((size_t)s->offsets[t1] - first, SHORT_ROWS, rank, size, &lo, &hi);
    *begin = first + lo, *end = first + hi;
}

/* The steps [t0, t1) of x: this thread's sequences, or shared by all. A few steps of a sequence are too little for the hardware to
 * follow, so the first ones of the next sequence are asked for. */
#define ASKED_BYTES ((size_t)2048)
static void gather_chunk(const run_state *s, forward_call *call, const layer_run *run, size_t t0, size_t t1, size_t i0, size_t i1,
                         int rank, crnn_team *team)
{
    const size_t x_base = first_of_x(s, run, t0), bytes = run->input * sizeof(T), most = ASKED_BYTES / bytes + 1;
    int64_t *bad = call->bad + rank;
    size_t lo, hi, n = block_rows(s, t0);
    if (s->plan.forward != BY_SEQUENCES) {
        share_rows(s, t0, t1, rank, crnn_team_size(team), &lo, &hi);
        for (row_walk w = walk_rows(s, lo, hi); next_row(s, &w);) take_row(s, call, run, w.t, w.i, x_base, bad);
        if (s->plan.forward == BY_UNITS) crnn_barrier(team);
        return;
    }
    if (n > i1) n = i1;
    for (size_t i = i0; i < n; i++) {
        for (size_t t = t0; i + 1 < n && t < t1 && t < t0 + most && t < s->length[i + 1]; t++) {
            const char *row = view_row(s, &call->args.x_view, run->reversed, t, i + 1);
            for (size_t at = 0; at < bytes; at += CRNN_LINE) __builtin_prefetch(row + at);
        }
        for (size_t t = t0; t < t1 && t < s->length[i]; t++) take_row(s, call, run, t, i, x_base, bad);
    }
}

/* Pre-activations of one-hot rows: what they start from (a row of slots: the bias) plus the word's column of W_ih, which is
 * stored as a row. */
static void project_onehot(const run_state *s, const layer_run *run, const T *start, T *g, size_t row, size_t rows, size_t u0,
                           size_t u1)
{
    size_t H = s->H, first = u0 * VW, last = u1 * VW < H ? u1 * VW : H;
    const cell_product *product = &s->shape.input;
    for (size_t i = 0; i < rows; i++, g += s->ldg) {
        const T *word = run->wih + (size_t)s->ids[flipped(s, run->reversed, row + i)] * run->ldwih;
        for (int q = 0; q < product->gates; q++) {
            T *out = g + (size_t)product->slot[q] * s->Hp;
            const T *from = start + (size_t)product->slot[q] * s->Hp, *w = word + (size_t)product->gate[q] * H;
            for (size_t k = first; k < last; k++) out[k] = from[k] + w[k];
            for (size_t k = last; k < u1 * VW; k++) out[k] = 0;
        }
    }
}

/* What every pre-activation starts from: b_ih + b_hh, but GRU with reset after keeps b_hn apart. A row of slots, of which
 * the units [u0, u1) are written. */
static void start_gates(const run_state *s, const layer_run *run, T *out, size_t u0, size_t u1)
{
    size_t first = u0 * VW, last = u1 * VW < s->H ? u1 * VW : s->H;
    for (int slot = 0; slot < s->shape.slots; slot++) memset(out + (size_t)slot * s->Hp + first, 0, (u1 - u0) * VW * sizeof(T));
    for (size_t g = 0; g < (size_t)s->shape.gates; g++) {
        T *ih = out + g * s->Hp, *hh = out + (size_t)s->shape.bias_hh_slot[g] * s->Hp;
        if (run->bih)
            for (size_t k = first; k < last; k++) ih[k] += run->bih[g * s->H + k];
        if (run->bhh)
            for (size_t k = first; k < last; k++) hh[k] += run->bhh[g * s->H + k];
    }
}

#include "small.h"

/* Whether rows of gates have left the second level when they are written or read again: those that backward reads, or many in work
 * (inference of wide layers, 256 rows: 1.00 to 1.10 times as fast as with 48 rows, 0.94 to 1.11 if they are not asked for). */
#define NEAR_GATES ((size_t)1 << 20)
INLINE int gates_are_far(const run_state *s) { return s->keep_gates || s->chunk_rows * s->ldg * sizeof(T) > NEAR_GATES; }

static void project_rows(const run_state *s, const layer_run *run, const T *b, size_t gate_row, size_t rows, size_t u,
                         size_t units, size_t next_units, const T *x, size_t ldx)
{
    size_t off[4];
    const cell_product *product = &s->shape.input;
    int nv = tile_offsets(product, s->Hp, u, units, off), halves = tile_halves(product, s->H, u, units);
    const size_t per_unit = (size_t)product->gates * VW * run->input;
    T *out = run->gates + gate_row * s->ldg;
    tile_column(rows, nv, halves, run->input, x, ldx, b, (size_t)nv * VW, out, s->ldg, run->bias, 0, off,
                fetch_ahead(s->UV * per_unit, b + units * per_unit, next_units * per_unit, rows, nv), gates_are_far(s));
    /* The cell works on whole vectors. */
    for (size_t r = 0; r < rows && halves; r++, out += s->ldg)
        for (int j = nv - halves; j < nv; j++) memset(out + off[j] + VW / 2, 0, VW / 2 * sizeof(T));
}

/* The same through BLAS, gate by gate, on top of the bias. */
static void project_blas(const run_state *s, const layer_run *run, size_t gate_row, size_t rows, size_t u, size_t units,
                         const T *x, size_t ldx)
{
    const cell_product *product = &s->shape.input;
    size_t first = u * VW, width = s->H - first < units * VW ? s->H - first : units * VW, K = run->input;
    for (int g = 0; g < product->gates; g++) {
        size_t at = (size_t)product->slot[g] * s->Hp + first;
        T *out = run->gates + gate_row * s->ldg + at;
        for (size_t r = 0; r < rows; r++) memcpy(out + r * s->ldg, run->bias + at, units * VW * sizeof(T));
        crnn_blas_gemm(THIS_DTYPE, 'T', 'N', width, rows, K, run->wih + ((size_t)product->gate[g] * s->H + first) * K, K,
                       x, ldx, 1, out, s->ldg);
    }
}

/* The packed rows [*begin, *end) of the sequences [i0, i1) in step t; as they are where several steps are taken as a whole. */
INLINE void own_rows(const run_state *s, size_t t, int whole, size_t i0, size_t i1, size_t *begin, size_t *end)
{
    if (whole) return;
    size_t n = block_rows(s, t), first = (size_t)s->offsets[t];
    *begin = first + (i0 < n ? i0 : n);
    *end = first + (i1 < n ? i1 : n);
}

/* Steps [t0, t1): pre-activations of this thread's rows and units. gate_base: packed row kept in the first row of gates. Where
 * their input comes first, all share it. */
static void project(const run_state *s, const layer_run *run, size_t t0, size_t t1, size_t gate_base, size_t i0, size_t i1,
                    size_t u0, size_t u1, const T *x, size_t ldx, int rank, int size)
{
    const int first = s->plan.forward == INPUT_FIRST, whole = first || (i0 == 0 && i1 == s->B);
    const int tiled = run->pack_ih != NULL, rooms = tiled && input_in_rooms(s);
    size_t begin = (size_t)s->offsets[t0], end = (size_t)s->offsets[t1];
    if (first) share_rows(s, t0, t1, rank, size, &begin, &end);
    size_t gates = (size_t)s->shape.input.gates, most = tiled ? s->shape.input.units : u1 - u0;
    size_t count = u1 > u0 ? tile_count(u1 - u0, most) : 0, stop = whole ? t0 + 1 : t1;
    for (size_t n_tile = 0; n_tile < count; n_tile++) {
        unit_tile tile = nth_tile(u0, u1, most, n_tile, 0);
        size_t u = tile.u, units = tile.units;
        size_t next = n_tile + 1 < count && !rooms ? nth_tile(u0, u1, most, n_tile + 1, 0).units : 0;
        T *b = run->pack_ih ? run->pack_ih + (rooms ? (size_t)rank * 4 : u * gates) * VW * run->input : NULL;
        if (rooms) pack_tile(&s->shape.input, s->H, run->wih, run->input, run->input, b, tile, 0);
        for (size_t t = t0; t < stop; t++) {
            own_rows(s, t, whole, i0, i1, &begin, &end);
            size_t row = begin, rows = end - begin;
            if (rows == 0) continue;
            const T *from = x ? x + (row - first_of_x(s, run, t0)) * ldx : NULL;
            if (tiled) project_rows(s, run, b, row - gate_base, rows, u, units, t + 1 < stop ? 0 : next, from, ldx);
            else if (run->lying) project_lying(s, run, row - gate_base, rows, u, u + units, from, ldx);
            else if (x) project_blas(s, run, row - gate_base, rows, u, units, from, ldx);
            else project_onehot(s, run, run->bias, run->gates + (row - gate_base) * s->ldg, row, rows, u, u + units);
        }
    }
    if (s->shape.kind != KIND_GRU_AFTER) return;
    for (size_t t = t0; t < stop; t++) { /* W_n h + b_hn starts from its own bias */
        own_rows(s, t, whole, i0, i1, &begin, &end);
        for (size_t row = begin; row < end; row++)
            memcpy(run->gates + (row - gate_base) * s->ldg + 3 * s->Hp + u0 * VW, run->bias + 3 * s->Hp + u0 * VW,
                   (u1 - u0) * VW * sizeof(T));
    }
}

#include "recurrent.h"

static size_t next_chunk(const run_state *s, size_t t0)
{
    size_t t1 = t0 + 1;
    while (t1 < s->steps && (size_t)(s->offsets[t1 + 1] - s->offsets[t0]) <= s->chunk_rows) t1++;
    return t1;
}

/* This thread's part of packing one weight matrix. */
static void pack_weights(const run_state *s, const cell_product *product, const T *W, size_t K, T *dst, int rank, int size)
{
    pack_range range = pack_share(s->plan.forward == BY_UNITS, s->UV, product->units, rank, size);
    range.again = !s->keep; /* training updates its weights between two calls, inference does not */
    pack_forward(product, s->H, W, K, K, dst, range);
}

/* What a thread knows of a layer's time loop. */
typedef struct {
    forward_call *call;
    const layer_run *run;
    const T *x;
    size_t ldx, u0, u1;
    int rank;
} loop_work;

/* A stretch to its end. Threads that have sequences of their own hand over some of them to those that are done; between two chunks, if
 * gates are in a room of the thread's own. */
static void time_steps(const loop_work *work, crnn_stretch own, crnn_team *team)
{
    const run_state *s = work->call->s;
    const layer_run *run = work->run;
    const cell_product *rec = &s->shape.recurrent, *cand = &s->shape.candidate;
    const size_t i0 = own.i0, u0 = work->u0, u1 = work->u1;
    const int lying = !run->pack_hh, units = s->plan.forward == BY_UNITS, first = s->plan.forward == INPUT_FIRST;
    const int offers = !units && !first, between = s->rooms > 1;
    for (size_t t0 = own.chunk, t1; t0 < s->steps; t0 = t1) {
        t1 = next_chunk(s, t0);
        size_t gate_base = s->keep_gates ? 0 : (size_t)s->offsets[t0];
        /* A sequence's row of gates moves from chunk to chunk of a ragged batch: nobody may begin the next one before all have
         * left this one. By sequences each thread has rows of its own, by units every step ends with a barrier. Where the
         * input comes first, a sequence's may be another thread's work. */
        if (first && t0 > 0 && !s->keep_gates) crnn_barrier(team);
        if (own.t <= t0) {
            if (run->x_late) gather_chunk(s, work->call, run, t0, t1, i0, own.i1, work->rank, team);
            project(s, run, t0, t1, gate_base, i0, own.i1, u0, u1, work->x, work->ldx, work->rank, crnn_team_size(team));
        }
        if (first) crnn_barrier(team);
        for (size_t t = own.t > t0 ? own.t : t0; t < t1; t++) {
            if (lying) small_step(s, run, rec, t, gate_base, NULL, 0, i0, own.i1, u0, u1, 0, t & 1);
            else forward_step(s, run, rec, run->pack_hh, t, gate_base, i0, own.i1, u0, u1, 0);
            if (units) crnn_barrier(team);
            if (cand->gates) {
                if (lying) small_step(s, run, cand, t, gate_base, NULL, 0, i0, own.i1, u0, u1, 1, t & 1);
                else forward_step(s, run, cand, run->pack_n, t, gate_base, i0, own.i1, u0, u1, 1);
                if (units) crnn_barrier(team);
            }
            if (!offers || t + 1 == s->steps || (between && t + 1 < t1)) continue;
            const size_t n = block_rows(s, t + 1), end = own.i1 < n ? own.i1 : n;
            const crnn_stretch rest = {t + 1, t + 1 < t1 ? t0 : t1, i0, own.i1};
            offer_half(s, team, rest, s->steps - t - 1, end > i0 ? end - i0 : 0, run->input + s->H, &own.i1);
        }
    }
}

static void forward_layer(forward_call *call, size_t l, layer_run *run, int rank, crnn_team *team)
{
    run_state *s = call->s;
    int size = crnn_team_size(team);
    size_t lo, hi, i0, i1, u0, u1;
    const T *x = run->x;
    size_t ldx = run->ldx;
    if (run->x && !run->x_late) {
        crnn_share(s->R, 1, rank, size, &lo, &hi);
        gather_input(s, call, l, run, lo, hi, call->bad + rank);
    } else if (!run->x && (!s->ids || l > 0)) { /* inference reads packed rows where they are */
        x = call->args.x;
        ldx = run->input;
    }
    share_sequences(s, s->plan.forward, rank, size, &i0, &i1);
    share_units(s, s->plan.forward, rank, size, &u0, &u1);
    const cell_product *rec = &s->shape.recurrent, *cand = &s->shape.candidate;
    if (!s->small && !run->packed) {
        if (run->pack_ih && !input_in_rooms(s))
            pack_weights(s, &s->shape.input, run->wih, run->input, run->pack_ih, rank, size);
        if (run->pack_hh) pack_weights(s, rec, run->whh, s->H, run->pack_hh, rank, size);
        if (run->pack_hh && cand->gates) pack_weights(s, cand, run->whh, s->H, run->pack_n, rank, size);
    }
    if (!s->small || run->x) crnn_barrier(team); /* nothing was prepared for others otherwise */
    const int last = run == s->layers + s->L * s->D - 1;
    layer_run own;
    if (rank > 0) { /* the first room is the first thread's */
        own = in_own_room(s, run, rank, size);
        if (run->x) x = own.x;
        run = &own;
    }
    if (s->small) {
        small_loop(s, run, x, ldx, i0, i1, u0, u1, call->turn, last, team);
        return;
    }
    const loop_work work = {call, run, x, ldx, u0, u1, rank};
    if (s->plan.forward != BY_SEQUENCES) {
        time_steps(&work, (crnn_stretch){.i0 = i0, .i1 = i1}, team);
        if (s->plan.forward == INPUT_FIRST) crnn_barrier(team);
        return;
    }
    crnn_stretch stretch = {.i0 = i0, .i1 = i1};
    do time_steps(&work, stretch, team);
    while (crnn_rest(team, &stretch));
}

static void copy_outputs(const run_state *s, const crnn_forward_args *args, int rank, int size)
{
    const crnn_view *view = args->y_view.sequences ? &args->y_view : NULL;
    size_t lo = 0, hi = s->R, i0 = 0, i1 = s->B;
    if (!args->y && !view) return;
    /* Whoever has made them has them near; the directions of a layer have been walked apart or shared. */
    if (s->plan.forward == BY_SEQUENCES && s->D == 1) share_sequences(s, s->plan.forward, rank, size, &i0, &i1);
    else crnn_share(s->R, 1, rank, size, &lo, &hi);
    for (row_walk w = walk_sequences(s, lo, hi, i0, i1); next_row(s, &w);) {
        T *y = view ? (T *)(void *)view_row(s, view, 0, w.t, w.i) : (T *)args->y + w.row * s->D * s->H;
        for (size_t d = 0; d < s->D; d++) {
            const layer_run *top = s->layers + (s->L - 1) * s->D + d;
            size_t from = rows_after(s, s->turn) + flipped(s, top->reversed, w.row);
            memcpy(y + d * s->H, top->h + from * s->ldh, s->H * sizeof(T));
        }
    }
    if (view) crnn_zero_tails(view, s->length, s->B, s->D * s->H * sizeof(T), rank, size);
}

/* Nothing of inference: it finds packed weights again as they were, and pushing out states gains nothing (Zen 5, far cores, 64 to 512
 * units: 0.98 to 1.01). */
static void push_out_forward(const run_state *s, const layer_run *run, int rank, int size)
{
    if (!input_in_rooms(s)) push_out(run->pack_ih, (size_t)s->shape.input.gates * s->Hp * run->input, rank, size);
    push_out(run->pack_hh, (size_t)s->shape.recurrent.gates * s->Hp * s->H, rank, size);
    push_out(run->pack_n, s->Hp * s->H, rank, size);
}

static void forward_work(void *context, int rank, crnn_team *team)
{
    forward_call *call = context;
    run_state *s = call->s;
    const int apart = goes_apart(s, team);
    for (size_t l = 0; l < s->L; l++) {
        layer_run *first = s->layers + l * s->D;
        if (apart) {
            int own = rank;
            crnn_team *half = crnn_half(team, &own);
            forward_layer(call, l, first + (rank & 1), own, half);
            if (!s->small || l + 1 < s->L) crnn_barrier(team);
        } else {
            for (size_t d = 0; d < s->D; d++) forward_layer(call, l, first + d, rank, team);
        }
    }
    if (s->small) return;
    copy_outputs(s, &call->args, rank, crnn_team_size(team));
    for (size_t q = 0; q < s->L * s->D && s->plan.far && s->keep; q++)
        push_out_forward(s, s->layers + q, rank, crnn_team_size(team));
}

/* What comes before and after forward_work. */
static void start_forward(run_state *s, const crnn_forward_args *args, forward_call *call)
{
    size_t LD = s->L * s->D, BH = s->B * s->H;
    if (s->ids) memcpy(s->ids, args->ids, s->R * sizeof(int64_t));
    if (s->masks) memcpy(s->masks, args->masks, (s->L - 1) * s->R * s->D * s->H * sizeof(T));
    for (size_t q = 0; q < LD; q++) {
        layer_run *run = s->layers + q;
        const T *h0 = args->h0, *c0 = args->c0;
        copy_rows_padded(run->h, s->ldh, h0 ? h0 + q * BH : NULL, s->H, s->B);
        if (run->c) copy_rows_padded(run->c, s->ldh, c0 ? c0 + q * BH : NULL, s->H, s->B);
        if (run->bias) start_gates(s, run, run->bias, 0, s->UV);
    }
    *call = (forward_call){.s = s, .args = *args};
    for (int i = 0; i < s->plan.threads; i++) call->bad[i] = -1;
}

static void finish_forward(const forward_call *call)
{
    const run_state *s = call->s;
    const crnn_forward_args *args = &call->args;
    size_t LD = s->L * s->D, BH = s->B * s->H;
    if (s->small) copy_outputs(s, args, 0, 1);
    for (size_t q = 0; q < LD; q++)
        for (size_t i = 0; i < s->B; i++) {
            const size_t row = last_state_row(s, i), out = q * BH + i * s->H;
            const T *c = s->layers[q].c;
            if (args->h_n) memcpy((T *)args->h_n + out, s->layers[q].h + row * s->ldh, s->H * sizeof(T));
            if (args->c_n && c) memcpy((T *)args->c_n + out, c + cell_row(s, row, i) * s->ldh, s->H * sizeof(T));
        }
    if (args->bad) *args->bad = first_bad(call->bad, (size_t)s->plan.threads);
}

/* One step from the states in place. */
static void run_step(run_state *s, const void *x, void *y)
{
    if (s->ids) memcpy(s->ids, x, s->R * sizeof(int64_t));
    forward_call call = {.s = s, .args = {.x = s->ids ? NULL : x, .y = y}, .turn = s->turn ^= 1};
    crnn_parallel(s->plan.threads, s->plan.brief, forward_work, &call);
    copy_outputs(s, &call.args, 0, 1);
}
