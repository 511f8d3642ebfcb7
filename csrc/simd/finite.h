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
