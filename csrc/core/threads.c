/* A small thread pool of our own instead of OpenMP: no runtime to bundle, no second OpenMP in a process that has
 * one, defined behaviour after fork (the child starts a new pool), and workers that go to sleep when idle.
 * One call at a time owns the pool; a call that finds it taken runs on its own thread alone. Results never depend on
 * the number of threads, so that is only a question of speed. */
#define _GNU_SOURCE
#include "internal.h"
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#define SPIN_ROUNDS 2000 /* some 30 us of waiting before a clock is looked at, or a barrier gives the core away */

/* What one thread spins on stands on a cache line of its own, away from what others write meanwhile: a line that moves
 * between cores costs 0.1 to 0.5 us, depending on how far apart they are, and a brief job lasts 5. */
#define OWN_LINE _Alignas(2 * CRNN_LINE)

struct crnn_team {
    int size;
    OWN_LINE atomic_int arrived;
    OWN_LINE atomic_int phase;
    OWN_LINE atomic_int resting; /* less those for whom a stretch lies ready */
    OWN_LINE atomic_flag lock;   /* of what is handed over */
    atomic_int ready;
    crnn_stretch stretches[CRNN_MAX_THREADS];
};

static struct {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    atomic_int sleepers;
    atomic_uint nudge;           /* rises to wake sleepers that have no job yet */
    int workers;                 /* started in this process */
    OWN_LINE crnn_work work;     /* the job; a worker that sees the ticket rise has it in the same line */
    void *context;
    int size;
    int staying;                 /* workers that are still wanted after this job */
    int crowded;                 /* the caller's processor, if a worker may have been put there too, else -1 */
    unsigned long rounding;      /* how the caller rounds and flushes: workers do the same */
    atomic_uint ticket;          /* rises with every job */
    OWN_LINE atomic_uint done;   /* rises with every worker that has finished one; the caller only reads it */
    crnn_team team, halves[2];
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER, .crowded = -1,
          .team.lock = ATOMIC_FLAG_INIT, .halves = {{.lock = ATOMIC_FLAG_INIT}, {.lock = ATOMIC_FLAG_INIT}}};

/* Other programs may hold the cores that our workers want. Then the caller waits for whole time slices, and is better off
 * alone: after several calls in a row that spent most of their time waiting (for workers that were awake), calls run on one
 * thread for a while, longer each time. The while is a time, not a number of calls: 16 calls may be 1 ms or 1 s, and the
 * other program is gone as fast either way. Only the owner of the pool touches these. */
#define BAD_IN_A_ROW 3
#define ALONE_SECONDS 0.01 /* doubled up to ALONE_LEVELS times, but at least as long as ALONE_CALLS calls took */
#define ALONE_LEVELS 4
#define ALONE_CALLS 4
static int bad_calls, alone_level;
static double alone_until;
static double waited; /* seconds, beyond the first moments of each wait */
static pthread_t owner;

static unsigned first_ticket[CRNN_MAX_THREADS];
static atomic_flag busy = ATOMIC_FLAG_INIT;
static atomic_int wanted = 1;
static atomic_int atfork_set = 0;

double crnn_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

void crnn_set_threads(int n) { atomic_store(&wanted, n < 1 ? 1 : n > CRNN_MAX_THREADS ? CRNN_MAX_THREADS : n); }
int crnn_get_threads(void) { return atomic_load(&wanted); }
int crnn_team_size(const crnn_team *team) { return team->size; }
crnn_team *crnn_half(crnn_team *team, int *rank)
{
    (void)team; /* only one that has the pool has several threads */
    crnn_team *half = pool.halves + (*rank & 1);
    *rank >>= 1;
    return half;
}

static inline void wait_a_little(int spins, double *since)
{
    if (spins < SPIN_ROUNDS) {
        relax();
        return;
    }
    if (spins == SPIN_ROUNDS) *since = crnn_seconds();
    sched_yield();
}

void crnn_barrier(crnn_team *team)
{
    if (team->size == 1) return;
    int phase = atomic_load_explicit(&team->phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) == team->size - 1) {
        atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&team->phase, phase + 1, memory_order_release);
        return;
    }
    double since = 0;
    for (int spins = 0; atomic_load_explicit(&team->phase, memory_order_acquire) == phase; spins++) wait_a_little(spins, &since);
    if (since > 0 && pthread_equal(pthread_self(), owner)) waited += crnn_seconds() - since;
}

int crnn_resting(const crnn_team *team) { return atomic_load_explicit(&team->resting, memory_order_relaxed); }

/* Who hands over takes somebody who rests off the count first: as many stretches lie ready as there are threads bound to take one. */
int crnn_hand_over(crnn_team *team, const crnn_stretch *stretch)
{
    int resting = crnn_resting(team);
    do {
        if (resting == 0) return 0;
    } while (!atomic_compare_exchange_weak_explicit(&team->resting, &resting, resting - 1, memory_order_acq_rel, memory_order_relaxed));
    while (atomic_flag_test_and_set_explicit(&team->lock, memory_order_acquire)) relax();
    team->stretches[atomic_load_explicit(&team->ready, memory_order_relaxed)] = *stretch;
    atomic_fetch_add_explicit(&team->ready, 1, memory_order_release);
    atomic_flag_clear_explicit(&team->lock, memory_order_release);
    return 1;
}

static int take_stretch(crnn_team *team, crnn_stretch *stretch)
{
    if (atomic_load_explicit(&team->ready, memory_order_acquire) == 0) return 0;
    while (atomic_flag_test_and_set_explicit(&team->lock, memory_order_acquire)) relax();
    const int ready = atomic_load_explicit(&team->ready, memory_order_relaxed);
    if (ready) {
        *stretch = team->stretches[ready - 1];
        atomic_store_explicit(&team->ready, ready - 1, memory_order_relaxed);
    }
    atomic_flag_clear_explicit(&team->lock, memory_order_release);
    return ready != 0;
}

int crnn_rest(crnn_team *team, crnn_stretch *stretch)
{
    if (team->size == 1) return 0;
    int phase = atomic_load_explicit(&team->phase, memory_order_relaxed), taken = 0;
    if (atomic_fetch_add_explicit(&team->resting, 1, memory_order_acq_rel) == team->size - 1) {
        atomic_store_explicit(&team->resting, 0, memory_order_relaxed);
        atomic_store_explicit(&team->phase, phase + 1, memory_order_release);
        return 0;
    }
    double since = 0;
    for (int spins = 0; atomic_load_explicit(&team->phase, memory_order_acquire) == phase; spins++) {
        if ((taken = take_stretch(team, stretch))) break;
        wait_a_little(spins, &since);
    }
    if (since > 0 && pthread_equal(pthread_self(), owner)) waited += crnn_seconds() - since;
    return taken;
}

/* The bits that say how the processor rounds, and whether it flushes the smallest numbers to zero. A program may set them for its
 * own thread; if workers kept theirs, bits would depend on the number of threads. */
static unsigned long rounding_mode(void)
{
#if defined(__SSE__)
    return _mm_getcsr() & 0xffc0u; /* without the flags of what has happened */
#elif defined(__aarch64__)
    unsigned long mode;
    __asm__ __volatile__("mrs %0, fpcr" : "=r"(mode));
    return mode;
#else
    return 0;
#endif
}

static void set_rounding_mode(unsigned long mode)
{
    if (mode == rounding_mode()) return;
#if defined(__SSE__)
    _mm_setcsr((unsigned)mode);
#elif defined(__aarch64__)
    __asm__ __volatile__("msr fpcr, %0" : : "r"(mode));
#endif
}

/* A worker that waits for a job spins for PATIENCE, then sleeps. Waking it takes the caller 50 us, as much as many a job;
 * between two calls from Python pass some tens of microseconds. Brief jobs that follow each other closely are done alone
 * while the worker sleeps, and the worker woken meanwhile, to be awake for the next one. */
#define CLOSE_TOGETHER 2e-4 /* seconds */
#define PATIENCE (2 * CLOSE_TOGETHER)

/* A system may wake a worker on the processor of the caller and leave it there, next to an idle one, for a second and more:
 * both then take turns, at less than the speed of one. A worker that finds itself there goes elsewhere, within what it is
 * allowed. */
int crnn_leave_processor(int processor)
{
#if defined(__linux__)
    cpu_set_t allowed, others;
    if (processor < 0 || sched_getcpu() != processor) return 0;
    if (pthread_getaffinity_np(pthread_self(), sizeof allowed, &allowed) != 0) return 0;
    others = allowed;
    CPU_CLR(processor, &others);
    if (CPU_COUNT(&others) == 0 || pthread_setaffinity_np(pthread_self(), sizeof others, &others) != 0) return 0;
    return pthread_setaffinity_np(pthread_self(), sizeof allowed, &allowed) == 0;
#else
    (void)processor;
    return 0;
#endif
}

static int this_processor(void)
{
#if defined(__linux__)
    return sched_getcpu();
#else
    return -1;
#endif
}

static void *worker(void *argument)
{
    int rank = (int)(intptr_t)argument;
    unsigned seen = first_ticket[rank];
    for (;;) {
        double since = 0;
        for (int spins = 0; atomic_load_explicit(&pool.ticket, memory_order_acquire) == seen; spins++) {
            relax();
            if (spins < SPIN_ROUNDS || spins % 64) continue;
            if (since == 0) since = crnn_seconds();
            if (crnn_seconds() - since < PATIENCE) continue;
            pthread_mutex_lock(&pool.lock);
            atomic_fetch_add(&pool.sleepers, 1);
            unsigned nudge = atomic_load(&pool.nudge);
            while (atomic_load(&pool.ticket) == seen && atomic_load(&pool.nudge) == nudge)
                pthread_cond_wait(&pool.wake, &pool.lock);
            spins = 0;
            since = 0;
            atomic_fetch_sub(&pool.sleepers, 1);
            pthread_mutex_unlock(&pool.lock);
        }
        seen = atomic_load_explicit(&pool.ticket, memory_order_acquire);
        if (pool.crowded >= 0) crnn_leave_processor(pool.crowded);
        set_rounding_mode(pool.rounding);
        if (rank < pool.size) pool.work(pool.context, rank, &pool.team);
        const int stays = rank <= pool.staying;
        atomic_fetch_add_explicit(&pool.done, 1, memory_order_release);
        if (!stays) return NULL;
    }
    return NULL;
}

/* In the child of a fork no worker exists: forget them and start anew when next needed. */
static void after_fork(void)
{
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.wake, NULL);
    atomic_store(&pool.ticket, 0);
    atomic_store(&pool.done, 0);
    for (int i = -1; i < 2; i++) {
        crnn_team *team = i < 0 ? &pool.team : pool.halves + i;
        atomic_store(&team->arrived, 0);
        atomic_store(&team->resting, 0);
        atomic_store(&team->ready, 0);
        atomic_flag_clear(&team->lock);
    }
    atomic_store(&pool.sleepers, 0);
    pool.workers = 0;
    alone_until = 0;
    atomic_flag_clear(&busy);
}

/* Called by the owner of the pool, so no job is announced meanwhile: a new worker starts from the present ticket. Whatever number
 * was asked for, nobody gets a team of more than CRNN_MAX_THREADS: all that is kept per rank has room for so many. Signals are for
 * the program's own threads, which may have blocked some. */
#define WORKER_STACK ((size_t)1 << 20) /* kernels have rooms of up to 200 KiB there; musl would give 128 KiB */
static int start_workers(int threads)
{
    if (threads > CRNN_MAX_THREADS) threads = CRNN_MAX_THREADS;
    if (!atomic_exchange(&atfork_set, 1)) pthread_atfork(NULL, NULL, after_fork);
    if (pool.workers >= threads - 1) return threads;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (pool.workers < threads - 1) {
        pthread_t thread;
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        size_t stack = 0;
        if (!pthread_attr_getstacksize(&attributes, &stack) && stack < WORKER_STACK) pthread_attr_setstacksize(&attributes, WORKER_STACK);
        int rank = pool.workers + 1;
        first_ticket[rank] = atomic_load(&pool.ticket);
        int failed = pthread_create(&thread, &attributes, worker, (void *)(intptr_t)rank);
        pthread_attr_destroy(&attributes);
        if (failed) break;
        pool.workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return pool.workers + 1 < threads ? pool.workers + 1 : threads;
}

static void wake_sleepers(void)
{
    pthread_mutex_lock(&pool.lock);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
}

/* A brief job is over before a sleeping worker would have woken: it goes alone. But when such jobs follow each other
 * closely, the workers are woken meanwhile, to be awake for the next one. */
static double last_brief;

static int better_alone(void)
{
    if (atomic_load(&pool.sleepers) == 0 && pool.workers > 0) return 0;
    double now = crnn_seconds(), since = now - last_brief;
    last_brief = now;
    if (since > CLOSE_TOGETHER) return 1;
    atomic_fetch_add(&pool.nudge, 1);
    wake_sleepers();
    return pool.workers > 0;
}

/* The pool is ours: `threads` ranks do the work. 1 if all workers were awake. Who has just been woken, or kept us waiting
 * last time, may share our processor. All workers answer, so those of a larger number of threads, asked for earlier, go. */
static int run_team(int threads, crnn_work work, void *context)
{
    double since = 0;
    pool.crowded = waited > 0 || atomic_load(&pool.sleepers) > 0 ? this_processor() : -1;
    waited = 0;
    owner = pthread_self();
    pool.rounding = rounding_mode();
    unsigned finished = atomic_load_explicit(&pool.done, memory_order_relaxed) + (unsigned)pool.workers;
    pool.work = work;
    pool.context = context;
    pool.size = threads;
    const int wanted_now = crnn_get_threads(), stay = (threads > wanted_now ? threads : wanted_now) - 1;
    pool.staying = stay < pool.workers ? stay : pool.workers;
    if (pool.team.size != threads) {
        pool.team.size = threads;
        for (int i = 0; i < 2; i++) pool.halves[i].size = threads / 2;
    }
    atomic_fetch_add(&pool.ticket, 1);
    int awake = atomic_load(&pool.sleepers) == 0;
    if (!awake) wake_sleepers();
    work(context, 0, &pool.team);
    for (int spins = 0; atomic_load_explicit(&pool.done, memory_order_acquire) != finished; spins++)
        wait_a_little(spins, &since);
    if (since > 0) waited += crnn_seconds() - since;
    pool.workers = pool.staying;
    return awake;
}

/* Between cores that share a cache a job of nothing takes 0.15 us from call to return, between others 0.5, and a virtual
 * machine's cores change places within seconds. So it is measured now and then, the best of a few, once everybody is awake.
 * If others keep the workers from answering, the last figure stands for longer. */
#define PINGS 5
#define MEASURE_AGAIN 0.05 /* seconds */
#define NO_ANSWER 1e-3
#define LATER 1.0
#define OFTEN 0.01         /* how soon calls must follow each other for the figure to matter */
static _Atomic double handover = 2e-7, assumed;
static double handover_due; /* of the pool's owner, as what follows */

static void nothing(void *context, int rank, crnn_team *team) { (void)context, (void)rank, (void)team; }

static void measure_handover(int threads)
{
    double before = crnn_seconds(), best = 1;
    run_team(threads, nothing, NULL); /* wakes who sleeps: 50 us */
    double start = crnn_seconds();
    handover_due = start + (start - before < NO_ANSWER ? MEASURE_AGAIN : LATER);
    if (start - before > NO_ANSWER) return;
    for (int i = 0; i < PINGS; i++) {
        run_team(threads, nothing, NULL);
        double end = crnn_seconds();
        if (end - start < best) best = end - start;
        start = end;
    }
    atomic_store(&handover, best);
}

/* Calls that run alone because of the last figure would never meet the workers again: it is measured for them too. */
double crnn_handover(int threads)
{
    static double last_asked;
    static int asked_for;
    if (atomic_load(&assumed) > 0) return atomic_load(&assumed);
    if (atomic_flag_test_and_set(&busy)) return atomic_load(&handover);
    double now = crnn_seconds(), since = now - last_asked;
    last_asked = now;
    if (asked_for != crnn_get_threads()) asked_for = crnn_get_threads(), handover_due = 0; /* it was another team's */
    if (now >= handover_due && now >= alone_until && since < OFTEN && (threads = start_workers(threads)) > 1)
        measure_handover(threads);
    atomic_flag_clear(&busy);
    return atomic_load(&handover);
}

void crnn_assume_handover(double seconds) { atomic_store(&assumed, seconds); }

int crnn_far(double seconds) { return seconds > CRNN_FAR && (crnn_processor_is_amd() || atomic_load(&assumed) > 0); }

void crnn_parallel(int threads, int brief, crnn_work work, void *context)
{
    if (threads > 1 && !atomic_flag_test_and_set(&busy)) {
        if (alone_until > 0 && crnn_seconds() < alone_until) threads = 1;
        else if (brief && better_alone()) threads = 1;
        else threads = start_workers(threads);
        if (threads > 1) {
            double start = crnn_seconds();
            int awake = run_team(threads, work, context);
            double end = crnn_seconds();
            int bad = awake && waited > 1e-3 && waited > 0.5 * (end - start);
            if (!bad) {
                if (bad_calls > 0) bad_calls--;
                else alone_level = 0;
            } else if (++bad_calls >= BAD_IN_A_ROW) {
                double pause = ALONE_SECONDS * (1 << alone_level), calls = ALONE_CALLS * (end - start);
                bad_calls = 0;
                alone_until = end + (pause > calls ? pause : calls);
                if (alone_level < ALONE_LEVELS) alone_level++;
            }
            if (!bad && end >= handover_due) measure_handover(threads);
            atomic_flag_clear(&busy);
            return;
        }
        atomic_flag_clear(&busy);
    }
    crnn_team alone; /* nothing else of it is looked at */
    alone.size = 1;
    atomic_init(&alone.resting, 0);
    work(context, 0, &alone);
}
