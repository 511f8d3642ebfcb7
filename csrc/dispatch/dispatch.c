/* Which kernels run: chosen once, when first asked, among those compiled in (CRNN_HAVE_<ISA>) and supported by the
 * processor and the operating system. CRNN_ISA is read by the Python side, not here. */
#include "internal.h"
#include <stdatomic.h>
#include <string.h>

typedef struct {
    const char *name;
    const crnn_kernels *kernels[2]; /* by dtype */
    int (*supported)(void);
} isa_entry;

static int always(void) { return 1; }

#define FIRST_LEVEL_BYTES ((size_t)32 << 10) /* where the processor does not tell */

#if defined(__x86_64__)
#include <cpuid.h>

/* Asked once: in a virtual machine cpuid takes microseconds, and every call of a layer wants to know. */
int crnn_processor_is_amd(void)
{
    static _Atomic int known; /* 1 + the answer */
    if (!atomic_load_explicit(&known, memory_order_relaxed)) {
        uint32_t a = 0, b = 0, c = 0, d = 0; /* the maker's name lies in b, d, c: AuthenticAMD */
        const int amd = __get_cpuid(0, &a, &b, &c, &d) && b == 0x68747541 && d == 0x69746e65 && c == 0x444d4163;
        atomic_store_explicit(&known, 1 + amd, memory_order_relaxed);
    }
    return atomic_load_explicit(&known, memory_order_relaxed) == 2;
}

/* The leaf that describes caches, of which the first level's data come first: ways, partitions, line, sets, each less one. */
size_t crnn_first_level(void)
{
    static _Atomic size_t known;
    if (!atomic_load_explicit(&known, memory_order_relaxed)) {
        const uint32_t leaf = crnn_processor_is_amd() ? 0x8000001D : 4;
        uint32_t a = 0, b = 0, c = 0, d = 0;
        size_t bytes = FIRST_LEVEL_BYTES;
        if (__get_cpuid_count(leaf, 0, &a, &b, &c, &d) && (a & 31) == 1 && (a >> 5 & 7) == 1)
            bytes = (size_t)((b >> 22) + 1) * ((b >> 12 & 1023) + 1) * ((b & 4095) + 1) * ((size_t)c + 1);
        atomic_store_explicit(&known, bytes, memory_order_relaxed);
    }
    return atomic_load_explicit(&known, memory_order_relaxed);
}
#else
int crnn_processor_is_amd(void) { return 0; }
size_t crnn_first_level(void) { return FIRST_LEVEL_BYTES; }
#endif

#if defined(CRNN_HAVE_AVX2) || defined(CRNN_HAVE_AVX512)
static uint64_t enabled_state(void)
{
    uint32_t low, high;
    __asm__ __volatile__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

/* Highest leaf first, then whether the system saves the registers (OSXSAVE, XGETBV), then the features. */
static int has(uint64_t state, uint32_t leaf1_ecx, uint32_t leaf7_ebx)
{
    uint32_t a, b, c, d;
    if (__get_cpuid_max(0, NULL) < 7) return 0;
    __cpuid(1, a, b, c, d);
    if (!(c & (1u << 27)) || (c & leaf1_ecx) != leaf1_ecx) return 0;
    if ((enabled_state() & state) != state) return 0;
    __cpuid_count(7, 0, a, b, c, d);
    return (b & leaf7_ebx) == leaf7_ebx;
}

#define BIT(n) (1u << (n))
#ifdef CRNN_HAVE_AVX2
static int has_avx2(void) { return has(0x06, BIT(28) | BIT(12), BIT(5)); }
#endif
#ifdef CRNN_HAVE_AVX512
/* F, DQ, BW, VL; masks and upper registers saved */
static int has_avx512(void)
{
    return has(0xe6, BIT(28) | BIT(12), BIT(5) | BIT(16) | BIT(17) | BIT(30) | BIT(31));
}
#endif
#endif

#define DECLARE(isa) extern const crnn_kernels crnn_kernels_##isa##_f32, crnn_kernels_##isa##_f64;
#define ENTRY(isa, test) {#isa, {&crnn_kernels_##isa##_f32, &crnn_kernels_##isa##_f64}, test}
DECLARE(scalar)
#ifdef CRNN_HAVE_SSE2
DECLARE(sse2)
#endif
#ifdef CRNN_HAVE_AVX2
DECLARE(avx2)
#endif
#ifdef CRNN_HAVE_AVX512
DECLARE(avx512)
#endif
#ifdef CRNN_HAVE_NEON
DECLARE(neon)
#endif

static const isa_entry entries[] = {
    ENTRY(scalar, always),
#ifdef CRNN_HAVE_SSE2
    ENTRY(sse2, always),
#endif
#ifdef CRNN_HAVE_AVX2
    ENTRY(avx2, has_avx2),
#endif
#ifdef CRNN_HAVE_AVX512
    ENTRY(avx512, has_avx512),
#endif
#ifdef CRNN_HAVE_NEON
    ENTRY(neon, always),
#endif
};
#define ENTRY_COUNT ((int)(sizeof entries / sizeof entries[0]))

/* Asking the processor is slow (CPUID traps in a virtual machine), so the answers are kept: bit i for entries[i]. */
static atomic_uint supported_bits;
static _Atomic(const isa_entry *) active;

static unsigned supported(void)
{
    unsigned bits = atomic_load_explicit(&supported_bits, memory_order_relaxed);
    if (bits) return bits;
    for (int i = 0; i < ENTRY_COUNT; i++)
        if (entries[i].supported()) bits |= 1u << i;
    atomic_store(&supported_bits, bits);
    return bits;
}

static const isa_entry *supported_entry(int index)
{
    for (int i = 0; i < ENTRY_COUNT; i++)
        if (supported() & 1u << i && index-- == 0) return entries + i;
    return NULL;
}

int crnn_isa_count(void)
{
    int n = 0;
    while (supported_entry(n)) n++;
    return n;
}

const char *crnn_isa_name(int index)
{
    const isa_entry *entry = index < 0 ? NULL : supported_entry(index);
    return entry ? entry->name : NULL;
}

static const isa_entry *current(void)
{
    const isa_entry *entry = atomic_load_explicit(&active, memory_order_acquire);
    if (!entry) {
        entry = supported_entry(crnn_isa_count() - 1);
        atomic_store(&active, entry);
    }
    return entry;
}

const char *crnn_isa_active(void) { return current()->name; }

crnn_status crnn_isa_set(const char *name)
{
    for (int i = 0; i < crnn_isa_count(); i++)
        if (strcmp(crnn_isa_name(i), name) == 0) {
            atomic_store(&active, supported_entry(i));
            return CRNN_OK;
        }
    return CRNN_UNSUPPORTED;
}

static const crnn_kernels *kernels(crnn_dtype dtype) { return current()->kernels[dtype == CRNN_F64]; }

int crnn_in_halves(const crnn_stack *stack, const crnn_batch *batch, int masked, int keep)
{
    if (!stack || !batch || batch->steps == 0 || batch->batch == 0) return 0;
    return kernels(stack->dtype)->in_halves(stack, batch, masked, keep);
}

int crnn_tape_in_halves(const crnn_tape *tape) { return tape && tape->other; }

/* Each array that a call lays out, and the backward call of its tape, has no more elements than this sum and a few thousand times
 * as many (threads, and rows of a block for each): below 2^50 none of the products that count them wraps around. What is refused
 * would not fit into an address space. */
static int countable(const crnn_stack *stack, size_t batch, size_t rows)
{
    const double padding = 64, H = (double)stack->hidden + padding, D = (double)stack->directions;
    const double input = stack->onehot ? 0 : (double)stack->input, widest = (input > D * H ? input : D * H) + padding;
    const double states = (double)batch + (double)rows + padding;
    return (double)stack->layers * D * (states * (4 * H + widest) + 4 * H * (widest + H)) < 0x1p50;
}

crnn_status crnn_forward(const crnn_stack *stack, const crnn_batch *batch, const crnn_forward_args *args,
                         crnn_tape **tape)
{
    if (!stack || !batch || !args || batch->steps == 0 || batch->batch == 0) return CRNN_INVALID;
    if (!countable(stack, batch->batch, (size_t)batch->offsets[batch->steps])) return CRNN_NOMEM;
    return kernels(stack->dtype)->forward(stack, batch, args, tape);
}

crnn_status crnn_backward(const crnn_stack *stack, const crnn_batch *batch, const crnn_tape *tape,
                          const crnn_backward_args *args)
{
    if (!stack || !batch || !tape || !args) return CRNN_INVALID;
    if (args->truncation != CRNN_FULL && (stack->directions != 1 || args->k1 == 0)) return CRNN_INVALID;
    if (args->truncation == CRNN_CHUNK && args->k2 < args->k1) return CRNN_INVALID;
    crnn_backward_args whole = *args;
    if (args->k1 >= batch->steps) whole.truncation = CRNN_FULL; /* nothing is cut: the same bits as Full */
    return tape->kernels->backward(stack, batch, tape, &whole);
}

void crnn_tape_free(crnn_tape *tape) { crnn_release(tape); }
size_t crnn_tape_bytes(const crnn_tape *tape) { return tape ? tape->bytes : 0; }

/* A stepper is a run of the kernels that made it, as a tape is. */
static crnn_tape *run_of(crnn_stepper *stepper) { return (crnn_tape *)(void *)stepper; }

crnn_status crnn_stepper_new(const crnn_stack *stack, size_t batch, crnn_stepper **out)
{
    if (!stack || !out || batch == 0 || stack->directions != 1) return CRNN_INVALID;
    if (!countable(stack, 0, 0)) return CRNN_NOMEM; /* more rows than the padding are refused as too many */
    crnn_tape *run;
    crnn_status status = kernels(stack->dtype)->stepper(stack, batch, &run);
    if (status == CRNN_OK) *out = (crnn_stepper *)(void *)run;
    return status;
}

void crnn_step(crnn_stepper *stepper, const void *x, void *y) { run_of(stepper)->kernels->step(run_of(stepper), x, y); }
crnn_states crnn_stepper_states(crnn_stepper *stepper) { return run_of(stepper)->kernels->states(run_of(stepper)); }
void crnn_stepper_free(crnn_stepper *stepper) { crnn_release(stepper); }

crnn_status crnn_softmax_loss(const crnn_softmax_args *args, double *loss)
{
    if (!args || args->vocabulary == 0 || args->hidden == 0) return CRNN_INVALID;
    return kernels(args->dtype)->softmax_loss(args, loss);
}

crnn_status crnn_softmax_probabilities(const crnn_softmax_args *args, void *out)
{
    if (!args || !out || args->vocabulary == 0 || args->hidden == 0) return CRNN_INVALID;
    return kernels(args->dtype)->softmax_probabilities(args, out);
}

crnn_status crnn_update(const crnn_update_args *args)
{
    if (!args || args->rule < CRNN_SGD || args->rule > CRNN_ADAM) return CRNN_INVALID;
    kernels(args->dtype)->update(args);
    return CRNN_OK;
}

double crnn_sum_squares(crnn_dtype dtype, const void *a, size_t n) { return kernels(dtype)->sum_squares(a, n); }
int crnn_all_finite(crnn_dtype dtype, const void *a, size_t n) { return kernels(dtype)->all_finite(a, n); }
void crnn_scale(crnn_dtype dtype, void *a, size_t n, double factor) { kernels(dtype)->scale(a, n, factor); }

void crnn_add_rows(crnn_dtype dtype, void *dst, size_t row_step, size_t element_step, const int64_t *ids,
                   const void *rows, size_t n, size_t width, double alpha)
{
    kernels(dtype)->add_rows(dst, row_step, element_step, ids, rows, n, width, alpha);
}

crnn_status crnn_function(crnn_dtype dtype, char f, const void *x, void *y, size_t n)
{
    if (f != 'e' && f != 't' && f != 's') return CRNN_INVALID;
    kernels(dtype)->function(f, x, y, n);
    return CRNN_OK;
}

#define PROBE_THREADS 64
typedef struct {
    const crnn_kernels *kernels;
    size_t bytes; /* that each thread reads; 0: multiply-adds */
    char *data;
    double seconds, rate[PROBE_THREADS], sink[PROBE_THREADS];
} probe_call;

static void probe_work(void *context, int rank, crnn_team *team)
{
    probe_call *call = context;
    size_t chunk = 100000, done = 0;
    char *data = call->data ? call->data + (size_t)rank * call->bytes : NULL;
    if (data) memset(data, 0, call->bytes);
    crnn_barrier(team);
    double start = crnn_seconds(), now;
    do {
        for (int turn = 0; data && turn < 2; turn++) call->sink[rank] += call->kernels->read_loop(data, call->bytes, turn);
        if (!data) call->sink[rank] += call->kernels->fma_loop(chunk);
        done += data ? 2 * call->bytes : chunk * call->kernels->fma_flops;
        now = crnn_seconds();
    } while (now - start < call->seconds);
    call->rate[rank] = (double)done / (now - start) * 1e-9;
}

static double probe(probe_call *call, int threads)
{
    double sum = 0;
    crnn_parallel(threads, 0, probe_work, call);
    for (int i = 0; i < threads; i++) sum += call->rate[i];
    return sum;
}

static int probe_threads(int threads) { return threads < 1 ? 1 : threads > PROBE_THREADS ? PROBE_THREADS : threads; }

double crnn_fma_peak(crnn_dtype dtype, int threads, double seconds)
{
    probe_call call = {.kernels = kernels(dtype), .seconds = seconds};
    return probe(&call, probe_threads(threads));
}

double crnn_read_bandwidth(size_t bytes, int threads, double seconds)
{
    threads = probe_threads(threads);
    probe_call call = {.kernels = kernels(CRNN_F32), .seconds = seconds};
    call.bytes = (bytes / (size_t)threads + 4095) / 4096 * 4096;
    if (!call.bytes || !(call.data = crnn_allocate(call.bytes * (size_t)threads))) return 0;
    double rate = probe(&call, threads);
    crnn_release(call.data);
    return rate;
}
