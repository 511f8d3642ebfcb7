/* Matrix products in register tiles. Every element of every product is one chain of multiply-adds over k in rising
 * order, added to what was there, whatever tile it falls in: results do not depend on how rows and columns are cut, nor
 * on the threads. */

#if CRNN_VREGS >= 32
static const int tile_rows_max[5] = {0, 8, 8, 8, 6};
#else
static const int tile_rows_max[5] = {0, 8, 6, 4, 3};
#endif

/* What comes closer while a tile is at work. */
typedef struct {
    int far;         /* the tile's own rows of c lie beyond the second level: asked for one by one from its beginning, to be written */
    const char *at;  /* and what a later tile will read: `rows` rows of as many lines as the tile is wide, */
    size_t rows, step; /* `step` bytes apart, spread evenly over k */
    T *tops;         /* what topped tiles raise to the largest of their sums, by row (VW apart) and lane */
} tile_fetch;

/* c[i][off[j]..] = init[i][off[j]..] + sum_k a[i*lda + k] * b[k*ldb + j*VW ..],  i < mr rows, j < nv vectors; a[i + k*lda] in tiles of
 * turned rows. init null: 0. ldi 0: the same row of init for all (a bias).
 * The last `halves` vectors have half as many columns, and take half the time: 200 columns are 12.5 vectors of sixteen.
 * fetch may be null. */
#define TILE_ARGUMENTS                                                                                                        \
    size_t K, const T *a, size_t lda, const T *b, size_t ldb, T *c, size_t ldc, const T *init, size_t ldi, const size_t *off, \
        const tile_fetch *fetch
typedef void (*tile_function)(TILE_ARGUMENTS);
/* Lines are asked for a few at a time: more than the core can have under way would hold up the tile's own loads (with 64 steps
 * of k at a time LSTMs of 500 to 800 units lose 2 to 11 % of forward; with all rows of c at once the logits of 400 rows, 10,000
 * words ran at 99 instead of 109 GFLOP/s on one thread). Each row of c has an instruction of its own: from a single one in a
 * loop the hardware learns the distance between rows and goes on beyond the tile, into what another thread is writing (two threads,
 * 200 units: 1 to 2 % lost, 4 to 7 where cores are far from each other). */
#if CRNN_VREGS >= 32
#define AHEAD_STEP 8
#else /* tiles are half as large and ask for half as much each; every interruption costs (K 650: 1 to 4 %) */
#define AHEAD_STEP 32
#endif

/* One step of k: the vectors of b, then row by row; where AVX2 has more vectors than rows, the numbers of a first and then vector by
 * vector, so that three rows by four vectors fit its sixteen registers. Rows of a are reached from every third one, so that a tile needs
 * few registers for addresses, and turned ones from the first; with AVX2 each has an address of its own (0 to 4 % faster on Zen 3 than
 * sums of two registers as addresses). The compiler is not to see through addresses: it would keep one for each step and row, on the
 * stack. */
#define KEEP_ADDRESS(at) __asm__("" : "+r"(at))
#define BY_COLUMNS(mr, nv) (CRNN_VBYTES == 32 && (nv) > (mr))
#define ROWS_AN_ADDRESS (CRNN_VBYTES == 32 ? 1 : 3)
#define TILE_BELOW(i) ((i) % ROWS_AN_ADDRESS == 2 ? two_rows : (size_t)((i) % ROWS_AN_ADDRESS) * a_row)
#define TILE_A(i, k)                                                      \
    ((const T *)(const void *)(turned ? a_at[0] + (size_t)(i) * sizeof(T) \
                                      : a_at[(i) / ROWS_AN_ADDRESS] + TILE_BELOW(i) + (size_t)(k) * sizeof(T)))
#define TILE_B(j) ((const T *)(const void *)b_at + (size_t)(j) * VW)
/* Half columns of two rows make up one vector: a core that multiplies whole vectors each cycle takes as long over half ones (Zen 5, K 128:
 * tiles of 8 rows by 2.5 vectors 1353 cycles instead of 1597, of 6 by 3.5 1396 instead of 1585, of 6 by four halves 927 instead of 1580).
 * Each sum is the same chain as before. A last row that has no other keeps half a vector. */
#define IN_PAIR(i) (PAIRED && ((i) | 1) < mr)
#define TILE_MULADD(i, j, s, whole, part)                                              \
    {                                                                                  \
        if (j < full) acc[i][j] = muladd_in_order(s, whole, acc[i][j]);                \
        else if (!IN_PAIR(i)) half[i][j] = HALF_MULADD(LOW_HALF(s), part, half[i][j]); \
    }
#define TILE_LOAD                                                            \
    UNROLL(4) for (int j = 0; j < nv; j++) {                                 \
        if (j < full) bv[j] = load_in_order(TILE_B(j));                      \
        else if (PAIRED) bv[j] = load_twice_in_order(TILE_B(j));             \
        bh[j] = j < full || PAIRED ? LOW_HALF(bv[j]) : load_half(TILE_B(j)); \
    }
#define TILE_ROW(i, k)                                                                                               \
    {                                                                                                                \
        sv[i] = splat_in_order(TILE_A(i, k));                                                                        \
        UNROLL(4) for (int j = 0; j < nv; j++) TILE_MULADD(i, j, sv[i], bv[j], bh[j])                                \
        if (halves && IN_PAIR(i) && (i) % 2) {                                                                       \
            V both = halves_in_order(sv[(i)-1], sv[i]);                                                              \
            UNROLL(4) for (int j = full; j < nv; j++) pair[i / 2][j] = muladd_in_order(both, bv[j], pair[i / 2][j]); \
        }                                                                                                            \
    }
#define TILE_COLUMNS(k)                                                             \
    {                                                                               \
        V s[8];                                                                     \
        UNROLL(8) for (int i = 0; i < mr; i++) s[i] = splat_in_order(TILE_A(i, k)); \
        UNROLL(4) for (int j = 0; j < nv; j++) {                                    \
            V v = j < full ? load_in_order(TILE_B(j)) : (V){0};                     \
            VH h = j < full ? LOW_HALF(v) : load_half(TILE_B(j));                   \
            UNROLL(8) for (int i = 0; i < mr; i++) TILE_MULADD(i, j, s[i], v, h)    \
        }                                                                           \
    }
#define TILE_STEP(k)                                              \
    {                                                             \
        if (BY_COLUMNS(mr, nv)) {                                 \
            TILE_COLUMNS(k)                                       \
        } else {                                                  \
            TILE_LOAD                                             \
            UNROLL(8) for (int i = 0; i < mr; i++) TILE_ROW(i, k) \
        }                                                         \
        b_at += b_step;                                           \
        KEEP_ADDRESS(b_at);                                       \
        if (turned) {                                             \
            a_at[0] += a_row;                                     \
            KEEP_ADDRESS(a_at[0]);                                \
        }                                                         \
    }
#define TILE_GO_ON(steps)                                                        \
    if (!turned)                                                                 \
        UNROLL(8) for (int i = 0; i * ROWS_AN_ADDRESS < mr; i++) {               \
            a_at[i] += (steps) * sizeof(T);                                      \
            KEEP_ADDRESS(a_at[i]);                                               \
        }
/* Steps from one look at the end to the next: 37 instructions a step of the largest tile instead of 41. It counts where another program
 * has a core's second thread (Emerald Rapids, tiles of six rows by four vectors, such minutes: 1.02 to 1.2 times as fast with four steps;
 * quiet ones 0.98 to 1.06. Layers and output layers in both: 0.99 to 1.1; with AVX2 on Zen 3, tiles of three by four, 1.05 to 1.15 and 0.97 to
 * 1.04, layers 1.04 to 1.18). */
#define TILE_STEPS ((size_t)(IN_ORDER ? 4 : 1))

INLINE void tile_body(const int mr, const int nv, const int halves, const int topped, const int turned, TILE_ARGUMENTS)
{
    const int full = nv - halves;
    const size_t a_row = opaque(lda * sizeof(T)), two_rows = opaque(2 * a_row), b_step = opaque(ldb * sizeof(T));
    const char *b_at = (const char *)b, *a_at[8];
    V acc[8][4], pair[4][4], bv[4], sv[8];
    VH half[8][4], bh[4];
    UNROLL(8) for (int i = 0; i < mr; i++) UNROLL(4) for (int j = 0; j < nv; j++) {
        if (j < full) acc[i][j] = (V){0};
        else if (IN_PAIR(i)) pair[i / 2][j] = (V){0};
        else half[i][j] = (VH){0};
    }
    UNROLL(8) for (int i = 0; i * ROWS_AN_ADDRESS < mr; i++) {
        a_at[i] = (const char *)a + (size_t)(i * ROWS_AN_ADDRESS) * a_row;
        if (ROWS_AN_ADDRESS == 1) KEEP_ADDRESS(a_at[i]);
    }
    if (K == 0) {
        UNROLL(8) for (int i = 0; i < mr; i++) UNROLL(4) for (int j = 0; j < nv; j++) {
            const T *from = init + (size_t)i * ldi + off[j];
            T *to = c + (size_t)i * ldc + off[j];
            if (j < full) store(to, init ? load(from) : (V){0});
            else store_half(to, init ? load_half(from) : (VH){0});
        }
        return;
    }
    size_t rows = fetch ? fetch->rows : 0, per_step = rows ? (rows * AHEAD_STEP + K - 1) / K : 0;
    const char *ahead = rows ? fetch->at : NULL;
    int far = fetch && fetch->far ? mr : 0; /* rows of c still to ask for */
    for (size_t left = K - 1; left;) { /* the last step stands apart */
        size_t now = left;
        if (rows | (size_t)far) {
            UNROLL(8) for (int i = 0; i < mr; i++) {
                if (far != mr - i) continue;
                UNROLL(4) for (int j = 0; j < nv; j++) __builtin_prefetch(c + (size_t)i * ldc + off[j], 1, 3);
            }
            far -= far > 0;
            const size_t stop = rows > per_step ? rows - per_step : 0;
            for (; rows > stop; rows--, ahead += fetch->step)
                UNROLL(4) for (int l = 0; l < (nv * CRNN_VBYTES + 63) / 64; l++) __builtin_prefetch(ahead + l * 64, 0, 2);
            if (now > AHEAD_STEP) now = AHEAD_STEP;
        }
        left -= now;
        for (; now % TILE_STEPS; now--) {
            TILE_STEP(0)
            TILE_GO_ON(1)
        }
        for (const char *end = b_at + now * b_step; b_at != end;) {
            TILE_STEP(0)
            if (TILE_STEPS == 4) TILE_STEP(1)
            if (TILE_STEPS == 4) TILE_STEP(2)
            if (TILE_STEPS == 4) TILE_STEP(3)
            TILE_GO_ON(TILE_STEPS)
        }
    }
    /* Stores, two cycles each on Zen 4, go on during the multiplications of the rows below and of the next tile: a third less
     * time is lost between tiles than with all of them at the end (45 cycles instead of 64 for 24 vectors). */
    if (BY_COLUMNS(mr, nv)) TILE_COLUMNS(0)
    else TILE_LOAD
    UNROLL(8) for (int i = 0; i < mr; i++) {
        if (!BY_COLUMNS(mr, nv)) TILE_ROW(i, 0)
        UNROLL(4) for (int j = 0; j < nv; j++) {
            const T *from = init + (size_t)i * ldi + off[j];
            T *to = c + (size_t)i * ldc + off[j];
            if (j < full) store(to, acc[i][j] = init ? acc[i][j] + load(from) : acc[i][j]);
            else if (!IN_PAIR(i)) store_half(to, init ? half[i][j] + load_half(from) : half[i][j]);
            else if (i % 2) {
                const VH low = LOW_HALF(pair[i / 2][j]), high = HIGH_HALF(pair[i / 2][j]);
                store_half(to - ldc, init ? low + load_half(from - ldi) : low);
                store_half(to, init ? high + load_half(from) : high);
            }
        }
        if (topped) {
            V top = load(fetch->tops + (size_t)i * VW);
            UNROLL(4) for (int j = 0; j < nv; j++) top = MAXIMUM(acc[i][j], top);
            store(fetch->tops + (size_t)i * VW, top);
        }
    }
}

#define TILE(mr, nv, halves)                                                               \
    NOINLINE void tile_##mr##x##nv##_##halves(TILE_ARGUMENTS)                              \
    {                                                                                      \
        tile_body(mr, nv, halves, 0, 0, K, a, lda, b, ldb, c, ldc, init, ldi, off, fetch); \
    }
#define TILE_NAME(mr, nv, halves) tile_##mr##x##nv##_##halves,
/* The same of turned rows. */
#define TILE_TURNED(mr, nv, halves)                                                        \
    NOINLINE void turned_##mr##x##nv##_##halves(TILE_ARGUMENTS)                            \
    {                                                                                      \
        tile_body(mr, nv, halves, 0, 1, K, a, lda, b, ldb, c, ldc, init, ldi, off, fetch); \
    }
#define TURNED_NAME(mr, nv, halves) turned_##mr##x##nv##_##halves,
/* The same, with the largest sums; whole vectors alone. */
#define TOPPED(mr, nv, halves)                                                        \
    NOINLINE void topped_##mr##x##nv(TILE_ARGUMENTS)                                  \
    {                                                                                 \
        tile_body(mr, nv, 0, 1, 0, K, a, lda, b, ldb, c, ldc, init, ldi, off, fetch); \
    }
#define TOPPED_NAME(mr, nv, halves) topped_##mr##x##nv,
#define UPTO_3(M, nv, halves) M(1, nv, halves) M(2, nv, halves) M(3, nv, halves)
#define UPTO_4(M, nv, halves) UPTO_3(M, nv, halves) M(4, nv, halves)
#define UPTO_6(M, nv, halves) UPTO_4(M, nv, halves) M(5, nv, halves) M(6, nv, halves)
#define UPTO_8(M, nv, halves) UPTO_6(M, nv, halves) M(7, nv, halves) M(8, nv, halves)
#if CRNN_VREGS >= 32
#define WIDE_1(M, halves) UPTO_8(M, 1, halves)
#define WIDE_2(M, halves) UPTO_8(M, 2, halves)
#define WIDE_3(M, halves) UPTO_8(M, 3, halves)
#define WIDE_4(M, halves) UPTO_6(M, 4, halves)
#define NAMES_4(M, halves) WIDE_4(M, halves)
#else
#define WIDE_1(M, halves) UPTO_8(M, 1, halves)
#define WIDE_2(M, halves) UPTO_6(M, 2, halves)
#define WIDE_3(M, halves) UPTO_4(M, 3, halves)
#define WIDE_4(M, halves) UPTO_3(M, 4, halves)
#define NAMES_4(M, halves) WIDE_4(M, halves) M(4, 4, halves)
#endif
WIDE_1(TILE, 0) WIDE_2(TILE, 0) WIDE_3(TILE, 0) WIDE_4(TILE, 0)
#if HALVES /* 1: the last of some columns; 2 to 4: the last unit vector of a cell with so many gates */
WIDE_1(TILE, 1) WIDE_2(TILE, 1) WIDE_3(TILE, 1) WIDE_4(TILE, 1)
WIDE_2(TILE, 2) WIDE_4(TILE, 2) WIDE_3(TILE, 3) WIDE_4(TILE, 4)
#endif
#if CRNN_VREGS < 32
/* Four rows by four vectors, one half of the columns after the other: two tiles of two rows would read all of b twice, as fast as the
 * second level gives it (84 GFLOP/s instead of 106 on one core of Zen 4 with AVX2; 10 rows are 3 + 3 + 4 and not 3 + 3 + 2 + 2). */
#define PAIR(name, first, second)                                                                 \
    NOINLINE void name(TILE_ARGUMENTS)                                                            \
    {                                                                                             \
        const tile_fetch rest = {.far = fetch && fetch->far, .tops = fetch ? fetch->tops : NULL}; \
        first(K, a, lda, b, ldb, c, ldc, init, ldi, off, fetch);                                  \
        second(K, a, lda, b + 2 * VW, ldb, c, ldc, init, ldi, off + 2, &rest);                    \
    }
PAIR(tile_4x4_0, tile_4x2_0, tile_4x2_0)
#if HALVES
PAIR(tile_4x4_1, tile_4x2_0, tile_4x2_1) PAIR(tile_4x4_2, tile_4x2_0, tile_4x2_2) PAIR(tile_4x4_4, tile_4x2_2, tile_4x2_2)
#endif
#endif
/* [halves][nv][mr] */
static const tile_function tiles[5][5][9] = {
#define EVERY_WIDTH(NAME, halves) \
    {{NULL}, {NULL, WIDE_1(NAME, halves)}, {NULL, WIDE_2(NAME, halves)}, {NULL, WIDE_3(NAME, halves)}, {NULL, NAMES_4(NAME, halves)}}
    EVERY_WIDTH(TILE_NAME, 0),
#if HALVES
    EVERY_WIDTH(TILE_NAME, 1),
    {{NULL}, {NULL}, {NULL, WIDE_2(TILE_NAME, 2)}, {NULL}, {NULL, NAMES_4(TILE_NAME, 2)}},
    {{NULL}, {NULL}, {NULL}, {NULL, WIDE_3(TILE_NAME, 3)}, {NULL}},
    {{NULL}, {NULL}, {NULL}, {NULL}, {NULL, NAMES_4(TILE_NAME, 4)}},
#endif
};

WIDE_1(TILE_TURNED, 0) WIDE_2(TILE_TURNED, 0) WIDE_3(TILE_TURNED, 0) WIDE_4(TILE_TURNED, 0)
#if HALVES
WIDE_1(TILE_TURNED, 1) WIDE_2(TILE_TURNED, 1) WIDE_3(TILE_TURNED, 1) WIDE_4(TILE_TURNED, 1)
#endif
#if CRNN_VREGS < 32
PAIR(turned_4x4_0, turned_4x2_0, turned_4x2_0)
#if HALVES
PAIR(turned_4x4_1, turned_4x2_0, turned_4x2_1)
#endif
#endif
/* [halves][nv][mr] */
static const tile_function turned_rows[2][5][9] = {
    EVERY_WIDTH(TURNED_NAME, 0),
#if HALVES
    EVERY_WIDTH(TURNED_NAME, 1),
#endif
};

WIDE_1(TOPPED, 0) WIDE_2(TOPPED, 0) WIDE_3(TOPPED, 0) WIDE_4(TOPPED, 0)
#if CRNN_VREGS < 32
PAIR(topped_4x4, topped_4x2, topped_4x2)
#endif
/* [nv][mr] */
static const tile_function topped_tiles[5][9] = EVERY_WIDTH(TOPPED_NAME, 0);

/* 1 if the last vector of a tile that ends at column `end` is half a one, in rows of `width` columns. */
INLINE int half_left(size_t end, size_t width) { return HALVES && end >= width + VW / 2; }

/* Columns that a tile of nv vectors computes where `width` are left. */
INLINE size_t computed(size_t nv, size_t width) { return nv * VW - (size_t)half_left(nv * VW, width) * (VW / 2); }

/* n rows cut into tiles of nearly equal height: rows of the next tile. */
INLINE size_t next_rows(size_t left, size_t most)
{
    size_t count = (left + most - 1) / most;
    return (left + count - 1) / count;
}

/* Rows of the next of the tiles that `left` rows are cut into, and how many there are. */
INLINE size_t tile_rows(size_t left, int nv)
{
    return left == 4 && tile_rows_max[nv] == 3 ? 4 : next_rows(left, (size_t)tile_rows_max[nv]);
}
INLINE size_t tiles_high(size_t rows, int nv)
{
    const size_t most = (size_t)tile_rows_max[nv];
    return most == 3 && rows > 3 && rows % 3 == 1 ? rows / 3 : (rows + most - 1) / most;
}

/* n columns (in vectors or units) cut into tiles of nearly equal width: a tile of one vector does a load per multiply-add,
 * so 13 vectors are 4 + 3 + 3 + 3 and not 4 + 4 + 4 + 1. */
INLINE size_t tile_count(size_t n, size_t most) { return (n + most - 1) / most; }
INLINE size_t tile_edge(size_t n, size_t count, size_t index) { return n * index / count; }

/* What is fetched while the tiles of one column are at work: data of the next column that lies outside the second-level
 * cache and is wanted faster than the third level gives it. */
typedef struct {
    const char *at;
    size_t rows, step, tiles; /* still to fetch, bytes apart; calls of tiles left to do it in */
} fetch_plan;

INLINE tile_fetch fetch_share(fetch_plan *plan, int far)
{
    tile_fetch share = {.far = far, .at = plan->at, .rows = plan->tiles ? plan->rows / plan->tiles : 0, .step = plan->step};
    plan->at += share.rows * plan->step;
    plan->rows -= share.rows;
    plan->tiles -= plan->tiles > 0;
    return share;
}

/* Packed weights of FETCH_BYTES and more (an LSTM of 500 units has 4 MB): `whole` elements in all; those of the next tile
 * are `count` from `next` on. */
#define FETCH_BYTES ((size_t)2 << 20)
INLINE fetch_plan fetch_ahead(size_t whole, const T *next, size_t count, size_t rows, int nv)
{
    size_t row = (size_t)nv * VW;
    if (!next || whole * sizeof(T) < FETCH_BYTES) return (fetch_plan){0};
    return (fetch_plan){(const char *)next, count / row, row * sizeof(T), tiles_high(rows, nv)};
}

/* Rows of one product with one tile-wide group of columns. */
INLINE void tile_column(size_t rows, int nv, int halves, size_t K, const T *a, size_t lda, const T *b, size_t ldb, T *c,
                        size_t ldc, const T *init, size_t ldi, const size_t *off, fetch_plan plan, int far)
{
    for (size_t done = 0; done < rows;) {
        size_t mr = tile_rows(rows - done, nv);
        const tile_fetch fetch = fetch_share(&plan, far);
        tiles[halves][nv][mr](K, a + done * lda, lda, b, ldb, c + done * ldc, ldc, init ? init + done * ldi : NULL, ldi, off, &fetch);
        done += mr;
    }
}

/* C[m][n] (+)= sum_k A[m*lda + k] * B[k*ldb + n], n < N, k < K; A[m + k*lda] if it is turned. */
typedef struct {
    size_t N, K;
    const T *A;
    size_t lda;
    int turned;
    const T *next_A; /* of the product that comes after this one, or null */
    const T *B;
    size_t ldb, depth; /* rows of B in one block */
    T *room;           /* product_room; unless A is turned null where rows of B are readable up to whole vectors */
    T *C;
    size_t ldc;
    int accumulate;
    int blas; /* as the whole call has it */
} product_call;

/* One tile of rows from a on; columns past `width` are computed but not written. */
INLINE void product_tile(const product_call *p, const T *a, size_t lda, size_t mr, int nv, size_t width, size_t K, const T *b,
                         size_t ldb, T *c, int add, fetch_plan *plan)
{
    T edge[8 * 4 * VW];
    const tile_fetch fetch = fetch_share(plan, 1);
    const tile_function tile = (p->turned ? turned_rows : tiles)[half_left((size_t)nv * VW, width)][nv][mr];
    if (width == computed((size_t)nv, width)) {
        tile(K, a, lda, b, ldb, c, p->ldc, add ? c : NULL, p->ldc, contiguous_off, &fetch);
        return;
    }
    for (size_t i = 0; add && i < mr; i++) memcpy(edge + i * 4 * VW, c + i * p->ldc, width * sizeof(T));
    tile(K, a, lda, b, ldb, edge, 4 * VW, add ? edge : NULL, 4 * VW, contiguous_off, &fetch);
    for (size_t i = 0; i < mr; i++) memcpy(c + i * p->ldc, edge + i * 4 * VW, width * sizeof(T));
}

INLINE void copy_tile(T *to, size_t ldt, const T *from, size_t ldf, size_t width, size_t rows)
{
    for (size_t k = 0; k < rows; k++, to += ldt, from += ldf) {
        memcpy(to, from, width * sizeof(T));
        for (size_t l = width; l < ldt; l++) to[l] = 0;
    }
}

/* Rows m0..m1 of a product with nothing packed beforehand, blocked for the caches: a block of k of A and of rows of C stay
 * in the second level. While one tile's columns of B pass by all those rows, the next ones are fetched, and so are the
 * columns of A that the next block reads, turn and turn about: neither lies so that the hardware would guess it (weight
 * gradients of 128 to 500 units: 4 to 9 %). */
#define PRODUCT_ROWS 96
/* The first level holds what a tile reads of B: 128 rows of four vectors. With 350 to 512 rows it comes from the second level each time:
 * weight gradients of 128 to 650 units ran at 86 to 104 GFLOP/s on one core of Emerald Rapids, and now at 96 to 110. Columns of A
 * are copied to where the hardware sees them coming, unless few columns of B repay it (500 and 650 units: 116 and 117 instead of 99
 * and 110).
 * With sixteen registers a tile of three rows by four vectors takes six cycles a step, in which three lines, of columns of A and of
 * rows of B, would come from the second level: all that it gives. Tiles of six rows by two vectors want two, and 192 rows of two
 * vectors of B stay in the first level: 86 to 99 GFLOP/s on one core of Zen 4 with AVX2 instead of 55 to 79 (200 to 650 units).
 * What is small stays as it is. */
#if CRNN_VREGS >= 32
#define COLUMNS_WIDE 4
#define COLUMNS_DEPTH 128
#define COPY_TILES 6
#else
#define COLUMNS_WIDE 2
#define COLUMNS_DEPTH 192
#define COPY_TILES 8
#endif
#define COLUMNS_BYTES ((size_t)64 << 10) /* of B */
/* Elements of a call's room: for the last columns of B, or, where A's columns are rows of what is stored, for columns of A. */
INLINE size_t product_room(size_t depth, int columns_of_A)
{
    return depth * (columns_of_A ? leading(PRODUCT_ROWS) : 4 * VW);
}
/* Of few rows of B, which the first level holds, so many rows of C at a time, written from end to end (weight gradients of 3 steps,
 * 650 units: 0 to 7 % of forward and backward). */
#define FLAT_BYTES ((size_t)32 << 10)
#define FLAT_ROWS 24
static void product_rows(const product_call *p, size_t m0, size_t m1)
{
    size_t N = p->N, K = p->K, ldb = p->ldb, row = p->turned ? 1 : p->lda, block;
    if (m1 <= m0) return;
    if (p->blas) {
        crnn_blas_gemm(THIS_DTYPE, 'N', p->turned ? 'T' : 'N', N, m1 - m0, K, p->B, ldb, p->A + m0 * row, p->lda, p->accumulate,
                       p->C + m0 * p->ldc, p->ldc);
        return;
    }
    const int deep = p->turned && K * N * sizeof(T) > COLUMNS_BYTES;
    size_t vectors = tile_count(N, VW), columns = tile_count(vectors, deep ? COLUMNS_WIDE : 4);
    const int copy = deep && columns > COPY_TILES;
    const size_t most_rows = K * N * sizeof(T) <= FLAT_BYTES ? FLAT_ROWS : PRODUCT_ROWS;
    for (size_t mb = m0; mb < m1; mb += block) {
        block = round_up(next_rows(m1 - mb, most_rows), 8);
        size_t me = m1 - mb < block ? m1 : mb + block, copied_lda = leading(me - mb);
        for (size_t k = 0, kn; k < K || k == 0; k += kn) {
            kn = K > k ? next_rows(K - k, p->depth) : 0;
            const T *next_A = k + kn < K ? p->A + (k + kn) * p->lda + mb : me < m1 ? p->A + me : p->next_A;
            if (!p->turned) next_A = NULL; /* whole rows of A: the hardware's business */
            const T *A = p->A + mb * row + k * (p->turned ? p->lda : 1);
            if (copy) copy_tile(p->room, copied_lda, A, p->lda, me - mb, kn);
            for (size_t t = 0; t < columns; t++) {
                /* The narrower tiles come last, so that pairs of vectors begin where lines do. */
                size_t right = tile_edge(vectors, columns, columns - t), n = (vectors - right) * VW;
                size_t nv = right - tile_edge(vectors, columns, columns - t - 1);
                size_t width = N - n < nv * VW ? N - n : nv * VW, count = tiles_high(me - mb, (int)nv);
                const T *b = p->B + k * ldb + n;
                const T *next = t + 1 < columns ? b + nv * VW : k + kn < K ? p->B + (k + kn) * ldb : NULL;
                const int copied = p->room && !p->turned && width < computed(nv, width);
                if (copied) copy_tile(p->room, nv * VW, b, ldb, width, kn);
                fetch_plan plans[2] = {{(const char *)next, next ? kn : 0, ldb * sizeof(T), count},
                                       {(const char *)(next_A ? next_A + n : NULL), kn, p->lda * sizeof(T), count / 2}};
                const size_t both = next_A && n < block && count > 1;
                if (both) plans[0].tiles -= count / 2;
                for (size_t m = mb, i = 0; m < me; i++) {
                    size_t mr = tile_rows(me - m, (int)nv);
                    product_tile(p, (copy ? p->room : A) + (m - mb) * row, copy ? copied_lda : p->lda, mr, (int)nv, width, kn,
                                 copied ? p->room : b, copied ? nv * VW : ldb, p->C + m * p->ldc + n, p->accumulate || k > 0,
                                 plans + (i & both));
                    m += mr;
                }
            }
            if (kn == 0) break;
        }
    }
}
