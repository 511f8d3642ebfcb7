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

/* to[0..n) = from[0..n), in any alignment; returns whether all of it is finite. A finite value times 0 is 0, of either sign. */
static int copy_finite(T *to, const void *source, size_t n)
{
    const T *from = source;
    const V zero = {0};
    V sums[2] = {zero, zero};
    size_t k = 0;
    for (; k + 2 * VW <= n; k += 2 * VW)
        UNROLL(2) for (int i = 0; i < 2; i++) {
            V v = load(from + k + (size_t)i * VW);
            store(to + k + (size_t)i * VW, v);
            sums[i] = MULADD(v, zero, sums[i]);
        }
    if (n >= VW && k < n) { /* what is left, the last whole vector overlapping what is done */
        for (size_t at = k; k < n; at += VW, k = at) {
            if (at + VW > n) at = n - VW;
            V v = load(from + at);
            store(to + at, v);
            sums[0] = MULADD(v, zero, sums[0]);
        }
        return lane_sum(sums[0] + sums[1]) == 0;
    }
    T sum = 0;
    for (; k < n; k++) to[k] = from[k], sum += to[k] * 0;
    return lane_sum(sums[0] + sums[1]) + sum == 0;
}
