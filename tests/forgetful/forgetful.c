// Makes a power cut out of `kill -9`: an LD_PRELOAD library that writes an undo journal of everything a process tree
// does to the files below one folder, so that rollback.py can take back what was not synced.
//
//   FORGETFUL_WATCH    the folder to watch
//   FORGETFUL_JOURNAL  the folder of the journal, on the same file system and outside the watched one
//
// Before a change its undo record is appended (what the bytes, the length or the name were); a change that has no record
// did not happen. fsync and fdatasync append the sequence number before which all changes of that file are durable. A
// lock in shared memory, which survives the death of its holder, makes the journal's order the order of the changes, over
// threads and processes. No file descriptor is tracked: each call asks the kernel which file it is about, so that dup,
// fork, vfork and exec need no care. A file is named by its inode; the last name of one is kept as a hard link in the
// journal's folder, so that the number is not used again and the bytes can come back.
//
// Not seen, and said so in the journal instead of forgotten in silence (record '!'): stdio streams opened for writing and
// shared writable mappings. io_uring is not used by anything here. Records are drawn in rollback.py.
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

struct record {   // then `name` bytes of name and `data` bytes of data
    uint32_t magic, kind;
    uint64_t seq, inode, offset, size, data;
    uint64_t name;
};
enum { MAGIC = 0x54475246, CHUNK = 1 << 18 };

struct shared {   // one file, mapped by every process
    pthread_mutex_t lock;
    uint64_t seq, end, ready;   // end: length of the journal up to its last whole record
};

static struct shared *shared;
static int journal = -1, graves = -1;
static char watch[PATH_MAX];
static size_t watch_len;
static char chunk[CHUNK];   // under the lock

// ---- the journal; everything here runs under the lock and by system calls that nobody intercepts

static void give_up(const char *what) {
    dprintf(2, "forgetful: %s: %s\n", what, strerror(errno));
    abort();
}

static void lock(void) {
    if (pthread_mutex_lock(&shared->lock) == EOWNERDEAD) {
        if (syscall(SYS_ftruncate, journal, shared->end)) give_up("cutting the journal");
        pthread_mutex_consistent(&shared->lock);
    }
}
static void unlock(void) { pthread_mutex_unlock(&shared->lock); }

static void put(const void *p, size_t n) {
    for (const char *at = p; n;) {
        long w = syscall(SYS_write, journal, at, n);
        if (w <= 0) give_up("writing the journal");
        at += w;
        n -= w;
    }
}

static void begin(struct record r, const char *name) {
    r.magic = MAGIC;
    r.seq = ++shared->seq;
    r.name = strlen(name);
    put(&r, sizeof r);
    put(name, r.name);
}
static void finish(void) {
    struct stat s;
    if (fstat(journal, &s)) give_up("fstat of the journal");
    shared->end = s.st_size;
}

// Bytes [offset, offset + n) of the file as they are now, cut at its end; then its size.
static void note_bytes(int kind, int fd, const struct stat *s, uint64_t offset, uint64_t n) {
    uint64_t size = s->st_size, have = offset >= size ? 0 : n < size - offset ? n : size - offset;
    begin((struct record){.kind = kind, .inode = s->st_ino, .offset = offset, .size = size, .data = have}, "");
    if (have) {
        char self[40];
        snprintf(self, sizeof self, "/proc/self/fd/%d", fd);   // the descriptor may be open for writing alone
        int from = syscall(SYS_openat, AT_FDCWD, self, O_RDONLY | O_CLOEXEC, 0);
        if (from < 0) give_up("reading what is overwritten");
        for (uint64_t at = 0; at < have;) {
            uint64_t want = have - at < CHUNK ? have - at : CHUNK;
            long got = syscall(SYS_pread64, from, chunk, want, offset + at);
            if (got <= 0) give_up("reading what is overwritten");
            put(chunk, got);
            at += got;
        }
        syscall(SYS_close, from);
    }
    finish();
}

static void note_simple(int kind, uint64_t inode, uint64_t seq, const char *name) {
    begin((struct record){.kind = kind, .inode = inode, .offset = seq}, name);
    finish();
}

// ---- which files are watched

static bool inside(const char *path) {
    return !strncmp(path, watch, watch_len) && (path[watch_len] == '/' || !path[watch_len]);
}

static bool watched(int fd, struct stat *s) {
    char self[40], path[PATH_MAX];
    if (!shared || fstat(fd, s) || !(S_ISREG(s->st_mode) || S_ISDIR(s->st_mode))) return false;
    snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(self, path, sizeof path - 1);
    if (n <= 0) return false;
    path[n] = 0;
    return inside(path);
}

struct place {   // a name in a watched folder
    uint64_t folder, inode;   // inode 0: the name is free
    bool watched, is_folder;
    char name[NAME_MAX + 1];
};

static struct place find(int at, const char *path) {
    struct place p = {0};
    char folder[PATH_MAX];
    size_t n = path ? strlen(path) : 0;
    while (n > 1 && path[n - 1] == '/') n--;
    if (!shared || !n || n >= PATH_MAX) return p;
    memcpy(folder, path, n);
    folder[n] = 0;
    char *slash = strrchr(folder, '/');
    snprintf(p.name, sizeof p.name, "%.255s", slash ? slash + 1 : folder);
    if (slash) slash[slash == folder ? 1 : 0] = 0;
    else strcpy(folder, ".");
    int saved = errno, fd = syscall(SYS_openat, at, folder, O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
    struct stat s;
    if (fd >= 0) {
        p.watched = watched(fd, &s);
        p.folder = s.st_ino;
        if (p.watched && !fstatat(fd, p.name, &s, AT_SYMLINK_NOFOLLOW)) {
            p.inode = s.st_ino;
            p.is_folder = S_ISDIR(s.st_mode);
        }
        syscall(SYS_close, fd);
    }
    errno = saved;
    return p;
}

// What the name meant before the change. partner: the other folder, when a rename is about two.
static void note_name(const struct place *p, uint64_t partner) {
    if (!p->watched) return;
    begin((struct record){.kind = 'N', .inode = p->folder, .offset = p->inode, .size = partner << 1 | p->is_folder}, p->name);
    finish();
}

// Before a name is lost. A folder cannot have a second name: an open descriptor keeps its number from being used again.
static void keep(const struct place *p, int at, const char *path) {
    char grave[32];
    if (!p->watched || !p->inode) return;
    snprintf(grave, sizeof grave, "%lu", p->inode);
    if (p->is_folder) syscall(SYS_openat, at, path, O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
    else if (syscall(SYS_linkat, at, path, graves, grave, 0) && errno != EEXIST) give_up("keeping a file that is removed");
}

static bool synced_by_itself(int fd) {
    int flags = fcntl(fd, F_GETFL);
    return flags >= 0 && flags & O_DSYNC;
}

// ---- changes of bytes: WRITE runs `call` after the record of `n` bytes at `where`

#define WRITE(fd, where, n, call) ({                                                                  \
        struct stat s_;                                                                               \
        __typeof__(call) done_;                                                                       \
        if (!watched(fd, &s_)) done_ = call;                                                          \
        else {                                                                                        \
            lock();                                                                                   \
            fstat(fd, &s_);                                                                           \
            note_bytes('W', fd, &s_, where, n);                                                       \
            done_ = call;                                                                             \
            if (done_ > 0 && synced_by_itself(fd)) note_simple('S', s_.st_ino, shared->seq, "");      \
            unlock();                                                                                 \
        }                                                                                             \
        done_;                                                                                        \
    })

static uint64_t here(int fd, const struct stat *s) {
    return fcntl(fd, F_GETFL) & O_APPEND ? (uint64_t)s->st_size : (uint64_t)syscall(SYS_lseek, fd, 0, SEEK_CUR);
}
static uint64_t total(const struct iovec *v, int n) {
    uint64_t sum = 0;
    while (n-- > 0) sum += v++->iov_len;
    return sum;
}

EXPORT ssize_t write(int fd, const void *p, size_t n) { return WRITE(fd, here(fd, &s_), n, syscall(SYS_write, fd, p, n)); }
EXPORT ssize_t writev(int fd, const struct iovec *v, int k) {
    return WRITE(fd, here(fd, &s_), total(v, k), syscall(SYS_writev, fd, v, k));
}
EXPORT ssize_t pwrite64(int fd, const void *p, size_t n, off64_t o) { return WRITE(fd, o, n, syscall(SYS_pwrite64, fd, p, n, o)); }
EXPORT ssize_t pwrite(int fd, const void *p, size_t n, off_t o) { return pwrite64(fd, p, n, o); }
EXPORT ssize_t pwritev64v2(int fd, const struct iovec *v, int k, off64_t o, int flags) {
    return WRITE(fd, o == -1 ? here(fd, &s_) : (uint64_t)o, total(v, k), syscall(SYS_pwritev2, fd, v, k, o, 0, flags));
}
EXPORT ssize_t pwritev2(int fd, const struct iovec *v, int k, off_t o, int flags) { return pwritev64v2(fd, v, k, o, flags); }
EXPORT ssize_t pwritev64(int fd, const struct iovec *v, int k, off64_t o) { return pwritev64v2(fd, v, k, o, 0); }
EXPORT ssize_t pwritev(int fd, const struct iovec *v, int k, off_t o) { return pwritev64v2(fd, v, k, o, 0); }
EXPORT ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t n, unsigned flags) {
    return WRITE(out, to ? (uint64_t)*to : here(out, &s_), n, syscall(SYS_copy_file_range, in, from, out, to, n, flags));
}
EXPORT ssize_t sendfile64(int out, int in, off64_t *from, size_t n) {
    return WRITE(out, here(out, &s_), n, syscall(SYS_sendfile, out, in, from, n));
}
EXPORT ssize_t sendfile(int out, int in, off_t *from, size_t n) { return sendfile64(out, in, from, n); }

// ---- changes of length. A cut loses what lies behind it; growing loses nothing but must be taken back.

#define RESIZE(fd, size_, call) WRITE(fd, size_, UINT64_MAX - (uint64_t)(size_), call)

EXPORT int ftruncate64(int fd, off64_t n) { return RESIZE(fd, n, syscall(SYS_ftruncate, fd, n)); }
EXPORT int ftruncate(int fd, off_t n) { return ftruncate64(fd, n); }
EXPORT int truncate(const char *path, off_t n) {
    int fd = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CLOEXEC, 0);
    if (fd < 0) return -1;
    int done = ftruncate64(fd, n), saved = errno;
    syscall(SYS_close, fd);
    errno = saved;
    return done;
}
EXPORT int truncate64(const char *path, off64_t n) { return truncate(path, n); }

static int allocate(int fd, int mode, off_t o, off_t n) {
    if (mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE | FALLOC_FL_UNSHARE_RANGE)) {
        errno = EOPNOTSUPP;   // moving bytes within a file has no undo record
        return -1;
    }
    bool zeroes = mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE);
    return WRITE(fd, o, zeroes ? (uint64_t)n : 0, (int)syscall(SYS_fallocate, fd, mode, o, n));
}
EXPORT int fallocate(int fd, int mode, off_t o, off_t n) { return allocate(fd, mode, o, n); }
EXPORT int fallocate64(int fd, int mode, off64_t o, off64_t n) { return allocate(fd, mode, o, n); }
EXPORT int posix_fallocate(int fd, off_t o, off_t n) { return allocate(fd, 0, o, n) ? errno : 0; }
EXPORT int posix_fallocate64(int fd, off64_t o, off64_t n) { return allocate(fd, 0, o, n) ? errno : 0; }

// ---- changes of names

static int open_any(int at, const char *path, int flags, mode_t mode) {
    bool creates = flags & O_CREAT, cuts = flags & O_TRUNC;
    struct place p = creates || cuts ? find(at, path) : (struct place){0};
    if (!p.watched || (flags & O_TMPFILE) == O_TMPFILE) return syscall(SYS_openat, at, path, flags, mode);
    lock();
    p = find(at, path);
    if (creates && !p.inode) note_name(&p, 0);
    if (cuts && p.inode && !(creates && flags & O_EXCL)) {
        int fd = syscall(SYS_openat, at, path, (flags & ~(O_TRUNC | O_CREAT | O_ACCMODE)) | O_WRONLY | O_CLOEXEC, 0);
        struct stat s;
        if (fd >= 0 && watched(fd, &s) && S_ISREG(s.st_mode)) note_bytes('W', fd, &s, 0, UINT64_MAX);
        if (fd >= 0) syscall(SYS_close, fd);
    }
    int fd = syscall(SYS_openat, at, path, flags, mode);
    unlock();
    return fd;
}

#define OPEN_MODE(flags) ({ mode_t m_ = 0; if ((flags) & (O_CREAT | O_TMPFILE)) { va_list a_; va_start(a_, flags); m_ = va_arg(a_, mode_t); va_end(a_); } m_; })
EXPORT int open(const char *path, int flags, ...) { return open_any(AT_FDCWD, path, flags, OPEN_MODE(flags)); }
EXPORT int open64(const char *path, int flags, ...) { return open_any(AT_FDCWD, path, flags, OPEN_MODE(flags)); }
EXPORT int openat(int at, const char *path, int flags, ...) { return open_any(at, path, flags, OPEN_MODE(flags)); }
EXPORT int openat64(int at, const char *path, int flags, ...) { return open_any(at, path, flags, OPEN_MODE(flags)); }
EXPORT int creat(const char *path, mode_t mode) { return open_any(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
EXPORT int creat64(const char *path, mode_t mode) { return creat(path, mode); }
EXPORT int __open_2(const char *path, int flags) { return open_any(AT_FDCWD, path, flags, 0); }
EXPORT int __open64_2(const char *path, int flags) { return open_any(AT_FDCWD, path, flags, 0); }
EXPORT int __openat_2(int at, const char *path, int flags) { return open_any(at, path, flags, 0); }
EXPORT int __openat64_2(int at, const char *path, int flags) { return open_any(at, path, flags, 0); }

// Changes that give the name `path` another meaning, or none: `call` runs after the record of what it was.
#define NAME(at, path, call) ({                                                                        \
        struct place p_ = find(at, path);                                                              \
        int done_;                                                                                     \
        if (!p_.watched) done_ = call;                                                                 \
        else {                                                                                         \
            lock();                                                                                    \
            p_ = find(at, path);                                                                       \
            keep(&p_, at, path);                                                                       \
            note_name(&p_, 0);                                                                         \
            done_ = call;                                                                              \
            unlock();                                                                                  \
        }                                                                                              \
        done_;                                                                                         \
    })

static int rename_any(int at, const char *path, int at2, const char *path2, unsigned flags) {
    struct place a = find(at, path), b = find(at2, path2);
    if (!a.watched && !b.watched) return syscall(SYS_renameat2, at, path, at2, path2, flags);
    lock();
    a = find(at, path);
    b = find(at2, path2);
    bool two = a.watched && b.watched && a.folder != b.folder;
    if (b.inode != a.inode) keep(&b, at2, path2);
    note_name(&a, two ? b.folder : 0);
    note_name(&b, two ? a.folder : 0);
    int done = syscall(SYS_renameat2, at, path, at2, path2, flags);
    unlock();
    return done;
}
static int unlink_any(int at, const char *path, int flags) { return NAME(at, path, syscall(SYS_unlinkat, at, path, flags)); }

EXPORT int rename(const char *a, const char *b) { return rename_any(AT_FDCWD, a, AT_FDCWD, b, 0); }
EXPORT int renameat(int x, const char *a, int y, const char *b) { return rename_any(x, a, y, b, 0); }
EXPORT int renameat2(int x, const char *a, int y, const char *b, unsigned flags) { return rename_any(x, a, y, b, flags); }
EXPORT int linkat(int x, const char *a, int y, const char *b, int flags) {
    return NAME(y, b, syscall(SYS_linkat, x, a, y, b, flags));
}
EXPORT int link(const char *a, const char *b) { return linkat(AT_FDCWD, a, AT_FDCWD, b, 0); }
EXPORT int symlinkat(const char *to, int y, const char *b) { return NAME(y, b, syscall(SYS_symlinkat, to, y, b)); }
EXPORT int symlink(const char *to, const char *b) { return symlinkat(to, AT_FDCWD, b); }
EXPORT int unlinkat(int at, const char *path, int flags) { return unlink_any(at, path, flags); }
EXPORT int unlink(const char *path) { return unlink_any(AT_FDCWD, path, 0); }
EXPORT int rmdir(const char *path) { return unlink_any(AT_FDCWD, path, AT_REMOVEDIR); }
EXPORT int remove(const char *path) {
    int done = unlink(path);
    return done && errno == EISDIR ? rmdir(path) : done;
}
EXPORT int mkdirat(int at, const char *path, mode_t mode) { return NAME(at, path, syscall(SYS_mkdirat, at, path, mode)); }
EXPORT int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

// ---- what makes changes durable: those that were complete when the call began

static int sync_any(int fd, int call) {
    struct stat s;
    if (!watched(fd, &s)) return syscall(call, fd);
    lock();
    uint64_t before = shared->seq;
    unlock();
    int done = syscall(call, fd);
    if (!done) {
        lock();
        note_simple('S', call == SYS_syncfs ? 0 : s.st_ino, before, "");
        unlock();
    }
    return done;
}
EXPORT int fsync(int fd) { return sync_any(fd, SYS_fsync); }
EXPORT int fdatasync(int fd) { return sync_any(fd, SYS_fdatasync); }
EXPORT int syncfs(int fd) { return sync_any(fd, SYS_syncfs); }
EXPORT void sync(void) {
    uint64_t before = shared ? shared->seq : 0;
    syscall(SYS_sync);
    if (!shared) return;
    lock();
    note_simple('S', 0, before, "");
    unlock();
}
// sync_file_range promises nothing after a power cut (its manual page says so): passed on, not recorded.

// ---- what this layer cannot forget

static void cannot(int fd, const char *why) {
    struct stat s;
    char self[40], path[PATH_MAX] = "";
    if (!watched(fd, &s)) return;
    snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
    if (readlink(self, path, sizeof path - 1) < 0) return;
    lock();
    begin((struct record){.kind = '!', .inode = s.st_ino, .data = strlen(why)}, path);
    put(why, strlen(why));
    finish();
    unlock();
}
EXPORT void *mmap(void *a, size_t n, int prot, int flags, int fd, off_t o) {
    if (shared && fd >= 0 && prot & PROT_WRITE && (flags & MAP_TYPE) != MAP_PRIVATE) cannot(fd, "mapped for writing");
    return (void *)syscall(SYS_mmap, a, n, prot, flags, fd, o);
}
EXPORT void *mmap64(void *a, size_t n, int prot, int flags, int fd, off64_t o) { return mmap(a, n, prot, flags, fd, o); }

static FILE *stream(const char *path, const char *mode, const char *name) {
    FILE *(*real)(const char *, const char *) = dlsym(RTLD_NEXT, name);
    if (*mode == 'r' && !strchr(mode, '+')) return real(path, mode);
    FILE *f = real(path, mode);
    if (f && shared) cannot(fileno(f), "opened as a stdio stream");
    return f;
}
EXPORT FILE *fopen(const char *path, const char *mode) { return stream(path, mode, "fopen"); }
EXPORT FILE *fopen64(const char *path, const char *mode) { return stream(path, mode, "fopen64"); }

// ---- start

__attribute__((constructor)) static void start(void) {
    const char *folder = getenv("FORGETFUL_WATCH"), *to = getenv("FORGETFUL_JOURNAL");
    char path[PATH_MAX];
    struct stat s;
    if (!folder || !to) return;
    if (!realpath(folder, watch) || stat(watch, &s)) give_up(folder);
    watch_len = strlen(watch);
    snprintf(path, sizeof path, "%s/journal", to);
    journal = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    snprintf(path, sizeof path, "%s/graves", to);
    syscall(SYS_mkdir, path, 0755);
    graves = syscall(SYS_openat, AT_FDCWD, path, O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
    snprintf(path, sizeof path, "%s/lock", to);
    // The first process makes the lock under another name and links it into place, so that nobody sees it half made.
    char fresh[PATH_MAX + 32];
    snprintf(fresh, sizeof fresh, "%s.%d", path, getpid());
    int fd = syscall(SYS_openat, AT_FDCWD, fresh, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (journal < 0 || graves < 0 || fd < 0 || syscall(SYS_ftruncate, fd, sizeof *shared)) give_up(to);
    struct shared *made = (void *)syscall(SYS_mmap, NULL, sizeof *made, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    pthread_mutexattr_t a;
    pthread_mutexattr_init(&a);
    pthread_mutexattr_setpshared(&a, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&made->lock, &a);
    if (syscall(SYS_linkat, AT_FDCWD, fresh, AT_FDCWD, path, 0)) {
        if (errno != EEXIST) give_up(path);
        int other = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
        syscall(SYS_munmap, made, sizeof *made);
        made = (void *)syscall(SYS_mmap, NULL, sizeof *made, PROT_READ | PROT_WRITE, MAP_SHARED, other, 0);
        syscall(SYS_close, other);
    }
    syscall(SYS_unlinkat, AT_FDCWD, fresh, 0);
    syscall(SYS_close, fd);
    if (made == MAP_FAILED) give_up(path);
    shared = made;
}
