/* Dot products along the rows of a matrix that lies as it is, in register tiles: every sum runs over the lanes in the same
 * order, whichever tile it falls in. */

/* One matrix and the rows it multiplies. */
typedef struct {
    const T *W; /* first of the tile's rows of weights */
    size_t ldw, K;
    size_t room; /* elements from W on that may be read; matters only to rows shorter than a vector */
    const T *v;
    size_t ldv;
    const T *last; /* unless K is whole vectors: last_vector of each row of v, side by side */
} dot_source;

/* acc[i*wide + j] += W[j] * v[i], element-wise, for mr rows of v and `columns` <= wide <= 4 rows of W. Rows of v are reached
 * from every third one: fewer addresses than there are registers. `fetch`, unless 0: ask for as many rows of W, the next
 * ones, or if `far` those that begin so many rows from W. */
INLINE void dot_tile(const int mr, const int wide, const int far, V *acc, const dot_source *s, size_t columns, ptrdiff_t fetch)
{
    const T *w[4], *v[3];
    const size_t ldv = s->ldv;
    const ptrdiff_t ahead = far ? fetch * (ptrdiff_t)s->ldw : wide * (ptrdiff_t)s->ldw;
    UNROLL(4) for (int j = 0; j < wide; j++) w[j] = s->W + ((size_t)j < columns ? (size_t)j : columns - 1) * s->ldw;
    UNROLL(3) for (int i = 0; 3 * i < mr; i++) v[i] = s->v + 3 * (size_t)i * ldv;
    size_t whole = s->K / VW * VW;
    for (size_t k = 0; k < whole; k += VW) {
        V wv[4];
        if (far || fetch) UNROLL(4) for (int j = 0; j < wide; j++) __builtin_prefetch(w[j] + ((ptrdiff_t)k + ahead), 0, 2);
        UNROLL(4) for (int j = 0; j < wide; j++) wv[j] = mr > 1 ? load_once(w[j] + k) : load(w[j] + k);
        UNROLL(8) for (int i = 0; i < mr; i++) {
            V vv = load(v[i / 3] + (size_t)(i % 3) * ldv + k);
            UNROLL(4) for (int j = 0; j < wide; j++) acc[i * wide + j] = MULADD(wv[j], vv, acc[i * wide + j]);
        }
    }
    if (whole == s->K) return;
    T edge[4][VW];
    if (whole) {
        UNROLL(4) for (int j = 0; j < wide; j++) w[j] += s->K - VW;
    } else if (s->room < (columns - 1) * s->ldw + VW) {
        memset(edge, 0, sizeof edge);
        UNROLL(4) for (int j = 0; j < wide; j++) w[j] = memcpy(edge[j], w[j], s->K * sizeof(T));
    }
    UNROLL(8) for (int i = 0; i < mr; i++) {
        V vv = load(s->last + (size_t)i * VW);
        UNROLL(4) for (int j = 0; j < wide; j++) acc[i * wide + j] = MULADD(load(w[j]), vv, acc[i * wide + j]);
    }
}

/* Four columns for few rows, from memory: two at a time. What is asked for at once and then used at once is half as much, which
 * memory delivers faster (one row, 26 MB of weights: 1.2 to 1.3 times as fast; from four rows on 0 to 20 % slower). */
enum { PAIRED_ROWS = 3 };

INLINE void dot_pairs(const int mr, V *acc, const dot_source *one, const dot_source *two, size_t columns, ptrdiff_t next)
{
    dot_source a = *one, b = two ? *two : *one;
    for (size_t j = 0; j < columns; j += 2) {
        V pair[2 * PAIRED_ROWS];
        ptrdiff_t fetch = j + 2 < columns ? 2 : next - (ptrdiff_t)j;
        UNROLL(6) for (int i = 0; i < 2 * mr; i++) pair[i] = (V){0};
        dot_tile(mr, 2, 1, pair, &a, columns - j, fetch);
        if (two) dot_tile(mr, 2, 1, pair, &b, columns - j, fetch);
        UNROLL(3) for (int i = 0; i < mr; i++) acc[4 * (size_t)i + j] = pair[2 * i], acc[4 * (size_t)i + j + 1] = pair[2 * i + 1];
        a.W += 2 * a.ldw, a.room -= 2 * a.ldw;
        b.W += 2 * b.ldw, b.room -= 2 * b.ldw;
    }
}

/* out[i*ldo + j] (+)= W[j] . v[i], summed over the sources, of which the second may be null. */
#define DOT_ARGUMENTS \
    const dot_source *one, const dot_source *two, size_t columns, T *out, size_t ldo, int accumulate, ptrdiff_t fetch
typedef void (*dot_function)(DOT_ARGUMENTS);

/* The four sums of a row, as one. */
typedef T V4 __attribute__((vector_size(4 * sizeof(T)), aligned(sizeof(T)), may_alias));

INLINE void dot_body(const int mr, const int far, DOT_ARGUMENTS)
{
    V acc[8 * 4];
    const int half = (LANE_COUNT + 1) / 2, sums_of = (mr * 4 + half - 1) / half * half;
    UNROLL(32) for (int i = 0; i < sums_of; i++) acc[i] = (V){0};
    if (far && mr <= PAIRED_ROWS) {
        dot_pairs(mr, acc, one, two, columns, fetch);
    } else {
        dot_tile(mr, 4, far, acc, one, columns, fetch);
        if (two) dot_tile(mr, 4, far, acc, two, columns, fetch);
    }
    T sums[8 * 4 + LANE_COUNT];
    UNROLL(32) for (int i = 0; i < sums_of; i += LANE_COUNT)
        store(sums + i, lane_sums(acc + i, sums_of - i < LANE_COUNT ? half : LANE_COUNT));
    UNROLL(8) for (int i = 0; i < mr; i++) {
        const T *from = sums + i * 4;
        T *o = out + (size_t)i * ldo;
        if (columns == 4) {
            V4 sum = *(const V4 *)(const void *)from;
            if (accumulate) sum += *(const V4 *)(const void *)o;
            *(V4 *)(void *)o = sum;
        } else {
            for (size_t j = 0; j < columns; j++) o[j] = (accumulate ? o[j] : 0) + from[j];
        }
    }
}

#define DOT(mr) \
    NOINLINE void dot_##mr(DOT_ARGUMENTS) { dot_body(mr, 0, one, two, columns, out, ldo, accumulate, fetch); } \
    NOINLINE void far_##mr(DOT_ARGUMENTS) { dot_body(mr, 1, one, two, columns, out, ldo, accumulate, fetch); }
DOT(1) DOT(2)
#if CRNN_VREGS >= 32
#define DOT_ROWS 6
DOT(3) DOT(4) DOT(5) DOT(6)
static const dot_function dots[2][DOT_ROWS + 1] = {{NULL, dot_1, dot_2, dot_3, dot_4, dot_5, dot_6},
                                                   {NULL, far_1, far_2, far_3, far_4, far_5, far_6}};
#else
#define DOT_ROWS 2
static const dot_function dots[2][DOT_ROWS + 1] = {{NULL, dot_1, dot_2}, {NULL, far_1, far_2}};
#endif

/* What a dot_source wants as `last`. */
INLINE void last_vector(T *out, const T *x, size_t K)
{
    size_t rest = K % VW, whole = K - rest;
    memset(out, 0, VW * sizeof(T));
    if (whole) memcpy(out + VW - rest, x + whole, rest * sizeof(T));
    else memcpy(out, x, rest * sizeof(T));
}

/* `valid` units of one gate for several rows: both sources at once, or null. While the last of several tiles pass by four rows
 * of weights, which are near since the first one, the next four are fetched (LSTMs of 431 to 576 units, 8 rows: 1 to 5 % of a
 * step; a single one, which waits for its own weights, loses by it). `then`, unless 0: the weights are far (sequence/small.h), a
 * single tile fetches too, and what comes after the last four lies so many rows from the first of all. */
static void dot_columns(dot_source h, dot_source x, size_t rows, size_t valid, T *out, size_t ldo, ptrdiff_t then)
{
    const dot_source *one = h.v ? &h : &x, *two = h.v && x.v ? &x : NULL;
    const T *h0 = h.v, *x0 = x.v, *h_last = h.last, *x_last = x.last;
    for (size_t j = 0; one->v && j < valid; j += 4) {
        size_t columns = valid - j < 4 ? valid - j : 4;
        for (size_t i = 0; i < rows;) {
            size_t mr = rows - i <= DOT_ROWS ? rows - i : next_rows(rows - i, DOT_ROWS);
            if (h0) h.v = h0 + i * h.ldv, h.last = h_last + i * VW;
            if (x0) x.v = x0 + i * x.ldv, x.last = x_last + i * VW;
            const int far = then && i + mr == rows, near = !then && i && i + mr == rows;
            ptrdiff_t fetch = !far ? near : j + 4 < valid ? 4 : then - (ptrdiff_t)j;
            dots[far][mr](one, two, columns, out + i * ldo + j, ldo, 1, fetch);
            i += mr;
        }
        h.W += 4 * h.ldw, h.room -= columns * h.ldw;
        x.W += 4 * x.ldw, x.room -= columns * x.ldw;
    }
}

/* A row of v of up to HELD vectors stays in registers while W's rows, a whole vector of units, pass by. Steps of one sequence with
 * 50 to 128 units are 8 to 32 % faster; wider rows, eight vectors at a time, 4 to 18 % slower. */
enum { HELD = 8, WIDE = LANE_COUNT < 4 ? LANE_COUNT : 4 };

INLINE void held_vectors(const int count, V *acc, const dot_source *s)
{
    V v[HELD];
    const size_t last = s->K - VW;
    UNROLL(8) for (int k = 0; k < count - 1; k++) v[k] = load(s->v + (size_t)k * VW);
    v[count - 1] = load(s->K % VW ? s->last : s->v + last);
    UNROLL(16) for (int j = 0; j < LANE_COUNT; j += WIDE)
        UNROLL(8) for (int k = 0; k < count; k++)
            UNROLL(4) for (int i = j; i < j + WIDE; i++)
                acc[i] = MULADD(load(s->W + (size_t)i * s->ldw + (k < count - 1 ? (size_t)k * VW : last)), v[k], acc[i]);
}

INLINE void held_source(V *acc, const dot_source *s)
{
    switch ((s->K + VW - 1) / VW) {
    case 1: held_vectors(1, acc, s); break;
    case 2: held_vectors(2, acc, s); break;
    case 3: held_vectors(3, acc, s); break;
    case 4: held_vectors(4, acc, s); break;
    case 5: held_vectors(5, acc, s); break;
    case 6: held_vectors(6, acc, s); break;
    case 7: held_vectors(7, acc, s); break;
    default: held_vectors(HELD, acc, s); break;
    }
}

INLINE int can_hold(const dot_source *s) { return !s->v || (s->K >= VW && s->K <= HELD * VW); }

NOINLINE void held_row(const dot_source *h, const dot_source *x, T *out)
{
    V acc[LANE_COUNT];
    UNROLL(16) for (int l = 0; l < LANE_COUNT; l++) acc[l] = (V){0};
    if (h->v) held_source(acc, h);
    if (x->v) held_source(acc, x);
    store(out, load(out) + lane_sums(acc, LANE_COUNT));
}

/* out[0..valid) += both sources, or those that have a v, for one row, unless weights are far: a vector of units, whose sums are
 * turned at once. Four rows of weights at a time, or what lies between them is too much for the hardware to read ahead. */
INLINE void dot_row(dot_source h, dot_source x, size_t valid, T *out)
{
    if (valid == VW && can_hold(&h) && can_hold(&x)) {
        const dot_source held_h = h, held_x = x; /* or the address would keep h and x out of registers below */
        held_row(&held_h, &held_x, out);
        return;
    }
    V acc[LANE_COUNT];
    UNROLL(16) for (int l = 0; l < LANE_COUNT; l++) acc[l] = (V){0};
    for (size_t j = 0; j < valid; j += WIDE) {
        size_t columns = valid - j < WIDE ? valid - j : WIDE;
        if (h.v) dot_tile(1, WIDE, 0, acc + j, &h, columns, 0);
        if (x.v) dot_tile(1, WIDE, 0, acc + j, &x, columns, 0);
        h.W += WIDE * h.ldw, h.room -= columns * h.ldw;
        x.W += WIDE * x.ldw, x.room -= columns * x.ldw;
    }
    store(out, load(out) + lane_sums(acc, LANE_COUNT));
}
