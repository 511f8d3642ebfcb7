/* h = (1 - z) h' + z n  (z_state 0)  or  z h' + (1 - z) n  (z_state 1).
 * Written as h = h' + w (n - h') with w = the weight of the candidate. Two passes, as for an LSTM: n waits for r. */
NOINLINE void gru_after_forward(const forward_patch *patch, size_t rows, size_t vectors, int z_state)
{
    const forward_patch p = *patch;
    PATCH_VECTORS(i, rows, j, vectors) {
        T *r = p.g + i * p.ldg + j;
        store(r, v_sigmoid(load(r)));
    }
    PATCH_VECTORS(i, rows, j, vectors) {
        T *gates = p.g + i * p.ldg + j;
        V z = v_sigmoid(load(gates + p.Hp));
        V n = v_tanh(load(gates + 2 * p.Hp) + load(gates) * load(gates + 3 * p.Hp));
        V h = load(p.h_prev + i * p.ldh + j);
        store(gates + p.Hp, z);
        store(gates + 2 * p.Hp, n);
        store(p.h + i * p.ldh + j, z_state ? n + z * (h - n) : h + z * (n - h));
    }
}

NOINLINE void gru_before_gates(const forward_patch *patch, size_t rows, size_t vectors)
{
    const forward_patch p = *patch;
    PATCH_VECTORS(i, rows, j, vectors) {
        T *gates = p.g + i * p.ldg + j;
        V r = v_sigmoid(load(gates));
        store(gates, r);
        store(gates + p.Hp, v_sigmoid(load(gates + p.Hp)));
        store(p.reset + i * p.ldh + j, r * load(p.h_prev + i * p.ldh + j));
    }
}

NOINLINE void gru_before_state(const forward_patch *patch, size_t rows, size_t vectors, int z_state)
{
    const forward_patch p = *patch;
    PATCH_VECTORS(i, rows, j, vectors) {
        T *gates = p.g + i * p.ldg + j;
        V z = load(gates + p.Hp), n = v_tanh(load(gates + 2 * p.Hp));
        V h = load(p.h_prev + i * p.ldh + j);
        store(gates + 2 * p.Hp, n);
        store(p.h + i * p.ldh + j, z_state ? n + z * (h - n) : h + z * (n - h));
    }
}

NOINLINE void gru_backward(const backward_patch *patch, size_t rows, size_t vectors, int z_state, int after)
{
    const backward_patch p = *patch;
    PATCH_VECTORS(i, rows, j, vectors) {
        const T *gates = p.g + i * p.ldg + j;
        T *d = p.d + i * p.ldg + j;
        V z = load(gates + p.Hp), n = load(gates + 2 * p.Hp);
        V h = load(p.h_prev + i * p.ldh + j), dh = load(p.dh + i * p.ldh + j);
        V weight = z_state ? (T)1 - z : z; /* of the candidate */
        V dz = z_state ? dh * (h - n) : dh * (n - h);
        V dn = dh * weight * ((T)1 - n * n);
        V direct = dh * ((T)1 - weight);
        store(d + p.Hp, dz * (z * ((T)1 - z)));
        store(d + 2 * p.Hp, dn);
        if (after) {
            V r = load(gates), hn = load(gates + 3 * p.Hp);
            store(d, dn * hn * (r * ((T)1 - r)));
            store(d + 3 * p.Hp, dn * r);
        }
        if (p.base) direct += load(p.base + i * p.ldb + j);
        store(p.dh_prev + i * p.ldh + j, direct);
    }
}

/* Reset before, second half: d_reset = W_n^T d_n is the gradient of r * h'. */
NOINLINE void gru_before_reset(const backward_patch *patch, size_t rows, size_t vectors)
{
    const backward_patch p = *patch;
    PATCH_VECTORS(i, rows, j, vectors) {
        V r = load(p.g + i * p.ldg + j), h = load(p.h_prev + i * p.ldh + j);
        V dr = load(p.d_reset + i * p.ldr + j);
        T *dh = p.dh_prev + i * p.ldh + j;
        store(p.d + i * p.ldg + j, dr * h * (r * ((T)1 - r)));
        store(dh, load(dh) + dr * r);
    }
}
