/* After the schedules: gradients of the weights, of the input and of the initial states, from the summed d_pre. */

/* Rows [lo, hi) of a (G*H, N) weight gradient, which `whole` describes but for the columns of d_pre that are its A. candidate: what
 * GRU's third gate has for B where the reset comes before, else null. */
static void weight_gradient(const run_state *s, const T *sum, const int *slot, product_call whole, const T *candidate, size_t lo,
                            size_t hi)
{
    for (size_t g = 0; g < (size_t)s->shape.gates; g++) {
        size_t first = g * s->H, a = lo > first ? lo - first : 0, b = hi > first ? hi - first : 0;
        if (b > s->H) b = s->H;
        if (a >= b) continue;
        product_call call = whole;
        call.A = sum + (size_t)slot[g] * s->Hp;
        call.next_A = b < s->H ? call.A + b : NULL;
        if (b == s->H && g + 1 < (size_t)s->shape.gates) call.next_A = sum + (size_t)slot[g + 1] * s->Hp;
        if (candidate && g == 2) call.B = candidate;
        call.C += first * whole.ldc;
        product_rows(&call, a, b);
    }
}

/* sum[q] = from[q] + from[ld + q] + ... over the rows. */
static void column_sums(T *sum, const T *from, size_t ld, size_t rows, size_t width)
{
    memset(sum, 0, width * sizeof(T));
    for (size_t r = 0, n; r < rows; r += n, from += n * ld) {
        size_t q = 0;
        n = rows - r < 4 ? 1 : 4;
        for (; n == 4 && q + VW <= width; q += VW)
            store(sum + q, load(sum + q) + ((load(from + q) + load(from + ld + q)) +
                                            (load(from + 2 * ld + q) + load(from + 3 * ld + q))));
        for (; n == 4 && q < width; q++) sum[q] += (from[q] + from[ld + q]) + (from[2 * ld + q] + from[3 * ld + q]);
        for (; q < width; q++) sum[q] += from[q];
    }
}

static void give_bias(T *out, const T *sum, size_t width, int accumulate)
{
    for (size_t q = 0; q < width; q++) out[q] = (accumulate ? out[q] : 0) + sum[q];
}

/* Rows [lo, hi) of both bias gradients: the same sums, but for GRU's candidate with reset after. sum: (G*H) room. */
static void bias_gradients(const run_state *s, const layer_back *back, const crnn_weights *grads, T *sum, int accumulate,
                           size_t lo, size_t hi)
{
    if (!grads->bias_ih && !grads->bias_hh) return;
    for (size_t g = 0; g < (size_t)s->shape.gates; g++) {
        size_t first = g * s->H, a = lo > first ? lo : first, b = hi < first + s->H ? hi : first + s->H;
        if (a >= b) continue;
        size_t hh = (size_t)s->shape.bias_hh_slot[g];
        column_sums(sum + a, back->sum + g * s->Hp + (a - first), s->ldg, s->R, b - a);
        if (grads->bias_ih) give_bias((T *)grads->bias_ih + a, sum + a, b - a, accumulate);
        if (!grads->bias_hh) continue;
        if (hh != g) column_sums(sum + a, back->sum + hh * s->Hp + (a - first), s->ldg, s->R, b - a);
        give_bias((T *)grads->bias_hh + a, sum + a, b - a, accumulate);
    }
}

static void gradients_of_layer(const backward_call *call, size_t q, int rank, crnn_team *team)
{
    const run_state *s = call->s;
    const layer_run *run = s->layers + q;
    layer_back *back = call->layers + q;
    const crnn_weights *grads = call->args->grads ? call->args->grads + q : NULL;
    int size = crnn_team_size(team), add = call->args->accumulate;
    size_t lo, hi, GH = (size_t)s->shape.gates * s->H;
    if (back->h_prev && grads && grads->weight_hh) {
        crnn_share(s->R, 1, rank, size, &lo, &hi);
        for (size_t r = lo, t = lo < hi ? step_of(s, lo) : 0, end; r < hi; r = end, t++) {
            end = (size_t)s->offsets[t + 1] < hi ? (size_t)s->offsets[t + 1] : hi;
            memcpy(back->h_prev + r * s->ldh, run->h + (state_row_before(s, t) + r - (size_t)s->offsets[t]) * s->ldh,
                   (end - r) * s->ldh * sizeof(T));
        }
        crnn_barrier(team);
    }
    if (grads) {
        static const int straight[4] = {0, 1, 2, 3};
        const int *hh = s->shape.bias_hh_slot;
        product_call ih = {.N = run->input, .K = s->R, .lda = s->ldg, .turned = 1, .B = run->x, .ldb = run->ldx, .depth = COLUMNS_DEPTH,
                           .room = room_of(call, rank), .C = grads->weight_ih, .ldc = run->input, .accumulate = add,
                           .blas = call->blas};
        product_call recurrent = ih;
        recurrent.N = recurrent.ldc = s->H;
        recurrent.B = back->h_prev ? back->h_prev : run->h;
        recurrent.ldb = s->ldh;
        recurrent.C = grads->weight_hh;
        while (grads->weight_ih && run->x && take_rows_of(call, q, OF_WEIGHT_IH, s->H, rank, &lo, &hi))
            weight_gradient(s, back->sum, straight, ih, NULL, lo, hi);
        while (grads->weight_hh && take_rows_of(call, q, OF_WEIGHT_HH, s->H, rank, &lo, &hi))
            weight_gradient(s, back->sum, hh, recurrent, run->reset, lo, hi);
        crnn_share(GH, CRNN_LINE / sizeof(T), rank, size, &lo, &hi);
        bias_gradients(s, back, grads, call->bias_sum, add, lo, hi);
    }
}

/* The caller's dx: from d_pre of layer 0, all directions; for ids the gradient rows themselves. */
static void gradients_of_input(const backward_call *call, int rank, crnn_team *team)
{
    const run_state *s = call->s;
    size_t lo, hi, GH = (size_t)s->shape.gates * s->H, width = s->layers[0].input;
    const crnn_backward_args *args = call->args;
    if (s->ids) {
        T *out = args->dx;
        if (!out) return;
        crnn_share(s->R, 1, rank, crnn_team_size(team), &lo, &hi);
        for (size_t r = lo; r < hi; r++)
            for (size_t g = 0; g < (size_t)s->shape.gates; g++)
                memcpy(out + r * GH + g * s->H, call->layers[0].sum + r * s->ldg + g * s->Hp, s->H * sizeof(T));
        return;
    }
    const input_target to = {args->dx, width, args->dx_view.sequences ? &args->dx_view : NULL};
    for (size_t e = 0; e < s->D && call->wants_dx; e++) {
        if (e > 0) crnn_barrier(team);
        while (take_rows_of(call, e, OF_INPUT, s->R, rank, &lo, &hi)) input_gradient(call, e, lo, hi, to, rank);
    }
    if (to.view) crnn_zero_tails(to.view, s->length, s->B, width * sizeof(T), rank, crnn_team_size(team));
}

static void gradients_of_start(const backward_call *call)
{
    const run_state *s = call->s;
    for (size_t q = 0; q < s->L * s->D; q++)
        for (size_t i = 0; i < s->B; i++) {
            size_t at = (q * s->B + i) * s->H;
            const layer_back *back = call->layers + q;
            /* An empty sequence's final state is its initial state. */
            for (int cell = 0; cell < 2; cell++) {
                T *out = cell ? call->args->dc0 : call->args->dh0;
                const T *final = cell ? call->args->dc_n : call->args->dh_n, *sum = cell ? back->dc0 : back->dh0;
                if (!out || !sum) continue;
                memcpy(out + at, sum + i * s->ldh, s->H * sizeof(T));
                for (size_t k = 0; final && s->length[i] == 0 && k < s->H; k++) out[at + k] += final[at + k];
            }
        }
}

static void pack_weights_back(const backward_call *call, int rank, crnn_team *team)
{
    const run_state *s = call->s;
    int size = crnn_team_size(team), by_units = s->plan.backward == BY_UNITS && call->args->truncation != CRNN_WINDOW;
    const int apart = goes_apart(s, team); /* each half what its direction will read */
    pack_range recurrent = pack_share(by_units, s->UV, BACK_UNITS, apart ? rank / 2 : rank, apart ? size / 2 : size);
    for (size_t q = 0; q < s->L * s->D; q++) {
        const layer_back *back = call->layers + q;
        const crnn_weights *w = call->stack->weights + q;
        const int own = !apart || q % 2 == (size_t)(rank & 1);
        if (back->packed) continue;
        if (own && back->pack_hh)
            pack_backward(&s->shape.recurrent, s->H, w->weight_hh, s->H, back->pack_hh, recurrent);
        if (own && back->pack_n) pack_backward(&s->shape.candidate, s->H, w->weight_hh, s->H, back->pack_n, recurrent);
        if (!back->pack_ih) continue;
        size_t input = s->layers[q].input; /* whoever had the odd tile of W_hh has not that of W_ih */
        pack_backward(&s->shape.input, s->H, w->weight_ih, input, back->pack_ih,
                      pack_share(0, tile_count(input, VW), BACK_UNITS, size - 1 - rank, size));
    }
    crnn_barrier(team);
}

static void push_out_backward(const run_state *s, const layer_run *run, const layer_back *back, int rank, int size)
{
    push_out(back->sum, s->R * s->ldg, rank, size);
    push_out(run->x, s->R * run->ldx, rank, size);
    push_out(run->h, (s->B + s->R) * s->ldh, rank, size);
    push_out(back->h_prev, s->R * s->ldh, rank, size);
    push_out(back->pack_hh, (size_t)s->shape.recurrent.gates * s->H * s->Hp, rank, size);
    push_out(back->pack_n, s->H * s->Hp, rank, size);
    push_out(back->pack_ih, (size_t)s->shape.gates * s->H * round_up(run->input, VW), rank, size);
}

static void backward_work(void *context, int rank, crnn_team *team)
{
    const backward_call *call = context;
    const run_state *s = call->s;
    const crnn_backward_args *args = call->args;
    pack_weights_back(call, rank, team);
    if (args->truncation == CRNN_WINDOW) {
        window_backward(call, rank, team);
    } else if (args->truncation == CRNN_CHUNK) {
        size_t count = (s->steps + args->k1 - 1) / args->k1;
        for (size_t c = count; c-- > 0;) {
            size_t start = c * args->k1, end = start + args->k1;
            size_t reach = end > args->k2 ? end - args->k2 : 0;
            range_backward(call, reach, end < s->steps ? end : s->steps, start, rank, team);
        }
    } else {
        range_backward(call, 0, s->steps, 0, rank, team);
    }
    /* From here on the sums are what d was. */
    if (call->overlap) {
        if (rank == 0)
            for (size_t q = 0; q < s->L * s->D; q++) call->layers[q].d = call->layers[q].sum;
        crnn_barrier(team);
    }
    for (size_t q = 0; q < s->L * s->D; q++) gradients_of_layer(call, q, rank, team);
    gradients_of_input(call, rank, team);
    if (rank == 0) gradients_of_start(call);
    if (!s->plan.far) return;
    crnn_barrier(team); /* nobody reads on */
    for (size_t q = 0; q < s->L * s->D; q++)
        push_out_backward(s, s->layers + q, call->layers + q, rank, crnn_team_size(team));
}

static void lay_out_back(arena *a, backward_call *call)
{
    const run_state *s = call->s;
    int window = call->args->truncation == CRNN_WINDOW, lstm = s->shape.kind == KIND_LSTM;
    size_t rec = (size_t)s->shape.recurrent.gates, widest = s->D * s->H, losses = window ? window_rows(s) : 0;
    call->ldx = leading(widest);
    call->dx = s->L > 1 && !window ? take_rows(a, s->R, call->ldx) : NULL;
    call->room.d = window ? take_rows(a, losses, s->ldg) : NULL;
    call->room.dx = window && s->L > 1 ? take_rows(a, losses, call->ldx) : NULL;
    if (call->wants_dx && s->layers[0].input > widest) widest = s->layers[0].input;
    call->ld_block = leading(widest);
    call->rooms = TAKE(a, T, (size_t)s->plan.threads * room_size());
    call->hands = TAKE(a, crnn_hand, s->L * s->D * OF_COUNT * (size_t)s->plan.threads);
    call->bad = TAKE(a, int64_t, s->D * (size_t)s->plan.threads);
    call->bias_sum = TAKE(a, T, (size_t)s->shape.gates * s->H);
    call->blocks = take_rows(a, (size_t)s->plan.threads * PRODUCT_ROWS, call->ld_block);
    T *reset = s->shape.candidate.gates ? take_rows(a, window ? losses : s->D * s->R, s->ldh) : NULL;
    if (window) call->room.reset = reset;
    else call->reset = reset;
    call->layers = TAKE(a, layer_back, s->L * s->D);
    for (size_t q = 0; q < s->L * s->D; q++) {
        layer_back *back = a->base ? call->layers + q : &(layer_back){0};
        back->d = take_rows(a, s->R, s->ldg);
        back->sum = call->overlap ? take_rows(a, s->R, s->ldg) : back->d;
        back->lying = !window && upstream_lies(call, q);
        back->dh = take_rows(a, window ? losses : back->lying ? 2 * s->B : s->B + s->R, s->ldh);
        back->dc = lstm ? take_rows(a, window ? losses : s->B, s->ldh) : NULL;
        back->dh0 = take_rows(a, s->B, s->ldh);
        back->dc0 = lstm ? take_rows(a, s->B, s->ldh) : NULL;
        back->pack_hh = recurrent_lies_back(s) && !window ? NULL : TAKE(a, T, rec * s->H * s->Hp);
        back->pack_n = s->shape.candidate.gates ? TAKE(a, T, s->H * s->Hp) : NULL;
        int packed = (q >= s->D || call->wants_dx) && !call->blas && !input_lies_back(s, s->layers[q].input);
        back->pack_ih = packed ? TAKE(a, T, (size_t)s->shape.gates * s->H * round_up(s->layers[q].input, VW)) : NULL;
        back->packed = 0;
        back->h_prev = s->dense ? NULL : take_rows(a, s->R, s->ldh);
    }
}

/* What comes before and after backward_work: bytes that it needs (0: too many), which of them is what, and what came out. */
static size_t plan_backward(const run_state *s, const crnn_stack *stack, const crnn_backward_args *args, int blas,
                            backward_call *call)
{
    *call = (backward_call){.s = s, .stack = stack, .args = args, .blas = blas};
    call->view_ld = even_rows(&args->dy_view, s->B);
    call->wants_dx = !s->ids && (args->dx || args->dx_view.sequences);
    call->overlap = args->truncation == CRNN_CHUNK && args->k2 > args->k1;
    arena measure = {0};
    lay_out_back(&measure, call);
    return measure.overflow ? 0 : measure.used;
}

static void place_backward(backward_call *call, char *block)
{
    const run_state *s = call->s;
    arena place = {.base = block};
    lay_out_back(&place, call);
    for (size_t i = 0; i < s->D * (size_t)s->plan.threads; i++) call->bad[i] = -1;
    for (size_t q = 0; q < s->L * s->D; q++) {
        layer_back *back = call->layers + q;
        deal_rows_of(call, q, OF_WEIGHT_IH, (size_t)s->shape.gates, s->H);
        deal_rows_of(call, q, OF_WEIGHT_HH, (size_t)s->shape.gates, s->H);
        deal_rows_of(call, q, OF_INPUT, 1, s->R);
        memset(back->dh0, 0, s->B * s->ldh * sizeof(T));
        if (back->dc0) memset(back->dc0, 0, s->B * s->ldh * sizeof(T));
        if (call->overlap) memset(back->sum, 0, s->R * s->ldg * sizeof(T));
    }
}

static void finish_backward(const backward_call *call)
{
    if (call->args->bad) *call->args->bad = first_bad(call->bad, call->s->D * (size_t)call->s->plan.threads);
}
