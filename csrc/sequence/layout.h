/* Where everything of one call lives: sizes, the tape, packed weights, the split between threads. */

/* One layer in one direction. */
typedef struct {
    const T *wih, *whh, *bih, *bhh;
    size_t ldwih;      /* one-hot: row stride of the transposed weights */
    size_t input;      /* width of the layer's input */
    int reversed;
    T *x;              /* (R, ldx) the layer's input in the direction's row order; null when one-hot */
    size_t ldx;
    int x_late;        /* x is copied from where the caller has it when its steps come up, and unless s->keep there are only these */
    T *gates;          /* (R, ldg) as the cell leaves them; unless s->keep_gates: only the steps in work, in s->rooms rooms */
    T *reset;          /* (R, ldh) GRU, reset before: r * h_{t-1}, for as many rows; null elsewhere */
    T *h, *c;          /* (B + R, ldh): rows 0..B-1 initial state, then one row per packed row; of c unless s->keep (B, ldh), in place */
    T *bias;           /* (slots * Hp) what the pre-activations start from */
    T *pack_ih, *pack_hh, *pack_n; /* null: these weights are read as they lie */
    int packed;        /* another half of the batch has done so */
    int lying;         /* W_ih is; otherwise, without pack_ih, BLAS reads it or words are looked up */
} layer_run;

typedef enum { BY_SEQUENCES, BY_UNITS, INPUT_FIRST } split_kind;

/* How threads share the time loops, forward and backward; all else is shared always. */
typedef struct {
    int threads, brief; /* brief: a few tens of microseconds */
    int far;            /* cores without a common cache: what both have read is pushed out in the end (crnn_push_out) */
    int halves;         /* of a batch in halves: threads for both, who may have to do one after the other (halves.h) */
    int apart;          /* each direction is walked by half of the threads, which share it as follows */
    split_kind forward, backward;
} thread_plan;

typedef struct {
    struct crnn_tape head;
    cell_shape shape;
    size_t B, steps, R, H, Hp, UV, ldg, ldh, L, D;
    const int64_t *offsets;  /* the tape's own copy */
    size_t *length;          /* (B) of the sorted sequences */
    int64_t *flip;           /* (R) row of the reversed sequence; null when there is one direction */
    int64_t *ids;            /* (R) one-hot */
    T *masks;                /* (L-1, R, D*H) or null */
    int dense;               /* all sequences have T steps */
    int keep;
    int keep_gates;          /* backward reads them */
    size_t rooms;            /* for gates that backward does not read: threads that have a room of their own */
    int small;               /* so few rows that packing the weights would cost more than it saves (small.h) */
    int zero_start;          /* no initial state was given */
    int stepping;            /* one step again and again: the two halves of h change places */
    int blas;                /* does the products over all rows: asked once per call, since the layout follows from it */
    thread_plan plan;
    size_t first_level;      /* bytes */
    size_t chunk_rows, c_rows; /* c_rows: from layer to layer */
    int x_late;              /* of the first layer */
    layer_run *layers;       /* (L*D) */
    _Alignas(CRNN_LINE) int turn; /* stepping: parity of the step; all before stays in the workers' caches */
} run_state;

/* Bump allocation in two passes over the same code: first to measure (base null), then to hand out. Bytes and their sum are checked
 * here, the products that counts are by crnn_forward (countable in dispatch/dispatch.c). */
typedef struct {
    char *base;
    size_t used;
    int overflow;
} arena;

static void *take(arena *a, size_t count, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes) || bytes > SIZE_MAX - 2 * CRNN_LINE) {
        a->overflow = 1;
        return NULL;
    }
    bytes = round_up(bytes, CRNN_LINE);
    void *block = a->base ? a->base + a->used : NULL;
    if (__builtin_add_overflow(a->used, bytes, &a->used)) a->overflow = 1;
    return block;
}
#define TAKE(a, type, count) ((type *)take(a, count, sizeof(type)))

/* Rows of real data carry one extra cache line at the end of the block: tiles may read past the last column. */
static T *take_rows(arena *a, size_t rows, size_t ld) { return TAKE(a, T, rows * ld + 64 / sizeof(T) * 4); }

INLINE size_t block_rows(const run_state *s, size_t t)
{
    return t < s->steps ? (size_t)(s->offsets[t + 1] - s->offsets[t]) : 0;
}

/* Row of h that the first step's states go to; they come from row B less this. A stepper goes to and fro between the two, as
 * its turn says: a copy would take from the other threads what they have written (two threads, 4 to 16 sequences: 1 to 8 %). */
INLINE size_t rows_after(const run_state *s, int turn) { return s->stepping && !turn ? 0 : s->B; }

/* Row of the state that enters block t: initial states first, then packed rows. */
INLINE size_t state_row_before(const run_state *s, size_t t) { return t ? s->B + (size_t)s->offsets[t - 1] : 0; }

/* The step that packed row r belongs to. */
static size_t step_of(const run_state *s, size_t r)
{
    size_t t = 0;
    while (t + 1 < s->steps && (size_t)s->offsets[t + 1] <= r) t++;
    return t;
}

/* The packed row that is kept in the first row of x while the steps from t0 on are in work. */
INLINE size_t first_of_x(const run_state *s, const layer_run *run, size_t t0)
{
    return run->x_late && !s->keep ? (size_t)s->offsets[t0] : 0;
}

/* Where a caller's sequence i has its step t, counted from the other end in a reversed direction. */
INLINE char *view_row(const run_state *s, const crnn_view *view, int reversed, size_t t, size_t i)
{
    return (char *)view->sequences[i] + (ptrdiff_t)(reversed ? s->length[i] - 1 - t : t) * view->step;
}

/* Packed rows [lo, hi) in an order in which several steps of a sequence follow each other: where a caller has them they lie side by
 * side, and the hardware reads ahead. */
#define STEPS_TOGETHER 16
typedef struct {
    size_t lo, hi, first; /* first: of the steps that are walked together */
    size_t i0, i1;        /* only these sequences */
    size_t t, i, row;     /* the row where the walk stands: step, sequence, packed row */
} row_walk;

static row_walk walk_sequences(const run_state *s, size_t lo, size_t hi, size_t i0, size_t i1)
{
    const size_t first = lo < hi ? step_of(s, lo) : 0;
    return (row_walk){.lo = lo, .hi = i0 < i1 ? hi : lo, .first = first, .i0 = i0, .i1 = i1, .t = first - 1, .i = i0};
}
static row_walk walk_rows(const run_state *s, size_t lo, size_t hi) { return walk_sequences(s, lo, hi, 0, s->B); }

/* Moves on to the next row, before all to the first one; 0: there is none. */
static int next_row(const run_state *s, row_walk *w)
{
    while (w->lo < w->hi) {
        const size_t t = ++w->t;
        if (t == w->first + STEPS_TOGETHER || w->i >= block_rows(s, t) || (size_t)s->offsets[t] + w->i >= w->hi) {
            if (++w->i >= w->i1 || w->i >= block_rows(s, w->first)) {
                w->first += STEPS_TOGETHER;
                w->i = w->i0;
                if (w->i >= block_rows(s, w->first) || (size_t)s->offsets[w->first] >= w->hi) return 0;
            }
            w->t = w->first;
        }
        w->row = (size_t)s->offsets[w->t] + w->i;
        if (w->row >= w->lo && w->row < w->hi) return 1;
    }
    return 0;
}

/* The smaller of the rows that are named, -1 naming none. */
INLINE void note_bad(int64_t *bad, size_t row)
{
    if (*bad < 0 || (int64_t)row < *bad) *bad = (int64_t)row;
}

static int64_t first_bad(const int64_t *bad, size_t count)
{
    int64_t first = -1;
    for (size_t i = 0; i < count; i++)
        if (bad[i] >= 0) note_bad(&first, (size_t)bad[i]);
    return first;
}

/* Rows up to which the weights of both products are used as they lie: a short call, or one step. Sums along the rows of the
 * weights cost a turn of vectors each, which wide layers notice less than narrow ones; packing costs a pass over the weights.
 * They meet at about one row for every 16 inputs on two threads and for every 10 on one (steps of 24 rows, 128 units: -9 and
 * +7 %); with two tiles of DOT_ROWS at most, at one for every 10 on both (50 to 64 units: -3 to 12 % and 20 to 55 %). */
#define SHORT_ROWS 8
#define SMALL_ROWS 32
INLINE int few_for_sums(size_t rows, size_t inputs) { return rows <= SMALL_ROWS && rows <= inputs / (rows <= 12 ? 10 : 16); }

/* Whether turned rows (simd/turned.h) are faster than sums and than packing the weights.
 * In one vector, where nearly all lanes are in use (LSTMs of 160 to 900 units, one thread and two: 16 rows 1.04 to 1.23 and 1.03 to
 * 1.18 times as fast, 15 rows 1.10 to 1.17 and 1.08, 14 rows 1.03 and 0.99), and with fewer where the rows of sums outgrow the first level
 * (Zen 5, LSTMs: 1046 inputs in all, 13 and 14 rows 1.09 to 1.16, 12 rows 0.99 to 1.01; 832 inputs, 12 rows 0.90 to 0.93; 1539 inputs, 12
 * rows 1.24 and 1.45, 9 rows 1.00 and 1.16). Eight sums of eight lanes just cover each other's latency: there only narrow layers gain
 * (AVX2, 16 rows: 128 units 1.05). Up to 8 rows a row's bits are to be the same for any number of rows, and 8 rows in half a vector would
 * be faster up to 128 units only (1.00 to 1.14; 256 units 0.89).
 * More vectors multiply each number of W more than once and come near the peak (Zen 5: tiles alone 94 to 100 % of it with 24 to 48
 * rows, the weights in the third level, where tiles of one vector reach 87 %). Against sums, up to 32 rows, one thread and two: LSTMs of
 * 300 to 512 units 20 to 32 rows 1.06 to 1.17, 17 and 18 rows 0.97 to 1.04; of 1000 and 1500 units 17 to 32 rows 1.03 to 1.53; float64 12
 * to 32 rows 1.01 to 1.59, 9 rows 0.85 to 0.96. Against packed weights: 128 units, 17 to 32 rows 1.06 to 1.35, of 128 to 512 units 33 to
 * 64 rows 1.03 to 1.30, 128 and 192 rows 0.96 to 1.11, of 1000 and 1500 1.39 to 2.25 and 1.05 to 1.27; 64 units, 64 and 96 rows 0.93 to
 * 1.00, 32 units 0.8 to 0.9.
 * With sixteen registers three vectors, which four rows of W multiply at a time, want to be filled (AVX2 on Zen 5, LSTMs of 128 to 1000
 * units, one thread and two: 21 to 24 rows against sums 1.00 to 1.22, 40 to 96 against packed weights 0.98 to 1.28; in two vectors 28 rows
 * 0.76 to 0.95, three with 19 and 20 rows 0.84 to 1.08). */
#define TURNED_ROWS 192
#define SHORT_INPUTS 120
#define NARROW_INPUTS 256
#define WIDE_INPUTS 900
#define WIDEST_INPUTS 1400
static int turning_pays(size_t rows, size_t inputs)
{
    if (TURNED_VECTORS == 1 || rows <= SHORT_ROWS) return 0;
    if (PAIRED && rows > VW && inputs >= SHORT_INPUTS) {
        if (few_for_sums(rows, inputs)) return rows > (LANE_COUNT == 16 ? 18 : 10) || (inputs >= WIDE_INPUTS && rows > SHORT_ROWS + 1);
        return rows <= inputs / 3;
    }
    const size_t lanes = round_up(rows, TURNED_VECTORS * VW);
    if (!PAIRED && inputs >= SHORT_INPUTS && rows <= inputs / 5 && (8 * rows >= 7 * lanes || (rows > SMALL_ROWS && 6 * rows >= 5 * lanes)))
        return 1;
    const size_t sixteenths = inputs < WIDE_INPUTS ? 15 : inputs < WIDEST_INPUTS ? 13 : 10;
    return rows <= SMALL_ROWS && 16 * rows >= sixteenths * round_up(rows, VW) && (LANE_COUNT == 16 || inputs <= NARROW_INPUTS);
}

static int few_rows(size_t rows, size_t steps, size_t inputs)
{
    return rows <= SHORT_ROWS || (steps == 1 && rows <= TURNED_ROWS && (turning_pays(rows, inputs) || few_for_sums(rows, inputs)));
}

/* A team costs about 2 us to start and a barrier 0.3 us. Enough sequences: each thread takes some for the whole loop.
 * Few but wide: all threads take all sequences and some units, meeting once per step; a thread's share of W_hh then
 * stays in its own cache (Zhang et al., DeepCPU, 2018). Few and narrow: the input comes first, for which all share all
 * rows, since the few of a step would make bad tiles; then each thread takes its sequences, or if there are fewer of
 * them than threads, one takes all (two threads, forward and backward of 4 or 5 sequences: LSTM and GRU of 33 to 40
 * units 19 to 27 % over one thread, forward of an RNN of 128 units 21 % over splitting the units).
 * Forward, a thread's whole W_hh may not fit its second level; then splitting the units halves what each reads per step,
 * which is worth a barrier up to FEW_ROWS rows per thread (2 to 8 % at 8 to 10 rows, nothing at 32). Backward it is not:
 * each thread would need the other's gate gradients of the same step. */
#define WIDE_BYTES ((size_t)1 << 20)
#define FEW_ROWS 16

/* A single sequence with recurrent weights beyond the second level reads each once per step: as they lie, along their rows,
 * which saves packing them and suits the hardware's prefetching (LSTM and GRU of 512 units: 11 to 17 % of forward and
 * backward; where they fit, tiles are 2 % faster). Rows that begin anywhere cross cache lines all along: they lie for some steps
 * only, forward for more than backward (forward of an LSTM of 361 units: 28 steps equal, 100 steps 10 % faster packed; forward
 * and backward of one of 390 units, 200 steps: 2 to 3 %). */
#define LYING_STEPS 64
static int is_wide(const run_state *s, size_t inputs) { return (size_t)s->shape.gates * s->H * inputs * sizeof(T) > WIDE_BYTES; }
static int one_sequence_lies(const run_state *s, size_t steps)
{
    return s->B == 1 && is_wide(s, s->H) && (s->H % 16 == 0 || s->steps <= steps);
}

/* In short calls of several sequences W_hh lies too, while its few uses cost less than packing it (forward of LSTMs and GRUs of
 * 512 units: 5 to 35 % with 20 to 40 rows, nothing with 80; of 700 units: 7 to 20 % with 60), and so does W_ih, while they are
 * fewer still, and most of all where one pass serves them all (LSTMs of 300 to 360 units, 24 rows: 4 to 10 %). What fits the
 * second level is packed faster than that. */
static int recurrent_lies(const run_state *s)
{
    return one_sequence_lies(s, LYING_STEPS) || (s->B <= SMALL_ROWS && s->R <= s->H / 8 && is_wide(s, s->H));
}
static int input_lies(const run_state *s, size_t input)
{
    return s->R <= input / (s->R <= SMALL_ROWS ? 8 : 16) && is_wide(s, input);
}

/* One step of few rows, or several of a layer that is not wide: those of a wide one read W_ih once for all, not once per step (up to
 * a third faster). */
static int runs_small(const run_state *s, size_t inputs)
{
    return few_rows(s->R, s->steps, inputs) && (s->steps == 1 || !is_wide(s, s->H));
}

/* W_ih need not be packed for all to share in a short call: each thread packs the tile that it works on, if no later rows want it
 * again (LSTMs of 512 units with 75 rows 8 %, of 794 units with 150 rows 10 % of forward; 512 units with 240 rows lose 2 %). */
#define ROOM_MOST 160
static int input_in_rooms(const run_state *s)
{
    const int walkers = s->plan.apart ? s->plan.threads / 2 : s->plan.threads;
    return is_wide(s, s->H) && s->R <= ROOM_MOST && (walkers == 1 || s->plan.forward != BY_SEQUENCES);
}

/* So few rows and so many weights that packing W_ih for the gradient of the input costs more than it saves, most of all room
 * in the third level. Forward and backward on two threads and one, against packing it from 65 rows on (Zen 5): 80 rows, LSTM of 512 units
 * 1.17 and 1.05, RNN of 650 1.13; 160 rows, 512 units 1.05 and 1.05; 320 to 400 rows, GRU and LSTMs of 500 and 512 units 1.03 to 1.07
 * and 1.03 to 1.05; 700 rows, LSTM and GRU of 650 1.01; of 800 and 1000 units 640 to 1280 rows 1.02 to 1.07. Beyond that nothing, or 1 or
 * 2 % lost; with weights that fit the second level packed ones are faster (200 units: 300 rows 1.02, 700 rows 1.02). In float64 half as
 * many rows (160 to 320 rows 1.02 to 1.05; 600 and 700 rows, GRU of 650 units, 0.97). */
#define LYING_MOST ((size_t)3072 / sizeof(T))
#define LYING_WEIGHTS 2048
static int input_lies_back(const run_state *s, size_t input)
{
    const size_t weights = (size_t)s->shape.gates * s->H * input, most = weights / LYING_WEIGHTS;
    return is_wide(s, input) && s->R <= (most > LYING_MOST ? most : LYING_MOST);
}

/* With ROWS_EACH sequences per thread tiles are as good either way, and what threads wait for each other decides: for the one
 * that has the most rows, or for the one that has the most units and for the barriers of every step (8 sequences of 128 units
 * gain 5 to 20 % by sequences, 9 of them lose 4 %). In ragged batches sequences differ too much. */
#define ROWS_EACH 4
static int units_wait_less(const run_state *s, size_t threads, double cross, double step_flops)
{
    double most = 0, saved = half_left(s->Hp, s->H) ? 0.5 : 0;
    if (!s->dense) return 1;
    for (size_t rank = 0, lo, hi; rank < threads; rank++) {
        crnn_share(s->UV, 1, (int)rank, (int)threads, &lo, &hi);
        most = fmax(most, (double)(hi - lo) - (hi == s->UV ? saved : 0));
    }
    double units = most * (double)(threads * VW) / (double)s->H;
    double sequences = (double)(tile_count(s->B, threads) * threads) / (double)s->B;
    double step = step_flops / ((double)threads * 4e11 / sizeof(T)); /* seconds, at a peak that need not be precise */
    return units + 3 * cross / step < sequences;
}

/* From here on the products over all rows repay a team of two, even if one thread walks the time loop alone; if they
 * share that too, from half of it. */
#define FIRST_FLOPS 4e6

/* Of all layers in one direction; a single step from zeros has no recurrent products. */
static double flops_of(const run_state *s, size_t input)
{
    const size_t states = s->steps == 1 && s->zero_start ? 0 : s->H;
    return 2.0 * (double)s->R * (double)(s->shape.gates * s->H) * (double)(input + states) * (double)s->L;
}

/* What repays a team whose hand-over takes so long. In a call of a few rows every line of states goes from one thread to the others
 * too, and backward shares less well than forward. */
static double least_flops(const run_state *s, double cross)
{
    const double lines = (double)(s->R * s->L) * (double)(s->Hp * sizeof(T)) / CRNN_LINE, least = fmax(1e5, (6e11 + 1e10 * lines) * cross);
    if (!s->small) return fmax(1e6, 8e12 * cross);
    return s->keep ? 2 * least : least;
}

/* For `most` threads and directions one after the other. */
static thread_plan plan_for(const run_state *s, size_t input, size_t most)
{
    double weights = (double)(s->shape.gates * s->H) * (double)s->H, step_flops = 2.0 * (double)s->B * weights;
    double flops = flops_of(s, input);
    size_t useful = s->B / ROWS_EACH > s->UV ? s->B / ROWS_EACH : s->UV;
    if (useful == 1 && !s->small && flops >= FIRST_FLOPS) useful = (size_t)(flops / (FIRST_FLOPS / 2));
    if (most > useful) most = useful;
    double cross = most > 1 && flops > 1e5 ? crnn_handover((int)most) : 0;
    if (flops < least_flops(s, cross)) most = 1;
    thread_plan plan = {.threads = (int)most, .brief = s->small && flops < 2e6, .far = most > 1 && !s->small && crnn_far(cross),
                        .forward = BY_SEQUENCES, .backward = BY_SEQUENCES};
    if (most == 1) return plan;
    const int each = s->B >= most * ROWS_EACH, units = s->UV >= most;
    const int first = !crnn_far(cross) && flops >= FIRST_FLOPS / (s->B >= most ? 2 : 1);
    const double meeting = fmax(first && flops >= FIRST_FLOPS && s->B >= 2 * most ? 2e5 : 6e4, 2.5e11 * cross);
    if (units && (s->small || recurrent_lies(s) || !each ||
                  (s->B < most * 2 * ROWS_EACH && units_wait_less(s, most, cross, step_flops)))) {
        if (step_flops >= (s->small ? 6e4 : meeting)) plan.forward = plan.backward = BY_UNITS;
        else if (each) plan.forward = plan.backward = BY_SEQUENCES;
        else if (first) plan.forward = plan.backward = INPUT_FIRST;
        else plan.threads = 1;
    } else if (!units && !each) { /* few sequences, narrow: the products over all rows can be shared */
        if (first) plan.forward = plan.backward = INPUT_FIRST;
        else plan.threads = 1;
    }
    if (units && plan.threads > 1 && weights * sizeof(T) >= WIDE_BYTES && s->B < most * FEW_ROWS) plan.forward = BY_UNITS;
    return plan;
}

/* The two directions of a layer do not wait for each other. Walked apart, each by half of the threads, they take equally
 * long however the lengths of sequences differ, and two threads need no barrier between a layer's beginning and its end,
 * nor what the other has packed (one layer: 0 to 8 % with 8 sequences and more, 4 to 32 % with one; 1 to 8 steps of 300
 * units 36 to 44 %). */
static thread_plan choose_threads(const run_state *s, size_t input)
{
    const size_t most = (size_t)crnn_get_threads();
    const double flops = 2 * flops_of(s, input);
    if (s->D == 1 || most % 2) return plan_for(s, input, most);
    const double cross = flops > 1e5 ? crnn_handover((int)most) : 0;
    if (flops < least_flops(s, cross)) return plan_for(s, input, 1);
    thread_plan plan = plan_for(s, input, most / 2);
    plan.threads *= 2;
    plan.apart = 1;
    plan.far = !s->small && crnn_far(cross);
    return plan;
}

/* Gates that backward does not read: a room for each thread that has units of its own, or sequences of a ragged batch, which move from
 * row to row between chunks (with a dense one rooms are worth nothing). In one room the hardware, which fetches ahead of what a thread
 * writes, would take lines from another one at each end of each gate of each row (steps of 3 to 16 sequences, near cores 1.03 to
 * 1.15, far ones 1.14 to 1.47 times as fast). A stepper's plan may change from step to step. */
#define ROOMS_APART ((size_t)4096)
static size_t rooms_of_gates(const run_state *s)
{
    const size_t most = (size_t)crnn_get_threads();
    if (s->small) return most < s->UV ? most : s->UV;
    return s->plan.forward == BY_UNITS || (s->plan.forward == BY_SEQUENCES && !s->dense) ? (size_t)s->plan.threads : 1;
}

static size_t rows_of_room(const run_state *s)
{
    return s->rooms > 1 ? s->chunk_rows + ROOMS_APART / (s->ldg * sizeof(T)) + 1 : s->chunk_rows;
}

/* A layer as one of `size` threads works on it, with its own room. */
INLINE layer_run in_own_room(const run_state *s, const layer_run *run, int rank, int size)
{
    layer_run own = *run;
    const size_t before = (size_t)rank * s->chunk_rows;
    if (s->rooms < (size_t)size || s->plan.forward == INPUT_FIRST) return own;
    own.gates += (size_t)rank * rows_of_room(s) * s->ldg;
    if (s->plan.forward == BY_UNITS) return own; /* all share what the others read */
    if (own.x_late && !s->keep) own.x += before * own.ldx;
    if (own.reset) own.reset += before * s->ldh;
    return own;
}

/* Half of a batch, which half of the threads walk, or should there be fewer than planned, all. */
static thread_plan plan_half(const run_state *s, size_t input, size_t threads)
{
    thread_plan plan = plan_for(s, input, threads < 2 ? 1 : threads / 2);
    plan.halves = (int)threads;
    if (threads > 2) plan.threads = (int)threads;
    plan.far = 0;
    plan.brief = flops_of(s, input) < 1e6;
    return plan;
}

/* A team may be smaller than planned. */
INLINE int goes_apart(const run_state *s, const crnn_team *team)
{
    return s->plan.apart && crnn_team_size(team) == s->plan.threads;
}

/* Sequences [*lo, *hi) of this thread: rows (sum of lengths) are shared as evenly as whole sequences allow, so shares end where
 * the nearest one does. Too few to share have one thread. */
static void share_sequences(const run_state *s, split_kind split, int rank, int size, size_t *lo, size_t *hi)
{
    *lo = 0;
    *hi = s->B;
    if (split == BY_UNITS || size == 1) return;
    if (split == INPUT_FIRST && s->B < (size_t)size) {
        if (rank > 0) *hi = 0;
        return;
    }
    size_t total = s->R, sum = 0, first = s->B, last = s->B;
    size_t from = total * (size_t)rank / (size_t)size, to = total * (size_t)(rank + 1) / (size_t)size;
    for (size_t i = 0; i < s->B; i++) {
        const size_t middle = 2 * sum + s->length[i];
        if (first == s->B && middle > 2 * from) first = i;
        if (last == s->B && middle > 2 * to) last = i;
        sum += s->length[i];
    }
    *lo = rank == 0 ? 0 : first;
    *hi = rank == size - 1 ? s->B : last;
}

/* Half of the sequences of a stretch for somebody who rests, if what is left takes some 50 us: `steps` steps, of which the next one has
 * `rows` rows, whose sums are `width` long. Who hands over keeps [from.i0, the new *i1). */
#define HAND_OVER_ROWS 4
#define HAND_OVER_FLOPS 4e6
static void offer_half(const run_state *s, crnn_team *team, crnn_stretch from, size_t steps, size_t rows, size_t width, size_t *i1)
{
    if (crnn_resting(team) == 0 || rows < HAND_OVER_ROWS) return;
    if (2.0 * (double)(rows * steps) * (double)(s->shape.gates * s->H) * (double)width < HAND_OVER_FLOPS) return;
    from.i0 += (rows + 1) / 2;
    if (crnn_hand_over(team, &from)) *i1 = from.i0;
}

/* Rank's part of a block that all have read and that the next call will write. */
static void push_out(const T *block, size_t count, int rank, int size)
{
    size_t lo, hi;
    if (!block) return;
    crnn_share(count, CRNN_LINE / sizeof(T), rank, size, &lo, &hi);
    crnn_push_out(block + lo, (hi - lo) * sizeof(T));
}

static void share_units(const run_state *s, split_kind split, int rank, int size, size_t *lo, size_t *hi)
{
    if (split == BY_UNITS) crnn_share(s->UV, 1, rank, size, lo, hi);
    else *lo = 0, *hi = s->UV;
}

/* Initial states and final states between the caller's (B, H) and our padded rows. */
static void copy_rows_padded(T *dst, size_t ld, const T *src, size_t width, size_t rows)
{
    for (size_t i = 0; i < rows; i++) {
        if (src) memcpy(dst + i * ld, src + i * width, width * sizeof(T));
        else memset(dst + i * ld, 0, width * sizeof(T));
        memset(dst + i * ld + width, 0, (ld - width) * sizeof(T));
    }
}

/* Row of c for sequence i whose state has that row in h. */
INLINE size_t cell_row(const run_state *s, size_t row, size_t i) { return s->keep ? row : i; }

static size_t last_state_row(const run_state *s, size_t i)
{
    return s->length[i] ? s->B + (size_t)s->offsets[s->length[i] - 1] + i : i;
}
