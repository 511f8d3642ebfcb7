/* The cells: everything that differs between them, element-wise over a patch of `rows` x `vectors` unit vectors.
 * Equations: docs/derivations.md; the readable twin: tests/reference.py. Pointers stand at the patch's corner. */
typedef struct {
    T *g;             /* gates (rows, ldg), slots Hp apart */
    size_t ldg, Hp;
    const T *h_prev;  /* (rows, ldh) */
    const T *c_prev;
    T *h, *c;
    size_t ldh;
    T *reset;         /* GRU, reset before, first half: takes r * h_prev */
} forward_patch;

typedef struct {
    const T *g;       /* what forward kept */
    T *d;             /* gradients of the pre-activations, same layout */
    size_t ldg, Hp;
    const T *h_prev, *c_prev, *h, *c;
    const T *dh;      /* complete gradient of h_t */
    const T *dc;      /* gradient of c_t that comes from step t+1 (may be the same memory as dc_prev) */
    T *dc_prev;
    T *dh_prev;       /* GRU: takes the part of dh_{t-1} that does not pass a weight matrix */
    const T *base;    /* (rows, ldb) what dh_prev begins with, null: 0; may be dh_prev itself */
    const T *d_reset; /* GRU, reset before, second half: gradient of r * h_{t-1} */
    size_t ldh, ldr, ldb;
} backward_patch;

/* Rows pairwise the other way round: 1, 0, 3, 2 and so on. From equal distances the hardware learns to go on beyond the last row, where
 * another thread's begin, who has to fetch back what it writes there (two threads, cores far from each other, LSTM of batch 20, T 35,
 * 200 units: 6 to 8 % of inference, 1 to 2 of training). */
INLINE size_t swapped(size_t r, size_t rows) { return (r ^ 1) < rows ? r ^ 1 : r; }
/* All vectors of a patch, row by row, in a single loop: constants, of which there are more than sixteen registers hold, are set up once per
 * patch and not once per row. Patches are copied before: what is stored through a pointer might otherwise change it. */
#define PATCH_VECTORS(r, rows, j, vectors)                                                                   \
    for (size_t r##_ = 0, r = swapped(0, rows), j = 0, left_ = (rows) * (vectors); left_; left_--, j += VW,  \
                j == (vectors) * VW ? (j = 0, r = swapped(++r##_, rows)) : 0)

#include "gru.h"
#include "lstm.h"
#include "rnn.h"

/* After the recurrent product: pre-activations -> gates and new state. GRU with reset before: r, z, r * h. */
static void cell_forward(const cell_shape *shape, const forward_patch *p, size_t rows, size_t vectors)
{
    switch (shape->kind) {
    case KIND_LSTM: lstm_forward(p, rows, vectors); break;
    case KIND_GRU_AFTER: gru_after_forward(p, rows, vectors, shape->z_state); break;
    case KIND_GRU_BEFORE: gru_before_gates(p, rows, vectors); break;
    case KIND_RNN_TANH: rnn_tanh_forward(p, rows, vectors); break;
    case KIND_RNN_SIGMOID: rnn_sigmoid_forward(p, rows, vectors); break;
    case KIND_RNN_RELU: rnn_relu_forward(p, rows, vectors); break;
    }
}

/* dh, dc -> d_pre, dc_prev, and GRU's direct part of dh_prev. GRU with reset before: all but d_r. */
static void cell_backward(const cell_shape *shape, const backward_patch *p, size_t rows, size_t vectors)
{
    switch (shape->kind) {
    case KIND_LSTM: lstm_backward(p, rows, vectors); break;
    case KIND_GRU_AFTER: gru_backward(p, rows, vectors, shape->z_state, 1); break;
    case KIND_GRU_BEFORE: gru_backward(p, rows, vectors, shape->z_state, 0); break;
    case KIND_RNN_TANH: rnn_tanh_backward(p, rows, vectors); break;
    case KIND_RNN_SIGMOID: rnn_sigmoid_backward(p, rows, vectors); break;
    case KIND_RNN_RELU: rnn_relu_backward(p, rows, vectors); break;
    }
}
