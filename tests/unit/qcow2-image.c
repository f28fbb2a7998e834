/*
 * A small qcow2 image. See qcow2-image.h.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "tests/unit/qcow2-image.h"

#include <string.h>

#define CLUSTER QCOW2_IMAGE_CLUSTER
#define L2_SPAN (CLUSTER / 8 * CLUSTER)

void qcow2_image_header(uint8_t *b, int64_t size)
{
    memset(b, 0, CLUSTER);
    qcow2_store32(b, QCOW2_MAGIC);
    qcow2_store32(b + 4, 3);
    qcow2_store32(b + 20, 12);
    qcow2_store64(b + 24, (uint64_t)size);
    qcow2_store32(b + 36, (uint32_t)((size + L2_SPAN - 1) / L2_SPAN));
    qcow2_store64(b + 40, 3 * CLUSTER);
    qcow2_store64(b + 48, CLUSTER);
    qcow2_store32(b + 56, 1);
    qcow2_store32(b + 96, 4);
    qcow2_store32(b + 100, 104);
}

void qcow2_image_make(uint8_t *data, int64_t size)
{
    qcow2_image_header(data, size);
    memset(data + CLUSTER, 0, 3 * CLUSTER);
    qcow2_store64(data + CLUSTER, 2 * CLUSTER);
    for (unsigned i = 0; i < 4; i++) {
        qcow2_refcount_store(data + 2 * CLUSTER, 4, i, 1);
    }
}
