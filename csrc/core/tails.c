/* The ends of padded sequences. */
#include "internal.h"
#include <string.h>

#define TAILS_SHARED ((size_t)64 << 10) /* bytes, a microsecond of one thread: two gain nothing there, 15 % with twice as many, 40 % with eight times */

typedef struct {
    char *data;
    const int64_t *lengths;
    size_t batch, steps, row, rows; /* rows: to be zeroed, of `row` bytes each */
} tails_call;

static void tails_work(void *context, int rank, crnn_team *team)
{
    const tails_call *call = context;
    size_t lo, hi, first = 0;
    crnn_share(call->rows, 1, rank, crnn_team_size(team), &lo, &hi);
    for (size_t i = 0; i < call->batch && first < hi; i++) {
        const size_t n = call->steps - (size_t)call->lengths[i], end = first + n;
        const size_t a = first > lo ? first : lo, b = end < hi ? end : hi;
        if (a < b) memset(call->data + ((i + 1) * call->steps - end + a) * call->row, 0, (b - a) * call->row);
        first = end;
    }
}

void crnn_zero_tails(void *data, const int64_t *lengths, size_t batch, size_t steps, size_t row)
{
    tails_call call = {data, lengths, batch, steps, row, 0};
    for (size_t i = 0; i < batch; i++) call.rows += steps - (size_t)lengths[i];
    crnn_parallel(call.rows * row < TAILS_SHARED ? 1 : crnn_get_threads(), 1, tails_work, &call);
}
