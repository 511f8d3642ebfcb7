/* Values that are not finite. */

static int kernel_all_finite(const void *values, size_t n)
{
    const T *a = values;
    const VI exponent = (VI)splat((T)INFINITY);
    VI bad = (VI){0};
    size_t k = 0;
    for (; k + VW <= n; k += VW) bad |= ((VI)load(a + k) & exponent) == exponent;
    TI any = 0;
    for (size_t l = 0; l < VW; l++) any |= bad[l];
    for (; k < n; k++) any |= !isfinite(a[k]);
    return any == 0;
}

INLINE V copy_vector(T *to, const char *from)
{
    V v;
    memcpy(&v, from, sizeof v);
    store(to, v);
    return v;
}

/* to[0..n) = from[0..n), in any alignment; returns whether all of it is finite. A finite value times 0 is 0, of either sign. */
static int copy_finite(T *to, const char *from, size_t n)
{
    const V zero = {0};
    V sums[2] = {zero, zero};
    T rest = 0;
    size_t k = 0;
    for (; k + 2 * VW <= n; k += 2 * VW)
        UNROLL(2) for (int i = 0; i < 2; i++) {
            const size_t at = k + (size_t)i * VW;
            sums[i] = MULADD(copy_vector(to + at, from + at * sizeof(T)), zero, sums[i]);
        }
    for (; n >= VW && k < n; k += VW) { /* the last whole vector may overlap what is done */
        const size_t at = k + VW > n ? n - VW : k;
        sums[0] = MULADD(copy_vector(to + at, from + at * sizeof(T)), zero, sums[0]);
    }
    if (k < n) memcpy(to + k, from + k * sizeof(T), (n - k) * sizeof(T));
    for (; k < n; k++) rest += to[k] * 0;
    return lane_sum(sums[0] + sums[1]) + rest == 0;
}
