/*
 * blockgraph: parsing what comes after the verb. As in blockgraphfs, options are not abbreviated.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "client/client.h"
#include "util/error.h"
#include "util/text.h"

typedef struct Given {
    const ClientOption *option;
    const char *value; /* NULL: none */
} Given;

struct ClientLine {
    const ClientVerb *verb;
    GPtrArray *words; /* const char *, borrowed */
    GArray *given;    /* Given */
    bool help;
};

static const ClientOption *find_option(const ClientVerb *verb, const char *name, size_t len, char letter)
{
    for (const ClientOption *o = verb->options; o && (o->name || o->letter); o++) {
        if (letter ? o->letter == letter
                   : o->name && strlen(o->name) == len && strncmp(o->name, name, len) == 0) {
            return o;
        }
    }
    return NULL;
}

static bool unknown_option(const ClientVerb *verb, const char *word, GError **errp)
{
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);
    for (const ClientOption *o = verb->options; o && (o->name || o->letter); o++) {
        if (o->name) {
            g_ptr_array_add(names, g_strconcat("--", o->name, NULL));
        }
    }
    g_ptr_array_add(names, g_strdup("--help"));
    g_ptr_array_add(names, NULL);
    const char *nearest = text_nearest(word, (const char *const *)names->pdata);
    bg_error_set(errp, EINVAL,
                 nearest ? "unknown option '%s'; did you mean '%s'?"
                         : "unknown option '%s'; --help lists them",
                 word, nearest);
    return false;
}

/* `value`: what was given in the same word, NULL: nothing. *next: moved on where the next word is taken. */
static bool take_option(ClientLine *line, const ClientOption *option, const char *word, const char *value,
                        char *const *argv, int argc, int *next, GError **errp)
{
    bool optional = option->value && option->value[0] == '[';
    if (value && !option->value) {
        bg_error_set(errp, EINVAL, "'%s': the option takes no value", word);
        return false;
    }
    if (option->value && !optional && !value) {
        if (*next >= argc) {
            bg_error_set(errp, EINVAL, "option '%s' needs a value", word);
            return false;
        }
        value = argv[(*next)++];
    }
    Given given = {option, value};
    g_array_append_val(line->given, given);
    return true;
}

static bool parse_option(ClientLine *line, char *const *argv, int argc, int *next, GError **errp)
{
    const char *word = argv[(*next)++], *value = NULL;
    const ClientOption *option;
    if (word[1] == '-') {
        value = strchr(word, '=');
        size_t len = value ? (size_t)(value - word) - 2 : strlen(word) - 2;
        value = value ? value + 1 : NULL;
        option = find_option(line->verb, word + 2, len, 0);
    } else {
        option = find_option(line->verb, NULL, 0, word[1]);
        value = word[2] ? word + 2 : NULL;
    }
    if (!option && (strcmp(word, "-h") == 0 || strcmp(word, "--help") == 0)) {
        line->help = true;
        return true;
    }
    return option ? take_option(line, option, word, value, argv, argc, next, errp)
                  : unknown_option(line->verb, word, errp);
}

static bool check_words(const ClientLine *line, GError **errp)
{
    const ClientVerb *verb = line->verb;
    if (line->help || (line->words->len >= verb->min_words && line->words->len <= verb->max_words)) {
        return true;
    }
    bg_error_set(errp, EINVAL, "too %s arguments; usage: blockgraph %s [OPTIONS] %s",
                 line->words->len < verb->min_words ? "few" : "many", verb->name, verb->arguments);
    return false;
}

ClientLine *client_line_parse(const ClientVerb *verb, int argc, char *const *argv, GError **errp)
{
    g_autoptr(ClientLine) line = g_new0(ClientLine, 1);
    bool only_words = false;
    line->verb = verb;
    line->words = g_ptr_array_new();
    line->given = g_array_new(false, false, sizeof(Given));
    for (int next = 0; next < argc;) {
        const char *word = argv[next];
        if (!only_words && strcmp(word, "--") == 0) {
            only_words = true;
            next++;
        } else if (only_words || word[0] != '-' || !word[1]) {
            g_ptr_array_add(line->words, argv[next++]);
        } else if (!parse_option(line, argv, argc, &next, errp)) {
            return NULL;
        }
    }
    return check_words(line, errp) ? g_steal_pointer(&line) : NULL;
}

void client_line_free(ClientLine *line)
{
    g_ptr_array_unref(line->words);
    g_array_unref(line->given);
    g_free(line);
}

bool client_line_wants_help(const ClientLine *line)
{
    return line->help;
}

unsigned client_line_n_words(const ClientLine *line)
{
    return line->words->len;
}

const char *client_line_word(const ClientLine *line, unsigned i)
{
    g_assert(i < line->words->len);
    return line->words->pdata[i];
}

static bool is_named(const ClientOption *option, const char *name)
{
    return option->name ? strcmp(option->name, name) == 0 : option->letter == name[0] && !name[1];
}

bool client_line_has(const ClientLine *line, const char *option)
{
    for (guint i = 0; i < line->given->len; i++) {
        if (is_named(g_array_index(line->given, Given, i).option, option)) {
            return true;
        }
    }
    return false;
}

GPtrArray *client_line_values(const ClientLine *line, const char *option)
{
    GPtrArray *values = g_ptr_array_new();
    for (guint i = 0; i < line->given->len; i++) {
        const Given *given = &g_array_index(line->given, Given, i);
        if (given->value && is_named(given->option, option)) {
            g_ptr_array_add(values, (gpointer)given->value);
        }
    }
    return values;
}

const char *client_line_value(const ClientLine *line, const char *option)
{
    g_autoptr(GPtrArray) values = client_line_values(line, option);
    return values->len ? values->pdata[values->len - 1] : NULL;
}
