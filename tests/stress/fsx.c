/*
 * Random operations on a file, checked against a mirror in memory.
 *
 *   fsx [OPTION...] FILE MIRROR [FILE MIRROR]
 *
 *   -n N      operations (1000)
 *   -s SEED   of the random numbers (1)
 *   -l BYTES  longest operation (256 KiB)
 *   -a BYTES  a third of the operations begins and ends at multiples of it (65536)
 *   -L BYTES  most that the file may grow to (no growth)
 *   -o NAMES  operations to choose from, by commas (all but those that change the length)
 *   -c        two pairs of FILE MIRROR, changed at random and copied between
 *
 * MIRROR is an ordinary file that holds what FILE must read as; it is read at the start and written at the
 * end, so that a later run goes on. On a difference: where, what was expected, the last operations, and how
 * to do it again. Exit status 0: none; 1: a difference or an unexpected error; 2: wrong usage.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define HISTORY 40

typedef struct File {
    const char *path, *mirror_path;
    int fd, direct_fd;
    uint8_t *mirror; /* room for max_length */
    int64_t length;
} File;

static File files[2];
static unsigned n_files = 1;
static uint8_t *buf; /* of the longest operation, aligned to a page */
static int64_t longest = 256 * 1024, alignment = 65536, max_length;
static uint64_t random_state;
static long number; /* of the operation under way */
static char history[HISTORY][120];
static char **arguments;

/* ---- Random numbers */

static uint64_t next_random(void)
{
    random_state += UINT64_C(0x9e3779b97f4a7c15);
    uint64_t z = random_state;
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* From 0 to n - 1. */
static int64_t below(int64_t n)
{
    return (int64_t)(next_random() % (uint64_t)n);
}

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Bytes that tell where and when they were written, never zero. */
static void fill(uint8_t *p, int64_t n)
{
    uint64_t seed = next_random();
    for (int64_t i = 0; i < n; i++) {
        p[i] = (uint8_t)(1 + ((seed >> (i % 8 * 8) & 0xff) + (uint64_t)i) % 255);
    }
}

/* ---- Reports */

static void __attribute__((format(printf, 1, 2))) log_operation(const char *fmt, ...)
{
    char *line = history[number % HISTORY];
    int n = snprintf(line, sizeof history[0], "%ld: ", number);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line + n, sizeof history[0] - (size_t)n, fmt, ap);
    va_end(ap);
}

static void __attribute__((noreturn, format(printf, 1, 2))) fail(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    printf("\nthe last operations:\n");
    for (long i = number < HISTORY ? 0 : number - HISTORY + 1; i <= number; i++) {
        printf("  %s\n", history[i % HISTORY]);
    }
    printf("again, from the same start:");
    for (char **a = arguments; *a; a++) {
        printf(" %s", *a);
    }
    printf("\n");
    exit(1);
}

static void check_same(const File *f, int64_t offset, const uint8_t *got, int64_t n)
{
    const uint8_t *want = f->mirror + offset;
    int64_t first = 0, differing = 0;
    if (memcmp(got, want, (size_t)n) == 0) {
        return;
    }
    while (got[first] == want[first]) {
        first++;
    }
    for (int64_t i = first; i < n; i++) {
        differing += got[i] != want[i];
    }
    for (int64_t i = first; i < smaller(n, first + 16); i++) {
        printf("%#" PRIx64 ": expected %02x, got %02x\n", (uint64_t)(offset + i), want[i], got[i]);
    }
    fail("%s: %" PRId64 " bytes differ between %#" PRIx64 " and %#" PRIx64, f->path, differing,
         (uint64_t)(offset + first), (uint64_t)(offset + n));
}

static void check_zero(const File *f, int64_t from, int64_t to, const char *what)
{
    for (int64_t i = from; i < to; i++) {
        if (f->mirror[i]) {
            fail("%s: %s: %#" PRIx64 " to %#" PRIx64 " is called a hole, but at %#" PRIx64 " is data",
                 f->path, what, (uint64_t)from, (uint64_t)to, (uint64_t)i);
        }
    }
}

/* ---- Ranges */

typedef struct Range {
    int64_t offset, bytes;
} Range;

/* Part of the first `length` bytes, at least one. */
static Range choose_range(int64_t length)
{
    static const int64_t limits[] = {16, 600, 5000, 70000, INT64_MAX};
    int64_t most = smaller(smaller(limits[below(5)], longest), length);
    Range r = {.bytes = 1 + below(most)};
    r.offset = below(length - r.bytes + 1);
    int64_t align = below(3) == 0 ? alignment : below(2) == 0 ? 512 : 1;
    int64_t start = r.offset / align * align, bytes = (r.bytes + align - 1) / align * align;
    if (start + bytes <= length && bytes <= longest) {
        r = (Range){start, bytes};
    }
    return r;
}

static void log_range(const char *name, const File *f, Range r)
{
    log_operation("%s %s %#" PRIx64 "+%#" PRIx64, name, f == files ? "file" : "other", (uint64_t)r.offset,
                  (uint64_t)r.bytes);
}

/* ---- Operations: each returns 0 or errno */

static int full_read(const File *f, int fd, Range r)
{
    memset(buf, 0xee, (size_t)r.bytes);
    for (int64_t done = 0; done < r.bytes;) {
        ssize_t n = pread(fd, buf + done, (size_t)(r.bytes - done), r.offset + done);
        if (n < 0) {
            return errno;
        }
        if (n == 0) {
            fail("%s: the file ends at %#" PRIx64, f->path, (uint64_t)(r.offset + done));
        }
        done += n;
    }
    check_same(f, r.offset, buf, r.bytes);
    return 0;
}

static int full_write(File *f, int fd, Range r)
{
    fill(buf, r.bytes);
    for (int64_t done = 0; done < r.bytes;) {
        ssize_t n = pwrite(fd, buf + done, (size_t)(r.bytes - done), r.offset + done);
        if (n <= 0) {
            return n < 0 ? errno : EIO;
        }
        done += n;
    }
    memcpy(f->mirror + r.offset, buf, (size_t)r.bytes);
    return 0;
}

static int op_read(File *f, Range r)
{
    return full_read(f, f->fd, r);
}

static int op_write(File *f, Range r)
{
    return full_write(f, f->fd, r);
}

static int op_direct_read(File *f, Range r)
{
    return full_read(f, f->direct_fd, r);
}

static int op_direct_write(File *f, Range r)
{
    return full_write(f, f->direct_fd, r);
}

/* The pages around the range; the start of the range in them. NULL and errno. */
static uint8_t *map_range(const File *f, Range r, int protection, void **map, size_t *size)
{
    int64_t page = sysconf(_SC_PAGESIZE), start = r.offset / page * page;
    *size = (size_t)(r.offset - start + r.bytes);
    *map = mmap(NULL, *size, protection, MAP_SHARED, f->fd, start);
    return *map == MAP_FAILED ? NULL : (uint8_t *)*map + (r.offset - start);
}

static int op_map_read(File *f, Range r)
{
    void *map;
    size_t size;
    const uint8_t *p = map_range(f, r, PROT_READ, &map, &size);
    if (!p) {
        return errno;
    }
    memcpy(buf, p, (size_t)r.bytes);
    munmap(map, size);
    check_same(f, r.offset, buf, r.bytes);
    return 0;
}

static int op_map_write(File *f, Range r)
{
    void *map;
    size_t size;
    uint8_t *p = map_range(f, r, PROT_READ | PROT_WRITE, &map, &size);
    if (!p) {
        return errno;
    }
    fill(buf, r.bytes);
    memcpy(p, buf, (size_t)r.bytes);
    int ret = msync(map, size, MS_SYNC) < 0 ? errno : 0;
    munmap(map, size);
    memcpy(f->mirror + r.offset, buf, (size_t)r.bytes);
    return ret;
}

static int op_punch(File *f, Range r)
{
    if (fallocate(f->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, r.offset, r.bytes) < 0) {
        return errno;
    }
    memset(f->mirror + r.offset, 0, (size_t)r.bytes);
    return 0;
}

static int op_zero(File *f, Range r)
{
    int keep_size = below(2) ? FALLOC_FL_KEEP_SIZE : 0;
    if (fallocate(f->fd, FALLOC_FL_ZERO_RANGE | keep_size, r.offset, r.bytes) < 0) {
        return errno;
    }
    memset(f->mirror + r.offset, 0, (size_t)r.bytes);
    return 0;
}

/* Room, which changes nothing that can be read. */
static int op_allocate(File *f, Range r)
{
    return fallocate(f->fd, below(2) ? FALLOC_FL_KEEP_SIZE : 0, r.offset, r.bytes) < 0 ? errno : 0;
}

static int op_sync(File *f, Range r)
{
    (void)r;
    return (below(2) ? fsync(f->fd) : fdatasync(f->fd)) < 0 ? errno : 0;
}

static int op_seek(File *f, Range r)
{
    off_t data = lseek(f->fd, r.offset, SEEK_DATA);
    if (data < 0 && errno != ENXIO) {
        return errno;
    }
    check_zero(f, r.offset, data < 0 ? f->length : data, "SEEK_DATA");
    off_t hole = lseek(f->fd, r.offset, SEEK_HOLE);
    if (hole < r.offset || hole > f->length) {
        fail("%s: SEEK_HOLE from %#" PRIx64 " gives %" PRId64, f->path, (uint64_t)r.offset, (int64_t)hole);
    }
    if (hole < f->length) {
        data = lseek(f->fd, hole, SEEK_DATA);
        check_zero(f, hole, data < 0 ? f->length : data, "SEEK_HOLE");
    }
    return 0;
}

static int copy(const File *from, int64_t from_offset, File *to, Range r)
{
    off_t in = from_offset, out = r.offset;
    int64_t end = r.offset + r.bytes;
    while (out < end) {
        ssize_t n = copy_file_range(from->fd, &in, to->fd, &out, (size_t)(end - out), 0);
        if (n <= 0) {
            return n < 0 ? errno : EIO;
        }
    }
    memmove(to->mirror + r.offset, from->mirror + from_offset, (size_t)r.bytes);
    return 0;
}

static int op_copy(File *f, Range r)
{
    const File *from = n_files == 2 && below(2) ? &files[f == files] : f;
    r.bytes = smaller(r.bytes, from->length / 2);
    if (r.bytes == 0) {
        return 0;
    }
    int64_t at = below(from->length - r.bytes + 1);
    if (from == f && at < r.offset + r.bytes && r.offset < at + r.bytes) {
        at = r.offset >= r.bytes ? r.offset - r.bytes : r.offset + r.bytes; /* beside it */
        r.bytes = smaller(r.bytes, f->length - (at > r.offset ? at : r.offset));
    }
    log_operation("copy to %s %#" PRIx64 "+%#" PRIx64 " from %s %#" PRIx64, f == files ? "file" : "other",
                  (uint64_t)r.offset, (uint64_t)r.bytes, from == files ? "file" : "other", (uint64_t)at);
    return copy(from, at, f, r);
}

static int set_length(File *f, int64_t length)
{
    struct stat st;
    log_operation("truncate %s %#" PRIx64 " to %#" PRIx64, f == files ? "file" : "other", (uint64_t)f->length,
                  (uint64_t)length);
    if (ftruncate(f->fd, length) < 0 || fstat(f->fd, &st) < 0) {
        return errno;
    }
    if (st.st_size != length) {
        fail("%s: %" PRId64 " bytes after a truncate to %" PRId64, f->path, (int64_t)st.st_size, length);
    }
    if (length > f->length) {
        memset(f->mirror + f->length, 0, (size_t)(length - f->length));
    }
    f->length = length;
    return 0;
}

static int64_t choose_length(int64_t from, int64_t to)
{
    int64_t length = from + below(to - from + 1);
    return below(2) ? length / 512 * 512 < from ? from : length / 512 * 512 : length;
}

static int op_grow(File *f, Range r)
{
    (void)r;
    return f->length < max_length
               ? set_length(f, choose_length(f->length, smaller(max_length, f->length + longest)))
               : 0;
}

static int op_shrink(File *f, Range r)
{
    (void)r;
    int64_t least = f->length - smaller(longest, f->length - 1);
    return set_length(f, choose_length(least, f->length));
}

/* A write that ends beyond the end, where the file may grow by one. */
static int op_append(File *f, Range r)
{
    int64_t gap = below(3) ? 0 : below(longest);
    if (f->length + gap + r.bytes > max_length) {
        return 0;
    }
    r.offset = f->length + gap;
    log_range("append", f, r);
    memset(f->mirror + f->length, 0, (size_t)gap);
    int ret = full_write(f, f->fd, r);
    f->length = ret ? f->length : r.offset + r.bytes;
    return ret;
}

typedef struct Operation {
    const char *name;
    int (*run)(File *f, Range r);
    unsigned weight;
    bool only_if_named, may_be_refused;
    bool chosen;
    unsigned long done;
} Operation;

static Operation operations[] = {
    {.name = "read", .run = op_read, .weight = 10},
    {.name = "write", .run = op_write, .weight = 12},
    {.name = "direct-read", .run = op_direct_read, .weight = 6},
    {.name = "direct-write", .run = op_direct_write, .weight = 6},
    {.name = "map-read", .run = op_map_read, .weight = 4},
    {.name = "map-write", .run = op_map_write, .weight = 2},
    {.name = "punch", .run = op_punch, .weight = 5, .may_be_refused = true},
    {.name = "zero", .run = op_zero, .weight = 5},
    {.name = "allocate", .run = op_allocate, .weight = 1, .may_be_refused = true},
    {.name = "sync", .run = op_sync, .weight = 1},
    {.name = "seek", .run = op_seek, .weight = 3},
    {.name = "copy", .run = op_copy, .weight = 4},
    {.name = "grow", .run = op_grow, .weight = 1, .only_if_named = true},
    {.name = "shrink", .run = op_shrink, .weight = 1, .only_if_named = true},
    {.name = "append", .run = op_append, .weight = 2, .only_if_named = true},
};
#define N_OPERATIONS (sizeof operations / sizeof *operations)

static Operation *choose_operation(void)
{
    unsigned sum = 0;
    for (unsigned i = 0; i < N_OPERATIONS; i++) {
        sum += operations[i].chosen ? operations[i].weight : 0;
    }
    int64_t left = below(sum);
    for (Operation *op = operations;; op++) {
        if (op->chosen && (left -= op->weight) < 0) {
            return op;
        }
    }
}

static void step(void)
{
    Operation *op = choose_operation();
    File *f = &files[below(n_files)];
    Range r = choose_range(f->length);
    log_range(op->name, f, r);
    int err = op->run(f, r);
    if (err == EOPNOTSUPP && op->may_be_refused) {
        op->chosen = false; /* it will not be otherwise the next time */
    } else if (err) {
        fail("%s: %s: %s", f->path, op->name, strerror(err));
    } else {
        op->done++;
    }
}

/* ---- Start and end */

static void __attribute__((noreturn)) usage(const char *why)
{
    fprintf(stderr, "fsx: %s; the options are at the top of fsx.c\n", why);
    exit(2);
}

static void check_all(const File *f)
{
    for (int64_t at = 0; at < f->length; at += longest) {
        Range r = {at, smaller(longest, f->length - at)};
        int err = full_read(f, f->fd, r);
        if (err) {
            fail("%s: %s", f->path, strerror(err));
        }
    }
}

static void open_file(File *f)
{
    struct stat st, mirror_st;
    f->fd = open(f->path, O_RDWR | O_CLOEXEC);
    f->direct_fd = open(f->path, O_RDWR | O_DIRECT | O_CLOEXEC);
    int fd = open(f->mirror_path, O_RDONLY | O_CLOEXEC);
    if (f->fd < 0 || f->direct_fd < 0 || fd < 0 || fstat(f->fd, &st) < 0 || fstat(fd, &mirror_st) < 0) {
        usage(strerror(errno));
    }
    f->length = st.st_size;
    max_length = max_length > st.st_size ? max_length : st.st_size;
    f->mirror = malloc((size_t)max_length);
    if (st.st_size != mirror_st.st_size || st.st_size == 0 || !f->mirror ||
        read(fd, f->mirror, (size_t)st.st_size) != st.st_size) {
        usage("the mirror has not the file's length");
    }
    close(fd);
}

static void save_mirror(const File *f)
{
    FILE *out = fopen(f->mirror_path, "we");
    if (!out || fwrite(f->mirror, 1, (size_t)f->length, out) != (size_t)f->length || fclose(out) != 0) {
        fail("%s: cannot write it", f->mirror_path);
    }
}

static void choose_by_names(char *names)
{
    for (char *name = strtok(names, ","); name; name = strtok(NULL, ",")) {
        bool found = false;
        for (unsigned i = 0; i < N_OPERATIONS; i++) {
            found = found || !strcmp(name, operations[i].name);
            operations[i].chosen = operations[i].chosen || !strcmp(name, operations[i].name);
        }
        if (!found) {
            usage("unknown operation");
        }
    }
}

static int64_t number_from(const char *text)
{
    char *end;
    errno = 0;
    int64_t n = strtoll(text, &end, 0);
    if (errno || *end || n < 1) {
        usage("a number from 1 on is needed");
    }
    return n;
}

static long parse(int argc, char **argv)
{
    long count = 1000;
    bool named = false;
    int c;
    random_state = 1;
    while ((c = getopt(argc, argv, "n:s:l:a:L:o:c")) != -1) {
        switch (c) {
        case 'n':
            count = (long)number_from(optarg);
            break;
        case 's':
            random_state = (uint64_t)number_from(optarg);
            break;
        case 'l':
            longest = number_from(optarg);
            break;
        case 'a':
            alignment = number_from(optarg);
            break;
        case 'L':
            max_length = number_from(optarg);
            break;
        case 'o':
            choose_by_names(optarg);
            named = true;
            break;
        case 'c':
            n_files = 2;
            break;
        default:
            usage("wrong option");
        }
    }
    if (argc - optind != (int)n_files * 2) {
        usage("a file and its mirror are needed, with -c two of each");
    }
    for (unsigned i = 0; i < N_OPERATIONS && !named; i++) {
        operations[i].chosen = !operations[i].only_if_named;
    }
    return count;
}

int main(int argc, char **argv)
{
    arguments = calloc((size_t)argc + 1, sizeof *argv); /* -o is cut at its commas */
    for (int i = 0; i < argc; i++) {
        arguments[i] = strdup(argv[i]);
    }
    long count = parse(argc, argv);
    log_operation("start");
    for (unsigned i = 0; i < n_files; i++) {
        files[i] = (File){.path = argv[optind + 2 * (int)i], .mirror_path = argv[optind + 2 * (int)i + 1]};
        open_file(&files[i]);
    }
    buf = aligned_alloc(4096, (size_t)(longest + 4095) / 4096 * 4096);
    for (unsigned i = 0; i < n_files; i++) {
        check_all(&files[i]);
    }
    for (number = 1; number <= count; number++) {
        step();
    }
    number = count;
    for (unsigned i = 0; i < n_files; i++) {
        check_all(&files[i]);
        save_mirror(&files[i]);
    }
    for (unsigned i = 0; i < N_OPERATIONS; i++) {
        printf("%s=%lu ", operations[i].name, operations[i].done);
    }
    printf("\n");
    return 0;
}
