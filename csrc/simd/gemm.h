/* Matrix products in register tiles. Every element of every product is one chain of multiply-adds over k in rising
 * order, added to what was there, whatever tile it falls in: results do not depend on how rows and columns are cut, nor
 * on the threads. */

#if CRNN_VREGS >= 32
#define TILE_DOT_ROWS 4
static const int tile_rows_max[5] = {0, 8, 8, 8, 6};
#else
#define TILE_DOT_ROWS 2
static const int tile_rows_max[5] = {0, 8, 6, 4, 3};
#endif

/* c[i][off[j]..] = init[i][off[j]..] + sum_k a[i*ars + k*aks] * b[k*ldb + j*VW ..],  i < mr rows, j < nv vectors.
 * init null: 0. ldi 0: the same row of init for all (a bias). */
#define TILE_ARGUMENTS                                                                                                 \
    size_t K, const T *a, size_t ars, size_t aks, const T *b, size_t ldb, T *c, size_t ldc, const T *init, size_t ldi, \
        const size_t *off
typedef void (*tile_function)(TILE_ARGUMENTS);

INLINE void tile_body(const int mr, const int nv, TILE_ARGUMENTS)
{
    V acc[8][4];
    UNROLL(8) for (int i = 0; i < mr; i++) UNROLL(4) for (int j = 0; j < nv; j++) {
        acc[i][j] = (V){0};
        if (init) __builtin_prefetch(init + (size_t)i * ldi + off[j], 1, 3); /* wanted at the end, asked for now */
    }
    for (size_t k = 0; k < K; k++) {
        V bv[4];
        UNROLL(4) for (int j = 0; j < nv; j++) bv[j] = load(b + (size_t)j * VW);
        UNROLL(8) for (int i = 0; i < mr; i++) {
            T s = a[(size_t)i * ars];
            UNROLL(4) for (int j = 0; j < nv; j++) acc[i][j] += s * bv[j];
        }
        a += aks;
        b += ldb;
    }
    if (init)
        UNROLL(8) for (int i = 0; i < mr; i++)
            UNROLL(4) for (int j = 0; j < nv; j++) acc[i][j] += load(init + (size_t)i * ldi + off[j]);
    UNROLL(8) for (int i = 0; i < mr; i++)
        UNROLL(4) for (int j = 0; j < nv; j++) store(c + (size_t)i * ldc + off[j], acc[i][j]);
}

#define TILE(mr, nv)                                                                                       \
    NOINLINE void tile_##mr##x##nv(TILE_ARGUMENTS)                                                         \
    {                                                                                                      \
        tile_body(mr, nv, K, a, ars, aks, b, ldb, c, ldc, init, ldi, off);                                 \
    }
#define TILE_ROW(mr) TILE(mr, 1) TILE(mr, 2) TILE(mr, 3) TILE(mr, 4)
#define TILE_NAMES(mr) {NULL, tile_##mr##x1, tile_##mr##x2, tile_##mr##x3, tile_##mr##x4}
TILE_ROW(1) TILE_ROW(2) TILE_ROW(3)
TILE(4, 1) TILE(4, 2) TILE(4, 3)
TILE(5, 1) TILE(5, 2)
TILE(6, 1) TILE(6, 2)
TILE(7, 1) TILE(8, 1)
#if CRNN_VREGS >= 32
TILE(4, 4) TILE(5, 3) TILE(5, 4) TILE(6, 3) TILE(6, 4) TILE(7, 2) TILE(7, 3) TILE(8, 2) TILE(8, 3)
static const tile_function tiles[9][5] = {
    {NULL}, TILE_NAMES(1), TILE_NAMES(2), TILE_NAMES(3), TILE_NAMES(4), TILE_NAMES(5), TILE_NAMES(6),
    {NULL, tile_7x1, tile_7x2, tile_7x3}, {NULL, tile_8x1, tile_8x2, tile_8x3}};
#else
static const tile_function tiles[9][5] = {
    {NULL}, TILE_NAMES(1), TILE_NAMES(2), TILE_NAMES(3), {NULL, tile_4x1, tile_4x2, tile_4x3},
    {NULL, tile_5x1, tile_5x2}, {NULL, tile_6x1, tile_6x2}, {NULL, tile_7x1}, {NULL, tile_8x1}};
#endif

/* n rows cut into tiles of nearly equal height: rows of the next tile. */
INLINE size_t next_rows(size_t left, size_t most)
{
    size_t count = (left + most - 1) / most;
    return (left + count - 1) / count;
}

/* Rows of one product with one tile-wide group of columns. */
INLINE void tile_column(size_t rows, int nv, size_t K, const T *a, size_t ars, size_t aks, const T *b, size_t ldb, T *c,
                        size_t ldc, const T *init, size_t ldi, const size_t *off)
{
    for (size_t done = 0; done < rows;) {
        size_t mr = next_rows(rows - done, (size_t)tile_rows_max[nv]);
        tiles[mr][nv](K, a + done * ars, ars, aks, b, ldb, c + done * ldc, ldc, init ? init + done * ldi : NULL, ldi,
                      off);
        done += mr;
    }
}

static const size_t contiguous_off[4] = {0, VW, 2 * VW, 3 * VW};

/* C[m][n] (+)= sum_k A[k*lda + m] * B[k*ldb + n], rows m0..m1: a weight gradient. B's rows are readable up to whole
 * vectors; C's are written only up to N. k runs in blocks, so that B's block stays in the second-level cache. */
#define TN_BLOCK 256
static void product_tn(size_t m0, size_t m1, size_t N, size_t K, const T *A, size_t lda, const T *B, size_t ldb, T *C,
                       size_t ldc, int accumulate)
{
    T edge[8 * 4 * VW];
    if (crnn_blas_wanted()) {
        if (m1 > m0) crnn_blas_gemm(THIS_DTYPE, 'N', 'T', N, m1 - m0, K, B, ldb, A + m0, lda, accumulate, C + m0 * ldc, ldc);
        return;
    }
    for (size_t k0 = 0; k0 < K || k0 == 0; k0 += TN_BLOCK) {
        size_t kn = K - k0 < TN_BLOCK ? K - k0 : TN_BLOCK;
        int add = accumulate || k0 > 0;
        for (size_t m = m0; m < m1;) {
            size_t mr = next_rows(m1 - m, (size_t)tile_rows_max[4]);
            for (size_t n = 0; n < N; n += 4 * VW) {
                size_t width = N - n < 4 * VW ? N - n : 4 * VW;
                int nv = (int)((width + VW - 1) / VW);
                T *c = C + m * ldc + n;
                const T *a = A + k0 * lda + m, *b = B + k0 * ldb + n;
                if (width == (size_t)nv * VW) {
                    tiles[mr][nv](kn, a, 1, lda, b, ldb, c, ldc, add ? c : NULL, ldc, contiguous_off);
                } else {
                    if (add)
                        for (size_t i = 0; i < mr; i++) memcpy(edge + i * 4 * VW, c + i * ldc, width * sizeof(T));
                    tiles[mr][nv](kn, a, 1, lda, b, ldb, edge, 4 * VW, add ? edge : NULL, 4 * VW, contiguous_off);
                    for (size_t i = 0; i < mr; i++) memcpy(c + i * ldc, edge + i * 4 * VW, width * sizeof(T));
                }
            }
            m += mr;
        }
    }
}

/* Dot products: out[i*ldo + j] (+)= sum over k < K of a[i*lda + k] * b[j*ldb + k], K a multiple of VW. */
#define DOT_GROUPS (TILE_DOT_ROWS * 4 / LANE_COUNT)
NOINLINE void dot_tile(size_t rows, size_t columns, size_t K, const T *a, size_t lda, const T *b, size_t ldb, T *out,
                       size_t ldo, int accumulate)
{
    V acc[TILE_DOT_ROWS * 4];
    const T *ap[TILE_DOT_ROWS], *bp[4];
    UNROLL(4) for (int i = 0; i < TILE_DOT_ROWS; i++) ap[i] = a + ((size_t)i < rows ? (size_t)i : rows - 1) * lda;
    UNROLL(4) for (int j = 0; j < 4; j++) bp[j] = b + ((size_t)j < columns ? (size_t)j : columns - 1) * ldb;
    UNROLL(16) for (int i = 0; i < TILE_DOT_ROWS * 4; i++) acc[i] = (V){0};
    for (size_t k = 0; k < K; k += VW) {
        V bv[4];
        UNROLL(4) for (int j = 0; j < 4; j++) bv[j] = load(bp[j] + k);
        UNROLL(4) for (int i = 0; i < TILE_DOT_ROWS; i++) {
            V av = load(ap[i] + k);
            UNROLL(4) for (int j = 0; j < 4; j++) acc[i * 4 + j] += av * bv[j];
        }
    }
    T sums[TILE_DOT_ROWS * 4];
    UNROLL(8) for (int g = 0; g < DOT_GROUPS; g++) store(sums + g * LANE_COUNT, lane_sums(acc + g * LANE_COUNT));
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j++)
            out[i * ldo + j] = (accumulate ? out[i * ldo + j] : 0) + sums[i * 4 + j];
}
