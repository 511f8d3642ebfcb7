# Part of crnn/_kernels.pyx. Update rules on flat buffers and by rows, sums of squares.

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


def scale(a, double factor):
    cdef int typenum = typenum_of(a, "a")
    cdef Py_ssize_t n = cnp.PyArray_SIZE(<cnp.ndarray>a)
    cdef void *data = real(a, typenum, n, "a", True)
    with nogil:
        crnn_scale(dtype_of(typenum), data, <size_t>n, factor)
