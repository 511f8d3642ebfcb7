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
    /* What is read after this, as many rows, may be asked for meanwhile: into the first level `asked` elements each of rows `ldask`
     * apart, and beyond as many elements the rows that this source goes on with, unless null; into the second one as many elements
     * as this source has. Nothing is read there. */
    const T *ask, *own;
    size_t ldask, asked;
} dot_source;

/* acc[i*wide + j] += W[j] * v[i], element-wise, for mr rows of v and `columns` <= wide <= 4 rows of W. Rows of v are reached
 * from every third one: fewer addresses than there are registers. What comes next is asked for a line of each row at a time, into
 * that level of cache; 0: not at all. */
INLINE void dot_tile(const int mr, const int wide, const int level, V *acc, const dot_source *s, size_t columns)
{
    const T *w[4], *v[3];
    const size_t ldv = s->ldv;
    UNROLL(4) for (int j = 0; j < wide; j++) w[j] = s->W + ((size_t)j < columns ? (size_t)j : columns - 1) * s->ldw;
    UNROLL(3) for (int i = 0; 3 * i < mr; i++) v[i] = s->v + 3 * (size_t)i * ldv;
    size_t whole = s->K / VW * VW;
    const ptrdiff_t step = s->falling ? -(ptrdiff_t)VW : (ptrdiff_t)VW;
    ptrdiff_t k = s->falling ? (ptrdiff_t)(whole - VW) : 0;
    uintptr_t ask = (uintptr_t)s->ask;
    size_t ldask = s->ldask, turn = level == 1 && s->asked < whole ? round_up(s->asked, VW) : whole;
    for (size_t done = 0; done < whole; turn = whole, ask = (uintptr_t)s->own, ldask = s->ldw) {
        for (; done < turn; done += VW, k += step) {
            V wv[4];
            if (level == 2 || (level && ask))
                UNROLL(4) for (int j = 0; j < wide; j++) {
                    const void *next = (const void *)(ask + ((size_t)j * ldask + (size_t)k) * sizeof(T));
                    if (level == 1) __builtin_prefetch(next, 0, 3); /* a level must be a constant without optimisation as well */
                    else __builtin_prefetch(next, 0, 2);
                }
            UNROLL(4) for (int j = 0; j < wide; j++) wv[j] = mr > 1 ? load_once(w[j] + k) : load(w[j] + k);
            UNROLL(8) for (int i = 0; i < mr; i++) {
                const T *row = v[i / 3] + (size_t)(i % 3) * ldv + k;
                V vv = mr > 6 ? load_once(row) : load(row);
                UNROLL(4) for (int j = 0; j < wide; j++) acc[i * wide + j] = MULADD(wv[j], vv, acc[i * wide + j]);
            }
        }
        if (level != 1) break; /* known when compiled: all in one go */
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

/* out[i*ldo + j] (+)= W[j] . v[i], summed over the sources, of which the second may be null. */
#define DOT_ARGUMENTS \
    const dot_source *one, const dot_source *two, size_t columns, T *out, size_t ldo, int accumulate
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

INLINE void dot_body(const int mr, const int wide, const int level, int part, V *kept, DOT_ARGUMENTS)
{
    V acc[8 * 4];
    const int sums_of = summed(mr * wide);
    UNROLL(32) for (int i = 0; i < sums_of; i++) acc[i] = (V){0};
    if (!(part & BEGINS)) UNROLL(24) for (int i = 0; i < mr * wide; i++) acc[i] = kept[i];
    dot_tile(mr, wide, level, acc, one, columns);
    if (two) dot_tile(mr, wide, level, acc, two, columns);
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

/* How a tile reads W: as it comes; asking for what it reads next; or, the last and highest of several over the same rows of W, for
 * what the first of them reads next, a whole group of rows away, which the first level has no room for. */
enum { PLAIN, ASKING, LAST_ASKING, READINGS };

#define DOT(name, mr, level) \
    NOINLINE void name##_##mr(DOT_ARGUMENTS) { dot_body(mr, 4, level, ALL, NULL, one, two, columns, out, ldo, accumulate); }
DOT(plain, 1, 0) DOT(plain, 2, 0) DOT(asking, 1, 1) DOT(asking, 2, 1)
#if CRNN_VREGS >= 32
DOT(plain, 3, 0) DOT(plain, 4, 0) DOT(plain, 5, 0) DOT(plain, 6, 0) DOT(asking, 3, 1) DOT(asking, 4, 1) DOT(asking, 5, 1)
DOT(asking, 6, 1) DOT(last_asking, 4, 2) DOT(last_asking, 5, 2) DOT(last_asking, 6, 2)
static const dot_function dots[READINGS][DOT_ROWS + 1] = {
    {NULL, plain_1, plain_2, plain_3, plain_4, plain_5, plain_6},
    {NULL, asking_1, asking_2, asking_3, asking_4, asking_5, asking_6},
    {NULL, NULL, NULL, NULL, last_asking_4, last_asking_5, last_asking_6},
};
#else
DOT(last_asking, 2, 2)
static const dot_function dots[READINGS][DOT_ROWS + 1] = {
    {NULL, plain_1, plain_2}, {NULL, asking_1, asking_2}, {NULL, NULL, last_asking_2}};
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
    dot_tile(mr, wide, 0, acc, s, (size_t)wide);
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
