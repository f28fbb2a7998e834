/*
 * How much memory is allocated at most, as far as the sanitizers' runtime tells.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_TESTS_FUZZ_MEMORY_H
#define BG_TESTS_FUZZ_MEMORY_H

#include <stddef.h>

void fuzz_memory_init(void);
/* Abort where more than `limit` bytes come to be allocated beyond what is now. 0: no limit. */
void fuzz_memory_limit(size_t limit);

#endif /* BG_TESTS_FUZZ_MEMORY_H */
