/* exp, tanh and sigmoid as the kernels use them: largest error in ULP over their whole range, special values, tails.
 * The bounds are the ones that csrc/simd/math.h states. */
#include "check.h"

typedef struct {
    char code;
    const char *name;
    double bound;        /* ULP */
    double low[2], high[2]; /* by dtype: where results are neither 0 (or subnormal) nor infinite */
} function;

static const function FUNCTIONS[] = {
    {'e', "exp", 2, {-87.3, -708.3}, {88.37, 709.43}},
    {'t', "tanh", 4, {-INFINITY, -INFINITY}, {INFINITY, INFINITY}},
    {'s', "sigmoid", 4, {-87.3, -708.3}, {INFINITY, INFINITY}},
};

/* float results are checked against double, double results against long double. */
static long double exact(char code, crnn_dtype dtype, double x)
{
    if (dtype == CRNN_F32) return code == 'e' ? exp(x) : code == 't' ? tanh(x) : 1 / (1 + exp(-x));
    return code == 'e' ? expl(x) : code == 't' ? tanhl(x) : 1 / (1 + expl(-(long double)x));
}

static double ulps(crnn_dtype dtype, double got, long double want)
{
    if (got == (double)want) return 0;
    int digits = dtype == CRNN_F32 ? FLT_MANT_DIG : DBL_MANT_DIG;
    int lowest = dtype == CRNN_F32 ? FLT_MIN_EXP - 1 : DBL_MIN_EXP - 1, exponent = ilogbl(want);
    return (double)(fabsl((long double)got - want) / ldexpl(1, (exponent < lowest ? lowest : exponent) - digits + 1));
}

enum { BLOCK = 4096 };
static double worst[3][8][2];
static double worst_at[3][8][2];

static void check_block(crnn_dtype dtype, const double *values, size_t n)
{
    void *x = from_doubles(dtype, values, n), *y = output_buffer(dtype, n);
    for (int f = 0; f < 3; f++) {
        long double *want = allocate(n * sizeof *want);
        for (size_t i = 0; i < n; i++) want[i] = exact(FUNCTIONS[f].code, dtype, get(dtype, x, i));
        for (int isa = 0; isa < crnn_isa_count(); isa++) {
            crnn_isa_set(crnn_isa_name(isa));
            crnn_function(dtype, FUNCTIONS[f].code, x, y, n);
            for (size_t i = 0; i < n; i++) {
                double at = get(dtype, x, i);
                if (!(at >= FUNCTIONS[f].low[dtype] && at <= FUNCTIONS[f].high[dtype])) continue;
                double error = ulps(dtype, get(dtype, y, i), want[i]);
                if (!(error <= worst[f][isa][dtype])) worst[f][isa][dtype] = error, worst_at[f][isa][dtype] = at;
            }
        }
        free(want);
    }
    free_buffers();
}

/* Every 499th bit pattern of float between the infinities. */
static void sweep_f32(void)
{
    double values[BLOCK];
    size_t n = 0;
    for (uint64_t pattern = 3; pattern < (uint64_t)1 << 32; pattern += 499) {
        uint32_t bits = (uint32_t)pattern;
        float value;
        memcpy(&value, &bits, sizeof value);
        if (!isfinite(value)) continue;
        values[n++] = (double)value;
        if (n == BLOCK) check_block(CRNN_F32, values, n), n = 0;
    }
    check_block(CRNN_F32, values, n);
}

static void sweep_f64(void)
{
    static const double REACH[] = {720, 40, 1, 0.4};
    double values[BLOCK];
    for (int round = 0; round < 250; round++) {
        for (size_t i = 0; i < BLOCK; i++) {
            size_t kind = i % 5;
            values[i] = kind < 4 ? uniform(-REACH[kind], REACH[kind])
                                 : copysign(pow(10, uniform(-307, 0)), uniform(-1, 1));
        }
        check_block(CRNN_F64, values, BLOCK);
    }
}

static void check_value(crnn_dtype dtype, char code, double x, double want, const char *isa)
{
    void *in = from_doubles(dtype, &x, 1), *out = output_buffer(dtype, 1);
    crnn_status status = crnn_function(dtype, code, in, out, 1);
    double got = get(dtype, out, 0);
    int same = isnan(want) ? isnan(got) : got == want && signbit(got) == signbit(want);
    CHECK(status == CRNN_OK && same, "%s %s: '%c' of %g is %g, expected %g", isa, dtype_name(dtype), code, x, got, want);
    free_buffers();
}

static void check_specials(const char *isa, crnn_dtype dtype)
{
    double huge = dtype == CRNN_F32 ? FLT_MAX : DBL_MAX, tiny = dtype == CRNN_F32 ? FLT_MIN : DBL_MIN;
    double over = dtype == CRNN_F32 ? 88.8 : 709.9, under = dtype == CRNN_F32 ? -104 : -746;
    const struct { char code; double x, want; } VALUES[] = {
        {'e', 0.0, 1}, {'e', -0.0, 1}, {'e', INFINITY, INFINITY}, {'e', -INFINITY, 0}, {'e', huge, INFINITY},
        {'e', -huge, 0}, {'e', over, INFINITY}, {'e', under, 0}, {'e', NAN, NAN}, {'e', tiny, 1},
        {'t', 0.0, 0.0}, {'t', -0.0, -0.0}, {'t', INFINITY, 1}, {'t', -INFINITY, -1}, {'t', huge, 1}, {'t', -huge, -1},
        {'t', NAN, NAN}, {'t', tiny, tiny}, {'t', -tiny, -tiny}, {'t', 30, 1}, {'t', -30, -1},
        {'s', 0.0, 0.5}, {'s', -0.0, 0.5}, {'s', INFINITY, 1}, {'s', -INFINITY, 0}, {'s', huge, 1}, {'s', -huge, 0},
        {'s', NAN, NAN}, {'s', tiny, 0.5},
    };
    for (size_t i = 0; i < sizeof VALUES / sizeof *VALUES; i++)
        check_value(dtype, VALUES[i].code, VALUES[i].x, VALUES[i].want, isa);

    /* tanh is odd to the bit, and every length has the same values as one element at a time. */
    for (size_t n = 1; n <= 70; n++) {
        double *v = random_doubles(n, -4, 4), *minus = allocate(n * sizeof *minus);
        for (size_t i = 0; i < n; i++) minus[i] = -v[i];
        misaligned = (int)(n % 2);
        void *x = from_doubles(dtype, v, n), *mirrored = from_doubles(dtype, minus, n);
        for (int f = 0; f < 3; f++) {
            void *y = output_buffer(dtype, n), *one = output_buffer(dtype, 1), *odd = output_buffer(dtype, n);
            crnn_function(dtype, FUNCTIONS[f].code, x, y, n);
            for (size_t i = 0; i < n; i++) {
                crnn_function(dtype, FUNCTIONS[f].code, (char *)x + i * element(dtype), one, 1);
                CHECK(get(dtype, one, 0) == get(dtype, y, i), "%s %s %s: element %zu of %zu differs from the same alone",
                      isa, dtype_name(dtype), FUNCTIONS[f].name, i, n);
            }
            if (FUNCTIONS[f].code != 't') continue;
            crnn_function(dtype, 't', mirrored, odd, n);
            for (size_t i = 0; i < n; i++)
                CHECK(get(dtype, odd, i) == -get(dtype, y, i), "%s %s: tanh(%.9g) is not odd", isa, dtype_name(dtype),
                      v[i]);
        }
        free(v), free(minus);
        free_buffers();
    }
}

int main(void)
{
    announce_isas();
    on_every_isa(check_specials);
    sweep_f32();
    sweep_f64();
    for (int f = 0; f < 3; f++) {
        for (int dtype = CRNN_F32; dtype <= CRNN_F64; dtype++) {
            printf("  largest error of %-7s %s:", FUNCTIONS[f].name, dtype_name((crnn_dtype)dtype));
            for (int isa = 0; isa < crnn_isa_count(); isa++) {
                double error = worst[f][isa][dtype];
                printf(" %s %.2f", crnn_isa_name(isa), error);
                CHECK(error <= FUNCTIONS[f].bound, "%s %s %s: %.3g ULP at %.9g, the bound is %g", crnn_isa_name(isa),
                      dtype_name((crnn_dtype)dtype), FUNCTIONS[f].name, error, worst_at[f][isa][dtype],
                      FUNCTIONS[f].bound);
            }
            printf(" ULP\n");
        }
    }
    CHECK(crnn_function(CRNN_F32, '?', NULL, NULL, 0) == CRNN_INVALID, "an unknown function was not refused");
    return finish("test_functions");
}
