/* dH = d W^T, from powers e in the place of d, over some columns of a slab: dot products for few rows of e, a product with W turned round
 * for many. */

/* Lines of a block of W that is wanted next, too scattered for the hardware to guess: `count` groups, `step` elements apart, of
 * `lines` lines each, `line_step` apart. */
typedef struct {
    const T *at;
    size_t count, step, lines, line_step, done;
} block_fetch;

/* Up to `part` / `whole` of the groups. */
INLINE void fetch_upto(block_fetch *f, size_t part, size_t whole)
{
    size_t stop = f->count * part / whole, lines = f->lines, line_step = f->line_step;
    const T *at = f->at + f->done * f->step;
    for (size_t i = f->done; i < stop; i++, at += f->step)
        for (size_t l = 0; l < lines; l++) __builtin_prefetch(at + l * line_step, 0, 2);
    if (stop > f->done) f->done = stop;
}

/* Columns at a time: long enough to hide the lane sums; what stays and what passes by fit the first level. Six rows of W and four of e
 * with 4 KiB each (10,000 words, 24 rows, Zen 5: 1 to 2 % of the output layer; 24,000 words: 9). */
#if CRNN_VREGS >= 32
#define SLAB_STEP (4096 / sizeof(T))
#else
#define SLAB_STEP 1536
#endif
/* The next rows of W are fetched where it is too large for its lines to arrive in time by themselves (3 MB: 1 to 3 % of the output layer
 * lost by it; 6 and 8 MB: nothing; 8 to 35 MB: 1 to 7 % gained). */
#define DOT_FETCH_BYTES ((size_t)6 << 20)

/* part (rows, H) (+)= e W^T over n columns. Six rows of W stay in the first level while e passes by, four rows at a time: six rows of e
 * that pass by four of W are half as many lines again from the second level (Zen 5, one thread, the whole output layer: 24 rows,
 * 8,000 words, 100 units 1.04 times as fast, 10,000 words, 200 units 1.08; 64 rows, 33,000 words, 256 units 1.13; 10 to 13 rows
 * 0.97 to 1.04). */
#if CRNN_VREGS >= 32
#define STREAMED_ROWS 13 /* and more, which are cut into threes and fours */
static void softmax_streamed(const softmax_call *call, T *part, const T *e, const T *w, size_t n, int add, int falling)
{
    const size_t H = call->args->hidden, ld = call->args->ld;
    const int fetch = H * ld * sizeof(T) > DOT_FETCH_BYTES;
    for (size_t k = 0, units; k < H; k += units) {
        units = next_rows(H - k, DOT_ROWS);
        const size_t left = H - k - units, more = left < DOT_ROWS ? left : DOT_ROWS;
        block_fetch next = {w + (k + units) * ld, fetch && more ? n / LINE : 0, LINE, more, ld, 0};
        for (size_t r = 0, rows; r < call->rows; r += rows) {
            rows = next_rows(call->rows - r, 4);
            fetch_upto(&next, r + rows, call->rows);
            const dot_source d = {.W = e + r * call->ldl, .ldw = call->ldl, .K = n, .v = w + k * ld, .ldv = ld, .falling = falling};
            streamed_dots[rows][units](&d, part + r * call->ldh + k, call->ldh, add);
        }
    }
}
#endif

/* The same for few rows, or few registers. */
#define DOT_BLOCK 40 /* rows of e that stay in a cache while W passes by */
static void softmax_dot(const softmax_call *call, T *part, const T *e, const T *w, size_t n, int add, int falling)
{
    size_t H = call->args->hidden, ld = call->args->ld;
    const int fetch = H * ld * sizeof(T) > DOT_FETCH_BYTES;
#if CRNN_VREGS >= 32
    if (call->rows >= STREAMED_ROWS) {
        softmax_streamed(call, part, e, w, n, add, falling);
        return;
    }
#endif
    for (size_t r0 = 0; r0 < call->rows; r0 += DOT_BLOCK) {
        size_t r1 = r0 + DOT_BLOCK < call->rows ? r0 + DOT_BLOCK : call->rows;
        for (size_t k = 0; k < H; k += 4) {
            size_t columns = H - k < 4 ? H - k : 4, more = H - k - columns < 4 ? H - k - columns : 4;
            block_fetch next = {w + (k + columns) * ld, fetch && more ? n / LINE : 0, LINE, more, ld, 0};
            for (size_t r = r0, tile; r < r1; r += tile) {
                tile = next_rows(r1 - r, DOT_ROWS);
                fetch_upto(&next, r + tile - r0, r1 - r0);
                dot_source d = {.W = w + k * ld, .ldw = ld, .K = n, .v = e + r * call->ldl, .ldv = call->ldl,
                                .falling = falling};
                dots[PLAIN][tile](&d, NULL, columns, part + r * call->ldh + k, call->ldh, add);
            }
        }
    }
}

/* The same for many rows: W is turned round first, some of its rows at a time, into a small room that stays in the second
 * level. Its columns then pass by blocks of d as in any other product, without sums over lanes. The two meet at about 200
 * rows (1 to 5 % of the whole output layer at 32 to 64 and, the other way, at 400). */
#define TURN_ROWS 200
#define TURN_STEP 512 /* columns at a time */
#define TURN_UNITS (((size_t)448 << 10) / (TURN_STEP * CRNN_VBYTES)) /* vectors of W's rows at a time */
#define TURN_BLOCK 24 /* rows of d: whole tiles of 6 and of 8 */
static void softmax_turned(const softmax_call *call, T *part, T *room, const T *e, const T *w, size_t n, const T *next, int add)
{
    size_t H = call->args->hidden, ld = call->args->ld, vectors = tile_count(H, VW), groups = tile_count(vectors, TURN_UNITS);
    for (size_t g = 0; g < groups; g++) {
        size_t u0 = tile_edge(vectors, groups, g), u1 = tile_edge(vectors, groups, g + 1), count = tile_count(u1 - u0, 4);
        const int more = g + 1 < groups;
        block_fetch fetch = {more ? w + u1 * VW * ld : next, more ? H - u1 * VW : next ? H : 0, ld, n / LINE, LINE, 0};
        for (size_t i = 0; i < count; i++) {
            unit_tile at = nth_tile(u0, u1, 4, i, 0);
            for (size_t j = 0; j < at.units; j++) {
                size_t unit = (at.u + j) * VW, valid = H - unit < VW ? H - unit : VW;
                pack_transposed(room + (at.u - u0) * VW * n + j * VW, at.units * VW, w + unit * ld, ld, valid, n,
                                NULL);
            }
        }
        for (size_t r = 0, rows; r < call->rows; r += rows) {
            rows = call->rows - r < TURN_BLOCK ? call->rows - r : TURN_BLOCK;
            const size_t left = call->rows - r - rows;
            tile_fetch later = {.far = 1, .at = (const char *)(e + (r + rows) * call->ldl), .rows = left < TURN_BLOCK ? left : TURN_BLOCK,
                                .step = call->ldl * sizeof(T)};
            for (size_t i = 0, asked = 0; i < count; i++) {
                unit_tile at = nth_tile(u0, u1, 4, i, 0);
                const size_t nv = at.units, half = (size_t)half_left((at.u + nv) * VW, H);
                fetch_upto(&fetch, r * count + (i + 1) * rows, call->rows * count);
                for (size_t done = 0, mr; done < rows; done += mr) {
                    T *out = part + (r + done) * call->ldh + at.u * VW;
                    mr = tile_rows(rows - done, (int)nv);
                    if (asked >= n) later.rows = 0; /* all of their columns are under way */
                    tiles[half][nv][mr](n, e + (r + done) * call->ldl, call->ldl, room + (at.u - u0) * VW * n, nv * VW, out, call->ldh,
                                        add ? out : NULL, call->ldh, contiguous_off, &later);
                    const size_t lines = tile_count(nv * VW, LINE);
                    later.at += lines * CRNN_LINE;
                    asked += lines * LINE;
                }
            }
        }
    }
}
