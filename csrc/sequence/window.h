/* Window(k): the loss at step t reaches steps t-k+1 .. t. Losses go back together: in pass j the loss at (t, i) stands at step t - j of
 * its sequence, and what it brings there is kept in the loss's own place of a block, dense whatever the lengths are. Blocks are so
 * small that all passes find their rows near (two threads, batch 20, T 64, 200 units, k = 32: an LSTM trains 1.4, an RNN 1.25 times as
 * fast as with each pass over all losses). What reaches the initial state always counts, because its loss lies at t = j < k. */

/* Losses [lo, hi) of the packed rows, of these steps and sequences. */
typedef struct {
    size_t lo, hi, t0, t1, i0, i1;
} loss_block;

/* Losses whose rows are neighbours in the block, as packed rows and as states before. */
typedef struct {
    size_t at, rows;    /* in the block */
    size_t row, before; /* where they stand in this pass */
    size_t t, i;        /* the first one: step, sequence */
    size_t next;        /* step that the next run begins with */
} loss_run;

/* Losses of step t in the block; *first: sequence of the first one. */
INLINE size_t losses_of_step(const run_state *s, const loss_block *b, size_t t, size_t *first)
{
    const size_t step = (size_t)s->offsets[t], n = block_rows(s, t), end = b->i1 < n ? b->i1 : n;
    const size_t from = step + b->i0 > b->lo ? step + b->i0 : b->lo, to = step + end < b->hi ? step + end : b->hi;
    *first = from - step;
    return to > from ? to - from : 0;
}

/* Before all: of pass j, those from step j on. */
static loss_run losses_from(const run_state *s, const loss_block *b, size_t j)
{
    loss_run run = {.next = b->t0};
    for (size_t i; run.next < b->t1 && run.next < j; run.next++) run.at += losses_of_step(s, b, run.next, &i);
    return run;
}

static int next_losses(const run_state *s, const loss_block *b, size_t j, loss_run *run)
{
    run->at += run->rows;
    run->rows = 0;
    for (; run->next < b->t1; run->next++) {
        size_t i, n = losses_of_step(s, b, run->next, &i), stands = run->next - j;
        if (!n) continue;
        const size_t row = (size_t)s->offsets[stands] + i, before = state_row_before(s, stands) + i;
        if (run->rows && (row != run->row + run->rows || before != run->before + run->rows)) return 1;
        if (!run->rows) run->row = row, run->before = before, run->t = run->next, run->i = i;
        run->rows += n;
    }
    return run->rows > 0;
}
#define FOR_LOSSES(s, block, j, run) for (loss_run run = losses_from(s, block, j); next_losses(s, block, j, &run);)

/* What a block's losses bring to layer q before the first pass: to the top one what comes from above, to all the final states'. */
static void start_losses(const backward_call *call, size_t q, const loss_block *b, T *dh, T *dc, int rank)
{
    const run_state *s = call->s;
    const T *dc_n = call->args->dc_n ? (const T *)call->args->dc_n + q * s->B * s->H : NULL;
    for (size_t t = b->t0; t < b->t1; t++) {
        size_t i, n = losses_of_step(s, b, t, &i);
        for (; n; n--, i++, dh += s->ldh) {
            start_row(call, q, t, 0, i, 0, s->UV, dh, rank);
            if (!dc) continue;
            memset(dc, 0, s->ldh * sizeof(T));
            if (dc_n && s->length[i] == t + 1) memcpy(dc, dc_n + i * s->H, s->H * sizeof(T));
            dc += s->ldh;
        }
    }
}

/* dx: what the layer above passes down in this pass. */
static void add_from_above(const run_state *s, size_t l, const loss_run *run, const T *dx, size_t ldx, T *dh)
{
    for (size_t r = 0; r < run->rows; r++, dx += ldx, dh += s->ldh) {
        const T *mask = s->masks ? s->masks + (l * s->R + run->row + r) * s->H : NULL;
        for (size_t k = 0; k < s->H; k++) dh[k] += mask ? dx[k] * mask[k] : dx[k];
    }
}

/* Pass j of a block through layer l. dx: of the layer above, then of this one. */
static void losses_back(const backward_call *call, size_t l, const loss_block *b, size_t j, int last_pass, T *dh, T *dc,
                        const loss_room *room, int rank)
{
    const run_state *s = call->s;
    const layer_run *run = s->layers + l;
    const layer_back *back = call->layers + l;
    const cell_product *candidate = &s->shape.candidate;
    T *d = room->d, *dx = room->dx;
    size_t first = losses_from(s, b, j).at, end = first, i = 0, leaving = j >= b->t0 && j < b->t1 ? losses_of_step(s, b, j, &i) : 0;
    FOR_LOSSES(s, b, j, at)
    {
        T *h = dh + at.at * s->ldh, *c = dc ? dc + at.at * s->ldh : NULL;
        if (l + 1 < s->L) add_from_above(s, l, &at, dx + at.at * call->ldx, call->ldx, h);
        cell_rows(s, run, at.row, at.before, at.rows, 0, s->UV, d + at.at * s->ldg, h, c, c, h, (step_rows){0});
        end = at.at + at.rows;
    }
    if (end == first) return;
    T *from = d + first * s->ldg, *to = dh + first * s->ldh;
    if (candidate->gates) {
        product_back(s, candidate, from, back->pack_n, s->H, 0, s->UV, end - first, room->reset + first * s->ldh, s->ldh,
                     (step_rows){0}, 0, NULL);
        FOR_LOSSES(s, b, j, at)
        reset_rows(s, run, at.row, at.before, at.rows, 0, s->UV, d + at.at * s->ldg, room->reset + at.at * s->ldh,
                   dh + at.at * s->ldh);
    }
    FOR_LOSSES(s, b, j, at)
    {
        T *sum = back->sum + at.row * s->ldg;
        if (j > 0) add_rows_to(sum, d + at.at * s->ldg, at.rows, s->ldg);
        else memcpy(sum, d + at.at * s->ldg, at.rows * s->ldg * sizeof(T));
    }
    if (l > 0) input_rows(call, l, from, end - first, dx + first * call->ldx, call->ldx, rank);
    /* In the last pass only the first step's rows go on, to the initial state. */
    const size_t on = last_pass ? leaving : end - first;
    if (on)
        product_back(s, &s->shape.recurrent, from, back->pack_hh, s->H, 0, s->UV, on, to, s->ldh,
                     (step_rows){is_gru(s) ? to : NULL, s->ldh}, 0, NULL);
    if (!leaving) return;
    add_rows_to(back->dh0 + i * s->ldh, to, leaving, s->ldh);
    if (dc) add_rows_to(back->dc0 + i * s->ldh, dc + first * s->ldh, leaving, s->ldh);
}

/* All passes of a block, whose places begin at row `place` of the rooms. team: of those who work on other losses of the same
 * sequences, and whose sums are added to in turn. */
static void window_block(const backward_call *call, const loss_block *b, size_t place, int rank, crnn_team *team)
{
    const run_state *s = call->s;
    const size_t k = call->args->k1 < s->steps ? call->args->k1 : s->steps, state = place * s->ldh;
    const loss_room *room = &call->room;
    const loss_room own = {room->d + place * s->ldg, room->dx ? room->dx + place * call->ldx : NULL,
                           room->reset ? room->reset + state : NULL};
    for (size_t l = 0; l < s->L; l++) {
        const layer_back *back = call->layers + l;
        start_losses(call, l, b, back->dh + state, back->dc ? back->dc + state : NULL, rank);
    }
    for (size_t j = 0; j < k; j++) {
        for (size_t l = s->L; l-- > 0;) {
            const layer_back *back = call->layers + l;
            losses_back(call, l, b, j, j + 1 == k, back->dh + state, back->dc ? back->dc + state : NULL, &own, rank);
        }
        if (team) crnn_barrier(team);
    }
}

/* Where threads take sequences, they need not wait for each other, and cut their losses into blocks (of 32 to 128 rows: the same).
 * Otherwise each takes a range of the losses, in one block: rows are added to by one thread in one pass and by the next one in a
 * later pass. */
#define WINDOW_ROWS 64
#define WINDOW_SEQUENCES 16
static int window_by_sequences(const run_state *s, size_t threads)
{
    size_t most = 0;
    for (size_t rank = 0, lo, hi; rank < threads; rank++) {
        size_t rows = 0;
        share_sequences(s, BY_SEQUENCES, (int)rank, (int)threads, &lo, &hi);
        for (; lo < hi; lo++) rows += s->length[lo];
        if (rows > most) most = rows;
    }
    return most * threads <= s->R + s->R / 8;
}

/* Rows of the rooms of all threads. */
static size_t window_rows(const run_state *s)
{
    const size_t threads = (size_t)s->plan.threads;
    return window_by_sequences(s, threads) ? threads * WINDOW_ROWS : s->R;
}

static void window_backward(const backward_call *call, int rank, crnn_team *team)
{
    const run_state *s = call->s;
    const int size = crnn_team_size(team);
    loss_block b = {.hi = s->R, .t1 = s->steps, .i1 = s->B};
    if (!window_by_sequences(s, (size_t)s->plan.threads)) {
        crnn_share(s->R, 1, rank, size, &b.lo, &b.hi);
        b.t0 = b.lo < b.hi ? step_of(s, b.lo) : s->steps;
        window_block(call, &b, b.lo, rank, size > 1 ? team : NULL);
        return;
    }
    size_t lo, hi;
    share_sequences(s, BY_SEQUENCES, rank, size, &lo, &hi);
    const size_t groups = tile_count(hi - lo, WINDOW_SEQUENCES);
    for (size_t g = 0; g < groups; g++) {
        b.i0 = lo + tile_edge(hi - lo, groups, g), b.i1 = lo + tile_edge(hi - lo, groups, g + 1);
        for (b.t0 = 0; b.t0 < s->steps && block_rows(s, b.t0) > b.i0; b.t0 = b.t1) {
            size_t i, rows = 0, n;
            for (b.t1 = b.t0; b.t1 < s->steps && (n = losses_of_step(s, &b, b.t1, &i)) && rows + n <= WINDOW_ROWS; b.t1++) rows += n;
            window_block(call, &b, (size_t)rank * WINDOW_ROWS, rank, NULL);
        }
    }
    crnn_barrier(team);
}
