/* Window(k): the loss at step t reaches steps t-k+1 .. t. Pass j handles, for all losses at once, the step that lies
 * j before its loss: row (t, i) takes part while t + j is a step of sequence i. What passes on to (t-1, i) is the
 * input of pass j+1; what reaches the initial state always counts, because its loss lies at t = j < k. */

/* Calls body(row, before, rows) for every run of rows that are neighbours both as rows and as states before:
 * the rows of pass j from step t_first on, cut to the share [lo, hi) of packed rows. */
#define FOR_PASS_ROWS(s, j, t_first, lo, hi, row, before, rows)                                            \
    for (size_t t_ = (t_first), row = 0, before = 0, rows = 0; pass_rows(s, j, &t_, lo, hi, &row, &before, &rows);)

static int pass_rows(const run_state *s, size_t j, size_t *t, size_t lo, size_t hi, size_t *row, size_t *before,
                     size_t *rows)
{
    *rows = 0;
    for (; *t + j < s->steps; ++*t) {
        size_t first = (size_t)s->offsets[*t], n = block_rows(s, *t + j);
        size_t a = first > lo ? first : lo, b = first + n < hi ? first + n : hi;
        if (a >= b) {
            if (*rows) return 1;
            continue;
        }
        size_t from = state_row_before(s, *t) + (a - first);
        if (*rows && (a != *row + *rows || from != *before + *rows)) return 1;
        if (!*rows) *row = a, *before = from;
        *rows += b - a;
    }
    return *rows > 0;
}

/* Packed rows [lo, hi) of the upstream gradient of layer q. */
static void fill_upstream(const backward_call *call, size_t q, size_t lo, size_t hi, int add, int rank)
{
    const run_state *s = call->s;
    for (size_t r = lo, t = lo < hi ? step_of(s, lo) : 0; r < hi; r++) {
        while (r >= (size_t)s->offsets[t + 1]) t++;
        take_upstream(call, q, t, r - (size_t)s->offsets[t], 0, s->H, call->layers[q].dh + (s->B + r) * s->ldh, add, rank);
    }
}

static void fill_final(const backward_call *call, size_t q)
{
    const run_state *s = call->s;
    const T *dh_n = call->args->dh_n, *dc_n = call->args->dc_n;
    for (size_t i = 0; i < s->B; i++) {
        if (!s->length[i]) continue;
        T *dh = call->layers[q].dh + last_state_row(s, i) * s->ldh, *dc = call->layers[q].dc;
        for (size_t k = 0; dh_n && k < s->H; k++) dh[k] += dh_n[(q * s->B + i) * s->H + k];
        for (size_t k = 0; dc && dc_n && k < s->H; k++) dc[last_state_row(s, i) * s->ldh + k] += dc_n[(q * s->B + i) * s->H + k];
    }
}

static void window_pass(const backward_call *call, size_t j, int last_pass, int rank, crnn_team *team)
{
    const run_state *s = call->s;
    size_t lo, hi, n0 = block_rows(s, j);
    int gru = is_gru(s);
    crnn_share(s->R, 1, rank, crnn_team_size(team), &lo, &hi);
    for (size_t l = s->L; l-- > 0;) {
        const layer_run *run = s->layers + l;
        layer_back *back = call->layers + l;
        if (l + 1 < s->L)
            FOR_PASS_ROWS(s, j, 0, lo, hi, row, before, rows) fill_upstream(call, l, row, row + rows, 1, rank);
        FOR_PASS_ROWS(s, j, 0, lo, hi, row, before, rows)
        {
            const T *dc = back->dc ? back->dc + (s->B + row) * s->ldh : NULL;
            T *dc_next = back->dc ? back->dc_next + before * s->ldh : NULL;
            T *next = back->next + before * s->ldh;
            cell_rows(call, run, back, row, before, rows, 0, s->UV, back->dh + (s->B + row) * s->ldh, dc, dc_next, next,
                      (step_rows){0});
            if (s->shape.candidate.gates) reset_rows(call, run, back, row, before, rows, 0, s->UV, next);
            if (j > 0) add_rows_to(back->sum + row * s->ldg, back->d + row * s->ldg, rows, s->ldg);
            else memcpy(back->sum + row * s->ldg, back->d + row * s->ldg, rows * s->ldg * sizeof(T));
            if (l > 0) input_rows(call, l, row, rows, call->dx + row * call->ldx, call->ldx, rank);
            /* In the last pass only the first step's rows go on, to the initial state. */
            size_t on = last_pass ? (row < n0 ? (rows < n0 - row ? rows : n0 - row) : 0) : rows;
            if (on)
                product_back(s, &s->shape.recurrent, back->d + row * s->ldg, back->pack_hh, s->H, 0, s->UV, on, next, s->ldh,
                             (step_rows){gru ? next : NULL, s->ldh}, 0, NULL);
        }
    }
    crnn_barrier(team);
    if (rank == 0)
        for (size_t l = 0; l < s->L; l++) {
            layer_back *back = call->layers + l;
            add_rows_to(back->dh0, back->next, n0, s->ldh);
            if (back->dc) add_rows_to(back->dc0, back->dc_next, n0, s->ldh);
            T *swap = back->dh;
            back->dh = back->next;
            back->next = swap;
            swap = back->dc;
            back->dc = back->dc_next;
            back->dc_next = swap;
        }
    crnn_barrier(team);
}

static void window_backward(const backward_call *call, int rank, crnn_team *team)
{
    const run_state *s = call->s;
    size_t k = call->args->k1 < s->steps ? call->args->k1 : s->steps, lo, hi;
    crnn_share(s->R, 1, rank, crnn_team_size(team), &lo, &hi);
    for (size_t l = 0; l < s->L; l++) {
        layer_back *back = call->layers + l;
        memset(back->dh + (s->B + lo) * s->ldh, 0, (hi - lo) * s->ldh * sizeof(T));
        if (l + 1 == s->L && has_upstream(call, l, 0, 0)) fill_upstream(call, l, lo, hi, 0, rank);
        if (back->dc) memset(back->dc + (s->B + lo) * s->ldh, 0, (hi - lo) * s->ldh * sizeof(T));
    }
    crnn_barrier(team);
    if (rank == 0)
        for (size_t l = 0; l < s->L; l++) fill_final(call, l);
    crnn_barrier(team);
    for (size_t j = 0; j < k; j++) window_pass(call, j, j + 1 == k, rank, team);
}
