# cython: freethreading_compatible=True
"""The one door between Python and C: argument types in, one C call without the GIL, status out. No numerics here.

The interface is described in docs/internals.md; the C side in csrc/include/crnn.h. Callers inside crnn have checked
values (ids in range, finite numbers); this module checks what C would crash on: dtypes, layouts and sizes.
"""
cimport numpy as cnp
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free

cnp.import_array()


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
    ctypedef struct crnn_forward_args:
        const void *x
        const int64_t *ids
        const void *h0
        const void *c0
        const void *masks
        void *y
        void *h_n
        void *c_n
    ctypedef struct crnn_backward_args:
        const void *dy
        const void *dh_n
        const void *dc_n
        crnn_truncation truncation
        size_t k1, k2
        void *dx
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
    crnn_status crnn_forward(const crnn_stack *, const crnn_batch *, const crnn_forward_args *, crnn_tape **)
    crnn_status crnn_backward(const crnn_stack *, const crnn_batch *, const crnn_tape *, const crnn_backward_args *)
    void crnn_tape_free(crnn_tape *)
    size_t crnn_tape_bytes(const crnn_tape *)
    crnn_status crnn_softmax_loss(const crnn_softmax_args *, double *)
    crnn_status crnn_softmax_probabilities(const crnn_softmax_args *, void *)
    crnn_status crnn_update(const crnn_update_args *)
    double crnn_sum_squares(crnn_dtype, const void *, size_t)
    int crnn_all_finite(crnn_dtype, const void *, size_t)
    ctypedef struct crnn_rows_args:
        crnn_dtype dtype
        crnn_batch batch
        size_t width
        void **sequences
        Py_ssize_t step
        void *rows
    int64_t crnn_pack_rows(const crnn_rows_args *)
    void crnn_unpack_rows(const crnn_rows_args *)
    void *crnn_allocate(size_t)
    void crnn_release(void *)
    void crnn_scale(crnn_dtype, void *, size_t, double)
    void crnn_add_rows(crnn_dtype, void *, size_t, size_t, const int64_t *, const void *, size_t, size_t, double)
    crnn_status crnn_function(crnn_dtype, char, const void *, void *, size_t)
    double crnn_fma_peak(crnn_dtype, int, double)
    int crnn_isa_count()
    const char *crnn_isa_name(int)
    const char *crnn_isa_active()
    crnn_status crnn_isa_set(const char *)
    crnn_status crnn_set_blas(void (*)() noexcept, void (*)() noexcept)
    void crnn_set_threads(int)
    int crnn_get_threads()


cdef int check(crnn_status status) except -1:
    if status == CRNN_OK:
        return 0
    if status == CRNN_NOMEM:
        raise MemoryError("crnn: not enough memory for the workspace of this call")
    if status == CRNN_UNSUPPORTED:
        raise RuntimeError("crnn: not supported by this machine or build")
    raise ValueError("crnn: invalid arguments reached the C library")


cdef object complain(str name, object a, str wanted):
    got = f"{a.dtype} {a.shape}, strides {a.strides}" if isinstance(a, cnp.ndarray) else type(a).__name__
    return ValueError(f"{name}: got {got}, wanted {wanted}")


cdef void *real(object a, int typenum, Py_ssize_t size, str name, bint writable) except? NULL:
    """Data of a C-contiguous array of this type and number of elements; None is NULL."""
    if a is None:
        return NULL
    if not cnp.PyArray_Check(a):
        raise complain(name, a, "an array")
    cdef cnp.ndarray array = <cnp.ndarray>a
    if cnp.PyArray_TYPE(array) != typenum or cnp.PyArray_SIZE(array) != size or not (
            cnp.PyArray_ISCARRAY(array) if writable else cnp.PyArray_ISCARRAY_RO(array)):
        raise complain(name, a, f"{size} contiguous elements of the call's dtype" + (", writable" if writable else ""))
    return cnp.PyArray_DATA(array)


cdef int64_t *integers(object a, Py_ssize_t size, str name) except? NULL:
    return <int64_t *>real(a, cnp.NPY_INT64, size, name, False)


cdef void *matrix(object a, int typenum, Py_ssize_t rows, Py_ssize_t columns, size_t pad, size_t *ld, str name,
                  bint writable) except? NULL:
    """A (rows, columns) array whose rows are contiguous and at least `pad`-rounded apart."""
    if a is None:
        return NULL
    if not cnp.PyArray_Check(a):
        raise complain(name, a, "an array")
    cdef cnp.ndarray array = <cnp.ndarray>a
    cdef Py_ssize_t item = 4 if typenum == cnp.NPY_FLOAT32 else 8
    cdef Py_ssize_t least = (columns + <Py_ssize_t>pad - 1) // <Py_ssize_t>pad * <Py_ssize_t>pad
    if (cnp.PyArray_TYPE(array) != typenum or cnp.PyArray_NDIM(array) != 2 or cnp.PyArray_DIM(array, 0) != rows
            or cnp.PyArray_DIM(array, 1) != columns or (columns > 1 and cnp.PyArray_STRIDE(array, 1) != item)
            or not cnp.PyArray_ISBEHAVED_RO(array) or (writable and not cnp.PyArray_ISWRITEABLE(array))):
        raise complain(name, a, f"({rows}, {columns}) with contiguous rows" + (", writable" if writable else ""))
    cdef Py_ssize_t stride = cnp.PyArray_STRIDE(array, 0)
    if stride % item or (stride // item < least and (rows > 1 or pad > 1)):
        raise complain(name, a, f"({rows}, {columns}) with rows at least {least} elements apart")
    ld[0] = <size_t>(stride // item)
    return cnp.PyArray_DATA(array)


cdef int typenum_of(object a, str name) except -1:
    if not cnp.PyArray_Check(a):
        raise complain(name, a, "a float32 or float64 array")
    cdef int typenum = cnp.PyArray_TYPE(<cnp.ndarray>a)
    if typenum != cnp.NPY_FLOAT32 and typenum != cnp.NPY_FLOAT64:
        raise complain(name, a, "float32 or float64")
    return typenum


cdef inline crnn_dtype dtype_of(int typenum) noexcept nogil:
    return CRNN_F32 if typenum == cnp.NPY_FLOAT32 else CRNN_F64


cdef class Tape:
    """What one forward call keeps for its backward calls."""
    cdef crnn_tape *tape
    cdef object owner
    cdef object offsets
    cdef Py_ssize_t batch

    def __dealloc__(self):
        crnn_tape_free(self.tape)

    @property
    def nbytes(self):
        return crnn_tape_bytes(self.tape)


CELLS = {"rnn_tanh": CRNN_RNN_TANH, "rnn_sigmoid": CRNN_RNN_SIGMOID, "rnn_relu": CRNN_RNN_RELU, "lstm": CRNN_LSTM,
         "gru": CRNN_GRU}


cdef class Stack:
    """A stack of recurrent layers over weight arrays that are used in place."""
    cdef crnn_stack stack
    cdef crnn_weights *pointers
    cdef object arrays
    cdef int typenum
    cdef Py_ssize_t gate_rows

    def __cinit__(self, str cell, Py_ssize_t input_size, Py_ssize_t hidden_size, Py_ssize_t num_layers,
                  Py_ssize_t directions, weights, bint reset_after=False, bint z_state=False, bint onehot=False):
        if cell not in CELLS:
            raise ValueError(f"cell: got {cell!r}, wanted one of {', '.join(CELLS)}")
        if min(input_size, hidden_size, num_layers) < 1 or directions not in (1, 2) or (onehot and directions != 1):
            raise ValueError("sizes: wanted positive sizes, one or two directions, one direction for ids")
        self.typenum = typenum_of(weights[1], "weights[1]")
        self.gate_rows = {"lstm": 4, "gru": 3}.get(cell, 1) * hidden_size
        self.stack.dtype = dtype_of(self.typenum)
        self.stack.cell = CELLS[cell]
        self.stack.reset_after, self.stack.z_state, self.stack.onehot = reset_after, z_state, onehot
        self.stack.input, self.stack.hidden = input_size, hidden_size
        self.stack.layers, self.stack.directions = num_layers, directions
        self.arrays = list(weights)
        self.pointers = self.resolve(self.arrays, False)
        self.stack.weights = self.pointers

    def __dealloc__(self):
        free(self.pointers)

    cdef crnn_weights *resolve(self, list arrays, bint gradients) except NULL:
        cdef Py_ssize_t count = <Py_ssize_t>(self.stack.layers * self.stack.directions), q, width
        cdef Py_ssize_t hidden = <Py_ssize_t>self.stack.hidden
        if len(arrays) != 4 * count:
            raise ValueError(f"weights: got {len(arrays)} arrays, wanted {4 * count}")
        cdef crnn_weights *out = <crnn_weights *>calloc(<size_t>count, sizeof(crnn_weights))
        if out == NULL:
            raise MemoryError
        try:
            for q in range(count):
                width = <Py_ssize_t>self.stack.input
                if q >= <Py_ssize_t>self.stack.directions:
                    width = <Py_ssize_t>self.stack.directions * hidden
                if q == 0 and self.stack.onehot:
                    if not gradients:
                        out[q].weight_ih = matrix(arrays[0], self.typenum, width, self.gate_rows, 1, &out[q].ld_ih,
                                                  "weights[0]", False)
                    elif arrays[0] is not None:
                        raise ValueError("grads[0]: wanted None, one-hot gradients come as rows in dx")
                else:
                    out[q].weight_ih = real(arrays[4 * q], self.typenum, self.gate_rows * width, "weight_ih", gradients)
                out[q].weight_hh = real(arrays[4 * q + 1], self.typenum, self.gate_rows * hidden, "weight_hh", gradients)
                out[q].bias_ih = real(arrays[4 * q + 2], self.typenum, self.gate_rows, "bias_ih", gradients)
                out[q].bias_hh = real(arrays[4 * q + 3], self.typenum, self.gate_rows, "bias_hh", gradients)
                if not gradients and (out[q].weight_ih == NULL or out[q].weight_hh == NULL):
                    raise ValueError("weights: weight_ih and weight_hh must be there")
        except BaseException:
            free(out)
            raise
        return out

    def forward(self, x, offsets, h0, c0, y, h_n, c_n, bint keep, masks=None):
        cdef crnn_forward_args args
        cdef crnn_batch batch
        cdef crnn_tape *tape = NULL
        cdef crnn_status status
        cdef Py_ssize_t steps = offsets.shape[0] - 1, B, rows, states, H = <Py_ssize_t>self.stack.hidden
        cdef Py_ssize_t D = <Py_ssize_t>self.stack.directions, L = <Py_ssize_t>self.stack.layers
        batch.offsets = integers(offsets, steps + 1, "offsets")
        if steps < 1 or h_n is None or not cnp.PyArray_Check(h_n) or cnp.PyArray_NDIM(<cnp.ndarray>h_n) != 3:
            raise ValueError("forward: wanted at least one step and h_n of shape (layers*directions, batch, hidden)")
        B = cnp.PyArray_DIM(<cnp.ndarray>h_n, 1)
        rows = <Py_ssize_t>batch.offsets[steps]
        if batch.offsets[0] != 0 or batch.offsets[1] > B or batch.offsets[1] < 1:
            raise ValueError(f"offsets: first block has {batch.offsets[1]} rows for a batch of {B}")
        batch.batch, batch.steps = <size_t>B, <size_t>steps
        states = L * D * B * H
        args.x, args.ids = NULL, NULL
        if self.stack.onehot:
            args.ids = integers(x, rows, "x")
        else:
            args.x = real(x, self.typenum, rows * <Py_ssize_t>self.stack.input, "x", False)
        args.h0 = real(h0, self.typenum, states, "h0", False)
        args.c0 = real(c0, self.typenum, states, "c0", False)
        args.masks = real(masks, self.typenum, (L - 1) * rows * D * H, "masks", False)
        args.y = real(y, self.typenum, rows * D * H, "y", True)
        args.h_n = real(h_n, self.typenum, states, "h_n", True)
        args.c_n = real(c_n, self.typenum, states, "c_n", True)
        with nogil:
            status = crnn_forward(&self.stack, &batch, &args, &tape if keep else NULL)
        check(status)
        if not keep:
            return None
        cdef Tape result = Tape.__new__(Tape)
        result.tape, result.owner, result.offsets, result.batch = tape, self, offsets, B
        return result

    def backward(self, Tape tape, dy, dh_n, dc_n, schedule, dx, dh0, dc0, list grads, bint accumulate=False):
        cdef crnn_backward_args args
        cdef crnn_batch batch
        cdef crnn_status status
        cdef crnn_weights *pointers = NULL
        cdef Py_ssize_t steps = tape.offsets.shape[0] - 1, H = <Py_ssize_t>self.stack.hidden, rows, states
        cdef Py_ssize_t D = <Py_ssize_t>self.stack.directions
        cdef int kind = schedule[0]
        if tape.owner is not self:
            raise ValueError("tape: belongs to another stack")
        batch.offsets = integers(tape.offsets, steps + 1, "offsets")
        batch.steps, batch.batch = <size_t>steps, <size_t>tape.batch
        rows = <Py_ssize_t>batch.offsets[steps]
        states = <Py_ssize_t>self.stack.layers * D * tape.batch * H
        args.truncation = <crnn_truncation>kind
        args.k1, args.k2 = schedule[1], schedule[2]
        if kind != 0 and (kind not in (1, 2) or D != 1 or args.k1 < 1 or (kind == 2 and args.k2 < args.k1)):
            raise ValueError(f"schedule: got {schedule} for {D} direction(s)")
        args.dy = real(dy, self.typenum, rows * D * H, "dy", False)
        args.dh_n = real(dh_n, self.typenum, states, "dh_n", False)
        args.dc_n = real(dc_n, self.typenum, states, "dc_n", False)
        args.dx = real(dx, self.typenum, rows * (self.gate_rows if self.stack.onehot else <Py_ssize_t>self.stack.input),
                       "dx", True)
        args.dh0 = real(dh0, self.typenum, states, "dh0", True)
        args.dc0 = real(dc0, self.typenum, states, "dc0", True)
        args.grads = NULL
        args.accumulate = accumulate
        try:
            if grads is not None:
                pointers = self.resolve(grads, True)
                args.grads = pointers
            with nogil:
                status = crnn_backward(&self.stack, &batch, tape.tape, &args)
            check(status)
        finally:
            free(pointers)


cdef int output_layer(crnn_softmax_args *args, h, weight_t, bias, bint writable) except -1:
    cdef int typenum = typenum_of(h, "h")
    cdef cnp.ndarray hidden = <cnp.ndarray>h
    if cnp.PyArray_NDIM(hidden) != 2 or not cnp.PyArray_Check(weight_t) or weight_t.ndim != 2:
        raise ValueError("h, weight_t: wanted two-dimensional arrays")
    args.dtype = dtype_of(typenum)
    args.rows, args.hidden = <size_t>cnp.PyArray_DIM(hidden, 0), <size_t>cnp.PyArray_DIM(hidden, 1)
    args.vocabulary = <size_t>cnp.PyArray_DIM(<cnp.ndarray>weight_t, 1)
    cdef size_t line = 16 if typenum == cnp.NPY_FLOAT32 else 8  # elements per cache line
    args.h = real(h, typenum, cnp.PyArray_SIZE(hidden), "h", False)
    args.weight_t = matrix(weight_t, typenum, <Py_ssize_t>args.hidden, <Py_ssize_t>args.vocabulary, line, &args.ld,
                           "weight_t", writable)
    args.bias = real(bias, typenum, <Py_ssize_t>args.vocabulary, "bias", writable)
    if args.vocabulary < 1 or args.hidden < 1:
        raise ValueError("weight_t: wanted at least one word and one hidden unit")
    return typenum


def first_outside(ids, Py_ssize_t words):
    """Place of the first id that is not in 0..words-1, or -1."""
    cdef Py_ssize_t n = ids.shape[0], r
    cdef const int64_t *values = integers(ids, n, "ids")
    for r in range(n):
        if <uint64_t>values[r] >= <uint64_t>words:
            return r
    return -1


cdef class Block:
    """Memory of the library's cache under an array."""
    cdef void *data

    def __dealloc__(self):
        crnn_release(self.data)


cdef Py_ssize_t LEAST_BLOCK = 32768  # bytes; NumPy's own allocator serves what is smaller


def empty(shape, dtype):
    """numpy.empty, from the library's cache of memory where the array is large: no fresh pages with every call."""
    cdef cnp.dtype kind = dtype if type(dtype) is cnp.dtype else cnp.dtype(dtype)
    cdef Py_ssize_t size = kind.itemsize, extent
    cdef cnp.npy_intp sizes[8]
    cdef int n = 0, typenum = kind.num
    for extent in shape:
        if n == 8:
            raise ValueError("shape: wanted at most 8 dimensions")
        sizes[n] = extent
        n += 1
        if extent < 0 or (extent and size > PY_SSIZE_T_MAX // extent):
            raise MemoryError(f"crnn: an array of shape {tuple(shape)} is too large")
        size *= extent
    if size < LEAST_BLOCK:
        return cnp.PyArray_EMPTY(n, sizes, typenum, 0)
    cdef Block block = Block.__new__(Block)
    block.data = crnn_allocate(<size_t>size)
    if block.data == NULL:
        raise MemoryError(f"crnn: not enough memory for an array of shape {tuple(shape)}")
    array = cnp.PyArray_SimpleNewFromData(n, sizes, typenum, block.data)
    cnp.set_array_base(array, block)
    return array


cdef void **describe_rows(crnn_rows_args *args, sequences, order, offsets, rows, bint writable) except NULL:
    """Fill args; what it returns must be freed afterwards. `sequences` is (B, T, width), or a list of B arrays (T_i, width) that are
    equally far apart from step to step; within a step, values stand side by side."""
    cdef int typenum = typenum_of(rows, "rows")
    cdef Py_ssize_t B = order.shape[0], T = offsets.shape[0] - 1, width = rows.shape[1]
    cdef Py_ssize_t item = cnp.PyArray_ITEMSIZE(<cnp.ndarray>rows)
    cdef const int64_t *places = integers(order, B, "order")
    cdef bint together = cnp.PyArray_Check(sequences)
    args.batch.offsets = integers(offsets, T + 1, "offsets")
    args.batch.batch, args.batch.steps = <size_t>B, <size_t>T
    args.dtype, args.width, args.step = dtype_of(typenum), <size_t>width, 0
    args.rows = real(rows, typenum, <Py_ssize_t>args.batch.offsets[T] * width, "rows", not writable)
    if together and (sequences.ndim != 3 or sequences.shape[0] != B):
        raise complain("sequences", sequences, f"({B}, steps, {width})")
    cdef void **starts = <void **>calloc(<size_t>B + 1, sizeof(void *))
    if starts == NULL:
        raise MemoryError
    try:
        find_starts(args, starts, sequences, together, places, typenum, width, item, writable)
    except BaseException:
        free(starts)
        raise
    args.sequences = starts
    return starts


cdef int find_starts(crnn_rows_args *args, void **starts, sequences, bint together, const int64_t *places, int typenum,
                     Py_ssize_t width, Py_ssize_t item, bint writable) except -1:
    cdef cnp.ndarray array
    cdef Py_ssize_t B = <Py_ssize_t>args.batch.batch, t = <Py_ssize_t>args.batch.steps, i, length
    cdef int n
    for i in range(B):
        while t > 0 and args.batch.offsets[t] - args.batch.offsets[t - 1] <= i:
            t -= 1
        length = t
        if places[i] < 0 or places[i] >= B:
            raise ValueError(f"order: {places[i]} is outside 0..{B - 1}")
        array = <cnp.ndarray?>(sequences if together else sequences[places[i]])
        n = cnp.PyArray_NDIM(array)
        if (cnp.PyArray_TYPE(array) != typenum or not cnp.PyArray_ISNOTSWAPPED(array) or n != 2 + together
                or cnp.PyArray_DIM(array, n - 1) != width or cnp.PyArray_DIM(array, n - 2) < length
                or (width > 1 and length > 0 and cnp.PyArray_STRIDE(array, n - 1) != item)
                or (writable and not cnp.PyArray_ISWRITEABLE(array))):
            raise complain("sequences", array, f"at least {length} steps of {width} contiguous values")
        if length > 1:
            if args.step and args.step != cnp.PyArray_STRIDE(array, n - 2):
                raise complain("sequences", array, f"steps {args.step} bytes apart")
            args.step = cnp.PyArray_STRIDE(array, n - 2)
        starts[i] = cnp.PyArray_BYTES(array)
        if together:
            starts[i] = <char *>starts[i] + places[i] * cnp.PyArray_STRIDE(array, 0)
    return 0


def pack_sequences(sequences, order, offsets, rows):
    """rows <- sequences; the first row with a value that is not finite, or -1."""
    cdef crnn_rows_args args
    cdef int64_t bad
    cdef void **starts = describe_rows(&args, sequences, order, offsets, rows, False)
    with nogil:
        bad = crnn_pack_rows(&args)
    free(starts)
    return bad


def unpack_sequences(rows, order, offsets, sequences):
    """sequences <- rows; what lies beyond a sequence's length stays as it is."""
    cdef crnn_rows_args args
    cdef void **starts = describe_rows(&args, sequences, order, offsets, rows, True)
    with nogil:
        crnn_unpack_rows(&args)
    free(starts)


def softmax_loss(h, weight_t, bias, targets, dh=None, grad_w=None, grad_b=None, double sgd_rate=0.0, double scale=1.0,
                 bint accumulate=False, losses=None):
    cdef crnn_softmax_args args
    cdef int typenum = output_layer(&args, h, weight_t, bias, sgd_rate != 0.0)
    cdef double loss = 0.0
    cdef crnn_status status
    cdef Py_ssize_t r, rows = <Py_ssize_t>args.rows
    args.targets = integers(targets, rows, "targets")
    if args.targets == NULL:
        raise ValueError("targets: wanted an int64 array")
    r = first_outside(targets, <Py_ssize_t>args.vocabulary)
    if r >= 0:
        raise ValueError(f"targets: id {args.targets[r]} at row {r} is outside the vocabulary of {args.vocabulary}")
    args.dh = real(dh, typenum, rows * <Py_ssize_t>args.hidden, "dh", True)
    args.ld_grad = 0
    args.grad_w = matrix(grad_w, typenum, <Py_ssize_t>args.hidden, <Py_ssize_t>args.vocabulary, 16 if typenum == cnp.NPY_FLOAT32 else 8,
                         &args.ld_grad,
                         "grad_w", True)
    args.grad_b = real(grad_b, typenum, <Py_ssize_t>args.vocabulary, "grad_b", True)
    args.rate, args.scale, args.accumulate = sgd_rate, scale, accumulate
    args.losses = <double *>real(losses, cnp.NPY_FLOAT64, rows, "losses", True)
    if sgd_rate != 0.0 and (grad_w is not None or grad_b is not None):
        raise ValueError("sgd_rate: updates in place, wanted no grad_w and grad_b beside it")
    with nogil:
        status = crnn_softmax_loss(&args, &loss)
    check(status)
    return loss


def softmax_probabilities(h, weight_t, bias, out):
    cdef crnn_softmax_args args
    cdef int typenum = output_layer(&args, h, weight_t, bias, False)
    cdef crnn_status status
    cdef void *target = real(out, typenum, <Py_ssize_t>(args.rows * args.vocabulary), "out", True)
    args.targets, args.dh, args.grad_w, args.grad_b, args.losses = NULL, NULL, NULL, NULL, NULL
    args.rate, args.scale, args.accumulate, args.ld_grad = 0.0, 1.0, 0, 0
    if target == NULL:
        raise ValueError("out: wanted an array")
    if args.rows == 0:
        return
    with nogil:
        status = crnn_softmax_probabilities(&args, target)
    check(status)


cdef extern from "<string.h>" nogil:
    void *memcpy(void *, const void *, size_t)


cdef int copy_rows(src, index, out, bint scatter) except -1:
    cdef Py_ssize_t item, rows, width, r, most
    cdef const int64_t *at
    cdef char *to
    cdef const char *origin
    cdef int typenum = cnp.PyArray_TYPE(<cnp.ndarray?>src)
    if src.ndim != 2 or (<cnp.ndarray?>out).ndim != 2 or src.shape[1] != out.shape[1]:
        raise ValueError("src, out: wanted two matrices with rows of equal width")
    rows, width, item = index.shape[0], src.shape[1], cnp.PyArray_ITEMSIZE(<cnp.ndarray>src)
    origin = <const char *>real(src, typenum, cnp.PyArray_SIZE(<cnp.ndarray>src), "src", False)
    to = <char *>real(out, typenum, cnp.PyArray_SIZE(<cnp.ndarray>out), "out", True)
    at = integers(index, rows, "index")
    most = out.shape[0] if scatter else src.shape[0]
    if rows != (src.shape[0] if scatter else out.shape[0]):
        raise ValueError(f"index: got {rows} entries for {src.shape[0] if scatter else out.shape[0]} rows")
    width *= item
    for r in range(rows):
        if at[r] < 0 or at[r] >= most:
            raise ValueError(f"index: row {at[r]} at {r} is outside 0..{most - 1}")
        if scatter:
            memcpy(to + at[r] * width, origin + r * width, <size_t>width)
        else:
            memcpy(to + r * width, origin + at[r] * width, <size_t>width)
    return 0


def take_rows(src, index, out):
    """out[r] = src[index[r]]"""
    copy_rows(src, index, out, False)


def put_rows(src, index, out):
    """out[index[r]] = src[r]"""
    copy_rows(src, index, out, True)


cdef int add(dst, ids, rows, double alpha, bint columns) except -1:
    cdef int typenum = typenum_of(dst, "dst")
    cdef size_t ld = 0
    cdef Py_ssize_t n = ids.shape[0], r, width = rows.shape[1], most = dst.shape[1] if columns else dst.shape[0]
    cdef void *target = matrix(dst, typenum, dst.shape[0], dst.shape[1], 1, &ld, "dst", True)
    cdef const int64_t *at = integers(ids, n, "ids")
    cdef const void *source = real(rows, typenum, n * width, "rows", False)
    if width != (dst.shape[0] if columns else dst.shape[1]):
        raise complain("rows", rows, "rows as wide as dst")
    for r in range(n):
        if at[r] < 0 or at[r] >= most:
            raise ValueError(f"ids: id {at[r]} at {r} is outside 0..{most - 1}")
    with nogil:
        if columns:
            crnn_add_rows(dtype_of(typenum), target, 1, ld, at, source, <size_t>n, <size_t>width, alpha)
        else:
            crnn_add_rows(dtype_of(typenum), target, ld, 1, at, source, <size_t>n, <size_t>width, alpha)
    return 0


def add_rows(dst, ids, rows, double alpha):
    """dst[ids[r]] += alpha * rows[r], in order"""
    add(dst, ids, rows, alpha, False)


def add_columns(dst_t, ids, rows, double alpha):
    """dst_t[:, ids[r]] += alpha * rows[r], in order"""
    add(dst_t, ids, rows, alpha, True)


def take_columns(src_t, ids, out):
    """out[r] = src_t[:, ids[r]]"""
    cdef int typenum = typenum_of(src_t, "src_t")
    cdef size_t ld = 0
    cdef Py_ssize_t n = ids.shape[0], width = src_t.shape[0], r, k, most = src_t.shape[1]
    cdef char *source = <char *>matrix(src_t, typenum, width, most, 1, &ld, "src_t", False)
    cdef char *target = <char *>real(out, typenum, n * width, "out", True)
    cdef const int64_t *at = integers(ids, n, "ids")
    for r in range(n):
        if at[r] < 0 or at[r] >= most:
            raise ValueError(f"ids: id {at[r]} at {r} is outside 0..{most - 1}")
        if typenum == cnp.NPY_FLOAT32:
            for k in range(width):
                (<float *>target)[r * width + k] = (<float *>source)[k * <Py_ssize_t>ld + at[r]]
        else:
            for k in range(width):
                (<double *>target)[r * width + k] = (<double *>source)[k * <Py_ssize_t>ld + at[r]]


cdef int update(crnn_rule rule, p, g, s1, s2, double rate, double a, double b, double eps, uint64_t step,
                double decay, ids) except -1:
    cdef crnn_update_args args
    cdef int typenum = typenum_of(p, "p")
    cdef crnn_status status
    cdef Py_ssize_t n, r
    cdef size_t ld = 0
    args.dtype, args.rule = dtype_of(typenum), rule
    args.rate, args.a, args.b, args.eps, args.step, args.decay = rate, a, b, eps, step, decay
    args.ids, args.n_ids, args.rows, args.width, args.ld, args.n = NULL, 0, 0, 0, 0, 0
    if ids is None:
        n = cnp.PyArray_SIZE(<cnp.ndarray>p)
        args.n = <size_t>n
        args.p, args.s1 = real(p, typenum, n, "p", True), real(s1, typenum, n, "moments", True)
        args.s2, args.g = real(s2, typenum, n, "moments", True), real(g, typenum, n, "g", False)
    else:
        n = ids.shape[0]
        args.rows, args.width = <size_t>p.shape[0], <size_t>p.shape[1]
        args.ids, args.n_ids = integers(ids, n, "ids"), <size_t>n
        args.p = matrix(p, typenum, p.shape[0], p.shape[1], 1, &args.ld, "p", True)
        args.s1 = matrix(s1, typenum, p.shape[0], p.shape[1], 1, &ld, "moments", True)
        if s1 is not None and ld != args.ld:
            raise complain("moments", s1, "the row stride of p")
        args.s2 = matrix(s2, typenum, p.shape[0], p.shape[1], 1, &ld, "moments", True)
        if s2 is not None and ld != args.ld:
            raise complain("moments", s2, "the row stride of p")
        args.g = real(g, typenum, n * p.shape[1], "g", False)
        for r in range(n):
            if args.ids[r] < 0 or args.ids[r] >= <int64_t>args.rows or (r and args.ids[r] <= args.ids[r - 1]):
                raise ValueError("ids: wanted sorted, unique rows of p")
    if args.g == NULL or (rule != CRNN_SGD and args.s1 == NULL) or (rule == CRNN_ADAM and args.s2 == NULL):
        raise ValueError("g, moments: must be arrays")
    with nogil:
        status = crnn_update(&args)
    return check(status)


def sgd(p, g, double rate):
    update(CRNN_SGD, p, g, None, None, rate, 0, 0, 0, 1, 0, None)


def momentum(p, g, v, double rate, double mu):
    update(CRNN_MOMENTUM, p, g, v, None, rate, mu, 0, 0, 1, 0, None)


def adagrad(p, g, s, double rate, double eps):
    update(CRNN_ADAGRAD, p, g, s, None, rate, 0, 0, eps, 1, 0, None)


def rmsprop(p, g, s, double rate, double alpha, double eps):
    update(CRNN_RMSPROP, p, g, s, None, rate, alpha, 0, eps, 1, 0, None)


def adam(p, g, m, v, double rate, double beta1, double beta2, double eps, uint64_t step, double decay):
    update(CRNN_ADAM, p, g, m, v, rate, beta1, beta2, eps, step, decay, None)


def sgd_rows(p, ids, g, double rate):
    update(CRNN_SGD, p, g, None, None, rate, 0, 0, 0, 1, 0, ids)


def momentum_rows(p, ids, g, v, double rate, double mu):
    update(CRNN_MOMENTUM, p, g, v, None, rate, mu, 0, 0, 1, 0, ids)


def adagrad_rows(p, ids, g, s, double rate, double eps):
    update(CRNN_ADAGRAD, p, g, s, None, rate, 0, 0, eps, 1, 0, ids)


def rmsprop_rows(p, ids, g, s, double rate, double alpha, double eps):
    update(CRNN_RMSPROP, p, g, s, None, rate, alpha, 0, eps, 1, 0, ids)


def adam_rows(p, ids, g, m, v, double rate, double beta1, double beta2, double eps, uint64_t step, double decay):
    update(CRNN_ADAM, p, g, m, v, rate, beta1, beta2, eps, step, decay, ids)


def sum_squares(a):
    cdef int typenum = typenum_of(a, "a")
    cdef Py_ssize_t n = cnp.PyArray_SIZE(<cnp.ndarray>a)
    cdef void *data = real(a, typenum, n, "a", False)
    cdef double result
    with nogil:
        result = crnn_sum_squares(dtype_of(typenum), data, <size_t>n)
    return result


def all_finite(a):
    """Whether no value of a C-contiguous array is infinite or NaN."""
    cdef int typenum = typenum_of(a, "a")
    cdef Py_ssize_t n = cnp.PyArray_SIZE(<cnp.ndarray>a)
    cdef void *data = real(a, typenum, n, "a", False)
    cdef int result
    with nogil:
        result = crnn_all_finite(dtype_of(typenum), data, <size_t>n)
    return result != 0


def scale(a, double factor):
    cdef int typenum = typenum_of(a, "a")
    cdef Py_ssize_t n = cnp.PyArray_SIZE(<cnp.ndarray>a)
    cdef void *data = real(a, typenum, n, "a", True)
    with nogil:
        crnn_scale(dtype_of(typenum), data, <size_t>n, factor)


def function(str name, x, out):
    """out = exp, tanh or sigmoid of x as the kernels compute it."""
    cdef int typenum = typenum_of(x, "x")
    cdef Py_ssize_t n = cnp.PyArray_SIZE(<cnp.ndarray>x)
    if name not in ("exp", "tanh", "sigmoid"):
        raise ValueError(f"name: got {name!r}, wanted exp, tanh or sigmoid")
    check(crnn_function(dtype_of(typenum), <char>ord(name[0]), real(x, typenum, n, "x", False),
                        real(out, typenum, n, "out", True), <size_t>n))


def fma_peak(str dtype, int threads, double seconds):
    """Measured peak of fused multiply-adds in registers, GFLOP/s over all threads."""
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype: got {dtype!r}, wanted 'float32' or 'float64'")
    cdef double rate
    cdef crnn_dtype kind = CRNN_F32 if dtype == "float32" else CRNN_F64
    with nogil:
        rate = crnn_fma_peak(kind, threads, seconds)
    return rate


def set_threads(int n):
    if n < 1:
        raise ValueError(f"n: got {n}, wanted at least 1")
    crnn_set_threads(n)


def get_threads():
    return crnn_get_threads()


def isa():
    return crnn_isa_active().decode()


def available_isas():
    return [crnn_isa_name(i).decode() for i in range(crnn_isa_count())]


def set_isa(str name):
    if name not in available_isas():
        raise ValueError(f"instruction set {name!r} is not available here; there are: {', '.join(available_isas())}")
    check(crnn_isa_set(name.encode()))


ctypedef void (*routine)() noexcept nogil


cdef routine blas_routine(str name) except NULL:
    from scipy.linalg import cython_blas
    capsule = cython_blas.__pyx_capi__[name]
    return <routine>PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule))


_blas = {"used": "crnn"}


def use_blas(bint wanted):
    """Let SciPy's BLAS do the products over all rows (True), or crnn's own kernels (False)."""
    cdef routine s = NULL
    cdef routine d = NULL
    if wanted:
        s, d = blas_routine("sgemm"), blas_routine("dgemm")
    check(crnn_set_blas(s, d))
    _blas["used"] = "scipy.linalg.cython_blas" if wanted else "crnn"


def blas_info():
    """Whose matrix products run over all rows at once; docs/performance.md says why."""
    return dict(_blas)


cdef int configure() except -1:
    """The environment's wishes, else what measurement says: crnn's products win with AVX2 and AVX-512, BLAS elsewhere."""
    import os
    wish = os.environ.get("CRNN_ISA", "")
    if wish and wish not in available_isas():
        raise ImportError(f"CRNN_ISA={wish!r}: this machine and build offer {', '.join(available_isas())}")
    blas = os.environ.get("CRNN_BLAS", "")
    if blas not in ("", "crnn", "scipy"):
        raise ImportError(f"CRNN_BLAS={blas!r}: wanted 'crnn' or 'scipy'")
    use_blas(blas == "scipy" or (blas == "" and not {"avx2", "avx512"} & set(available_isas())))
    if wish:
        set_isa(wish)
    return 0


configure()
