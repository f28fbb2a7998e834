/*
 * Questions that the drivers file and host_device ask about a file when they open it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "backends/protocol/file/file.h"

/* Upper bound of what is tried and assumed where nobody tells. */
#define MAX_PROBED_ALIGNMENT 4096

/* Magic numbers that older kernel headers lack. */
#define MAGIC_ZFS      0x2fc12fc1
#define MAGIC_BCACHEFS 0xca451a4e
#define MAGIC_JFS      0x3153464a

const char *file_type_name(mode_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFREG:
        return "a regular file";
    case S_IFDIR:
        return "a directory";
    case S_IFBLK:
        return "a block device";
    case S_IFCHR:
        return "a character device";
    case S_IFIFO:
        return "a FIFO";
    case S_IFSOCK:
        return "a socket";
    default:
        return "not a file";
    }
}

/* The mount that fd lies in, or -1. */
static int mount_id_of(int fd)
{
    g_autofree char *path = g_strdup_printf("/proc/self/fdinfo/%d", fd);
    g_autofree char *text = NULL;
    if (!g_file_get_contents(path, &text, NULL, NULL)) {
        return -1;
    }
    const char *line = strstr(text, "mnt_id:");
    return line ? atoi(line + strlen("mnt_id:")) : -1;
}

/* Whether a line of /proc/self/mountinfo has type fuse.blockgraphfs, and mount `id` or device `dev`. */
static bool line_is_own_mount(const char *line, int id, dev_t dev)
{
    int line_id;
    unsigned line_major, line_minor;
    const char *separator = strstr(line, " - ");
    return separator && g_str_has_prefix(separator + strlen(" - "), "fuse.blockgraphfs ") &&
           sscanf(line, "%d %*d %u:%u", &line_id, &line_major, &line_minor) == 3 &&
           (line_id == id || makedev(line_major, line_minor) == dev);
}

/* The table names a mount's type without a request to its daemon, which may be us, or hang. */
static bool is_own_mount(int id, dev_t dev)
{
    g_autofree char *text = NULL;
    if (!g_file_get_contents("/proc/self/mountinfo", &text, NULL, NULL)) {
        return false;
    }
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    for (char **line = lines; *line; line++) {
        if (line_is_own_mount(*line, id, dev)) {
            return true;
        }
    }
    return false;
}

bool file_is_in_own_mount(int fd)
{
    int id = mount_id_of(fd);
    return id >= 0 && is_own_mount(id, 0);
}

bool file_is_loop_over_own_mount(int fd)
{
    struct loop_info64 loop;
    return ioctl(fd, LOOP_GET_STATUS64, &loop) == 0 && loop.lo_device && is_own_mount(-1, loop.lo_device);
}

int64_t file_probe_length(int fd, bool is_device)
{
    if (is_device) {
        uint64_t size;
        if (ioctl(fd, BLKGETSIZE64, &size) < 0) {
            return -errno;
        }
        return size > INT64_MAX ? -EFBIG : (int64_t)size;
    }
    struct stat st;
    return fstat(fd, &st) < 0 ? -errno : st.st_size;
}

bool file_is_read_only_device(int fd)
{
    int read_only = 0;
    return ioctl(fd, BLKROGET, &read_only) == 0 && read_only;
}

/* Name of a block device in /sys, e.g. "sda1"; NULL if there is none. */
static char *device_name(dev_t dev)
{
    g_autofree char *path = g_strdup_printf("/sys/dev/block/%u:%u", major(dev), minor(dev));
    g_autofree char *target = g_file_read_link(path, NULL);
    return target ? g_path_get_basename(target) : NULL;
}

/* Whether what a device is told to flush outlives a loss of power. As BlockDriver.durable. */
static int device_durable(dev_t dev)
{
    g_autofree char *name = device_name(dev);
    if (!name) {
        return -1;
    }
    if (g_str_has_prefix(name, "zram") || g_str_has_prefix(name, "ram")) {
        return 0;
    }
    /* What these pass a flush to is not known here. */
    return g_str_has_prefix(name, "loop") || g_str_has_prefix(name, "nbd") ? -1 : 1;
}

/* Whether the file system's own code writes to block devices of this host. */
static bool is_disk_file_system(long type)
{
    switch ((unsigned long)type) {
    case EXT4_SUPER_MAGIC: /* ext2 and ext3 too */
    case XFS_SUPER_MAGIC:
    case BTRFS_SUPER_MAGIC:
    case F2FS_SUPER_MAGIC:
    case REISERFS_SUPER_MAGIC:
    case NILFS_SUPER_MAGIC:
    case MSDOS_SUPER_MAGIC:
    case EXFAT_SUPER_MAGIC:
    case MAGIC_ZFS:
    case MAGIC_BCACHEFS:
    case MAGIC_JFS:
        return true;
    default:
        return false;
    }
}

void file_probe_storage(FileState *s)
{
    struct stat st;
    struct statfs fs;
    s->durable = -1;
    s->local = s->is_device;
    if (fstat(s->fd, &st) < 0) {
        return;
    }
    if (s->is_device) {
        s->durable = device_durable(st.st_rdev);
        return;
    }
    if (fstatfs(s->fd, &fs) < 0) {
        return;
    }
    if (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC) {
        s->local = true;
        s->durable = 0;
    } else if (is_disk_file_system(fs.f_type)) {
        s->local = true;
        /* Some (btrfs, ZFS) have no device of their own here: then their word is taken. */
        s->durable = major(st.st_dev) ? device_durable(st.st_dev) : 1;
    }
}

/* ---- Limits */

/* Smallest power of two, from 1 on, for which try_alignment succeeds; 0 if none up to the maximum. */
static uint32_t smallest_alignment(int fd, bool of_memory)
{
    /* Twice the size, so that an address that is aligned to no more than asked for lies inside. */
    void *buf = NULL;
    if (posix_memalign(&buf, 2 * MAX_PROBED_ALIGNMENT, 2 * MAX_PROBED_ALIGNMENT) != 0) {
        return 0;
    }
    uint32_t align;
    for (align = 1; align <= MAX_PROBED_ALIGNMENT; align *= 2) {
        size_t skew = of_memory && align < MAX_PROBED_ALIGNMENT ? align : 0;
        size_t length = of_memory ? MAX_PROBED_ALIGNMENT : align;
        if (pread(fd, (char *)buf + skew, length, 0) >= 0 || errno != EINVAL) {
            break;
        }
    }
    free(buf);
    return align <= MAX_PROBED_ALIGNMENT ? align : 0;
}

/* What statx says of O_DIRECT: true where it knows; alignments 0 mean that O_DIRECT does not work. */
static bool statx_alignment(int fd, uint32_t *request, uint32_t *memory)
{
#ifdef STATX_DIOALIGN
    struct statx st;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &st) == 0 && (st.stx_mask & STATX_DIOALIGN)) {
        *request = st.stx_dio_offset_align;
        *memory = st.stx_dio_mem_align;
        return true;
    }
#endif
    return false;
}

static int direct_alignment(const FileState *s, uint32_t *request, uint32_t *memory)
{
    if (!statx_alignment(s->fd, request, memory)) {
        int sector = 0;
        if (s->is_device && ioctl(s->fd, BLKSSZGET, &sector) == 0 && sector > 0) {
            *request = sector;
        } else {
            *request = smallest_alignment(s->fd, false);
        }
        *memory = smallest_alignment(s->fd, true);
    }
    if (*request == 0 || *memory == 0) {
        return -EINVAL;
    }
    /* An empty file lets any probe pass; a disk's sector is the least that is believable. */
    *request = MAX(*request, 512);
    /* A zram device with blocks of 4 KiB says that it takes any 512 bytes, and then reads each block to the
     * start of its page in memory, over what is there (Linux 6.18). */
    *memory = MAX(*memory, *request);
    return 0;
}

int file_probe_limits(const FileState *s, bool direct, BlockLimits *limits)
{
    limits->max_iov = IOV_MAX;
    limits->max_transfer = 1 << 30; /* the kernel's own limit is just below 2 GiB */
    limits->request_alignment = 1;
    limits->memory_alignment = 1;
    if (s->is_device) {
        int sector = 512;
        ioctl(s->fd, BLKSSZGET, &sector);
        limits->pdiscard_alignment = sector;
        limits->pwrite_zeroes_alignment = sector;
    }
    if (!direct) {
        return 0;
    }
    return direct_alignment(s, &limits->request_alignment, &limits->memory_alignment);
}
