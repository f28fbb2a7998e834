/*
 * A mutator that knows what images are made of: numbers of 4 or 8 bytes, most of them offsets of clusters.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <string.h>

#include "tests/fuzz/fuzz-file.h"
#include "tests/fuzz/fuzz-qcow2.h"

static uint64_t random_state;

static uint64_t chance(uint64_t below)
{
    random_state = random_state * UINT64_C(6364136223846793005) + 1442695040888963407;
    return (random_state >> 33) % below;
}

static void store(uint8_t *p, unsigned n, uint64_t value)
{
    for (unsigned i = 0; i < n; i++) {
        p[i] = (uint8_t)(value >> (8 * (n - 1 - i)));
    }
}

static uint64_t load(const uint8_t *p, unsigned n)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < n; i++) {
        value = value << 8 | p[i];
    }
    return value;
}

/* The place of an aligned number in the data of some piece; 0: there is none. */
static size_t some_place(const uint8_t *data, size_t size, unsigned n)
{
    size_t found = 0, seen = 0;
    for (size_t at = FUZZ_HEADER; at + FUZZ_PIECE <= size;) {
        size_t length = MIN((size_t)load(data + at + 4, 2), size - at - FUZZ_PIECE);
        at += FUZZ_PIECE;
        size_t numbers = MIN(length / n, 512 / n * 4);
        if (numbers && chance(++seen) == 0) {
            found = at + chance(numbers) * n;
        }
        at += length;
    }
    return found;
}

static uint64_t some_offset(void)
{
    static const unsigned bits[] = {9, 9, 12, 14, 16, 21};
    return chance(16) << bits[chance(G_N_ELEMENTS(bits))];
}

static uint64_t some_number(uint64_t old, unsigned n)
{
    static const uint64_t flags[] = {0, 1, UINT64_C(1) << 63, UINT64_C(1) << 62, UINT64_C(1) << 32};
    switch (chance(7)) {
    case 0:
        return some_offset() | flags[chance(G_N_ELEMENTS(flags))];
    case 1:
        return old ^ UINT64_C(1) << chance(n * 8);
    case 2:
        return old + some_offset();
    case 3:
        return old - some_offset();
    case 4:
        return chance(64);
    case 5:
        return UINT64_MAX >> chance(n * 8);
    default:
        return UINT64_C(1) << chance(n * 8);
    }
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
    random_state = seed;
    if (size < FUZZ_HEADER || chance(4) == 0) {
        return LLVMFuzzerMutate(data, size, max_size);
    }
    if (chance(4) == 0) {
        data[chance(FUZZ_HEADER)] = (uint8_t)chance(256);
        return size;
    }
    for (unsigned i = 0; i <= chance(3); i++) {
        unsigned n = chance(3) ? 8 : chance(2) ? 4 : 2;
        size_t at = some_place(data, size, n), from = chance(3) ? 0 : some_place(data, size, n);
        if (at) {
            store(data + at, n, from ? load(data + from, n) : some_number(load(data + at, n), n));
        }
    }
    return size;
}
