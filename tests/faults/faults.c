// A disk that is slow, full or stuck on demand: an LD_PRELOAD library whose faults a test switches on and off while the
// process runs.
//
//   FAULTS_WATCH    the folder whose files are concerned
//   FAULTS_CONTROL  a file with the switches (struct control), mapped by this library and written by faults/disk.py
//
// Slow: every sync takes so much longer. Full: what needs new space fails with ENOSPC, that is creating files, growing
// them and reserving blocks; writing into blocks that exist goes on, as on a real disk. Stuck: opening a file for writing
// below the folder `stuck` does not return until the switch is off.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

struct control {
    volatile int32_t sync_ms, full, stuck, waiting;   // waiting: threads that are stuck now
    char stuck_below[PATH_MAX];
};
static struct control *control;
static char watch[PATH_MAX];

__attribute__((constructor)) static void start(void) {
    const char *folder = getenv("FAULTS_WATCH"), *file = getenv("FAULTS_CONTROL");
    if (!folder || !file) return;
    snprintf(watch, sizeof watch, "%s", folder);
    int fd = syscall(SYS_openat, AT_FDCWD, file, O_RDWR | O_CLOEXEC, 0);
    void *at = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) {
        dprintf(2, "faults: mapping %s: %s\n", file, strerror(errno));
        abort();
    }
    control = at;
    syscall(SYS_close, fd);
}

static bool below(const char *path, const char *folder) {
    size_t n = strlen(folder);
    return n && !strncmp(path, folder, n) && (path[n] == '/' || !path[n]);
}

static bool path_of(int fd, char *path) {
    char self[40];
    snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(self, path, PATH_MAX - 1);
    if (n <= 0) return false;
    path[n] = 0;
    return true;
}

static bool watched(int fd) {
    char path[PATH_MAX];
    int saved = errno;
    bool found = path_of(fd, path) && below(path, watch);
    errno = saved;
    return found;
}

// Whether a change of the file that ends at `end` needs space that is not there.
static bool no_space(int fd, uint64_t end) {
    struct stat s;
    if (!control || !control->full || fstat(fd, &s) || !S_ISREG(s.st_mode) || end <= (uint64_t)s.st_size) return false;
    return watched(fd);
}
#define SPACE(fd, end, call) (no_space(fd, end) ? (errno = ENOSPC, -1) : (call))

static uint64_t here(int fd) {
    struct stat s;
    if (fcntl(fd, F_GETFL) & O_APPEND && !fstat(fd, &s)) return s.st_size;
    return (uint64_t)syscall(SYS_lseek, fd, 0, SEEK_CUR);
}
static uint64_t total(const struct iovec *v, int n) {
    uint64_t sum = 0;
    while (n-- > 0) sum += v++->iov_len;
    return sum;
}

EXPORT ssize_t write(int fd, const void *p, size_t n) {
    return SPACE(fd, here(fd) + n, syscall(SYS_write, fd, p, n));
}
EXPORT ssize_t writev(int fd, const struct iovec *v, int k) {
    return SPACE(fd, here(fd) + total(v, k), syscall(SYS_writev, fd, v, k));
}
EXPORT ssize_t pwrite64(int fd, const void *p, size_t n, off64_t o) {
    return SPACE(fd, (uint64_t)o + n, syscall(SYS_pwrite64, fd, p, n, o));
}
EXPORT ssize_t pwrite(int fd, const void *p, size_t n, off_t o) { return pwrite64(fd, p, n, o); }
EXPORT int ftruncate64(int fd, off64_t n) { return SPACE(fd, (uint64_t)n, syscall(SYS_ftruncate, fd, n)); }
EXPORT int ftruncate(int fd, off_t n) { return ftruncate64(fd, n); }
EXPORT int fallocate64(int fd, int mode, off64_t o, off64_t n) {
    return SPACE(fd, (uint64_t)(o + n), syscall(SYS_fallocate, fd, mode, o, n));
}
EXPORT int fallocate(int fd, int mode, off_t o, off_t n) { return fallocate64(fd, mode, o, n); }

static void slow(int fd) {
    if (control && control->sync_ms && watched(fd)) usleep(control->sync_ms * 1000);
}
EXPORT int fsync(int fd) { slow(fd); return syscall(SYS_fsync, fd); }
EXPORT int fdatasync(int fd) { slow(fd); return syscall(SYS_fdatasync, fd); }

static int open_any(int at, const char *path, int flags, mode_t mode) {
    bool writes = (flags & O_ACCMODE) != O_RDONLY;
    if (control && writes && control->stuck) {
        char full[PATH_MAX], folder[PATH_MAX] = "";
        if (path[0] == '/') snprintf(full, sizeof full, "%s", path);
        else if (at == AT_FDCWD ? getcwd(folder, sizeof folder) != NULL : path_of(at, folder))
            if (snprintf(full, sizeof full, "%s/%s", folder, path) >= PATH_MAX) full[0] = 0;
        if (below(full, control->stuck_below)) {
            __atomic_add_fetch(&control->waiting, 1, __ATOMIC_SEQ_CST);
            while (control->stuck) usleep(1000);
            __atomic_sub_fetch(&control->waiting, 1, __ATOMIC_SEQ_CST);
        }
    }
    if (control && control->full && flags & O_CREAT && syscall(SYS_faccessat, at, path, F_OK)) {
        char full[PATH_MAX], *slash;
        snprintf(full, sizeof full, "%s", path);
        if ((slash = strrchr(full, '/'))) *slash = 0;
        int folder = syscall(SYS_openat, at, slash ? full : ".", O_PATH | O_CLOEXEC, 0);
        bool concerned = folder >= 0 && watched(folder);
        if (folder >= 0) syscall(SYS_close, folder);
        if (concerned) {
            errno = ENOSPC;
            return -1;
        }
    }
    return syscall(SYS_openat, at, path, flags, mode);
}

#define MODE(flags) ({ mode_t m_ = 0; if ((flags) & (O_CREAT | O_TMPFILE)) { va_list a_; va_start(a_, flags); m_ = va_arg(a_, mode_t); va_end(a_); } m_; })
EXPORT int open(const char *path, int flags, ...) { return open_any(AT_FDCWD, path, flags, MODE(flags)); }
EXPORT int open64(const char *path, int flags, ...) { return open_any(AT_FDCWD, path, flags, MODE(flags)); }
EXPORT int openat(int at, const char *path, int flags, ...) { return open_any(at, path, flags, MODE(flags)); }
EXPORT int openat64(int at, const char *path, int flags, ...) { return open_any(at, path, flags, MODE(flags)); }
