/* For LD_PRELOAD: a wall clock that leaps, and a disk that is full. Monotonic clocks and memory are left alone.

   FAULT_CLOCK=N     the wall clock is wrong by up to ten years, and by another amount every 50 ms; N is the seed
   FAULT_DISK=PATH   while there is a file PATH, nothing can be written to regular files */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static int64_t leap(const struct timespec *now) {
    const char *seed = getenv("FAULT_CLOCK");
    if (!seed) return 0;
    uint64_t x = (uint64_t)now->tv_sec * 20 + now->tv_nsec / 50000000 + (uint64_t)atoll(seed) * 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return (int64_t)((x ^ (x >> 31)) % 630720000u) - 315360000;
}

int clock_gettime(clockid_t clock, struct timespec *out) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, out);
    if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) out->tv_sec += leap(out);
    return result;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    out->tv_sec = now.tv_sec;
    out->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}

static int full(int file) {
    const char *path = getenv("FAULT_DISK");
    struct stat about;
    if (!path || access(path, F_OK) || fstat(file, &about) || !S_ISREG(about.st_mode)) return 0;
    errno = ENOSPC;
    return 1;
}

#define DISK(name, type, parameters, arguments) \
    type name parameters {                      \
        static type(*real) parameters;          \
        if (!real) real = dlsym(RTLD_NEXT, #name); \
        return full(file) ? -1 : real arguments; \
    }

DISK(write, ssize_t, (int file, const void *from, size_t bytes), (file, from, bytes))
DISK(pwrite, ssize_t, (int file, const void *from, size_t bytes, off_t at), (file, from, bytes, at))
DISK(pwrite64, ssize_t, (int file, const void *from, size_t bytes, off_t at), (file, from, bytes, at))
DISK(writev, ssize_t, (int file, const struct iovec *from, int count), (file, from, count))
DISK(pwritev, ssize_t, (int file, const struct iovec *from, int count, off_t at), (file, from, count, at))
DISK(pwritev64, ssize_t, (int file, const struct iovec *from, int count, off_t at), (file, from, count, at))

/* These return the error. */
int posix_fallocate(int file, off_t at, off_t bytes) {
    static int (*real)(int, off_t, off_t);
    if (!real) real = dlsym(RTLD_NEXT, "posix_fallocate");
    return full(file) ? ENOSPC : real(file, at, bytes);
}

int posix_fallocate64(int file, off_t at, off_t bytes) {
    static int (*real)(int, off_t, off_t);
    if (!real) real = dlsym(RTLD_NEXT, "posix_fallocate64");
    return full(file) ? ENOSPC : real(file, at, bytes);
}
