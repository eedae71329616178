/* The wall clock of a process, ahead by as many milliseconds as the file $CLOCK_STEP says. For LD_PRELOAD. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (result != 0 || clock != CLOCK_REALTIME) return result;
    static __thread time_t read_at = -1;
    static __thread long long step = 0;
    struct timespec steady;
    real(CLOCK_MONOTONIC, &steady);
    /* The file is read four times a second. */
    time_t quarter = steady.tv_sec * 4 + steady.tv_nsec / 250000000;
    if (quarter != read_at) {
        const char *name = getenv("CLOCK_STEP");
        FILE *file = name ? fopen(name, "r") : NULL;
        if (file) {
            long long read = 0;
            if (fscanf(file, "%lld", &read) == 1) step = read;
            fclose(file);
        }
        read_at = quarter;
    }
    long long nanos = now->tv_nsec + (step % 1000) * 1000000;
    now->tv_sec += step / 1000 + nanos / 1000000000;
    now->tv_nsec = nanos % 1000000000;
    if (now->tv_nsec < 0) {
        now->tv_nsec += 1000000000;
        now->tv_sec -= 1;
    }
    return 0;
}
