/* For LD_PRELOAD: counts the calls that change files, and fails, shortens or ends at one
 * of them. FAULT_AT is its number from 1, FAULT_HOW what happens there: an errno, "kill",
 * "killed" (after the call), or "short" (a write of one byte less); FAULT_ON "ever" repeats
 * an errno at every later call. The number of calls is left in the file FAULT_COUNT.
 * FAULT_THREADS is the number of threads that can be made; FAULT_LOCK and FAULT_DIRECTORY are
 * the errno of every lock, and of every fsync of a directory. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static long calls;

static int is_file(int fd) {
    struct stat s;
    return fd > 2 && fstat(fd, &s) == 0 && (S_ISREG(s.st_mode) || S_ISDIR(s.st_mode));
}

/* 0: go on; 1: fail with errno; 2: a short write; 3: end after the call. */
static int fault(void) {
    const char *at = getenv("FAULT_AT"), *how = getenv("FAULT_HOW"), *on = getenv("FAULT_ON");
    long n = __sync_add_and_fetch(&calls, 1), wanted = at ? atol(at) : 0;
    const char *count = getenv("FAULT_COUNT");
    if (count) {
        FILE *f = fopen(count, "w");
        if (f) { fprintf(f, "%ld\n", n); fclose(f); }
    }
    if (!how || n < wanted || (n > wanted && !(on && !strcmp(on, "ever"))) || wanted == 0) return 0;
    if (!strcmp(how, "kill")) kill(getpid(), SIGKILL);
    if (!strcmp(how, "killed")) return 3;
    if (!strcmp(how, "short")) return 2;
    errno = atoi(how);
    return 1;
}

#define NEXT(type, name) static type (*next)(); if (!next) next = (type (*)())dlsym(RTLD_NEXT, name)
#define CALL(arguments) \
    int what = fault(); \
    if (what == 1) return -1; \
    int result = next arguments; \
    if (what == 3) kill(getpid(), SIGKILL); \
    return result

ssize_t write(int fd, const void *bytes, size_t length) {
    NEXT(ssize_t, "write");
    if (!is_file(fd)) return next(fd, bytes, length);
    int what = fault();
    if (what == 1) return -1;
    ssize_t written = next(fd, bytes, what == 2 && length > 1 ? length - 1 : length);
    if (what == 3) kill(getpid(), SIGKILL);
    return written;
}

int fsync(int fd) {
    NEXT(int, "fsync");
    struct stat s;
    const char *code = getenv("FAULT_DIRECTORY");
    if (code && fstat(fd, &s) == 0 && S_ISDIR(s.st_mode)) { errno = atoi(code); return -1; }
    if (!is_file(fd)) return next(fd);
    CALL((fd));
}

int flock(int fd, int operation) {
    NEXT(int, "flock");
    const char *code = getenv("FAULT_LOCK");
    if (code) { errno = atoi(code); return -1; }
    return next(fd, operation);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument) {
    NEXT(int, "pthread_create");
    static int made;
    const char *most = getenv("FAULT_THREADS");
    if (most && __sync_add_and_fetch(&made, 1) > atoi(most)) return EAGAIN;
    return next(thread, attributes, start, argument);
}

int rename(const char *from, const char *to) { NEXT(int, "rename"); CALL((from, to)); }
int mkdir(const char *path, mode_t mode) { NEXT(int, "mkdir"); CALL((path, mode)); }
int unlink(const char *path) { NEXT(int, "unlink"); CALL((path)); }
