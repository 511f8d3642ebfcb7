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
#define EXP_LOWEST MATH(-88.0f, -709.0)
#define EXP_HIGHEST MATH(88.8f, 710.0)

/* p = e^r - 1 and *scale = 2^n, for y in [EXP_LOWEST, EXP_HIGHEST]; 2^n is 0 at the low end and inf at the high end. */
INLINE V exp_parts(V y, V *scale)
{
    V t = y * LOG2E + MAGIC;
    V n = t - MAGIC;
    V r = y - n * LN2_HIGH;
    r = r - n * LN2_LOW;
    *scale = (V)(((VI)t + EXPONENT_BIAS) << MANTISSA);
#if CRNN_DOUBLE
    V q = splat(2.51100498958587163e-08);
    q = q * r + 2.76326557593320308e-07;
    q = q * r + 2.75572423366803571e-06;
    q = q * r + 2.48014873260123366e-05;
    q = q * r + 1.98412698865909993e-04;
    q = q * r + 1.38888889478208914e-03;
    q = q * r + 8.3333333333222073e-03;
    q = q * r + 4.16666666665219907e-02;
    q = q * r + 1.66666666666666745e-01;
    q = q * r + 5.00000000000001022e-01;
#else
    V q = splat(1.38825217671323233e-3f);
    q = q * r + 8.36652057574360442e-3f;
    q = q * r + 4.16671998550661064e-2f;
    q = q * r + 1.66665436210311821e-1f;
    q = q * r + 4.99999981540596195e-1f;
#endif
    return r + (r * r) * q;
}

INLINE V v_exp(V x)
{
    V scale, p = exp_parts(at_most(at_least(x, EXP_LOWEST), EXP_HIGHEST), &scale);
    return scale * ((T)1 + p);
}

INLINE V v_sigmoid(V x)
{
    V scale, p = exp_parts(at_most(at_least(-x, EXP_LOWEST), EXP_HIGHEST), &scale);
    return (T)1 / ((T)1 + scale * ((T)1 + p));
}

/* tanh x = m / (2 - m), m = 1 - e^(-2|x|) = (1 - 2^n) - 2^n p: no cancellation near 0, where n = 0 and m = -p. */
INLINE V v_tanh(V x)
{
    V scale, p = exp_parts(at_least(vabs(x) * (T)-2, MATH(-40.0f, -80.0)), &scale);
    V m = ((T)1 - scale) - scale * p;
    return copysign_of(m / ((T)2 - m), x);
}
