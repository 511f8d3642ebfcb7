/* Between sequences as a caller has them and packed rows: plain copies, shared between threads, with a look at every value
 * on the way in. */

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

typedef struct {
    const crnn_rows_args *args;
    int in;
    int64_t bad[CRNN_MAX_THREADS]; /* per rank: its first row that is not finite, or -1 */
} rows_call;

/* Below this many bytes a second thread costs more than it copies. */
#define ROWS_SHARED ((size_t)64 << 10)

static void rows_work(void *context, int rank, crnn_team *team)
{
    rows_call *call = context;
    const crnn_rows_args *args = call->args;
    const int64_t *offsets = args->batch.offsets;
    size_t lo, hi, t = 0, bytes = args->width * sizeof(T);
    crnn_share((size_t)offsets[args->batch.steps], 1, rank, crnn_team_size(team), &lo, &hi);
    call->bad[rank] = -1;
    while (lo < hi && (size_t)offsets[t + 1] <= lo) t++;
    for (size_t row = lo; row < hi; row++) {
        if (row == (size_t)offsets[t + 1]) t++;
        char *theirs = (char *)args->sequences[row - (size_t)offsets[t]] + (ptrdiff_t)t * args->step;
        T *ours = (T *)args->rows + row * args->width;
        if (!call->in) {
            memcpy(theirs, ours, bytes);
            continue;
        }
        memcpy(ours, theirs, bytes);
        if (call->bad[rank] < 0 && !kernel_all_finite(ours, args->width)) call->bad[rank] = (int64_t)row;
    }
}

static int64_t rows_run(const crnn_rows_args *args, int in)
{
    rows_call call = {.args = args, .in = in};
    size_t rows = args->batch.steps ? (size_t)args->batch.offsets[args->batch.steps] : 0;
    int threads = rows * args->width * sizeof(T) < ROWS_SHARED ? 1 : crnn_get_threads();
    for (int i = 0; i < CRNN_MAX_THREADS; i++) call.bad[i] = -1;
    if (rows && args->width) crnn_parallel(threads, 1, rows_work, &call);
    for (int i = 0; i < CRNN_MAX_THREADS; i++)
        if (call.bad[i] >= 0) return call.bad[i];
    return -1;
}

static int64_t kernel_pack_rows(const crnn_rows_args *args) { return rows_run(args, 1); }
static void kernel_unpack_rows(const crnn_rows_args *args) { rows_run(args, 0); }
