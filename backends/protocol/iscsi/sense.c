/*
 * Sense data: what a CHECK CONDITION means for the request (SPC-4, tables of sense keys and additional sense
 * codes).
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>

#include "backends/protocol/iscsi/iscsi.h"

typedef struct SenseRule {
    int key;
    int first, last; /* additional sense code and qualifier, from, to */
    int errnum;
    IscsiAgain again;
} SenseRule;

#define ANY 0, 0xffff

/* The first that fits counts. */
static const SenseRule rules[] = {
    /* The command succeeded, with some trouble. */
    {SCSI_SENSE_NO_SENSE, ANY, 0, ISCSI_NOT_AGAIN},
    {SCSI_SENSE_RECOVERED_ERROR, ANY, 0, ISCSI_NOT_AGAIN},

    {SCSI_SENSE_NOT_READY, 0x0401, 0x0401, EBUSY, ISCSI_AGAIN_LATER}, /* becoming ready */
    {SCSI_SENSE_NOT_READY, 0x0404, 0x0404, EBUSY, ISCSI_AGAIN_LATER}, /* format in progress */
    {SCSI_SENSE_NOT_READY, 0x0407, 0x040b, EBUSY, ISCSI_AGAIN_LATER}, /* operation, self-test, port transition
                                                                       */
    {SCSI_SENSE_NOT_READY, 0x0414, 0x0414, ENOSPC, ISCSI_NOT_AGAIN},  /* space allocation in progress */
    {SCSI_SENSE_NOT_READY, 0x3a00, 0x3aff, ENOMEDIUM, ISCSI_NOT_AGAIN},
    {SCSI_SENSE_NOT_READY, ANY, EIO, ISCSI_NOT_AGAIN},

    {SCSI_SENSE_MEDIUM_ERROR, ANY, EIO, ISCSI_NOT_AGAIN},
    {SCSI_SENSE_HARDWARE_ERROR, ANY, EIO, ISCSI_NOT_AGAIN},

    {SCSI_SENSE_ILLEGAL_REQUEST, 0x2000, 0x2000, ENOTSUP, ISCSI_NOT_AGAIN}, /* unknown command */
    {SCSI_SENSE_ILLEGAL_REQUEST, 0x2100, 0x21ff, EIO, ISCSI_NOT_AGAIN},     /* beyond the end: it shrank */
    {SCSI_SENSE_ILLEGAL_REQUEST, 0x2400, 0x2400, ENOTSUP, ISCSI_NOT_AGAIN}, /* a field of the command */
    {SCSI_SENSE_ILLEGAL_REQUEST, 0x2500, 0x2500, ENXIO, ISCSI_NOT_AGAIN},   /* no such LUN */
    {SCSI_SENSE_ILLEGAL_REQUEST, 0x2600, 0x26ff, ENOTSUP, ISCSI_NOT_AGAIN}, /* a field of its parameters */
    {SCSI_SENSE_ILLEGAL_REQUEST, 0x2700, 0x27ff, EROFS, ISCSI_NOT_AGAIN},
    {SCSI_SENSE_ILLEGAL_REQUEST, ANY, EINVAL, ISCSI_NOT_AGAIN},

    /* Something happened before: the command was not looked at. */
    {SCSI_SENSE_UNIT_ATTENTION, ANY, EIO, ISCSI_AGAIN_NOW},

    {SCSI_SENSE_DATA_PROTECTION, 0x2707, 0x2707, ENOSPC, ISCSI_NOT_AGAIN}, /* a thin pool is full */
    {SCSI_SENSE_DATA_PROTECTION, ANY, EROFS, ISCSI_NOT_AGAIN},

    {SCSI_SENSE_COMMAND_ABORTED, ANY, EIO, ISCSI_AGAIN_LATER},
    {SCSI_SENSE_OVERFLOW_COMMAND, ANY, ENOSPC, ISCSI_NOT_AGAIN},
};

int iscsi_sense_error(int key, int ascq, IscsiAgain *again)
{
    for (guint i = 0; i < G_N_ELEMENTS(rules); i++) {
        const SenseRule *rule = &rules[i];

        if (rule->key == key && ascq >= rule->first && ascq <= rule->last) {
            *again = rule->again;
            return -rule->errnum;
        }
    }
    *again = ISCSI_NOT_AGAIN;
    return -EIO;
}

/* The library has names for those that its tests meet, and NULL for others. */
const char *iscsi_sense_key_name(int key)
{
    static const char *const names[] = {
        "no sense",       "recovered error", "not ready",      "medium error",
        "hardware error", "illegal request", "unit attention", "data protect",
        "blank check",    "vendor specific", "copy aborted",   "aborted command",
        "obsolete",       "volume overflow", "miscompare",     "completed",
    };

    return key >= 0 && key < (int)G_N_ELEMENTS(names) ? names[key] : "unknown sense key";
}
