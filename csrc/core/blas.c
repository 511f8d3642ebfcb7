/* The one seam to a BLAS: Fortran sgemm and dgemm, handed in by whoever embeds the library (Python: SciPy's).
 * A call that has products over all rows (input projection, input and weight gradients) asks crnn_blas_wanted() once and keeps to
 * the answer. Off unless crnn_set_blas has been called.
 *
 * Integers are passed as pointers to int64. A BLAS with 32-bit integers (LP64) reads their low halves, one with 64-bit
 * integers (ILP64) the whole: on a little-endian machine both see the same number, so no build needs telling apart. */
#include "internal.h"
#include <stdatomic.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#define USABLE 0
#else
#define USABLE 1
#endif

typedef void (*gemm_function)(const char *, const char *, const int64_t *, const int64_t *, const int64_t *,
                              const void *, const void *, const int64_t *, const void *, const int64_t *, const void *,
                              void *, const int64_t *);

static _Atomic(gemm_function) gemm[2]; /* what was taken away stays, for calls that had begun */
static atomic_int wanted;

crnn_status crnn_set_blas(void (*sgemm)(void), void (*dgemm)(void))
{
    atomic_store(&wanted, 0);
    if (!sgemm || !dgemm) return CRNN_OK;
    if (!USABLE) return CRNN_UNSUPPORTED;
    atomic_store(&gemm[CRNN_F32], (gemm_function)sgemm);
    atomic_store(&gemm[CRNN_F64], (gemm_function)dgemm);
    atomic_store(&wanted, 1);
    return CRNN_OK;
}

int crnn_blas_wanted(void) { return atomic_load_explicit(&wanted, memory_order_acquire); }

/* Column-major C (m, n) = op(A) op(B), plus C if add, as Fortran sees it. */
void crnn_blas_gemm(crnn_dtype dtype, char ta, char tb, size_t m, size_t n, size_t k, const void *A, size_t lda,
                    const void *B, size_t ldb, int add, void *C, size_t ldc)
{
    const float float_numbers[2] = {1.0f, add ? 1.0f : 0.0f};
    const double double_numbers[2] = {1.0, add ? 1.0 : 0.0};
    const int64_t sizes[6] = {(int64_t)m, (int64_t)n, (int64_t)k, (int64_t)lda, (int64_t)ldb, (int64_t)ldc};
    const char *numbers = dtype == CRNN_F32 ? (const char *)float_numbers : (const char *)double_numbers;
    size_t item = dtype == CRNN_F32 ? sizeof(float) : sizeof(double);
    if (m == 0 || n == 0) return;
    const gemm_function product = atomic_load_explicit(&gemm[dtype], memory_order_acquire);
    product(&ta, &tb, sizes, sizes + 1, sizes + 2, numbers, A, sizes + 3, B, sizes + 4, numbers + item, C, sizes + 5);
}
