/*
 * Text helpers for option parsing and messages.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "util/text.h"

#include <errno.h>
#include <string.h>

#include "util/compiler.h"

/* ---- Nearest word */

/* Words longer than this are never compared: no option name is, and the cost is quadratic. */
#define WORD_MAX_LEN 64

static unsigned min3(unsigned a, unsigned b, unsigned c)
{
    return MIN(MIN(a, b), c);
}

/*
 * Optimal string alignment: insertion, deletion, substitution and the swap of two
 * neighbours cost 1 each. Case differences are free, so that they win over other words.
 */
static unsigned edit_distance(const char *a, size_t alen, const char *b, size_t blen)
{
    unsigned rows[3][WORD_MAX_LEN + 1];
    unsigned *before = rows[0], *above = rows[1], *row = rows[2];

    for (size_t j = 0; j <= blen; j++) {
        above[j] = j;
    }
    for (size_t i = 1; i <= alen; i++) {
        row[0] = i;
        for (size_t j = 1; j <= blen; j++) {
            char ca = g_ascii_tolower(a[i - 1]), cb = g_ascii_tolower(b[j - 1]);

            row[j] = min3(above[j] + 1, row[j - 1] + 1, above[j - 1] + (ca != cb));
            if (i > 1 && j > 1 && ca == g_ascii_tolower(b[j - 2]) && g_ascii_tolower(a[i - 2]) == cb) {
                row[j] = MIN(row[j], before[j - 2] + 1);
            }
        }
        unsigned *oldest = before;

        before = above;
        above = row;
        row = oldest;
    }
    return above[blen];
}

const char *text_nearest(const char *word, const char *const *words)
{
    size_t len = strlen(word);
    unsigned best = len < 3 ? 1 : MIN(3, len / 3 + 1); /* at most one error in three characters */
    const char *nearest = NULL;

    if (len == 0 || len > WORD_MAX_LEN) {
        return NULL;
    }
    for (; *words; words++) {
        size_t wlen = strlen(*words);

        if (wlen > WORD_MAX_LEN) {
            continue;
        }
        unsigned distance = edit_distance(word, len, *words, wlen);

        /* Nothing in common is not a typing error: "a" is not near "b". */
        if (distance >= MAX(len, wlen)) {
            continue;
        }
        if (distance < best || (distance == best && !nearest)) {
            best = distance;
            nearest = *words;
        }
    }
    return nearest;
}

/* ---- Numbers */

/*
 * Digits of `base` at *text into *out; *text moves behind them. 0, -EINVAL where there is
 * none, -ERANGE beyond UINT64_MAX (all digits are consumed all the same).
 */
static int parse_digits(const char **text, unsigned base, uint64_t *out)
{
    const char *p = *text;
    uint64_t value = 0;
    bool overflow = false;

    for (; g_ascii_isxdigit(*p); p++) {
        unsigned digit = g_ascii_xdigit_value(*p);

        if (digit >= base) {
            break;
        }
        overflow |= __builtin_mul_overflow(value, base, &value);
        overflow |= __builtin_add_overflow(value, digit, &value);
    }
    if (p == *text) {
        return -EINVAL;
    }
    *text = p;
    *out = value;
    return overflow ? -ERANGE : 0;
}

static bool skip_hex_prefix(const char **text)
{
    if ((*text)[0] == '0' && ((*text)[1] == 'x' || (*text)[1] == 'X')) {
        *text += 2;
        return true;
    }
    return false;
}

int text_parse_uint64(const char *text, uint64_t *out)
{
    bool negative = *text == '-';
    uint64_t value = 0;
    int ret;

    text += negative;
    ret = parse_digits(&text, skip_hex_prefix(&text) ? 16 : 10, &value);
    if (ret == -EINVAL || *text) {
        return -EINVAL;
    }
    if (ret < 0 || negative) {
        return -ERANGE;
    }
    *out = value;
    return 0;
}

/* The power of two of a size suffix; -1 where `c` is none. */
static int suffix_shift(char c)
{
    static const char suffixes[] = "bkmgtpe";
    const char *p = c ? strchr(suffixes, g_ascii_tolower(c)) : NULL;

    return p ? (int)(p - suffixes) * 10 : -1;
}

/*
 * The digits behind the point at *text, as the numerator of a fraction over *scale.
 * Digits beyond the 18th are below one byte in an exbibyte and are dropped.
 */
static uint64_t parse_fraction(const char **text, uint64_t *scale)
{
    uint64_t value = 0;

    *scale = 1;
    for (; g_ascii_isdigit(**text); (*text)++) {
        if (*scale < UINT64_C(1000000000000000000)) {
            value = value * 10 + (uint64_t)g_ascii_digit_value(**text);
            *scale *= 10;
        }
    }
    return value;
}

/* Suffix and end of text: the shift, or -EINVAL. */
static int parse_suffix(const char *text)
{
    int shift = 0;

    if (*text) {
        shift = suffix_shift(*text++);
    }
    return shift < 0 || *text ? -EINVAL : shift;
}

int text_parse_size(const char *text, uint64_t *out)
{
    bool negative = *text == '-';
    uint64_t whole = 0, fraction = 0, scale = 1;
    int ret, shift;

    text += negative;
    if (text[0] == '0' && (text[1] == 'x' || text[1] == 'X')) {
        ret = text_parse_uint64(text, &whole); /* no suffix: b and e are digits there */
        if (ret < 0) {
            return ret;
        }
        shift = 0;
    } else {
        ret = parse_digits(&text, 10, &whole);
        if (ret == -EINVAL && !(text[0] == '.' && g_ascii_isdigit(text[1]))) {
            return -EINVAL;
        }
        if (*text == '.') {
            text++;
            fraction = parse_fraction(&text, &scale);
        }
        shift = parse_suffix(text);
        if (shift < 0 || (shift == 0 && fraction > 0)) {
            return -EINVAL; /* there is no half a byte */
        }
    }
    unsigned __int128 bytes =
        ((unsigned __int128)whole << shift) + ((unsigned __int128)fraction << shift) / scale;

    if (ret == -ERANGE || bytes > INT64_MAX || (negative && bytes > 0)) {
        return -ERANGE;
    }
    *out = (uint64_t)bytes;
    return 0;
}

int text_parse_bool(const char *text, bool *out)
{
    static const char *const yes[] = {"on", "yes", "true", "y", NULL};
    static const char *const no[] = {"off", "no", "false", "n", NULL};

    if (g_strv_contains(yes, text)) {
        *out = true;
    } else if (g_strv_contains(no, text)) {
        *out = false;
    } else {
        return -EINVAL;
    }
    return 0;
}

char *text_format_size(uint64_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    unsigned unit = 0;
    uint64_t divisor = 1;

    while (unit + 1 < G_N_ELEMENTS(units) && bytes / divisor >= 1024) {
        divisor *= 1024;
        unit++;
    }
    /* Two decimals, rounded down, without trailing zeros: no locale takes part. */
    uint64_t whole = bytes / divisor;
    unsigned hundredths = (unsigned)((unsigned __int128)(bytes % divisor) * 100 / divisor);

    if (hundredths == 0) {
        return g_strdup_printf("%" G_GUINT64_FORMAT " %s", whole, units[unit]);
    }
    if (hundredths % 10 == 0) {
        return g_strdup_printf("%" G_GUINT64_FORMAT ".%u %s", whole, hundredths / 10, units[unit]);
    }
    return g_strdup_printf("%" G_GUINT64_FORMAT ".%02u %s", whole, hundredths, units[unit]);
}

/* ---- Names */

bool text_has_control(const char *text)
{
    for (const char *p = text; *p; p = g_utf8_next_char(p)) {
        if (g_unichar_iscntrl(g_utf8_get_char(p))) {
            return true;
        }
    }
    return false;
}

static const char *name_fault(const char *name)
{
    size_t len = strlen(name);

    if (len == 0) {
        return "it is empty";
    }
    if (len > 255) {
        return "it is longer than 255 bytes";
    }
    if (!strcmp(name, ".") || !strcmp(name, "..")) {
        return "it means a directory";
    }
    if (strchr(name, '/')) {
        return "it contains a '/'";
    }
    if (!g_utf8_validate(name, -1, NULL)) {
        return "it is not valid UTF-8";
    }
    return text_has_control(name) ? "it contains a control character" : NULL;
}

bool text_valid_name(const char *name, const char **why)
{
    const char *fault = name_fault(name);

    if (fault && why) {
        *why = fault;
    }
    return !fault;
}

char *text_without_userinfo(const char *text)
{
    const char *authority = strstr(text, "://"), *at, *stop;

    if (!authority) {
        return g_strdup(text);
    }
    authority += strlen("://");
    stop = authority + strcspn(authority, "/?#");
    at = g_strrstr_len(authority, stop - authority, "@");
    return at ? g_strdup_printf("%.*s%s", (int)(authority - text), text, at + 1) : g_strdup(text);
}
