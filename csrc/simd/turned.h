/* Products of as many rows as one to three vectors have lanes: the rows lie in the lanes, and W's rows serve as they lie, one number at
 * a time. No sums over lanes are left, and nothing but the few rows is packed. Every element is one chain in rising k, added to
 * what was there, as in gemm.h: the bits of calls whose weights are packed. Beyond TURNED_DEPTH it is one chain for each slab of k. */

#define TURNED_DEPTH 1024
#define TURNED_VECTORS (PAIRED || LANE_COUNT == 8 ? 3 : 1)
#define TURNED_QUARTER (PAIRED ? VW / 4 : VW) /* whole vectors alone where a half takes half the time as it is */

/* Of so many rows, how many are turned together: whole vectors, and quarters of one more. */
INLINE size_t turned_together(size_t rows)
{
    return rows <= VW ? VW : round_up(next_rows(rows, TURNED_VECTORS * VW), TURNED_QUARTER);
}

/* One step of k: whole vectors of lanes, then half a one, then a quarter. Half sums of two rows of W make up one vector, as in gemm.h, and
 * quarter sums of four. */
INLINE void turned_step(const int mr, const int quarters, const T *const *row, size_t ldw, size_t k, const T *at, V (*acc)[TURNED_VECTORS],
                        V *pair, V *four)
{
    const int full = quarters / 4, half = quarters % 4 >= 2, quarter = quarters % 2, last = mr - 1;
    V v[TURNED_VECTORS], halves = (V){0}, four_quarters = (V){0}, s[16], both[8];
    UNROLL(3) for (int j = 0; j < full; j++) v[j] = load_once(at + j * VW);
    if (half) halves = load_twice_in_order(at + full * VW);
    if (quarter) four_quarters = LOAD_QUARTERS(at + full * VW + half * (VW / 2));
    UNROLL(16) for (int i = 0; i < mr; i++) {
        const T *w = row[i / 4] + (size_t)(i % 4) * ldw + k;
        s[i] = quarters == 4 ? splat(*w) : splat_in_order(w);
        UNROLL(3) for (int j = 0; j < full; j++) acc[i][j] = MULADD(s[i], v[j], acc[i][j]);
        if (quarters % 4 && (i % 2 || i == last)) {
            both[i / 2] = halves_in_order(s[i / 2 * 2], s[i]);
            if (half) pair[i / 2] = MULADD(both[i / 2], halves, pair[i / 2]);
        }
        if (quarter && (i % 4 == 3 || i == last))
            four[i / 4] = MULADD(EVEN_QUARTERS(both[i / 4 * 2], both[i / 2]), four_quarters, four[i / 4]);
    }
}

/* block[l] = sum over k of W[l][k] * turned[k], for mr rows of W and so many `quarters` of vectors of lanes. Tiles of eight ask for rows
 * of W from `next` on, unless it is null. */
#define TURNED_ARGUMENTS size_t K, const T *W, size_t ldw, const T *turned, T *block, const T *next
typedef void (*turned_function)(TURNED_ARGUMENTS);
INLINE void turned_body(const int mr, const int quarters, TURNED_ARGUMENTS)
{
    const int full = quarters / 4, half = quarters % 4 >= 2, quarter = quarters % 2, nv = (quarters + 3) / 4;
    const T *row[4];
    V acc[16][TURNED_VECTORS], pair[8], four[4];
    UNROLL(4) for (int i = 0; 4 * i < mr; i++) row[i] = W + 4 * (size_t)i * ldw, four[i] = (V){0};
    UNROLL(16) for (int i = 0; i < mr; i++) {
        UNROLL(3) for (int j = 0; j < full; j++) acc[i][j] = (V){0};
        pair[i / 2] = (V){0};
    }
    size_t k = 0;
    for (; mr == 8 && next && k + 2 <= K; k += 2, turned += 2 * nv * VW) {
        __builtin_prefetch(next + k % 16 / 2 * ldw + k / 16 * 16, 0, 2);
        turned_step(mr, quarters, row, ldw, k, turned, acc, pair, four);
        turned_step(mr, quarters, row, ldw, k + 1, turned + nv * VW, acc, pair, four);
    }
    for (; k < K; k++, turned += nv * VW) turned_step(mr, quarters, row, ldw, k, turned, acc, pair, four);
    _Alignas(64) T halves[8 * VW], four_quarters[4 * VW];
    UNROLL(8) for (int i = 0; 2 * i < mr; i++) store(halves + i * VW, pair[i]);
    UNROLL(4) for (int i = 0; 4 * i < mr; i++) store(four_quarters + i * VW, four[i]);
    UNROLL(16) for (int i = 0; i < mr; i++, block += nv * VW) {
        UNROLL(3) for (int j = 0; j < full; j++) store(block + j * VW, acc[i][j]);
        if (nv == full) continue;
        V rest = quarter ? LOAD_QUARTERS(four_quarters + i * (VW / 4)) : (V){0}; /* and in lanes that no row has */
        if (half) {
            const V first = load_twice_in_order(halves + i * (VW / 2));
            rest = quarter ? halves_in_order(first, rest) : first;
        }
        store(block + full * VW, rest);
    }
}

#define LANES_OF(mr, quarters) \
    NOINLINE void lanes_##mr##x##quarters(TURNED_ARGUMENTS) { turned_body(mr, quarters, K, W, ldw, turned, block, next); }
#define UPTO_4_UNITS(quarters) LANES_OF(1, quarters) LANES_OF(2, quarters) LANES_OF(3, quarters) LANES_OF(4, quarters)
#define UPTO_8_UNITS(quarters) UPTO_4_UNITS(quarters) LANES_OF(8, quarters)
#define UPTO_4_NAMES(q) [1] = lanes_1x##q, lanes_2x##q, lanes_3x##q, lanes_4x##q
#define LANES_NAMES(q) UPTO_4_NAMES(q), [8] = lanes_8x##q
UPTO_8_UNITS(4)
#if LANE_COUNT == 16
LANES_OF(12, 4) LANES_OF(16, 4) LANES_OF(12, 5) LANES_OF(16, 5)
#define LANES_NAMES_4 {LANES_NAMES(4), [12] = lanes_12x4, [16] = lanes_16x4}
#define LANES_NAMES_5 {LANES_NAMES(5), [12] = lanes_12x5, [16] = lanes_16x5}
#else
#define LANES_NAMES_4 {LANES_NAMES(4)}
#define LANES_NAMES_5 {LANES_NAMES(5)}
#endif
/* [quarters][mr] */
#if PAIRED
UPTO_8_UNITS(5) UPTO_8_UNITS(6) UPTO_8_UNITS(7) UPTO_8_UNITS(8) UPTO_8_UNITS(9) UPTO_8_UNITS(10) UPTO_8_UNITS(11) UPTO_8_UNITS(12)
static const turned_function turned_tiles[13][17] = {
    [4] = LANES_NAMES_4, LANES_NAMES_5, {LANES_NAMES(6)}, {LANES_NAMES(7)}, {LANES_NAMES(8)}, {LANES_NAMES(9)}, {LANES_NAMES(10)},
    {LANES_NAMES(11)}, {LANES_NAMES(12)}};
#elif TURNED_VECTORS > 1
UPTO_4_UNITS(8) UPTO_4_UNITS(12)
static const turned_function turned_tiles[13][17] = {[4] = LANES_NAMES_4, [8] = {UPTO_4_NAMES(8)}, [12] = {UPTO_4_NAMES(12)}};
#else
static const turned_function turned_tiles[5][17] = {[4] = LANES_NAMES_4};
#endif

/* Rows of W that one tile takes: many, where most of the numbers of W that it loads are multiplied once (five quarters, 17 to 20 rows
 * of LSTMs of 300 to 512 units, 16 rows of W at a time 1.01 to 1.09 times as fast as 8); with more lanes 8 are as fast as 12. Rows of W
 * whole pages apart share one set of the first level, of 12 ways at most: 8 of them at a time (16 rows of LSTMs of 1024 and 2048 units 1.4
 * to 1.5 times as fast as with all 16). */
#define ALIAS_BYTES 4096
INLINE size_t rows_at_once(size_t quarters, size_t ldw)
{
    if (CRNN_VREGS < 32 && quarters > 4) return 4;
    return LANE_COUNT == 16 && quarters <= 5 && ldw * sizeof(T) % ALIAS_BYTES ? 16 : 8;
}

/* out[i][0..VW) += what `valid` rows of W give for row i, and 0 beyond. What is wanted next is `then` rows away, or is not asked for
 * if that is 0. */
static void turned_units(size_t K, const T *W, size_t ldw, size_t valid, const T *turned, size_t rows, T *out, size_t ldo,
                         ptrdiff_t then)
{
    _Alignas(64) T block[TURNED_VECTORS * VW * VW];
    const size_t fours = valid / 4 * 4, nv = (rows + VW - 1) / VW;
    const size_t quarters = nv == 1 || !PAIRED ? 4 * nv : (rows + TURNED_QUARTER - 1) / TURNED_QUARTER;
    const size_t at_once = rows_at_once(quarters, ldw);
    const turned_function *tile = turned_tiles[quarters];
    for (size_t j = 0, n; j < fours; j += n) {
        n = fours - j < at_once ? fours - j : at_once;
        const ptrdiff_t later = j + n < valid ? (ptrdiff_t)(j + n) : then;
        tile[n](K, W + j * ldw, ldw, turned, block + j * nv * VW, then ? W + later * (ptrdiff_t)ldw : NULL);
    }
    if (valid > fours) tile[valid - fours](K, W + fours * ldw, ldw, turned, block + fours * nv * VW, NULL);
    for (size_t j = 0; j < nv; j++) {
        V sums[LANE_COUNT];
        const size_t some = rows - j * VW < VW ? rows - j * VW : VW;
        UNROLL(16) for (int l = 0; l < LANE_COUNT; l++) sums[l] = (size_t)l < valid ? load(block + ((size_t)l * nv + j) * VW) : (V){0};
        transpose_block(sums);
        for (size_t i = 0; i < some; i++, out += ldo) store(out, sums[i] + load(out));
    }
}
