/*
 * qcow2: names in the header, and its extensions. All of it is what the image claims.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <string.h>

#include "backends/format/qcow2/qcow2.h"

#define EXTENSION_END            0u
#define EXTENSION_BACKING_FORMAT 0xe2792acau
#define EXTENSION_BITMAPS        0x23852875u
#define EXTENSION_DATA_FILE      0x44415441u

static void take_extension(Qcow2Extras *x, uint32_t type, const uint8_t *data, uint32_t len)
{
    char **text = type == EXTENSION_BACKING_FORMAT ? &x->backing_format
                  : type == EXTENSION_DATA_FILE    ? &x->data_file
                                                   : NULL;
    if (text) {
        g_free(*text);
        *text = g_strndup((const char *)data, len);
    } else if (type == EXTENSION_BITMAPS && len >= 24) {
        x->n_bitmaps = qcow2_load32(data);
        x->bitmaps = (Qcow2Extent){.bytes = qcow2_load64(data + 8), .offset = qcow2_load64(data + 16)};
    }
}

bool qcow2_extras_read(const uint8_t *buf, size_t n, const Qcow2Header *h, Qcow2Extras *x)
{
    size_t at = h->header_length, end = MIN(n, (size_t)1 << h->cluster_bits);
    if (h->backing_offset) {
        bool there = h->backing_offset <= n && h->backing_length <= n - h->backing_offset;
        x->backing =
            there ? g_strndup((const char *)buf + h->backing_offset, h->backing_length) : g_strdup("");
        end = MIN(end, h->backing_offset);
    }
    while (at + 8 <= end) {
        uint32_t type = qcow2_load32(buf + at), len = qcow2_load32(buf + at + 4);
        at += 8;
        if (len > end - at) {
            return false;
        }
        if (type == EXTENSION_END) {
            return true;
        }
        take_extension(x, type, buf + at, len);
        at += ((size_t)len + 7) & ~(size_t)7;
    }
    return true;
}

void qcow2_extras_clear(Qcow2Extras *x)
{
    g_free(x->backing);
    g_free(x->backing_format);
    g_free(x->data_file);
}
