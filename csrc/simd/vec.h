/* Vectors in GCC/Clang vector extensions: one source for every instruction set and both dtypes. Intrinsics only for what these cannot
 * say, or not in one instruction: fused multiply-add, maximum, minimum, a test for bits, the lower half of a vector.
 * The including file defines CRNN_DOUBLE (0 or 1) and CRNN_VBYTES (sizeof(T) for the scalar build). */
#include <math.h>
#include <stdint.h>
#include <string.h>
#if CRNN_VBYTES >= 16 && defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if CRNN_DOUBLE
typedef double T;
typedef int64_t TI;
#define THIS_DTYPE CRNN_F64
#else
typedef float T;
typedef int32_t TI;
#define THIS_DTYPE CRNN_F32
#endif

#define VW ((size_t)(CRNN_VBYTES / sizeof(T)))
typedef T V __attribute__((vector_size(CRNN_VBYTES)));
typedef TI VI __attribute__((vector_size(CRNN_VBYTES)));
typedef T VU __attribute__((vector_size(CRNN_VBYTES), aligned(sizeof(T)), may_alias));

#define INLINE static inline __attribute__((always_inline))
#define NOINLINE static __attribute__((noinline))

/* Loops over registers: must be unrolled whole, or the accumulators live in memory. */
#if defined(__clang__)
#define UNROLL(n) _Pragma("clang loop unroll(full)")
#else
#define UNROLL_TEXT(text) _Pragma(#text)
#define UNROLL(n) UNROLL_TEXT(GCC unroll n)
#endif

INLINE V load(const T *p) { return *(const VU *)(const void *)p; }
INLINE void store(T *p, V v) { *(VU *)(void *)p = v; }

/* A load that several operations share stays in a register: GCC otherwise repeats it as an operand of two or three of them, and a
 * load that crosses lines takes two cycles. */
INLINE V load_once(const T *p)
{
    V v = load(p);
#if CRNN_VBYTES == 64 && defined(__AVX512F__)
    __asm__("" : "+v"(v));
#elif CRNN_VBYTES >= 16 && defined(__SSE2__)
    __asm__("" : "+x"(v));
#elif CRNN_VBYTES >= 16 && defined(__aarch64__)
    __asm__("" : "+w"(v));
#endif
    return v;
}
/* A distance about which the compiler guesses nothing: it would make a second loop for the case that it is 1. */
INLINE size_t opaque(size_t distance)
{
    __asm__("" : "+r"(distance));
    return distance;
}
INLINE V splat(T x) { return x - (V){0}; } /* x - 0, not x + 0: keeps -0 */
INLINE V blend(VI mask, V yes, V no) { return (V)(((VI)yes & mask) | ((VI)no & ~mask)); }

INLINE size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

/* Leading dimension for rows of n elements: whole cache lines, an odd number of them, so that walking down a column
 * visits every cache set instead of a few. */
INLINE size_t leading(size_t n)
{
    size_t per_line = 64 / sizeof(T), lines = (n + per_line - 1) / per_line;
    return (lines | 1) * per_line;
}

/* a * b + c in one rounding wherever the instruction set has it. Left to the compiler, a product that two sums share is not
 * fused, and results would depend on the shape of the code around it. */
#if CRNN_VBYTES == 64 && CRNN_DOUBLE
#define MULADD(a, b, c) ((V)_mm512_fmadd_pd((__m512d)(a), (__m512d)(b), (__m512d)(c)))
#elif CRNN_VBYTES == 64
#define MULADD(a, b, c) ((V)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#elif CRNN_VBYTES == 32 && CRNN_DOUBLE
#define MULADD(a, b, c) ((V)_mm256_fmadd_pd((__m256d)(a), (__m256d)(b), (__m256d)(c)))
#elif CRNN_VBYTES == 32
#define MULADD(a, b, c) ((V)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#elif defined(__aarch64__) && CRNN_VBYTES == 16 && CRNN_DOUBLE
#define MULADD(a, b, c) ((V)vfmaq_f64((float64x2_t)(c), (float64x2_t)(a), (float64x2_t)(b)))
#elif defined(__aarch64__) && CRNN_VBYTES == 16
#define MULADD(a, b, c) ((V)vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b)))
#elif defined(__aarch64__) && CRNN_DOUBLE
#define MULADD(a, b, c) ((V){__builtin_fma((a)[0], (b)[0], (c)[0])})
#elif defined(__aarch64__)
#define MULADD(a, b, c) ((V){__builtin_fmaf((a)[0], (b)[0], (c)[0])})
#else /* x86 without FMA, where there is nothing to fuse */
#define MULADD(a, b, c) ((a) * (b) + (c))
#endif

/* Instructions in the order in which they are written, loads before what uses them, for the one loop that everything waits for: four
 * steps of it in GCC's order are as long, and no faster than one (0.95 to 1.05; gemm.h). A sanitizer does not look into assembly, and gets
 * what it can check. */
#if (CRNN_VBYTES == 64 || CRNN_VBYTES == 32) && !defined(CRNN_ADDRESS_SANITIZER)
#define IN_ORDER 1
#if CRNN_VBYTES == 64
#define VREG "v"
#else
#define VREG "x"
#endif
#if CRNN_DOUBLE
#define SUFFIXED(name) name "d"
#else
#define SUFFIXED(name) name "s"
#endif
INLINE V load_in_order(const T *p)
{
    V v;
    __asm__ volatile(SUFFIXED("vmovup") " %1, %0" : "=" VREG(v) : "m"(*(const VU *)(const void *)p));
    return v;
}
INLINE V splat_in_order(const T *p)
{
    V v;
    __asm__ volatile(SUFFIXED("vbroadcasts") " %1, %0" : "=" VREG(v) : "m"(*p));
    return v;
}
INLINE V muladd_in_order(V a, V b, V c)
{
    __asm__ volatile(SUFFIXED("vfmadd231p") " %1, %2, %0" : "+" VREG(c) : VREG(a), VREG(b));
    return c;
}
#else
#define IN_ORDER 0
/* Of sixteen registers none is to spare: a load repeated is better than a sum that leaves its register. */
INLINE V load_in_order(const T *p) { return CRNN_VREGS >= 32 ? load_once(p) : load(p); }
INLINE V splat_in_order(const T *p) { return splat(*p); }
INLINE V muladd_in_order(V a, V b, V c) { return MULADD(a, b, c); }
#endif

/* MAXIMUM(a, b) is a where a > b, else b, and MINIMUM likewise: b's NaN survives. A comparison and a blend in the language of
 * vectors stay two or three instructions each, a sixth of an LSTM's gate functions. */
#if CRNN_VBYTES == 64 && CRNN_DOUBLE
#define MAXIMUM(a, b) ((V)_mm512_max_pd((__m512d)(a), (__m512d)(b)))
#define MINIMUM(a, b) ((V)_mm512_min_pd((__m512d)(a), (__m512d)(b)))
#elif CRNN_VBYTES == 64
#define MAXIMUM(a, b) ((V)_mm512_max_ps((__m512)(a), (__m512)(b)))
#define MINIMUM(a, b) ((V)_mm512_min_ps((__m512)(a), (__m512)(b)))
#elif CRNN_VBYTES == 32 && CRNN_DOUBLE
#define MAXIMUM(a, b) ((V)_mm256_max_pd((__m256d)(a), (__m256d)(b)))
#define MINIMUM(a, b) ((V)_mm256_min_pd((__m256d)(a), (__m256d)(b)))
#elif CRNN_VBYTES == 32
#define MAXIMUM(a, b) ((V)_mm256_max_ps((__m256)(a), (__m256)(b)))
#define MINIMUM(a, b) ((V)_mm256_min_ps((__m256)(a), (__m256)(b)))
#elif CRNN_VBYTES == 16 && CRNN_DOUBLE && defined(__x86_64__)
#define MAXIMUM(a, b) ((V)_mm_max_pd((__m128d)(a), (__m128d)(b)))
#define MINIMUM(a, b) ((V)_mm_min_pd((__m128d)(a), (__m128d)(b)))
#elif CRNN_VBYTES == 16 && defined(__x86_64__)
#define MAXIMUM(a, b) ((V)_mm_max_ps((__m128)(a), (__m128)(b)))
#define MINIMUM(a, b) ((V)_mm_min_ps((__m128)(a), (__m128)(b)))
#else /* NEON's maximum is NaN where either is, and a NaN in a must not survive */
#define MAXIMUM(a, b) blend((VI)((a) > (b)), a, b)
#define MINIMUM(a, b) blend((VI)((a) < (b)), a, b)
#endif
INLINE V at_least(V x, T low) { return MAXIMUM(splat(low), x); }
INLINE V at_most(V x, T high) { return MINIMUM(splat(high), x); }

/* 1 if any bit of v is set. */
INLINE int any_bits(VI v)
{
#if CRNN_VBYTES == 64
    return _mm512_test_epi32_mask((__m512i)v, (__m512i)v) != 0;
#elif CRNN_VBYTES == 32
    return !_mm256_testz_si256((__m256i)v, (__m256i)v);
#else
    TI bits = 0;
    for (size_t l = 0; l < VW; l++) bits |= v[l];
    return bits != 0;
#endif
}

/* Half vectors, for the last columns of a product. Where a vector is 16 bytes or less there are none: the names stand for
 * whole ones, which nobody asks for. */
#define HALVES (CRNN_VBYTES >= 32)
#if HALVES
typedef T VH __attribute__((vector_size(CRNN_VBYTES / 2)));
typedef T VHU __attribute__((vector_size(CRNN_VBYTES / 2), aligned(sizeof(T)), may_alias));
#else
typedef V VH;
typedef VU VHU;
#endif
#if CRNN_VBYTES == 64 && CRNN_DOUBLE
#define LOW_HALF(v) ((VH)_mm512_castpd512_pd256((__m512d)(v)))
#define HALF_MULADD(a, b, c) ((VH)_mm256_fmadd_pd((__m256d)(a), (__m256d)(b), (__m256d)(c)))
#elif CRNN_VBYTES == 64
#define LOW_HALF(v) ((VH)_mm512_castps512_ps256((__m512)(v)))
#define HALF_MULADD(a, b, c) ((VH)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#elif CRNN_VBYTES == 32 && CRNN_DOUBLE
#define LOW_HALF(v) ((VH)_mm256_castpd256_pd128((__m256d)(v)))
#define HALF_MULADD(a, b, c) ((VH)_mm_fmadd_pd((__m128d)(a), (__m128d)(b), (__m128d)(c)))
#elif CRNN_VBYTES == 32
#define LOW_HALF(v) ((VH)_mm256_castps256_ps128((__m256)(v)))
#define HALF_MULADD(a, b, c) ((VH)_mm_fmadd_ps((__m128)(a), (__m128)(b), (__m128)(c)))
#else
#define LOW_HALF(v) (v)
#define HALF_MULADD(a, b, c) MULADD(a, b, c)
#endif
/* Two rows of half a vector as one, where that takes one instruction more: of what they are multiplied with, and of the half of b, twice. */
#define PAIRED (CRNN_VBYTES == 64)
#if PAIRED && IN_ORDER
INLINE V load_twice_in_order(const T *p)
{
    V v;
    __asm__ volatile("vbroadcastf64x4 %1, %0" : "=v"(v) : "m"(*(const VHU *)(const void *)p));
    return v;
}
INLINE V halves_in_order(V low, V high)
{
    const __mmask16 upper = CRNN_DOUBLE ? 0xF0 : 0xFF00;
    V v;
    __asm__ volatile(SUFFIXED("vblendmp") " %2, %1, %0%{%3%}" : "=v"(v) : "v"(low), "v"(high), "Yk"(upper));
    return v;
}
#elif PAIRED
INLINE V load_twice_in_order(const T *p) { return (V)_mm512_broadcast_f64x4((__m256d) * (const VHU *)(const void *)p); }
INLINE V halves_in_order(V low, V high) { return (V)_mm512_mask_blend_pd(0xF0, (__m512d)low, (__m512d)high); }
#else /* for the compiler's eyes */
INLINE V load_twice_in_order(const T *p) { return load(p); }
INLINE V halves_in_order(V low, V high) { return (void)low, high; }
#endif
#if PAIRED
#define HIGH_HALF(v) ((VH)_mm512_extractf64x4_pd((__m512d)(v), 1))
#else
#define HIGH_HALF(v) LOW_HALF(v)
#endif
/* Quarters of a vector: one in memory, four times; the first and the third of two vectors. */
#if PAIRED
#define LOAD_QUARTERS(p) ((V)_mm512_broadcast_f32x4(_mm_loadu_ps((const float *)(const void *)(p))))
#define EVEN_QUARTERS(a, b) ((V)_mm512_shuffle_f64x2((__m512d)(a), (__m512d)(b), 0x88))
#else /* for the compiler's eyes */
#define LOAD_QUARTERS(p) load(p)
#define EVEN_QUARTERS(a, b) ((void)(a), (b))
#endif
INLINE VH load_half(const T *p) { return *(const VHU *)(const void *)p; }
INLINE void store_half(T *p, VH v) { *(VHU *)(void *)p = v; }

/* Lane sums of several vectors at once: out lane l = sum of the lanes of v[l]; destroys v. Rounds of "fold one half of a
 * onto it, one half of b onto it". */
#if CRNN_VBYTES == 64 && !CRNN_DOUBLE
#define LANES(F, s) F(0,s),F(1,s),F(2,s),F(3,s),F(4,s),F(5,s),F(6,s),F(7,s),F(8,s),F(9,s),F(10,s),F(11,s),F(12,s),F(13,s),F(14,s),F(15,s)
#define LANE_COUNT 16
#elif (CRNN_VBYTES == 64 && CRNN_DOUBLE) || (CRNN_VBYTES == 32 && !CRNN_DOUBLE)
#define LANES(F, s) F(0,s),F(1,s),F(2,s),F(3,s),F(4,s),F(5,s),F(6,s),F(7,s)
#define LANE_COUNT 8
#elif (CRNN_VBYTES == 32 && CRNN_DOUBLE) || (CRNN_VBYTES == 16 && !CRNN_DOUBLE)
#define LANES(F, s) F(0,s),F(1,s),F(2,s),F(3,s)
#define LANE_COUNT 4
#elif CRNN_VBYTES == 16 && CRNN_DOUBLE
#define LANES(F, s) F(0,s),F(1,s)
#define LANE_COUNT 2
#else
#define LANE_COUNT 1
#endif

#if LANE_COUNT > 1
#define LOW_LANE(l, s) (((l) & (s)) ? LANE_COUNT + ((l) ^ (s)) : (l))
#define HIGH_LANE(l, s) (((l) & (s)) ? LANE_COUNT + (l) : ((l) ^ (s)))
#define OTHER_LANE(l, s) ((l) ^ (s))
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLE2(a, b, F, s) __builtin_shufflevector(a, b, LANES(F, s))
#endif
#endif
#ifndef SHUFFLE2
#define SHUFFLE2(a, b, F, s) __builtin_shuffle(a, b, (VI){LANES(F, s)})
#endif
#define FOLD(a, b, s) (SHUFFLE2(a, b, LOW_LANE, s) + SHUFFLE2(a, b, HIGH_LANE, s))
#define FOLD_ROUND(s) for (int i_ = 0; i_ < (s); i_++) v[i_] = FOLD(v[i_], v[i_ + (s)], s)
#endif

/* For n = LANE_COUNT vectors, or half as many: lanes n.. of the result then repeat the others. Lanes are added in the same
 * order in both cases: LANE_COUNT / 2 apart last. */
#if LANE_COUNT > 1
INLINE V half_lane_sums(V *v)
{
#if LANE_COUNT == 16
    UNROLL(4) FOLD_ROUND(4);
#endif
#if LANE_COUNT >= 8
    UNROLL(2) FOLD_ROUND(2);
#endif
#if LANE_COUNT >= 4
    FOLD_ROUND(1);
#endif
    return v[0];
}
#endif

INLINE V lane_sums(V *v, const int n)
{
    (void)n;
#if LANE_COUNT > 1
    V low = half_lane_sums(v), high = n == LANE_COUNT ? half_lane_sums(v + LANE_COUNT / 2) : low;
    return FOLD(low, high, LANE_COUNT / 2);
#else
    return v[0];
#endif
}

INLINE T lane_sum(V v)
{
    T s = v[0];
    for (size_t l = 1; l < VW; l++) s += v[l];
    return s;
}
INLINE T lane_max(V v)
{
    T m = v[0];
    for (size_t l = 1; l < VW; l++) m = v[l] > m ? v[l] : m;
    return m;
}
