/* A single row by weights that the first level holds. A tile is four chains of multiply-adds, each of which waits for its last sum: half
 * of what the core could do. So two tiles at once (Zen 5, K 64 to 100: 0.6 to 0.7 cycles a vector of weights instead of 0.85 to 0.9).
 * From the second level each vector takes 1.3 cycles, and two tiles at once are no faster, or slower. Every sum is the chain of
 * simd/gemm.h. */

/* c[off[j]..] (+)= sum_k a[k] * b[k*n0*VW + j*VW ..] for j < n0, then of d and the n1 vectors after them; init null: 0. */
#define CHAINS_ARGUMENTS size_t K, const T *a, const T *b, const T *d, T *c, const T *init, const size_t *off
typedef void (*chains_function)(CHAINS_ARGUMENTS);

/* c[j*VW..] (+)= sum_k a[k] * b[k*n*VW + j*VW ..], and then sum_k e[k] * d[..]: two gates, one after the other, of the same n vectors. */
#define GATES_ARGUMENTS size_t K, const T *a, const T *e, const T *b, const T *d, T *c, const T *init
typedef void (*gates_function)(GATES_ARGUMENTS);

INLINE void chains_body(const int n0, const int n1, const int gates, size_t K, const T *a, const T *e, const T *b, const T *d, T *c,
                        const T *init, const size_t *off)
{
    V first[4], second[4];
    UNROLL(4) for (int j = 0; j < 4; j++) first[j] = second[j] = (V){0};
    for (size_t k = 0; k < K; k++, b += n0 * VW, d += n1 * VW) {
        const V v = splat(a[k]), w = gates ? splat(e[k]) : v;
        UNROLL(4) for (int j = 0; j < n0; j++) first[j] = MULADD(v, load(b + j * VW), first[j]);
        UNROLL(4) for (int j = 0; j < n1; j++) second[j] = MULADD(w, load(d + j * VW), second[j]);
    }
    UNROLL(4) for (int j = 0; j < n0; j++) {
        if (init) first[j] = first[j] + load(init + off[j]);
        store(c + off[j], gates ? second[j] + first[j] : first[j]);
    }
    if (gates) return;
    UNROLL(4) for (int j = 0; j < n1; j++)
        store(c + off[n0 + j], init ? second[j] + load(init + off[n0 + j]) : second[j]);
}

static const size_t contiguous_off[8] = {0, VW, 2 * VW, 3 * VW, 4 * VW, 5 * VW, 6 * VW, 7 * VW};

#define CHAINS(n0, n1) \
    NOINLINE void chains_##n0##x##n1(CHAINS_ARGUMENTS) { chains_body(n0, n1, 0, K, a, a, b, d, c, init, off); }
#define CHAINS_OF(n0) CHAINS(n0, 1) CHAINS(n0, 2) CHAINS(n0, 3) CHAINS(n0, 4)
#define CHAINS_NAMES(n0) {NULL, chains_##n0##x1, chains_##n0##x2, chains_##n0##x3, chains_##n0##x4}
CHAINS_OF(1) CHAINS_OF(2) CHAINS_OF(3) CHAINS_OF(4)
static const chains_function chains[5][5] = {{NULL}, CHAINS_NAMES(1), CHAINS_NAMES(2), CHAINS_NAMES(3), CHAINS_NAMES(4)};

#define GATES(n) \
    NOINLINE void gates_##n(GATES_ARGUMENTS) { chains_body(n, n, 1, K, a, e, b, d, c, init, contiguous_off); }
GATES(1) GATES(2) GATES(3) GATES(4)
static const gates_function two_gates[5] = {NULL, gates_1, gates_2, gates_3, gates_4};
