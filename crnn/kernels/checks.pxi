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
