/* From a call's arguments to a run that can start, and the calls themselves. */

/* Lays out the run in the arena; called once to measure and once to place. */
static void lay_out(arena *a, run_state *s, const crnn_stack *stack, const crnn_forward_args *args)
{
    int64_t *offsets = TAKE(a, int64_t, s->steps + 1);
    s->length = TAKE(a, size_t, s->B + 1);
    s->flip = s->D > 1 ? TAKE(a, int64_t, s->R + 1) : NULL;
    s->ids = stack->onehot ? TAKE(a, int64_t, s->R + 1) : NULL;
    s->masks = args->masks && s->L > 1 ? TAKE(a, T, (s->L - 1) * s->R * s->D * s->H) : NULL;
    s->layers = TAKE(a, layer_run, s->L * s->D);
    if (a->base) memcpy(offsets, s->offsets, (s->steps + 1) * sizeof(int64_t));
    if (a->base) s->offsets = offsets;
    size_t GH = (size_t)s->shape.gates * s->Hp;
    T *h = take_rows(a, s->L * s->D * (s->B + s->R), s->ldh);
    T *c = s->shape.kind == KIND_LSTM ? take_rows(a, s->L * s->D * s->c_rows, s->ldh) : NULL;
    /* Everything of a layer; scratch that only lives during the call (packed weights) is kept too: it is small. */
    for (size_t q = 0; q < s->L * s->D; q++) {
        layer_run *run = a->base ? s->layers + q : &(layer_run){0};
        size_t l = q / s->D;
        const crnn_weights *w = stack->weights + q;
        *run = (layer_run){.wih = w->weight_ih, .whh = w->weight_hh, .bih = w->bias_ih, .bhh = w->bias_hh,
                           .ldwih = w->ld_ih, .input = l ? s->D * s->H : stack->input, .reversed = (int)(q % s->D)};
        int onehot = l == 0 && stack->onehot, copied = !onehot && (s->keep || l > 0 || run->reversed || args->x_view.sequences);
        run->ldx = leading(run->input);
        run->x_late = l == 0 && s->x_late;
        run->x = copied ? take_rows(a, run->x_late && !s->keep ? s->rooms * s->chunk_rows : s->R, run->ldx) : NULL;
        run->gates = take_rows(a, s->keep_gates ? s->R : s->rooms * rows_of_room(s), s->ldg);
        run->reset = s->shape.candidate.gates ? take_rows(a, s->keep_gates ? s->R : s->rooms * s->chunk_rows, s->ldh) : NULL;
        run->h = a->base ? h + q * (s->B + s->R) * s->ldh : NULL;
        run->c = a->base && c ? c + q * s->c_rows * s->ldh : NULL;
        if (s->small) continue;
        run->bias = TAKE(a, T, (size_t)s->shape.slots * s->Hp);
        size_t packed = input_in_rooms(s) ? (size_t)s->plan.threads * 4 * VW : GH;
        run->lying = !onehot && input_lies(s, run->input);
        run->pack_ih = onehot || run->lying || s->blas ? NULL : TAKE(a, T, packed * run->input);
        if (recurrent_lies(s)) continue;
        run->pack_hh = TAKE(a, T, GH * s->H);
        run->pack_n = s->shape.candidate.gates ? TAKE(a, T, s->Hp * s->H) : NULL;
    }
}

static void set_lengths(run_state *s)
{
    for (size_t i = 0; i < s->B; i++) s->length[i] = 0;
    for (size_t t = 0; t < s->steps; t++)
        for (size_t i = 0; i < block_rows(s, t); i++) s->length[i] = t + 1;
    for (size_t t = 0; s->flip && t < s->steps; t++)
        for (size_t i = 0; i < block_rows(s, t); i++)
            s->flip[(size_t)s->offsets[t] + i] = s->offsets[s->length[i] - 1 - t] + (int64_t)i;
}

/* Inputs that take part in a product; a word is looked up. */
static size_t read_width(const crnn_stack *stack) { return stack->onehot ? 0 : stack->input; }

/* Weights that do not fit the second level come closer once for each chunk: inference takes so many rows of a wide layer at least, though
 * their gates leave the second level too (Emerald Rapids, one thread and two: LSTM of 512 units, 32 sequences 1.03 to 1.26 and 1.05 to
 * 1.08 times as fast as with one step at a time, GRU 1.07 to 1.11 and 1.09 to 1.10; 128 rows gain less, 512 no more. Training gains nothing
 * clear, 0.97 to 1.05). */
#define WIDE_CHUNK_ROWS 256
static size_t widest_read(const crnn_stack *stack)
{
    const size_t below = stack->layers > 1 ? stack->directions * stack->hidden : 0;
    return read_width(stack) > below ? read_width(stack) : below;
}

/* Everything but the values and the memory: sizes and threads. halves: threads that share this half of a batch and the other one; 0: it
 * is whole. blas: what the call has found. Bytes that the run needs, 0: too many. */
static size_t plan_run(run_state *s, const crnn_stack *stack, const crnn_batch *batch, const crnn_forward_args *args, int keep,
                       size_t halves, int blas)
{
    *s = (run_state){.shape = shape_of(stack), .B = batch->batch, .steps = batch->steps,
                     .R = (size_t)batch->offsets[batch->steps], .H = stack->hidden, .L = stack->layers,
                     .D = stack->directions, .offsets = batch->offsets, .keep = keep, .blas = blas};
    s->Hp = round_up(s->H, VW);
    s->UV = s->Hp / VW;
    s->ldg = leading((size_t)s->shape.slots * s->Hp);
    s->ldh = leading(s->Hp);
    s->dense = s->R == s->B * s->steps;
    s->keep_gates = keep && s->shape.slots > 1; /* an RNN's gradient needs its states only */
    s->small = runs_small(s, read_width(stack) + s->H);
    s->zero_start = args->h0 == NULL;
    s->plan = halves ? plan_half(s, read_width(stack), halves) : choose_threads(s, read_width(stack));
    s->first_level = crnn_first_level();
    s->chunk_rows = 262144 / (s->ldg * sizeof(T));
    s->x_late = args->x_view.sequences && !s->small;
    const size_t with_x = 524288 / ((s->ldg + leading(stack->input)) * sizeof(T)); /* both stay near */
    if (s->x_late && !keep && s->chunk_rows > with_x) s->chunk_rows = with_x;
    const size_t least = !keep && is_wide(s, widest_read(stack)) ? WIDE_CHUNK_ROWS : 48;
    if (s->chunk_rows < least) s->chunk_rows = least;
    if (s->chunk_rows > s->R || input_in_rooms(s)) s->chunk_rows = s->R;
    if (s->chunk_rows < s->B) s->chunk_rows = s->B;
    s->c_rows = keep || s->small ? s->B + s->R : s->B; /* a stepper's h and c lie equally far apart */
    s->rooms = s->keep_gates ? 1 : rooms_of_gates(s);
    arena measure = {0};
    lay_out(&measure, s, stack, args);
    size_t total = measure.used + round_up(sizeof(run_state), CRNN_LINE);
    return measure.overflow || total < measure.used ? 0 : total;
}

static run_state *place_run(const run_state *plan, size_t bytes, char *block, const crnn_stack *stack, const crnn_forward_args *args)
{
    run_state *s = (run_state *)(void *)block;
    *s = *plan;
    arena place = {.base = block + round_up(sizeof(run_state), CRNN_LINE)};
    lay_out(&place, s, stack, args);
    s->head.kernels = &THIS_KERNELS;
    s->head.bytes = bytes;
    set_lengths(s);
    return s;
}

static crnn_status prepare(const crnn_stack *stack, const crnn_batch *batch, const crnn_forward_args *args, int keep, run_state **out)
{
    run_state plan;
    const size_t bytes = plan_run(&plan, stack, batch, args, keep, 0, crnn_blas_wanted());
    char *block = bytes ? crnn_allocate(bytes) : NULL;
    if (!block) return CRNN_NOMEM;
    *out = place_run(&plan, bytes, block, stack, args);
    return CRNN_OK;
}

/* One step of a few rows again and again: what does not change from step to step is prepared once, and states stay in
 * the run. The weights are read where they are each time; more rows would want them packed, a copy per stepper. */
static crnn_status kernel_stepper(const crnn_stack *stack, size_t batch, crnn_tape **out)
{
    if (!few_rows(batch, 1, read_width(stack) + stack->hidden)) return CRNN_UNSUPPORTED;
    int64_t offsets[2] = {0, (int64_t)batch};
    run_state *s;
    crnn_status status = prepare(stack, &(crnn_batch){batch, 1, offsets}, &(crnn_forward_args){0}, 0, &s);
    if (status != CRNN_OK) return status;
    s->stepping = 1;
    s->zero_start = 0; /* but for the first step */
    for (size_t q = 0; q < s->L; q++) {
        copy_rows_padded(s->layers[q].h, s->ldh, NULL, s->H, s->B);
        if (s->layers[q].c) copy_rows_padded(s->layers[q].c, s->ldh, NULL, s->H, s->B);
    }
    *out = &s->head;
    return CRNN_OK;
}

static void kernel_step(crnn_tape *stepper, const void *x, void *y)
{
    run_state *s = (run_state *)(void *)stepper;
    thread_plan plan = choose_threads(s, s->ids ? 0 : s->layers[0].input);
    if (plan.threads != s->plan.threads || plan.forward != s->plan.forward) s->plan = plan;
    run_step(s, x, y);
}

static crnn_states kernel_states(crnn_tape *stepper)
{
    run_state *s = (run_state *)(void *)stepper;
    return (crnn_states){s->layers[0].h + (s->turn ? s->B * s->ldh : 0), s->layers[0].c, (s->B + s->R) * s->ldh, s->ldh};
}
