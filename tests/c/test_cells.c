/* crnn_forward and crnn_backward against the plain loops of naive.h: every cell and switch, stacks, directions, ragged
 * batches, one-hot input, masks, missing biases and states, every truncation, thread count and instruction set. */
#include "naive.h"

typedef struct {
    crnn_cell cell;
    int reset_after, z_state, onehot, bias, masks, states, dense;
    size_t input, hidden, layers, directions, batch, steps;
} shape;

typedef struct {
    crnn_truncation kind;
    size_t k1, k2;
} scheme;

static const scheme SCHEMES[] = {
    {CRNN_FULL, 0, 0}, {CRNN_WINDOW, 1, 0}, {CRNN_WINDOW, 3, 0}, {CRNN_WINDOW, 50, 0},
    {CRNN_CHUNK, 2, 2}, {CRNN_CHUNK, 3, 5}, {CRNN_CHUNK, 50, 50},
};
enum { SCHEME_COUNT = sizeof SCHEMES / sizeof *SCHEMES };

static shape now;               /* the case at work */
static naive_net net;
static int64_t *ids;
static double *dy, *dh_n, *dc_n;
static naive_result expected[SCHEME_COUNT];
static char label[200];

static size_t gate_rows(void) { return gates_of(now.cell) * now.hidden; }
static size_t state_size(void) { return now.layers * now.directions * now.batch * now.hidden; }
static size_t scheme_count(void) { return now.directions == 2 ? 1 : SCHEME_COUNT; }

/* Lengths fall from `steps` to 0 or 1, unless dense; the last sequence is empty where the batch has three or more. */
static void make_case(void)
{
    size_t *lengths = allocate(now.batch * sizeof *lengths);
    for (size_t b = 0; b < now.batch; b++) lengths[b] = now.dense ? now.steps : now.steps - now.steps * b / now.batch;
    if (now.batch >= 3 && !now.dense) lengths[now.batch - 1] = 0;
    int64_t *offsets = allocate((now.steps + 1) * sizeof *offsets);
    offsets[0] = 0;
    for (size_t t = 0; t < now.steps; t++) {
        int64_t running = 0;
        for (size_t b = 0; b < now.batch; b++) running += lengths[b] > t;
        offsets[t + 1] = offsets[t] + running;
    }
    size_t rows = (size_t)offsets[now.steps], LD = now.layers * now.directions, GH = gate_rows();
    naive_weights *weights = allocate(LD * sizeof *weights);
    for (size_t at = 0; at < LD; at++) {
        size_t width = at < now.directions ? now.input : now.directions * now.hidden;
        double reach = 1.5 / sqrt((double)now.hidden); /* shifted, so that a transposed or swapped matrix shows */
        weights[at].weight_ih = random_doubles(GH * width, -0.6 * reach, reach);
        weights[at].weight_hh = random_doubles(GH * now.hidden, -0.7 * reach, reach);
        weights[at].bias_ih = now.bias ? random_doubles(GH, -0.5, 1) : NULL;
        weights[at].bias_hh = now.bias ? random_doubles(GH, -1, 0.5) : NULL;
    }
    double *x = now.onehot ? zeros(rows * now.input) : random_doubles(rows * now.input, -1, 1.5);
    ids = now.onehot ? allocate(rows * sizeof *ids) : NULL;
    for (size_t r = 0; now.onehot && r < rows; r++) {
        ids[r] = (int64_t)random_below(now.input);
        x[r * now.input + (size_t)ids[r]] = 1;
    }
    size_t mask_size = (now.layers - 1) * rows * now.directions * now.hidden;
    double *masks = now.masks ? random_doubles(mask_size, -1, 2) : NULL;
    for (size_t i = 0; now.masks && i < mask_size; i++) masks[i] = masks[i] < 0 ? 0 : 2;
    net = (naive_net){
        .cell = now.cell, .reset_after = now.reset_after, .z_state = now.z_state, .input = now.input,
        .hidden = now.hidden, .layers = now.layers, .directions = now.directions, .batch = now.batch,
        .steps = now.steps, .lengths = lengths, .offsets = offsets, .weights = weights, .x = x, .masks = masks,
        .h0 = now.states ? random_doubles(state_size(), -1, 1) : zeros(state_size()),
        .c0 = now.states ? random_doubles(state_size(), -1, 1) : zeros(state_size()),
    };
    dy = random_doubles(rows * now.directions * now.hidden, -1, 1.3);
    dh_n = now.states ? random_doubles(state_size(), -1, 1) : NULL;
    dc_n = now.states ? random_doubles(state_size(), -1, 1) : NULL;
    for (size_t i = 0; i < scheme_count(); i++) {
        expected[i] = naive_new(&net);
        naive_forward(&net, &expected[i]);
        naive_backward(&net, &expected[i], SCHEMES[i].kind, SCHEMES[i].k1, SCHEMES[i].k2, dy, dh_n, dc_n);
    }
}

static void free_case(void)
{
    for (size_t i = 0; i < scheme_count(); i++) naive_free(&net, &expected[i]);
    for (size_t at = 0; at < now.layers * now.directions; at++) {
        free(net.weights[at].weight_ih), free(net.weights[at].weight_hh);
        free(net.weights[at].bias_ih), free(net.weights[at].bias_hh);
    }
    free(net.weights), free((void *)net.lengths), free((void *)net.offsets), free((void *)net.x);
    free((void *)net.h0), free((void *)net.c0), free((void *)net.masks), free(ids), free(dy), free(dh_n), free(dc_n);
}

/* Rounding: each value is a sum of at most `terms` products, and errors travel through at most steps * layers cells. */
static double tolerance(crnn_dtype dtype)
{
    double terms = (double)(gate_rows() + now.input + now.directions * now.hidden);
    return 4 * epsilon(dtype) * sqrt(terms) * (double)(now.steps * now.layers + 1);
}

/* The library's view of the case in one dtype. */
typedef struct {
    crnn_stack stack;
    crnn_batch batch;
    crnn_forward_args forward;
    crnn_weights *weights;
} problem;

/* The one-hot matrix as it is stored: (input, G*H) with padded rows. */
static void *transposed(crnn_dtype dtype, const double *weight, size_t ld)
{
    void *a = output_buffer(dtype, now.input * ld);
    for (size_t k = 0; k < now.input; k++)
        for (size_t i = 0; i < ld; i++)
            put(dtype, a, k * ld + i, i < gate_rows() ? weight[i * now.input + k] : 0);
    return a;
}

static problem make_problem(crnn_dtype dtype)
{
    size_t rows = rows_of(&net), LD = now.layers * now.directions, GH = gate_rows(), ld = (GH + 15) / 16 * 16 + 16;
    crnn_weights *w = allocate(LD * sizeof *w);
    for (size_t at = 0; at < LD; at++) {
        const naive_weights *n = &net.weights[at];
        int first = now.onehot && at == 0;
        w[at] = (crnn_weights){
            .weight_ih = first ? transposed(dtype, n->weight_ih, ld)
                               : from_doubles(dtype, n->weight_ih, GH * width_of(&net, at / now.directions)),
            .weight_hh = from_doubles(dtype, n->weight_hh, GH * now.hidden),
            .bias_ih = from_doubles(dtype, n->bias_ih, GH),
            .bias_hh = from_doubles(dtype, n->bias_hh, GH),
            .ld_ih = first ? ld : 0,
        };
    }
    return (problem){
        .stack = {.dtype = dtype, .cell = now.cell, .reset_after = now.reset_after, .z_state = now.z_state,
                  .onehot = now.onehot, .input = now.input, .hidden = now.hidden, .layers = now.layers,
                  .directions = now.directions, .weights = w},
        .batch = {.batch = now.batch, .steps = now.steps, .offsets = net.offsets},
        .forward = {.x = now.onehot ? NULL : from_doubles(dtype, net.x, rows * now.input), .ids = ids,
                    .h0 = now.states ? from_doubles(dtype, net.h0, state_size()) : NULL,
                    .c0 = now.states && now.cell == CRNN_LSTM ? from_doubles(dtype, net.c0, state_size()) : NULL,
                    .masks = from_doubles(dtype, net.masks, (now.layers - 1) * rows * now.directions * now.hidden)},
        .weights = w,
    };
}

static void new_forward_outputs(problem *p)
{
    crnn_dtype dtype = p->stack.dtype;
    p->forward.y = output_buffer(dtype, rows_of(&net) * now.directions * now.hidden);
    p->forward.h_n = output_buffer(dtype, state_size());
    p->forward.c_n = now.cell == CRNN_LSTM ? output_buffer(dtype, state_size()) : NULL;
}

static void check_forward(const problem *p, const char *where)
{
    crnn_dtype dtype = p->stack.dtype;
    const naive_result *e = &expected[0];
    check_close(dtype, p->forward.y, e->y, rows_of(&net) * now.directions * now.hidden, tolerance(dtype), "y", where);
    check_close(dtype, p->forward.h_n, e->h_n, state_size(), tolerance(dtype), "h_n", where);
    if (p->forward.c_n) check_close(dtype, p->forward.c_n, e->c_n, state_size(), tolerance(dtype), "c_n", where);
}

typedef struct {
    crnn_backward_args args;
    crnn_weights *grads;
} backward_call;

static backward_call new_backward(crnn_dtype dtype, const scheme *s)
{
    size_t rows = rows_of(&net), LD = now.layers * now.directions, GH = gate_rows();
    crnn_weights *g = allocate(LD * sizeof *g);
    for (size_t at = 0; at < LD; at++)
        g[at] = (crnn_weights){
            .weight_ih = now.onehot && at == 0 ? NULL
                                               : output_buffer(dtype, GH * width_of(&net, at / now.directions)),
            .weight_hh = output_buffer(dtype, GH * now.hidden),
            .bias_ih = now.bias ? output_buffer(dtype, GH) : NULL,
            .bias_hh = now.bias ? output_buffer(dtype, GH) : NULL,
        };
    int lstm = now.cell == CRNN_LSTM;
    return (backward_call){
        .args = {.dy = from_doubles(dtype, dy, rows * now.directions * now.hidden),
                 .dh_n = from_doubles(dtype, dh_n, state_size()),
                 .dc_n = lstm ? from_doubles(dtype, dc_n, state_size()) : NULL,
                 .truncation = s->kind, .k1 = s->k1, .k2 = s->k2,
                 .dx = output_buffer(dtype, rows * (now.onehot ? GH : now.input)),
                 .dh0 = output_buffer(dtype, state_size()),
                 .dc0 = lstm ? output_buffer(dtype, state_size()) : NULL,
                 .grads = g},
        .grads = g,
    };
}

/* times: 1, or 2 after a second call with `accumulate`, which leaves everything but the parameters' gradients as is. */
static void check_backward(crnn_dtype dtype, const backward_call *call, const naive_result *e, double times,
                           const char *where)
{
    size_t rows = rows_of(&net), GH = gate_rows();
    double bound = tolerance(dtype) * (double)(now.steps + 1);
    check_close(dtype, call->args.dx, now.onehot ? e->gate_rows : e->dx, rows * (now.onehot ? GH : now.input), bound,
                "dx", where);
    check_close(dtype, call->args.dh0, e->dh0, state_size(), bound, "dh0", where);
    if (call->args.dc0) check_close(dtype, call->args.dc0, e->dc0, state_size(), bound, "dc0", where);
    for (size_t at = 0; at < now.layers * now.directions; at++) {
        void *got[] = {call->grads[at].weight_ih, call->grads[at].weight_hh, call->grads[at].bias_ih,
                       call->grads[at].bias_hh};
        double *want[] = {e->grads[at].weight_ih, e->grads[at].weight_hh, e->grads[at].bias_ih, e->grads[at].bias_hh};
        size_t sizes[] = {GH * width_of(&net, at / now.directions), GH * now.hidden, GH, GH};
        const char *names[] = {"d weight_ih", "d weight_hh", "d bias_ih", "d bias_hh"};
        for (int i = 0; i < 4; i++) {
            if (!got[i]) continue;
            double *scaled = allocate(sizes[i] * sizeof *scaled);
            for (size_t j = 0; j < sizes[i]; j++) scaled[j] = times * want[i][j];
            check_close(dtype, got[i], scaled, sizes[i], bound * sqrt((double)rows + 1), names[i], where);
            free(scaled);
        }
    }
}

static void check_same_gradients(crnn_dtype dtype, const backward_call *a, const backward_call *b, const char *where)
{
    size_t e = element(dtype), GH = gate_rows(), width = now.onehot ? GH : now.input;
    check_same_bits(a->args.dx, b->args.dx, rows_of(&net) * width * e, "dx", where);
    check_same_bits(a->args.dh0, b->args.dh0, state_size() * e, "dh0", where);
    for (size_t at = 0; at < now.layers * now.directions; at++)
        check_same_bits(a->grads[at].weight_hh, b->grads[at].weight_hh, GH * now.hidden * e, "d weight_hh", where);
}

/* Packed values (null: room for them) as sequences, three elements between their steps that nobody may look at: each on its own,
 * or all evenly spaced in one block, whose steps may lie backwards. */
typedef enum { APART, EVENLY, EVENLY_BACKWARDS } spacing;
static void **scattered(crnn_dtype dtype, const double *values, size_t width, spacing evenly, crnn_view *view)
{
    void **starts = allocate(now.batch * sizeof *starts);
    const int backwards = evenly == EVENLY_BACKWARDS;
    ptrdiff_t *step = &view->step;
    *step = (ptrdiff_t)((width + 3) * element(dtype));
    view->steps = evenly == EVENLY ? now.steps : 0;
    view->sequences = starts;
    const size_t apart = now.steps * (width + 3) + 1;
    char *block = evenly ? buffer(dtype, now.batch * apart) : NULL;
    for (size_t e = 0; evenly && e < now.batch * apart; e++) put(dtype, block, e, NAN);
    for (size_t i = 0; i < now.batch; i++) {
        size_t n = net.lengths[i], size = n ? n * (width + 3) - 3 : 0;
        starts[i] = evenly ? block + i * apart * element(dtype) : buffer(dtype, size);
        for (size_t e = 0; e < size; e++) put(dtype, starts[i], e, NAN);
        for (size_t t = 0; t < n && values; t++)
            for (size_t k = 0; k < width; k++)
                put(dtype, starts[i], (backwards ? n - 1 - t : t) * (width + 3) + k,
                    values[((size_t)net.offsets[t] + i) * width + k]);
        if (backwards && n) starts[i] = (char *)starts[i] + (ptrdiff_t)(n - 1) * *step;
    }
    if (backwards) *step = -*step;
    return starts;
}

/* The reverse; what lies between the steps must still be as it was, and zero what lies beyond a sequence's end. */
static void *collected(crnn_dtype dtype, const crnn_view *view, size_t width, const char *where)
{
    void *packed = buffer(dtype, rows_of(&net) * width);
    void *const *starts = view->sequences;
    const ptrdiff_t step = view->step;
    for (size_t i = 0; i < now.batch; i++) {
        for (size_t t = 0; t < net.lengths[i]; t++) {
            const char *at = (char *)starts[i] + (ptrdiff_t)t * step;
            const int between = step > 0 ? t + 1 < net.lengths[i] : t > 0;
            for (size_t k = 0; k < width; k++) put(dtype, packed, ((size_t)net.offsets[t] + i) * width + k, get(dtype, at, k));
            for (size_t k = width; between && k < width + 3; k++)
                CHECK(isnan(get(dtype, at, k)), "%s: sequence %zu was written to after step %zu", where, i, t);
        }
        for (size_t t = net.lengths[i]; t < view->steps; t++)
            for (size_t k = 0; k < width + 3; k++) {
                const double found = get(dtype, (char *)starts[i] + (ptrdiff_t)t * step, k);
                CHECK(k < width ? found == 0 : isnan(found), "%s: sequence %zu, beyond its end: %g in step %zu, place %zu", where, i,
                      found, t, k);
            }
    }
    return packed;
}

/* Forward with its output where a caller wants it. */
static void check_outputs_apart(problem *p, const void *y, spacing evenly, crnn_tape **tape, const char *where)
{
    crnn_dtype dtype = p->stack.dtype;
    size_t width = now.directions * now.hidden;
    new_forward_outputs(p);
    void **ys = scattered(dtype, NULL, width, evenly, &p->forward.y_view);
    p->forward.y = NULL, *p->forward.bad = 77;
    crnn_forward(&p->stack, &p->batch, &p->forward, tape);
    CHECK(*p->forward.bad == -1, "%s: finite input, but row %lld is named", where, (long long)*p->forward.bad);
    check_same_bits(collected(dtype, &p->forward.y_view, width, where), y, rows_of(&net) * width * element(dtype),
                    tape ? "y of sequences" : "y of sequences, inference", where);
    p->forward.y_view.sequences = NULL;
    free(ys);
}

/* Input and upstream gradients where a caller has them, and results where he wants them, give the same bits as packed ones; what
 * is not finite is found. */
static void test_views(const problem *packed, const void *y, const backward_call *first, const char *where)
{
    crnn_dtype dtype = packed->stack.dtype;
    size_t y_width = now.directions * now.hidden, i = random_below(now.batch), row = 0, t = 0;
    problem p = *packed;
    int64_t bad = 77;
    crnn_tape *tape = NULL;
    while (net.lengths[i] == 0) i = 0;
    t = random_below(net.lengths[i]), row = (size_t)net.offsets[t] + i;
    p.forward.bad = &bad;
    void **xs = NULL, **dys = NULL, **dxs = NULL;
    if (!now.onehot) {
        p.forward.x = NULL;
        xs = scattered(dtype, net.x, now.input, APART, &p.forward.x_view);
    }
    check_outputs_apart(&p, y, APART, NULL, where);
    check_outputs_apart(&p, y, EVENLY_BACKWARDS, NULL, where);
    check_outputs_apart(&p, y, EVENLY, &tape, where);
    const size_t last = 2 * scheme_count();
    for (size_t n = 0; n <= last; n++) {
        const size_t s = n == last ? 0 : n / 2;
        const spacing evenly = n == last ? EVENLY_BACKWARDS : n % 2 ? EVENLY : APART;
        backward_call call = new_backward(dtype, &SCHEMES[s]);
        call.args.dy = NULL, call.args.bad = &bad;
        dys = scattered(dtype, dy, y_width, evenly, &call.args.dy_view);
        if (!now.onehot) {
            call.args.dx = NULL;
            dxs = scattered(dtype, NULL, now.input, evenly, &call.args.dx_view);
        }
        bad = 77;
        crnn_backward(&p.stack, &p.batch, tape, &call.args);
        CHECK(bad == -1, "%s: finite gradients, but row %lld is named", where, (long long)bad);
        backward_call seen = call;
        if (dxs) seen.args.dx = collected(dtype, &call.args.dx_view, now.input, where);
        check_same_gradients(dtype, &first[s], &seen, where);
        put(dtype, (char *)dys[i] + (ptrdiff_t)t * call.args.dy_view.step, random_below(y_width), t % 2 ? NAN : -INFINITY);
        crnn_backward(&p.stack, &p.batch, tape, &call.args);
        CHECK(bad == (int64_t)row, "%s: gradient row %lld is named instead of %zu", where, (long long)bad, row);
        free(dys), free(dxs), free(call.grads);
    }
    crnn_tape_free(tape);
    if (xs) {
        put(dtype, (char *)xs[i] + (ptrdiff_t)t * p.forward.x_view.step, random_below(now.input), t % 2 ? NAN : INFINITY);
        crnn_forward(&p.stack, &p.batch, &p.forward, NULL);
        CHECK(bad == (int64_t)row, "%s: input row %lld is named instead of %zu", where, (long long)bad, row);
    }
    free(xs);
}

static void test_case(const char *isa, crnn_dtype dtype)
{
    char where[300];
    problem p = make_problem(dtype);
    crnn_tape *tape = NULL;
    crnn_set_threads(1);
    snprintf(where, sizeof where, "%s %s %s", isa, dtype_name(dtype), label);

    new_forward_outputs(&p);
    crnn_status status = crnn_forward(&p.stack, &p.batch, &p.forward, NULL);
    CHECK(status == CRNN_OK, "%s: inference returned %d", where, (int)status);
    check_forward(&p, where);
    new_forward_outputs(&p);
    status = crnn_forward(&p.stack, &p.batch, &p.forward, &tape);
    CHECK(status == CRNN_OK && tape, "%s: forward returned %d", where, (int)status);
    check_forward(&p, where);
    const void *one_thread_y = p.forward.y;

    backward_call first[SCHEME_COUNT];
    for (size_t i = 0; i < scheme_count(); i++) {
        snprintf(where, sizeof where, "%s %s %s, truncation %zu", isa, dtype_name(dtype), label, i);
        first[i] = new_backward(dtype, &SCHEMES[i]);
        status = crnn_backward(&p.stack, &p.batch, tape, &first[i].args);
        CHECK(status == CRNN_OK, "%s: backward returned %d", where, (int)status);
        check_backward(dtype, &first[i], &expected[i], 1, where);
    }
    backward_call again = new_backward(dtype, &SCHEMES[0]);
    crnn_backward(&p.stack, &p.batch, tape, &again.args);
    check_same_gradients(dtype, &first[0], &again, "second backward from the same tape");
    again.args.accumulate = 1;
    crnn_backward(&p.stack, &p.batch, tape, &again.args);
    check_backward(dtype, &again, &expected[0], 2, "accumulated twice");
    free(again.grads);
    crnn_tape_free(tape);
    test_views(&p, one_thread_y, first, label);

    const int most = now.batch >= 14 ? 4 : 3; /* four: halves of a batch that have two each */
    for (int threads = 2; threads <= most; threads++) {
        snprintf(where, sizeof where, "%s %s %s, %d threads against 1", isa, dtype_name(dtype), label, threads);
        crnn_set_threads(threads);
        new_forward_outputs(&p);
        crnn_forward(&p.stack, &p.batch, &p.forward, &tape);
        check_same_bits(p.forward.y, one_thread_y, rows_of(&net) * now.directions * now.hidden * element(dtype), "y",
                        where);
        for (size_t i = 0; i < scheme_count(); i++) {
            backward_call call = new_backward(dtype, &SCHEMES[i]);
            crnn_backward(&p.stack, &p.batch, tape, &call.args);
            check_same_gradients(dtype, &first[i], &call, where);
            free(call.grads);
        }
        crnn_tape_free(tape);
        test_views(&p, one_thread_y, first, where);
    }
    for (size_t i = 0; i < scheme_count(); i++) free(first[i].grads);
    free(p.weights);
    free_buffers();
}

static void run(shape s)
{
    now = s;
    snprintf(label, sizeof label, "cell %d (%d%d) onehot %d bias %d masks %d states %d dense %d, %zu->%zu x%zu x%zu, B %zu T %zu",
             (int)s.cell, s.reset_after, s.z_state, s.onehot, s.bias, s.masks, s.states, s.dense, s.input, s.hidden, s.layers,
             s.directions, s.batch, s.steps);
    make_case();
    misaligned = (int)(random_bits() >> 63);
    on_every_isa(test_case);
    free_case();
}

int main(void)
{
    announce_isas();
    const double near = 1e-7, far = 2.6e-7; /* seconds */
    crnn_assume_handover(near);

    /* Each cell and switch, widths around the vector lengths, batches around the register tiles. */
    static const size_t HIDDEN[] = {1, 3, 8, 15, 16, 17, 33, 12, 24}, INPUT[] = {1, 5, 16, 7, 2, 9, 31, 24, 12};
    static const size_t BATCH[] = {1, 2, 3, 5, 6, 7, 13, 9, 14}, STEPS[] = {1, 2, 4, 5, 7, 3, 6, 4, 3};
    static const struct { crnn_cell cell; int reset_after, z_state; } CELLS[] = {
        {CRNN_RNN_TANH, 0, 0}, {CRNN_RNN_SIGMOID, 0, 0}, {CRNN_RNN_RELU, 0, 0}, {CRNN_LSTM, 0, 0},
        {CRNN_GRU, 0, 0}, {CRNN_GRU, 0, 1}, {CRNN_GRU, 1, 0}, {CRNN_GRU, 1, 1},
    };
    for (size_t c = 0; c < sizeof CELLS / sizeof *CELLS; c++) {
        shape s = {.cell = CELLS[c].cell, .reset_after = CELLS[c].reset_after, .z_state = CELLS[c].z_state};
        for (size_t i = 0; i < sizeof HIDDEN / sizeof *HIDDEN; i++) {
            s.hidden = HIDDEN[i], s.input = INPUT[i], s.batch = BATCH[i], s.steps = STEPS[i];
            s.layers = s.directions = 1, s.bias = i % 3 != 1, s.states = i % 2 == 0, s.onehot = i % 3 == 2, s.masks = 0;
            run(s);
        }
        s.onehot = 0, s.bias = s.states = 1, s.hidden = 5, s.input = 4, s.batch = 4, s.steps = 5;
        s.layers = 3, s.directions = 1, s.masks = 1;
        run(s);
        /* More losses than a window takes at a time, in several groups of sequences. */
        s.layers = 2, s.batch = 21, s.steps = 14, s.hidden = 9;
        if (c % 3 == 0 || c == 5) run(s);
        s.layers = 3, s.batch = 4, s.steps = s.hidden = 5;
        s.directions = 2; /* three: the middle layer's two directions read what came from above before either passes it on */
        run(s);
        s.layers = 2;
        run(s);
        s.masks = 0, s.directions = 1, s.onehot = 1, s.bias = 0;
        run(s);
        /* Enough work for threads: many sequences to share out, then few, where the units are shared. */
        s.layers = 1, s.onehot = 0, s.bias = 1, s.input = 19, s.hidden = 33, s.steps = 4, s.batch = 50;
        run(s);
        s.layers = 2, s.batch = 14;
        run(s);
        /* Sequences of one length, whose upstream gradients are read where they lie: whole vectors, half ones and others, both
         * directions. */
        s.dense = 1, s.states = c % 2;
        static const size_t UNITS[] = {16, 24, 32, 35, 21, 3};
        for (size_t i = 0; i < sizeof UNITS / sizeof *UNITS; i++) {
            s.hidden = UNITS[i], s.batch = 9 + 3 * i, s.steps = 3 + i % 3, s.layers = 1 + i % 2, s.directions = 1 + i / 2 % 2;
            run(s);
        }
        s.layers = 3, s.directions = 1;
        run(s);
        if (c == 0) { /* more rows than an RNN has gates for at a time */
            s.layers = 1, s.hidden = 64, s.batch = 136, s.steps = 8;
            run(s);
            s.batch = 7, s.steps = 76; /* threads share the units; float64 only */
            run(s);
        }
        s.dense = 0, s.states = 1, s.layers = 1, s.directions = 2, s.hidden = 16, s.batch = 14, s.steps = 4;
        run(s); /* ragged: in the reversed direction they do not lie evenly */
        s.layers = 2, s.directions = 1;
        if (c != 0 && c != 3 && c != 4 && c != 7) continue;
        /* The same on cores without a common cache. */
        crnn_assume_handover(far);
        s.hidden = 72, s.batch = 40;
        run(s);
        s.layers = 1, s.hidden = 112, s.batch = 14;
        if (c == 3) run(s);
        crnn_assume_handover(near);
        /* One sequence whose recurrent weights are read as they lie, in rows of whole vectors and others. */
        s.layers = 1, s.batch = 1, s.steps = 9, s.hidden = s.cell == CRNN_LSTM ? 272 : s.cell == CRNN_GRU ? 307 : 531;
        run(s);
        /* Short calls of a few: weights of the input as well are read as they lie (more than 1 MB, a row for 16 inputs at most), or
         * packed by each thread for itself. */
        s.input = s.cell == CRNN_RNN_TANH ? 512 : 288, s.batch = 3, s.steps = 4;
        run(s);
        s.onehot = 1;
        run(s);
        if (c != 3) continue;
        s.onehot = 0, s.dense = 1, s.batch = 9, s.steps = 2;
        run(s);
        s.dense = s.states = 0, s.directions = 2, s.batch = 1, s.steps = 3, s.input = 270, s.hidden = 270;
        run(s);
    }
    return finish("test_cells");
}
