/* One step of a layer's forward recurrence: the recurrent product, on top of what the input has put into the gates, and the cell. */

/* The cell works on as many rows of a column of tiles at once: their sums are in the first level still, and the ends of its loops are as
 * long as two or three vectors (AVX2 on Zen 3, 3 rows at a time and 16: 7.7 and 7.0 % of an LSTM's inference). */
#define CELL_ROWS 16

/* Rows whose sums are complete: `rows` from packed row `row` on, of the sequences from i0 on; units [u, u + units). */
INLINE void cell_of_step(const run_state *s, const layer_run *run, size_t row, size_t before, size_t gate_base, size_t i0, size_t rows,
                         size_t u, size_t units, int candidate)
{
    const size_t col = u * VW, prev = before * s->ldh + col, next = (s->B + row) * s->ldh + col;
    const size_t prev_c = cell_row(s, before, i0) * s->ldh + col, next_c = cell_row(s, s->B + row, i0) * s->ldh + col;
    forward_patch patch = {run->gates + (row - gate_base) * s->ldg + col, s->ldg, s->Hp, run->h + prev,
                           run->c ? run->c + prev_c : NULL, run->h + next, run->c ? run->c + next_c : NULL, s->ldh,
                           run->reset ? run->reset + (row - gate_base) * s->ldh + col : NULL};
    if (candidate) gru_before_state(&patch, rows, units, s->shape.z_state);
    else cell_forward(&s->shape, &patch, rows, units);
}

/* The same as forward_step of a single row, all units, by weights that are near. The cell works on several columns of tiles, whose
 * gate functions then do not wait for one another, nor the next products for them (Zen 5, one thread, forward: LSTMs of 100 to 150
 * units 1.03 to 1.07, RNNs of 128 and 200 1.05 to 1.07; with pairs of tiles, simd/chains.h, LSTMs of 32 and 48 units 1.30, RNNs of
 * 100 1.35, GRUs of 64 that reset after 1.49). Where threads share the units, or rows are two to seven, it gains nothing or
 * loses up to 7 %. */
#define ROW_BYTES ((size_t)384 << 10)
#define ROW_VECTORS 8
static void forward_row(const run_state *s, const layer_run *run, const cell_product *product, const T *pack, size_t t,
                        size_t gate_base, size_t i0, int candidate)
{
    const size_t row = (size_t)s->offsets[t] + i0, before = state_row_before(s, t) + i0, H = s->H, g = (size_t)product->gates;
    const size_t count = tile_count(s->UV, product->units);
    T *gates = run->gates + (row - gate_base) * s->ldg;
    const T *a = candidate ? run->reset + (row - gate_base) * s->ldh : run->h + before * s->ldh;
    const int pairs = g * s->Hp * H * sizeof(T) <= s->first_level;
    for (size_t n = 0, waiting = 0, u = s->UV; n < count;) {
        const unit_tile tile = nth_tile(0, s->UV, product->units, n++, t & 1);
        size_t off[8];
        const int nv = tile_offsets(product, s->Hp, tile.u, tile.units, off);
        const T *b = pack + tile.u * g * VW * H;
        if (tile.u < u) u = tile.u;
        waiting += tile.units;
        if (pairs && n < count) {
            const unit_tile next = nth_tile(0, s->UV, product->units, n++, t & 1);
            const int more = tile_offsets(product, s->Hp, next.u, next.units, off + nv);
            chains[nv][more](H, a, b, pack + next.u * g * VW * H, gates, gates, off);
            if (next.u < u) u = next.u;
            waiting += next.units;
        } else {
            tiles[0][nv][1](H, a, s->ldh, b, (size_t)nv * VW, gates, s->ldg, gates, s->ldg, off, NULL);
        }
        if (waiting < ROW_VECTORS && n < count) continue;
        cell_of_step(s, run, row, before, gate_base, i0, 1, u, waiting, candidate);
        waiting = 0, u = s->UV;
    }
}

/* One step of this thread's rows and units: recurrent product into tiles, cell while they are in cache. */
static void forward_step(const run_state *s, const layer_run *run, const cell_product *product, const T *pack,
                         size_t t, size_t gate_base, size_t i0, size_t i1, size_t u0, size_t u1, int candidate)
{
    size_t n = block_rows(s, t), hi = i1 < n ? i1 : n;
    if (i0 >= hi) return;
    size_t row = (size_t)s->offsets[t] + i0, before = state_row_before(s, t) + i0;
    size_t g = (size_t)product->gates;
    size_t K = t == 0 && s->zero_start ? 0 : s->H; /* nothing to multiply with a state of zeros */
    if (hi - i0 == 1 && K && u1 - u0 == s->UV && g * s->Hp * K * sizeof(T) <= ROW_BYTES) {
        forward_row(s, run, product, pack, t, gate_base, i0, candidate);
        return;
    }
    T *gates = run->gates + (row - gate_base) * s->ldg;
    const T *a = candidate ? run->reset + (row - gate_base) * s->ldh : run->h + before * s->ldh;
    size_t count = u1 > u0 ? tile_count(u1 - u0, product->units) : 0;
    for (size_t n_tile = 0; n_tile < count; n_tile++) {
        unit_tile tile = nth_tile(u0, u1, product->units, n_tile, t & 1), next_tile = {0};
        if (n_tile + 1 < count) next_tile = nth_tile(u0, u1, product->units, n_tile + 1, t & 1);
        size_t u = tile.u, units = tile.units, off[4];
        int nv = tile_offsets(product, s->Hp, u, units, off), halves = tile_halves(product, s->H, u, units);
        const T *b = pack + u * g * VW * s->H, *next_b = next_tile.units ? pack + next_tile.u * g * VW * s->H : NULL;
        fetch_plan plan = fetch_ahead(s->UV * g * VW * K, next_b, g * next_tile.units * VW * K, hi - i0, nv);
        for (size_t done = 0, sums = 0; done < hi - i0;) {
            size_t mr = tile_rows(hi - i0 - sums, nv);
            const tile_fetch fetch = fetch_share(&plan, gates_are_far(s));
            T *c = gates + sums * s->ldg;
            if (K)
                tiles[halves][nv][mr](K, a + sums * s->ldh, s->ldh, b, (size_t)nv * VW, c, s->ldg, c, s->ldg, off, &fetch);
            sums += mr;
            const size_t rows = sums - done; /* that wait for the cell */
            if (rows < CELL_ROWS && sums < hi - i0) continue;
            cell_of_step(s, run, row + done, before + done, gate_base, i0 + done, rows, u, units, candidate);
            done = sums;
        }
    }
}
