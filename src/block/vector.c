/*
 * Scattered memory: copies, slices, zero tests.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <string.h>

#include "block/io.h"

/* Walks the pieces of [skip, skip + n) of a vector. */
typedef struct VectorWalk {
    const struct iovec *iov;
    size_t skip, left;
} VectorWalk;

static VectorWalk vector_walk(const IoVector *v, size_t skip, size_t n)
{
    g_assert(skip <= v->size && n <= v->size - skip);
    return (VectorWalk){.iov = v->iov, .skip = skip, .left = n};
}

/* The next non-empty piece; false at the end. */
static bool vector_walk_next(VectorWalk *w, struct iovec *piece)
{
    if (!w->left) {
        return false;
    }
    while (w->skip >= w->iov->iov_len) {
        w->skip -= w->iov->iov_len;
        w->iov++;
    }
    piece->iov_base = (char *)w->iov->iov_base + w->skip;
    piece->iov_len = MIN(w->iov->iov_len - w->skip, w->left);
    w->left -= piece->iov_len;
    w->skip += piece->iov_len;
    return true;
}

void io_vector_from_buf(const IoVector *v, size_t skip, const void *buf, size_t n)
{
    VectorWalk w = vector_walk(v, skip, n);
    struct iovec piece;
    for (const char *p = buf; vector_walk_next(&w, &piece); p += piece.iov_len) {
        memcpy(piece.iov_base, p, piece.iov_len);
    }
}

void io_vector_to_buf(const IoVector *v, size_t skip, void *buf, size_t n)
{
    VectorWalk w = vector_walk(v, skip, n);
    struct iovec piece;
    for (char *p = buf; vector_walk_next(&w, &piece); p += piece.iov_len) {
        memcpy(p, piece.iov_base, piece.iov_len);
    }
}

void io_vector_memset(const IoVector *v, size_t skip, int c, size_t n)
{
    VectorWalk w = vector_walk(v, skip, n);
    struct iovec piece;
    while (vector_walk_next(&w, &piece)) {
        memset(piece.iov_base, c, piece.iov_len);
    }
}

static bool buf_is_zero(const char *p, size_t n)
{
    /* The first bytes decide most cases; then the buffer is compared with itself, shifted. */
    size_t head = MIN(n, (size_t)16);
    for (size_t i = 0; i < head; i++) {
        if (p[i]) {
            return false;
        }
    }
    return memcmp(p, p + head, n - head) == 0;
}

bool io_vector_is_zero(const IoVector *v, size_t skip, size_t n)
{
    VectorWalk w = vector_walk(v, skip, n);
    struct iovec piece;
    while (vector_walk_next(&w, &piece)) {
        if (!buf_is_zero(piece.iov_base, piece.iov_len)) {
            return false;
        }
    }
    return true;
}

int io_vector_slice(const IoVector *v, size_t skip, size_t n, struct iovec *out)
{
    VectorWalk w = vector_walk(v, skip, n);
    int i = 0;
    while (vector_walk_next(&w, &out[i])) {
        i++;
    }
    return i;
}
