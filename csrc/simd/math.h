/* exp, tanh and sigmoid on vectors. All three start from e^y = 2^n (1 + p), n = round(y / ln 2), |r| <= ln(2)/2,
 * p = e^r - 1 as r + r^2 q(r), q the polynomial of degree 4 (float) or 9 (double) that makes the largest error of p, relative
 * to p, least: 2^-26.2 and 2^-54.6 (found by Remez exchange in 50 digits).
 * n is read off the bits of y/ln2 + 1.5*2^(mantissa bits), so no integer conversion is needed.
 * Measured by the tests over all of float's interesting range and samples of double's: exp <= 2 ULP,
 * tanh <= 4 ULP, sigmoid <= 4 ULP. Subnormal results count as 0.
 *   exp     0 below -87.3 (-708.4); inf above 88.37 (709.43)
 *   tanh    odd to the bit, +-0 -> +-0, +-inf -> +-1
 *   sigmoid -inf -> 0, +inf -> 1; 0 below -88.4 (-709.4)
 * NaN gives NaN in all. */
#if CRNN_DOUBLE
#define MATH(f, d) d
#define MANTISSA 52
#define EXPONENT_BIAS 1023
#else
#define MATH(f, d) f
#define MANTISSA 23
#define EXPONENT_BIAS 127
#endif
#define LOG2E MATH(1.44269504088896341f, 1.44269504088896340736)
#define MAGIC MATH(12582912.0f, 6755399441055744.0)
/* ln 2 split so that n * LN2_HIGH is exact for |n| < 2^10 */
#define LN2_HIGH MATH(0.693145751953125f, 6.93147180369123816490e-01)
#define LN2_LOW MATH(1.42860682030941723212e-6f, 1.90821492927058770002e-10)
/* q, highest power first. */
#if CRNN_DOUBLE
#define EXP_DEGREE 9
static const T exp_q[EXP_DEGREE + 1] = {2.51100498958587163e-08, 2.76326557593320308e-07, 2.75572423366803571e-06, 2.48014873260123366e-05,
                                        1.98412698865909993e-04, 1.38888889478208914e-03, 8.3333333333222073e-03, 4.16666666665219907e-02,
                                        1.66666666666666745e-01, 5.00000000000001022e-01};
#else
#define EXP_DEGREE 4
static const T exp_q[EXP_DEGREE + 1] = {1.38825217671323233e-3f, 8.36652057574360442e-3f, 4.16671998550661064e-2f, 1.66665436210311821e-1f,
                                        4.99999981540596195e-1f};
#endif
#define EXP_LOWEST MATH(-88.0f, -709.0)
#define EXP_HIGHEST MATH(88.8f, 710.0)

/* e^(times x) = scale / size + scale p, where times is 1, -1 or 2 and size 1 or 2, for times x in [EXP_LOWEST, EXP_HIGHEST]:
 * scale = size 2^n, which is 0 at the low end and inf at the high end, r = (times x - n ln 2) / size, p = (e^(size r) - 1) / size.
 * Signs and powers of two vanish in the constants without another rounding, and so does the exponent's bias. */
INLINE V exp_parts(V x, const int times, V *scale)
{
    const T size = times == 2 ? 2 : 1, magic = MAGIC + EXPONENT_BIAS + (size - 1);
    V t = x * (times * LOG2E) + magic;
    V n = t - magic;
    V r = (times < 0 ? -x : x) - n * (LN2_HIGH / size);
    r = r - n * (LN2_LOW / size);
    *scale = (V)((VI)t << MANTISSA);
    V q = splat(exp_q[0] * (times == 2 ? (T)(2 << EXP_DEGREE) : 1));
    UNROLL(9) for (int i = 1; i <= EXP_DEGREE; i++) q = q * r + exp_q[i] * (times == 2 ? (T)(2 << (EXP_DEGREE - i)) : 1);
    return r + (r * r) * q;
}

INLINE V v_exp(V x)
{
    V scale, p = exp_parts(at_most(at_least(x, EXP_LOWEST), EXP_HIGHEST), 1, &scale);
    return scale * ((T)1 + p);
}

INLINE V v_sigmoid(V x)
{
    V scale, p = exp_parts(at_most(at_least(x, -EXP_HIGHEST), -EXP_LOWEST), -1, &scale);
    return (T)1 / ((T)1 + scale * ((T)1 + p));
}

/* tanh x = m / (2 - m), m = 1 - e^(-2|x|): no cancellation near 0, where n = 0 and m = -2 p. m is never negative. */
INLINE V v_tanh(V x)
{
    const VI bit = (VI)splat((T)-0.0);
    V scale, p = exp_parts(at_least((V)((VI)x | bit), MATH(-20.0f, -40.0)), 2, &scale);
    V m = ((T)1 - (T)0.5 * scale) - scale * p;
    return (V)((VI)(m / ((T)2 - m)) | ((VI)x & bit));
}
