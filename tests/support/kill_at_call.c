/* Loaded with LD_PRELOAD: SIGKILLs its own process at the n-th call that changes a file or sends to a server.
   kill_arm(n): count from now on and kill at the n-th call; n = 0 only counts. kill_count(): the calls since then.
   A write to a file is killed half done. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long count, target = -1;

void kill_arm(long n) { atomic_store(&count, 0); atomic_store(&target, n); }
long kill_count(void) { return atomic_load(&count); }

static int due(void) {
    long n = atomic_load(&target);
    if (n < 0) return 0;
    return atomic_fetch_add(&count, 1) + 1 == n;
}
static void die(void) { kill(getpid(), SIGKILL); for (;;) pause(); }

static int counted(int fd) { /* files and sockets; not pipes and eventfds, with which threads wake each other */
    struct stat s;
    return atomic_load(&target) >= 0 && fstat(fd, &s) == 0 && (S_ISREG(s.st_mode) || S_ISSOCK(s.st_mode));
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)
#define WRAP(result, name, params, args) result name params { REAL(name); if (due()) die(); return real args; }

ssize_t write(int fd, const void *p, size_t n) {
    REAL(write);
    if (counted(fd) && due()) { if (n > 1) real(fd, p, n / 2); die(); }
    return real(fd, p, n);
}
ssize_t pwrite64(int fd, const void *p, size_t n, off64_t at) {
    REAL(pwrite64);
    if (counted(fd) && due()) { if (n > 1) real(fd, p, n / 2, at); die(); }
    return real(fd, p, n, at);
}
ssize_t pwrite(int fd, const void *p, size_t n, off_t at) {
    REAL(pwrite);
    if (counted(fd) && due()) { if (n > 1) real(fd, p, n / 2, at); die(); }
    return real(fd, p, n, at);
}
ssize_t writev(int fd, const struct iovec *v, int n) {
    REAL(writev);
    if (counted(fd) && due()) die();
    return real(fd, v, n);
}
ssize_t send(int fd, const void *p, size_t n, int flags) {
    REAL(send);
    if (due()) { if (n > 1) real(fd, p, n / 2, flags); die(); }
    return real(fd, p, n, flags);
}
WRAP(int, rename, (const char *a, const char *b), (a, b))
WRAP(int, renameat, (int d, const char *a, int e, const char *b), (d, a, e, b))
WRAP(int, fsync, (int fd), (fd))
WRAP(int, fdatasync, (int fd), (fd))
WRAP(int, unlink, (const char *a), (a))
WRAP(int, unlinkat, (int d, const char *a, int f), (d, a, f))
WRAP(int, rmdir, (const char *a), (a))
WRAP(int, mkdir, (const char *a, mode_t m), (a, m))
WRAP(int, link, (const char *a, const char *b), (a, b))
WRAP(int, linkat, (int d, const char *a, int e, const char *b, int f), (d, a, e, b, f))
WRAP(int, ftruncate, (int fd, off_t n), (fd, n))
WRAP(int, ftruncate64, (int fd, off64_t n), (fd, n))
WRAP(int, msync, (void *a, size_t n, int f), (a, n, f))
