/* Memory: every allocation of every call may fail, once each; the call must say CRNN_NOMEM, leak nothing, and work again
 * when memory is back. Also the other answers that are not CRNN_OK. */
#include "check.h"
#include "internal.h"

static long allocations, failing_at, blocks_out;

static void *counting_allocate(size_t bytes)
{
    if (++allocations == failing_at) return NULL;
    void *block = malloc(bytes);
    blocks_out += block != NULL;
    return block;
}

static void counting_release(void *block)
{
    blocks_out -= block != NULL;
    free(block);
}

enum { INPUT = 5, HIDDEN = 9, LAYERS = 2, BATCH = 3, STEPS = 4, ROWS = BATCH * STEPS, VOCABULARY = 21, LD = 48 };

enum { HALVED = 40 }; /* so many sequences go in two halves */
static crnn_status train(crnn_dtype dtype, crnn_cell cell, crnn_truncation truncation, size_t sequences)
{
    const size_t rows = sequences * STEPS;
    size_t G = cell == CRNN_LSTM ? 4 : cell == CRNN_GRU ? 3 : 1;
    crnn_weights weights[LAYERS], grads[LAYERS];
    for (size_t layer = 0; layer < LAYERS; layer++) {
        size_t width = layer ? HIDDEN : INPUT;
        double *values = random_doubles(G * HIDDEN * (width > HIDDEN ? width : HIDDEN), -0.5, 0.6);
        weights[layer] = (crnn_weights){.weight_ih = from_doubles(dtype, values, G * HIDDEN * width),
                                        .weight_hh = from_doubles(dtype, values, G * HIDDEN * HIDDEN),
                                        .bias_ih = from_doubles(dtype, values, G * HIDDEN),
                                        .bias_hh = from_doubles(dtype, values, G * HIDDEN)};
        free(values);
        grads[layer] = (crnn_weights){.weight_ih = output_buffer(dtype, G * HIDDEN * width),
                                      .weight_hh = output_buffer(dtype, G * HIDDEN * HIDDEN),
                                      .bias_ih = output_buffer(dtype, G * HIDDEN),
                                      .bias_hh = output_buffer(dtype, G * HIDDEN)};
    }
    int64_t offsets[STEPS + 1];
    for (int t = 0; t <= STEPS; t++) offsets[t] = t * (int64_t)sequences;
    double *x = random_doubles(rows * INPUT, -1, 1);
    crnn_stack stack = {.dtype = dtype, .cell = cell, .input = INPUT, .hidden = HIDDEN, .layers = LAYERS,
                        .directions = 1, .weights = weights};
    crnn_batch batch = {.batch = sequences, .steps = STEPS, .offsets = offsets};
    crnn_forward_args forward = {.x = from_doubles(dtype, x, rows * INPUT), .y = output_buffer(dtype, rows * HIDDEN)};
    free(x);
    CHECK(crnn_in_halves(&stack, &batch, 0, 1) == (sequences == HALVED), "%zu sequences go in halves, or do not", sequences);
    CHECK(!crnn_in_halves(&stack, &batch, 1, 1), "masked sequences go in halves");
    CHECK(!crnn_in_halves(NULL, &batch, 0, 1) && !crnn_in_halves(&stack, NULL, 0, 1), "nothing goes in halves");
    crnn_tape *tape = NULL;
    crnn_status status = crnn_forward(&stack, &batch, &forward, &tape);
    if (status != CRNN_OK) {
        CHECK(tape == NULL, "a failed forward handed out a tape");
        return status;
    }
    CHECK(crnn_tape_in_halves(tape) == (sequences == HALVED), "a tape of %zu sequences in halves, or not", sequences);
    CHECK(!crnn_tape_in_halves(NULL), "no tape is in halves");
    crnn_backward_args backward = {.dy = forward.y, .truncation = truncation, .k1 = 2, .k2 = 3, .grads = grads,
                                   .dx = output_buffer(dtype, rows * INPUT)};
    status = crnn_backward(&stack, &batch, tape, &backward);
    crnn_tape_free(tape);
    return status;
}

static crnn_status infer_softmax(crnn_dtype dtype, int probabilities)
{
    double *values = random_doubles(HIDDEN * LD, -1, 1);
    for (size_t i = 0; i < HIDDEN * LD; i++)
        if (i % LD >= VOCABULARY) values[i] = 0;
    int64_t targets[ROWS] = {3, 0, 20, 7};
    double loss;
    crnn_softmax_args args = {.dtype = dtype, .rows = ROWS, .hidden = HIDDEN, .vocabulary = VOCABULARY,
                              .h = from_doubles(dtype, values, ROWS * HIDDEN),
                              .weight_t = from_doubles(dtype, values, HIDDEN * LD), .ld = LD, .targets = targets,
                              .dh = output_buffer(dtype, ROWS * HIDDEN), .rate = probabilities ? 0 : 0.1, .scale = 1};
    free(values);
    return probabilities ? crnn_softmax_probabilities(&args, output_buffer(dtype, ROWS * VOCABULARY))
                         : crnn_softmax_loss(&args, &loss);
}

static crnn_status step(crnn_dtype dtype)
{
    double *values = random_doubles(4 * HIDDEN * HIDDEN, -0.5, 0.6);
    crnn_weights weights = {.weight_ih = from_doubles(dtype, values, 4 * HIDDEN * INPUT),
                            .weight_hh = from_doubles(dtype, values, 4 * HIDDEN * HIDDEN)};
    crnn_stack stack = {.dtype = dtype, .cell = CRNN_LSTM, .input = INPUT, .hidden = HIDDEN, .layers = 1, .directions = 1,
                        .weights = &weights};
    void *x = from_doubles(dtype, values, BATCH * INPUT);
    free(values);
    crnn_stepper *stepper = NULL;
    crnn_status status = crnn_stepper_new(&stack, BATCH, &stepper);
    CHECK((status == CRNN_OK) == (stepper != NULL), "a failed crnn_stepper_new handed out a stepper");
    if (status == CRNN_OK) crnn_step(stepper, x, output_buffer(dtype, BATCH * HIDDEN));
    crnn_stepper_free(stepper);
    return status;
}

enum { CALLS = 10 };
static crnn_status call(int which, crnn_dtype dtype)
{
    switch (which) {
    case 0: return train(dtype, CRNN_RNN_TANH, CRNN_FULL, BATCH);
    case 1: return train(dtype, CRNN_LSTM, CRNN_FULL, BATCH);
    case 2: return train(dtype, CRNN_GRU, CRNN_FULL, BATCH);
    case 3: return train(dtype, CRNN_LSTM, CRNN_WINDOW, BATCH);
    case 4: return train(dtype, CRNN_GRU, CRNN_WINDOW, BATCH);
    case 5: return train(dtype, CRNN_GRU, CRNN_CHUNK, BATCH);
    case 6: return infer_softmax(dtype, 0);
    case 7: return step(dtype);
    case 8: return train(dtype, CRNN_LSTM, CRNN_CHUNK, HALVED);
    default: return infer_softmax(dtype, 1);
    }
}

static void sweep(const char *isa, crnn_dtype dtype)
{
    for (int threads = 1; threads <= 2; threads++) {
        crnn_set_threads(threads);
        for (int which = 0; which < CALLS; which++) {
            allocations = failing_at = 0;
            CHECK(call(which, dtype) == CRNN_OK, "%s %s: call %d fails with memory to spare", isa, dtype_name(dtype), which);
            long total = allocations;
            for (failing_at = 1; failing_at <= total; failing_at++) {
                allocations = 0;
                crnn_status status = call(which, dtype);
                CHECK(status == CRNN_NOMEM, "%s %s: call %d returned %d when allocation %ld of %ld failed", isa,
                      dtype_name(dtype), which, (int)status, failing_at, total);
                CHECK(blocks_out == 0, "%s %s: call %d leaks %ld blocks when allocation %ld of %ld fails", isa,
                      dtype_name(dtype), which, blocks_out, failing_at, total);
                blocks_out = 0;
            }
            failing_at = 0;
            CHECK(call(which, dtype) == CRNN_OK, "%s %s: call %d does not recover", isa, dtype_name(dtype), which);
            CHECK(blocks_out == 0, "%s %s: call %d leaks %ld blocks", isa, dtype_name(dtype), which, blocks_out);
            free_buffers();
        }
    }
}

/* Sizes whose products wrap around, some to next to nothing: refused before a weight is looked at. */
static void uncountable(void)
{
    const size_t most = (size_t)1 << 62, root = (size_t)1 << 31; /* input, hidden, layers, batch */
    const size_t sizes[][4] = {{most, 1, 1, 1}, {1, most, 1, 1}, {SIZE_MAX, 1, 1, 1}, {1, SIZE_MAX, 1, 1}, {root, root, 1, 1},
                               {1, 1, most, 1}, {1, root, 1, root}, {1, root, root, 1}, {1, 1, 1, most}};
    const int64_t offsets[] = {0, 1};
    crnn_weights weights = {0};
    crnn_stepper *stepper = NULL;
    allocations = 0;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        crnn_stack stack = {.cell = CRNN_LSTM, .input = sizes[i][0], .hidden = sizes[i][1], .layers = sizes[i][2], .directions = 1,
                            .weights = &weights};
        crnn_status status = crnn_forward(&stack, &(crnn_batch){sizes[i][3], 1, offsets}, &(crnn_forward_args){0}, NULL);
        CHECK(status == CRNN_NOMEM, "forward returned %d for sizes %zu that cannot be counted", (int)status, i);
        status = crnn_stepper_new(&stack, sizes[i][3], &stepper);
        CHECK(status == (sizes[i][3] == most ? CRNN_UNSUPPORTED : CRNN_NOMEM) && !stepper, "a stepper: %d for sizes %zu", (int)status, i);
    }
    CHECK(allocations == 0, "%ld allocations for sizes that cannot be counted", allocations);
}

/* Whether a block of the cache holds what was written into one of that size before, or comes from the system. */
enum { MARK = 0x5a };
static int is_marked(const unsigned char *block, size_t bytes)
{
    for (size_t i = bytes - 4096; i < bytes; i++)
        if (block[i] != MARK) return 0;
    return 1;
}

static void pass_blocks(int count)
{
    for (int i = 0; i < count; i++) crnn_release(crnn_allocate(4096));
}

/* A loop finds again what it has released, however much; when less was in use for a while, or when asked, it goes back to the system.
 * Fresh pages of Linux are zero. */
static void kept(void)
{
#if defined(__linux__) && !defined(CRNN_ADDRESS_SANITIZER)
    const size_t large = (size_t)160 << 20, larger = (size_t)400 << 20;
    unsigned char *one, *two;
    crnn_release_kept();
    for (int again = 0; again < 4; again++) {
        one = crnn_allocate(large), two = crnn_allocate(large);
        CHECK(is_marked(one, large) + is_marked(two, large) == (again ? 2 : 0), "of two blocks that were in use at once one is gone");
        memset(one + large - 4096, MARK, 4096), memset(two + large - 4096, MARK, 4096);
        crnn_release(one);
        crnn_release(two);
        pass_blocks(100);
    }
    pass_blocks(600); /* since nothing large was in use */
    one = crnn_allocate(large), two = crnn_allocate(large);
    CHECK(is_marked(one, large) + is_marked(two, large) == 1, "more is kept than was in use lately");
    memset(one + large - 4096, MARK, 4096), memset(two + large - 4096, MARK, 4096);
    crnn_release(one);
    crnn_release(two);
    unsigned char *three = crnn_allocate(larger); /* beside which both of the others would be too much */
    one = crnn_allocate(large), two = crnn_allocate(large);
    CHECK(is_marked(one, large) + is_marked(two, large) == 1, "two blocks stay beside a larger one");
    crnn_release(one);
    crnn_release(two);
    crnn_release(three);
    crnn_release_kept();
    one = crnn_allocate(larger);
    memset(one + larger - 4096, MARK, 4096);
    crnn_release(one);
    one = crnn_allocate(larger);
    CHECK(is_marked(one, larger), "a single large block is not kept");
    crnn_release(one);
    crnn_release_kept();
    one = crnn_allocate(larger);
    CHECK(!is_marked(one, larger), "what was kept has not gone back");
    crnn_release(one);
    crnn_release_kept();
#if !defined(__SANITIZE_THREAD__) /* which ends the program there */
    CHECK(crnn_allocate(SIZE_MAX / 2) == NULL, "half of all addresses were allocated");
#endif
#else
    (void)is_marked, (void)pass_blocks;
    printf("test_memory: no kept blocks here (a sanitizer, or not Linux)\n");
#endif
}

int main(void)
{
    announce_isas();
    kept();
    crnn_set_allocator(counting_allocate, counting_release);
    on_every_isa(sweep);
    uncountable();
    crnn_set_allocator(NULL, NULL);
    const char *active = crnn_isa_active();
    CHECK(crnn_isa_set("no such set") == CRNN_UNSUPPORTED, "an unknown instruction set was accepted");
    CHECK(strcmp(crnn_isa_active(), active) == 0, "a refused instruction set became active");
    CHECK(train(CRNN_F32, CRNN_LSTM, CRNN_FULL, BATCH) == CRNN_OK, "the default allocator does not come back");
    free_buffers();
    return finish("test_memory");
}
