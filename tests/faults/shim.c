/* Makes file operations fail, for tests: built with `cc -shared -fPIC` and preloaded.

   Counted are the operations on paths below FAULT_UNDER of the kinds that are armed. The one numbered `at` ends the
   process as kill -9 does, or fails with an error; one that is sticky makes all later ones that take room fail too, as
   a full disk does. A short write writes half of what it was given, which is no error. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NONE, KILL, SHORT, ERROR };
enum { READ = 1, CHANGE = 2, ROOM = 4, WRITE = 8 };

static atomic_long count, at = -1;
static atomic_int how = NONE, code, sticky, kinds, hit;
static const char *under;

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

void fault_arm(long number, int what, int error, int stays, int of_kinds) {
    count = 0; hit = 0; how = what; code = error; sticky = stays; kinds = of_kinds; at = number;
}
long fault_count(void) { return count; }
int fault_hit(void) { return hit; }

static int below(const char *path) {
    if (!under) under = getenv("FAULT_UNDER");
    return under && *under && path && !strncmp(path, under, strlen(under));
}
static int path_below(int folder, const char *path) {
    char full[PATH_MAX * 2], link[64];
    if (!path) return 0;
    if (*path == '/') return below(path);
    ssize_t length;
    if (folder == AT_FDCWD) { if (!getcwd(full, PATH_MAX)) return 0; length = strlen(full); }
    else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        length = readlink(link, full, PATH_MAX - 1);
        if (length < 0) return 0;
    }
    snprintf(full + length, PATH_MAX, "/%s", path);
    return below(full);
}
static int fd_below(int fd) {
    char link[64], full[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, full, sizeof full - 1);
    if (length < 0) return 0;
    full[length] = 0;
    return below(full);
}
/* What happens to the next operation of a kind: NONE, SHORT, or ERROR with errno set. */
static int next(int kind) {
    if (hit && sticky && how == ERROR && (kind & (ROOM | WRITE))) { errno = code; return ERROR; }
    if (!(kind & kinds)) return NONE;
    long number = ++count;
    if (at < 0 || number != at) return NONE;
    hit = 1;
    if (how == KILL) kill(getpid(), SIGKILL);
    if (how == ERROR) errno = code;
    return how == KILL ? NONE : how;
}

#define OPENS(name, folder, path, call) \
    REAL(name); mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); } \
    int kind = flags & O_CREAT ? ROOM : flags & (O_WRONLY | O_RDWR | O_TRUNC) ? CHANGE : READ; \
    if (path_below(folder, path) && next(kind) == ERROR) return -1; \
    return call
int open(const char *path, int flags, ...) { OPENS(open, AT_FDCWD, path, real(path, flags, mode)); }
int open64(const char *path, int flags, ...) { OPENS(open64, AT_FDCWD, path, real(path, flags, mode)); }
int openat(int folder, const char *path, int flags, ...) { OPENS(openat, folder, path, real(folder, path, flags, mode)); }
int openat64(int folder, const char *path, int flags, ...) { OPENS(openat64, folder, path, real(folder, path, flags, mode)); }

#define WRITES(name, size, call, half) \
    REAL(name); \
    if (fd_below(fd)) { int fault = next(WRITE); if (fault == ERROR) return -1; if (fault == SHORT && size > 1) return half; } \
    return call
ssize_t write(int fd, const void *data, size_t size) { WRITES(write, size, real(fd, data, size), real(fd, data, size / 2)); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { WRITES(pwrite, size, real(fd, data, size, offset), real(fd, data, size / 2, offset)); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) { WRITES(pwrite64, size, real(fd, data, size, offset), real(fd, data, size / 2, offset)); }
ssize_t writev(int fd, const struct iovec *parts, int size) { WRITES(writev, size, real(fd, parts, size), real(fd, parts, size / 2)); }
#define READS(name, call) REAL(name); if (fd_below(fd) && next(READ) == ERROR) return -1; return call
ssize_t read(int fd, void *data, size_t size) { READS(read, real(fd, data, size)); }
ssize_t pread(int fd, void *data, size_t size, off_t offset) { READS(pread, real(fd, data, size, offset)); }
ssize_t pread64(int fd, void *data, size_t size, off64_t offset) { READS(pread64, real(fd, data, size, offset)); }
ssize_t sendfile64(int fd, int from, off64_t *offset, size_t size) { (void)from; (void)offset; (void)size; (void)fd; errno = EINVAL; return -1; }
ssize_t sendfile(int fd, int from, off_t *offset, size_t size) { (void)from; (void)offset; (void)size; (void)fd; errno = EINVAL; return -1; }
ssize_t copy_file_range(int from, off64_t *a, int to, off64_t *b, size_t size, unsigned flags) { (void)from; (void)a; (void)to; (void)b; (void)size; (void)flags; errno = EXDEV; return -1; }

#define OF_FILE(name) int name(int fd) { REAL(name); if (fd_below(fd) && next(CHANGE) == ERROR) return -1; return real(fd); }
OF_FILE(fsync)
OF_FILE(fdatasync)
int ftruncate(int fd, off_t size) { REAL(ftruncate); if (fd_below(fd) && next(CHANGE) == ERROR) return -1; return real(fd, size); }
int ftruncate64(int fd, off64_t size) { REAL(ftruncate64); if (fd_below(fd) && next(CHANGE) == ERROR) return -1; return real(fd, size); }

int rename(const char *from, const char *to) {
    REAL(rename);
    if ((path_below(AT_FDCWD, from) || path_below(AT_FDCWD, to)) && next(ROOM) == ERROR) return -1;
    return real(from, to);
}
int renameat(int a, const char *from, int b, const char *to) {
    REAL(renameat);
    if ((path_below(a, from) || path_below(b, to)) && next(ROOM) == ERROR) return -1;
    return real(a, from, b, to);
}
int mkdir(const char *path, mode_t mode) { REAL(mkdir); if (path_below(AT_FDCWD, path) && next(ROOM) == ERROR) return -1; return real(path, mode); }
int mkdirat(int folder, const char *path, mode_t mode) { REAL(mkdirat); if (path_below(folder, path) && next(ROOM) == ERROR) return -1; return real(folder, path, mode); }
int unlink(const char *path) { REAL(unlink); if (path_below(AT_FDCWD, path) && next(CHANGE) == ERROR) return -1; return real(path); }
int unlinkat(int folder, const char *path, int flags) { REAL(unlinkat); if (path_below(folder, path) && next(CHANGE) == ERROR) return -1; return real(folder, path, flags); }
int rmdir(const char *path) { REAL(rmdir); if (path_below(AT_FDCWD, path) && next(CHANGE) == ERROR) return -1; return real(path); }
