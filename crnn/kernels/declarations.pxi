# Part of crnn/_kernels.pyx. What csrc/include/crnn.h declares.

cdef extern from "Python.h":
    const char *PyCapsule_GetName(object) except NULL
    void *PyCapsule_GetPointer(object, const char *) except NULL
    Py_ssize_t PY_SSIZE_T_MAX


cdef extern from "crnn.h" nogil:
    ctypedef enum crnn_status:
        CRNN_OK, CRNN_NOMEM, CRNN_INVALID, CRNN_UNSUPPORTED
    ctypedef enum crnn_dtype:
        CRNN_F32, CRNN_F64
    ctypedef enum crnn_cell:
        CRNN_RNN_TANH, CRNN_RNN_SIGMOID, CRNN_RNN_RELU, CRNN_LSTM, CRNN_GRU
    ctypedef enum crnn_truncation:
        CRNN_FULL, CRNN_WINDOW, CRNN_CHUNK
    ctypedef enum crnn_rule:
        CRNN_SGD, CRNN_MOMENTUM, CRNN_ADAGRAD, CRNN_RMSPROP, CRNN_ADAM
    ctypedef struct crnn_weights:
        void *weight_ih
        void *weight_hh
        void *bias_ih
        void *bias_hh
        size_t ld_ih
    ctypedef struct crnn_stack:
        crnn_dtype dtype
        crnn_cell cell
        int reset_after, z_state, onehot
        size_t input, hidden, layers, directions
        const crnn_weights *weights
    ctypedef struct crnn_batch:
        size_t batch, steps
        const int64_t *offsets
    ctypedef struct crnn_view:
        void **sequences
        Py_ssize_t step
        size_t steps
    ctypedef struct crnn_forward_args:
        const void *x
        crnn_view x_view
        int64_t *bad
        const int64_t *ids
        const void *h0
        const void *c0
        const void *masks
        void *y
        crnn_view y_view
        void *h_n
        void *c_n
    ctypedef struct crnn_backward_args:
        const void *dy
        crnn_view dy_view
        int64_t *bad
        const void *dh_n
        const void *dc_n
        crnn_truncation truncation
        size_t k1, k2
        void *dx
        crnn_view dx_view
        void *dh0
        void *dc0
        const crnn_weights *grads
        int accumulate
    ctypedef struct crnn_tape:
        pass
    ctypedef struct crnn_softmax_args:
        crnn_dtype dtype
        size_t rows, hidden, vocabulary
        const void *h
        void *weight_t
        size_t ld
        void *bias
        const int64_t *targets
        void *dh
        void *grad_w
        size_t ld_grad
        void *grad_b
        double rate, scale
        int accumulate
        double *losses
    ctypedef struct crnn_update_args:
        crnn_dtype dtype
        crnn_rule rule
        double rate, a, b, eps, decay
        uint64_t step
        void *p
        void *s1
        void *s2
        const void *g
        size_t n
        const int64_t *ids
        size_t n_ids, rows, width, ld
    int crnn_in_halves(const crnn_stack *, const crnn_batch *, int, int)
    int crnn_tape_in_halves(const crnn_tape *)
    crnn_status crnn_forward(const crnn_stack *, const crnn_batch *, const crnn_forward_args *, crnn_tape **)
    crnn_status crnn_backward(const crnn_stack *, const crnn_batch *, const crnn_tape *, const crnn_backward_args *)
    void crnn_tape_free(crnn_tape *)
    ctypedef struct crnn_stepper:
        pass
    ctypedef struct crnn_states:
        void *h
        void *c
        size_t layer_step, row_step
    crnn_status crnn_stepper_new(const crnn_stack *, size_t, crnn_stepper **)
    void crnn_step(crnn_stepper *, const void *, void *)
    crnn_states crnn_stepper_states(crnn_stepper *)
    void crnn_stepper_free(crnn_stepper *)
    size_t crnn_tape_bytes(const crnn_tape *)
    crnn_status crnn_softmax_loss(const crnn_softmax_args *, double *)
    crnn_status crnn_softmax_probabilities(const crnn_softmax_args *, void *)
    crnn_status crnn_update(const crnn_update_args *)
    double crnn_sum_squares(crnn_dtype, const void *, size_t)
    int crnn_all_finite(crnn_dtype, const void *, size_t)
    void *crnn_allocate(size_t)
    void crnn_release(void *)
    void crnn_release_kept()
    void crnn_scale(crnn_dtype, void *, size_t, double)
    void crnn_add_rows(crnn_dtype, void *, size_t, size_t, const int64_t *, const void *, size_t, size_t, double)
    crnn_status crnn_function(crnn_dtype, char, const void *, void *, size_t)
    double crnn_fma_peak(crnn_dtype, int, double)
    double crnn_read_bandwidth(size_t, int, double)
    double crnn_handover(int)
    void crnn_assume_handover(double)
    int crnn_isa_count()
    const char *crnn_isa_name(int)
    const char *crnn_isa_active()
    crnn_status crnn_isa_set(const char *)
    crnn_status crnn_set_blas(void (*)() noexcept, void (*)() noexcept)
    void crnn_set_threads(int)
    int crnn_get_threads()
