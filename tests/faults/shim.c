/* Calls that change files, made to fail, to stop half-way or to end the process at the n-th of them.
 *
 * Loaded before libc (LD_PRELOAD), so that the calls of Python, Rust and C++ libraries come through here alike.
 * tests/faults/shim.py says which: faults_watch(root, part, log) and then faults_plan(...), in the process to be tested.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* In the order of KINDS in shim.py. */
enum { OPEN, WRITE, FSYNC, RENAME, MKDIR, UNLINK, RMDIR, TRUNCATE, CHMOD, LINK, N_KINDS };
static const char *const NAMES[N_KINDS] = {"open",   "write", "fsync",    "rename", "mkdir",
                                           "unlink", "rmdir", "truncate", "chmod",  "link"};

/* What is done with a call; HALF is of writes. */
enum { HALF = 1, FAIL = 2, SIGNAL_BEFORE = 4, SIGNAL_AFTER = 8 };

typedef struct {
    unsigned kinds; /* bit k: calls of kind k are counted */
    long first, last, seen;
    int action, error, number;
} Plan;

static char root[4096], part[256];
static int log_fd = -1, n_plans;
static Plan plans[4];

/* Watch what lies under `folder` (an absolute path without links) and has `some` in its path. Each call becomes a line
 * of `log`: "kind path", with a * before it where a plan was carried out. */
void faults_watch(const char *folder, const char *some, int log) {
    n_plans = 0;
    snprintf(root, sizeof root, "%s", folder);
    snprintf(part, sizeof part, "%s", some);
    log_fd = log;
}

/* Of the calls whose kinds are in `kinds`, counted from 1, do `action` to those from `first` to `last`. */
void faults_plan(unsigned kinds, long first, long last, int action, int error, int number) {
    if (n_plans < 4) plans[n_plans++] = (Plan){kinds, first, last, 0, action, error, number};
}

/* ---- which call is meant ------------------------------------------------------------------------------------- */

static void path_of_descriptor(int descriptor, char *out, size_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    long n = syscall(SYS_readlinkat, AT_FDCWD, link, out, size - 1);
    out[n > 0 ? n : 0] = 0;
}

static void path_at(int folder, const char *path, char *out, size_t size) {
    if (path[0] == '/') {
        snprintf(out, size, "%s", path);
        return;
    }
    if (folder != AT_FDCWD)
        path_of_descriptor(folder, out, size);
    else if (syscall(SYS_getcwd, out, size) < 0)
        out[0] = 0;
    size_t n = strlen(out);
    snprintf(out + n, size - n, "/%s", path);
}

static int is_watched(const char *path) {
    size_t n = strlen(root);
    return n && !strncmp(path, root, n) && (path[n] == '/' || !path[n]) && strstr(path + n, part);
}

/* Counts a call about `path`, and carries out what is planned before it. Returns the actions that are left to do. */
static Plan arrive(int kind, const char *path) {
    Plan due = {0};
    if (!is_watched(path)) return due;
    for (int i = 0; i < n_plans; i++) {
        Plan *plan = &plans[i];
        if (!(plan->kinds >> kind & 1)) continue;
        long number = __atomic_add_fetch(&plan->seen, 1, __ATOMIC_SEQ_CST);
        if (number < plan->first || number > plan->last) continue;
        due.action |= plan->action;
        if (plan->error) due.error = plan->error;
        if (plan->number) due.number = plan->number;
    }
    if (log_fd >= 0) {
        char line[4400];
        int n = snprintf(line, sizeof line, "%s%s %s\n", due.action ? "*" : "", NAMES[kind], path + strlen(root));
        if (syscall(SYS_write, log_fd, line, n) < 0) abort();
    }
    if (due.action & SIGNAL_BEFORE) kill(getpid(), due.number);
    return due;
}

static void leave(Plan due) {
    int error = errno;
    if (due.action & SIGNAL_AFTER) kill(getpid(), due.number);
    errno = error;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* The body of a call about `path`: `real` runs, unless the call is to fail. */
#define CALL(kind, path, type, failed, real)          \
    Plan due = arrive(kind, path);                    \
    type result;                                      \
    if (due.action & FAIL) {                          \
        errno = due.error;                            \
        return failed;                                \
    }                                                 \
    result = (real);                                  \
    leave(due);                                       \
    return result;

#define BY_DESCRIPTOR(kind, type, real)                \
    char path[4096];                                   \
    path_of_descriptor(descriptor, path, sizeof path); \
    CALL(kind, path, type, -1, real)

#define BY_NAME(kind, folder, real)            \
    char full[4096];                           \
    path_at(folder, path, full, sizeof full);  \
    CALL(kind, full, int, -1, real)

/* ---- the calls ------------------------------------------------------------------------------------------------ */

static int writes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || flags & O_CREAT; }

static int open_at(int folder, const char *path, int flags, mode_t mode) {
    static __typeof__(&openat) real;
    if (!real) real = REAL(openat);
    if (!writes(flags)) return real(folder, path, flags, mode);
    BY_NAME(OPEN, folder, real(folder, path, flags, mode))
}

#define MODE                                                             \
    mode_t mode = 0;                                                     \
    if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) {           \
        va_list rest;                                                    \
        va_start(rest, flags);                                           \
        mode = va_arg(rest, mode_t);                                     \
        va_end(rest);                                                    \
    }

int open(const char *path, int flags, ...) { MODE return open_at(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE return open_at(AT_FDCWD, path, flags, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE return open_at(folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE return open_at(folder, path, flags, mode); }
int creat(const char *path, mode_t mode) { return open_at(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

static FILE *open_file(const char *name, const char *path, const char *mode) {
    FILE *(*real)(const char *, const char *) = (FILE * (*)(const char *, const char *)) dlsym(RTLD_NEXT, name);
    if (mode[0] == 'r' && !strchr(mode, '+')) return real(path, mode);
    char full[4096];
    path_at(AT_FDCWD, path, full, sizeof full);
    CALL(OPEN, full, FILE *, NULL, real(path, mode))
}

FILE *fopen(const char *path, const char *mode) { return open_file("fopen", path, mode); }
FILE *fopen64(const char *path, const char *mode) { return open_file("fopen64", path, mode); }

/* HALF of one byte is none, which is no answer that a system gives: such a write passes. */
static size_t share(Plan due, size_t size) { return due.action & HALF && size > 1 ? size / 2 : size; }

ssize_t write(int descriptor, const void *data, size_t size) {
    static __typeof__(&write) real;
    if (!real) real = REAL(write);
    BY_DESCRIPTOR(WRITE, ssize_t, real(descriptor, data, share(due, size)))
}

ssize_t pwrite(int descriptor, const void *data, size_t size, off_t at) {
    static __typeof__(&pwrite) real;
    if (!real) real = REAL(pwrite);
    BY_DESCRIPTOR(WRITE, ssize_t, real(descriptor, data, share(due, size), at))
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t at) {
    return pwrite(descriptor, data, size, at);
}

ssize_t writev(int descriptor, const struct iovec *parts, int n) {
    static __typeof__(&writev) real;
    if (!real) real = REAL(writev);
    BY_DESCRIPTOR(WRITE, ssize_t, real(descriptor, parts, due.action & HALF && n > 1 ? n / 2 : n))
}

size_t fwrite(const void *data, size_t size, size_t n, FILE *file) { /* numpy's; its own write comes from inside libc */
    static __typeof__(&fwrite) real;
    if (!real) real = REAL(fwrite);
    char path[4096];
    int descriptor = fileno(file);
    path_of_descriptor(descriptor, path, sizeof path);
    CALL(WRITE, path, size_t, 0, real(data, size, n, file))
}

int fsync(int descriptor) {
    static __typeof__(&fsync) real;
    if (!real) real = REAL(fsync);
    BY_DESCRIPTOR(FSYNC, int, real(descriptor))
}

int fdatasync(int descriptor) {
    static __typeof__(&fdatasync) real;
    if (!real) real = REAL(fdatasync);
    BY_DESCRIPTOR(FSYNC, int, real(descriptor))
}

int renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
    char full[4096], target[4096];
    path_at(from, old, full, sizeof full);
    path_at(to, new, target, sizeof target);
    CALL(RENAME, is_watched(target) ? target : full, int, -1, syscall(SYS_renameat2, from, old, to, new, flags))
}

int rename(const char *old, const char *new) { return renameat2(AT_FDCWD, old, AT_FDCWD, new, 0); }
int renameat(int from, const char *old, int to, const char *new) { return renameat2(from, old, to, new, 0); }

int mkdirat(int folder, const char *path, mode_t mode) {
    BY_NAME(MKDIR, folder, syscall(SYS_mkdirat, folder, path, mode))
}

int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int unlinkat(int folder, const char *path, int flags) {
    BY_NAME(flags & AT_REMOVEDIR ? RMDIR : UNLINK, folder, syscall(SYS_unlinkat, folder, path, flags))
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int remove(const char *path) {
    int result = unlink(path);
    return result && errno == EISDIR ? rmdir(path) : result;
}

int truncate(const char *path, off_t size) { BY_NAME(TRUNCATE, AT_FDCWD, syscall(SYS_truncate, path, size)) }
int truncate64(const char *path, off64_t size) { return truncate(path, size); }
int ftruncate(int descriptor, off_t size) { BY_DESCRIPTOR(TRUNCATE, int, syscall(SYS_ftruncate, descriptor, size)) }
int ftruncate64(int descriptor, off64_t size) { return ftruncate(descriptor, size); }

int posix_fallocate(int descriptor, off_t at, off_t size) { /* returns the error, and leaves errno alone */
    char path[4096];
    path_of_descriptor(descriptor, path, sizeof path);
    Plan due = arrive(TRUNCATE, path);
    if (due.action & FAIL) return due.error;
    int error = syscall(SYS_fallocate, descriptor, 0, at, size) ? errno : 0;
    leave(due);
    return error;
}

int posix_fallocate64(int descriptor, off64_t at, off64_t size) { return posix_fallocate(descriptor, at, size); }

int fchmodat(int folder, const char *path, mode_t mode, int flags) {
    (void)flags;
    BY_NAME(CHMOD, folder, syscall(SYS_fchmodat, folder, path, mode))
}

int chmod(const char *path, mode_t mode) { return fchmodat(AT_FDCWD, path, mode, 0); }
int fchmod(int descriptor, mode_t mode) { BY_DESCRIPTOR(CHMOD, int, syscall(SYS_fchmod, descriptor, mode)) }

int linkat(int from, const char *old, int to, const char *path, int flags) {
    BY_NAME(LINK, to, syscall(SYS_linkat, from, old, to, path, flags))
}

int link(const char *old, const char *path) { return linkat(AT_FDCWD, old, AT_FDCWD, path, 0); }
int symlinkat(const char *old, int to, const char *path) { BY_NAME(LINK, to, syscall(SYS_symlinkat, old, to, path)) }
int symlink(const char *old, const char *path) { return symlinkat(old, AT_FDCWD, path); }
