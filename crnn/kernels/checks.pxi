# Part of crnn/_kernels.pyx. Status codes to exceptions, arrays to pointers: dtype, layout and size are checked here, values by the callers.

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


cdef void **starts_of(crnn_view *view, sequences, order, const crnn_batch *batch, int typenum, Py_ssize_t width,
                      bint writable) except NULL:
    """Where the sequences start, longest first: to be freed afterwards.

    `sequences` is an array (B, T, width), in which what lies beyond a sequence's end becomes zero where it is written,
    or a list of B arrays (T_i, width) that are equally far apart from step to step; within a step, values stand side by
    side. `order`: sorted position -> place among them.
    """
    cdef Py_ssize_t B = <Py_ssize_t>batch.batch
    cdef const int64_t *places = integers(order, B, "order")
    if cnp.PyArray_Check(sequences) and (sequences.ndim != 3 or sequences.shape[0] != B):
        raise complain("sequences", sequences, f"({B}, steps, {width})")
    cdef void **starts = <void **>calloc(<size_t>B + 1, sizeof(void *))
    if starts == NULL:
        raise MemoryError
    try:
        find_starts(view, starts, sequences, places, batch, typenum, width, writable)
    except BaseException:
        free(starts)
        raise
    view.sequences = starts
    return starts


cdef void **rows_of(void **packed, crnn_view *view, rows, order, const crnn_batch *batch, int typenum, Py_ssize_t width,
                    str name, bint writable) except? NULL:
    """Rows of a call: packed (R, width), or sequences in this order, whose starts are to be freed afterwards; None: neither."""
    packed[0], view.sequences = NULL, NULL
    if order is not None and (type(rows) is list or (cnp.PyArray_Check(rows) and cnp.PyArray_NDIM(<cnp.ndarray>rows) == 3)):
        return starts_of(view, rows, order, batch, typenum, width, writable)
    packed[0] = real(rows, typenum, <Py_ssize_t>batch.offsets[batch.steps] * width, name, writable)
    return NULL


cdef int find_starts(crnn_view *view, void **starts, sequences, const int64_t *places, const crnn_batch *batch,
                     int typenum, Py_ssize_t width, bint writable) except -1:
    cdef cnp.ndarray array
    cdef Py_ssize_t B = <Py_ssize_t>batch.batch, length = <Py_ssize_t>batch.steps, i, apart
    cdef bint together = cnp.PyArray_Check(sequences), known = False
    view.step, view.steps = 0, 0
    if together:  # the longest sequence comes first, and they all are of one length in the array
        array = <cnp.ndarray>sequences
        check_sequences(array, 3, length, typenum, width, writable)
        view.step, view.steps = cnp.PyArray_STRIDE(array, 1), <size_t>cnp.PyArray_DIM(array, 1)
        apart = cnp.PyArray_STRIDE(array, 0)
    for i in range(B):
        if places[i] < 0 or places[i] >= B:
            raise ValueError(f"order: {places[i]} is outside 0..{B - 1}")
        if together:
            starts[i] = cnp.PyArray_BYTES(array) + places[i] * apart
            continue
        while length > 0 and batch.offsets[length] - batch.offsets[length - 1] <= i:
            length -= 1
        array = <cnp.ndarray?>sequences[places[i]]
        check_sequences(array, 2, length, typenum, width, writable)
        if length > 1:
            if known and view.step != cnp.PyArray_STRIDE(array, 0):
                raise complain("sequences", array, f"steps {view.step} bytes apart")
            view.step = cnp.PyArray_STRIDE(array, 0)
            known = True
        starts[i] = cnp.PyArray_BYTES(array)
    return 0


cdef int check_sequences(cnp.ndarray array, int axes, Py_ssize_t length, int typenum, Py_ssize_t width,
                         bint writable) except -1:
    """Its last two axes are at least `length` steps of `width` values side by side."""
    cdef Py_ssize_t item = 4 if typenum == cnp.NPY_FLOAT32 else 8
    if (cnp.PyArray_TYPE(array) != typenum or not cnp.PyArray_ISNOTSWAPPED(array) or cnp.PyArray_NDIM(array) != axes
            or cnp.PyArray_DIM(array, axes - 1) != width or cnp.PyArray_DIM(array, axes - 2) < length
            or (width > 1 and length > 0 and cnp.PyArray_STRIDE(array, axes - 1) != item)
            or (writable and not cnp.PyArray_ISBEHAVED(array))):
        raise complain("sequences", array, f"at least {length} steps of {width} contiguous values")
    return 0


class NotFinite(ValueError):
    """Sequences hold an infinity or NaN; `row` is the first packed row that does."""

    def __init__(self, int64_t row):
        super().__init__(f"not finite in row {row}")
        self.row = row
