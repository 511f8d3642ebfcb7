/* The ends of padded sequences. */
#include "internal.h"
#include <string.h>

static void zero_rows(char *row, ptrdiff_t apart, size_t bytes, size_t count)
{
    if (apart == (ptrdiff_t)bytes) memset(row, 0, count * bytes);
    else
        for (size_t i = 0; i < count; i++) memset(row + (ptrdiff_t)i * apart, 0, bytes);
}

void crnn_zero_tails(const crnn_view *view, const size_t *lengths, size_t batch, size_t bytes, int rank, int size)
{
    size_t lo, hi, rows = 0, first = 0;
    for (size_t i = 0; i < batch; i++) rows += view->steps > lengths[i] ? view->steps - lengths[i] : 0;
    crnn_share(rows, 1, rank, size, &lo, &hi);
    for (size_t i = 0; i < batch && first < hi; i++) {
        const size_t n = view->steps > lengths[i] ? view->steps - lengths[i] : 0;
        const size_t a = first > lo ? 0 : lo - first, b = first + n < hi ? n : hi - first;
        if (a < b) zero_rows((char *)view->sequences[i] + (ptrdiff_t)(lengths[i] + a) * view->step, view->step, bytes, b - a);
        first += n;
    }
}
