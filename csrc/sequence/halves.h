/* A batch of narrow layers as two batches, each with a half of the rows and memory of its own, so that threads write no line which
 * another one has read: that takes 9 ns a line, as long as the arithmetic for it where layers are narrow (two near cores, batch 20,
 * T 35, forward and backward: RNN of 32 units 1.33, GRU 1.20, LSTM 1.14, RNN of 64 units 1.14 times as fast as all threads in one batch).
 * Gradients of weights are two sums then, so what is halved may not depend on the number of threads. */

#define HALF_LEAST 4    /* sequences */
#define HALF_WEIGHTS 40 /* at most so many for each element of a row: there is enough arithmetic for others */
#define HALF_ROWS 8     /* elements of rows, at least, for each weight, whose gradients are added up in the end */
#define HALF_WORK 100000 /* multiply-adds of forward, at least */

/* The sequences that the first half takes; 0: the batch stays whole. */
static size_t first_half(const crnn_stack *stack, const crnn_batch *batch, const crnn_forward_args *args)
{
    const cell_shape shape = shape_of(stack);
    const size_t B = batch->batch, H = stack->hidden, I = stack->input, R = (size_t)batch->offsets[batch->steps];
    const size_t GH = (size_t)shape.gates * H, weights = GH * ((I > H ? I : H) + H);
    const size_t row = I + 2 * H + 2 * (size_t)shape.slots * H;
    if (stack->directions > 1 || stack->onehot || args->masks || B < 2 * HALF_LEAST || batch->steps < 2) return 0;
    if (weights > HALF_WEIGHTS * row || R * row < HALF_ROWS * weights || R * weights < HALF_WORK) return 0;
    size_t rows = 0, n = 0;
    for (size_t t = batch->steps; n < B; n++) {
        while (t && (size_t)(batch->offsets[t] - batch->offsets[t - 1]) <= n) t--;
        if (2 * rows + t > R) break; /* the middle row belongs to sequence n or to one before */
        rows += t;
    }
    return n < HALF_LEAST || B - n < HALF_LEAST ? 0 : n;
}

/* Half of a batch: its own offsets, and arrays for what callers have for all sequences. */
typedef struct {
    size_t first; /* of the whole batch's sequences */
    crnn_batch batch;
    const crnn_batch *whole;
    T *states[4], *rows_in, *rows_out; /* rows: packed ones that the caller has or wants, or null */
    int64_t bad;
} half_batch;

/* in, out: widths of packed rows, or 0. */
static void lay_out_half(arena *a, half_batch *half, const crnn_stack *stack, const crnn_batch *whole, size_t first, size_t count,
                         size_t in, size_t out)
{
    int64_t *offsets = TAKE(a, int64_t, whole->steps + 1);
    const size_t rows = (size_t)whole->offsets[whole->steps];
    half->first = first;
    half->whole = whole;
    half->bad = -1;
    for (int i = 0; i < 4; i++) half->states[i] = TAKE(a, T, stack->layers * count * stack->hidden);
    half->rows_in = in ? TAKE(a, T, rows * in) : NULL;
    half->rows_out = out ? TAKE(a, T, rows * out) : NULL;
    if (!a->base) return;
    half->batch = (crnn_batch){count, 0, offsets};
    offsets[0] = 0;
    for (size_t t = 0; t < whole->steps; t++) {
        const size_t n = (size_t)(whole->offsets[t + 1] - whole->offsets[t]), own = n < first ? 0 : n - first;
        if (own == 0) break;
        offsets[t + 1] = offsets[t] + (int64_t)(own < count ? own : count);
        half->batch.steps = t + 1;
    }
}

static void lay_out_both(arena *a, half_batch *half, const crnn_stack *stack, const crnn_batch *batch, size_t middle, size_t in,
                         size_t out)
{
    lay_out_half(a, half, stack, batch, 0, middle, in, out);
    lay_out_half(a, half + 1, stack, batch, middle, batch->batch - middle, in, out);
}

/* Between (state_rows, B, width) of the whole and of a half: its own array, or null where the caller has none. */
static T *states_of_half(const half_batch *half, int which, const void *from, size_t state_rows, size_t width)
{
    const size_t n = half->batch.batch * width;
    for (size_t q = 0; from && q < state_rows; q++)
        memcpy(half->states[which] + q * n, (const T *)from + (q * half->whole->batch + half->first) * width, n * sizeof(T));
    return from ? half->states[which] : NULL;
}

static void give_states(const half_batch *half, int which, void *to, size_t state_rows, size_t width)
{
    const size_t n = half->batch.batch * width;
    for (size_t q = 0; to && q < state_rows; q++)
        memcpy((T *)to + (q * half->whole->batch + half->first) * width, half->states[which] + q * n, n * sizeof(T));
}

/* Packed rows of the whole, as a half has them. */
static T *rows_of_half(const half_batch *half, const T *whole, size_t width)
{
    T *own = half->rows_in;
    for (size_t t = 0; own && t < half->batch.steps; t++) {
        const size_t at = (size_t)half->batch.offsets[t], n = (size_t)half->batch.offsets[t + 1] - at;
        memcpy(own + at * width, whole + ((size_t)half->whole->offsets[t] + half->first) * width, n * width * sizeof(T));
    }
    return own;
}

static void give_rows(const half_batch *half, T *whole, size_t width)
{
    const T *own = half->rows_out;
    for (size_t t = 0; own && t < half->batch.steps; t++) {
        const size_t at = (size_t)half->batch.offsets[t], n = (size_t)half->batch.offsets[t + 1] - at;
        memcpy(whole + ((size_t)half->whole->offsets[t] + half->first) * width, own + at * width, n * width * sizeof(T));
    }
}

/* The packed row of the whole that is `row` of a half, -1 for -1. */
static int64_t row_of_whole(const half_batch *half, int64_t row)
{
    size_t t = 0;
    if (row < 0) return row;
    while (half->batch.offsets[t + 1] <= row) t++;
    return half->whole->offsets[t] + (int64_t)half->first + row - half->batch.offsets[t];
}

static crnn_view view_of_half(const half_batch *half, crnn_view view)
{
    if (view.sequences) view.sequences += half->first;
    return view;
}

/* What is added up when both are done: elements of the second half's gradients onto the first one's. */
typedef struct {
    T *to;
    const T *from;
    size_t count;
} half_sum;

typedef struct {
    crnn_work work;
    void *contexts[2];
    int threads; /* of both */
    const half_sum *sums;
    size_t sum_count;
} halves_job;

static void halves_work(void *context, int rank, crnn_team *team)
{
    const halves_job *job = context;
    const int size = crnn_team_size(team);
    if (size > 1 && size == job->threads) {
        int own = rank;
        crnn_team *half = crnn_half(team, &own);
        job->work(job->contexts[rank & 1], own, half);
    } else { /* one after the other */
        for (int i = 0; i < 2; i++) {
            job->work(job->contexts[i], rank, team);
            crnn_barrier(team);
        }
    }
    if (!job->sum_count) return;
    crnn_barrier(team);
    for (const half_sum *sum = job->sums; sum < job->sums + job->sum_count; sum++) {
        size_t lo, hi;
        crnn_share(sum->count, CRNN_LINE / sizeof(T), rank, size, &lo, &hi);
        add_rows_to(sum->to + lo, sum->from + lo, 1, hi - lo);
    }
}

/* Threads for a batch in halves, an even number or one. */
static size_t threads_of_halves(const crnn_stack *stack, const crnn_batch *batch)
{
    const run_state s = {.shape = shape_of(stack), .R = (size_t)batch->offsets[batch->steps], .H = stack->hidden, .L = stack->layers};
    const size_t most = (size_t)crnn_get_threads() & ~(size_t)1;
    const double flops = flops_of(&s, stack->input);
    if (most < 2 || flops < 1e5) return 1;
    return flops < fmax(2e5, 2e12 * crnn_handover((int)most)) ? 1 : most;
}

static crnn_status forward_halves(const crnn_stack *stack, const crnn_batch *batch, const crnn_forward_args *args, size_t middle,
                                  size_t threads, crnn_tape **tape)
{
    const size_t L = stack->layers, H = stack->hidden;
    half_batch half[2];
    forward_call calls[2];
    run_state *run[2] = {NULL, NULL};
    arena measure = {0};
    const size_t in = args->x ? stack->input : 0, out = args->y ? H : 0;
    lay_out_both(&measure, half, stack, batch, middle, in, out);
    char *block = measure.overflow ? NULL : crnn_allocate(measure.used);
    crnn_status status = block ? CRNN_OK : CRNN_NOMEM;
    arena place = {.base = block};
    if (block) lay_out_both(&place, half, stack, batch, middle, in, out);
    for (int i = 0; i < 2 && status == CRNN_OK; i++) {
        crnn_forward_args own = *args;
        own.x = rows_of_half(half + i, args->x, stack->input);
        own.y = half[i].rows_out;
        own.x_view = view_of_half(half + i, args->x_view);
        own.y_view = view_of_half(half + i, args->y_view);
        own.bad = &half[i].bad;
        own.h0 = states_of_half(half + i, 0, args->h0, L, H);
        own.c0 = states_of_half(half + i, 1, args->c0, L, H);
        own.h_n = args->h_n ? half[i].states[2] : NULL;
        own.c_n = args->c_n ? half[i].states[3] : NULL;
        status = prepare(stack, &half[i].batch, &own, tape != NULL, threads, run + i);
        if (status == CRNN_OK) start_forward(run[i], &own, calls + i);
    }
    if (status == CRNN_OK) {
        const halves_job job = {.work = forward_work, .contexts = {calls, calls + 1}, .threads = (int)threads};
        crnn_parallel((int)threads, run[0]->plan.brief, halves_work, (void *)&job);
        for (int i = 0; i < 2; i++) {
            finish_forward(calls + i);
            give_rows(half + i, args->y, H);
            give_states(half + i, 2, args->h_n, L, H);
            give_states(half + i, 3, args->c_n, L, H);
        }
        const int64_t bad[2] = {row_of_whole(half, half[0].bad), row_of_whole(half + 1, half[1].bad)};
        if (args->bad) *args->bad = first_bad(bad, 2);
    }
    if (status == CRNN_OK && tape) {
        run[0]->head.other = &run[1]->head;
        *tape = &run[0]->head;
    } else {
        crnn_release(run[1]);
        crnn_release(run[0]);
    }
    crnn_release(block);
    return status;
}

/* Everything of a backward call in halves, in one block. */
typedef struct {
    half_batch half[2];
    crnn_weights *grads; /* of the second half */
    half_sum *sums;
    size_t sum_count;
} halves_back;

/* Room for the second half's gradient of a tensor that the caller wants. */
static void *half_gradient(arena *a, halves_back *back, void *wanted, size_t count)
{
    if (!wanted) return NULL;
    T *own = TAKE(a, T, count);
    if (a->base) back->sums[back->sum_count++] = (half_sum){wanted, own, count};
    return own;
}

static void lay_out_halves(arena *a, halves_back *back, const crnn_stack *stack, const crnn_batch *batch,
                           const crnn_backward_args *args, size_t middle)
{
    const size_t L = stack->layers, H = stack->hidden, GH = (size_t)shape_of(stack).gates * H;
    back->sums = TAKE(a, half_sum, 4 * L);
    back->sum_count = 0;
    crnn_weights *grads = TAKE(a, crnn_weights, L);
    back->grads = args->grads ? grads : NULL;
    lay_out_both(a, back->half, stack, batch, middle, args->dy ? H : 0, args->dx ? stack->input : 0);
    for (size_t l = 0; args->grads && l < L; l++) {
        const crnn_weights *wanted = args->grads + l;
        const crnn_weights own = {.weight_ih = half_gradient(a, back, wanted->weight_ih, GH * (l ? H : stack->input)),
                                  .weight_hh = half_gradient(a, back, wanted->weight_hh, GH * H),
                                  .bias_ih = half_gradient(a, back, wanted->bias_ih, GH),
                                  .bias_hh = half_gradient(a, back, wanted->bias_hh, GH)};
        if (a->base) grads[l] = own;
    }
}

static crnn_status backward_halves(const crnn_stack *stack, const crnn_batch *batch, const run_state *first, const run_state *second,
                                   const crnn_backward_args *args)
{
    const size_t L = stack->layers, H = stack->hidden, middle = first->B;
    const run_state *run[2] = {first, second};
    halves_back back;
    crnn_backward_args own[2];
    backward_call calls[2];
    char *blocks[2] = {NULL, NULL};
    arena measure = {0};
    lay_out_halves(&measure, &back, stack, batch, args, middle);
    char *block = measure.overflow ? NULL : crnn_allocate(measure.used);
    crnn_status status = block ? CRNN_OK : CRNN_NOMEM;
    arena place = {.base = block};
    if (block) lay_out_halves(&place, &back, stack, batch, args, middle);
    for (int i = 0; i < 2 && status == CRNN_OK; i++) {
        half_batch *half = back.half + i;
        own[i] = *args;
        own[i].dy_view = view_of_half(half, args->dy_view);
        own[i].dx_view = view_of_half(half, args->dx_view);
        own[i].bad = &half->bad;
        own[i].dh_n = states_of_half(half, 0, args->dh_n, L, H);
        own[i].dc_n = states_of_half(half, 1, args->dc_n, L, H);
        own[i].dh0 = args->dh0 ? half->states[2] : NULL;
        own[i].dc0 = args->dc0 ? half->states[3] : NULL;
        own[i].dy = rows_of_half(half, args->dy, H);
        own[i].dx = half->rows_out;
        if (i) own[i].grads = back.grads, own[i].accumulate = 0;
        status = start_backward(run[i], stack, own + i, calls + i, blocks + i);
    }
    if (status == CRNN_OK) {
        const int threads = run[0]->plan.halves;
        const halves_job job = {backward_work, {calls, calls + 1}, threads, back.sums, back.sum_count};
        crnn_parallel(threads, run[0]->plan.brief, halves_work, (void *)&job);
        for (int i = 0; i < 2; i++) {
            finish_backward(calls + i);
            give_states(back.half + i, 2, args->dh0, L, H);
            give_states(back.half + i, 3, args->dc0, L, H);
            give_rows(back.half + i, args->dx, stack->input);
        }
        const int64_t bad[2] = {row_of_whole(back.half, back.half[0].bad), row_of_whole(back.half + 1, back.half[1].bad)};
        if (args->bad) *args->bad = first_bad(bad, 2);
    }
    crnn_release(blocks[1]);
    crnn_release(blocks[0]);
    crnn_release(block);
    return status;
}

static crnn_status kernel_forward(const crnn_stack *stack, const crnn_batch *batch, const crnn_forward_args *args,
                                  crnn_tape **tape)
{
    const size_t middle = first_half(stack, batch, args), threads = middle ? threads_of_halves(stack, batch) : 1;
    /* Results of inference are the same either way. */
    if (middle && (tape || (threads > 1 && args->x_view.sequences && !args->y))) return forward_halves(stack, batch, args, middle, threads, tape);
    run_state *s;
    forward_call call;
    crnn_status status = prepare(stack, batch, args, tape != NULL, 0, &s);
    if (status != CRNN_OK) return status;
    start_forward(s, args, &call);
    crnn_parallel(s->plan.threads, s->plan.brief, forward_work, &call);
    finish_forward(&call);
    if (tape) *tape = &s->head;
    else crnn_release(s);
    return CRNN_OK;
}

static crnn_status kernel_backward(const crnn_stack *stack, const crnn_batch *batch, const crnn_tape *tape,
                                   const crnn_backward_args *args)
{
    const run_state *s = (const run_state *)tape;
    if (tape->other) return backward_halves(stack, batch, s, (const run_state *)tape->other, args);
    backward_call call;
    char *block;
    crnn_status status = start_backward(s, stack, args, &call, &block);
    if (status != CRNN_OK) return status;
    crnn_parallel(s->plan.threads, s->plan.brief, backward_work, &call);
    finish_backward(&call);
    crnn_release(block);
    return CRNN_OK;
}
