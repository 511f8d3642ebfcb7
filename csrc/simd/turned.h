/* Products of as many rows as a vector has lanes: the rows lie in the lanes, and W's rows serve as they lie, one number at a
 * time. No sums over lanes are left, and nothing but the few rows is packed. Every element is one chain in rising k, added to
 * what was there, as in gemm.h: the bits of calls whose weights are packed. Beyond TURNED_BYTES it is one chain for each slab of k. */

/* Whether that is faster than dot products and than packing the weights: where nearly all lanes are in use (LSTMs of 160 to 900
 * units, one thread and two: 16 rows 1.04 to 1.23 and 1.03 to 1.18 times as fast, 15 rows 1.10 to 1.17 and 1.08, 14 rows 1.03 and
 * 0.99, 28 rows 0.89 and 0.99; 122 units, which were packed, 1.65 and 1.38), and with fewer where the rows of dot products outgrow
 * the first level (Zen 5, LSTMs: 1046 inputs in all, 13 and 14 rows 1.09 to 1.16, 12 rows 0.99 to 1.01; 832 inputs, 12 rows 0.90 to 0.93;
 * 1539 inputs, 12 rows 1.24 and 1.45, 9 rows 1.00 and 1.16). Eight sums of eight lanes just cover each other's latency: there only
 * narrow layers gain (AVX2, 16 rows: 128 units 1.05). Up to 8 rows a row's bits are to be the same for any number of rows, and 8 rows
 * in half a vector would be faster up to 128 units only (1.00 to 1.14; 256 units 0.89). */
#define NARROW_INPUTS 256
#define WIDE_INPUTS 900
#define WIDEST_INPUTS 1400
INLINE int turning_pays(size_t rows, size_t inputs)
{
    const size_t lanes = round_up(rows, VW), sixteenths = inputs < WIDE_INPUTS ? 15 : inputs < WIDEST_INPUTS ? 13 : 10;
    return LANE_COUNT >= 8 && rows > 8 && 16 * rows >= sixteenths * lanes && (LANE_COUNT == 16 || inputs <= NARROW_INPUTS);
}

#define TURNED_BYTES ((size_t)64 << 10) /* of a slab of the turned rows, on the stack */

/* block[l] = sum over k of W[l][k] * turned[k], for mr rows of W. */
#define TURNED_ARGUMENTS size_t K, const T *W, size_t ldw, const T *turned, T *block
typedef void (*turned_function)(TURNED_ARGUMENTS);
INLINE void turned_body(const int mr, TURNED_ARGUMENTS)
{
    const T *row[4];
    V acc[16];
    UNROLL(4) for (int i = 0; 4 * i < mr; i++) row[i] = W + 4 * (size_t)i * ldw;
    UNROLL(16) for (int i = 0; i < mr; i++) acc[i] = (V){0};
    for (size_t k = 0; k < K; k++) {
        V v = load_once(turned + k * VW);
        UNROLL(16) for (int i = 0; i < mr; i++) acc[i] = MULADD(splat(row[i / 4][(size_t)(i % 4) * ldw + k]), v, acc[i]);
    }
    UNROLL(16) for (int i = 0; i < mr; i++) store(block + (size_t)i * VW, acc[i]);
}

#define TURNED(mr) \
    NOINLINE void turned_##mr(TURNED_ARGUMENTS) { turned_body(mr, K, W, ldw, turned, block); }
TURNED(1) TURNED(2) TURNED(3) TURNED(4) TURNED(8)
#if LANE_COUNT == 16
TURNED(12) TURNED(16)
static const turned_function turned_tiles[17] = {[1] = turned_1, turned_2, turned_3, turned_4, [8] = turned_8, [12] = turned_12,
                                                 [16] = turned_16};
#else
static const turned_function turned_tiles[9] = {[1] = turned_1, turned_2, turned_3, turned_4, [8] = turned_8};
#endif

/* Rows of W whole pages apart share one set of the first level, of 12 ways at most: 8 of them at a time (16 rows of LSTMs of 1024 and
 * 2048 units 1.4 to 1.5 times as fast as with all 16). */
#define ALIAS_BYTES 4096
INLINE size_t rows_at_once(size_t ldw) { return LANE_COUNT == 16 && ldw * sizeof(T) % ALIAS_BYTES == 0 ? 8 : VW; }

/* out[i][0..VW) += what `valid` rows of W give for row i, and 0 beyond. */
static void turned_units(size_t K, const T *W, size_t ldw, size_t valid, const T *turned, size_t rows, T *out, size_t ldo)
{
    _Alignas(64) T block[VW * VW];
    V sums[LANE_COUNT];
    const size_t fours = valid / 4 * 4, at_once = rows_at_once(ldw);
    for (size_t j = 0, n; j < fours; j += n) {
        n = fours - j < at_once ? fours - j : at_once;
        turned_tiles[n](K, W + j * ldw, ldw, turned, block + j * VW);
    }
    if (valid > fours) turned_tiles[valid - fours](K, W + fours * ldw, ldw, turned, block + fours * VW);
    UNROLL(16) for (int l = 0; l < LANE_COUNT; l++) sums[l] = (size_t)l < valid ? load(block + (size_t)l * VW) : (V){0};
    transpose_block(sums);
    for (size_t i = 0; i < rows; i++, out += ldo) store(out, sums[i] + load(out));
}
