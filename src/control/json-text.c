/*
 * Strict JSON reader: recursive descent over a bounded text.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "control/json-text.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "util/error.h"

typedef struct Reader {
    const char *p, *end;
    unsigned line;
    unsigned depth;
    unsigned values;
    bool single_quotes;
    GString *path;     /* of the value being read, dotted */
    GHashTable *lines; /* NULL: not wanted */
    GError **errp;
} Reader;

static JsonNode *read_value(Reader *r);

static void skip_space(Reader *r)
{
    for (; r->p < r->end; r->p++) {
        if (*r->p == '\n') {
            r->line++;
        } else if (*r->p != ' ' && *r->p != '\t' && *r->p != '\r') {
            return;
        }
    }
}

/* The next character that is not a space, 0 at the end. Does not consume it. */
static char peek(Reader *r)
{
    skip_space(r);
    return r->p < r->end ? *r->p : '\0';
}

static bool take(Reader *r, char c)
{
    if (peek(r) != c) {
        return false;
    }
    r->p++;
    return true;
}

/* "expected X, found Y", with a few characters of what is there. Always false. */
static bool expected(Reader *r, const char *what)
{
    const char *stop = r->p;

    if (r->p >= r->end) {
        bg_error_set(r->errp, EINVAL, "expected %s, found the end of the text", what);
        return false;
    }
    while (stop < r->end && stop - r->p < 20 && (stop == r->p || g_ascii_isalnum(*stop))) {
        stop = g_utf8_find_next_char(stop, r->end) ?: r->end;
    }
    bg_error_set(r->errp, EINVAL, "expected %s, found '%.*s'", what, (int)(stop - r->p), r->p);
    return false;
}

/* ---- Strings */

static bool read_hex4(Reader *r, gunichar *out)
{
    gunichar value = 0;

    if (r->end - r->p < 4) {
        return expected(r, "four hexadecimal digits");
    }
    for (int i = 0; i < 4; i++, r->p++) {
        if (!g_ascii_isxdigit(*r->p)) {
            return expected(r, "a hexadecimal digit");
        }
        value = value << 4 | (gunichar)g_ascii_xdigit_value(*r->p);
    }
    *out = value;
    return true;
}

/* Behind "\u": one code point, of one or two halves. */
static bool read_unicode_escape(Reader *r, GString *out)
{
    gunichar c, low;

    if (!read_hex4(r, &c)) {
        return false;
    }
    if (c >= 0xd800 && c < 0xdc00) {
        if (r->end - r->p < 2 || r->p[0] != '\\' || r->p[1] != 'u') {
            return expected(r, "the second half of a surrogate pair");
        }
        r->p += 2;
        if (!read_hex4(r, &low)) {
            return false;
        }
        c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
        if (low < 0xdc00 || low > 0xdfff) {
            c = 0;
        }
    }
    if (c == 0 || !g_unichar_validate(c)) {
        bg_error_set(r->errp, EINVAL, "a string contains NUL or half of a surrogate pair");
        return false;
    }
    g_string_append_unichar(out, c);
    return true;
}

static bool read_escape(Reader *r, GString *out)
{
    static const char codes[] = "\"\\/bfnrt'", meanings[] = "\"\\/\b\f\n\r\t'";
    const char *code;

    if (r->p >= r->end) {
        return expected(r, "an escape");
    }
    if (*r->p == 'u') {
        r->p++;
        return read_unicode_escape(r, out);
    }
    code = memchr(codes, *r->p, r->single_quotes ? sizeof(codes) - 1 : sizeof(codes) - 2);
    if (!code) {
        return expected(r, "an escape (one of \"\\/bfnrtu)");
    }
    g_string_append_c(out, meanings[code - codes]);
    r->p++;
    return true;
}

static bool is_quote(const Reader *r, char c)
{
    return c == '"' || (c == '\'' && r->single_quotes);
}

/* Newly allocated text, NULL on error. */
static char *read_string(Reader *r)
{
    g_autoptr(GString) out = g_string_new(NULL);
    char quote = peek(r);

    if (!is_quote(r, quote)) {
        expected(r, "a string");
        return NULL;
    }
    r->p++;
    while (r->p < r->end && *r->p != quote) {
        unsigned char c = *r->p;

        if (c < 0x20) {
            bg_error_set(r->errp, EINVAL,
                         c == '\n' ? "a string does not end on its line"
                                   : "a string contains a control character");
            return NULL;
        }
        r->p++;
        if (c != '\\') {
            g_string_append_c(out, c);
        } else if (!read_escape(r, out)) {
            return NULL;
        }
    }
    if (r->p >= r->end) {
        bg_error_set(r->errp, EINVAL, "a string does not end");
        return NULL;
    }
    r->p++;
    return g_string_free(g_steal_pointer(&out), FALSE);
}

/* ---- Numbers and words */

static const char *skip_digits(const char *p, const char *end)
{
    while (p < end && g_ascii_isdigit(*p)) {
        p++;
    }
    return p;
}

/* The end of the number at r->p by JSON's grammar, NULL where there is none; *whole: no fraction, no
 * exponent. */
static const char *scan_number(Reader *r, bool *whole)
{
    const char *p = r->p + (*r->p == '-'), *start = p;

    p = skip_digits(p, r->end);
    if (p == start || (*start == '0' && p - start > 1)) {
        return NULL;
    }
    *whole = true;
    if (p < r->end && *p == '.') {
        *whole = false;
        start = ++p;
        p = skip_digits(p, r->end);
        if (p == start) {
            return NULL;
        }
    }
    if (p < r->end && (*p == 'e' || *p == 'E')) {
        *whole = false;
        p++;
        p += p < r->end && (*p == '+' || *p == '-');
        start = p;
        p = skip_digits(p, r->end);
        if (p == start) {
            return NULL;
        }
    }
    return p;
}

static JsonNode *read_number(Reader *r)
{
    bool whole = true;
    const char *stop = scan_number(r, &whole);
    g_autofree char *text = NULL;
    JsonNode *node;
    gint64 number = 0;
    double real = 0;

    if (!stop) {
        expected(r, "a number");
        return NULL;
    }
    text = g_strndup(r->p, stop - r->p);
    if (whole ? !g_ascii_string_to_signed(text, 10, G_MININT64, G_MAXINT64, &number, NULL)
              : !isfinite(real = g_ascii_strtod(text, NULL))) {
        bg_error_set(r->errp, ERANGE, "the number %.40s is too large", text);
        return NULL;
    }
    r->p = stop;
    node = json_node_alloc();
    return whole ? json_node_init_int(node, number) : json_node_init_double(node, real);
}

static JsonNode *read_word(Reader *r)
{
    static const char *const words[] = {"true", "false", "null"};

    for (unsigned i = 0; i < G_N_ELEMENTS(words); i++) {
        size_t len = strlen(words[i]);

        if ((size_t)(r->end - r->p) < len || memcmp(r->p, words[i], len) != 0 ||
            (r->p + len < r->end && g_ascii_isalnum(r->p[len]))) {
            continue;
        }
        r->p += len;
        return i == 2 ? json_node_init_null(json_node_alloc())
                      : json_node_init_boolean(json_node_alloc(), i == 0);
    }
    expected(r, "a value");
    return NULL;
}

/* ---- Arrays and objects */

/* Add a step to the path and note its line. The caller truncates the path again. */
static bool path_push(Reader *r, const char *step)
{
    if (r->path->len + strlen(step) >= JSON_TEXT_MAX_PATH) {
        bg_error_set(r->errp, E2BIG, "a key with those around it is longer than %u bytes",
                     JSON_TEXT_MAX_PATH);
        return false;
    }
    if (r->path->len > 0) {
        g_string_append_c(r->path, '.');
    }
    g_string_append(r->path, step);
    if (r->lines) {
        g_hash_table_insert(r->lines, g_strdup(r->path->str), GUINT_TO_POINTER(r->line));
    }
    return true;
}

/* One "key": value into `object`. */
static bool read_member(Reader *r, JsonObject *object)
{
    g_autofree char *key = NULL;
    size_t mark = r->path->len;
    JsonNode *value;

    skip_space(r);
    key = read_string(r);
    if (!key) {
        return false;
    }
    if (json_object_has_member(object, key)) {
        bg_error_set(r->errp, EINVAL, "the key '%s' is given twice", key);
        return false;
    }
    if (!path_push(r, key)) {
        return false;
    }
    if (!take(r, ':')) {
        return expected(r, "':'");
    }
    value = read_value(r);
    if (!value) {
        return false;
    }
    g_string_truncate(r->path, mark);
    json_object_set_member(object, key, value);
    return true;
}

static JsonNode *read_object(Reader *r)
{
    g_autoptr(JsonObject) object = json_object_new();

    r->p++;
    if (!take(r, '}')) {
        do {
            if (!read_member(r, object)) {
                return NULL;
            }
        } while (take(r, ','));
        if (!take(r, '}')) {
            expected(r, "',' or '}'");
            return NULL;
        }
    }
    return json_node_init_object(json_node_alloc(), object);
}

static bool read_element(Reader *r, JsonArray *array)
{
    g_autofree char *index = g_strdup_printf("%u", json_array_get_length(array));
    size_t mark = r->path->len;
    JsonNode *value;

    skip_space(r);
    if (!path_push(r, index)) {
        return false;
    }
    value = read_value(r);
    if (!value) {
        return false;
    }
    g_string_truncate(r->path, mark);
    json_array_add_element(array, value);
    return true;
}

static JsonNode *read_array(Reader *r)
{
    g_autoptr(JsonArray) array = json_array_new();

    r->p++;
    if (!take(r, ']')) {
        do {
            if (!read_element(r, array)) {
                return NULL;
            }
        } while (take(r, ','));
        if (!take(r, ']')) {
            expected(r, "',' or ']'");
            return NULL;
        }
    }
    return json_node_init_array(json_node_alloc(), array);
}

static JsonNode *read_nested(Reader *r, char open)
{
    JsonNode *node;

    if (r->depth == JSON_TEXT_MAX_DEPTH) {
        bg_error_set(r->errp, E2BIG, "nested deeper than %u levels", JSON_TEXT_MAX_DEPTH);
        return NULL;
    }
    r->depth++;
    node = open == '{' ? read_object(r) : read_array(r);
    r->depth--;
    return node;
}

static JsonNode *read_value(Reader *r)
{
    char c = peek(r);

    if (++r->values > JSON_TEXT_MAX_VALUES) {
        bg_error_set(r->errp, E2BIG, "more than %u values", JSON_TEXT_MAX_VALUES);
        return NULL;
    }
    if (c == '{' || c == '[') {
        return read_nested(r, c);
    }
    if (is_quote(r, c)) {
        g_autofree char *text = read_string(r);

        return text ? json_node_init_string(json_node_alloc(), text) : NULL;
    }
    return c == '-' || g_ascii_isdigit(c) ? read_number(r) : read_word(r);
}

static unsigned count_lines(const char *text, const char *end)
{
    unsigned line = 1;

    for (; text < end; text++) {
        line += *text == '\n';
    }
    return line;
}

static JsonNode *read_text(Reader *r)
{
    g_autoptr(GString) path = g_string_new(NULL);
    const char *valid_end;
    JsonNode *node;

    r->line = 1;
    r->path = path;
    if (!g_utf8_validate_len(r->p, r->end - r->p, &valid_end)) {
        r->line = count_lines(r->p, valid_end);
        bg_error_set(r->errp, EINVAL, "the text is not valid UTF-8");
        return NULL;
    }
    node = read_value(r);
    if (node) {
        skip_space(r);
        if (r->p < r->end) {
            expected(r, "the end of the text");
            g_clear_pointer(&node, json_node_unref);
        }
    }
    return node;
}

JsonNode *json_text_parse(const char *text, size_t len, GHashTable *lines, unsigned *line, GError **errp)
{
    Reader r = {.p = text, .end = text + len, .lines = lines, .errp = errp};
    JsonNode *node = read_text(&r);

    *line = r.line;
    return node;
}

JsonNode *json_text_parse_message(const char *text, size_t len, GError **errp)
{
    Reader r = {.p = text, .end = text + len, .single_quotes = true, .errp = errp};

    return read_text(&r);
}
