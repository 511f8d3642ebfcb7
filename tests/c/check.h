/* What the C tests share: checks that count, exact-size buffers in either dtype, random numbers, instruction sets.
 *
 * Every real array is a heap block of exactly its size, so that AddressSanitizer sees the first element read or written
 * beyond it; outputs start as NaN, so that an element nobody wrote cannot pass. */
#ifndef CRNN_TEST_CHECK_H
#define CRNN_TEST_CHECK_H
#include "crnn.h"
#include <float.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static atomic_long checks_passed, checks_failed; /* several threads may check at once */

#define CHECK(condition, ...)                                                                                          \
    do {                                                                                                               \
        if (condition) {                                                                                               \
            checks_passed++;                                                                                           \
        } else if (++checks_failed <= 20) {                                                                            \
            printf("%s:%d: ", __FILE__, __LINE__);                                                                     \
            printf(__VA_ARGS__);                                                                                       \
            printf("\n");                                                                                              \
        }                                                                                                              \
    } while (0)

static inline int finish(const char *name)
{
    printf("%s: %ld checks passed, %ld failed\n", name, (long)checks_passed, (long)checks_failed);
    return checks_failed != 0;
}

/* xorshift64*: the same numbers on every machine. */
static uint64_t random_state = 0x9E3779B97F4A7C15u;

static inline uint64_t random_bits(void)
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 0x2545F4914F6CDD1Du;
}

static inline double uniform(double low, double high)
{
    return low + (high - low) * (double)(random_bits() >> 11) * 0x1p-53;
}

static inline size_t random_below(size_t n) { return (size_t)(random_bits() % n); }

static inline size_t element(crnn_dtype dtype) { return dtype == CRNN_F32 ? sizeof(float) : sizeof(double); }
static inline double epsilon(crnn_dtype dtype) { return dtype == CRNN_F32 ? FLT_EPSILON : DBL_EPSILON; }
static inline const char *dtype_name(crnn_dtype dtype) { return dtype == CRNN_F32 ? "f32" : "f64"; }

static inline void *allocate(size_t bytes)
{
    void *block = malloc(bytes ? bytes : 1);
    if (!block) {
        printf("the test itself is out of memory\n");
        exit(2);
    }
    return block;
}

/* Buffers that the library sees are remembered and freed together. With `misaligned` set they start one element past
 * what malloc returned, and still end exactly where the block ends. */
static void **buffers;
static size_t buffer_count, buffer_capacity;
static int misaligned;

static inline void *buffer(crnn_dtype dtype, size_t n)
{
    if (buffer_count == buffer_capacity) {
        buffer_capacity = 2 * buffer_capacity + 64;
        buffers = realloc(buffers, buffer_capacity * sizeof(void *));
        if (!buffers) exit(2);
    }
    size_t shift = misaligned ? element(dtype) : 0;
    char *block = allocate(n * element(dtype) + shift);
    buffers[buffer_count++] = block;
    return block + shift;
}

static inline void free_buffers(void)
{
    while (buffer_count) free(buffers[--buffer_count]);
    free(buffers);
    buffers = NULL;
    buffer_capacity = 0;
}

static inline double get(crnn_dtype dtype, const void *a, size_t i)
{
    return dtype == CRNN_F32 ? (double)((const float *)a)[i] : ((const double *)a)[i];
}

static inline void put(crnn_dtype dtype, void *a, size_t i, double value)
{
    if (dtype == CRNN_F32) ((float *)a)[i] = (float)value;
    else ((double *)a)[i] = value;
}

/* Random numbers that both dtypes represent, so that f32 kernels and the double oracle start from the same values. */
static inline double *random_doubles(size_t n, double low, double high)
{
    double *a = allocate(n * sizeof(double));
    for (size_t i = 0; i < n; i++) a[i] = (double)(float)uniform(low, high);
    return a;
}

static inline void *from_doubles(crnn_dtype dtype, const double *values, size_t n)
{
    if (!values) return NULL;
    void *a = buffer(dtype, n);
    for (size_t i = 0; i < n; i++) put(dtype, a, i, values[i]);
    return a;
}

static inline void *output_buffer(crnn_dtype dtype, size_t n)
{
    void *a = buffer(dtype, n);
    for (size_t i = 0; i < n; i++) put(dtype, a, i, NAN);
    return a;
}

/* |a - expected| <= tolerance * max(1, largest |expected|), element by element; NaN never passes. */
static inline void check_close(crnn_dtype dtype, const void *a, const double *expected, size_t n, double tolerance,
                               const char *what, const char *where)
{
    double largest = 1;
    for (size_t i = 0; i < n; i++) largest = fmax(largest, fabs(expected[i]));
    for (size_t i = 0; i < n; i++) {
        double got = get(dtype, a, i), error = fabs(got - expected[i]);
        CHECK(error <= tolerance * largest, "%s, %s[%zu]: got %.9g, expected %.9g, off by %.2g of %.2g", where, what, i,
              got, expected[i], error, tolerance * largest);
        if (!(error <= tolerance * largest)) return;
    }
}

static inline void check_same_bits(const void *a, const void *b, size_t bytes, const char *what, const char *where)
{
    CHECK(memcmp(a, b, bytes) == 0, "%s: %s differs in at least one bit", where, what);
}

static inline void announce_isas(void)
{
    printf("  instruction sets:");
    for (int i = 0; i < crnn_isa_count(); i++) printf(" %s", crnn_isa_name(i));
    printf("\n");
}

/* Run a test in both dtypes on every instruction set that this machine and this build have. */
static inline void on_every_isa(void (*test)(const char *isa, crnn_dtype dtype))
{
    for (int i = 0; i < crnn_isa_count(); i++) {
        const char *isa = crnn_isa_name(i);
        crnn_status status = crnn_isa_set(isa);
        CHECK(status == CRNN_OK, "crnn_isa_set(\"%s\") returned %d", isa, (int)status);
        CHECK(strcmp(crnn_isa_active(), isa) == 0, "%s is active instead of %s", crnn_isa_active(), isa);
        test(isa, CRNN_F32);
        test(isa, CRNN_F64);
    }
}
#endif
