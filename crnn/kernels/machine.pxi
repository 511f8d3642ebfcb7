# Part of crnn/_kernels.pyx. The machine: instruction sets, threads, whose BLAS, the measured peak.

def function(str name, x, out):
    """out = exp, tanh or sigmoid of x as the kernels compute it."""
    cdef int typenum = typenum_of(x, "x")
    cdef Py_ssize_t n = cnp.PyArray_SIZE(<cnp.ndarray>x)
    if out is None:
        raise complain("out", out, "an array")
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


def read_bandwidth(Py_ssize_t size, int threads, double seconds):
    """Measured rate in GB/s at which the threads read `size` bytes, shared out among them, up and down."""
    if size < 1:
        raise ValueError(f"size: got {size} bytes, wanted at least 1")
    cdef double rate
    with nogil:
        rate = crnn_read_bandwidth(<size_t>size, threads, seconds)
    if rate == 0:
        raise MemoryError(f"size: no memory for {size} bytes")
    return rate


def handover(int threads):
    """Seconds to give the other threads an empty job and hear that it is done, as last measured."""
    if threads < 1:
        raise ValueError(f"threads: got {threads}, wanted at least 1")
    return crnn_handover(threads)


def assume_handover(double seconds):
    """Share work out among threads as if handing over took so many seconds; 0: as it does (the default)."""
    if not seconds >= 0:
        raise ValueError(f"seconds: got {seconds}, wanted at least 0")
    crnn_assume_handover(seconds)


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
    try:
        use_blas(blas == "scipy" or (blas == "" and not {"avx2", "avx512"} & set(available_isas())))
    except RuntimeError:  # a big-endian machine: no BLAS there, which only matters to who asked for it
        if blas:
            raise
    if wish:
        set_isa(wish)
    return 0


configure()
