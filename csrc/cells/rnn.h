/* h = f(a), a the pre-activation. Derivatives in terms of h: tanh 1 - h^2, sigmoid h (1 - h), relu [h > 0]. */
#define RNN_CELL(name, VALUE, SLOPE)                                                              \
    NOINLINE void rnn_##name##_forward(const forward_patch *patch, size_t rows, size_t vectors)   \
    {                                                                                             \
        const forward_patch p = *patch;                                                           \
        PATCH_VECTORS(i, rows, j, vectors) {                                                      \
            V a = load(p.g + i * p.ldg + j);                                                      \
            store(p.h + i * p.ldh + j, VALUE);                                                    \
        }                                                                                         \
    }                                                                                             \
    NOINLINE void rnn_##name##_backward(const backward_patch *patch, size_t rows, size_t vectors) \
    {                                                                                             \
        const backward_patch p = *patch;                                                          \
        PATCH_VECTORS(i, rows, j, vectors) {                                                      \
            V h = load(p.h + i * p.ldh + j), dh = load(p.dh + i * p.ldh + j);                     \
            store(p.d + i * p.ldg + j, SLOPE);                                                    \
        }                                                                                         \
    }
RNN_CELL(tanh, v_tanh(a), dh *((T)1 - h * h))
RNN_CELL(sigmoid, v_sigmoid(a), dh *(h *((T)1 - h)))
/* NaN in a must stay NaN: a < 0 is false for it. */
RNN_CELL(relu, blend((VI)(a < (T)0), (V){0}, a), blend((VI)(h > (T)0), dh, (V){0}))
