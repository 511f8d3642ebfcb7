/* Threads that keep out of each other's way: a worker leaves the caller's processor, within what it is allowed. And what the
 * machine reaches. */
#define _GNU_SOURCE
#include "check.h"
#include "internal.h"

static void machine(const char *isa, crnn_dtype dtype)
{
    CHECK(crnn_fma_peak(dtype, 2, 1e-3) > 0, "%s %s: no multiply-adds", isa, dtype_name(dtype));
    CHECK(crnn_read_bandwidth(100000, 2, 1e-3) > 0, "%s: nothing read", isa);
    CHECK(crnn_read_bandwidth(0, 2, 1e-3) == 0, "%s: read nothing", isa);
    double seconds = crnn_handover(2);
    CHECK(seconds > 0 && seconds < 1, "a job of nothing takes %g s", seconds);
    crnn_assume_handover(0.25);
    CHECK(crnn_handover(2) == 0.25, "another time than was assumed");
    crnn_assume_handover(0);
    CHECK(crnn_handover(2) < 0.25, "the assumed time stays");
}

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#include <time.h>

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
    on_every_isa(machine);
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
    on_every_isa(machine);
    return finish("test_threads");
}
#endif
