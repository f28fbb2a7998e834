/*
 * blockgraph: tables.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "client/table.h"

#include <stdarg.h>
#include <stdbool.h>

struct ClientTable {
    guint columns;
    GPtrArray *cells; /* char *, row after row, the titles first */
};

char *client_printable(const char *text)
{
    g_autofree char *valid = g_utf8_make_valid(text, -1);
    GString *out = g_string_new(NULL);
    for (const char *p = valid; *p; p = g_utf8_next_char(p)) {
        gunichar c = g_utf8_get_char(p);
        g_string_append_unichar(out, g_unichar_iscntrl(c) ? '?' : c);
    }
    return g_string_free(out, FALSE);
}

char *client_json_text(JsonNode *value)
{
    g_autofree char *text = json_to_string(value, TRUE);
    return g_strconcat(text, "\n", NULL);
}

static void add_cells(ClientTable *table, const char *first, va_list ap)
{
    for (const char *cell = first; cell; cell = va_arg(ap, const char *)) {
        g_ptr_array_add(table->cells, client_printable(cell));
    }
}

ClientTable *client_table_new(const char *title, ...)
{
    ClientTable *table = g_new0(ClientTable, 1);
    va_list ap;
    table->cells = g_ptr_array_new_with_free_func(g_free);
    va_start(ap, title);
    add_cells(table, title, ap);
    va_end(ap);
    table->columns = table->cells->len;
    return table;
}

void client_table_add(ClientTable *table, const char *cell, ...)
{
    va_list ap;
    va_start(ap, cell);
    add_cells(table, cell, ap);
    va_end(ap);
    g_assert(table->cells->len % table->columns == 0);
}

void client_table_free(ClientTable *table)
{
    g_ptr_array_unref(table->cells);
    g_free(table);
}

/* The widest cell, title included; 0 where all cells are empty. */
static glong width_of(const ClientTable *table, guint column)
{
    glong width = g_utf8_strlen(table->cells->pdata[column], -1);
    bool empty = true;
    for (guint i = column + table->columns; i < table->cells->len; i += table->columns) {
        glong n = g_utf8_strlen(table->cells->pdata[i], -1);
        width = MAX(width, n);
        empty = empty && n == 0;
    }
    return empty ? 0 : width;
}

char *client_table_text(const ClientTable *table)
{
    GString *out = g_string_new(NULL);
    g_autofree glong *widths = g_new(glong, table->columns);
    for (guint c = 0; c < table->columns; c++) {
        widths[c] = width_of(table, c);
    }
    for (guint i = 0; i < table->cells->len; i++) {
        const char *cell = table->cells->pdata[i];
        guint column = i % table->columns;
        if (widths[column] > 0) {
            g_string_append_printf(out, "%s%*s  ", cell, (int)(widths[column] - g_utf8_strlen(cell, -1)), "");
        }
        if (column == table->columns - 1) {
            while (out->len > 0 && out->str[out->len - 1] == ' ') {
                g_string_truncate(out, out->len - 1);
            }
            g_string_append_c(out, '\n');
        }
    }
    return g_string_free(out, FALSE);
}
