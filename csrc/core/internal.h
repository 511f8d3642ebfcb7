/* Shared by the C files; not part of the API. */
#ifndef CRNN_INTERNAL_H
#define CRNN_INTERNAL_H
#include "crnn.h"

#define CRNN_LINE 64
#define CRNN_MAX_THREADS 64

/* GCC and recent Clang define the macro, older Clang has the feature only. */
#if defined(__SANITIZE_ADDRESS__)
#define CRNN_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CRNN_ADDRESS_SANITIZER 1
#endif
#endif

typedef struct crnn_kernels {
    const char *name;
    int (*in_halves)(const crnn_stack *, const crnn_batch *, int masked, int keep);
    crnn_status (*forward)(const crnn_stack *, const crnn_batch *, const crnn_forward_args *, crnn_tape **);
    crnn_status (*stepper)(const crnn_stack *, size_t batch, crnn_tape **);
    void (*step)(crnn_tape *, const void *x, void *y);
    crnn_states (*states)(crnn_tape *);
    crnn_status (*backward)(const crnn_stack *, const crnn_batch *, const crnn_tape *, const crnn_backward_args *);
    crnn_status (*softmax_loss)(const crnn_softmax_args *, double *);
    crnn_status (*softmax_probabilities)(const crnn_softmax_args *, void *);
    void (*update)(const crnn_update_args *);
    double (*sum_squares)(const void *, size_t);
    int (*all_finite)(const void *, size_t);
    void (*scale)(void *, size_t, double);
    void (*add_rows)(void *, size_t, size_t, const int64_t *, const void *, size_t, size_t, double);
    void (*function)(char, const void *, void *, size_t);
    double (*fma_loop)(size_t iterations); /* returns a value that depends on every operation */
    size_t fma_flops;                      /* per iteration */
    double (*read_loop)(const void *data, size_t bytes, int backwards);
} crnn_kernels;

/* First member of every tape: backward must use the kernels that laid the tape out. */
struct crnn_tape {
    const crnn_kernels *kernels;
    size_t bytes;
    struct crnn_tape *other; /* of a batch in halves: the second one's, in the same block (sequence/halves.h) */
};

/* Threads: `work(context, rank, team)` runs once per rank; ranks may meet at crnn_barrier. */
typedef struct crnn_team crnn_team;
typedef void (*crnn_work)(void *context, int rank, crnn_team *team);
void crnn_parallel(int threads, int brief, crnn_work work, void *context); /* brief: a few tens of microseconds */
int crnn_team_size(const crnn_team *team);
void crnn_barrier(crnn_team *team);
crnn_team *crnn_half(crnn_team *team, int *rank); /* of an even number of threads, odd or even ranks; and the rank there */

/* A stretch of a time loop: the sequences [i0, i1) from step t on, of the chunk of steps that begins with `chunk`. */
typedef struct {
    size_t t, chunk, i0, i1;
} crnn_stretch;

/* Sequences share a time loop without meeting, and on cores that differ, or that neighbours slow down by the moment, some threads are
 * done long before others. Who is done rests, until all do (a barrier: 0) or until another one has handed over a stretch of its own
 * (1: to do it, and rest again). Nobody may wait at crnn_barrier meanwhile. */
int crnn_rest(crnn_team *team, crnn_stretch *stretch);
int crnn_resting(const crnn_team *team); /* how many, roughly: cheap enough for every step */
int crnn_hand_over(crnn_team *team, const crnn_stretch *stretch); /* 1: somebody takes it */

double crnn_seconds(void);
int crnn_leave_processor(int processor); /* 1 if this thread was running there and has moved */

int crnn_processor_is_amd(void);
size_t crnn_first_level(void); /* bytes of data in a core's first level */

/* Whether cores whose hand-over takes so long have no cache in common. AMD's groups of cores each have a third level of their own: near
 * cores hand over in 0.1 to 0.15 us, far ones in 0.3 to 0.5 (Zen 4; core/threads.c). Intel's share one in a socket, and hand over in 0.4 us
 * all the same (Emerald Rapids). An assumed hand-over counts everywhere, for tests. */
#define CRNN_FAR 2.5e-7 /* seconds */
int crnn_far(double handover);

/* Out of all caches, at 3 ns per line (Zen 4; x86 only, nothing happens elsewhere). Where two cores have no cache in common, a
 * line that one has written and the other has read since takes 9 to 25 ns to be written again (Zen 4), one line after the other
 * and whatever is prefetched; a line that lies in memory only, 2 ns. Where they have one it only costs: on Emerald Rapids 120 to 150 ns
 * per line, which then takes 8 ns to be written instead of 5 (an LSTM of batch 20, T 35, 200 units had 83 instead of 146 GFLOP/s). */
void crnn_push_out(const void *data, size_t bytes);

/* This rank's share of the rows, of `bytes` each, that a caller wants beyond the sequences' ends. Whoever writes what lies before
 * should have them: the hardware fetches ahead of what a thread writes, and another one that writes there must fetch it back (two
 * far cores, forward and backward of 32 sequences of 12 to 50 steps, 22 units: 155 us instead of 114). */
void crnn_zero_tails(const crnn_view *view, const size_t *lengths, size_t batch, size_t bytes, int rank, int size);

/* Share of n items that rank gets: [*lo, *hi), contiguous, in whole groups of `unit`. */
static inline void crnn_share(size_t n, size_t unit, int rank, int size, size_t *lo, size_t *hi)
{
    size_t groups = (n + unit - 1) / unit;
    size_t a = groups * (size_t)rank / (size_t)size * unit, b = groups * (size_t)(rank + 1) / (size_t)size * unit;
    *lo = a < n ? a : n;
    *hi = b < n ? b : n;
}

int crnn_blas_wanted(void);
void crnn_blas_gemm(crnn_dtype dtype, char ta, char tb, size_t m, size_t n, size_t k, const void *A, size_t lda,
                    const void *B, size_t ldb, int add, void *C, size_t ldc);

#endif
