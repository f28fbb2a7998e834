/*
 * Text for people: tables, and what came from elsewhere made harmless to a terminal.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_CLIENT_TABLE_H
#define BG_CLIENT_TABLE_H

#include <json-glib/json-glib.h>

typedef struct ClientTable ClientTable;

/* Column titles, then rows, each with NULL at the end and as many cells as there are titles. Copied. */
ClientTable *client_table_new(const char *title, ...) G_GNUC_NULL_TERMINATED;
void client_table_add(ClientTable *table, const char *cell, ...) G_GNUC_NULL_TERMINATED;
/* Columns that are empty in every row are left out. g_free. */
char *client_table_text(const ClientTable *table);
void client_table_free(ClientTable *table);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(ClientTable, client_table_free)

/* With '?' for each control character. g_free. */
char *client_printable(const char *text);
/* Indented, with a newline at the end. g_free. */
char *client_json_text(JsonNode *value);

#endif /* BG_CLIENT_TABLE_H */
