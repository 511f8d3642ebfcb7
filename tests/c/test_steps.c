/* Steppers: one step at a time gives the same bits as crnn_forward step by step, for every cell and switch, stacks, one-hot
 * input, row counts on both sides of every tile, widths around the vector's, thread counts and instruction sets; a row's
 * results do not depend on the rows beside it, nor, up to eight, on their number, and more agree with a row alone to rounding;
 * states can be read and set between steps. */
#include "check.h"

typedef struct {
    crnn_cell cell;
    int reset_after, z_state, onehot, bias;
    size_t input, hidden, layers;
} net_shape;

static const net_shape SHAPES[] = {
    {CRNN_RNN_TANH, 0, 0, 0, 1, 3, 5, 1},   {CRNN_RNN_RELU, 0, 0, 0, 0, 17, 33, 2}, {CRNN_RNN_SIGMOID, 0, 0, 1, 1, 9, 16, 1},
    {CRNN_LSTM, 0, 0, 0, 1, 1, 1, 1},       {CRNN_LSTM, 0, 0, 0, 1, 31, 47, 2},     {CRNN_LSTM, 0, 0, 1, 1, 11, 20, 2},
    {CRNN_LSTM, 0, 0, 0, 0, 65, 64, 1},     {CRNN_GRU, 0, 0, 0, 1, 15, 18, 2},      {CRNN_GRU, 1, 0, 0, 1, 33, 32, 1},
    {CRNN_GRU, 1, 1, 1, 1, 7, 19, 2},       {CRNN_GRU, 0, 1, 0, 0, 64, 129, 1},     {CRNN_LSTM, 0, 0, 0, 1, 200, 130, 1},
    {CRNN_GRU, 0, 0, 0, 1, 150, 150, 1},    {CRNN_RNN_TANH, 0, 0, 0, 1, 260, 260, 1},
    {CRNN_GRU, 1, 0, 0, 1, 700, 35, 1},     {CRNN_RNN_RELU, 0, 0, 0, 1, 1501, 38, 1}, /* long rows (simd/columns.h) */
};
enum { SHAPE_COUNT = sizeof SHAPES / sizeof *SHAPES, STEPS = 3 };

static net_shape now;
static crnn_weights weights[2];
static crnn_stack stack;
static char label[160];

static void make_net(crnn_dtype dtype)
{
    size_t G = now.cell == CRNN_LSTM ? 4 : now.cell == CRNN_GRU ? 3 : 1, GH = G * now.hidden, ld = (GH + 15) / 16 * 16;
    for (size_t l = 0; l < now.layers; l++) {
        size_t width = l ? now.hidden : now.input;
        int onehot = now.onehot && l == 0;
        double *ih = random_doubles(onehot ? width * ld : GH * width, -0.3, 0.4), *hh = random_doubles(GH * now.hidden, -0.3, 0.2);
        double *bias = random_doubles(GH, -0.5, 1);
        weights[l] = (crnn_weights){.weight_ih = from_doubles(dtype, ih, onehot ? width * ld : GH * width),
                                    .weight_hh = from_doubles(dtype, hh, GH * now.hidden),
                                    .bias_ih = now.bias ? from_doubles(dtype, bias, GH) : NULL,
                                    .bias_hh = now.bias ? from_doubles(dtype, bias, GH) : NULL,
                                    .ld_ih = onehot ? ld : 0};
        free(ih), free(hh), free(bias);
    }
    stack = (crnn_stack){.dtype = dtype, .cell = now.cell, .reset_after = now.reset_after, .z_state = now.z_state,
                         .onehot = now.onehot, .input = now.input, .hidden = now.hidden, .layers = now.layers,
                         .directions = 1, .weights = weights};
}

static void *inputs(crnn_dtype dtype, size_t rows)
{
    if (now.onehot) {
        int64_t *ids = (int64_t *)buffer(CRNN_F64, rows);
        for (size_t i = 0; i < rows; i++) ids[i] = (int64_t)random_below(now.input);
        return ids;
    }
    double *values = random_doubles(rows * now.input, -1, 1.5);
    void *x = from_doubles(dtype, values, rows * now.input);
    free(values);
    return x;
}

static const void *input_row(crnn_dtype dtype, const void *x, size_t i)
{
    return (const char *)x + i * (now.onehot ? sizeof(int64_t) : now.input * element(dtype));
}

/* The stepper's states, packed as crnn_forward wants them. */
static void copy_states(crnn_dtype dtype, crnn_stepper *stepper, size_t rows, void *h, void *c, int set)
{
    crnn_states at = crnn_stepper_states(stepper);
    CHECK((at.c != NULL) == (now.cell == CRNN_LSTM), "%s: c of the states", label);
    for (size_t l = 0; l < now.layers; l++)
        for (size_t i = 0; i < rows; i++)
            for (int which = 0; which < (at.c ? 2 : 1); which++) {
                char *theirs = (char *)(which ? at.c : at.h) + (l * at.layer_step + i * at.row_step) * element(dtype);
                char *ours = (char *)(which ? c : h) + (l * rows + i) * now.hidden * element(dtype);
                memcpy(set ? theirs : ours, set ? ours : theirs, now.hidden * element(dtype));
            }
}

/* Row `from` of states of `rows` rows, as row `to` of the stepper's. */
static void copy_row_states(crnn_dtype dtype, crnn_stepper *stepper, size_t to, const void *h, const void *c, size_t rows,
                            size_t from)
{
    crnn_states at = crnn_stepper_states(stepper);
    size_t bytes = now.hidden * element(dtype);
    for (size_t l = 0; l < now.layers; l++) {
        size_t place = (l * at.layer_step + to * at.row_step) * element(dtype), source = (l * rows + from) * bytes;
        memcpy((char *)at.h + place, (const char *)h + source, bytes);
        if (at.c) memcpy((char *)at.c + place, (const char *)c + source, bytes);
    }
}

/* One step, summed up in another order: n terms of at most 0.5 each (weights under 0.4, inputs and states under 1.5), of which
 * each order is off by eps/2 of the sum so far, at most n/2, per term, and in practice by the root of the number of terms
 * (of a random walk) instead of their number; the slope of the gate functions is at most 1. A factor of 4 for two layers. */
static void check_rounding(crnn_dtype dtype, const void *a, const void *b, const char *what)
{
    double n = (double)(now.input + now.hidden), eps = dtype == CRNN_F32 ? 1.2e-7 : 2.3e-16;
    double *expected = malloc(now.hidden * sizeof *expected);
    for (size_t j = 0; j < now.hidden; j++) expected[j] = dtype == CRNN_F32 ? (double)((const float *)b)[j] : ((const double *)b)[j];
    check_close(dtype, a, expected, now.hidden, 4 * sqrt(n) * n / 2 * eps / 2, what, label);
    free(expected);
}

static void check_rows(crnn_dtype dtype, size_t rows)
{
    size_t item = element(dtype), states = now.layers * rows * now.hidden, outputs = rows * now.hidden;
    crnn_stepper *stepper = NULL, *alone = NULL, *reversed = NULL;
    crnn_status status = crnn_stepper_new(&stack, rows, &stepper);
    if (rows > 8 && status == CRNN_UNSUPPORTED) return;
    CHECK(status == CRNN_OK, "%s: crnn_stepper_new returned %d", label, (int)status);
    CHECK(crnn_stepper_new(&stack, 1, &alone) == CRNN_OK, "%s: crnn_stepper_new of one row", label);
    CHECK(crnn_stepper_new(&stack, rows, &reversed) == CRNN_OK, "%s: crnn_stepper_new once more", label);
    int lstm = now.cell == CRNN_LSTM;
    double *start = random_doubles(states, -1, 1);
    void *h = from_doubles(dtype, start, states), *c = lstm ? from_doubles(dtype, start, states) : NULL;
    void *h_now = output_buffer(dtype, states), *c_now = output_buffer(dtype, states);
    free(start);
    copy_states(dtype, stepper, rows, h, c, 1);
    int64_t offsets[2] = {0, (int64_t)rows};
    size_t probe = random_below(rows);
    for (size_t i = 0; i < rows; i++) copy_row_states(dtype, reversed, i, h, c, rows, rows - 1 - i);
    for (int t = 0; t < STEPS; t++) {
        if (t == 0 || rows > 8) copy_row_states(dtype, alone, 0, h, c, rows, probe);
        void *x = inputs(dtype, rows), *y = output_buffer(dtype, outputs), *expected = output_buffer(dtype, outputs);
        void *h_n = output_buffer(dtype, states), *c_n = lstm ? output_buffer(dtype, states) : NULL;
        crnn_forward_args args = {.x = now.onehot ? NULL : x, .ids = now.onehot ? x : NULL, .h0 = h, .c0 = c,
                                  .y = expected, .h_n = h_n, .c_n = c_n};
        CHECK(crnn_forward(&stack, &(crnn_batch){rows, 1, offsets}, &args, NULL) == CRNN_OK, "%s: crnn_forward", label);
        crnn_step(stepper, x, y);
        check_same_bits(y, expected, outputs * item, "y", label);
        copy_states(dtype, stepper, rows, h_now, c_now, 0);
        check_same_bits(h_now, h_n, states * item, "h", label);
        if (lstm) check_same_bits(c_now, c_n, states * item, "c", label);
        void *y_alone = output_buffer(dtype, now.hidden);
        crnn_step(alone, input_row(dtype, x, probe), y_alone);
        const char *y_probe = (const char *)y + probe * now.hidden * item;
        if (rows <= 8) check_same_bits(y_alone, y_probe, now.hidden * item, "y of a row alone", label);
        else check_rounding(dtype, y_alone, y_probe, "y of a row alone");
        size_t row_of_x = now.onehot ? sizeof(int64_t) : now.input * item;
        char *x_reversed = (char *)output_buffer(CRNN_F64, rows * now.input + rows), *y_reversed = (char *)output_buffer(dtype, outputs);
        for (size_t i = 0; i < rows; i++) memcpy(x_reversed + i * row_of_x, input_row(dtype, x, rows - 1 - i), row_of_x);
        crnn_step(reversed, x_reversed, y_reversed);
        for (size_t i = 0; i < rows; i++)
            check_same_bits(y_reversed + i * now.hidden * item, (char *)y + (rows - 1 - i) * now.hidden * item, now.hidden * item,
                            "y in another row", label);
        h = h_n, c = c_n;
    }
    crnn_stepper_free(stepper);
    crnn_stepper_free(alone);
    crnn_stepper_free(reversed);
}

static void sweep(const char *isa, crnn_dtype dtype)
{
    static const size_t ROWS[] = {1, 2, 3, 5, 6, 7, 8, 13, 15, 16, 18, 21, 27, 32, 44, 100};
    for (size_t n = 0; n < SHAPE_COUNT; n++) {
        now = SHAPES[n];
        misaligned = (int)(random_bits() >> 63);
        make_net(dtype);
        for (size_t i = 0; i < sizeof ROWS / sizeof *ROWS; i++)
            for (int threads = 1; threads <= (i % 3 == 1 ? 3 : 1 + (int)(i & 1)); threads++) {
                crnn_set_threads(threads);
                snprintf(label, sizeof label, "%s %s shape %zu, %zu rows, %d threads", isa, dtype_name(dtype), n, ROWS[i],
                         threads);
                check_rows(dtype, ROWS[i]);
            }
        free_buffers();
    }
    misaligned = 0;
}

/* Weights that are asked for in advance, more than 24 MiB: by one tile, by the last of two, by tiles of turned rows; more than 2 MiB
 * of an LSTM: by one row too, beside inputs that are shorter than a vector. */
static void far_weights(const char *isa, crnn_dtype dtype)
{
    static const net_shape FAR[] = {{CRNN_RNN_TANH, 0, 0, 0, 1, 3, 2600, 1}, {CRNN_LSTM, 0, 0, 0, 1, 3, 379, 1}};
    static const size_t ROWS[] = {1, 2, 3, 6, 7, 21};
    if (dtype != CRNN_F32) return;
    crnn_set_threads(1);
    for (size_t n = 0; n < sizeof FAR / sizeof *FAR; n++) {
        now = FAR[n];
        make_net(dtype);
        for (size_t i = 0; i < sizeof ROWS / sizeof *ROWS; i++) {
            snprintf(label, sizeof label, "%s far weights, shape %zu, %zu rows", isa, n, ROWS[i]);
            check_rows(dtype, ROWS[i]);
        }
        free_buffers();
    }
}

static void refusals(void)
{
    now = SHAPES[1];
    make_net(CRNN_F32);
    crnn_stepper *stepper = NULL;
    CHECK(crnn_stepper_new(&stack, 33, &stepper) == CRNN_UNSUPPORTED, "33 rows are too many");
    CHECK(crnn_stepper_new(&stack, 0, &stepper) == CRNN_INVALID, "no rows");
    stack.directions = 2;
    CHECK(crnn_stepper_new(&stack, 1, &stepper) == CRNN_INVALID, "two directions");
    CHECK(stepper == NULL, "a refused stepper was handed out");
    crnn_stepper_free(NULL);
    free_buffers();
}

int main(void)
{
    announce_isas();
    on_every_isa(sweep);
    on_every_isa(far_weights);
    refusals();
    return finish("test_steps");
}
