# Part of crnn/_kernels.pyx. A stack fed step by step: states and output arrays that stay between steps.

cdef class Outputs:
    """Two arrays (rows, columns) of a real dtype, or (columns,) each, handed out so that no caller ever sees an array of
    theirs change.

    An array is used again only while nobody outside refers to it or to a view of it, which its reference count tells:
    a loop that drops one output when it receives the next allocates nothing, and a caller who keeps outputs gets a new
    array each time. So does one who has given an array another shape, dtype, size or flag before dropping it.
    """
    cdef object first, second
    cdef cnp.npy_intp[2] shape
    cdef int typenum, axes

    def __cinit__(self, Py_ssize_t rows, Py_ssize_t columns, dtype, bint single=False):
        self.shape[0], self.shape[1] = rows, columns
        self.axes = 1 if single else 2
        self.typenum = (<cnp.dtype?>dtype).num
        self.first, self.second = self.new(), self.new()

    cdef object new(self):
        return cnp.PyArray_EMPTY(self.axes, &self.shape[2 - self.axes], self.typenum, 0)

    cdef bint again(self, PyObject *held):
        if held.ob_refcnt != 1:
            return False
        cdef cnp.ndarray array = <cnp.ndarray>held
        cdef cnp.npy_intp *dims = cnp.PyArray_DIMS(array)
        return (cnp.PyArray_NDIM(array) == self.axes and dims[0] == self.shape[2 - self.axes]
                and dims[self.axes - 1] == self.shape[1] and cnp.PyArray_TYPE(array) == self.typenum
                and cnp.PyArray_ISCARRAY(array) and cnp.PyArray_CHKFLAGS(array, cnp.NPY_ARRAY_OWNDATA))

    cpdef object take(self):
        if self.again(<PyObject *>self.first):
            return self.first
        if self.again(<PyObject *>self.second):
            return self.second
        self.first = self.new()
        return self.first


# Multiply-adds, an RNN's counted three times, below which a step keeps the interpreter's lock: letting it go and taking it
# again takes 35 ns, 5 % of an RNN's step of 64 units.
cdef double BRIEF = 65536


cdef class Stepper:
    """States of `batch` sequences over a one-directional stack, and the arrays that their outputs come in."""
    cdef crnn_stepper *stepper  # NULL: more rows than it takes, each step is a call of the stack
    cdef Stack stack
    cdef Outputs outputs, singles  # singles: for a row without a batch axis, once there is one
    cdef object states, offsets
    cdef Py_ssize_t batch
    cdef bint brief

    def __cinit__(self, Stack stack not None, Py_ssize_t batch):
        cdef crnn_status status
        if batch < 1:
            raise ValueError(f"batch: got {batch}, wanted at least 1")
        self.stack, self.batch = stack, batch
        self.brief = (<double>batch * stack.stack.layers * stack.stack.hidden
                      * (<double>stack.stack.input + stack.stack.hidden) * (4 if stack.stack.cell == CRNN_LSTM else 3)) < BRIEF
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
        return view_of(self, data, 3, shape, strides, self.stack.typenum, True)

    @property
    def entering(self):
        """The states that enter the next step, to read and to write before it: [h], LSTM [h, c], each (layers, batch,
        hidden)."""
        cdef crnn_states where
        if self.stepper == NULL:
            return list(self.states)
        where = crnn_stepper_states(self.stepper)
        views = [self.view(where.h, where)]
        if where.c != NULL:
            views.append(self.view(where.c, where))
        return views

    cpdef step(self, x):
        """(batch, hidden) outputs; None, and nothing has happened, if x is not (batch, input) of the stack's dtype in C
        order (one-hot: (batch,) int64, in range). A single row may come as (input,), and its outputs are then (hidden,).
        """
        cdef cnp.ndarray array
        cdef bint onehot = self.stack.stack.onehot, single
        cdef Outputs outputs = self.outputs
        cdef int last
        if not cnp.PyArray_Check(x):
            return None
        array = <cnp.ndarray>x
        last = cnp.PyArray_NDIM(array) - 1
        single = last == 0 and not onehot and self.batch == 1 and self.stepper != NULL
        if (cnp.PyArray_TYPE(array) != (cnp.NPY_INT64 if onehot else self.stack.typenum)
                or last != (0 if onehot or single else 1)
                or (not single and cnp.PyArray_DIM(array, 0) != self.batch)
                or (not onehot and cnp.PyArray_DIM(array, last) != <Py_ssize_t>self.stack.stack.input)
                or not cnp.PyArray_ISCARRAY_RO(array)):
            return None
        if single:
            if self.singles is None:
                self.singles = Outputs(1, <Py_ssize_t>self.stack.stack.hidden,
                                       cnp.PyArray_DescrFromType(self.stack.typenum), True)
            outputs = self.singles
        y = outputs.take()
        if self.stepper == NULL:
            h = self.states[0]
            c = self.states[1] if len(self.states) > 1 else None
            self.stack.forward(x, self.offsets, h, c, y, h, c, False)
            return y
        cdef const void *data = cnp.PyArray_DATA(array)
        cdef void *out = cnp.PyArray_DATA(<cnp.ndarray>y)
        if self.brief:
            crnn_step(self.stepper, data, out)
        else:
            with nogil:
                crnn_step(self.stepper, data, out)
        return y


cdef class Steps:
    """A stepper behind the method that users call: input that needs no preparation goes to the kernel at once, because a
    Python function in between takes an eighth of a small step."""
    cdef readonly Stepper _stepper

    def __init__(self, Stack stack not None, batch):
        self._stepper = Stepper(stack, batch)

    def step(self, x, rows=None):
        """One time step of all rows, or of some.

        Parameters
        ----------
        x
            (batch, features), or (features,) when there is one row. The layer's dtype in C order is read in place;
            other real dtypes and orders are converted.
        rows
            Indices of the rows that take the step, each at most once, in any order; x is then (len(rows), features).
            The other rows wait with their states untouched. None: all rows.

        Returns
        -------
        numpy.ndarray
            (batch, hidden) outputs of the last layer; (len(rows), hidden) with `rows`; (hidden,) when x had no batch
            axis. The array is the caller's: its memory is used again only when nothing refers to it any more.

        Raises
        ------
        ValueError
            x has the wrong shape, or a row does not exist or occurs twice. No state has changed then.
        TypeError
            x does not hold real numbers, or rows are not whole numbers.
        """
        if rows is None and self._stepper is not None:  # None: a stream that was never initialised
            y = self._stepper.step(x)
            if y is not None:
                return y
        return self._prepared(x, rows)
