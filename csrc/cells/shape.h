/* What the sequence code needs to know about a cell: how its pre-activations are laid out in a row of gates, and
 * which of them come from the input and from the recurrent product.
 *
 * A row of gates has `slots` fields of Hp = H rounded up to whole vectors.
 *   RNN   slot 0: pre-activation (not kept after h is known; backward puts d_pre there)
 *   LSTM  slots 0..3: i, f, g, o
 *   GRU   slots 0, 1, 2: r, z, n;  slot 3, reset after: W_n h + b_hn
 * Backward fills rows of the same layout with the gradients of the pre-activations; slot 3 then holds the gradient of W_n h + b_hn. */
typedef enum { KIND_RNN_TANH, KIND_RNN_SIGMOID, KIND_RNN_RELU, KIND_LSTM, KIND_GRU_AFTER, KIND_GRU_BEFORE } cell_kind;

/* One product with the recurrent weights: gate g of W_hh goes to (and its gradient comes from) slot[g]. */
typedef struct {
    int gates;    /* how many gates take part */
    int gate[4];  /* which: block of H rows in the weight matrix */
    int slot[4];  /* where in the row of gates */
    size_t units; /* unit vectors per tile, so that units * gates <= 4 vectors */
} cell_product;

typedef struct {
    cell_kind kind;
    int z_state;
    int gates, slots;
    cell_product input;      /* forward: x -> pre-activations */
    cell_product recurrent;  /* forward: h_{t-1} -> pre-activations; backward: d_pre -> dh_{t-1} */
    cell_product candidate;  /* GRU, reset before: r * h_{t-1} -> n; gates == 0 elsewhere */
    int bias_hh_slot[4];     /* slot that takes gate g of bias_hh */
} cell_shape;

static cell_shape shape_of(const crnn_stack *stack)
{
    static const cell_product one = {1, {0}, {0}, 4}, four = {4, {0, 1, 2, 3}, {0, 1, 2, 3}, 1},
                              three = {3, {0, 1, 2}, {0, 1, 2}, 1}, after = {3, {0, 1, 2}, {0, 1, 3}, 1},
                              two = {2, {0, 1}, {0, 1}, 2}, last = {1, {2}, {2}, 4};
    switch (stack->cell) {
    case CRNN_LSTM: return (cell_shape){KIND_LSTM, 0, 4, 4, four, four, {0}, {0, 1, 2, 3}};
    case CRNN_GRU:
        if (stack->reset_after)
            return (cell_shape){KIND_GRU_AFTER, stack->z_state, 3, 4, three, after, {0}, {0, 1, 3, 0}};
        return (cell_shape){KIND_GRU_BEFORE, stack->z_state, 3, 3, three, two, last, {0, 1, 2, 0}};
    case CRNN_RNN_SIGMOID: return (cell_shape){KIND_RNN_SIGMOID, 0, 1, 1, one, one, {0}, {0}};
    case CRNN_RNN_RELU: return (cell_shape){KIND_RNN_RELU, 0, 1, 1, one, one, {0}, {0}};
    default: return (cell_shape){KIND_RNN_TANH, 0, 1, 1, one, one, {0}, {0}};
    }
}
