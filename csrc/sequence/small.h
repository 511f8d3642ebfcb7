/* A few rows only (a streaming step): the weights are read once, as they lie, by dot products along their rows. Every sum
 * runs over the lanes in the same order, whichever tile it falls in: a row's results do not depend on the other rows. */

/* The rows that enter a step: x and h, where they are there. */
typedef struct {
    size_t rows;
    const T *x, *h;
    size_t ldx, ldh;
} step_input;

/* Weights that a step is likely to find in memory rather than in the third level, of which the neighbours may leave little. The
 * hardware follows a row of weights, but not from the rows of one gate to those of the next: what comes next is asked for.
 * Steps of an LSTM of 900 units (26 MB), one thread and two: 1 row 1.3 to 1.8 and 1.0 to 1.6 times as fast, 3 rows 1.3 to 1.7
 * and 1.0 to 1.6, 6 rows 1.4 to 1.6 and 1.1 to 1.5, 8 to 16 rows 1.01 to 1.08. Asking for what is near costs 5 to 20 %, but a
 * whole tile of 4 to 6 rows, which has something to do meanwhile, 0 to 4 % (one gate 6 %: all its rows follow each other). */
#define FAR_BYTES ((size_t)18 << 20)
#define FAR_BYTES_OF_A_TILE ((size_t)8 << 20) /* for each thread */
static int weights_are_far(const run_state *s, const step_input *in, size_t input)
{
    size_t rows = (size_t)s->shape.gates * s->H, bytes = rows * ((in->x ? input : 0) + (in->h ? s->H : 0)) * sizeof(T);
    int tile = s->shape.gates > 1 && in->rows > PAIRED_ROWS && in->rows <= DOT_ROWS;
    return tile ? bytes / (size_t)s->plan.threads > FAR_BYTES_OF_A_TILE : bytes > FAR_BYTES;
}

/* Rows of weights from the p-th product of a vector of units to what comes after it, or would after the last of all. */
static ptrdiff_t rows_to_next(const run_state *s, const cell_product *product, int p, int backwards)
{
    int last = product->gates - 1, here = backwards ? last - p : p;
    int next = p < last ? here + (backwards ? -1 : 1) : backwards ? last : 0;
    ptrdiff_t units = p < last ? 0 : backwards ? -VW : VW;
    return ((ptrdiff_t)product->gate[next] - product->gate[here]) * (ptrdiff_t)s->H + units;
}

/* Gate pre-activations: slot += W_ih x (where x enters that slot) + W_hh h. */
NOINLINE void small_product(const run_state *s, const layer_run *run, const cell_product *product, T *gates,
                            const step_input *in, size_t u0, size_t u1, int backwards)
{
    T x_last[SMALL_ROWS * VW], h_last[SMALL_ROWS * VW];
    size_t H = s->H, K = run->input, rows = (size_t)s->shape.gates * H;
    for (size_t i = 0; i < in->rows; i++) {
        if (in->x) last_vector(x_last + i * VW, in->x + i * in->ldx, K);
        if (in->h) last_vector(h_last + i * VW, in->h + i * in->ldh, H);
    }
    const int far = weights_are_far(s, in, K);
    for (size_t n = u0; n < u1; n++) {
        size_t u = backwards ? u1 - 1 - (n - u0) : n;
        size_t valid = H - u * VW < VW ? H - u * VW : VW;
        for (int p = 0; p < product->gates; p++) {
            int q = backwards ? product->gates - 1 - p : p;
            size_t row = (size_t)product->gate[q] * H + u * VW;
            ptrdiff_t then = far ? rows_to_next(s, product, p, backwards) : 0;
            dot_source h = {run->whh + row * H, H, H, (rows - row) * H, in->h, in->ldh, h_last};
            dot_source x = {run->wih + row * K, K, K, (rows - row) * K, in->x, in->ldx, x_last};
            T *out = gates + (size_t)product->slot[q] * s->Hp + u * VW;
            if (product->slot[q] != product->gate[q]) { /* GRU, reset after: the candidate's two products stay apart */
                dot_source none = x;
                none.v = NULL;
                if (in->rows == 1 && !far) dot_row(h, none, valid, out);
                else dot_columns(h, none, in->rows, valid, out, s->ldg, then);
                h.v = NULL;
                out = gates + (size_t)product->gate[q] * s->Hp + u * VW;
            }
            if (in->rows == 1 && !far) dot_row(h, x, valid, out);
            else dot_columns(h, x, in->rows, valid, out, s->ldg, then);
        }
    }
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
    size_t row = (size_t)s->offsets[t] + i0, before = state_row_before(s, t) + i0, col = u0 * VW;
    T *gates = run->gates + (row - gate_base) * s->ldg;
    step_input in = {.rows = hi - i0, .x = x ? x + row * ldx : NULL, .ldx = ldx};
    in.h = candidate ? gates + 3 * s->Hp : run->h + before * s->ldh;
    in.ldh = candidate ? s->ldg : s->ldh;
    if (t == 0 && s->zero_start) in.h = NULL;
    small_product(s, run, product, gates, &in, u0, u1, backwards);
    size_t prev = before * s->ldh + col, next = (s->B + row) * s->ldh + col, next_c = s->stepping ? prev : next;
    forward_patch patch = {gates + col, s->ldg, s->Hp, run->h + prev, run->c ? run->c + prev : NULL, run->h + next,
                           run->c ? run->c + next_c : NULL, s->ldh};
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
