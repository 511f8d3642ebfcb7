/* dst[k*ldd + l] = src[l*lds + k] for l < VW (rows past `valid` read as 0): VW rows of a weight matrix become one
 * vector per k. Whole blocks of VW x VW go through register transposes. `next`: where the rows packed after these lie, side
 * by side; they come closer meanwhile, since what a call has not read for milliseconds is often in memory only. May be null. */
INLINE void transpose_block(V *v)
{
#if LANE_COUNT > 1
    /* log2(VW) rounds; in round s, rows i and i+s exchange the lanes that differ in bit s. */
#define EXCHANGE_ROUND(s)                                                        \
    UNROLL(16) for (int i = 0; i < LANE_COUNT; i++) if (!(i & (s))) \
    {                                                                            \
        V a = v[i], b = v[i + (s)];                                              \
        v[i] = SHUFFLE2(a, b, LOW_LANE, s);                                      \
        v[i + (s)] = SHUFFLE2(a, b, HIGH_LANE, s);                               \
    }
#if LANE_COUNT == 16
    EXCHANGE_ROUND(8)
#endif
#if LANE_COUNT >= 8
    EXCHANGE_ROUND(4)
#endif
#if LANE_COUNT >= 4
    EXCHANGE_ROUND(2)
#endif
    EXCHANGE_ROUND(1)
#else
    (void)v;
#endif
}

#define PACK_ARGUMENTS T *dst, size_t ldd, const T *src, size_t lds, size_t valid, size_t K, const T *next
INLINE void pack_body(const int again, PACK_ARGUMENTS)
{
    size_t k = 0;
    if (VW > 1)
        for (; k + VW <= K || (k > 0 && k + VW / 4 < K); k += VW) {
            V v[LANE_COUNT];
            if (k + VW > K) k = K - VW; /* part of the block before once more, which is faster than one by one */
            UNROLL(16) for (int l = 0; l < LANE_COUNT; l++) v[l] = (size_t)l < valid ? load(src + (size_t)l * lds + k) : (V){0};
            if (next)
                UNROLL(16) for (size_t l = 0; l < VW; l += 64 / CRNN_VBYTES) __builtin_prefetch(next + (k + l) * VW, 0, 2);
            transpose_block(v);
            if (again) {
                VI differ = (VI){0};
                UNROLL(16) for (int l = 0; l < LANE_COUNT; l++) differ |= (VI)load(dst + (k + (size_t)l) * ldd) ^ (VI)v[l];
                if (!any_bits(differ)) continue;
            }
            UNROLL(16) for (int l = 0; l < LANE_COUNT; l++) store(dst + (k + (size_t)l) * ldd, v[l]);
        }
    for (; k < K; k++)
        for (size_t l = 0; l < VW; l++) dst[k * ldd + l] = l < valid ? src[l * lds + k] : 0;
}

NOINLINE void pack_transposed(PACK_ARGUMENTS) { pack_body(0, dst, ldd, src, lds, valid, K, next); }

/* The same where dst probably holds that already, since the weights were the same in the last call: lines are written only if
 * they differ. What all threads have read would have to be taken from the others' caches first. Whatever dst holds, it holds W
 * afterwards. */
NOINLINE void pack_transposed_again(PACK_ARGUMENTS) { pack_body(1, dst, ldd, src, lds, valid, K, next); }
