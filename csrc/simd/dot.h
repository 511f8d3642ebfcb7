/* Dot products along the rows of a matrix that lies as it is, in register tiles: every sum runs over the lanes in the same
 * order, whichever tile it falls in. */

#define DOT_ROWS (CRNN_VREGS >= 32 ? 6 : 2)

/* One matrix and the rows it multiplies. */
typedef struct {
    const T *W; /* first of the tile's rows of weights */
    size_t ldw, K;
    size_t room; /* elements from W on that may be read; matters only to rows shorter than a vector */
    const T *v;
    size_t ldv;
    const T *last; /* unless K is whole vectors: last_vector of each row of v, side by side */
    int falling;   /* from the end of the rows to their beginning */
} dot_source;

/* acc[i*wide + j] += W[j] * v[i], element-wise, for mr rows of v and `columns` <= wide <= 4 rows of W. Rows of v are reached
 * from every third one: fewer addresses than there are registers. If `asks`: for as many rows of W that begin `next` rows from
 * W on, a line of each at a time. */
INLINE void dot_tile(const int mr, const int wide, const int asks, V *acc, const dot_source *s, size_t columns, ptrdiff_t next)
{
    const T *w[4], *v[3];
    const size_t ldv = s->ldv;
    const ptrdiff_t ahead = next * (ptrdiff_t)s->ldw;
    UNROLL(4) for (int j = 0; j < wide; j++) w[j] = s->W + ((size_t)j < columns ? (size_t)j : columns - 1) * s->ldw;
    UNROLL(3) for (int i = 0; 3 * i < mr; i++) v[i] = s->v + 3 * (size_t)i * ldv;
    size_t whole = s->K / VW * VW;
    const ptrdiff_t step = s->falling ? -(ptrdiff_t)VW : (ptrdiff_t)VW;
    ptrdiff_t k = s->falling ? (ptrdiff_t)(whole - VW) : 0;
    for (size_t left = whole; left; left -= VW, k += step) {
        V wv[4];
        if (asks) UNROLL(4) for (int j = 0; j < wide; j++) __builtin_prefetch(w[j] + (k + ahead), 0, 2);
        UNROLL(4) for (int j = 0; j < wide; j++) wv[j] = mr > 1 ? load_once(w[j] + k) : load(w[j] + k);
        UNROLL(8) for (int i = 0; i < mr; i++) {
            const T *row = v[i / 3] + (size_t)(i % 3) * ldv + k;
            V vv = mr > 6 ? load_once(row) : load(row);
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
enum { PAIRED_ROWS = DOT_ROWS < 3 ? DOT_ROWS : 3 };

INLINE void dot_pairs(const int mr, V *acc, const dot_source *one, const dot_source *two, size_t columns,
                      ptrdiff_t next)
{
    dot_source a = *one, b = two ? *two : *one;
    for (size_t j = 0; j < columns; j += 2) {
        V pair[2 * PAIRED_ROWS];
        const ptrdiff_t then = j + 2 < columns ? 2 : next - (ptrdiff_t)j;
        UNROLL(6) for (int i = 0; i < 2 * mr; i++) pair[i] = (V){0};
        dot_tile(mr, 2, 1, pair, &a, columns - j, then);
        if (two) dot_tile(mr, 2, 1, pair, &b, columns - j, then);
        UNROLL(3) for (int i = 0; i < mr; i++) acc[4 * (size_t)i + j] = pair[2 * i], acc[4 * (size_t)i + j + 1] = pair[2 * i + 1];
        a.W += 2 * a.ldw, a.room -= 2 * a.ldw;
        b.W += 2 * b.ldw, b.room -= 2 * b.ldw;
    }
}

/* out[i*ldo + j] (+)= W[j] . v[i], summed over the sources, of which the second may be null. */
#define DOT_ARGUMENTS \
    const dot_source *one, const dot_source *two, size_t columns, T *out, size_t ldo, int accumulate, ptrdiff_t next
typedef void (*dot_function)(DOT_ARGUMENTS);

/* The four sums of a row, as one. */
typedef T V4 __attribute__((vector_size(4 * sizeof(T)), aligned(sizeof(T)), may_alias));

/* As many vectors as the sums of `count` are made from. */
INLINE int summed(const int count)
{
    const int half = (LANE_COUNT + 1) / 2;
    return (count + half - 1) / half * half;
}
INLINE void all_lane_sums(T *sums, V *acc, const int sums_of)
{
    UNROLL(32) for (int i = 0; i < sums_of; i += LANE_COUNT)
        store(sums + i, lane_sums(acc + i, sums_of - i < LANE_COUNT ? (LANE_COUNT + 1) / 2 : LANE_COUNT));
}

INLINE void add_sums(T *o, const T *sums, size_t count, int accumulate)
{
    UNROLL(3) for (size_t j = 0; j < count; j++) o[j] = (accumulate ? o[j] : 0) + sums[j];
}

/* Part of a sum: what begins and what ends in this call. In between its lanes lie in `kept`. */
enum { BEGINS = 1, ENDS = 2, ALL = BEGINS | ENDS };

INLINE void dot_body(const int mr, const int wide, const int asks, const int paired, int part, V *kept, DOT_ARGUMENTS)
{
    V acc[8 * 4];
    const int sums_of = summed(mr * wide);
    UNROLL(32) for (int i = 0; i < sums_of; i++) acc[i] = (V){0};
    if (!(part & BEGINS)) UNROLL(24) for (int i = 0; i < mr * wide; i++) acc[i] = kept[i];
    if (paired) {
        dot_pairs(mr, acc, one, two, columns, next);
    } else {
        dot_tile(mr, wide, asks, acc, one, columns, next);
        if (two) dot_tile(mr, wide, asks, acc, two, columns, next);
    }
    if (!(part & ENDS)) {
        UNROLL(24) for (int i = 0; i < mr * wide; i++) kept[i] = acc[i];
        return;
    }
    T sums[8 * 4 + LANE_COUNT];
    all_lane_sums(sums, acc, sums_of);
    UNROLL(8) for (int i = 0; i < mr; i++) {
        const T *from = sums + i * wide;
        T *o = out + (size_t)i * ldo;
        if (wide == 4 && columns == 4) {
            V4 sum = *(const V4 *)(const void *)from;
            if (accumulate) sum += *(const V4 *)(const void *)o;
            *(V4 *)(void *)o = sum;
        } else if (columns == (size_t)wide) {
            add_sums(o, from, (size_t)wide, accumulate);
        } else {
            add_sums(o, from, columns, accumulate);
        }
    }
}

/* How a tile reads W: as it comes, asking for what comes next, or that in pairs. Of several rows the last and highest
 * tile asks, so that there are no such forms for fewer than four rows of six, or two of two. */
enum { PLAIN, ASKING, IN_PAIRS, READINGS };

#define DOT(name, mr, asks, paired) \
    NOINLINE void name##_##mr(DOT_ARGUMENTS) { dot_body(mr, 4, asks, paired, ALL, NULL, one, two, columns, out, ldo, accumulate, next); }
DOT(plain, 1, 0, 0) DOT(plain, 2, 0, 0) DOT(pairs, 1, 1, 1) DOT(pairs, 2, 1, 1)
#if CRNN_VREGS >= 32
DOT(plain, 3, 0, 0) DOT(plain, 4, 0, 0) DOT(plain, 5, 0, 0) DOT(plain, 6, 0, 0) DOT(pairs, 3, 1, 1)
DOT(asking, 4, 1, 0) DOT(asking, 5, 1, 0) DOT(asking, 6, 1, 0)
static const dot_function dots[READINGS][DOT_ROWS + 1] = {
    {NULL, plain_1, plain_2, plain_3, plain_4, plain_5, plain_6},
    {NULL, NULL, NULL, NULL, asking_4, asking_5, asking_6},
    {NULL, pairs_1, pairs_2, pairs_3},
};
#else
DOT(asking, 2, 1, 0)
static const dot_function dots[READINGS][DOT_ROWS + 1] = {
    {NULL, plain_1, plain_2}, {NULL, NULL, asking_2}, {NULL, pairs_1, pairs_2}};
#endif

#if CRNN_VREGS >= 32
/* out[j*ldo + i] (+)= W[j] . v[i] for all of `wide` rows of W: many rows of W pass by mr rows of v. */
typedef void (*streamed_dot)(const dot_source *s, T *out, size_t ldo, int accumulate);
INLINE void streamed_body(const int mr, const int wide, const dot_source *s, T *out, size_t ldo, int accumulate)
{
    V acc[6 * 4], turned[8 * 4];
    T sums[8 * 4 + LANE_COUNT];
    const int sums_of = summed(mr * wide);
    UNROLL(24) for (int i = 0; i < mr * wide; i++) acc[i] = (V){0};
    dot_tile(mr, wide, 0, acc, s, (size_t)wide, 0);
    UNROLL(32) for (int i = 0; i < sums_of; i++) turned[i] = i < mr * wide ? acc[i % mr * wide + i / mr] : (V){0};
    all_lane_sums(sums, turned, sums_of);
    UNROLL(4) for (int j = 0; j < wide; j++, out += ldo)
        UNROLL(8) for (int i = 0; i < mr; i++) out[i] = (accumulate ? out[i] : 0) + sums[j * mr + i];
}
#define STREAMED_DOT(mr, wide)                                                                        \
    NOINLINE void streamed_dot_##mr##x##wide(const dot_source *s, T *out, size_t ldo, int accumulate) \
    {                                                                                                 \
        streamed_body(mr, wide, s, out, ldo, accumulate);                                             \
    }
#define STREAMED_DOTS(M, wide) M(1, wide) M(2, wide) M(3, wide) M(4, wide) M(5, wide) M(6, wide)
#define STREAMED_NAME(mr, wide) streamed_dot_##mr##x##wide,
STREAMED_DOTS(STREAMED_DOT, 3) STREAMED_DOTS(STREAMED_DOT, 4)
/* [wide][mr] */
static const streamed_dot streamed_dots[5][DOT_ROWS + 1] = {
    [3] = {NULL, STREAMED_DOTS(STREAMED_NAME, 3)}, [4] = {NULL, STREAMED_DOTS(STREAMED_NAME, 4)}};
#endif

/* What a dot_source wants as `last`. */
INLINE void last_vector(T *out, const T *x, size_t K)
{
    size_t rest = K % VW, whole = K - rest;
    memset(out, 0, VW * sizeof(T));
    if (whole) memcpy(out + VW - rest, x + whole, rest * sizeof(T));
    else memcpy(out, x, rest * sizeof(T));
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

#if CRNN_VBYTES == 64 && defined(__AVX512F__)
#define ACROSS 1
INLINE V of_two(V low, V high, VI index)
{
#if CRNN_DOUBLE
    return (V)_mm512_permutex2var_pd((__m512d)low, (__m512i)index, (__m512d)high);
#else
    return (V)_mm512_permutex2var_ps((__m512)low, (__m512i)index, (__m512)high);
#endif
}

/* A plain dot_tile of one row and four columns where rows of W begin anywhere: whole lines are loaded, and a vector that lies
 * across two of them is permuted from both. A load across lines takes two cycles, which bound a step of one sequence whose
 * weights are near. With two rows the permutations cost as much as they save, with three 10 to 20 % of a step, and in held_vectors
 * 5 to 15 %. Reads up to a vector before the first row and after the last. */
#define LANE(i, s) (i)
INLINE void dot_across(V *acc, const dot_source *s)
{
    const T *w[4];
    V low[4];
    VI index[4];
    const size_t whole = s->K / VW * VW;
    UNROLL(4) for (int j = 0; j < 4; j++) {
        const T *row = s->W + (size_t)j * s->ldw;
        size_t past = (uintptr_t)row / sizeof(T) % VW;
        w[j] = row - past;
        low[j] = load(w[j]);
        index[j] = (VI){LANES(LANE, 0)} + (TI)past;
    }
    for (size_t k = 0; k < whole; k += VW) {
        V v = load_once(s->v + k);
        UNROLL(4) for (int j = 0; j < 4; j++) {
            V high = load_once(w[j] + k + VW);
            acc[j] = MULADD(of_two(low[j], high, index[j]), v, acc[j]);
            low[j] = high;
        }
    }
    if (whole == s->K) return;
    V v = load(s->last);
    UNROLL(4) for (int j = 0; j < 4; j++) acc[j] = MULADD(load(s->W + (size_t)j * s->ldw + s->K - VW), v, acc[j]);
}
#undef LANE
#else
#define ACROSS 0
INLINE void dot_across(V *acc, const dot_source *s) { (void)acc, (void)s; }
#endif

/* Rows too long to be held, of which most begin within a line. Where every other one does, nothing is gained. */
INLINE int lies_across(const T *W, size_t K)
{
    return K > HELD * VW && ((uintptr_t)W % CRNN_VBYTES || K * sizeof(T) % (CRNN_VBYTES / 2));
}

/* out[0..valid) += both sources, or those that have a v, for one row, unless weights are far: a vector of units, whose sums are
 * turned at once. Four rows of weights at a time, or what lies between them is too much for the hardware to read ahead. `across`:
 * rows that lie so may be read by lines. */
INLINE void dot_row(const int across, dot_source h, dot_source x, size_t valid, T *out)
{
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
        else if (h.v) dot_tile(1, WIDE, 0, acc + j, &h, columns, 0);
        if (across_x && columns == 4) dot_across(acc + j, &x);
        else if (x.v) dot_tile(1, WIDE, 0, acc + j, &x, columns, 0);
        h.W += WIDE * h.ldw, h.room -= columns * h.ldw;
        x.W += WIDE * x.ldw, x.room -= columns * x.ldw;
    }
    store(out, load(out) + lane_sums(acc, LANE_COUNT));
}
