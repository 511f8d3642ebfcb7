/* Units of one gate for a few rows: dot.h's tiles, put together. */

#define SLAB_BYTES ((size_t)24 << 10)
enum { LONG_ROWS = 4 };
/* Elements in the next slab of `left`, of so many rows together. */
INLINE size_t next_slab(size_t left, size_t rows)
{
    const size_t slab = round_up(next_rows(left, SLAB_BYTES / sizeof(T) / rows), VW);
    return slab < left ? slab : left;
}

/* A source asks for its own next `wide` rows, or if there are none for what it asked for at first, `after`. */
INLINE void go_on(dot_source *s, const dot_source *after, size_t wide)
{
    s->own = wide && after->own ? s->W + wide * s->ldw : after->own;
    s->ask = wide ? s->W + wide * s->ldw : after->ask;
    s->ldask = wide ? s->ldw : after->ldask;
    s->asked = wide ? s->K : after->asked;
}

/* Both go on, or the one there is. In turn, the order in which one tile reads: while it reads the rows of the first source it asks for
 * those of the second, and then for the next ones of the first, so that no more waits in the first level than what comes next. */
INLINE void both_go_on(dot_source *one, dot_source *two, const dot_source *after_one, const dot_source *after_two, size_t wide,
                       int in_turn)
{
    go_on(one, after_one, wide);
    if (!two) return;
    go_on(two, after_two, wide);
    if (!in_turn) return;
    two->ask = one->ask, two->ldask = one->ldask, two->asked = one->asked;
    one->ask = two->W, one->ldask = two->ldw, one->asked = two->K;
}

/* dot_row where weights are far: every tile asks for what the next one reads. */
INLINE void asking_body(const int both, const dot_source *first, const dot_source *second, size_t valid, T *out)
{
    dot_source one = *first, two = *second;
    V acc[LANE_COUNT];
    UNROLL(16) for (int l = 0; l < LANE_COUNT; l++) acc[l] = (V){0};
    for (size_t j = 0; j < valid; j += WIDE) {
        const size_t columns = valid - j < WIDE ? valid - j : WIDE, wide = j + WIDE < valid ? WIDE : 0;
        V sums[WIDE]; /* or they would go to memory each time */
        UNROLL(4) for (int l = 0; l < WIDE; l++) sums[l] = (V){0};
        both_go_on(&one, both ? &two : NULL, first, second, wide, 1);
        dot_tile(1, WIDE, 1, sums, &one, columns);
        if (both) dot_tile(1, WIDE, 1, sums, &two, columns);
        UNROLL(4) for (int l = 0; l < WIDE; l++) acc[j + (size_t)l] = sums[l];
        one.W += WIDE * one.ldw, one.room -= columns * one.ldw;
        if (both) two.W += WIDE * two.ldw, two.room -= columns * two.ldw;
    }
    store(out, load(out) + lane_sums(acc, LANE_COUNT));
}
NOINLINE void asking_row(const dot_source *h, const dot_source *x, size_t valid, T *out)
{
    if (h->v && x->v) asking_body(1, h, x, valid, out);
    else asking_body(0, h->v ? h : x, x, valid, out);
}

/* out[0..valid) += both sources, or those that have a v, for one row: a vector of units, whose sums are turned at once. Four rows
 * of weights at a time, or what lies between them is too much for the hardware to read ahead. `across`: rows that lie so may be read
 * by lines. */
INLINE void dot_row(const int across, const int asks, dot_source h, dot_source x, size_t valid, T *out)
{
    if (asks) {
        const dot_source asking_h = h, asking_x = x;
        asking_row(&asking_h, &asking_x, valid, out);
        return;
    }
    if (valid == VW && can_hold(&h) && can_hold(&x)) {
        const dot_source held_h = h, held_x = x; /* or the address would keep h and x out of registers below */
        held_row(&held_h, &held_x, out);
        return;
    }
    const int across_h = across && h.v && lies_across(h.W, h.K), across_x = across && x.v && lies_across(x.W, x.K);
    V acc[LANE_COUNT];
    UNROLL(16) for (int l = 0; l < LANE_COUNT; l++) acc[l] = (V){0};
    for (size_t j = 0; j < valid; j += WIDE) {
        size_t columns = valid - j < WIDE ? valid - j : WIDE;
        if (across_h && columns == 4) dot_across(acc + j, &h);
        else if (h.v) dot_tile(1, WIDE, 0, acc + j, &h, columns);
        if (across_x && columns == 4) dot_across(acc + j, &x);
        else if (x.v) dot_tile(1, WIDE, 0, acc + j, &x, columns);
        h.W += WIDE * h.ldw, h.room -= columns * h.ldw;
        x.W += WIDE * x.ldw, x.room -= columns * x.ldw;
    }
    store(out, load(out) + lane_sums(acc, LANE_COUNT));
}

#if CRNN_VREGS >= 32
/* Long rows, of which four to six outgrow the first level together, and eight before that: they would want again the weights that a
 * first tile has read. Seven and eight are one tile, three columns wide and for the last ones two; and beyond what the first level
 * holds beside the weights that pass by, all columns of a vector of units take one slab of the rows, then the next, while the lanes of
 * their sums wait: the same order of sums. Steps on one thread and two: 7 and 8 sequences, LSTMs of 660 to 760 inputs in all 1.02 to
 * 1.10 times as fast, of 1024 and 1046 1.08 to 1.15; in slabs, RNNs of 1200 to 2500 inputs 1.18 to 1.38, LSTMs of 1240 to 2048 1.02
 * to 1.31 (of 2048 units, 67 MB, 0.98 to 1.04); 4 to 6 sequences, 1400 to 2500 inputs 1.07 to 1.26 (Zen 5). At 600 inputs nothing is
 * gained, and more than eight rows would lose by it up to 1200 (0.89 to 1.06). Seven and eight ask for
 * what follows in the order in which it is read, into the first level, instead of into the second: 0.97 to 1.11. Slabs of four to six,
 * with four rows of W, leave too little room for that there: 0.87 to 1.17. */
enum { TALL_ROWS = 8 };
#define LONG_BYTES ((size_t)26 << 10)
#define TALL_BYTES ((size_t)20 << 10)
#define TALL_SLABS ((size_t)36 << 10)
INLINE int in_slabs(size_t rows, size_t inputs)
{
    return rows >= LONG_ROWS && rows <= TALL_ROWS && rows * inputs * sizeof(T) > (rows <= DOT_ROWS ? LONG_BYTES : TALL_SLABS);
}
INLINE int in_one_tile(size_t rows, size_t inputs)
{
    return rows > DOT_ROWS && rows <= TALL_ROWS && rows * inputs * sizeof(T) > TALL_BYTES;
}

typedef void (*part_function)(int part, V *kept, DOT_ARGUMENTS);
#define DOT_PART(mr, wide, level)                                                                   \
    NOINLINE void part_##mr##x##wide(int part, V *kept, DOT_ARGUMENTS)                              \
    {                                                                                               \
        dot_body(mr, wide, level, part, kept, one, two, columns, out, ldo, accumulate);             \
    }
DOT_PART(4, 4, 2) DOT_PART(5, 4, 2) DOT_PART(6, 4, 2) DOT_PART(7, 2, 1) DOT_PART(7, 3, 1) DOT_PART(8, 2, 1) DOT_PART(8, 3, 1)
/* [rows][columns] */
static const part_function dot_parts[TALL_ROWS + 1][5] = {[4] = {[4] = part_4x4}, [5] = {[4] = part_5x4}, [6] = {[4] = part_6x4},
                                                          [7] = {[2] = part_7x2, part_7x3}, [8] = {[2] = part_8x2, part_8x3}};

static void dot_part(int part, V *kept, const dot_source *one, const dot_source *two, size_t rows, size_t valid, T *out, size_t ldo)
{
    dot_source a = *one, b = two ? *two : *one;
    for (size_t j = 0, wide; j < valid; j += wide) {
        wide = rows <= DOT_ROWS ? 4 : valid - j == 4 || valid - j == 2 ? 2 : 3;
        const size_t columns = valid - j < wide ? valid - j : wide;
        both_go_on(&a, two ? &b : NULL, one, two, j + wide < valid ? wide : 0, rows > DOT_ROWS);
        dot_parts[rows][wide](part, kept ? kept + TALL_ROWS * j : NULL, &a, two ? &b : NULL, columns, out + j, ldo, 1);
        a.W += wide * a.ldw, a.room -= columns * a.ldw;
        b.W += wide * b.ldw, b.room -= columns * b.ldw;
    }
}

static void dot_slabs(const dot_source *one, const dot_source *two, size_t rows, size_t valid, T *out, size_t ldo)
{
    V kept[TALL_ROWS * (VW + 2)]; /* the last tile may be two columns too wide */
    const dot_source *joins = two && two->K <= SLAB_BYTES / sizeof(T) / rows / 4 ? two : NULL; /* the last slab */
    const dot_source *sources[] = {one, joins ? NULL : two};
    int part = BEGINS;
    for (int i = 0; i < 2 && sources[i]; i++)
        for (size_t k = 0, n, K = sources[i]->K; k < K; k += n) {
            n = next_slab(K - k, rows);
            dot_source slab = *sources[i];
            slab.W += k, slab.room -= k, slab.v += k, slab.K = n;
            const int ends = k + n == K && (i == 1 || !sources[1]);
            const dot_source *then = k + n < K ? &slab : ends ? one : two;
            slab.ask = k + n < K ? slab.W + n : ends ? one->ask : two->W;
            slab.ldask = then->ldw, slab.asked = n, slab.own = NULL;
            dot_part(part | (ends ? ENDS : 0), kept, &slab, ends ? joins : NULL, rows, valid, out, ldo);
            part = 0;
        }
}

/* Whether it is done. */
INLINE int dot_long(const dot_source *one, const dot_source *two, size_t rows, size_t valid, T *out, size_t ldo)
{
    const size_t inputs = (one->v ? one->K : 0) + (two ? two->K : 0);
    if (in_slabs(rows, inputs)) dot_slabs(one, two, rows, valid, out, ldo);
    else if (in_one_tile(rows, inputs)) dot_part(ALL, NULL, one, two, rows, valid, out, ldo);
    else return 0;
    return 1;
}
#else
#define dot_long(one, two, rows, valid, out, ldo) 0
#endif

/* More rows that are not turned, whose inputs outgrow the first level: input by input, slab by slab, up to GROUP_ROWS rows at a time while
 * their slabs of W are near. Each slab ends its sums, in an order of its own, which is that of the number of rows in all. Steps of LSTMs on
 * one thread and two: 512 units and inputs, 9 and 12 sequences 1.24 to 1.30 times as fast, 18 1.08 to 1.13; 1000 units, 100 inputs, 9 and
 * 12 sequences 1.06 to 1.09; 12 sequences of 600 inputs, 29 KB, 0.97 (Zen 5). Groups of six rows, or slabs of 16 KiB for 12, are up to a
 * tenth slower, slabs of 40 KiB the same. */
enum { GROUP_ROWS = 12 };
#define APART_BYTES ((size_t)32 << 10)
INLINE int apart_pays(size_t rows, size_t inputs)
{
    return CRNN_VREGS >= 32 && rows > 8 && rows * inputs * sizeof(T) > APART_BYTES;
}

/* `valid` units of one gate for several rows: both sources at once, or null. If `asks`, every tile of rows of W asks for what is read
 * next, the last one for what its sources ask for. Beside more than CLOSE_BYTES of rows that does not stay in the first level. */
#define CLOSE_BYTES ((size_t)25 << 10)
static void dot_columns(dot_source h, dot_source x, size_t rows, size_t valid, T *out, size_t ldo, int asks)
{
    dot_source *const one = h.v ? &h : &x, *const two = h.v && x.v ? &x : NULL;
    if (dot_long(one, two, rows, valid, out, ldo)) return;
    const dot_source first = *one, second = x;
    const size_t tiles = rows <= DOT_ROWS ? 1 : (rows + DOT_ROWS - 1) / DOT_ROWS;
    const size_t height = tiles == 1 ? rows : rows / tiles, higher = tiles == 1 ? 0 : rows % tiles;
    const size_t inputs = one->K + (two ? two->K : 0);
    const int close = tiles == 1 && (rows < LONG_ROWS || rows * inputs * sizeof(T) <= CLOSE_BYTES);
    for (size_t j = 0; one->v && j < valid; j += 4) {
        const size_t columns = valid - j < 4 ? valid - j : 4, wide = j + 4 < valid ? 4 : 0;
        if (asks) both_go_on(one, two, &first, &second, wide, close);
        for (size_t left = tiles, i = 0, mr; left; left--, i += mr) {
            mr = height + (left <= higher);
            one->v = first.v + i * one->ldv, one->last = first.last + i * VW;
            if (two) two->v = second.v + i * two->ldv, two->last = second.last + i * VW;
            dots[!asks || left > 1 ? PLAIN : close ? ASKING : LAST_ASKING][mr](one, two, columns, out + i * ldo + j, ldo, 1);
        }
        h.W += 4 * h.ldw, h.room -= columns * h.ldw;
        x.W += 4 * x.ldw, x.room -= columns * x.ldw;
    }
}
