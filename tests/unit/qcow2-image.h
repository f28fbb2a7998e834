/*
 * A small qcow2 image for unit tests, made without the driver.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_TESTS_QCOW2_IMAGE_H
#define BG_TESTS_QCOW2_IMAGE_H

#include "backends/format/qcow2/qcow2.h"

#define QCOW2_IMAGE_CLUSTER INT64_C(4096)

/* A header of a cluster for an image of `size` bytes: version 3, 16-bit refcounts; cluster 0: header, 1:
 * refcount table, 2: refcount block, 3: L1 table. */
void qcow2_image_header(uint8_t *b, int64_t size);
/* The whole, empty image: four clusters. */
void qcow2_image_make(uint8_t *data, int64_t size);

#endif /* BG_TESTS_QCOW2_IMAGE_H */
