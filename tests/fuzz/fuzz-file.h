/*
 * Driver fuzz-file: a sparse file in memory whose first content comes from the input of a fuzzer.
 *
 * An input is
 *
 *   byte 0     flags, FUZZ_*
 *   byte 1     log2 of the least length of the file; 0: it ends where its data ends
 *   bytes 2-3  seed of what is done with the image
 *   then       pieces: sector (512 bytes) where it lies, 4 bytes; its length in bytes, 2 bytes; the bytes
 *
 * with numbers big-endian. A length beyond the end of the input means up to there. Memory is bounded: beyond
 * FUZZ_MAX_PAGES the file says ENOSPC, as a full file system does.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_TESTS_FUZZ_FILE_H
#define BG_TESTS_FUZZ_FILE_H

#include "block/io.h"

enum {
    FUZZ_READ_ONLY = 1 << 0,
    FUZZ_BACKING = 1 << 1,
    FUZZ_FAILING = 1 << 2,    /* writes and flushes fail from some number on */
    FUZZ_KEEP_HOLES = 1 << 3, /* discard=ignore */
    FUZZ_DATA_FILE = 1 << 4,  /* the image is to have its data elsewhere */
};

#define FUZZ_HEADER    4u
#define FUZZ_PIECE     6u
#define FUZZ_PAGE_SIZE 4096u
#define FUZZ_MAX_PAGES 4096u

typedef struct FuzzInput {
    const uint8_t *data;
    size_t size;
} FuzzInput;

/* What a node opened next holds. */
void fuzz_file_set_input(FuzzInput input);
/* Bytes of memory that the nodes' pages take now. */
size_t fuzz_file_memory(void);
/* The next n writes and flushes succeed, those after them fail; -1: all succeed. */
void fuzz_file_fail_after(int n);

extern const BlockDriver fuzz_file_driver;

#endif /* BG_TESTS_FUZZ_FILE_H */
