/* Products of as many rows as a vector has lanes: the rows lie in the lanes, and W's rows serve as they lie, one number at a
 * time. No sums over lanes are left, and nothing but the few rows is packed. Every element is one chain in rising k, added to
 * what was there, as in gemm.h: the bits of calls whose weights are packed. */

/* Whether that is faster than dot products and than packing the weights: where nearly all lanes are in use (LSTMs of 160 to 900
 * units, one thread and two: 16 rows 1.04 to 1.23 and 1.03 to 1.18 times as fast, 15 rows 1.10 to 1.17 and 1.08, 14 rows 1.03 and
 * 0.99, 28 rows 0.89 and 0.99; 122 units, which were packed, 1.65 and 1.38). Eight sums of eight lanes just cover each other's
 * latency: there only narrow layers gain (AVX2, 16 rows: 128 units 1.05). Up to 8 rows a row's bits are to be the same for any
 * number of rows, and 8 rows in half a vector would be faster up to 128 units only (1.00 to 1.14; 256 units 0.89). */
#define NARROW_INPUTS 256
INLINE int turning_pays(size_t rows, size_t inputs)
{
    return LANE_COUNT >= 8 && rows > 8 && 16 * rows >= 15 * round_up(rows, VW) && (LANE_COUNT == 16 || inputs <= NARROW_INPUTS);
}

#define TURNED_BYTES ((size_t)64 << 10) /* of the turned rows, on the stack */
INLINE int can_turn(size_t K) { return K * VW * sizeof(T) <= TURNED_BYTES; }

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

/* out[i][0..VW) += what `valid` rows of W give for row i, and 0 beyond. */
static void turned_units(size_t K, const T *W, size_t valid, const T *turned, size_t rows, T *out, size_t ldo)
{
    _Alignas(64) T block[VW * VW];
    V sums[LANE_COUNT];
    const size_t fours = valid / 4 * 4;
    if (fours) turned_tiles[fours](K, W, K, turned, block);
    if (valid > fours) turned_tiles[valid - fours](K, W + fours * K, K, turned, block + fours * VW);
    UNROLL(16) for (int l = 0; l < LANE_COUNT; l++) sums[l] = (size_t)l < valid ? load(block + (size_t)l * VW) : (V){0};
    transpose_block(sums);
    for (size_t i = 0; i < rows; i++, out += ldo) store(out, sums[i] + load(out));
}
