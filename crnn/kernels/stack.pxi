# Part of crnn/_kernels.pyx. Recurrent layers: a stack over weights in place, and what a forward call keeps.

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

    @property
    def in_halves(self):
        """As `Stack.in_halves`, for the backward call."""
        return crnn_tape_in_halves(self.tape) != 0


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

    def states(self, Py_ssize_t batch):
        """Memory for the states of a call, each (layers*directions, batch, hidden): h, and c, which only an LSTM has."""
        cdef cnp.npy_intp[3] shape = [<cnp.npy_intp>(self.stack.layers * self.stack.directions), batch,
                                      <cnp.npy_intp>self.stack.hidden]
        return (cnp.PyArray_EMPTY(3, shape, self.typenum, 0),
                cnp.PyArray_EMPTY(3, shape, self.typenum, 0) if self.stack.cell == CRNN_LSTM else None)

    def in_halves(self, offsets, Py_ssize_t batch_size, bint masked, bint keep):
        """Whether `forward` takes the sequences in two halves: results lie best sequence by sequence then."""
        cdef crnn_batch batch
        cdef Py_ssize_t steps = offsets.shape[0] - 1
        batch.offsets = integers(offsets, steps + 1, "offsets")
        if steps < 1 or batch_size < 1:
            return False
        batch.batch, batch.steps = <size_t>batch_size, <size_t>steps
        return crnn_in_halves(&self.stack, &batch, masked, keep) != 0

    def forward(self, x, offsets, h0, c0, y, h_n, c_n, bint keep, masks=None, order=None):
        cdef crnn_forward_args args
        cdef void **inputs = NULL
        cdef void **outputs = NULL
        cdef int64_t bad = -1
        cdef crnn_batch batch
        cdef crnn_tape *tape = NULL
        cdef crnn_status status
        cdef Py_ssize_t steps = offsets.shape[0] - 1, B, rows, states, H = <Py_ssize_t>self.stack.hidden
        cdef Py_ssize_t D = <Py_ssize_t>self.stack.directions, L = <Py_ssize_t>self.stack.layers, t, before
        if x is None:
            raise complain("x", x, "an array")
        batch.offsets = integers(offsets, steps + 1, "offsets")
        if steps < 1 or h_n is None or not cnp.PyArray_Check(h_n) or cnp.PyArray_NDIM(<cnp.ndarray>h_n) != 3:
            raise ValueError("forward: wanted at least one step and h_n of shape (layers*directions, batch, hidden)")
        B = cnp.PyArray_DIM(<cnp.ndarray>h_n, 1)
        rows = <Py_ssize_t>batch.offsets[steps]
        if batch.offsets[0] != 0 or batch.offsets[1] > B or batch.offsets[1] < 1:
            raise ValueError(f"offsets: first block has {batch.offsets[1]} rows for a batch of {B}")
        before = <Py_ssize_t>batch.offsets[1]
        for t in range(1, steps):
            if not 0 <= batch.offsets[t + 1] - batch.offsets[t] <= before:
                raise ValueError(f"offsets: block {t} has {batch.offsets[t + 1] - batch.offsets[t]} rows after {before}")
            before = <Py_ssize_t>(batch.offsets[t + 1] - batch.offsets[t])
        batch.batch, batch.steps = <size_t>B, <size_t>steps
        states = L * D * B * H
        args.x, args.ids, args.x_view.sequences, args.bad = NULL, NULL, NULL, &bad
        args.h0 = real(h0, self.typenum, states, "h0", False)
        args.c0 = real(c0, self.typenum, states, "c0", False)
        args.masks = real(masks, self.typenum, (L - 1) * rows * D * H, "masks", False)
        args.h_n = real(h_n, self.typenum, states, "h_n", True)
        args.c_n = real(c_n, self.typenum, states, "c_n", True)
        try:
            if self.stack.onehot:
                args.ids = integers(x, rows, "x")
            else:
                inputs = rows_of(<void **>&args.x, &args.x_view, x, order, &batch, self.typenum,
                                 <Py_ssize_t>self.stack.input, "x", False)
            outputs = rows_of(&args.y, &args.y_view, y, order, &batch, self.typenum, D * H, "y", True)
            with nogil:
                status = crnn_forward(&self.stack, &batch, &args, &tape if keep else NULL)
        finally:
            free(inputs)
            free(outputs)
        check(status)
        if bad >= 0:
            crnn_tape_free(tape)
            raise NotFinite(bad)
        if not keep:
            return None
        cdef Tape result = Tape.__new__(Tape)
        result.tape, result.owner, result.offsets, result.batch = tape, self, offsets, B
        return result

    def step(self, x, h0, c0):
        """One step of a one-directional stack in arrays of its own: (y, h_n, c_n), c_n None but for an LSTM.

        None, and nothing has happened, unless x is (batch, input) and the states, or None, are (layers, batch, hidden),
        all of the stack's dtype, in C order and finite.
        """
        cdef crnn_forward_args args
        cdef crnn_batch batch
        cdef crnn_status status
        cdef int64_t[2] offsets
        cdef cnp.npy_intp[3] shape
        cdef bint has_c = self.stack.cell == CRNN_LSTM
        if self.stack.directions != 1 or self.stack.onehot or (c0 is None) != (h0 is None or not has_c):
            return None
        if not cnp.PyArray_Check(x) or cnp.PyArray_NDIM(<cnp.ndarray>x) != 2:
            return None
        shape[0], shape[1] = <cnp.npy_intp>self.stack.layers, cnp.PyArray_DIM(<cnp.ndarray>x, 0)
        shape[2] = <cnp.npy_intp>self.stack.input
        args.x_view.sequences, args.y_view.sequences, args.bad = NULL, NULL, NULL
        args.ids, args.masks, args.h0, args.c0 = NULL, NULL, NULL, NULL
        args.x = self.plain(x, 2, shape + 1)
        if shape[1] < 1 or args.x == NULL:
            return None
        shape[2] = <cnp.npy_intp>self.stack.hidden
        if h0 is not None:
            args.h0 = self.plain(h0, 3, shape)
            args.c0 = self.plain(c0, 3, shape) if has_c else NULL
            if args.h0 == NULL or (has_c and args.c0 == NULL):
                return None
        y, h_n = cnp.PyArray_EMPTY(2, shape + 1, self.typenum, 0), cnp.PyArray_EMPTY(3, shape, self.typenum, 0)
        c_n = cnp.PyArray_EMPTY(3, shape, self.typenum, 0) if has_c else None
        args.y, args.h_n = cnp.PyArray_DATA(<cnp.ndarray>y), cnp.PyArray_DATA(<cnp.ndarray>h_n)
        args.c_n = cnp.PyArray_DATA(<cnp.ndarray>c_n) if has_c else NULL
        offsets[0], offsets[1] = 0, shape[1]
        batch.offsets, batch.batch, batch.steps = offsets, <size_t>shape[1], 1
        with nogil:
            status = crnn_forward(&self.stack, &batch, &args, NULL)
        check(status)
        return y, h_n, c_n

    cdef void *plain(self, object a, int ndim, const cnp.npy_intp *shape):
        """Data of an array of this shape and the stack's dtype in C order, all finite; else NULL."""
        if not cnp.PyArray_Check(a):
            return NULL
        cdef cnp.ndarray array = <cnp.ndarray>a
        cdef int i
        if (cnp.PyArray_TYPE(array) != self.typenum or cnp.PyArray_NDIM(array) != ndim
                or not cnp.PyArray_ISCARRAY_RO(array)):
            return NULL
        for i in range(ndim):
            if cnp.PyArray_DIM(array, i) != shape[i]:
                return NULL
        if not crnn_all_finite(dtype_of(self.typenum), cnp.PyArray_DATA(array), <size_t>cnp.PyArray_SIZE(array)):
            return NULL
        return cnp.PyArray_DATA(array)

    def backward(self, Tape tape not None, dy, dh_n, dc_n, schedule, dx, dh0, dc0, list grads, bint accumulate=False,
                 order=None):
        cdef crnn_backward_args args
        cdef void **upstream = NULL
        cdef void **inputs = NULL
        cdef int64_t bad = -1
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
        args.bad = &bad
        args.dh_n = real(dh_n, self.typenum, states, "dh_n", False)
        args.dc_n = real(dc_n, self.typenum, states, "dc_n", False)
        args.dh0 = real(dh0, self.typenum, states, "dh0", True)
        args.dc0 = real(dc0, self.typenum, states, "dc0", True)
        args.grads = NULL
        args.accumulate = accumulate
        try:
            if grads is not None:
                pointers = self.resolve(grads, True)
                args.grads = pointers
            upstream = rows_of(<void **>&args.dy, &args.dy_view, dy, order, &batch, self.typenum, D * H, "dy", False)
            if self.stack.onehot:
                args.dx, args.dx_view.sequences = real(dx, self.typenum, rows * self.gate_rows, "dx", True), NULL
            else:
                inputs = rows_of(&args.dx, &args.dx_view, dx, order, &batch, self.typenum,
                                 <Py_ssize_t>self.stack.input, "dx", True)
            with nogil:
                status = crnn_backward(&self.stack, &batch, tape.tape, &args)
            check(status)
            if bad >= 0:
                raise NotFinite(bad)
        finally:
            free(pointers)
            free(upstream)
            free(inputs)
