/*
 * Byte locks of the drivers file and host_device: they tell other processes (QEMU, qemu-img, qemu-nbd,
 * another blockgraphfs) which permissions our users take and share, in the places that QEMU uses.
 *
 * For each bit p of BlockPerm:
 *   a shared OFD lock on byte 100 + p   we have taken p
 *   a shared OFD lock on byte 200 + p   we let nobody else take p
 * So p may be taken where nobody else locks 200 + p, and may be denied to others where nobody else
 * locks 100 + p. To ask, one tests whether an exclusive lock could be had; one never takes it.
 *
 * An update is PREPARE (old and new locks held together, so that two who prepare at once see each other, then
 * ask), followed by COMMIT (drop what is only old) or ABORT (drop what is only new).
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "backends/protocol/file/file.h"
#include "util/error.h"
#include "util/log.h"

#define PERM_BASE  100
#define SHARE_BASE 200
#define N_PERMS    4
G_STATIC_ASSERT(BLOCK_PERM_ALL == (1 << N_PERMS) - 1);

static const char *const perm_words[N_PERMS] = {"consistent read", "write", "write unchanged", "resize"};

/* One byte: F_RDLCK, F_UNLCK with F_OFD_SETLK. 0 or -errno. */
static int lock_byte(int fd, off_t byte, short type)
{
    struct flock fl = {.l_whence = SEEK_SET, .l_start = byte, .l_len = 1, .l_type = type};
    int ret;
    do {
        ret = fcntl(fd, F_OFD_SETLK, &fl);
    } while (ret < 0 && errno == EINTR);
    return ret < 0 ? -errno : 0;
}

/* 1 where another open file has any lock on the byte, 0 where not, or -errno. */
static int byte_is_locked(int fd, off_t byte)
{
    struct flock fl = {.l_whence = SEEK_SET, .l_start = byte, .l_len = 1, .l_type = F_WRLCK};
    if (fcntl(fd, F_OFD_GETLK, &fl) < 0) {
        return -errno;
    }
    return fl.l_type != F_UNLCK;
}

int file_locks_probe(int fd)
{
    /* Byte 0 says nothing to anybody. */
    int ret = lock_byte(fd, 0, F_RDLCK);
    if (ret == 0) {
        lock_byte(fd, 0, F_UNLCK);
    }
    return ret;
}

/* Hold the locks that say `taken` and `denied`; with `drop`, no others. 0 or -errno. */
static int apply_locks(int fd, unsigned taken, unsigned denied, bool drop)
{
    for (int p = 0; p < N_PERMS; p++) {
        const struct {
            off_t byte;
            bool wanted;
        } locks[] = {{PERM_BASE + p, taken & (1u << p)}, {SHARE_BASE + p, denied & (1u << p)}};
        for (unsigned i = 0; i < G_N_ELEMENTS(locks); i++) {
            if (!locks[i].wanted && !drop) {
                continue;
            }
            int ret = lock_byte(fd, locks[i].byte, locks[i].wanted ? F_RDLCK : F_UNLCK);
            if (ret < 0) {
                return ret;
            }
        }
    }
    return 0;
}

/* Whether others' locks allow us to take and deny this. */
static int ask_others(BlockNode *node, unsigned taken, unsigned denied, GError **errp)
{
    FileState *s = node->opaque;
    for (int p = 0; p < N_PERMS; p++) {
        int by_share = taken & (1u << p) ? byte_is_locked(s->fd, SHARE_BASE + p) : 0;
        int by_perm = denied & (1u << p) ? byte_is_locked(s->fd, PERM_BASE + p) : 0;
        if (by_share < 0 || by_perm < 0) {
            return bg_error_set_errno(errp, by_share < 0 ? -by_share : -by_perm,
                                      "node '%s': option 'locking': cannot ask for locks on '%s'", node->name,
                                      s->filename);
        }
        if (by_share) {
            return bg_error_set(errp, EAGAIN,
                                "node '%s': another process holds a lock on '%s' that allows nobody else "
                                "\"%s\"; is a VM or qemu-nbd using it?",
                                node->name, s->filename, perm_words[p]);
        }
        if (by_perm) {
            return bg_error_set(errp, EAGAIN,
                                "node '%s': another process holds the \"%s\" lock on '%s'; is a VM or "
                                "qemu-nbd using it?",
                                node->name, perm_words[p], s->filename);
        }
    }
    return 0;
}

static unsigned denied_by(BlockPerm shared)
{
    return ~(unsigned)shared & BLOCK_PERM_ALL;
}

/* Back to the locks of the last COMMIT. */
static void settle(FileState *s)
{
    int ret = apply_locks(s->fd, s->locked_perm, denied_by(s->locked_shared), true);
    if (ret < 0) {
        /* Too many locks rather than too few: others may be refused without need. */
        bg_log(BG_LOG_WARNING, "cannot give up locks on '%s': %s", s->filename, g_strerror(-ret));
    }
}

int file_check_perm(BlockNode *node, BlockPerm perm, BlockPerm shared, GError **errp)
{
    FileState *s = node->opaque;
    if (!s->use_locks) {
        return 0;
    }
    unsigned denied = denied_by(shared), old_denied = denied_by(s->locked_shared);
    if (!(perm & ~s->locked_perm) && !(denied & ~old_denied)) {
        return 0; /* nothing new to ask for: giving up always works */
    }
    int ret = apply_locks(s->fd, perm | s->locked_perm, denied | old_denied, false);
    if (ret < 0) {
        bg_error_set_errno(errp, -ret, "node '%s': option 'locking': cannot lock '%s'", node->name,
                           s->filename);
    } else {
        ret = ask_others(node, perm, denied, errp);
    }
    if (ret < 0) {
        settle(s);
    }
    return ret;
}

void file_set_perm(BlockNode *node, BlockPerm perm, BlockPerm shared)
{
    FileState *s = node->opaque;
    if (!s->use_locks) {
        return;
    }
    s->locked_perm = perm;
    s->locked_shared = shared;
    settle(s);
}

void file_abort_perm_update(BlockNode *node)
{
    FileState *s = node->opaque;
    if (s->use_locks) {
        settle(s);
    }
}
