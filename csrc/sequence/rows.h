/* Values that are not finite, and packed rows on their way to where a caller wants them. */

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

/* Below this many bytes a second thread costs more than it copies. */
#define ROWS_SHARED ((size_t)64 << 10)

static void unpack_work(void *context, int rank, crnn_team *team)
{
    const crnn_rows_args *args = context;
    const int64_t *offsets = args->batch.offsets;
    size_t lo, hi, t = 0;
    crnn_share((size_t)offsets[args->batch.steps], 1, rank, crnn_team_size(team), &lo, &hi);
    while (lo < hi && (size_t)offsets[t + 1] <= lo) t++;
    for (size_t row = lo; row < hi; row++) {
        if (row == (size_t)offsets[t + 1]) t++;
        char *target = (char *)args->to.sequences[row - (size_t)offsets[t]] + (ptrdiff_t)t * args->to.step;
        memcpy(target, (const T *)args->rows + row * args->width, args->width * sizeof(T));
    }
}

static void kernel_unpack_rows(const crnn_rows_args *args)
{
    size_t rows = args->batch.steps ? (size_t)args->batch.offsets[args->batch.steps] : 0;
    int threads = rows * args->width * sizeof(T) < ROWS_SHARED ? 1 : crnn_get_threads();
    crnn_rows_args copy = *args;
    if (rows && args->width) crnn_parallel(threads, 1, unpack_work, &copy);
}
