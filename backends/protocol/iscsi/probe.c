/*
 * What the disk is: capacity, limits, what it can do; and whether it is the same after a new login.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "backends/protocol/iscsi/iscsi.h"
#include "util/error.h"
#include "util/log.h"

#define ANSWER_MAX 4096 /* of an inquiry */

/* A request of an attempt, and what it fills in. */
typedef struct ProbeRequest {
    IscsiRequest r; /* first */
    IscsiState *s;
    IscsiDisk *disk;
    int page;
    bool found; /* inquiry of page 0: b0 is there, and so on, by page */
    uint8_t pages[256];
} ProbeRequest;

static const ProbeRequest *probe_of(const IscsiRequest *r)
{
    return (const ProbeRequest *)r;
}

static int coroutine_fn co_ask(ProbeRequest *p, struct scsi_task *(*make)(const IscsiRequest *r),
                               int (*take)(IscsiRequest *r, struct scsi_task *task))
{
    p->r.make = make;
    p->r.take = take;
    p->r.op = BLOCK_OP_CONNECT;
    return iscsi_co_run(p->s, &p->r);
}

/* ---- Ready */

static struct scsi_task *make_ready(const IscsiRequest *r)
{
    return scsi_cdb_testunitready();
}

/* ---- Inquiry */

static struct scsi_task *make_inquiry(const IscsiRequest *r)
{
    const ProbeRequest *p = probe_of(r);

    return p->page < 0 ? scsi_cdb_inquiry(0, 0, 255) : scsi_cdb_inquiry(1, p->page, ANSWER_MAX);
}

static int take_inquiry(IscsiRequest *r, struct scsi_task *task)
{
    const struct scsi_inquiry_standard *inquiry = scsi_datain_unmarshall(task);

    if (!inquiry) {
        return -EPROTO;
    }
    if (inquiry->qualifier != SCSI_INQUIRY_PERIPHERAL_QUALIFIER_CONNECTED) {
        return -ENXIO;
    }
    return inquiry->device_type == SCSI_INQUIRY_PERIPHERAL_DEVICE_TYPE_DIRECT_ACCESS ? 0 : -EMEDIUMTYPE;
}

static int take_pages(IscsiRequest *r, struct scsi_task *task)
{
    ProbeRequest *p = (ProbeRequest *)r;
    const struct scsi_inquiry_supported_pages *pages = scsi_datain_unmarshall(task);

    for (int i = 0; pages && i < pages->num_pages; i++) {
        p->pages[pages->pages[i]] = 1;
    }
    return 0;
}

static int take_block_limits(IscsiRequest *r, struct scsi_task *task)
{
    IscsiDisk *d = probe_of(r)->disk;
    const struct scsi_inquiry_block_limits *limits = scsi_datain_unmarshall(task);

    if (limits) {
        d->max_transfer = limits->max_xfer_len;
        d->max_unmap = limits->max_unmap == UINT32_MAX ? 0 : limits->max_unmap;
        d->max_write_same = limits->max_ws_len;
        /* Regions that do not begin at 0 are not known to the core; then discards are not cut to them. */
        bool from_0 = !limits->ugavalid || limits->unmap_gran_align == 0;

        d->unmap_granularity = from_0 ? limits->opt_unmap_gran : 0;
    }
    return 0;
}

static int take_provisioning(IscsiRequest *r, struct scsi_task *task)
{
    IscsiDisk *d = probe_of(r)->disk;
    const struct scsi_inquiry_logical_block_provisioning *lbp = scsi_datain_unmarshall(task);

    if (lbp) {
        d->has_unmap = lbp->lbpu;
        d->write_same_16_unmaps = lbp->lbpws;
        d->write_same_10_unmaps = lbp->lbpws10;
        d->unmapped_reads_zeroes |= lbp->lbprz & 1;
    }
    return 0;
}

static int take_identity(IscsiRequest *r, struct scsi_task *task)
{
    IscsiDisk *d = probe_of(r)->disk;
    const struct scsi_inquiry_device_identification *id = scsi_datain_unmarshall(task);
    g_autoptr(GString) text = g_string_new(NULL);

    /* Designators of the port differ with the way to the disk. */
    for (const struct scsi_inquiry_device_designator *e = id ? id->designators : NULL; e; e = e->next) {
        if (e->association != SCSI_ASSOCIATION_LOGICAL_UNIT || !e->designator) {
            continue;
        }
        g_string_append_printf(text, "%d:", e->designator_type);
        for (int i = 0; i < e->designator_length; i++) {
            g_string_append_printf(text, "%02x", (uint8_t)e->designator[i]);
        }
        g_string_append_c(text, ' ');
    }
    if (text->len) {
        d->identity = g_strdup(text->str);
    }
    return 0;
}

static int take_serial(IscsiRequest *r, struct scsi_task *task)
{
    IscsiDisk *d = probe_of(r)->disk;
    const struct scsi_inquiry_unit_serial_number *serial = scsi_datain_unmarshall(task);

    if (serial && serial->usn && *serial->usn) {
        d->identity = g_strdup_printf("serial:%s", serial->usn);
    }
    return 0;
}

/* Pages are optional: what the target does not tell is taken to be absent. Only a lost session is an error.
 */
static int coroutine_fn co_ask_page(ProbeRequest *p, int page,
                                    int (*take)(IscsiRequest *r, struct scsi_task *task))
{
    if (page != 0 && !p->pages[page]) {
        return 0;
    }
    p->page = page;
    int ret = co_ask(p, make_inquiry, take);

    return ret == REMOTE_LOST ? ret : 0;
}

static int coroutine_fn co_ask_pages(ProbeRequest *p)
{
    int ret = co_ask_page(p, SCSI_INQUIRY_PAGECODE_SUPPORTED_VPD_PAGES, take_pages);

    if (ret == 0) {
        ret = co_ask_page(p, SCSI_INQUIRY_PAGECODE_BLOCK_LIMITS, take_block_limits);
    }
    if (ret == 0) {
        ret = co_ask_page(p, SCSI_INQUIRY_PAGECODE_LOGICAL_BLOCK_PROVISIONING, take_provisioning);
    }
    if (ret == 0) {
        ret = co_ask_page(p, SCSI_INQUIRY_PAGECODE_DEVICE_IDENTIFICATION, take_identity);
    }
    if (ret == 0 && !p->disk->identity) {
        ret = co_ask_page(p, SCSI_INQUIRY_PAGECODE_UNIT_SERIAL_NUMBER, take_serial);
    }
    return ret;
}

/* ---- Capacity */

static struct scsi_task *make_capacity_16(const IscsiRequest *r)
{
    return scsi_cdb_readcapacity16();
}

static int take_capacity_16(IscsiRequest *r, struct scsi_task *task)
{
    IscsiDisk *d = probe_of(r)->disk;
    const struct scsi_readcapacity16 *c = scsi_datain_unmarshall(task);

    if (!c) {
        return -EPROTO;
    }
    d->blocks = c->returned_lba + 1;
    d->block_size = c->block_length;
    d->thin = c->lbpme;
    d->unmapped_reads_zeroes |= c->lbprz;
    return 0;
}

static struct scsi_task *make_capacity_10(const IscsiRequest *r)
{
    return scsi_cdb_readcapacity10(0, 0);
}

static int take_capacity_10(IscsiRequest *r, struct scsi_task *task)
{
    IscsiDisk *d = probe_of(r)->disk;
    const struct scsi_readcapacity10 *c = scsi_datain_unmarshall(task);

    if (!c || c->lba == UINT32_MAX) { /* the latter: too large to be said so */
        return -EPROTO;
    }
    d->blocks = (uint64_t)c->lba + 1;
    d->block_size = c->block_size;
    return 0;
}

static int coroutine_fn co_ask_capacity(ProbeRequest *p)
{
    int ret = co_ask(p, make_capacity_16, take_capacity_16);

    if (ret < 0 && ret != REMOTE_LOST) {
        ret = co_ask(p, make_capacity_10, take_capacity_10);
    }
    return ret;
}

static int check_capacity(const IscsiDisk *d, GError **errp)
{
    uint32_t size = d->block_size;

    if (size < 512 || size > 65536 || (size & (size - 1))) {
        return bg_error_set(errp, ENOTSUP, "blocks of %" PRIu32 " bytes are not supported", size);
    }
    if (d->blocks == 0 || d->blocks > (uint64_t)BLOCK_MAX_LENGTH / size) {
        return bg_error_set(errp, EFBIG, "a disk of %" PRIu64 " blocks is not supported", d->blocks);
    }
    return 0;
}

/* ---- Mode pages */

static struct scsi_task *make_mode(const IscsiRequest *r)
{
    return scsi_cdb_modesense6(1, SCSI_MODESENSE_PC_CURRENT, probe_of(r)->page, 0, 255);
}

static int take_mode(IscsiRequest *r, struct scsi_task *task)
{
    IscsiDisk *d = probe_of(r)->disk;
    struct scsi_mode_sense *mode = scsi_datain_unmarshall(task);

    if (!mode) {
        return -EPROTO;
    }
    d->write_protected = mode->device_specific_parameter & 0x80;
    d->fua = mode->device_specific_parameter & 0x10;
    const struct scsi_mode_page *page = scsi_modesense_get_page(mode, SCSI_MODEPAGE_CACHING, 0);

    if (page) {
        d->cache_known = true;
        d->cache_on = page->caching.wce;
    }
    return 0;
}

static int coroutine_fn co_ask_mode(ProbeRequest *p)
{
    p->page = SCSI_MODEPAGE_CACHING;
    int ret = co_ask(p, make_mode, take_mode);

    if (ret < 0 && ret != REMOTE_LOST) { /* the header, at least, says whether it may be written */
        p->page = SCSI_MODEPAGE_RETURN_ALL_PAGES;
        ret = co_ask(p, make_mode, take_mode);
    }
    return ret == REMOTE_LOST ? ret : 0;
}

static struct scsi_task *make_sync(const IscsiRequest *r)
{
    return scsi_cdb_synchronizecache10(0, 0, 0, 0);
}

/* The only way to know whether the target knows the command is to send it. */
static int coroutine_fn co_ask_sync(ProbeRequest *p)
{
    int ret = co_ask(p, make_sync, NULL);

    p->disk->has_sync_cache = ret != -ENOTSUP;
    return ret == REMOTE_LOST ? ret : 0;
}

/* ---- The whole */

static int lost(IscsiState *s, int ret, GError **errp)
{
    if (s->why) {
        return bg_error_set(errp, s->why_errnum, "%s", s->why);
    }
    if (ret == REMOTE_LOST) {
        return bg_error_set(errp, ECONNRESET, "the session ended during the login");
    }
    return bg_error_set_errno(errp, -ret, "cannot find out what the disk is");
}

static int coroutine_fn co_look_at(ProbeRequest *p, GError **errp)
{
    unsigned lun = p->s->target.lun;
    int ret = co_ask(p, make_ready, NULL); /* takes the unit attentions of a new login, too */

    if (ret == REMOTE_LOST) {
        return lost(p->s, ret, errp);
    }
    p->page = -1;
    int inquiry = co_ask(p, make_inquiry, take_inquiry);

    if (inquiry == -ENXIO || ret == -ENXIO) {
        return bg_error_set(errp, ENXIO, "the target has no LUN %u", lun);
    }
    if (inquiry == -EMEDIUMTYPE) {
        return bg_error_set(errp, ENOTSUP, "LUN %u is not a disk", lun);
    }
    if (inquiry < 0 || ret < 0) {
        return lost(p->s, inquiry < 0 ? inquiry : ret, errp);
    }
    ret = co_ask_capacity(p);
    return ret < 0 ? lost(p->s, ret, errp) : check_capacity(p->disk, errp);
}

static int coroutine_fn co_look_closer(ProbeRequest *p)
{
    int ret = co_ask_pages(p);

    if (ret == 0) {
        ret = co_ask_mode(p);
    }
    return ret == 0 ? co_ask_sync(p) : ret;
}

static void adopt(IscsiState *s, IscsiDisk *d)
{
    /* Commands that are not announced anywhere are tried. */
    d->has_write_same_16 = d->has_write_same_10 = true;
    d->has_lba_status = d->thin;
    s->disk = *d;
    d->identity = NULL;
}

/* ---- Changes */

/* Only ever longer: what was there and is gone must fail, not read as zeroes. */
static void set_blocks(IscsiState *s, uint64_t blocks)
{
    BlockNode *node = s->remote.node;
    uint64_t old = s->disk.blocks;
    g_autofree char *text = NULL;

    if (blocks == old) {
        return;
    }
    if (blocks > old) {
        s->disk.blocks = blocks;
        atomic_store(&node->length, (int64_t)(blocks * s->disk.block_size));
        bg_log(BG_LOG_INFO, "node '%s': the disk has grown from %" PRIu64 " to %" PRIu64 " blocks",
               node->name, old, blocks);
        return;
    }
    text = g_strdup_printf(
        "the disk shrank from %" PRIu64 " to %" PRIu64 " blocks; requests beyond its end fail", old, blocks);
    bg_log(BG_LOG_ERROR, "node '%s': %s: %s", node->name, s->remote.where, text);
    block_graph_log_error(node->graph, node->name, BLOCK_OP_CONNECT, -1, 0, EIO, text);
}

static int check_same(IscsiState *s, const IscsiDisk *d, GError **errp)
{
    if (g_strcmp0(d->identity, s->disk.identity) != 0) {
        return bg_error_set(errp, ESTALE, "LUN %u is another disk than before", s->target.lun);
    }
    if (d->block_size != s->disk.block_size) {
        return bg_error_set(errp, ESTALE, "the disk's blocks have now %" PRIu32 " bytes, not %" PRIu32,
                            d->block_size, s->disk.block_size);
    }
    if (d->blocks < s->disk.blocks) {
        return bg_error_set(errp, ESTALE, "the disk has now %" PRIu64 " blocks, not %" PRIu64, d->blocks,
                            s->disk.blocks);
    }
    set_blocks(s, d->blocks);
    return 0;
}

int coroutine_fn iscsi_co_probe(IscsiState *s, bool again, GError **errp)
{
    IscsiDisk d = {0};
    ProbeRequest p = {.r.connecting = true, .s = s, .disk = &d};
    int ret = co_look_at(&p, errp);

    if (ret == 0) {
        ret = again ? co_ask_pages(&p) : co_look_closer(&p);
        if (ret < 0) {
            ret = lost(s, ret, errp);
        } else if (again) {
            ret = check_same(s, &d, errp);
        } else {
            adopt(s, &d);
        }
    }
    g_free(d.identity);
    return ret;
}

void coroutine_fn iscsi_co_capacity_changed(IscsiState *s)
{
    IscsiDisk d = {0};
    ProbeRequest p = {.s = s, .disk = &d};

    if (s->checking_capacity) {
        return; /* by another request, or by this one */
    }
    s->checking_capacity = true;
    if (co_ask_capacity(&p) == 0 && d.block_size == s->disk.block_size) {
        set_blocks(s, d.blocks);
    }
    s->checking_capacity = false;
}
