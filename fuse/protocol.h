/*
 * The kernel's FUSE protocol: what <linux/fuse.h> of older distributions lacks, and our limits.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_FUSE_PROTOCOL_H
#define BG_FUSE_PROTOCOL_H

#include <linux/fuse.h>
#include <stdint.h>

/* The protocol version that we speak. The kernel and we use the lower minor of both. */
#define FUSE_PROTO_MAJOR     7
#define FUSE_PROTO_MINOR     39
/* Oldest minor served: 7.31 (Linux 5.4) has every structure in its present size. */
#define FUSE_PROTO_MINOR_MIN 31

/* INIT flags above bit 31 travel in flags2. */
#ifndef FUSE_DIRECT_IO_ALLOW_MMAP
#define FUSE_DIRECT_IO_ALLOW_MMAP (1ULL << 36)
#endif

/* Largest READ or WRITE, in bytes; also the room for every other request's variable part. */
#define FUSE_PAYLOAD_SIZE (1024u * 1024)

/* Bytes before the data of a WRITE. */
#define FUSE_WRITE_HEAD (sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in))

/* Requests that the kernel keeps in flight without a thread waiting (AIO), and when it calls that congestion.
 * The kernel's default of 12 would throttle. */
#define FUSE_QUEUE_MAX_BACKGROUND 1024
#define FUSE_QUEUE_CONGESTION     768

/* Longest name of a directory entry, in bytes. */
#define FUSE_NAME_LENGTH_MAX 255

/* d_ino of an entry that has no inode yet. */
#define FUSE_INO_UNKNOWN 0xffffffffu

/* SETXATTR as sent to a server that did not ask for FUSE_SETXATTR_EXT. */
#define FUSE_SETXATTR_HEAD FUSE_COMPAT_SETXATTR_IN_SIZE

#endif /* BG_FUSE_PROTOCOL_H */
