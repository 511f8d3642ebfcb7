/* c = f c' + i g,  h = o tanh c. tanh c is computed again in backward: cheaper than carrying it through memory. */
NOINLINE void lstm_forward(const forward_patch *p, size_t rows, size_t vectors)
{
    PATCH_ROWS(r, rows)
        for (size_t j = 0; j < vectors * VW; j += VW) {
            T *gates = p->g + r * p->ldg + j;
            V i = v_sigmoid(load(gates)), f = v_sigmoid(load(gates + p->Hp));
            V g = v_tanh(load(gates + 2 * p->Hp)), o = v_sigmoid(load(gates + 3 * p->Hp));
            V c = f * load(p->c_prev + r * p->ldh + j) + i * g;
            store(gates, i);
            store(gates + p->Hp, f);
            store(gates + 2 * p->Hp, g);
            store(gates + 3 * p->Hp, o);
            store(p->c + r * p->ldh + j, c);
            store(p->h + r * p->ldh + j, o * v_tanh(c));
        }
}

NOINLINE void lstm_backward(const backward_patch *p, size_t rows, size_t vectors)
{
    PATCH_ROWS(r, rows)
        for (size_t j = 0; j < vectors * VW; j += VW) {
            const T *gates = p->g + r * p->ldg + j;
            T *d = p->d + r * p->ldg + j;
            V i = load(gates), f = load(gates + p->Hp), g = load(gates + 2 * p->Hp), o = load(gates + 3 * p->Hp);
            V tc = v_tanh(load(p->c + r * p->ldh + j));
            V dh = load(p->dh + r * p->ldh + j);
            V dc = load(p->dc + r * p->ldh + j) + dh * o * ((T)1 - tc * tc);
            store(d, dc * g * (i * ((T)1 - i)));
            store(d + p->Hp, dc * load(p->c_prev + r * p->ldh + j) * (f * ((T)1 - f)));
            store(d + 2 * p->Hp, dc * i * ((T)1 - g * g));
            store(d + 3 * p->Hp, dh * tc * (o * ((T)1 - o)));
            store(p->dc_prev + r * p->ldh + j, dc * f);
        }
}
