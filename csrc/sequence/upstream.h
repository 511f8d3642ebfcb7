/* Gradients that enter a layer's states from outside its own loop: from the layer above or the caller, step by step, and at
 * the end of a sequence. */

/* Rows of one step: row i at at + i * ld. */
typedef struct {
    const T *at; /* null: none */
    size_t ld;
} step_rows;

INLINE int is_gru(const run_state *s) { return s->shape.recurrent.gates != s->shape.slots; }
INLINE int is_top(const run_state *s, size_t q) { return q + s->D >= s->L * s->D; }

/* Does anything come from above at step t? loss_lo: first step whose loss counts. */
INLINE int has_upstream(const backward_call *call, size_t q, size_t t, size_t loss_lo)
{
    if (!is_top(call->s, q)) return call->args->truncation != CRNN_WINDOW; /* pass by pass (window.h) */
    return t >= loss_lo && (call->args->dy || call->args->dy_view.sequences);
}

/* Sequence i's gradient at step t, both in the direction's own order. Of a view nobody knows how it is aligned. */
INLINE const char *upstream_row(const backward_call *call, size_t q, size_t t, size_t i)
{
    const run_state *s = call->s;
    const crnn_backward_args *args = call->args;
    const int reversed = s->layers[q].reversed;
    const size_t e = reversed ? s->H : 0;
    if (is_top(s, q) && args->dy_view.sequences) return view_row(s, &args->dy_view, reversed, t, i) + e * sizeof(T);
    const size_t row = flipped(s, reversed, (size_t)s->offsets[t] + i);
    return (const char *)(is_top(s, q) ? (const T *)args->dy + row * s->D * s->H + e : call->dx + row * call->ldx + e);
}

/* Directions may be walked by two threads with the same rank. */
INLINE int64_t *bad_of(const backward_call *call, size_t q, int rank)
{
    return call->bad + q % call->s->D * (size_t)call->s->plan.threads + (size_t)rank;
}

/* Columns from `first` on of that row, `width` of them. */
INLINE void take_upstream(const backward_call *call, size_t q, size_t t, size_t i, size_t first, size_t width, T *to, int rank)
{
    const run_state *s = call->s;
    const char *from = upstream_row(call, q, t, i) + first * sizeof(T);
    const size_t row = flipped(s, s->layers[q].reversed, (size_t)s->offsets[t] + i);
    if (is_top(s, q)) {
        memcpy(to, from, width * sizeof(T));
        if (call->args->dy_view.sequences && !kernel_all_finite(to, width)) note_bad(bad_of(call, q, rank), row);
        return;
    }
    const T *dx = (const T *)(const void *)from;
    const T *mask = s->masks ? s->masks + (q / s->D * s->R + row) * s->D * s->H + q % s->D * s->H + first : NULL;
    for (size_t k = 0; k < width; k++) to[k] = mask ? dx[k] * mask[k] : dx[k];
}

/* Elements from one sequence's rows to the next one's, where they are the same for all; else 0. */
static size_t even_rows(const crnn_view *view, size_t sequences)
{
    if (!view->sequences || view->step % (ptrdiff_t)sizeof(T)) return 0;
    const uintptr_t first = (uintptr_t)view->sequences[0], size = sizeof(T);
    const uintptr_t apart = sequences > 1 ? (uintptr_t)view->sequences[1] - first : size;
    for (size_t i = 1; i < sequences; i++)
        if ((uintptr_t)view->sequences[i] != first + i * apart) return 0;
    return first % size == 0 && apart % size == 0 && (intptr_t)apart > 0 ? apart / size : 0;
}

/* The same of a layer's upstream gradient; 0 as well where it must be copied before the loop (start_rows) or masked. */
static size_t upstream_ld(const backward_call *call, size_t q)
{
    const run_state *s = call->s;
    if (s->layers[q].reversed && !s->dense) return 0;
    if (!is_top(s, q)) return s->D == 1 && !s->masks ? call->ldx : 0;
    return call->args->dy_view.sequences ? call->view_ld : s->D * s->H;
}

/* Kernels read rows to the end of a vector (a GRU's cell) or of half a one (products). May they, although another row or the
 * caller's own data begins before? What they take from there ends up in columns that nobody reads. Every row that is read has
 * one of its sequence, one step later, behind it: the last ones are copied (time_loop). */
static int rows_overlap(const backward_call *call, size_t q)
{
    const run_state *s = call->s;
    const crnn_view *view = &call->args->dy_view;
    if (s->layers[q].reversed || s->H < VW) return 0;
    return !is_top(s, q) || !view->sequences || view->step >= (ptrdiff_t)(s->H * sizeof(T));
}

/* Is it read where it lies, step by step, or copied before the loop into dh, which then has a row for every step? Few rows repay
 * the copying, which brings them near. */
static int upstream_lies(const backward_call *call, size_t q)
{
    const run_state *s = call->s;
    const size_t unit = HALVES && !is_gru(s) ? VW / 2 : VW;
    return s->B >= 2 * FETCH_ROWS && upstream_ld(call, q) && (s->H % unit == 0 || rows_overlap(call, q));
}

/* Row of step t of sequence i begins with what does not come through the recurrent product. Units [u0, u1). */
INLINE void start_row(const backward_call *call, size_t q, size_t t, size_t loss_lo, size_t i, size_t u0, size_t u1, T *row,
                      int rank)
{
    const run_state *s = call->s;
    const size_t first = u0 * VW, last = u1 * VW < s->H ? u1 * VW : s->H;
    const int above = has_upstream(call, q, t, loss_lo);
    const T *dh_n = s->length[i] == t + 1 && t >= loss_lo ? call->args->dh_n : NULL;
    if (above) take_upstream(call, q, t, i, first, last - first, row + first, rank);
    memset(row + (above ? last : first), 0, (u1 * VW - (above ? last : first)) * sizeof(T));
    for (size_t k = first; dh_n && k < last; k++) row[k] += dh_n[(q * s->B + i) * s->H + k];
}

/* What comes from above at step t of the sequences [i0, i1), from unit u0 on, where it lies. */
static step_rows upstream_of_step(const backward_call *call, size_t q, size_t t, size_t loss_lo, size_t i0, size_t i1,
                                  size_t u0, size_t u1, int rank)
{
    const run_state *s = call->s;
    if (i0 >= i1 || !has_upstream(call, q, t, loss_lo)) return (step_rows){0};
    const size_t ld = upstream_ld(call, q), last = u1 * VW < s->H ? u1 * VW : s->H;
    const T *at = (const T *)(const void *)upstream_row(call, q, t, i0) + u0 * VW;
    for (size_t i = i0; i < i1 && is_top(s, q) && call->view_ld; i++)
        if (!kernel_all_finite(at + (i - i0) * ld, last - u0 * VW))
            note_bad(bad_of(call, q, rank), flipped(s, s->layers[q].reversed, (size_t)s->offsets[t] + i));
    return (step_rows){at, ld};
}
