/* exp, tanh and sigmoid on vectors. All three start from e^y = 2^n (1 + p), n = round(y / ln 2), |r| <= ln(2)/2,
 * p = e^r - 1 by its Taylor polynomial: degree 7 (float, truncation below 2^-26 relative to p) or 13 (double, 2^-56).
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
    V q = splat(1.6059043836821613e-10); /* 1/13! */
    q = q * r + 2.08767569878681e-09;
    q = q * r + 2.505210838544172e-08;
    q = q * r + 2.755731922398589e-07;
    q = q * r + 2.7557319223985893e-06;
    q = q * r + 2.48015873015873e-05;
    q = q * r + 1.984126984126984e-04;
    q = q * r + 1.3888888888888889e-03;
    q = q * r + 8.333333333333333e-03;
    q = q * r + 4.1666666666666664e-02;
    q = q * r + 1.6666666666666666e-01;
#else
    V q = splat(1.98412698e-4f); /* 1/7! */
    q = q * r + 1.38888889e-3f;
    q = q * r + 8.33333333e-3f;
    q = q * r + 4.16666667e-2f;
    q = q * r + 1.66666667e-1f;
#endif
    q = q * r + (T)0.5;
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

/* tanh x = -m / (2 + m), m = e^(-2|x|) - 1 = 2^n p + (2^n - 1): no cancellation near 0, where n = 0 and m = p. */
INLINE V v_tanh(V x)
{
    V scale, p = exp_parts(at_least(vabs(x) * (T)-2, MATH(-40.0f, -80.0)), &scale);
    V m = scale * p + (scale - (T)1);
    return copysign_of(-m / ((T)2 + m), x);
}
