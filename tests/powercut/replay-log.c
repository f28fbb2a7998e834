/*
 * replay-log: what a power cut leaves, from a log of writes (backends/filter/blklogwrites.c; also the logs of
 * QEMU's driver of that name, and of the kernel's dm-log-writes).
 *
 *   replay-log list LOG                        one line an entry: number, sector, sectors, flags, covered
 *   replay-log all LOG BASE OUT                BASE after all that was logged
 *   replay-log cut LOG BASE OUT ENTRIES SEED   BASE after a power cut when that many entries were complete
 *
 * A cut keeps what the last flush before it covers, and writes with FUA. Of the other changes, and of the one
 * after the cut, as it may have been in flight, chance keeps some, loses some and tears some between sectors.
 * It says how many of each.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <err.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC       UINT64_C(0x6a736677736872)
#define HEADER_SIZE 32
#define FLUSH       1
#define FUA         2
#define DISCARD     4
#define MARK        8
#define DISK_SECTOR 512
#define LARGEST     (UINT64_C(1) << 32) /* of images */

typedef struct Entry {
    uint64_t offset, bytes, flags; /* in bytes */
    uint64_t covered;              /* FLUSH: entries that it makes stable */
    const uint8_t *data;           /* NULL: none, or zeroes */
} Entry;

typedef struct Log {
    const uint8_t *bytes;
    uint64_t length, sector_size, count;
    Entry *entries;
} Log;

typedef struct Image {
    uint8_t *bytes;
    uint64_t length, room;
} Image;

static uint64_t get64(const uint8_t *p)
{
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--) {
        n = n << 8 | p[i];
    }
    return n;
}

/* ---- The log */

static const uint8_t *map(const char *path, uint64_t *length)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0) {
        err(1, "%s", path);
    }
    *length = (uint64_t)st.st_size;
    const uint8_t *bytes = mmap(NULL, *length ? *length : 1, PROT_READ, MAP_PRIVATE, fd, 0);
    if (bytes == MAP_FAILED) {
        err(1, "%s", path);
    }
    close(fd);
    return bytes;
}

static Entry parse_entry(const Log *log, const uint8_t *p, uint64_t number)
{
    Entry e = {.flags = get64(p + 16), .covered = number};
    uint64_t inline_length = get64(p + 24);
    if (!(e.flags & MARK)) {
        e.offset = get64(p) * log->sector_size;
        e.bytes = get64(p + 8) * log->sector_size;
    }
    if ((e.flags & FLUSH) && inline_length == 8) {
        e.covered = get64(p + HEADER_SIZE);
    }
    if (e.bytes && !(e.flags & DISCARD)) {
        e.data = p + log->sector_size;
    }
    return e;
}

static Log read_log(const char *path)
{
    Log log = {0};
    log.bytes = map(path, &log.length);
    if (log.length < HEADER_SIZE || get64(log.bytes) != MAGIC || get64(log.bytes + 8) != 1) {
        errx(1, "%s: not a log of writes", path);
    }
    log.count = get64(log.bytes + 16);
    log.sector_size = get64(log.bytes + 24) & UINT32_MAX;
    log.entries = calloc(log.count + 1, sizeof *log.entries);
    uint64_t at = log.sector_size;
    for (uint64_t i = 0; log.entries && i < log.count; i++) {
        if (at > log.length || log.length - at < log.sector_size) {
            errx(1, "%s: ends before entry %" PRIu64, path, i);
        }
        Entry e = log.entries[i] = parse_entry(&log, log.bytes + at, i);
        at += log.sector_size + (e.data ? e.bytes : 0);
        if (at > log.length || e.offset + e.bytes > LARGEST || e.covered > i) {
            errx(1, "%s: entry %" PRIu64 " makes no sense", path, i);
        }
    }
    return log;
}

static void list(const Log *log)
{
    for (uint64_t i = 0; i < log->count; i++) {
        const Entry *e = &log->entries[i];
        printf("%" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", i,
               e->offset / log->sector_size, e->bytes / log->sector_size, e->flags, e->covered);
    }
}

/* ---- The image */

static Image read_base(const Log *log, const char *path)
{
    Image image = {0};
    const uint8_t *bytes = map(path, &image.length);
    image.room = image.length;
    for (uint64_t i = 0; i < log->count; i++) {
        uint64_t end = log->entries[i].offset + log->entries[i].bytes;
        image.room = end > image.room ? end : image.room;
    }
    image.bytes = calloc(1, image.room + 1);
    if (!image.bytes) {
        err(1, "%s", path);
    }
    memcpy(image.bytes, bytes, image.length);
    return image;
}

static void write_image(const Image *image, const char *path)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    for (uint64_t done = 0; done < image->length;) {
        ssize_t n = write(fd, image->bytes + done, image->length - done);
        if (n < 0) {
            err(1, "%s", path);
        }
        done += (uint64_t)n;
    }
    if (fd < 0 || close(fd) < 0) {
        err(1, "%s", path);
    }
}

/* Bytes [skip, skip + n) of the change. A discard leaves zeroes, and does not make the image longer. */
static void apply(Image *image, const Entry *e, uint64_t skip, uint64_t n)
{
    uint64_t at = e->offset + skip, end = at + n;
    if (e->data) {
        memcpy(image->bytes + at, e->data + skip, n);
    } else {
        memset(image->bytes + at, 0, n);
    }
    if (end > image->length && !(e->flags & DISCARD)) {
        image->length = end;
    }
}

/* ---- Chance */

static uint64_t random_state;

static uint64_t random_below(uint64_t n)
{
    uint64_t z = random_state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return (z ^ z >> 31) % n;
}

typedef struct Tally {
    unsigned stable, kept, lost, torn;
} Tally;

/* The first sectors, or each by chance; false where there is only one. */
static bool tear(Image *image, const Entry *e)
{
    uint64_t sectors = (e->bytes + DISK_SECTOR - 1) / DISK_SECTOR;
    bool is_prefix = random_below(2);
    uint64_t prefix = random_below(sectors);
    for (uint64_t i = 0; i < sectors && sectors > 1; i++) {
        uint64_t skip = i * DISK_SECTOR, left = e->bytes - skip;
        if (is_prefix ? i < prefix : random_below(2)) {
            apply(image, e, skip, left < DISK_SECTOR ? left : DISK_SECTOR);
        }
    }
    return sectors > 1;
}

/* keep: how many of 8 stay whole; of the others, half are torn. */
static void apply_by_chance(Image *image, const Entry *e, unsigned keep, Tally *tally)
{
    if (!e->bytes) {
        return;
    }
    if (random_below(8) < keep) {
        apply(image, e, 0, e->bytes);
        tally->kept++;
    } else if (random_below(2) && tear(image, e)) {
        tally->torn++;
    } else {
        tally->lost++;
    }
}

static void replay_cut(const Log *log, Image *image, uint64_t entries, uint64_t seed)
{
    Tally tally = {0};
    uint64_t stable = 0;
    if (entries > log->count) {
        errx(1, "the log has only %" PRIu64 " entries", log->count);
    }
    random_state = seed;
    unsigned keep = (unsigned)random_below(8);
    for (uint64_t i = 0; i < entries; i++) {
        stable = log->entries[i].flags & FLUSH ? log->entries[i].covered : stable;
    }
    for (uint64_t i = 0; i < log->count && i <= entries; i++) {
        const Entry *e = &log->entries[i];
        if (i < stable || (i < entries && (e->flags & FUA))) {
            apply(image, e, 0, e->bytes);
            tally.stable++;
        } else {
            apply_by_chance(image, e, keep, &tally);
        }
    }
    printf("stable %u kept %u lost %u torn %u\n", tally.stable, tally.kept, tally.lost, tally.torn);
}

static void replay_all(const Log *log, Image *image)
{
    for (uint64_t i = 0; i < log->count; i++) {
        apply(image, &log->entries[i], 0, log->entries[i].bytes);
    }
}

static uint64_t number(const char *text)
{
    char *end;
    uint64_t n = strtoull(text, &end, 10);
    if (*end || end == text) {
        errx(2, "'%s' is no number", text);
    }
    return n;
}

int main(int argc, char **argv)
{
    const char *verb = argc > 1 ? argv[1] : "";
    bool is_list = !strcmp(verb, "list") && argc == 3;
    bool is_all = !strcmp(verb, "all") && argc == 5;
    bool is_cut = !strcmp(verb, "cut") && argc == 7;
    if (!is_list && !is_all && !is_cut) {
        fputs("usage: replay-log list LOG\n"
              "       replay-log all LOG BASE OUT\n"
              "       replay-log cut LOG BASE OUT ENTRIES SEED\n",
              stderr);
        return 2;
    }
    Log log = read_log(argv[2]);
    if (is_list) {
        list(&log);
    } else {
        Image image = read_base(&log, argv[3]);
        if (is_all) {
            replay_all(&log, &image);
        } else {
            replay_cut(&log, &image, number(argv[5]), number(argv[6]));
        }
        write_image(&image, argv[4]);
        free(image.bytes);
    }
    free(log.entries);
    return 0;
}
