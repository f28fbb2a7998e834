/*
 * qcow2: writing.
 *
 *   PLAN (lock) --place is ours alone--> IN PLACE: data, no lock --> done
 *               --else--> ALLOCATE: clusters taken, marked busy --copy around, data; no lock-->
 *                         LINK (lock): entries set, old clusters dropped, waiters go on
 *
 * An allocation that fails gives its clusters back; nothing has referred to them yet.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>

#include "backends/format/qcow2/qcow2.h"

typedef struct WritePlan {
    bool in_place;
    bool fresh;     /* clusters taken, rather than one that the entry refers to, or places in a data file */
    uint64_t host;  /* in place: of the first byte; else of the first cluster */
    int64_t bytes;  /* of the request */
    unsigned epoch; /* in place */
    Qcow2Busy busy;
    int64_t cow_start, cow_end; /* guest range to be written, the request's bytes in it */
} WritePlan;

/* ---- Plan */

static bool is_ours(const Qcow2State *s, Qcow2L2Entry e)
{
    return (e.entry & QCOW2_ENTRY_COPIED) && qcow2_entry_has_place(s, e.entry) &&
           !(e.entry & QCOW2_ENTRY_COMPRESSED);
}

static int coroutine_fn check_place_locked(Qcow2State *s, uint64_t host, int64_t bytes)
{
    if (!s->external) {
        return qcow2_overlap_check_locked(s, QCOW2_CLASS_DATA, host, (uint64_t)bytes);
    }
    return atomic_load(&s->corrupt) ? -EIO : 0;
}

static bool has_content(Qcow2L2Entry e)
{
    return (e.entry & QCOW2_ENTRY_COMPRESSED) || (e.entry & QCOW2_ENTRY_OFFSET);
}

static int64_t round_down(int64_t n, int64_t to)
{
    return n & ~(to - 1);
}

/* Use the cluster that the entry has: up to the next subcluster that is in use. */
static int coroutine_fn plan_reuse(Qcow2State *s, Qcow2L2Entry e, int64_t offset, int64_t bytes, WritePlan *p)
{
    int64_t sub = INT64_C(1) << s->sub_bits;
    int64_t end = MIN(offset + bytes, qcow2_cluster_start(s, offset) + s->cluster_size);
    for (int64_t at = round_down(offset, sub) + sub; at < end; at += sub) {
        if (qcow2_l2_type(s, e, (uint32_t)(at >> s->sub_bits) & (s->subs - 1)) == QCOW2_NORMAL) {
            end = at;
        }
    }
    p->fresh = false;
    p->host = e.entry & QCOW2_ENTRY_OFFSET;
    p->bytes = end - offset;
    p->cow_start = round_down(offset, sub);
    p->cow_end = round_down(end + sub - 1, sub);
    return check_place_locked(s, p->host, s->cluster_size);
}

/* New clusters, up to the first that has a place of its own or the end of the table. */
static int coroutine_fn plan_fresh(Qcow2State *s, const Qcow2Table *t, int64_t offset, int64_t bytes,
                                   WritePlan *p)
{
    int64_t start = qcow2_cluster_start(s, offset), sub = INT64_C(1) << s->sub_bits;
    uint32_t first = qcow2_l2_index(s, offset), n = 1, room = (1u << s->l2_bits) - first;
    while (n < room && start + n * s->cluster_size < offset + bytes &&
           !is_ours(s, qcow2_l2_load(s, t, first + n))) {
        n++;
    }
    int64_t end = start + n * s->cluster_size;
    p->fresh = !s->external;
    p->bytes = MIN(bytes, end - offset);
    /* What a cluster holds already moves along with it. */
    p->cow_start = has_content(qcow2_l2_load(s, t, first)) ? start : round_down(offset, sub);
    p->cow_end =
        has_content(qcow2_l2_load(s, t, first + n - 1)) ? end : round_down(offset + p->bytes + sub - 1, sub);
    if (s->external) {
        p->host = (uint64_t)start;
        return 0;
    }
    return qcow2_alloc_locked(s, n, &p->host);
}

static int coroutine_fn plan_allocation(Qcow2State *s, int64_t offset, int64_t bytes, WritePlan *p)
{
    Qcow2Table *t;
    int ret = qcow2_l2_writable_locked(s, offset, &t);
    if (ret < 0) {
        return ret;
    }
    Qcow2L2Entry e = qcow2_l2_load(s, t, qcow2_l2_index(s, offset));
    ret = is_ours(s, e) ? plan_reuse(s, e, offset, bytes, p) : plan_fresh(s, t, offset, bytes, p);
    qcow2_cache_put(t);
    if (ret == 0) {
        qcow2_busy_begin_locked(s, &p->busy, qcow2_cluster_start(s, offset),
                                qcow2_cluster_end(s, offset + p->bytes));
    }
    return ret;
}

static int coroutine_fn plan_write_locked(Qcow2State *s, int64_t offset, int64_t bytes, WritePlan *p)
{
    Qcow2Mapping m;
    qcow2_busy_wait_locked(s, offset, &bytes);
    int ret = qcow2_begin_change_locked(s);
    ret = ret < 0 ? ret : qcow2_lookup_locked(s, offset, bytes, &m);
    if (ret < 0) {
        return ret;
    }
    p->in_place = m.type == QCOW2_NORMAL && (m.entry & QCOW2_ENTRY_COPIED);
    if (!p->in_place) {
        return plan_allocation(s, offset, bytes, p);
    }
    p->host = m.host;
    p->bytes = m.bytes;
    ret = check_place_locked(s, m.host, m.bytes);
    if (ret == 0) {
        p->epoch = qcow2_io_enter_locked(s);
    }
    return ret;
}

/* ---- Data */

/* A data file is not to become longer than the guest's disk, nor need its device. */
static int64_t end_of_copy(Qcow2State *s, const WritePlan *p, int64_t end)
{
    return s->external ? MIN(p->cow_end, MAX(end, block_node_length(s->node))) : p->cow_end;
}

/* The request's bytes between copies of what is around them, in one write. */
static int coroutine_fn write_around(Qcow2State *s, const WritePlan *p, int64_t offset, const IoVector *qiov,
                                     size_t qiov_offset)
{
    int64_t end = offset + p->bytes, copy_end = end_of_copy(s, p, end);
    int64_t n_head = offset - p->cow_start, n_tail = copy_end - end;
    g_autofree uint8_t *buf = g_try_malloc((size_t)MAX(n_head + n_tail, 1));
    g_autofree struct iovec *iov = g_new(struct iovec, (size_t)qiov->niov + 2);
    if (!buf) {
        return -ENOMEM;
    }
    int ret = n_head ? qcow2_read_source(s, p->cow_start, n_head, buf) : 0;
    if (ret == 0 && n_tail) {
        ret = qcow2_read_source(s, end, n_tail, buf + n_head);
    }
    if (ret < 0) {
        return ret;
    }
    int niov = 0;
    if (n_head) {
        iov[niov++] = (struct iovec){buf, (size_t)n_head};
    }
    niov += io_vector_slice(qiov, qiov_offset, (size_t)p->bytes, iov + niov);
    if (n_tail) {
        iov[niov++] = (struct iovec){buf + n_head, (size_t)n_tail};
    }
    IoVector whole = {iov, niov, (size_t)(copy_end - p->cow_start)};
    int64_t at = (int64_t)p->host + (p->cow_start - p->busy.start);
    return block_child_co_pwritev(s->data, at, (int64_t)whole.size, &whole, 0, 0);
}

/* ---- Link */

/* Subclusters of the cluster at `start` that lie in the plan's range, as bits. */
static uint64_t written_subs(const Qcow2State *s, const WritePlan *p, int64_t start)
{
    int64_t from = MAX(p->cow_start, start), to = MIN(p->cow_end, start + s->cluster_size);
    uint32_t first = (uint32_t)((from - start) >> s->sub_bits), end = (uint32_t)((to - start) >> s->sub_bits);
    return ((UINT64_C(1) << end) - 1) & ~((UINT64_C(1) << first) - 1);
}

static int coroutine_fn link_locked(Qcow2State *s, const WritePlan *p)
{
    Qcow2Table *t;
    int ret = qcow2_l2_writable_locked(s, p->busy.start, &t);
    if (ret < 0) {
        return ret;
    }
    for (int64_t start = p->busy.start; start < p->busy.end; start += s->cluster_size) {
        uint32_t i = qcow2_l2_index(s, start);
        Qcow2L2Entry e = qcow2_l2_load(s, t, i);
        if (p->fresh) {
            qcow2_drop_entry_locked(s, e.entry);
        }
        e.entry = (p->host + (uint64_t)(start - p->busy.start)) | QCOW2_ENTRY_COPIED;
        if (s->extended) {
            uint64_t subs = written_subs(s, p, start);
            e.bitmap = (e.bitmap & ~(subs | subs << 32)) | subs;
        }
        qcow2_l2_store(s, t, i, e);
    }
    s->link_count++;
    qcow2_cache_put(t);
    return 0;
}

static int coroutine_fn finish_allocation(Qcow2State *s, WritePlan *p, int ret, bool *should_sync)
{
    co_mutex_lock(&s->lock);
    ret = ret < 0 ? ret : link_locked(s, p);
    if (ret < 0 && p->fresh) {
        qcow2_unref_locked(s, p->host >> s->cluster_bits,
                           (uint64_t)(p->busy.end - p->busy.start) >> s->cluster_bits, NULL);
    }
    qcow2_busy_end_locked(s, &p->busy);
    *should_sync |= qcow2_should_sync(s);
    co_mutex_unlock(&s->lock);
    return ret;
}

/* ---- The request */

int coroutine_fn qcow2_co_pwritev(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                  size_t qiov_offset, BlockRequestFlags flags)
{
    Qcow2State *s = node->opaque;
    bool should_sync = false;
    while (bytes > 0) {
        WritePlan p;
        co_mutex_lock(&s->lock);
        int ret = plan_write_locked(s, offset, bytes, &p);
        co_mutex_unlock(&s->lock);
        if (ret < 0) {
            return ret;
        }
        if (p.in_place) {
            ret = block_child_co_pwritev(s->data, (int64_t)p.host, p.bytes, qiov, qiov_offset, 0);
            qcow2_io_leave(s, p.epoch);
        } else {
            ret = write_around(s, &p, offset, qiov, qiov_offset);
            ret = finish_allocation(s, &p, ret, &should_sync);
        }
        if (ret < 0) {
            return ret;
        }
        offset += p.bytes;
        qiov_offset += (size_t)p.bytes;
        bytes -= p.bytes;
    }
    return should_sync ? qcow2_sync(s) : 0;
}
