# Part of crnn/_kernels.pyx. A stack fed step by step: states and output arrays that stay between steps.

cdef class Outputs:
    """Two arrays (rows, columns) of a real dtype, handed out so that no caller ever sees an array of theirs change.

    An array is used again only while nobody outside refers to it or to a view of it, which its reference count tells:
    a loop that drops one output when it receives the next allocates nothing, and a caller who keeps outputs gets a new
    array each time.
    """
    cdef object first, second
    cdef cnp.npy_intp[2] shape
    cdef int typenum

    def __cinit__(self, Py_ssize_t rows, Py_ssize_t columns, dtype):
        self.shape[0], self.shape[1] = rows, columns
        self.typenum = (<cnp.dtype?>dtype).num
        self.first, self.second = self.new(), self.new()

    cdef object new(self):
        return cnp.PyArray_EMPTY(2, self.shape, self.typenum, 0)

    cpdef object take(self):
        if (<PyObject *>self.first).ob_refcnt == 1:
            return self.first
        if (<PyObject *>self.second).ob_refcnt == 1:
            return self.second
        self.first = self.new()
        return self.first


cdef class Stepper:
    """States of `batch` sequences over a one-directional stack, and the arrays that their outputs come in."""
    cdef crnn_stepper *stepper  # NULL: more rows than it takes, each step is a call of the stack
    cdef Stack stack
    cdef Outputs outputs
    cdef object states, offsets
    cdef Py_ssize_t batch

    def __cinit__(self, Stack stack, Py_ssize_t batch):
        cdef crnn_status status
        if batch < 1:
            raise ValueError(f"batch: got {batch}, wanted at least 1")
        self.stack, self.batch = stack, batch
        self.outputs = Outputs(batch, <Py_ssize_t>stack.stack.hidden, cnp.PyArray_DescrFromType(stack.typenum))
        status = crnn_stepper_new(&stack.stack, <size_t>batch, &self.stepper)
        if status != CRNN_UNSUPPORTED:
            check(status)
            return
        cdef cnp.npy_intp[3] shape
        shape[0], shape[1], shape[2] = <cnp.npy_intp>stack.stack.layers, batch, <cnp.npy_intp>stack.stack.hidden
        names = 2 if stack.stack.cell == CRNN_LSTM else 1
        self.states = [cnp.PyArray_ZEROS(3, shape, stack.typenum, 0) for _ in range(names)]
        self.offsets = cnp.PyArray_ZEROS(1, [2], cnp.NPY_INT64, 0)
        self.offsets[1] = batch

    def __dealloc__(self):
        crnn_stepper_free(self.stepper)

    cdef object view(self, void *data, crnn_states where):
        cdef cnp.npy_intp[3] shape
        cdef cnp.npy_intp[3] strides
        cdef Py_ssize_t item = 4 if self.stack.typenum == cnp.NPY_FLOAT32 else 8
        shape[0], shape[1], shape[2] = <cnp.npy_intp>self.stack.stack.layers, self.batch, <cnp.npy_intp>self.stack.stack.hidden
        strides[0], strides[1], strides[2] = <cnp.npy_intp>where.layer_step * item, <cnp.npy_intp>where.row_step * item, item
        cdef cnp.ndarray array = cnp.PyArray_New(cnp.ndarray, 3, shape, self.stack.typenum, strides, data, 0,
                                                 cnp.NPY_ARRAY_WRITEABLE | cnp.NPY_ARRAY_ALIGNED, <object>NULL)
        cnp.set_array_base(array, self)
        return array

    @property
    def entering(self):
        """The states that enter the next step, to read and to write: [h], LSTM [h, c], each (layers, batch, hidden)."""
        cdef crnn_states where
        if self.stepper == NULL:
            return list(self.states)
        where = crnn_stepper_states(self.stepper)
        views = [self.view(where.h, where)]
        if where.c != NULL:
            views.append(self.view(where.c, where))
        return views

    def step(self, x):
        """(batch, hidden) outputs; None, and nothing has happened, if x is not (batch, input) of the stack's dtype in C
        order (one-hot: (batch,) int64, in range)."""
        cdef cnp.ndarray array
        cdef bint onehot = self.stack.stack.onehot
        if not cnp.PyArray_Check(x):
            return None
        array = <cnp.ndarray>x
        if (cnp.PyArray_TYPE(array) != (cnp.NPY_INT64 if onehot else self.stack.typenum)
                or cnp.PyArray_NDIM(array) != (1 if onehot else 2) or cnp.PyArray_DIM(array, 0) != self.batch
                or (not onehot and cnp.PyArray_DIM(array, 1) != <Py_ssize_t>self.stack.stack.input)
                or not cnp.PyArray_ISCARRAY_RO(array)):
            return None
        y = self.outputs.take()
        if self.stepper == NULL:
            h = self.states[0]
            c = self.states[1] if len(self.states) > 1 else None
            self.stack.forward(x, self.offsets, h, c, y, h, c, False)
            return y
        cdef const void *data = cnp.PyArray_DATA(array)
        cdef void *out = cnp.PyArray_DATA(<cnp.ndarray>y)
        with nogil:
            crnn_step(self.stepper, data, out)
        return y
