# Part of crnn/_kernels.pyx. Arrays for results, named arrays over one buffer, and the caller's arrays as kernels find them.

cdef extern from "<string.h>" nogil:
    void *memcpy(void *, const void *, size_t)
    void *memset(void *, int, size_t)


cdef class Block:
    """Memory of the library's cache under an array."""
    cdef void *data

    def __dealloc__(self):
        crnn_release(self.data)


cdef Py_ssize_t LEAST_BLOCK = 32768  # bytes; NumPy's own allocator serves what is smaller


cdef Block new_block(Py_ssize_t size):
    cdef Block block = Block.__new__(Block)
    block.data = crnn_allocate(<size_t>size)
    if block.data == NULL:
        raise MemoryError(f"crnn: not enough memory for {size} bytes of results")
    return block


cdef object view_of(object base, void *data, int axes, const cnp.npy_intp *sizes, const cnp.npy_intp *strides,
                    int typenum, bint writable):
    """An array over memory that `base` keeps alive; strides NULL: in C order."""
    cdef cnp.ndarray array = cnp.PyArray_New(cnp.ndarray, axes, <cnp.npy_intp *>sizes, typenum, <cnp.npy_intp *>strides,
                                             data, 0, cnp.NPY_ARRAY_ALIGNED | (cnp.NPY_ARRAY_WRITEABLE if writable else 0),
                                             <object>NULL)
    cnp.set_array_base(array, base)
    return array


cdef object new_array(int axes, const cnp.npy_intp *sizes, cnp.dtype kind):
    cdef Py_ssize_t size = kind.itemsize
    cdef int i
    for i in range(axes):
        if sizes[i] < 0 or (sizes[i] and size > PY_SSIZE_T_MAX // sizes[i]):
            raise MemoryError(f"crnn: an array of shape {tuple([sizes[i] for i in range(axes)])} is too large")
        size *= sizes[i]
    if size < LEAST_BLOCK:
        return cnp.PyArray_EMPTY(axes, <cnp.npy_intp *>sizes, kind.num, 0)
    block = new_block(size)
    return view_of(block, block.data, axes, sizes, NULL, kind.num, True)


def empty(shape, dtype):
    """numpy.empty, from the library's cache of memory where the array is large: no fresh pages with every call."""
    cdef cnp.npy_intp[8] sizes
    cdef Py_ssize_t extent
    cdef int n = 0
    for extent in shape:
        if n == 8:
            raise ValueError("shape: wanted at most 8 dimensions")
        sizes[n] = extent
        n += 1
    return new_array(n, sizes, dtype if type(dtype) is cnp.dtype else cnp.dtype(dtype))


def release_kept():
    """Give what is kept for later arrays and calls back to the system."""
    crnn_release_kept()


def time_major(Py_ssize_t steps, Py_ssize_t batch, Py_ssize_t width, cnp.dtype dtype not None):
    """Packed rows (steps*batch, width) from `empty`, and the same memory as (batch, steps, width)."""
    cdef cnp.npy_intp[3] sizes = [steps * batch, width, 0]
    cdef cnp.npy_intp[3] strides
    cdef cnp.ndarray rows = new_array(2, sizes, dtype)
    sizes[0], sizes[1], sizes[2] = batch, steps, width
    strides[2] = dtype.itemsize
    strides[0] = width * strides[2]
    strides[1] = batch * strides[0]
    return rows, view_of(rows, cnp.PyArray_DATA(rows), 3, sizes, strides, dtype.num, True)


def all_finite(a):
    """Whether no value of a C-contiguous array is infinite or NaN."""
    cdef int typenum = typenum_of(a, "a")
    cdef Py_ssize_t n = cnp.PyArray_SIZE(<cnp.ndarray>a)
    cdef void *data = real(a, typenum, n, "a", False)
    cdef int result
    with nogil:
        result = crnn_all_finite(dtype_of(typenum), data, <size_t>n)
    return result != 0


def placed(value, cnp.dtype dtype not None, int axes, Py_ssize_t batch, Py_ssize_t steps, Py_ssize_t rows,
           Py_ssize_t width):
    """A caller's array (batch, steps, width), of a single sequence (steps, width), as the kernels find it in place.

    Packed rows (rows, width) where they lie so, all finite; else sequences (batch, steps, width) whose values of a step
    are neighbours, and nobody has looked into them. None where neither holds, or shape, dtype or type are others.
    """
    if not cnp.PyArray_CheckExact(value):
        return None
    cdef cnp.ndarray array = <cnp.ndarray>value
    cdef cnp.npy_intp[3] sizes = [batch, steps, width]
    cdef cnp.npy_intp[3] strides
    cdef Py_ssize_t item = dtype.itemsize
    cdef int i, first = 3 - axes
    cdef bint together, good
    if (cnp.PyArray_TYPE(array) != dtype.num or not cnp.PyArray_ISNOTSWAPPED(array) or cnp.PyArray_NDIM(array) != axes
            or rows < 1):
        return None
    strides[0] = 0
    for i in range(first, 3):
        strides[i] = cnp.PyArray_STRIDE(array, i - first)
        if cnp.PyArray_DIM(array, i - first) != sizes[i]:
            return None
    if width > 1 and strides[2] != item:
        return None
    if batch == 1:
        together = rows == 1 or strides[1] == width * item
    else:
        together = (rows == batch * steps and strides[0] == width * item
                    and (steps == 1 or strides[1] == batch * width * item))
    cdef void *data = cnp.PyArray_DATA(array)
    if not (together and cnp.PyArray_ISALIGNED(array)):
        return value if axes == 3 else view_of(value, data, 3, sizes, strides, dtype.num, False)
    with nogil:
        good = crnn_all_finite(CRNN_F32 if item == 4 else CRNN_F64, data, <size_t>(rows * width))
    if not good:
        return None
    if axes == 2 and rows == steps:
        return value
    sizes[1], sizes[2] = rows, width
    return view_of(value, data, 2, sizes + 1, NULL, dtype.num, False)


cdef struct view_place:
    Py_ssize_t offset
    int axes
    cnp.npy_intp[4] sizes
    cnp.npy_intp[4] strides


cdef struct view_gap:
    Py_ssize_t first, size, step, count


cdef class Views:
    """Named arrays at fixed places of one buffer, and the gaps that none of them covers.

    tensors: (name, offset, sizes, strides), gaps: (first, size, step, count), `count` times `size` bytes from `first` on,
    `step` apart; offsets, strides and gaps in bytes. The buffer has `elements`, and gaps may lie in `guard` more.
    """
    cdef view_place *places
    cdef view_gap *gaps
    cdef list names
    cdef cnp.dtype kind
    cdef Py_ssize_t elements, guard, n_gaps

    def __cinit__(self, cnp.dtype dtype not None, Py_ssize_t elements, Py_ssize_t guard, list tensors, list gaps):
        cdef Py_ssize_t q, last, size = (elements + guard) * dtype.itemsize
        cdef view_place *place
        cdef view_gap *gap
        cdef int i
        if dtype.kind != "f" or elements < 0 or guard < 0 or elements > (1 << 60) - guard:
            raise ValueError(f"elements, guard: got {elements} and {guard} of {dtype}, wanted as many floats as memory may hold")
        self.kind, self.elements, self.guard, self.n_gaps = dtype, elements, guard, len(gaps)
        self.names = [name for name, _, _, _ in tensors]
        self.places = <view_place *>calloc(<size_t>len(tensors) + 1, sizeof(view_place))
        self.gaps = <view_gap *>calloc(<size_t>len(gaps) + 1, sizeof(view_gap))
        if self.places == NULL or self.gaps == NULL:
            raise MemoryError
        for q, (name, offset, sizes, strides) in enumerate(tensors):
            place = self.places + q
            place.offset, place.axes = offset, len(sizes)
            if not 1 <= place.axes <= 4 or len(strides) != place.axes:
                raise ValueError(f"{name}: wanted 1 to 4 axes, got {len(sizes)}")
            last = place.offset + dtype.itemsize
            for i in range(place.axes):
                place.sizes[i], place.strides[i] = sizes[i], strides[i]
                if place.sizes[i] < 1 or place.strides[i] < 0 or (
                        place.strides[i] and (place.sizes[i] - 1) > size // place.strides[i]):
                    raise ValueError(f"{name}: sizes {sizes}, strides {strides}")
                last += (place.sizes[i] - 1) * place.strides[i]
            if place.offset < 0 or last > elements * dtype.itemsize:
                raise ValueError(f"{name}: outside the buffer")
        for q, (first, length, step, count) in enumerate(gaps):
            gap = self.gaps + q
            gap.first, gap.size, gap.step, gap.count = first, length, step, count
            if min(gap.first, gap.size, gap.step) < 0 or gap.count < 1 or gap.step and gap.count - 1 > size // gap.step or (
                    gap.first + (gap.count - 1) * gap.step + gap.size > size):
                raise ValueError(f"gaps[{q}]: outside the buffer")

    def __dealloc__(self):
        free(self.places)
        free(self.gaps)

    def attach(self, into, cnp.ndarray flat not None):
        """Put the views of a buffer into a dict, under their names, past any `__setitem__` that it may have."""
        cdef Py_ssize_t q
        cdef view_place *place
        if not isinstance(into, dict):
            raise TypeError(f"into: got {type(into).__name__}, wanted a dict")
        real(flat, self.kind.num, self.elements, "flat", False)
        for q in range(len(self.names)):
            place = self.places + q
            PyDict_SetItem(into, self.names[q],
                           view_of(flat, cnp.PyArray_BYTES(flat) + place.offset, place.axes, place.sizes, place.strides,
                                   self.kind.num, cnp.PyArray_ISWRITEABLE(flat)))

    def blank(self, into):
        """A new buffer with its views in a dict: zero in the gaps, anything in the tensors."""
        cdef cnp.npy_intp[1] sizes = [self.elements]
        cdef Py_ssize_t q, i
        cdef view_gap *gap
        block = new_block((self.elements + self.guard) * self.kind.itemsize)
        for q in range(self.n_gaps):
            gap = self.gaps + q
            for i in range(gap.count):
                memset(<char *>block.data + gap.first + i * gap.step, 0, <size_t>gap.size)
        flat = view_of(block, block.data, 1, sizes, NULL, self.kind.num, True)
        self.attach(into, flat)
        return flat
