/*
 * One SCSI command: sending it, what its status means, and sending it again.
 *
 *   what happened                              | then
 *   -------------------------------------------+------------------------------------------------------------
 *   GOOD                                       | take() looks at the answer
 *   CHECK CONDITION                            | sense.c; unit attentions are followed by another try at
 *                                              | once, a capacity that has changed is read again before
 *   the same, for an earlier write             | the next flush fails; another try at once
 *   BUSY, TASK SET FULL, ACA ACTIVE,           | another try after a while, which grows, until the deadline
 *   TASK ABORTED                               | of the request; then -EBUSY
 *   RESERVATION CONFLICT                       | -EBUSY
 *   session lost                               | REMOTE_LOST, and the common part sends it again
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>

#include "backends/protocol/iscsi/iscsi.h"

#define NS_PER_MS      INT64_C(1000000)
#define NS_PER_S       INT64_C(1000000000)
#define WAIT_MIN_NS    (10 * NS_PER_MS)
#define WAIT_MAX_NS    NS_PER_S
#define BUSY_LIMIT_NS  (30 * NS_PER_S) /* where there is no deadline */
#define ATTENTIONS_MAX 32              /* one after another */

/* ---- One try */

static void log_failure(IscsiRequest *r, IscsiState *s, const char *text, int errnum)
{
    BlockNode *node = s->remote.node;

    if (!r->connecting && errnum != ENOTSUP) {
        block_graph_log_error(node->graph, node->name, r->op, (int64_t)r->lba * s->disk.block_size,
                              (int64_t)r->blocks * s->disk.block_size, errnum, text);
    }
}

static bool is_deferred(const struct scsi_sense *sense)
{
    return sense->error_type == SCSI_SENSE_FIXED_DEFERRED_ERRORS ||
           sense->error_type == SCSI_SENSE_DESCRIPTOR_DEFERRED_ERRORS;
}

/* Of an earlier write, which was acknowledged from a cache: the next flush fails. This command was not done.
 */
static int deferred_error(IscsiState *s, IscsiRequest *r)
{
    log_failure(r, s, "SCSI: deferred error: a write that was acknowledged has failed", EIO);
    remote_writes_lost(&s->remote);
    r->again = ISCSI_AGAIN_NOW;
    return -EIO;
}

static int check_condition(IscsiState *s, IscsiRequest *r, const struct scsi_task *task)
{
    if (is_deferred(&task->sense)) {
        return deferred_error(s, r);
    }
    r->key = task->sense.key;
    r->ascq = task->sense.ascq;
    int ret = iscsi_sense_error(r->key, r->ascq, &r->again);

    if (ret < 0 && r->again == ISCSI_NOT_AGAIN) {
        const char *detail = scsi_sense_ascq_str(r->ascq);
        g_autofree char *text = g_strdup_printf("SCSI: %s, %s%s0x%04x", iscsi_sense_key_name(r->key),
                                                detail ? detail : "", detail ? " " : "", r->ascq);

        log_failure(r, s, text, -ret);
    }
    return ret;
}

static int answer(IscsiState *s, IscsiRequest *r, struct scsi_task *task)
{
    if (r->whole && task->residual_status != SCSI_RESIDUAL_NO_RESIDUAL) {
        log_failure(r, s, "the target did not transfer all bytes", EIO);
        return -EIO;
    }
    return r->take ? r->take(r, task) : 0;
}

static int status_to_error(IscsiState *s, IscsiRequest *r, struct scsi_task *task, int status)
{
    int ret;

    switch (status) {
    case SCSI_STATUS_GOOD:
    case SCSI_STATUS_CONDITION_MET:
        return answer(s, r, task);
    case SCSI_STATUS_CHECK_CONDITION:
        ret = check_condition(s, r, task);
        /* What came with it are the sense data, no answer that could be taken. */
        return ret == 0 && r->take ? -EIO : ret;
    case SCSI_STATUS_BUSY:
    case SCSI_STATUS_TASK_SET_FULL:
    case SCSI_STATUS_ACA_ACTIVE:
    case SCSI_STATUS_TASK_ABORTED:
        r->again = ISCSI_AGAIN_LATER;
        return -EBUSY;
    case SCSI_STATUS_RESERVATION_CONFLICT:
        log_failure(r, s, "SCSI: reservation conflict: another initiator has reserved the disk", EBUSY);
        return -EBUSY;
    case SCSI_STATUS_CANCELLED:
        return REMOTE_LOST;
    default:
        return -EIO;
    }
}

/* RemoteTry */
static int coroutine_fn co_once(RemoteLink *link, void *opaque)
{
    IscsiRequest *r = opaque;
    IscsiState *s = link->opaque;
    struct scsi_task *task;
    IscsiOp op;

    r->again = ISCSI_NOT_AGAIN;
    r->key = -1;
    if (!s->iscsi) {
        return REMOTE_LOST;
    }
    task = r->make(r);
    if (!task) {
        return -ENOMEM;
    }
    iscsi_op_begin(s, &op);
    if (iscsi_scsi_command_async(s->iscsi, (int)s->target.lun, task, iscsi_op_callback, NULL, &op) != 0) {
        g_queue_unlink(&s->running, &op.link);
        scsi_free_scsi_task(task);
        return -EIO;
    }
    iscsi_send_soon(s);
    int ret = status_to_error(s, r, task, iscsi_op_co_wait(&op));

    scsi_free_scsi_task(task);
    return ret;
}

/* ---- Until it is done */

static int64_t busy_until_ns(IscsiState *s)
{
    int64_t timeout_ns = s->remote.options.timeout_ns;

    return aio_clock_ns() + (timeout_ns ? timeout_ns : BUSY_LIMIT_NS);
}

static int64_t longer(int64_t ns)
{
    ns += ns / 2 + (int64_t)((double)ns * g_random_double() / 2);
    return MIN(ns, WAIT_MAX_NS);
}

/*
 * Any request may be sent again, writes too, and also after a session that hung: a new session has the name
 * and ISID of the old one, so it reinstates that session, and the target ends the tasks of the old one before
 * it answers the login (RFC 7143, 6.3.5). None of them can overtake what is sent after.
 */
static int coroutine_fn co_try(IscsiState *s, IscsiRequest *r)
{
    return r->connecting ? co_once(&s->link, r) : remote_link_co_run(&s->link, co_once, r, REMOTE_RESEND);
}

int coroutine_fn iscsi_co_run(IscsiState *s, IscsiRequest *r)
{
    int64_t until_ns = busy_until_ns(s), wait_ns = WAIT_MIN_NS;
    int attentions = 0;

    for (;;) {
        int ret = co_try(s, r);

        if (r->again == ISCSI_NOT_AGAIN || ret == REMOTE_LOST) {
            return ret;
        }
        if (r->again == ISCSI_AGAIN_NOW) {
            if (++attentions > ATTENTIONS_MAX) {
                return -EIO;
            }
            if (r->ascq == SCSI_SENSE_ASCQ_CAPACITY_DATA_HAS_CHANGED && !r->connecting) {
                iscsi_co_capacity_changed(s);
            }
            continue;
        }
        int64_t now_ns = aio_clock_ns();

        if (now_ns + wait_ns > until_ns || now_ns > atomic_load(&s->remote.wait_limit_ns)) {
            log_failure(r, s, "the target was busy for too long", -ret);
            return ret;
        }
        aio_co_sleep_ns(wait_ns);
        wait_ns = longer(wait_ns);
    }
}
