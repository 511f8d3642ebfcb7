/* Tiles of units, and the weights packed for them. */

/* Unit vectors [u, u + units): place n among the tiles of [u0, u1). Every other step walks them backwards, so that the
 * weights touched last, still in cache, come first again. */
typedef struct {
    size_t u, units;
} unit_tile;

INLINE unit_tile nth_tile(size_t u0, size_t u1, size_t most, size_t n, int backwards)
{
    size_t count = tile_count(u1 - u0, most), place = backwards ? count - 1 - n : n, first = tile_edge(u1 - u0, count, place);
    return (unit_tile){u0 + first, tile_edge(u1 - u0, count, place + 1) - first};
}

/* Which tiles a thread packs: those of the units [*u0, *u1) that it works on itself, or its share of the tiles of all. */
typedef struct {
    size_t u0, u1, first, last;
    int again; /* the same weights as in the last call, in the same place: likely */
} pack_range;

static pack_range pack_share(int by_units, size_t vectors, size_t most, int rank, int size)
{
    pack_range r = {.u0 = 0, .u1 = vectors};
    if (by_units) {
        crnn_share(vectors, 1, rank, size, &r.u0, &r.u1);
        r.last = tile_count(r.u1 - r.u0, most);
    } else {
        crnn_share(tile_count(vectors, most), 1, rank, size, &r.first, &r.last);
    }
    return r;
}

/* Packing for y = x W^T: for every tile of units, for every k, the vectors (unit, gate) side by side.
 * A tile that starts at unit u begins at u * gates * VW * K, so every split into tiles finds its data in place. */
static void pack_tile(const cell_product *product, size_t H, const T *W, size_t ldw, size_t K, T *tile, unit_tile at, int again)
{
    size_t g = (size_t)product->gates;
    for (size_t j = 0; j < at.units * g; j++) {
        size_t first = (at.u + j / g) * VW;
        const T *rows = W + ((size_t)product->gate[j % g] * H + first) * ldw;
        size_t valid = first >= H ? 0 : H - first < VW ? H - first : VW;
        size_t after = (at.u + (j + 1) / g) * VW;
        const T *next = after < H ? W + ((size_t)product->gate[(j + 1) % g] * H + after) * ldw : NULL;
        (again ? pack_transposed_again : pack_transposed)(tile + j * VW, at.units * g * VW, rows, ldw, valid, K, next);
    }
}

static void pack_forward(const cell_product *product, size_t H, const T *W, size_t ldw, size_t K, T *dst, pack_range range)
{
    for (size_t n = range.first; n < range.last; n++) {
        unit_tile at = nth_tile(range.u0, range.u1, product->units, n, 0);
        pack_tile(product, H, W, ldw, K, dst + at.u * (size_t)product->gates * VW * K, at, range.again);
    }
}

/* Packing for dx = d W: K runs over the gates' rows of W, whose first `width` columns are packed, in vectors. */
#define BACK_UNITS 4
static void pack_backward(const cell_product *product, size_t H, const T *W, size_t width, T *dst, pack_range range)
{
    size_t K = (size_t)product->gates * H;
    for (size_t n = range.first; n < range.last; n++) {
        unit_tile at = nth_tile(range.u0, range.u1, BACK_UNITS, n, 0);
        size_t first = at.u * VW, row_size = at.units * VW;
        size_t valid = first >= width ? 0 : width - first < row_size ? width - first : row_size;
        T *tile = dst + first * K;
        for (int g = 0; g < product->gates; g++)
            for (size_t k = 0; k < H; k++, tile += row_size) {
                memcpy(tile, W + ((size_t)product->gate[g] * H + k) * width + first, valid * sizeof(T));
                for (size_t l = valid; l < row_size; l++) tile[l] = 0;
            }
    }
}

/* Offsets of the vectors of a forward tile within a row of gates. */
INLINE int tile_offsets(const cell_product *product, size_t Hp, size_t u, size_t units, size_t off[4])
{
    int nv = 0;
    for (size_t i = 0; i < units; i++)
        for (int g = 0; g < product->gates; g++) off[nv++] = (size_t)product->slot[g] * Hp + (u + i) * VW;
    return nv;
}

/* How many of them, the last ones, are half vectors. */
INLINE int tile_halves(const cell_product *product, size_t H, size_t u, size_t units)
{
    return half_left((u + units) * VW, H) * product->gates;
}
