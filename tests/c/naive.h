/* The equations in plain double loops, one sequence and one step at a time: the oracle of test_cells.c.
 *
 * Backward follows the definition of truncation to the letter: the loss of every step t goes back on its own, down to
 * the first step r(t) that the scheme lets it reach, and everything is added up. */
#ifndef CRNN_TEST_NAIVE_H
#define CRNN_TEST_NAIVE_H
#include "check.h"

typedef struct {
    double *weight_ih, *weight_hh, *bias_ih, *bias_hh; /* (G*H, input), (G*H, H), (G*H), (G*H); biases may be null */
} naive_weights;

typedef struct {
    crnn_cell cell;
    int reset_after, z_state;
    size_t input, hidden, layers, directions;
    size_t batch, steps;
    const size_t *lengths; /* (B), longest first */
    const int64_t *offsets;
    naive_weights *weights; /* (L*D) */
    const double *x;        /* (R, input) */
    const double *h0, *c0;  /* (L*D, B, H) */
    const double *masks;    /* (L-1, R, D*H) or null */
} naive_net;

/* One step's values; arrays of `hidden` except x. */
typedef struct {
    double *x, *h, *c, *gate[4], *q, *tanh_c, *h_new, *c_new;
} naive_record;

static inline size_t gates_of(crnn_cell cell) { return cell == CRNN_LSTM ? 4 : cell == CRNN_GRU ? 3 : 1; }
static inline size_t rows_of(const naive_net *n) { return (size_t)n->offsets[n->steps]; }
static inline size_t width_of(const naive_net *n, size_t layer)
{
    return layer ? n->directions * n->hidden : n->input;
}
static inline double naive_sigmoid(double a) { return a >= 0 ? 1 / (1 + exp(-a)) : exp(a) / (1 + exp(a)); }

static inline double dot_row(const double *matrix, size_t row, size_t columns, const double *v)
{
    double sum = 0;
    for (size_t j = 0; j < columns; j++) sum += matrix[row * columns + j] * v[j];
    return sum;
}

static inline double naive_bias(const double *bias, size_t i) { return bias ? bias[i] : 0; }

static inline void naive_step(const naive_net *n, const naive_weights *w, size_t width, naive_record *r)
{
    size_t H = n->hidden;
    for (size_t g = 0; g < gates_of(n->cell); g++) {
        for (size_t j = 0; j < H; j++) {
            size_t row = g * H + j;
            double input = dot_row(w->weight_ih, row, width, r->x) + naive_bias(w->bias_ih, row);
            double a;
            if (n->cell == CRNN_GRU && g == 2 && n->reset_after) {
                r->q[j] = dot_row(w->weight_hh, row, H, r->h) + naive_bias(w->bias_hh, row);
                a = input + r->gate[0][j] * r->q[j];
            } else {
                a = input + dot_row(w->weight_hh, row, H, n->cell == CRNN_GRU && g == 2 ? r->q : r->h)
                  + naive_bias(w->bias_hh, row);
            }
            int is_tanh = n->cell == CRNN_RNN_TANH || (n->cell != CRNN_RNN_SIGMOID && g == 2);
            r->gate[g][j] = n->cell == CRNN_RNN_RELU ? fmax(a, 0) : is_tanh ? tanh(a) : naive_sigmoid(a);
        }
        if (n->cell == CRNN_GRU && g == 1 && !n->reset_after)
            for (size_t j = 0; j < H; j++) r->q[j] = r->gate[0][j] * r->h[j];
    }
    for (size_t j = 0; j < H; j++) {
        if (n->cell == CRNN_LSTM) {
            r->c_new[j] = r->gate[1][j] * r->c[j] + r->gate[0][j] * r->gate[2][j];
            r->tanh_c[j] = tanh(r->c_new[j]);
            r->h_new[j] = r->gate[3][j] * r->tanh_c[j];
        } else if (n->cell == CRNN_GRU) {
            double z = n->z_state ? 1 - r->gate[1][j] : r->gate[1][j];
            r->h_new[j] = (1 - z) * r->h[j] + z * r->gate[2][j];
        } else {
            r->h_new[j] = r->gate[0][j];
        }
    }
}

/* d_pre of every gate's input side into da, of its recurrent side into db (they differ for the reset-after candidate);
 * the candidate's recurrent operand is q where reset comes before. dh and dc are replaced by the previous step's. */
static inline void naive_step_backward(const naive_net *n, const naive_weights *w, const naive_record *r, double *dh,
                                       double *dc, double *da, double *db, double *dq)
{
    size_t H = n->hidden;
    double *dh_old = allocate(H * sizeof(double));
    memset(dh_old, 0, H * sizeof(double));
    for (size_t j = 0; j < H; j++) {
        if (n->cell == CRNN_LSTM) {
            double i = r->gate[0][j], f = r->gate[1][j], g = r->gate[2][j], o = r->gate[3][j], t = r->tanh_c[j];
            double d = dc[j] + dh[j] * o * (1 - t * t);
            da[j] = d * g * i * (1 - i);
            da[H + j] = d * r->c[j] * f * (1 - f);
            da[2 * H + j] = d * i * (1 - g * g);
            da[3 * H + j] = dh[j] * t * o * (1 - o);
            dc[j] = d * f;
        } else if (n->cell == CRNN_GRU) {
            double z = r->gate[1][j], c = r->gate[2][j], weight = n->z_state ? 1 - z : z;
            double dz = dh[j] * (c - r->h[j]) * (n->z_state ? -1 : 1);
            da[H + j] = dz * z * (1 - z);
            da[2 * H + j] = dh[j] * weight * (1 - c * c);
            dh_old[j] = dh[j] * (1 - weight);
        } else {
            double s = r->h_new[j];
            double slope = n->cell == CRNN_RNN_TANH ? 1 - s * s : n->cell == CRNN_RNN_SIGMOID ? s * (1 - s) : s > 0;
            da[j] = dh[j] * slope;
        }
    }
    memcpy(db, da, gates_of(n->cell) * H * sizeof(double));
    if (n->cell == CRNN_GRU) {
        for (size_t j = 0; j < H; j++) {
            double gate = r->gate[0][j], dr;
            if (n->reset_after) {
                dr = da[2 * H + j] * r->q[j];
                db[2 * H + j] = da[2 * H + j] * gate;
            } else {
                dq[j] = 0;
                for (size_t k = 0; k < H; k++) dq[j] += w->weight_hh[(2 * H + k) * H + j] * da[2 * H + k];
                dr = dq[j] * r->h[j];
                dh_old[j] += dq[j] * gate;
            }
            da[j] = db[j] = dr * gate * (1 - gate);
        }
    }
    for (size_t row = 0; row < gates_of(n->cell) * H; row++) {
        if (n->cell == CRNN_GRU && !n->reset_after && row >= 2 * H) break;
        for (size_t k = 0; k < H; k++) dh_old[k] += w->weight_hh[row * H + k] * db[row];
    }
    memcpy(dh, dh_old, H * sizeof(double));
    free(dh_old);
}

typedef struct {
    double *y, *h_n, *c_n;        /* forward */
    double *dx, *dh0, *dc0;       /* backward */
    double *gate_rows;            /* (R, G*H): gradient of layer 0's input-side pre-activations, direction 0 */
    naive_weights *grads;         /* (L*D) */
    naive_record *records;        /* [(l*D + d) * R + row] */
} naive_result;

static inline double *zeros(size_t n)
{
    double *a = allocate(n * sizeof(double));
    memset(a, 0, n * sizeof(double));
    return a;
}

static inline naive_result naive_new(const naive_net *n)
{
    size_t R = rows_of(n), H = n->hidden, D = n->directions, LD = n->layers * D, G = gates_of(n->cell);
    naive_result out = {
        .y = zeros(R * D * H), .h_n = zeros(LD * n->batch * H), .c_n = zeros(LD * n->batch * H),
        .dx = zeros(R * n->input), .dh0 = zeros(LD * n->batch * H), .dc0 = zeros(LD * n->batch * H),
        .gate_rows = zeros(R * G * H), .grads = allocate(LD * sizeof(naive_weights)),
        .records = allocate(LD * R * sizeof(naive_record)),
    };
    for (size_t at = 0; at < LD; at++) {
        size_t width = width_of(n, at / D);
        out.grads[at] = (naive_weights){zeros(G * H * width), zeros(G * H * H), zeros(G * H), zeros(G * H)};
        for (size_t row = 0; row < R; row++) {
            naive_record *r = &out.records[at * R + row];
            double *block = zeros(width + 10 * H);
            r->x = block;
            block += width;
            r->h = block, r->c = block + H, r->q = block + 2 * H, r->tanh_c = block + 3 * H;
            r->h_new = block + 4 * H, r->c_new = block + 5 * H;
            for (size_t g = 0; g < 4; g++) r->gate[g] = block + (6 + g) * H;
        }
    }
    return out;
}

static inline void naive_free(const naive_net *n, naive_result *out)
{
    size_t LD = n->layers * n->directions;
    for (size_t at = 0; at < LD; at++) {
        for (size_t row = 0; row < rows_of(n); row++) free(out->records[at * rows_of(n) + row].x);
        free(out->grads[at].weight_ih), free(out->grads[at].weight_hh);
        free(out->grads[at].bias_ih), free(out->grads[at].bias_hh);
    }
    free(out->records), free(out->grads), free(out->gate_rows);
    free(out->y), free(out->h_n), free(out->c_n), free(out->dx), free(out->dh0), free(out->dc0);
}

static inline void naive_forward(const naive_net *n, naive_result *out)
{
    size_t R = rows_of(n), H = n->hidden, D = n->directions;
    for (size_t b = 0; b < n->batch; b++) {
        for (size_t at = 0; at < n->layers * D; at++) {
            size_t layer = at / D, direction = at % D, width = width_of(n, layer);
            const double *h = n->h0 + (at * n->batch + b) * H, *c = n->c0 + (at * n->batch + b) * H;
            for (size_t s = 0; s < n->lengths[b]; s++) {
                size_t t = direction ? n->lengths[b] - 1 - s : s, row = (size_t)n->offsets[t] + b;
                naive_record *r = &out->records[at * R + row];
                for (size_t k = 0; k < width; k++) {
                    if (!layer) r->x[k] = n->x[row * width + k];
                    else r->x[k] = out->records[((layer - 1) * D + k / H) * R + row].h_new[k % H]
                                 * (n->masks ? n->masks[((layer - 1) * R + row) * width + k] : 1);
                }
                memcpy(r->h, h, H * sizeof(double));
                memcpy(r->c, c, H * sizeof(double));
                naive_step(n, &n->weights[at], width, r);
                h = r->h_new;
                c = r->c_new;
                if (layer == n->layers - 1) memcpy(out->y + (row * D + direction) * H, h, H * sizeof(double));
            }
            memcpy(out->h_n + (at * n->batch + b) * H, h, H * sizeof(double));
            memcpy(out->c_n + (at * n->batch + b) * H, c, H * sizeof(double));
        }
    }
}

static inline size_t first_step(crnn_truncation truncation, size_t k1, size_t k2, size_t t)
{
    if (truncation == CRNN_FULL) return 0;
    if (truncation == CRNN_WINDOW) return t + 1 > k1 ? t + 1 - k1 : 0;
    size_t end = (t / k1 + 1) * k1; /* one past the nominal last step of t's chunk */
    return end > k2 ? end - k2 : 0;
}

/* Add the gradient of sequence b's loss at step t (and of its final state when t is its last step). */
static inline void naive_backward_one(const naive_net *n, naive_result *out, size_t b, size_t t, size_t first,
                                      const double *dy, const double *dh_n, const double *dc_n)
{
    size_t R = rows_of(n), H = n->hidden, D = n->directions, G = gates_of(n->cell), len = n->lengths[b];
    double *d_above = zeros(len * D * H); /* gradient of the layer's output, [time][direction*H] */
    double *dh = zeros(H), *dc = zeros(H), *da = zeros(G * H), *db = zeros(G * H), *dq = zeros(H);
    if (dy) memcpy(d_above + t * D * H, dy + ((size_t)n->offsets[t] + b) * D * H, D * H * sizeof(double));
    for (size_t layer = n->layers; layer-- > 0;) {
        size_t width = width_of(n, layer);
        double *d_below = zeros(len * width);
        for (size_t direction = 0; direction < D; direction++) {
            size_t at = layer * D + direction;
            const naive_weights *w = &n->weights[at];
            naive_weights *g = &out->grads[at];
            for (size_t j = 0; j < H; j++) {
                dh[j] = t == len - 1 && dh_n ? dh_n[(at * n->batch + b) * H + j] : 0;
                dc[j] = t == len - 1 && dc_n ? dc_n[(at * n->batch + b) * H + j] : 0;
            }
            for (size_t s = len; s-- > first;) {
                size_t time = direction ? len - 1 - s : s, row = (size_t)n->offsets[time] + b;
                const naive_record *r = &out->records[at * R + row];
                for (size_t j = 0; j < H; j++) dh[j] += d_above[(time * D + direction) * H + j];
                naive_step_backward(n, w, r, dh, dc, da, db, dq);
                for (size_t i = 0; i < G * H; i++) {
                    int on_q = n->cell == CRNN_GRU && !n->reset_after && i >= 2 * H;
                    for (size_t k = 0; k < width; k++) {
                        g->weight_ih[i * width + k] += da[i] * r->x[k];
                        d_below[time * width + k] += w->weight_ih[i * width + k] * da[i];
                    }
                    for (size_t k = 0; k < H; k++) g->weight_hh[i * H + k] += db[i] * (on_q ? r->q[k] : r->h[k]);
                    g->bias_ih[i] += da[i];
                    g->bias_hh[i] += db[i];
                    if (!at) out->gate_rows[row * G * H + i] += da[i];
                }
            }
            for (size_t j = 0; j < H && first == 0; j++) {
                out->dh0[(at * n->batch + b) * H + j] += dh[j];
                out->dc0[(at * n->batch + b) * H + j] += dc[j];
            }
        }
        for (size_t time = 0; time < len; time++) {
            size_t row = (size_t)n->offsets[time] + b;
            for (size_t k = 0; k < width; k++) {
                if (!layer) out->dx[row * width + k] += d_below[time * width + k];
                else if (n->masks) d_below[time * width + k] *= n->masks[((layer - 1) * R + row) * width + k];
            }
        }
        free(d_above);
        d_above = d_below;
    }
    free(d_above), free(dh), free(dc), free(da), free(db), free(dq);
}

static inline void naive_backward(const naive_net *n, naive_result *out, crnn_truncation truncation, size_t k1, size_t k2,
                                  const double *dy, const double *dh_n, const double *dc_n)
{
    size_t H = n->hidden;
    for (size_t b = 0; b < n->batch; b++) {
        for (size_t t = 0; t < n->lengths[b]; t++)
            naive_backward_one(n, out, b, t, first_step(truncation, k1, k2, t), dy, dh_n, dc_n);
        if (n->lengths[b]) continue;
        for (size_t at = 0; at < n->layers * n->directions; at++) { /* no step: the final state is the initial one */
            for (size_t j = at * n->batch * H + b * H, end = j + H; j < end; j++) {
                out->dh0[j] += dh_n ? dh_n[j] : 0;
                out->dc0[j] += dc_n ? dc_n[j] : 0;
            }
        }
    }
}
#endif
