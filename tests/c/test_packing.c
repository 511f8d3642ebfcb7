/* Inference leaves packed weights alone that have not changed since the last call: it must see every one that has. Training
 * packs anew each time, so the same outputs to the bit are wanted from both. */
#include "check.h"

enum { INPUT = 19, BATCH = 14, STEPS = 3 };

typedef struct {
    crnn_stack stack;
    crnn_weights weights;
    crnn_batch batch;
    crnn_forward_args args;
    size_t y_bytes;
    char where[120];
} layer;

static void *some_values(crnn_dtype dtype, size_t n)
{
    double *values = random_doubles(n, -1, 1.2);
    void *a = from_doubles(dtype, values, n);
    free(values);
    return a;
}

static void outputs(layer *l, int training)
{
    crnn_tape *tape = NULL;
    memset(l->args.y, 0xff, l->y_bytes);
    CHECK(crnn_forward(&l->stack, &l->batch, &l->args, training ? &tape : NULL) == CRNN_OK, "%s: forward failed", l->where);
    crnn_tape_free(tape);
}

static void changed_weights(layer *l)
{
    const crnn_dtype dtype = l->stack.dtype;
    const size_t H = l->stack.hidden, gates = l->stack.cell == CRNN_LSTM ? 4 : l->stack.cell == CRNN_GRU ? 3 : 1;
    void *before = allocate(l->y_bytes), *inference = allocate(l->y_bytes);
    outputs(l, 0);
    for (int round = 0; round < 24; round++) {
        memcpy(before, l->args.y, l->y_bytes);
        outputs(l, 0);
        CHECK(!memcmp(before, l->args.y, l->y_bytes), "%s: the same weights, other outputs", l->where);
        const int recurrent = round % 2;
        const size_t size = gates * H * (recurrent ? H : INPUT), at = random_below(size);
        void *w = recurrent ? l->weights.weight_hh : l->weights.weight_ih;
        put(dtype, w, at, get(dtype, w, at) + 0.75);
        outputs(l, 0);
        memcpy(inference, l->args.y, l->y_bytes);
        CHECK(memcmp(before, inference, l->y_bytes), "%s: weight %zu of %zu (%s) has no effect", l->where, at, size,
              recurrent ? "hh" : "ih");
        outputs(l, 1);
        CHECK(!memcmp(inference, l->args.y, l->y_bytes), "%s: inference and training differ", l->where);
    }
    free(before), free(inference);
}

static void one_layer(const char *isa, crnn_dtype dtype, crnn_cell cell, int reset_after, size_t H, int threads)
{
    const size_t GH = (cell == CRNN_LSTM ? 4 : cell == CRNN_GRU ? 3 : 1) * H, rows = BATCH * STEPS;
    int64_t offsets[STEPS + 1];
    for (size_t t = 0; t <= STEPS; t++) offsets[t] = (int64_t)(t * BATCH);
    layer l = {.y_bytes = rows * H * element(dtype), .batch = {BATCH, STEPS, offsets}};
    snprintf(l.where, sizeof l.where, "%s %s cell %d (%d), %zu units, %d threads", isa, dtype_name(dtype), (int)cell, reset_after,
             H, threads);
    l.weights = (crnn_weights){some_values(dtype, GH * INPUT), some_values(dtype, GH * H), NULL, NULL, 0};
    l.stack = (crnn_stack){dtype, cell, reset_after, 1, 0, INPUT, H, 1, 1, &l.weights};
    l.args = (crnn_forward_args){.x = some_values(dtype, rows * INPUT), .y = output_buffer(dtype, rows * H)};
    crnn_set_threads(threads);
    changed_weights(&l);
    free_buffers();
}

static void every_cell(const char *isa, crnn_dtype dtype)
{
    static const size_t HIDDEN[] = {17, 32, 75};
    for (size_t h = 0; h < sizeof HIDDEN / sizeof *HIDDEN; h++)
        for (int threads = 1; threads <= 2; threads++) {
            one_layer(isa, dtype, CRNN_RNN_TANH, 0, HIDDEN[h], threads);
            one_layer(isa, dtype, CRNN_LSTM, 0, HIDDEN[h], threads);
            one_layer(isa, dtype, CRNN_GRU, 0, HIDDEN[h], threads);
            one_layer(isa, dtype, CRNN_GRU, 1, HIDDEN[h], threads);
        }
}

int main(void)
{
    announce_isas();
    crnn_assume_handover(1e-7);
    on_every_isa(every_cell);
    return finish("test_packing");
}
