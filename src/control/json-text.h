/*
 * Strict reader of JSON text that remembers lines and refuses what is ambiguous or without bounds.
 *
 * json-glib keeps the last of two equal keys and knows no line of a value; here duplicate keys, numbers
 * beyond 64 bits, text after the value, deep nesting and floods of values are errors with a line.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_CONTROL_JSON_TEXT_H
#define BG_CONTROL_JSON_TEXT_H

#include <json-glib/json-glib.h>

/* Nested arrays and objects; values in all; bytes of a value's dotted path. */
#define JSON_TEXT_MAX_DEPTH  64
#define JSON_TEXT_MAX_VALUES 100000
#define JSON_TEXT_MAX_PATH   1024

/*
 * Parse `len` bytes. Returns the value, or NULL with *errp (the cause alone) and *line of the error, from 1.
 * `lines`, where not NULL, gets the line of every member and element by its dotted path
 * ("nodes.0.file.driver"), as GUINT_TO_POINTER. Any thread.
 */
JsonNode *json_text_parse(const char *text, size_t len, GHashTable *lines, unsigned *line, GError **errp);

/* The same in the dialect of QMP: strings may stand in single quotes, and \\' is an escape. */
JsonNode *json_text_parse_message(const char *text, size_t len, GError **errp);

#endif /* BG_CONTROL_JSON_TEXT_H */
