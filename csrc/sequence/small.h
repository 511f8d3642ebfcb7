/* A few rows only (a streaming step): the weights are read once, as they lie, by dot products along their rows. */

/* acc[l] += W[l] * x, element-wise over the row, for VW rows of W of which `valid` exist (the others repeat the last).
 * The last partial vector is read from K - VW on, against a copy of x whose lanes already done are zero. Rows shorter
 * than a vector are read into the next row, against zeros, as long as `room` elements from W on allow. */
INLINE void dot_rows(V *acc, const T *W, size_t ldw, size_t valid, const T *x, const T *x_last, size_t K, size_t room)
{
    size_t whole = K / VW * VW;
    if (valid == VW) {
        const T *p[LANE_COUNT > 4 ? LANE_COUNT / 4 : 1];
        UNROLL(4) for (int q = 0; q < (LANE_COUNT > 4 ? LANE_COUNT / 4 : 1); q++) p[q] = W + (size_t)q * 4 * ldw;
        for (size_t k = 0; k < whole; k += VW) {
            V xv = load(x + k);
            UNROLL(16) for (int l = 0; l < LANE_COUNT; l++) acc[l] += load(p[l / 4] + (size_t)(l % 4) * ldw + k) * xv;
        }
    } else {
        for (size_t k = 0; k < whole; k += VW) {
            V xv = load(x + k);
            UNROLL(16) for (int l = 0; l < LANE_COUNT; l++)
                acc[l] += load(W + ((size_t)l < valid ? (size_t)l : valid - 1) * ldw + k) * xv;
        }
    }
    if (whole == K) return;
    V xv = load(x_last);
    if (whole) {
        UNROLL(16) for (int l = 0; l < LANE_COUNT; l++)
            acc[l] += load(W + ((size_t)l < valid ? (size_t)l : valid - 1) * ldw + K - VW) * xv;
        return;
    }
    if (room >= (valid - 1) * ldw + VW) {
        UNROLL(16) for (int l = 0; l < LANE_COUNT; l++)
            acc[l] += load(W + ((size_t)l < valid ? (size_t)l : valid - 1) * ldw) * xv;
        return;
    }
    T row[VW];
    memset(row, 0, sizeof row);
    UNROLL(16) for (int l = 0; l < LANE_COUNT; l++) {
        memcpy(row, W + ((size_t)l < valid ? (size_t)l : valid - 1) * ldw, K * sizeof(T));
        acc[l] += load(row) * xv;
    }
}

/* What dot_rows wants as x_last. */
INLINE void last_vector(T *out, const T *x, size_t K)
{
    size_t rest = K % VW, whole = K - rest;
    memset(out, 0, VW * sizeof(T));
    if (whole) memcpy(out + VW - rest, x + whole, rest * sizeof(T));
    else memcpy(out, x, rest * sizeof(T));
}

/* Gate pre-activations of one row: slot += W_ih x (where x enters that slot) + W_hh h. */
NOINLINE void small_row(const run_state *s, const layer_run *run, const cell_product *product, T *gates, const T *x,
                        const T *h, size_t u0, size_t u1)
{
    T x_last[VW], h_last[VW];
    size_t H = s->H, K = run->input, rows = (size_t)s->shape.gates * H;
    if (x) last_vector(x_last, x, K);
    if (h) last_vector(h_last, h, H);
    for (size_t u = u0; u < u1; u++) {
        size_t valid = H - u * VW < VW ? H - u * VW : VW;
        for (int q = 0; q < product->gates; q++) {
            size_t row = (size_t)product->gate[q] * H + u * VW;
            int both = product->slot[q] == product->gate[q];
            T *out = gates + (size_t)product->slot[q] * s->Hp + u * VW;
            V acc[LANE_COUNT];
            UNROLL(16) for (int l = 0; l < LANE_COUNT; l++) acc[l] = (V){0};
            if (h) dot_rows(acc, run->whh + row * H, H, valid, h, h_last, H, (rows - row) * H);
            if (!both) { /* GRU, reset after: the candidate's two products stay apart */
                store(out, load(out) + lane_sums(acc, LANE_COUNT));
                out = gates + (size_t)product->gate[q] * s->Hp + u * VW;
                UNROLL(16) for (int l = 0; l < LANE_COUNT; l++) acc[l] = (V){0};
            }
            if (x) dot_rows(acc, run->wih + row * K, K, valid, x, x_last, K, (rows - row) * K);
            store(out, load(out) + lane_sums(acc, LANE_COUNT));
        }
    }
}

static void small_step(const run_state *s, const layer_run *run, const cell_product *product, size_t t, size_t gate_base,
                       const T *x, size_t ldx, size_t i0, size_t i1, size_t u0, size_t u1, int candidate)
{
    size_t n = block_rows(s, t), hi = i1 < n ? i1 : n;
    for (size_t i = i0; i < hi && u0 < u1; i++) {
        size_t row = (size_t)s->offsets[t] + i, before = state_row_before(s, t) + i, col = u0 * VW;
        T *gates = run->gates + (row - gate_base) * s->ldg;
        const T *h = candidate ? gates + 3 * s->Hp : run->h + before * s->ldh;
        if (t == 0 && s->zero_start) h = NULL;
        small_row(s, run, product, gates, x ? x + row * ldx : NULL, h, u0, u1);
        size_t prev = before * s->ldh + col, next = (s->B + row) * s->ldh + col;
        forward_patch patch = {gates + col, s->ldg, s->Hp, run->h + prev, run->c ? run->c + prev : NULL, run->h + next,
                               run->c ? run->c + next : NULL, s->ldh};
        if (candidate) gru_before_state(&patch, 1, u1 - u0, s->shape.z_state);
        else cell_forward(&s->shape, &patch, 1, u1 - u0);
    }
}

static void small_loop(const run_state *s, const layer_run *run, const T *x, size_t ldx, size_t i0, size_t i1, size_t u0,
                       size_t u1, crnn_team *team)
{
    const cell_product *candidate = &s->shape.candidate;
    for (size_t t = 0; t < s->steps; t++) {
        size_t gate_base = s->keep ? 0 : (size_t)s->offsets[t], n = block_rows(s, t), hi = i1 < n ? i1 : n;
        for (size_t i = i0; i < hi && u0 < u1; i++) {
            size_t row = (size_t)s->offsets[t] + i;
            T *gates = run->gates + (row - gate_base) * s->ldg;
            if (!x) project_onehot(s, run, gates, row, 1, u0, u1);
            for (int slot = x ? 0 : 3; slot < s->shape.slots; slot++)
                if (x || s->shape.kind == KIND_GRU_AFTER)
                    memcpy(gates + (size_t)slot * s->Hp + u0 * VW, run->bias + (size_t)slot * s->Hp + u0 * VW,
                           (u1 - u0) * VW * sizeof(T));
        }
        small_step(s, run, &s->shape.recurrent, t, gate_base, x, ldx, i0, i1, u0, u1, 0);
        if (s->split == BY_UNITS) crnn_barrier(team);
        if (!candidate->gates) continue;
        small_step(s, run, candidate, t, gate_base, x, ldx, i0, i1, u0, u1, 1);
        if (s->split == BY_UNITS) crnn_barrier(team);
    }
    if (s->split != BY_UNITS) crnn_barrier(team);
}
