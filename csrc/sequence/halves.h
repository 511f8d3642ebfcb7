/* A batch of narrow layers as two batches, each with a half of the rows and memory of its own, so that threads write no line which
 * another one has read: that takes 9 ns a line, as long as the arithmetic for it where layers are narrow (batch 20, T 35, forward
 * and backward, two near cores: RNN of 32 units 1.33, of 64 units 1.14, of 128 units 1.04 times as fast as all threads in one batch;
 * of 128 units between far cores 1.2. On Zen 5, of 200 units: near 1.02, far 1.21, GRU 1.02 and 1.16, LSTM 1.02 and 1.11). Gradients of
 * weights are two sums then, so what is halved may not depend on the number of threads; one thread, which packs the weights once for
 * both, loses 0 to 8 % (200 units: 1 to 2). Wider layers, whose weights the threads share out between their second levels, lose 0 to 7 %
 * near and gain 1 to 8 far. */

#define HALF_LEAST 4    /* sequences */
#define HALF_WEIGHTS 45 /* at most so many for each element of a row, and each sequence of a half but one, */
#define HALF_SHARE 4    /* of which so many count: beyond, there is enough arithmetic for others */
#define HALF_ROWS 2     /* elements of rows, at least, for each weight: gradients are added up in the end */
#define HALF_WORK 100000 /* multiply-adds of forward, at least */

/* The sequences that the first half takes; 0: the batch stays whole. */
static size_t first_half(const crnn_stack *stack, const crnn_batch *batch, int masked)
{
    const cell_shape shape = shape_of(stack);
    const size_t B = batch->batch, H = stack->hidden, I = stack->input, R = (size_t)batch->offsets[batch->steps];
    const size_t GH = (size_t)shape.gates * H, weights = GH * ((I > H ? I : H) + H);
    const size_t row = I + 2 * H + 2 * (size_t)(shape.slots + shape.candidate.gates) * H;
    if (stack->directions > 1 || stack->onehot || masked || B < 2 * HALF_LEAST || batch->steps < 2) return 0;
    const size_t share = B / 2 - 1 < HALF_SHARE ? B / 2 - 1 : HALF_SHARE;
    if (weights > HALF_WEIGHTS * share * row || R * row < HALF_ROWS * weights || R * weights < HALF_WORK) return 0;
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
    T *states[4];
    void **in, **out;      /* where sequences begin in packed rows, if they are equally long; */
    T *rows_in, *rows_out; /* otherwise their copies; null where the caller has or wants none */
    int64_t bad;
} half_batch;

static int equally_long(const crnn_batch *batch) { return (size_t)batch->offsets[batch->steps] == batch->batch * batch->steps; }

/* From one half's memory to the other's: beyond what the hardware fetches ahead. */
#define HALVES_APART ((size_t)4096)

/* What the caller has and wants: widths of packed rows, or 0, and states, or null. */
typedef struct {
    size_t in, out;
    const void *states[4];
} half_needs;

static void lay_out_half(arena *a, half_batch *half, const crnn_stack *stack, const crnn_batch *whole, size_t first, size_t count,
                         const half_needs *needs)
{
    int64_t *offsets = TAKE(a, int64_t, whole->steps + 1);
    const size_t rows = (size_t)whole->offsets[whole->steps];
    const int even = equally_long(whole);
    half->first = first;
    half->whole = whole;
    half->bad = -1;
    for (int i = 0; i < 4; i++) half->states[i] = needs->states[i] ? TAKE(a, T, stack->layers * count * stack->hidden) : NULL;
    half->in = needs->in && even ? TAKE(a, void *, count) : NULL;
    half->out = needs->out && even ? TAKE(a, void *, count) : NULL;
    half->rows_in = needs->in && !even ? TAKE(a, T, rows * needs->in) : NULL;
    half->rows_out = needs->out && !even ? TAKE(a, T, rows * needs->out) : NULL;
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

static void lay_out_both(arena *a, half_batch *half, const crnn_stack *stack, const crnn_batch *batch, size_t middle,
                         const half_needs *needs)
{
    lay_out_half(a, half, stack, batch, 0, middle, needs);
    take(a, HALVES_APART, 1);
    lay_out_half(a, half + 1, stack, batch, middle, batch->batch - middle, needs);
}

/* (L, B, H) of the whole to a half's own, and back. */
static void take_states(const half_batch *half, int which, const void *from, const crnn_stack *stack)
{
    const size_t width = stack->hidden, n = half->batch.batch * width;
    for (size_t l = 0; from && l < stack->layers; l++)
        memcpy(half->states[which] + l * n, (const T *)from + (l * half->whole->batch + half->first) * width, n * sizeof(T));
}

static void give_states(const half_batch *half, int which, void *to, const crnn_stack *stack)
{
    const size_t width = stack->hidden, n = half->batch.batch * width;
    for (size_t l = 0; to && l < stack->layers; l++)
        memcpy((T *)to + (l * half->whole->batch + half->first) * width, half->states[which] + l * n, n * sizeof(T));
}

/* Sequences of the whole that are the half's: the caller's, or steps of packed rows, in `starts`. */
static crnn_view view_of_half(const half_batch *half, crnn_view view, const void *packed, size_t width, void **starts)
{
    if (view.sequences) view.sequences += half->first;
    if (view.sequences || !starts) return view;
    for (size_t i = 0; i < half->batch.batch; i++) starts[i] = (T *)packed + (half->first + i) * width;
    return (crnn_view){starts, (ptrdiff_t)(half->whole->batch * width * sizeof(T)), 0};
}

/* Packed rows of the whole to a half's own, and back, where it has some. */
static void take_rows_of_half(const half_batch *half, const T *whole, size_t width)
{
    for (size_t t = 0; half->rows_in && t < half->batch.steps; t++) {
        const size_t at = (size_t)half->batch.offsets[t], n = (size_t)half->batch.offsets[t + 1] - at;
        memcpy(half->rows_in + at * width, whole + ((size_t)half->whole->offsets[t] + half->first) * width, n * width * sizeof(T));
    }
}

static void give_rows_of_half(const half_batch *half, T *whole, size_t width)
{
    for (size_t t = 0; half->rows_out && t < half->batch.steps; t++) {
        const size_t at = (size_t)half->batch.offsets[t], n = (size_t)half->batch.offsets[t + 1] - at;
        memcpy(whole + ((size_t)half->whole->offsets[t] + half->first) * width, half->rows_out + at * width, n * width * sizeof(T));
    }
}

/* The first row of the whole that is not finite, or -1, where the caller's sequences were looked at. */
static void tell_bad(int64_t *bad, const half_batch *half, const crnn_view *looked_at)
{
    int64_t rows[2] = {-1, -1};
    for (int i = 0; i < 2 && looked_at->sequences; i++, half++) {
        size_t t = 0;
        if (half->bad < 0) continue;
        while (half->batch.offsets[t + 1] <= half->bad) t++;
        rows[i] = half->whole->offsets[t] + (int64_t)half->first + half->bad - half->batch.offsets[t];
    }
    if (bad) *bad = first_bad(rows, 2);
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
    int *alone;  /* becomes 1 where one thread does both */
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
        if (size == 1) *job->alone = 1;
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
    if (most < 2 || flops < 2e5) return 1;
    return flops < fmax(2e5, 5e11 * crnn_handover((int)most)) ? 1 : most;
}

static size_t apart(size_t bytes) { return bytes && bytes < SIZE_MAX - 2 * HALVES_APART ? round_up(bytes + HALVES_APART, CRNN_LINE) : 0; }

/* A half's forward call. What comes before and after it is its own threads' work too: they read and write the same lines again. */
typedef struct {
    forward_call call;
    half_batch *half;
    const crnn_stack *stack;
    const crnn_forward_args *whole;
    crnn_forward_args own;
    run_state plan, *run;
    char *block;
    size_t bytes;
    const int *alone;
} half_forward;

/* The half that one thread takes first has packed the weights; work[1] is the other. */
static void share_packs_forward(half_forward *work)
{
    const run_state *first = work[0].run, *second = work[1].run;
    for (size_t q = 0; q < second->L * second->D; q++) {
        const layer_run *from = first->layers + q;
        layer_run *to = second->layers + q;
        if (!from->pack_ih != !to->pack_ih || !from->pack_hh != !to->pack_hh || input_in_rooms(first) != input_in_rooms(second)) continue;
        to->pack_ih = from->pack_ih, to->pack_hh = from->pack_hh, to->pack_n = from->pack_n;
        to->packed = 1;
    }
}

static void half_forward_work(void *context, int rank, crnn_team *team)
{
    half_forward *f = context;
    const crnn_forward_args *whole = f->whole;
    if (rank == 0) {
        take_rows_of_half(f->half, whole->x, f->stack->input);
        take_states(f->half, 0, whole->h0, f->stack);
        take_states(f->half, 1, whole->c0, f->stack);
        f->run = place_run(&f->plan, f->bytes, f->block, f->stack, &f->own);
        if (*f->alone && f->half->first) share_packs_forward(f - 1);
        start_forward(f->run, &f->own, &f->call);
    }
    crnn_barrier(team);
    forward_work(&f->call, rank, team);
    crnn_barrier(team);
    if (rank > 0) return;
    finish_forward(&f->call);
    give_rows_of_half(f->half, whole->y, f->stack->hidden);
    give_states(f->half, 2, whole->h_n, f->stack);
    give_states(f->half, 3, whole->c_n, f->stack);
}

static crnn_status forward_halves(const crnn_stack *stack, const crnn_batch *batch, const crnn_forward_args *args, size_t middle,
                                  crnn_tape **tape)
{
    const size_t threads = threads_of_halves(stack, batch);
    const int blas = crnn_blas_wanted();
    const T *x = args->x_view.sequences ? NULL : args->x;
    T *y = args->y_view.sequences ? NULL : args->y;
    const half_needs needs = {x ? stack->input : 0, y ? stack->hidden : 0, {args->h0, args->c0, args->h_n, args->c_n}};
    half_batch half[2];
    half_forward work[2];
    int alone = 0;
    arena measure = {0};
    lay_out_both(&measure, half, stack, batch, middle, &needs);
    char *room = measure.overflow ? NULL : crnn_allocate(measure.used), *block = NULL;
    if (!room) return CRNN_NOMEM;
    arena place = {.base = room};
    lay_out_both(&place, half, stack, batch, middle, &needs);
    for (int i = 0; i < 2; i++) {
        crnn_forward_args *own = &work[i].own;
        work[i].half = half + i, work[i].stack = stack, work[i].whole = args, work[i].alone = &alone;
        *own = *args;
        own->x_view = view_of_half(half + i, args->x_view, x, stack->input, half[i].in);
        own->y_view = view_of_half(half + i, args->y_view, y, stack->hidden, half[i].out);
        own->x = half[i].rows_in;
        own->y = half[i].rows_out;
        own->bad = &half[i].bad;
        own->h0 = half[i].states[0], own->c0 = half[i].states[1];
        own->h_n = half[i].states[2], own->c_n = half[i].states[3];
        work[i].bytes = apart(plan_run(&work[i].plan, stack, &half[i].batch, own, tape != NULL, threads, blas));
    }
    const size_t first = work[0].bytes, both = first + work[1].bytes;
    if (first && both > first) block = crnn_allocate(both);
    if (!block) {
        crnn_release(room);
        return CRNN_NOMEM;
    }
    work[0].block = block, work[1].block = block + first;
    work[0].bytes = both; /* of the tape that is the caller's */
    const halves_job job = {.work = half_forward_work, .contexts = {work, work + 1}, .threads = (int)threads, .alone = &alone};
    crnn_parallel((int)threads, work[0].plan.plan.brief, halves_work, (void *)&job);
    tell_bad(args->bad, half, &args->x_view);
    work[0].run->head.other = &work[1].run->head;
    if (tape) *tape = &work[0].run->head;
    else crnn_release(block);
    crnn_release(room);
    return CRNN_OK;
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

static void lay_out_halves(arena *a, halves_back *back, const crnn_stack *stack, const crnn_batch *batch, const crnn_weights *wanted,
                           size_t middle, const half_needs *needs)
{
    const size_t L = stack->layers, H = stack->hidden, GH = (size_t)shape_of(stack).gates * H;
    lay_out_both(a, back->half, stack, batch, middle, needs);
    back->sums = TAKE(a, half_sum, 4 * L);
    back->sum_count = 0;
    crnn_weights *grads = TAKE(a, crnn_weights, L);
    back->grads = wanted ? grads : NULL;
    for (size_t l = 0; wanted && l < L; l++) {
        const crnn_weights own = {.weight_ih = half_gradient(a, back, wanted[l].weight_ih, GH * (l ? H : stack->input)),
                                  .weight_hh = half_gradient(a, back, wanted[l].weight_hh, GH * H),
                                  .bias_ih = half_gradient(a, back, wanted[l].bias_ih, GH),
                                  .bias_hh = half_gradient(a, back, wanted[l].bias_hh, GH)};
        if (a->base) grads[l] = own;
    }
    take(a, HALVES_APART, 1);
}

/* A half's backward call, as half_forward. */
typedef struct {
    _Alignas(2 * CRNN_LINE) backward_call call;
    half_batch *half;
    const crnn_backward_args *whole;
    crnn_backward_args own;
    char *block;
    const int *alone;
} half_backward;

static void share_packs_backward(half_backward *work)
{
    for (size_t q = 0; q < work[0].call.s->L * work[0].call.s->D; q++) {
        const layer_back *from = work[0].call.layers + q;
        layer_back *to = work[1].call.layers + q;
        if (!from->pack_ih != !to->pack_ih || !from->pack_hh != !to->pack_hh) continue;
        to->pack_ih = from->pack_ih, to->pack_hh = from->pack_hh, to->pack_n = from->pack_n;
        to->packed = 1;
    }
}

static void half_backward_work(void *context, int rank, crnn_team *team)
{
    half_backward *b = context;
    const crnn_backward_args *whole = b->whole;
    const crnn_stack *stack = b->call.stack;
    if (rank == 0) {
        take_rows_of_half(b->half, whole->dy, stack->hidden);
        take_states(b->half, 0, whole->dh_n, stack);
        take_states(b->half, 1, whole->dc_n, stack);
        place_backward(&b->call, b->block);
        if (*b->alone && b->half->first) share_packs_backward(b - 1);
    }
    crnn_barrier(team);
    backward_work(&b->call, rank, team);
    crnn_barrier(team);
    if (rank > 0) return;
    finish_backward(&b->call);
    give_rows_of_half(b->half, whole->dx, stack->input);
    give_states(b->half, 2, whole->dh0, stack);
    give_states(b->half, 3, whole->dc0, stack);
}

static crnn_status backward_halves(const crnn_stack *stack, const crnn_batch *batch, const run_state *first, const run_state *second,
                                   const crnn_backward_args *args)
{
    const T *dy = args->dy_view.sequences ? NULL : args->dy;
    T *dx = args->dx_view.sequences ? NULL : args->dx;
    const half_needs needs = {dy ? stack->hidden : 0, dx ? stack->input : 0, {args->dh_n, args->dc_n, args->dh0, args->dc0}};
    const run_state *run[2] = {first, second};
    const int blas = crnn_blas_wanted();
    halves_back back;
    half_backward work[2];
    size_t bytes[2];
    int alone = 0;
    arena measure = {0};
    lay_out_halves(&measure, &back, stack, batch, args->grads, first->B, &needs);
    char *room = measure.overflow ? NULL : crnn_allocate(measure.used), *block = NULL;
    if (!room) return CRNN_NOMEM;
    arena place = {.base = room};
    lay_out_halves(&place, &back, stack, batch, args->grads, first->B, &needs);
    for (int i = 0; i < 2; i++) {
        half_batch *half = back.half + i;
        crnn_backward_args *own = &work[i].own;
        work[i].half = half, work[i].whole = args, work[i].alone = &alone;
        *own = *args;
        own->dy_view = view_of_half(half, args->dy_view, dy, stack->hidden, half->in);
        own->dx_view = view_of_half(half, args->dx_view, dx, stack->input, half->out);
        own->dy = half->rows_in;
        own->dx = half->rows_out;
        own->bad = &half->bad;
        own->dh_n = half->states[0], own->dc_n = half->states[1];
        own->dh0 = half->states[2], own->dc0 = half->states[3];
        if (i) own->grads = back.grads, own->accumulate = 0;
        bytes[i] = apart(plan_backward(run[i], stack, own, blas, &work[i].call));
    }
    if (bytes[0] && bytes[1] && bytes[0] + bytes[1] > bytes[0]) block = crnn_allocate(bytes[0] + bytes[1]);
    if (!block) {
        crnn_release(room);
        return CRNN_NOMEM;
    }
    work[0].block = block, work[1].block = block + bytes[0];
    const halves_job job = {half_backward_work, {work, work + 1}, first->plan.halves, &alone, back.sums, back.sum_count};
    crnn_parallel(job.threads, first->plan.brief, halves_work, (void *)&job);
    tell_bad(args->bad, back.half, &args->dy_view);
    crnn_release(block);
    crnn_release(room);
    return CRNN_OK;
}

/* How `sequences` sequences of `rows` rows read their weights, on which the order of sums depends. */
static int reading_of_rows(const crnn_stack *stack, size_t sequences, size_t steps, size_t rows)
{
    const run_state s = {.shape = shape_of(stack), .B = sequences, .steps = steps, .R = rows, .H = stack->hidden};
    return runs_small(&s, stack->input + s.H) | input_lies(&s, stack->input) << 1 | input_lies(&s, s.H) << 2 | recurrent_lies(&s) << 3;
}

/* Whether a batch and its halves do, so that the results of inference are the same either way. */
static int halves_read_alike(const crnn_stack *stack, const crnn_batch *batch, size_t middle)
{
    size_t rows = 0, second = 0;
    for (size_t t = 0; t < batch->steps; t++) {
        const size_t n = (size_t)(batch->offsets[t + 1] - batch->offsets[t]);
        rows += n < middle ? n : middle;
        second += n > middle;
    }
    const size_t all = (size_t)batch->offsets[batch->steps], B = batch->batch;
    const int whole = reading_of_rows(stack, B, batch->steps, all);
    return reading_of_rows(stack, middle, batch->steps, rows) == whole && reading_of_rows(stack, B - middle, second, all - rows) == whole;
}

/* What inference does may depend on how many threads there are, and on how far apart, as long as its bits do not. */
static int pays_in_halves(const crnn_stack *stack, const crnn_batch *batch, size_t middle, int keep)
{
    return keep || threads_of_halves(stack, batch) > 1 || !halves_read_alike(stack, batch, middle);
}

static int kernel_in_halves(const crnn_stack *stack, const crnn_batch *batch, int masked, int keep)
{
    const size_t middle = first_half(stack, batch, masked);
    return middle && pays_in_halves(stack, batch, middle, keep);
}

static crnn_status kernel_forward(const crnn_stack *stack, const crnn_batch *batch, const crnn_forward_args *args,
                                  crnn_tape **tape)
{
    const size_t middle = first_half(stack, batch, args->masks != NULL);
    if (middle && pays_in_halves(stack, batch, middle, tape != NULL)) return forward_halves(stack, batch, args, middle, tape);
    run_state *s;
    forward_call call;
    crnn_status status = prepare(stack, batch, args, tape != NULL, &s);
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
    const size_t bytes = plan_backward(s, stack, args, crnn_blas_wanted(), &call);
    char *block = bytes ? crnn_allocate(bytes) : NULL;
    if (!block) return CRNN_NOMEM;
    place_backward(&call, block);
    crnn_parallel(s->plan.threads, s->plan.brief, backward_work, &call);
    finish_backward(&call);
    crnn_release(block);
    return CRNN_OK;
}
