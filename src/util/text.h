/*
 * Text helpers for option parsing and messages.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_UTIL_TEXT_H
#define BG_UTIL_TEXT_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * The member of the NULL-terminated list `words` nearest to `word` by edit distance
 * (transpositions count 1), or NULL when none is near enough to be a likely typing error.
 * Any thread. The result belongs to the list.
 */
const char *text_nearest(const char *word, const char *const *words);

/*
 * Parse a size with an optional suffix b, k, M, G, T, P or E (case ignored, powers of 1024), as
 * QEMU does: "512", "64k", "1.5G". 0, or -EINVAL (not a size), -ERANGE (negative, or above INT64_MAX).
 */
int text_parse_size(const char *text, uint64_t *out);

/* Parse a decimal or 0x integer without suffix. 0, -EINVAL or -ERANGE. */
int text_parse_uint64(const char *text, uint64_t *out);

/* "on|yes|true|y" and "off|no|false|n", as QEMU. 0 or -EINVAL. */
int text_parse_bool(const char *text, bool *out);

/* "64 KiB", "1.5 GiB": for messages. Free with g_free. */
char *text_format_size(uint64_t bytes);

/* Whether valid UTF-8 has a control character, which spoils every list. */
bool text_has_control(const char *text);

/*
 * Whether `name` may name a node or an export: 1 to 255 bytes, not "." or "..", no '/',
 * no control character, valid UTF-8. On failure *why is a static explanation.
 */
bool text_valid_name(const char *name, const char **why);

/* "https://user:secret@host/x" as "https://host/x"; other text unchanged. Free with g_free. */
char *text_without_userinfo(const char *text);

#endif /* BG_UTIL_TEXT_H */
