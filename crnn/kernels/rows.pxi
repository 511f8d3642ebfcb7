# Part of crnn/_kernels.pyx. Ids, the order of ragged batches, rows by id.

def first_outside(ids, Py_ssize_t words):
    """Place of the first id that is not in 0..words-1, or -1."""
    cdef Py_ssize_t n = ids.shape[0], r
    cdef const int64_t *values = integers(ids, n, "ids")
    for r in range(n):
        if <uint64_t>values[r] >= <uint64_t>words:
            return r
    return -1


def arrange(lengths):
    """Sequences by falling length, equal ones in the order in which they came: (offsets, order, places, in order).

    ``offsets`` (T + 1,) are the packed rows' (see `crnn.packed`); ``order[p]`` is the sequence at sorted place p, and
    ``places`` is its inverse; ``in order`` says whether both are 0, 1, ... The arrays are read-only. A counting sort:
    B + T operations.
    """
    cdef Py_ssize_t B = lengths.shape[0], T = 0, i, t
    cdef const int64_t *length = integers(lengths, B, "lengths")
    cdef bint in_order = True
    for i in range(B):
        if length[i] < 0:
            raise ValueError(f"lengths: {length[i]} at {i} is negative")
        T = max(T, <Py_ssize_t>length[i])
    cdef cnp.npy_intp[2] sizes = [B, T + 1]
    offsets = cnp.PyArray_ZEROS(1, sizes + 1, cnp.NPY_INT64, 0)
    order = cnp.PyArray_EMPTY(1, sizes, cnp.NPY_INT64, 0)
    places = cnp.PyArray_EMPTY(1, sizes, cnp.NPY_INT64, 0)
    longer = cnp.PyArray_ZEROS(1, sizes + 1, cnp.NPY_INT64, 0)
    cdef int64_t *offset = <int64_t *>cnp.PyArray_DATA(<cnp.ndarray>offsets)
    cdef int64_t *first = <int64_t *>cnp.PyArray_DATA(<cnp.ndarray>longer)
    cdef int64_t *to_caller = <int64_t *>cnp.PyArray_DATA(<cnp.ndarray>order)
    cdef int64_t *to_sorted = <int64_t *>cnp.PyArray_DATA(<cnp.ndarray>places)
    for i in range(B):
        if length[i]:
            first[length[i] - 1] += 1
    for t in range(T - 1, 0, -1):
        first[t - 1] += first[t]
    # first[t]: sequences longer than t, which is b_t, and the place of the first that is not
    for t in range(T):
        offset[t + 1] = offset[t] + first[t]
    for i in range(B):
        to_sorted[i] = first[length[i]]
        to_caller[to_sorted[i]] = i
        in_order &= to_sorted[i] == i
        first[length[i]] += 1
    for array in (offsets, order, places):
        cnp.PyArray_CLEARFLAGS(<cnp.ndarray>array, cnp.NPY_ARRAY_WRITEABLE)
    return offsets, order, places, in_order


def take_rows(src, index, out):
    """out[r] = src[index[r]]"""
    cdef Py_ssize_t rows = index.shape[0], width, r, most
    cdef const int64_t *at
    cdef char *to
    cdef const char *origin
    cdef int typenum = cnp.PyArray_TYPE(<cnp.ndarray?>src)
    if src.ndim != 2 or (<cnp.ndarray?>out).ndim != 2 or src.shape[1] != out.shape[1]:
        raise ValueError("src, out: wanted two matrices with rows of equal width")
    if src.dtype != out.dtype or src.dtype.hasobject:
        raise complain("out", out, f"{src.dtype}, and no objects")
    origin = <const char *>real(src, typenum, cnp.PyArray_SIZE(<cnp.ndarray>src), "src", False)
    to = <char *>real(out, typenum, cnp.PyArray_SIZE(<cnp.ndarray>out), "out", True)
    at = integers(index, rows, "index")
    most = src.shape[0]
    if rows != out.shape[0]:
        raise ValueError(f"index: got {rows} entries for {out.shape[0]} rows")
    width = src.shape[1] * cnp.PyArray_ITEMSIZE(<cnp.ndarray>src)
    for r in range(rows):
        if at[r] < 0 or at[r] >= most:
            raise ValueError(f"index: row {at[r]} at {r} is outside 0..{most - 1}")
        memcpy(to + r * width, origin + at[r] * width, <size_t>width)


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


cdef int64_t *sort_places(const int64_t *ids, Py_ssize_t n, int64_t most, int64_t *places, int64_t *other) noexcept nogil:
    """Places 0..n-1 by id (none above `most`), equal ids in order, in one of two arrays: a radix sort, 2048 values a pass."""
    cdef int64_t[2048] starts
    cdef Py_ssize_t r
    cdef int64_t digit, sum, count
    cdef int shift = 0
    for r in range(n):
        places[r] = r
    while shift < 64 and most >> shift:
        memset(starts, 0, sizeof(starts))
        for r in range(n):
            starts[(ids[r] >> shift) & 2047] += 1
        sum = 0
        for digit in range(2048):
            count = starts[digit]
            starts[digit] = sum
            sum += count
        for r in range(n):
            digit = (ids[places[r]] >> shift) & 2047
            other[starts[digit]] = places[r]
            starts[digit] += 1
        places, other = other, places
        shift += 11
    return places


def sum_by_id(ids, rows):
    """(unique ids, sorted; the sum of the rows of each, in their order)"""
    cdef int typenum = typenum_of(rows, "rows")
    cdef Py_ssize_t n = ids.shape[0], r, unique = 0, width
    cdef const int64_t *at = integers(ids, n, "ids")
    cdef int64_t most = 0, previous = -1
    cdef int64_t *order
    cdef int64_t *to
    cdef int64_t *row
    cdef void *target
    cdef const void *source
    if rows.ndim != 2 or rows.shape[0] != n:
        raise complain("rows", rows, "a row for each id")
    width = rows.shape[1]
    source = real(rows, typenum, n * width, "rows", False)
    for r in range(n):
        if at[r] < 0:
            raise ValueError(f"ids: id {at[r]} at {r} is negative")
        most = max(most, at[r])
    cdef cnp.npy_intp[2] shape = [n, width]
    places = cnp.PyArray_EMPTY(1, shape, cnp.NPY_INT64, 0)
    other = cnp.PyArray_EMPTY(1, shape, cnp.NPY_INT64, 0)
    order = sort_places(at, n, most, <int64_t *>cnp.PyArray_DATA(<cnp.ndarray>places),
                        <int64_t *>cnp.PyArray_DATA(<cnp.ndarray>other))
    for r in range(n):
        unique += r == 0 or at[order[r]] != at[order[r - 1]]
    shape[0] = unique
    named = cnp.PyArray_EMPTY(1, shape, cnp.NPY_INT64, 0)
    summed = cnp.PyArray_ZEROS(2, shape, typenum, 0)
    to = <int64_t *>cnp.PyArray_DATA(<cnp.ndarray>named)
    target = cnp.PyArray_DATA(<cnp.ndarray>summed)
    row = <int64_t *>cnp.PyArray_DATA(<cnp.ndarray>(other if order == cnp.PyArray_DATA(<cnp.ndarray>places) else places))
    with nogil:
        unique = 0
        for r in range(n):
            if at[order[r]] != previous:
                previous = at[order[r]]
                to[unique] = previous
                unique += 1
            row[order[r]] = unique - 1
        crnn_add_rows(dtype_of(typenum), target, <size_t>width, 1, row, source, <size_t>n, <size_t>width, 1.0)
    return named, summed


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
