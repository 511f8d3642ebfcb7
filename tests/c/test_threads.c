/* Threads that keep out of each other's way: a worker leaves the caller's processor, within what it is allowed. Threads that
 * take work from each other. And what the machine reaches. */
#define _GNU_SOURCE
#include "check.h"
#include "hands.h"
#include "internal.h"
#include <pthread.h>
#include <signal.h>
#include <time.h>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

/* Signals are the program's own threads' affair, and workers round as their caller does. */
static int takes_signals[2];
static unsigned rounding[2];

static void look_at_thread(void *context, int rank, crnn_team *team)
{
    sigset_t mask;
    (void)context;
    crnn_barrier(team); /* nobody does both */
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    takes_signals[rank] = !sigismember(&mask, SIGUSR1) || !sigismember(&mask, SIGINT);
#if defined(__SSE__)
    rounding[rank] = _mm_getcsr() & 0xffc0u;
#endif
}

static void workers_are_quiet(void)
{
    takes_signals[1] = 1;
    crnn_parallel(2, 0, look_at_thread, NULL);
    CHECK(takes_signals[0] && !takes_signals[1], "signals: caller %d, worker %d", takes_signals[0], takes_signals[1]);
#if defined(__SSE__)
    const unsigned before = _mm_getcsr();
    static const unsigned FLUSH[] = {0x8040, 0}; /* to zero, and denormals are zero */
    for (int i = 0; i < 2; i++) {
        _mm_setcsr((before & ~0x8040u) | FLUSH[i]);
        rounding[0] = rounding[1] = 1;
        crnn_parallel(2, 0, look_at_thread, NULL);
        CHECK((rounding[0] & 0x8040) == FLUSH[i], "the caller flushes: %x", rounding[0]);
        CHECK(rounding[1] == rounding[0], "rounding: caller %x, worker %x", rounding[0], rounding[1]);
    }
    _mm_setcsr(before);
#endif
}

static void machine(const char *isa, crnn_dtype dtype)
{
    CHECK(crnn_fma_peak(dtype, 2, 1e-3) > 0, "%s %s: no multiply-adds", isa, dtype_name(dtype));
    CHECK(crnn_read_bandwidth(100000, 2, 1e-3) > 0, "%s: nothing read", isa);
    CHECK(crnn_read_bandwidth(0, 2, 1e-3) == 0, "%s: read nothing", isa);
    crnn_assume_handover(0.25);
    CHECK(crnn_handover(2) == 0.25, "another time than was assumed");
    crnn_assume_handover(0);
    CHECK(crnn_handover(2) < 0.25, "the assumed time stays");
}

/* Slow hand-overs alone are not far cores: only AMD's processors have cores without a common cache. The processor is asked in another
 * way here. */
static int made_by_amd(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_is("amd") != 0;
#else
    return 0;
#endif
}

static void far_cores(void)
{
    CHECK(crnn_far(4e-7) == made_by_amd(), "%d, AMD: %d", crnn_far(4e-7), made_by_amd());
    CHECK(!crnn_far(1e-7), "near cores are far");
    crnn_assume_handover(4e-7);
    CHECK(crnn_far(crnn_handover(2)), "assumed to be far, and near");
    crnn_assume_handover(1e-7);
    CHECK(!crnn_far(crnn_handover(2)), "assumed to be near, and far");
    crnn_assume_handover(0);
}

/* What has never been measured is a constant, and what is measured never the same for long; a change of the number of threads
 * asks for another measurement, which several jobs are done for: one of them takes less than the asking. */
static void handover_is_measured(void)
{
    const double give_up = crnn_seconds() + 20; /* others may keep the worker from answering for a while */
    double last = crnn_handover(2);
    int times = 0;
    for (int i = 0; times < 3 && crnn_seconds() < give_up; i++) {
        crnn_set_threads(2 + i % 2);
        double before = crnn_seconds(), seconds = crnn_handover(2), asking = crnn_seconds() - before;
        if (seconds == last) continue;
        CHECK(seconds > 0 && seconds < asking, "a job of nothing takes %g s, and asking %g", seconds, asking);
        last = seconds;
        times++;
    }
    CHECK(times == 3, "measured anew %d times, wanted 3", times);
    crnn_set_threads(1);
}

/* More threads than there may be get a team of as many as there may be. */
enum { TOO_MANY = 3 * CRNN_MAX_THREADS };
static int team_size, ranks_done[TOO_MANY];

static void count_ranks(void *context, int rank, crnn_team *team)
{
    (void)context;
    ranks_done[rank]++;
    if (rank == 0) team_size = crnn_team_size(team);
}

static void too_many(void)
{
    for (int i = 0; i < 8; i++) {
        crnn_set_threads(2 + i % 2); /* or it would not be measured, and no thread started */
        CHECK(crnn_handover(TOO_MANY) > 0, "no time for %d threads", TOO_MANY);
    }
    crnn_set_threads(1);
    for (int round = 0; team_size < 2 && round < 5000; round++) {
        memset(ranks_done, 0, sizeof ranks_done);
        crnn_parallel(TOO_MANY, 0, count_ranks, NULL);
        if (team_size < 2) nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    CHECK(team_size == CRNN_MAX_THREADS, "%d threads of %d that were asked for", team_size, TOO_MANY);
    for (int rank = 0; rank < TOO_MANY; rank++)
        CHECK(ranks_done[rank] == (rank < CRNN_MAX_THREADS), "rank %d worked %d times", rank, ranks_done[rank]);
}

enum { RANKS = 4, ITEMS = 97 };

static crnn_hand hands[RANKS];
static atomic_int taken[ITEMS];

/* What one rank takes: own items first, from the front; then others', from the back. */
static void take_all(int size, int rank, size_t most)
{
    size_t lo, hi;
    while (crnn_take(hands, size, rank, most, &lo, &hi))
        for (size_t i = lo; i < hi; i++) atomic_fetch_add(&taken[i], 1);
}

static void check_taken(size_t items, const char *where)
{
    for (size_t i = 0; i < ITEMS; i++) {
        int times = atomic_exchange(&taken[i], 0);
        CHECK(times == (i < items), "%s: item %zu of %zu was taken %d times", where, i, items, times);
    }
}

static void take_in_turn(void)
{
    static const size_t COUNTS[] = {0, 1, 3, 10, ITEMS}, MOST[] = {1, 4, CRNN_WHOLE_HAND};
    for (size_t c = 0; c < 5; c++)
        for (size_t m = 0; m < 3; m++)
            for (int size = 1; size <= RANKS; size++) {
                for (int rank = 0; rank < size; rank++) { /* one that does all of it, the others being late */
                    crnn_deal(hands, size, COUNTS[c]);
                    take_all(size, rank, MOST[m]);
                    check_taken(COUNTS[c], "one rank");
                }
                size_t lo = 0, hi = 0, first, end;
                crnn_deal(hands, size, COUNTS[c]);
                crnn_share(COUNTS[c], 1, size - 1, size, &first, &end);
                int some = crnn_take(hands, size, size - 1, MOST[m], &lo, &hi);
                CHECK(some == (COUNTS[c] > 0), "%zu items, %d taken", COUNTS[c], some);
                size_t all = end - first, quarter = (all + 3) / 4, count = quarter < MOST[m] ? quarter : MOST[m];
                if (size == 1 || MOST[m] == CRNN_WHOLE_HAND) count = all;
                CHECK(lo == first && hi == first + count, "took %zu to %zu of %zu to %zu", lo, hi, first, end);
            }
}

static void take_at_once(void *context, int rank, crnn_team *team)
{
    crnn_barrier(team);
    take_all(RANKS, rank, *(const size_t *)context);
}

static void take_together(void)
{
    for (int round = 0; round < 400; round++) {
        size_t most = round % 2 ? 1 : 5;
        crnn_deal(hands, RANKS, ITEMS);
        crnn_parallel(2 + round % 3, 0, take_at_once, &most); /* hands of ranks that are not there are taken by the others */
        check_taken(ITEMS, "together");
    }
}

/* Halves meet among themselves, as often as each of them wants, and all meet afterwards. */
static int met[2][2], apart[4], times_apart;

static void go_apart(void *context, int rank, crnn_team *team)
{
    int own = rank, size = crnn_team_size(team);
    (void)context;
    if (size % 2) return; /* alone: the pool pauses after jobs that other programs held up */
    crnn_team *half = crnn_half(team, &own);
    CHECK(crnn_team_size(half) == size / 2, "half of %d is %d", size, crnn_team_size(half));
    CHECK(own == rank / 2, "rank %d has become %d", rank, own);
    for (int turn = 0; turn < 50 * (1 + (rank & 1)); turn++) {
        met[rank & 1][own] = turn;
        crnn_barrier(half);
        for (int other = 0; other < size / 2; other++)
            CHECK(met[rank & 1][other] == turn, "half %d, turn %d: rank %d is at %d", rank & 1, turn, other, met[rank & 1][other]);
        crnn_barrier(half);
    }
    apart[rank] = 1;
    crnn_barrier(team);
    for (int other = 0; other < size; other++) CHECK(apart[other], "rank %d has not met the others", other);
    crnn_barrier(team);
    apart[rank] = 0;
    if (rank == 0) times_apart++;
}

static void go_apart_often(void)
{
    for (int round = 0; times_apart < 20 && round < 5000; round++) {
        const int before = times_apart;
        crnn_parallel(round % 2 ? 2 : 4, 0, go_apart, NULL);
        if (times_apart == before) nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    CHECK(times_apart == 20, "%d teams went apart", times_apart);
}

/* Sequences walk through their steps in order, each step once, whoever takes them; and when one thread leaves, all has been done. */
#define SEQUENCES 40
#define LAST_STEP 60
static atomic_int steps_done[SEQUENCES];
static atomic_int changed_hands, out_of_order;

static void walk_stretch(crnn_team *team, crnn_stretch own, int turn)
{
    for (; own.t < LAST_STEP; own.t++) {
        if (crnn_resting(team) > 0 && own.i1 - own.i0 > 1) {
            crnn_stretch other = own;
            other.i0 += (own.i1 - own.i0) / 2;
            if (crnn_hand_over(team, &other)) own.i1 = other.i0, atomic_fetch_add(&changed_hands, 1);
        }
        for (size_t i = own.i0; i < own.i1; i++) {
            if (atomic_fetch_add(&steps_done[i], 1) != LAST_STEP * (turn - 1) + (int)own.t) atomic_fetch_add(&out_of_order, 1);
            for (volatile int busy = 0; busy < 50; busy++) continue;
        }
    }
}

static void walk_and_rest(void *context, int rank, crnn_team *team)
{
    (void)context;
    for (int turn = 1; turn <= 2; turn++) { /* resting leaves everything as it was */
        crnn_stretch stretch = {.i1 = rank == 0 ? SEQUENCES : 0}; /* one has them all */
        do walk_stretch(team, stretch, turn);
        while (crnn_rest(team, &stretch));
        int left = 0;
        for (int i = 0; i < SEQUENCES; i++) left += atomic_load(&steps_done[i]) != LAST_STEP * turn;
        CHECK(left == 0, "rank %d left although %d sequences are not at their end", rank, left);
        crnn_barrier(team);
    }
}

static void hand_over_often(void)
{
    for (int round = 0; round < 2000 && (round < 100 || atomic_load(&changed_hands) < 100); round++) {
        for (int i = 0; i < SEQUENCES; i++) atomic_store(&steps_done[i], 0);
        crnn_parallel(1 + round % 4, 0, walk_and_rest, NULL);
        for (int i = 0; i < SEQUENCES; i++) CHECK(atomic_load(&steps_done[i]) == 2 * LAST_STEP, "sequence %d was left", i);
        /* The pool may pause after jobs that other programs held up: then nothing changes hands for some milliseconds. */
        if (round % 50 == 49) nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    CHECK(atomic_load(&out_of_order) == 0, "%d steps out of order", atomic_load(&out_of_order));
    CHECK(atomic_load(&changed_hands) >= 100, "sequences changed hands %d times", atomic_load(&changed_hands));
}

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>

static int at[2];

static void look(void *context, int rank, crnn_team *team)
{
    (void)context;
    crnn_barrier(team);
    at[rank] = sched_getcpu();
}

static void *leaver(void *argument)
{
    cpu_set_t allowed, after, one;
    pthread_getaffinity_np(pthread_self(), sizeof allowed, &allowed);
    int several = CPU_COUNT(&allowed) > 1, here = sched_getcpu();
    CHECK(crnn_leave_processor(-1) == 0, "left no processor");
    CPU_ZERO(&one);
    CPU_SET(here, &one);
    pthread_setaffinity_np(pthread_self(), sizeof one, &one);
    CHECK(crnn_leave_processor(here) == 0 && sched_getcpu() == here, "left the only processor that was allowed");
    pthread_setaffinity_np(pthread_self(), sizeof allowed, &allowed);
    here = sched_getcpu();
    int moved = crnn_leave_processor(here);
    CHECK(!several || moved, "stayed on processor %d", here);
    pthread_getaffinity_np(pthread_self(), sizeof after, &after);
    CHECK(CPU_EQUAL(&allowed, &after), "other processors are allowed afterwards");
    CHECK(crnn_leave_processor(CPU_SETSIZE) == 0, "left a processor where it was not");
    return argument;
}

int main(void)
{
    far_cores();
    handover_is_measured();
    too_many();
    workers_are_quiet();
    on_every_isa(machine);
    take_in_turn();
    take_together();
    go_apart_often();
    hand_over_often();
    cpu_set_t allowed, one;
    pthread_t thread;
    pthread_create(&thread, NULL, leaver, NULL);
    pthread_join(thread, NULL);
    pthread_getaffinity_np(pthread_self(), sizeof allowed, &allowed);
    crnn_parallel(2, 0, look, NULL);
    for (int i = 0; i < 20 && CPU_COUNT(&allowed) > 1; i++) {
        CPU_ZERO(&one);
        CPU_SET(at[1], &one); /* to where the worker was last, asleep meanwhile */
        pthread_setaffinity_np(pthread_self(), sizeof one, &one);
        nanosleep(&(struct timespec){.tv_nsec = 3000000}, NULL);
        crnn_parallel(2, 0, look, NULL);
        CHECK(at[0] != at[1], "round %d: both threads on processor %d", i, at[0]);
    }
    return finish("test_threads");
}
#else
int main(void)
{
    far_cores();
    handover_is_measured();
    too_many();
    workers_are_quiet();
    on_every_isa(machine);
    take_in_turn();
    take_together();
    go_apart_often();
    hand_over_often();
    return finish("test_threads");
}
#endif
