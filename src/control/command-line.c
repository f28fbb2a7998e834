/*
 * Parsing the command line.
 *
 * getopt_long(3) is of no use here: it takes abbreviations, which would change their meaning as options are
 * added, and it cannot name the nearest word.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "control/command-line.h"

#include <errno.h>
#include <string.h>

#include "control/keyval.h"
#include "util/error.h"
#include "util/text.h"

typedef struct Parser {
    CommandLine *line;
    char *const *argv;
    int argc, next;
} Parser;

typedef struct Option Option;
/* `value` is NULL for options that take none. */
typedef bool TakeOption(Parser *parser, const Option *option, const char *value, GError **errp);

struct Option {
    char letter;      /* 0: none */
    const char *name; /* "--name", or "-x" where there is no long form */
    bool has_value;
    TakeOption *take;
};

static char *absolute(const Parser *parser, const char *name)
{
    return g_path_is_absolute(name) ? g_strdup(name) : g_build_filename(parser->line->cwd, name, NULL);
}

/* ---- What the options do */

static bool take_flag(Parser *parser, const Option *option, const char *value, GError **errp)
{
    CommandLine *line = parser->line;

    switch (option->letter) {
    case 'f':
        line->foreground = true;
        break;
    case 'd':
        line->debug = true;
        break;
    case 's':
        line->one_queue = true;
        break;
    case 'v':
        line->verbose = true;
        break;
    case 'V':
        line->action = COMMAND_VERSION;
        break;
    case 'h':
        line->action = COMMAND_HELP;
        break;
    default:
        line->daemonize = true;
        break;
    }
    return true;
}

static bool take_mount_options(Parser *parser, const Option *option, const char *value, GError **errp)
{
    return mount_options_add(parser->line->mount, value, errp);
}

static bool take_item(Parser *parser, ConfigKind kind, const char *name, const char *implied,
                      const char *text, GError **errp)
{
    g_autoptr(JsonObject) options = keyval_parse(text, implied, errp);
    ConfigPlace place = {.origin = name};

    if (!options) {
        g_prefix_error(errp, "%s: ", name);
        return false;
    }
    return config_add(parser->line->config, kind, options, &place, parser->line->cwd, errp) != NULL;
}

static bool take_blockdev(Parser *parser, const Option *option, const char *value, GError **errp)
{
    return take_item(parser, CONFIG_NODE, option->name, "driver", value, errp);
}

static bool take_export(Parser *parser, const Option *option, const char *value, GError **errp)
{
    return take_item(parser, CONFIG_EXPORT, option->name, "type", value, errp);
}

static bool take_object(Parser *parser, const Option *option, const char *value, GError **errp)
{
    return take_item(parser, CONFIG_OBJECT, option->name, "qom-type", value, errp);
}

static bool take_once(char **where, char *value, const Option *option, GError **errp)
{
    if (*where || !*value) {
        bg_error_set(errp, EINVAL, "%s: %s", option->name, *where ? "given more than once" : "needs a value");
        g_free(value);
        return false;
    }
    *where = value;
    return true;
}

static bool take_format(Parser *parser, const Option *option, const char *value, GError **errp)
{
    return take_once(&parser->line->format, g_strdup(value), option, errp);
}

static bool take_pidfile(Parser *parser, const Option *option, const char *value, GError **errp)
{
    return take_once(&parser->line->pidfile, *value ? absolute(parser, value) : g_strdup(""), option, errp);
}

static bool take_qmp(Parser *parser, const Option *option, const char *value, GError **errp)
{
    return monitor_options_add_qmp(parser->line->monitors, value, parser->line->cwd, errp);
}

static bool take_chardev(Parser *parser, const Option *option, const char *value, GError **errp)
{
    return monitor_options_add_chardev(parser->line->monitors, value, parser->line->cwd, errp);
}

static bool take_monitor(Parser *parser, const Option *option, const char *value, GError **errp)
{
    return monitor_options_add_monitor(parser->line->monitors, value, errp);
}

/* qemu-storage-daemon's options that have no counterpart here so far. */
static bool refuse(Parser *parser, const Option *option, const char *value, GError **errp)
{
    bg_error_set(errp, ENOTSUP, "%s is not supported yet", option->name);
    return false;
}

static const Option known_options[] = {
    {'o', "-o", true, take_mount_options},  {'f', "-f", false, take_flag},
    {'d', "-d", false, take_flag},          {'s', "-s", false, take_flag},
    {'v', "--verbose", false, take_flag},   {'V', "--version", false, take_flag},
    {'h', "--help", false, take_flag},      {0, "--daemonize", false, take_flag},
    {0, "--pidfile", true, take_pidfile},   {0, "--format", true, take_format},
    {0, "--blockdev", true, take_blockdev}, {0, "--export", true, take_export},
    {0, "--object", true, take_object},     {0, "--chardev", true, take_chardev},
    {0, "--monitor", true, take_monitor},   {0, "--nbd-server", true, refuse},
    {0, "--qmp", true, take_qmp},           {'T', "--trace", true, refuse},
};

/* ---- Finding them */

static bool unknown_option(const char *word, GError **errp)
{
    const char *names[G_N_ELEMENTS(known_options) + 1] = {NULL};
    const char *nearest;

    for (unsigned i = 0; i < G_N_ELEMENTS(known_options); i++) {
        names[i] = known_options[i].name;
    }
    nearest = strlen(word) > 2 ? text_nearest(word, names) : NULL; /* any two letters are near */
    bg_error_set(errp, EINVAL, "unknown option '%s'%s%s%s", word,
                 nearest ? ", did you mean '" : "; --help lists them", nearest ? nearest : "",
                 nearest ? "'?" : "");
    return false;
}

/* The value of an option: `attached` where it stood in the same word, else the next word. */
static bool get_value(Parser *parser, const Option *option, const char *word, const char *attached,
                      const char **value, GError **errp)
{
    *value = attached;
    if (!option->has_value && attached) {
        bg_error_set(errp, EINVAL, "option '%s' takes no value", word);
        return false;
    }
    if (option->has_value && !attached) {
        if (parser->next == parser->argc) {
            bg_error_set(errp, EINVAL, "option '%s' needs a value", word);
            return false;
        }
        *value = parser->argv[parser->next++];
    }
    return true;
}

static bool parse_long(Parser *parser, const char *word, GError **errp)
{
    const char *equals = strchr(word, '=');
    g_autofree char *name = equals ? g_strndup(word, equals - word) : g_strdup(word);
    const char *value;

    for (unsigned i = 0; i < G_N_ELEMENTS(known_options); i++) {
        const Option *option = &known_options[i];

        if (strcmp(option->name, name) == 0) {
            return get_value(parser, option, name, equals ? equals + 1 : NULL, &value, errp) &&
                   option->take(parser, option, value, errp);
        }
    }
    return unknown_option(name, errp);
}

static const Option *find_letter(char letter)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(known_options); i++) {
        if (letter && known_options[i].letter == letter) {
            return &known_options[i];
        }
    }
    return NULL;
}

/* "-fs", "-oro", "-o ro" */
static bool parse_short(Parser *parser, const char *word, GError **errp)
{
    for (const char *p = word + 1; *p; p++) {
        char name[] = {'-', *p, '\0'};
        const Option *option = find_letter(*p);
        const char *value;

        if (!option) {
            return unknown_option(p == word + 1 ? word : name, errp);
        }
        if (!option->has_value) {
            option->take(parser, option, NULL, errp);
            continue;
        }
        return get_value(parser, option, name, p[1] ? p + 1 : NULL, &value, errp) &&
               option->take(parser, option, value, errp);
    }
    return true;
}

static bool take_operand(Parser *parser, const char *word, GError **errp)
{
    CommandLine *line = parser->line;

    if (!*word) {
        bg_error_set(errp, EINVAL, "an empty word is no SOURCE and no MOUNTPOINT");
        return false;
    }
    if (line->mountpoint) {
        bg_error_set(errp, EINVAL, "unexpected word '%s' after SOURCE and MOUNTPOINT", word);
        return false;
    }
    if (line->source) {
        line->mountpoint = absolute(parser, word);
    } else {
        line->source = g_strdup(word);
    }
    return true;
}

static bool parse_words(Parser *parser, GError **errp)
{
    bool options_end = false;

    while (parser->next < parser->argc) {
        const char *word = parser->argv[parser->next++];
        bool ok = true;

        if (options_end || word[0] != '-' || !word[1]) {
            ok = take_operand(parser, word, errp);
        } else if (strcmp(word, "--") == 0) {
            options_end = true;
        } else {
            ok = word[1] == '-' ? parse_long(parser, word, errp) : parse_short(parser, word, errp);
        }
        if (!ok) {
            return false;
        }
        if (parser->line->action != COMMAND_RUN) {
            return true; /* -h and -V win over whatever follows */
        }
    }
    return true;
}

static bool check(const CommandLine *line, GError **errp)
{
    if (line->daemonize && (line->foreground || line->debug)) {
        bg_error_set(errp, EINVAL, "--daemonize contradicts %s", line->foreground ? "-f" : "-d");
        return false;
    }
    if (line->one_queue && line->mount->queues > 1) {
        bg_error_set(errp, EINVAL, "-s contradicts -o queues=%u", line->mount->queues);
        return false;
    }
    if (line->mount->auto_unmount && line->mount->event_loop == AIO_BACKEND_URING) {
        bg_error_set(
            errp, EINVAL,
            "-o event-loop=io_uring contradicts auto_unmount: io_uring keeps /dev/fuse open a moment "
            "longer than the daemon lives, and fusermount3 then takes the mount for alive");
        return false;
    }
    return true;
}

/* --format and -o format= are one option in two spellings: mount(8) knows only of the latter. */
static bool merge_format(CommandLine *line, GError **errp)
{
    const char *mount_format = line->mount->format;

    if (line->format && mount_format && strcmp(line->format, mount_format) != 0) {
        bg_error_set(errp, EINVAL, "--format %s contradicts -o format=%s", line->format, mount_format);
        return false;
    }
    if (!line->format) {
        line->format = g_strdup(mount_format);
    }
    return true;
}

CommandLine *command_line_parse(int argc, char *const *argv, GError **errp)
{
    g_autoptr(CommandLine) line = g_new0(CommandLine, 1);
    Parser parser = {.line = line, .argv = argv, .argc = argc, .next = 1};

    line->cwd = g_get_current_dir();
    line->mount = mount_options_new();
    line->monitors = monitor_options_new();
    line->config = config_new();
    if (!parse_words(&parser, errp)) {
        return NULL;
    }
    if (line->action == COMMAND_RUN &&
        (!check(line, errp) || !merge_format(line, errp) || !monitor_options_finish(line->monitors, errp))) {
        return NULL;
    }
    return g_steal_pointer(&line);
}

void command_line_free(CommandLine *line)
{
    if (!line) {
        return;
    }
    g_free(line->source);
    g_free(line->mountpoint);
    g_free(line->format);
    g_free(line->uri_name);
    g_free(line->pidfile);
    g_free(line->cwd);
    monitor_options_free(line->monitors);
    mount_options_free(line->mount);
    config_free(line->config);
    g_free(line);
}

bool command_line_background(const CommandLine *line)
{
    if (line->foreground || line->debug) {
        return false;
    }
    /* Without a MOUNTPOINT it is a qemu-storage-daemon's command line, which stays in the foreground. */
    return line->daemonize || line->mountpoint;
}
