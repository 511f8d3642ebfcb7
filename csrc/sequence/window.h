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

static void window_pass(const backward_call *call, size_t j, int last_pass, int rank, crnn_team *team)
{
    const run_state *s = call->s;
    size_t lo, hi, n0 = block_rows(s, j);
    int gru = s->shape.kind == KIND_GRU_AFTER || s->shape.kind == KIND_GRU_BEFORE;
    crnn_share(s->R, 1, rank, crnn_team_size(team), &lo, &hi);
    for (size_t l = s->L; l-- > 0;) {
        const layer_run *run = s->layers + l;
        layer_back *back = call->layers + l;
        if (l + 1 < s->L)
            FOR_PASS_ROWS(s, j, 0, lo, hi, row, before, rows) fill_upstream(call, l, 0, row, row + rows, 0, 1, rank);
        FOR_PASS_ROWS(s, j, 0, lo, hi, row, before, rows)
        {
            const T *dc = back->dc ? back->dc + (s->B + row) * s->ldh : NULL;
            T *dc_next = back->dc ? back->dc_next + before * s->ldh : NULL;
            T *next = back->next + before * s->ldh;
            cell_rows(call, run, back, row, before, rows, 0, s->UV, dc, dc_next, next, NULL);
            if (s->shape.candidate.gates) reset_rows(call, run, back, row, before, rows, 0, s->UV, next);
            if (j > 0) add_rows_to(back->sum + row * s->ldg, back->d + row * s->ldg, rows, s->ldg);
            else memcpy(back->sum + row * s->ldg, back->d + row * s->ldg, rows * s->ldg * sizeof(T));
            if (l > 0) input_rows(call, l, row, rows, call->dx + row * call->ldx, call->ldx, rank);
            /* In the last pass only the first step's rows go on, to the initial state. */
            size_t on = last_pass ? (row < n0 ? (rows < n0 - row ? rows : n0 - row) : 0) : rows;
            if (on)
                product_back(s, &s->shape.recurrent, back->d + row * s->ldg, back->pack_hh, s->H, 0, s->UV, on, next, s->ldh,
                             gru ? next : NULL, 0, NULL);
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
        if (l + 1 == s->L) {
            fill_upstream(call, l, 0, lo, hi, 0, 0, rank);
        } else {
            memset(back->dh + (s->B + lo) * s->ldh, 0, (hi - lo) * s->ldh * sizeof(T));
        }
        if (back->dc) memset(back->dc + (s->B + lo) * s->ldh, 0, (hi - lo) * s->ldh * sizeof(T));
    }
    crnn_barrier(team);
    if (rank == 0)
        for (size_t l = 0; l < s->L; l++) fill_final(call, l, 0, s->steps, 1);
    crnn_barrier(team);
    for (size_t j = 0; j < k; j++) window_pass(call, j, j + 1 == k, rank, team);
}
