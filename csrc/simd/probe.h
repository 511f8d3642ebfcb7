/* Loops that show what the machine can do: the roof above every other figure. */

/* Twelve independent chains: enough for two FMA units of latency five. Where they start is hidden from the compiler, which
 * would find that 1 is a fixed point of x * 0.999 + 0.001 and save that chain. */
NOINLINE double kernel_fma_loop(size_t iterations)
{
    static const volatile T start[3] = {(T)0.5, (T)0.999, (T)1e-3};
    V acc[12], a = splat(start[1]), b = splat(start[2]);
    UNROLL(12) for (int i = 0; i < 12; i++) acc[i] = splat((T)i + start[0]);
    for (size_t n = 0; n < iterations; n++) {
        UNROLL(12) for (int i = 0; i < 12; i++) acc[i] = acc[i] * a + b;
        __asm__ __volatile__("" : : : "memory");
    }
    V sum = acc[0];
    UNROLL(12) for (int i = 1; i < 12; i++) sum += acc[i];
    return (double)lane_sum(sum);
}

/* Reads a block of whole vectors; a piece at a time from the end where `backwards`. */
#define PROBE_PIECE ((size_t)4096 / sizeof(T))
NOINLINE double kernel_read_loop(const void *data, size_t bytes, int backwards)
{
    V sums[4] = {{0}};
    size_t pieces = bytes / sizeof(T) / PROBE_PIECE;
    for (size_t n = 0; n < pieces; n++) {
        const T *from = (const T *)data + (backwards ? pieces - 1 - n : n) * PROBE_PIECE;
        for (size_t k = 0; k < PROBE_PIECE; k += 4 * VW) UNROLL(4) for (int i = 0; i < 4; i++) sums[i] += load(from + k + (size_t)i * VW);
    }
    return (double)lane_sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}
