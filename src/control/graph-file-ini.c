/*
 * The graph file as INI, in GKeyFile's dialect.
 *
 * GKeyFile itself merges two sections or keys of one name without a word and keeps no lines, so the text is
 * scanned here: '#' comments, [TYPE NAME] sections, KEY = VALUE with its escapes \s \n \t \r \\.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>

#include "control/graph-file.h"
#include "control/keyval.h"
#include "util/error.h"
#include "util/text.h"

/* What a section's first word makes of it. */
static const struct {
    const char *word;
    ConfigKind kind;
    const char *qom_type; /* objects only */
} section_types[] = {
    {"node", CONFIG_NODE, NULL},
    {"export", CONFIG_EXPORT, NULL},
    {"iothread", CONFIG_OBJECT, "iothread"},
    {"throttle-group", CONFIG_OBJECT, "throttle-group"},
    {"secret", CONFIG_OBJECT, "secret"},
    {"tls-creds-psk", CONFIG_OBJECT, "tls-creds-psk"},
    {"tls-creds-x509", CONFIG_OBJECT, "tls-creds-x509"},
};

typedef struct Scanner {
    Config *config;
    const char *path, *base;
    unsigned line;
    unsigned n_options;
    GHashTable *lines;   /* "SECTION-LINE." "key" -> line */
    JsonObject *section; /* NULL before the first */
    unsigned section_line;
    ConfigKind kind;
    char *what; /* "node 'x'", for messages */
    GError **errp;
} Scanner;

static bool scan_error(Scanner *s, const char *fmt, ...) G_GNUC_PRINTF(2, 3);
static bool scan_error(Scanner *s, const char *fmt, ...)
{
    g_autofree char *message = NULL;
    va_list ap;

    va_start(ap, fmt);
    message = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    bg_error_set(s->errp, EINVAL, "%s:%u: %s", s->path, s->line, message);
    return false;
}

/* ---- Sections */

static char *section_prefix(const Scanner *s)
{
    return g_strdup_printf("%u.", s->section_line);
}

/* Hand the section read so far to the config. */
static bool end_section(Scanner *s)
{
    g_autoptr(JsonObject) options = g_steal_pointer(&s->section);
    g_autofree char *prefix = section_prefix(s);
    ConfigPlace place = {s->path, s->section_line, s->lines, prefix};

    if (!options) {
        return true;
    }
    if (!keyval_finish(options, s->errp)) {
        g_prefix_error(s->errp, "%s:%u: %s: ", s->path, s->section_line, s->what);
        return false;
    }
    return config_add(s->config, s->kind, options, &place, s->base, s->errp) != NULL;
}

static int find_section_type(const char *word)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(section_types); i++) {
        if (strcmp(word, section_types[i].word) == 0) {
            return (int)i;
        }
    }
    return -1;
}

static bool unknown_section(Scanner *s, const char *word)
{
    const char *words[G_N_ELEMENTS(section_types) + 1] = {NULL};
    g_autofree char *all = NULL;
    const char *nearest;

    for (unsigned i = 0; i < G_N_ELEMENTS(section_types); i++) {
        words[i] = section_types[i].word;
    }
    nearest = text_nearest(word, words);
    if (nearest) {
        return scan_error(s, "unknown section '%s', did you mean '%s'?", word, nearest);
    }
    all = g_strjoinv(", ", (char **)words);
    return scan_error(s, "unknown section '%s', expected one of %s", word, all);
}

static bool begin_section(Scanner *s, const char *word, const char *name)
{
    int type = find_section_type(word);

    if (type < 0) {
        return unknown_section(s, word);
    }
    if (!*name) {
        return scan_error(s, "a section of this type needs a name: [%s NAME]", word);
    }
    s->kind = section_types[type].kind;
    s->section_line = s->line;
    s->section = json_object_new();
    json_object_set_string_member(s->section, config_name_key(s->kind), name);
    if (section_types[type].qom_type) {
        json_object_set_string_member(s->section, "qom-type", section_types[type].qom_type);
    }
    g_free(s->what);
    s->what = g_strdup_printf("%s '%s'", config_kind_name(s->kind), name);
    return true;
}

/* "[TYPE NAME]": `text` is the line without spaces around. */
static bool scan_header(Scanner *s, char *text)
{
    char *stop = strchr(text, ']'), *name;

    if (!stop || stop[1]) {
        return scan_error(s, stop ? "text after the ']' of a section" : "a section does not end with ']'");
    }
    *stop = '\0';
    text = g_strstrip(text + 1);
    name = text + strcspn(text, " \t");
    if (*name) {
        *name++ = '\0';
        name = g_strstrip(name);
    }
    return end_section(s) && begin_section(s, text, name);
}

/* ---- Options */

/* Undo the escapes, in place. */
static bool unescape(Scanner *s, const char *key, char *value)
{
    static const char codes[] = "sntr\\", meanings[] = " \n\t\r\\";
    char *out = value;

    for (; *value; value++) {
        const char *code;

        if (*value != '\\') {
            *out++ = *value;
            continue;
        }
        code = value[1] ? strchr(codes, value[1]) : NULL;
        if (!code) {
            return scan_error(s, "%s: option '%s': '\\%c' is no escape: '\\\\' stands for one backslash",
                              s->what, key, value[1] ? value[1] : ' ');
        }
        *out++ = meanings[code - codes];
        value++;
    }
    *out = '\0';
    return true;
}

/* The section's own name may be repeated as an option, but not changed. */
static bool check_repeated_name(Scanner *s, const char *key, const char *value, bool *repeated)
{
    *repeated = strcmp(key, config_name_key(s->kind)) == 0;
    if (*repeated && strcmp(value, json_object_get_string_member(s->section, key)) != 0) {
        return scan_error(s, "%s: option '%s': '%s' contradicts the section's name", s->what, key, value);
    }
    return true;
}

static bool put_option(Scanner *s, const char *key, const char *value)
{
    g_autofree char *path = NULL;
    g_autofree char *prefix = section_prefix(s);
    gpointer first;

    path = g_strconcat(prefix, key, NULL);
    first = g_hash_table_lookup(s->lines, path);
    if (first) {
        return scan_error(s, "%s: option '%s': given already, in line %u", s->what, key,
                          GPOINTER_TO_UINT(first));
    }
    if (s->n_options++ == GRAPH_FILE_MAX_OPTIONS) {
        return scan_error(s, "more than %u options", GRAPH_FILE_MAX_OPTIONS);
    }
    g_hash_table_insert(s->lines, g_steal_pointer(&path), GUINT_TO_POINTER(s->line));
    if (!keyval_put(s->section, key, value, s->errp)) {
        g_prefix_error(s->errp, "%s:%u: %s: ", s->path, s->line, s->what);
        return false;
    }
    return true;
}

static bool scan_option(Scanner *s, char *text)
{
    char *equals = strchr(text, '='), *key, *value;
    bool repeated;

    if (!equals) {
        return scan_error(s, "expected KEY = VALUE, [SECTION] or a comment, found '%.40s'", text);
    }
    *equals = '\0';
    key = g_strstrip(text);
    value = g_strstrip(equals + 1);
    if (!s->section) {
        return scan_error(s, "option '%.40s' stands before the first section", key);
    }
    if (!unescape(s, key, value) || !check_repeated_name(s, key, value, &repeated)) {
        return false;
    }
    return repeated || put_option(s, key, value);
}

/* ---- Lines */

static bool scan_line(Scanner *s, const char *start, size_t len)
{
    g_autofree char *copy = NULL;
    char *text;

    if (len > GRAPH_FILE_MAX_LINE) {
        return scan_error(s, "the line is longer than %d bytes", GRAPH_FILE_MAX_LINE);
    }
    copy = g_strndup(start, len);
    text = g_strstrip(copy);
    if (!*text || *text == '#') {
        return true;
    }
    return *text == '[' ? scan_header(s, text) : scan_option(s, text);
}

static bool scan(Scanner *s, const char *text)
{
    while (*text) {
        size_t len = strcspn(text, "\n");

        s->line++;
        if (!scan_line(s, text, len)) {
            return false;
        }
        text += len + (text[len] == '\n');
    }
    return end_section(s);
}

bool graph_file_parse_ini(Config *config, const char *path, const char *text, const char *base, GError **errp)
{
    g_autoptr(GHashTable) lines = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    Scanner s = {.config = config, .path = path, .base = base, .lines = lines, .errp = errp};
    bool ok = scan(&s, text);

    g_clear_pointer(&s.section, json_object_unref);
    g_free(s.what);
    return ok;
}
