/*
 * Descriptor handlers of a context: the table, and the calling of callbacks. How the
 * kernel is asked is the monitor's affair.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <poll.h>

#include "aio/aio-internal.h"
#include "util/log.h"

short fd_handler_wanted(const AioFdHandler *h)
{
    if (h->removed) {
        return 0;
    }
    return (short)((h->io_read ? POLLIN : 0) | (h->io_write ? POLLOUT : 0));
}

static void check_own_thread(AioContext *ctx)
{
    if (bg_unlikely(aio_context_current() != ctx)) {
        bg_fatal("internal error: a descriptor of event loop '%s' was set in another thread", ctx->name);
    }
}

void aio_set_fd_handler(AioContext *ctx, int fd, AioHandler *io_read, AioHandler *io_write, void *opaque)
{
    AioFdHandler *h = g_hash_table_lookup(ctx->handlers, GINT_TO_POINTER(fd));

    check_own_thread(ctx);
    if (!io_read && !io_write) {
        if (h) {
            g_hash_table_remove(ctx->handlers, GINT_TO_POINTER(fd));
            h->removed = true;
            ctx->monitor->ops->update(ctx->monitor, h);
        }
        return;
    }
    if (!h) {
        h = g_new0(AioFdHandler, 1);
        h->fd = fd;
        g_hash_table_insert(ctx->handlers, GINT_TO_POINTER(fd), h);
    }
    h->io_read = io_read;
    h->io_write = io_write;
    h->opaque = opaque;
    ctx->monitor->ops->update(ctx->monitor, h);
}

/*
 * An error or a hang-up goes to whatever handler there is: a read or write then finds out, and nobody
 * else would take the descriptor out of its ready state.
 */
bool fd_handler_dispatch(AioFdHandler *h, short revents)
{
    const short failed = POLLERR | POLLHUP;
    bool progress = false;

    h->busy = true;
    if (!h->removed && h->io_read && (revents & (POLLIN | failed))) {
        h->io_read(h->opaque);
        progress = true;
    }
    if (!h->removed && h->io_write && (revents & (POLLOUT | failed))) {
        h->io_write(h->opaque);
        progress = true;
    }
    h->busy = false;
    return progress;
}
