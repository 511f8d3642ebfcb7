# Part of crnn/_kernels.pyx. The output layer: softmax cross entropy and probabilities.

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
