/* crnn: the whole public C API. C11, no Python, no global state but the chosen instruction set, the thread pool, BLAS and the
 * allocator.
 *
 * Real arrays are float (CRNN_F32) or double (CRNN_F64) as `dtype` says and are passed as void pointers.
 * B sequences, sorted by length (longest first); T steps; block t holds the b_t = offsets[t+1] - offsets[t] sequences
 * still running; R = offsets[T] rows, row (t, i) = offsets[t] + i. L layers, D directions, H hidden units, G gates.
 * Gate order in the weights: LSTM i, f, g, o; GRU r, z, n. Weight shapes are PyTorch's.
 * No function prints, exits or aborts; every one that can fail returns a status. */
#ifndef CRNN_H
#define CRNN_H
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define CRNN_API __attribute__((visibility("default")))
#else
#define CRNN_API
#endif

typedef enum { CRNN_OK = 0, CRNN_NOMEM = 1, CRNN_INVALID = 2, CRNN_UNSUPPORTED = 3 } crnn_status;
typedef enum { CRNN_F32 = 0, CRNN_F64 = 1 } crnn_dtype;
typedef enum { CRNN_RNN_TANH = 0, CRNN_RNN_SIGMOID = 1, CRNN_RNN_RELU = 2, CRNN_LSTM = 3, CRNN_GRU = 4 } crnn_cell;
typedef enum { CRNN_FULL = 0, CRNN_WINDOW = 1, CRNN_CHUNK = 2 } crnn_truncation;

/* Parameters (or gradients) of one layer in one direction; a null pointer means "not there" / "not wanted". */
typedef struct {
    void *weight_ih; /* (G*H, input); one-hot first layer: stored transposed, (input, G*H) with row stride ld_ih */
    void *weight_hh; /* (G*H, H) */
    void *bias_ih;   /* (G*H) */
    void *bias_hh;   /* (G*H) */
    size_t ld_ih;    /* used by the one-hot first layer only */
} crnn_weights;

typedef struct {
    crnn_dtype dtype;
    crnn_cell cell;
    int reset_after;  /* GRU: 1 = reset gate after the recurrent product */
    int z_state;      /* GRU: 1 = z weighs the old state, 0 = z weighs the candidate */
    int onehot;       /* layer 0 reads ids */
    size_t input, hidden, layers, directions;
    const crnn_weights *weights; /* (L*D) */
} crnn_stack;

typedef struct {
    size_t batch, steps;
    const int64_t *offsets; /* (T+1) */
} crnn_batch;

/* Rows where a caller has them or wants them, instead of packed. Whoever reads them looks at every value on the way. */
typedef struct {
    void *const *sequences; /* (B) first step of each sequence, longest first; null: rows are packed. To be read: in any
                               alignment; to be written: aligned as their type */
    ptrdiff_t step;         /* bytes from one step of a sequence to the next */
    size_t steps;           /* to be written: rows from a sequence's length to here become zero */
} crnn_view;

typedef struct {
    const void *x;       /* (R, input) */
    crnn_view x_view;    /* instead of x */
    int64_t *bad;        /* x_view: the first packed row with an infinity or NaN, or -1; if one, results mean nothing */
    const int64_t *ids;  /* (R), one-hot */
    const void *h0, *c0; /* (L*D, B, H) or null = zeros */
    const void *masks;   /* (L-1, R, D*H) multiplied onto the input of layers 1.., or null */
    void *y;             /* (R, D*H) or null */
    crnn_view y_view;    /* instead of y */
    void *h_n, *c_n;     /* (L*D, B, H) or null */
} crnn_forward_args;

typedef struct {
    const void *dy;          /* (R, D*H) or null = zeros */
    crnn_view dy_view;       /* instead of dy */
    int64_t *bad;            /* as in crnn_forward_args, of dy_view */
    const void *dh_n, *dc_n; /* (L*D, B, H) or null = zeros */
    crnn_truncation truncation;
    size_t k1, k2;           /* window: k1; chunk: k1, k2 */
    void *dx;                /* (R, input), one-hot: (R, G*H); or null */
    crnn_view dx_view;       /* instead of dx, but not one-hot */
    void *dh0, *dc0;         /* (L*D, B, H) or null */
    const crnn_weights *grads; /* (L*D) or null */
    int accumulate;          /* add to grads instead of overwriting them */
} crnn_backward_args;

typedef struct crnn_tape crnn_tape;

/* Whether a call (masked: with masks, keep: with a tape) and the backward call of a tape take the sequences in two halves, each
 * with memory of its own. Results lie best sequence by sequence then: in packed rows the halves of a step are neighbours, and
 * what the hardware fetches ahead for one thread another one writes. */
CRNN_API int crnn_in_halves(const crnn_stack *stack, const crnn_batch *batch, int masked, int keep);
CRNN_API int crnn_tape_in_halves(const crnn_tape *tape);

/* Forward through the stack. tape: where to keep what backward needs, or null for inference. */
CRNN_API crnn_status crnn_forward(const crnn_stack *stack, const crnn_batch *batch, const crnn_forward_args *args,
                                  crnn_tape **tape);
/* Backward; reads the tape, does not change it. The stack must be the one of the forward call, weights unchanged. */
CRNN_API crnn_status crnn_backward(const crnn_stack *stack, const crnn_batch *batch, const crnn_tape *tape,
                                   const crnn_backward_args *args);
CRNN_API void crnn_tape_free(crnn_tape *tape);
CRNN_API size_t crnn_tape_bytes(const crnn_tape *tape);

/* One step at a time of a few sequences (8, up to 32 of wide layers), without the preparations of a call. The weights must
 * outlive the stepper and are read anew at each step; the instruction set stays what it was. One thread at a time. */
typedef struct crnn_stepper crnn_stepper;

/* Where a stepper keeps its states until the next step, to be read and set: (L, B, H) with strides in elements. */
typedef struct {
    void *h, *c; /* c: null where the cell has none */
    size_t layer_step, row_step;
} crnn_states;

/* One direction; CRNN_UNSUPPORTED for too many rows. States start at zero. */
CRNN_API crnn_status crnn_stepper_new(const crnn_stack *stack, size_t batch, crnn_stepper **out);
/* x: (B, input), or ids of a one-hot stack; y: (B, H) */
CRNN_API void crnn_step(crnn_stepper *stepper, const void *x, void *y);
CRNN_API crnn_states crnn_stepper_states(crnn_stepper *stepper);
CRNN_API void crnn_stepper_free(crnn_stepper *stepper);

typedef struct {
    crnn_dtype dtype;
    size_t rows, hidden, vocabulary;
    const void *h;          /* (R, H) */
    void *weight_t;         /* (H, V), row stride ld >= V rounded up to whole cache lines; written only when rate != 0 */
    size_t ld;
    void *bias;             /* (V) or null */
    const int64_t *targets; /* (R), each in [0, V) */
    void *dh;               /* (R, H) or null */
    void *grad_w;           /* (H, V), row stride ld_grad, same rule; or null */
    size_t ld_grad;
    void *grad_b;           /* (V) or null */
    double rate;            /* not 0: weight_t -= rate * gradient, bias likewise, in place */
    double scale;           /* gradients of scale * loss */
    int accumulate;
    double *losses;         /* (R) nats per token, or null */
} crnn_softmax_args;

/* Softmax cross entropy of h W^T + b; *loss is the sum over rows of -log p(target), in nats. */
CRNN_API crnn_status crnn_softmax_loss(const crnn_softmax_args *args, double *loss);
/* out (R, V) = softmax probabilities */
CRNN_API crnn_status crnn_softmax_probabilities(const crnn_softmax_args *args, void *out);

typedef enum { CRNN_SGD = 0, CRNN_MOMENTUM = 1, CRNN_ADAGRAD = 2, CRNN_RMSPROP = 3, CRNN_ADAM = 4 } crnn_rule;

typedef struct {
    crnn_dtype dtype;
    crnn_rule rule;
    double rate, a, b, eps, decay; /* momentum: a = mu; rmsprop: a = alpha; adam: a, b = betas, decay decoupled */
    uint64_t step;                 /* adam: counts from 1 */
    void *p, *s1, *s2;             /* parameters and moments */
    const void *g;
    size_t n;                      /* dense: elements */
    /* rows: p and moments are (rows, width) with row stride ld; g is (n_ids, width); ids sorted and unique */
    const int64_t *ids;
    size_t n_ids, rows, width, ld;
} crnn_update_args;

CRNN_API crnn_status crnn_update(const crnn_update_args *args);
CRNN_API double crnn_sum_squares(crnn_dtype dtype, const void *a, size_t n);
CRNN_API int crnn_all_finite(crnn_dtype dtype, const void *a, size_t n);
CRNN_API void crnn_scale(crnn_dtype dtype, void *a, size_t n, double factor);
/* dst[ids[r]] += alpha * rows[r], r in order; element e of dst row i is at i * row_step + e * element_step */
CRNN_API void crnn_add_rows(crnn_dtype dtype, void *dst, size_t row_step, size_t element_step, const int64_t *ids,
                            const void *rows, size_t n, size_t width, double alpha);

/* Element-wise functions as the kernels use them, for tests and tables: f is 'e' exp, 't' tanh, 's' sigmoid. */
CRNN_API crnn_status crnn_function(crnn_dtype dtype, char f, const void *x, void *y, size_t n);
/* Measured peak of fused multiply-adds in registers, GFLOP/s. */
CRNN_API double crnn_fma_peak(crnn_dtype dtype, int threads, double seconds);
/* Measured rate, GB/s, at which threads read `bytes` that they share out, up and down, again and again; 0: no memory. */
CRNN_API double crnn_read_bandwidth(size_t bytes, int threads, double seconds);
/* Measured time, seconds, to give the other threads a job of nothing and hear that it is done; as of the last measurement. */
CRNN_API double crnn_handover(int threads);
/* Threads are shared out by that time; take this one for it (seconds). 0: what was measured. */
CRNN_API void crnn_assume_handover(double seconds);

/* Instruction sets: "scalar", "sse2", "avx2", "avx512", "neon". */
CRNN_API int crnn_isa_count(void);             /* sets that are compiled in and that this machine runs */
CRNN_API const char *crnn_isa_name(int index); /* from the plainest to the best */
CRNN_API const char *crnn_isa_active(void);
CRNN_API crnn_status crnn_isa_set(const char *name); /* CRNN_UNSUPPORTED if the machine or the build lacks it */

CRNN_API void crnn_set_threads(int n);
CRNN_API int crnn_get_threads(void);

/* Use this BLAS (Fortran sgemm and dgemm, LP64 or ILP64) for the products over all rows; null: our own. At any time: a call that has
 * begun goes on with BLAS, or without, as it found it, so one that is taken away must stay loaded until such calls have returned. */
CRNN_API crnn_status crnn_set_blas(void (*sgemm)(void), void (*dgemm)(void));

/* All memory comes from here; tests put in an allocator that fails. Null functions restore the default. To be called while no block is
 * in use: each is released by the functions that are set then. */
CRNN_API void crnn_set_allocator(void *(*allocate)(size_t bytes), void (*release)(void *block));
/* Memory from the library's own cache, for arrays that come and go with each call: 64-byte aligned, or null. */
CRNN_API void *crnn_allocate(size_t bytes);
CRNN_API void crnn_release(void *block);
/* What is kept for later calls goes back to the system; whatever is in use stays. */
CRNN_API void crnn_release_kept(void);

#ifdef __cplusplus
}
#endif
#endif
