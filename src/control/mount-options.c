/*
 * The words of -o.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "control/mount-options.h"

#include <errno.h>
#include <string.h>

#include "util/error.h"
#include "util/text.h"

typedef bool TakeWord(MountOptions *options, const char *word, const char *value, GError **errp);

typedef struct MountWord {
    const char *name;
    bool has_value;
    TakeWord *take; /* NULL: ignored */
} MountWord;

static bool word_error(GError **errp, const char *word, const char *cause)
{
    bg_error_set(errp, EINVAL, "-o %s: %s", word, cause);
    return false;
}

/* ---- Our own */

static bool take_ro(MountOptions *options, const char *word, const char *value, GError **errp)
{
    options->read_only = strcmp(word, "ro") == 0;
    return true;
}

static bool take_strict_sync(MountOptions *options, const char *word, const char *value, GError **errp)
{
    options->strict_sync = true;
    return true;
}

static bool take_allow_other(MountOptions *options, const char *word, const char *value, GError **errp)
{
    options->allow_other = true;
    return true;
}

static bool refuse_allow_root(MountOptions *options, const char *word, const char *value, GError **errp)
{
    return word_error(errp, word, "not supported: use allow_other, and the modes of the files");
}

static bool take_queues(MountOptions *options, const char *word, const char *value, GError **errp)
{
    uint64_t number;
    int ret = text_parse_uint64(value, &number);

    if (ret == -EINVAL) {
        return word_error(errp, word, "expected a whole number");
    }
    if (ret < 0 || number < 1 || number > MOUNT_MAX_QUEUES) {
        bg_error_set(errp, ERANGE, "-o %s: out of range: from 1 to %d", word, MOUNT_MAX_QUEUES);
        return false;
    }
    options->queues = (unsigned)number;
    return true;
}

/* The index of `value` in `words`, or -1 with *errp. */
static int find_value(const char *word, const char *value, const char *const *words, GError **errp)
{
    const char *nearest = text_nearest(value, words);
    g_autofree char *all = NULL;

    for (int i = 0; words[i]; i++) {
        if (strcmp(value, words[i]) == 0) {
            return i;
        }
    }
    all = g_strjoinv(", ", (char **)words);
    bg_error_set(errp, EINVAL, "-o %s: unknown value '%s', %s%s%s", word, value,
                 nearest ? "did you mean '" : "expected one of ", nearest ? nearest : all,
                 nearest ? "'?" : "");
    return -1;
}

static bool take_transport(MountOptions *options, const char *word, const char *value, GError **errp)
{
    static const char *const words[] = {"auto", "dev", "uring", NULL};
    int found = find_value(word, value, words, errp);

    if (found == 2) {
        return word_error(errp, word, "FUSE over io_uring is not supported yet: use auto or dev");
    }
    return found >= 0;
}

static bool take_event_loop(MountOptions *options, const char *word, const char *value, GError **errp)
{
    static const char *const words[] = {"auto", "io_uring", "epoll", NULL};
    static const AioBackend backends[] = {AIO_BACKEND_AUTO, AIO_BACKEND_URING, AIO_BACKEND_EPOLL};
    int found = find_value(word, value, words, errp);

    if (found < 0) {
        return false;
    }
    options->event_loop = backends[found];
    return true;
}

static bool take_cache(MountOptions *options, const char *word, const char *value, GError **errp)
{
    static const char *const words[] = {"none", "auto", "writethrough", "writeback", NULL};
    int found = find_value(word, value, words, errp);

    return found <= 0 ? found == 0 : word_error(errp, word, "not supported yet: only cache=none is");
}

static bool take_name(char **where, const char *word, const char *value, GError **errp)
{
    if (!*value) {
        return word_error(errp, word, "the name is empty");
    }
    g_free(*where);
    *where = g_strdup(value);
    return true;
}

static bool take_fsname(MountOptions *options, const char *word, const char *value, GError **errp)
{
    return take_name(&options->fsname, word, value, errp);
}

static bool take_format(MountOptions *options, const char *word, const char *value, GError **errp)
{
    return take_name(&options->format, word, value, errp);
}

/* ---- For libfuse */

/* libfuse splits at commas again. */
static bool pass_on(MountOptions *options, const char *word, const char *value, GError **errp)
{
    GString *escaped = g_string_new(NULL);

    for (const char *p = word; *p; p++) {
        if (*p == ',' || *p == '\\') {
            g_string_append_c(escaped, '\\');
        }
        g_string_append_c(escaped, *p);
    }
    g_ptr_array_add(options->fuse_options, g_string_free(escaped, FALSE));
    return true;
}

static bool pass_auto_unmount(MountOptions *options, const char *word, const char *value, GError **errp)
{
    options->auto_unmount = true;
    return pass_on(options, word, value, errp);
}

static bool pass_max_read(MountOptions *options, const char *word, const char *value, GError **errp)
{
    uint64_t number;

    if (text_parse_uint64(value, &number) < 0 || number < 4096 || number > UINT32_MAX) {
        return word_error(errp, word, "expected a number of bytes, at least 4096");
    }
    return pass_on(options, word, value, errp);
}

static const MountWord mount_words[] = {
    {"ro", false, take_ro},
    {"rw", false, take_ro},
    {"format", true, take_format},
    {"queues", true, take_queues},
    {"transport", true, take_transport},
    {"event-loop", true, take_event_loop},
    {"strict-sync", false, take_strict_sync},
    {"cache", true, take_cache},
    {"allow_other", false, take_allow_other},
    {"allow_root", false, refuse_allow_root},
    {"default_permissions", false, pass_on},
    {"auto_unmount", false, pass_auto_unmount},
    {"fsname", true, take_fsname},
    {"subtype", true, pass_on},
    {"max_read", true, pass_max_read},
    {"suid", false, pass_on},
    {"nosuid", false, pass_on},
    {"dev", false, pass_on},
    {"nodev", false, pass_on},
    {"exec", false, pass_on},
    {"noexec", false, pass_on},
    {"sync", false, pass_on},
    {"async", false, pass_on},
    {"dirsync", false, pass_on},
    {"atime", false, pass_on},
    {"noatime", false, pass_on},
    {"context", true, pass_on},
    {"fscontext", true, pass_on},
    {"defcontext", true, pass_on},
    {"rootcontext", true, pass_on},
    /* What mount(8) and systemd keep for themselves, and access times, of which exports have none. */
    {"defaults", false, NULL},
    {"_netdev", false, NULL},
    {"auto", false, NULL},
    {"noauto", false, NULL},
    {"nofail", false, NULL},
    {"user", false, NULL},
    {"nouser", false, NULL},
    {"users", false, NULL},
    {"nousers", false, NULL},
    {"owner", false, NULL},
    {"noowner", false, NULL},
    {"group", false, NULL},
    {"nogroup", false, NULL},
    {"relatime", false, NULL},
    {"norelatime", false, NULL},
    {"strictatime", false, NULL},
    {"nostrictatime", false, NULL},
    {"lazytime", false, NULL},
    {"nolazytime", false, NULL},
    {"diratime", false, NULL},
    {"nodiratime", false, NULL},
    {"silent", false, NULL},
    {"loud", false, NULL},
    {"comment", true, NULL},
    {"user", true, NULL},
    {"helper", true, NULL},
    {"uhelper", true, NULL},
};

/* ---- Looking up */

static bool ignored_prefix(const char *word)
{
    return g_str_has_prefix(word, "x-") || g_str_has_prefix(word, "X-");
}

static bool unknown_word(const char *word, const char *name, const MountWord *same, GError **errp)
{
    const char *names[G_N_ELEMENTS(mount_words) + 1] = {NULL};
    const char *nearest;

    if (same) {
        return word_error(errp, word, same->has_value ? "needs a value" : "takes no value");
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(mount_words); i++) {
        names[i] = mount_words[i].name;
    }
    nearest = text_nearest(name, names);
    if (!nearest) {
        return word_error(errp, word, "unknown mount option");
    }
    bg_error_set(errp, EINVAL, "-o %s: unknown mount option, did you mean '%s'?", word, nearest);
    return false;
}

static bool take_word(MountOptions *options, const char *word, GError **errp)
{
    const char *equals = strchr(word, '=');
    g_autofree char *name = equals ? g_strndup(word, equals - word) : g_strdup(word);
    const MountWord *same = NULL;

    if (!*word || ignored_prefix(word)) {
        return true;
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(mount_words); i++) {
        const MountWord *entry = &mount_words[i];

        if (strcmp(entry->name, name) != 0) {
            continue;
        }
        if (entry->has_value == (equals != NULL)) {
            return !entry->take || entry->take(options, word, equals ? equals + 1 : NULL, errp);
        }
        same = entry;
    }
    return unknown_word(word, name, same, errp);
}

/* The next word, unescaped; *text moves behind its comma, to NULL at the end. */
static char *next_word(const char **text)
{
    GString *word = g_string_new(NULL);
    const char *p = *text;

    for (; *p && *p != ','; p++) {
        if (*p == '\\' && p[1]) {
            p++;
        }
        g_string_append_c(word, *p);
    }
    *text = *p ? p + 1 : NULL;
    return g_string_free(word, FALSE);
}

bool mount_options_add(MountOptions *options, const char *text, GError **errp)
{
    if (!g_utf8_validate(text, -1, NULL)) {
        bg_error_set(errp, EINVAL, "-o: not valid UTF-8");
        return false;
    }
    while (text) {
        g_autofree char *word = next_word(&text);

        if (!take_word(options, word, errp)) {
            return false;
        }
    }
    return true;
}

MountOptions *mount_options_new(void)
{
    MountOptions *options = g_new0(MountOptions, 1);

    options->event_loop = AIO_BACKEND_AUTO;
    options->fuse_options = g_ptr_array_new_with_free_func(g_free);
    return options;
}

void mount_options_free(MountOptions *options)
{
    if (!options) {
        return;
    }
    g_ptr_array_free(options->fuse_options, TRUE);
    g_free(options->fsname);
    g_free(options->format);
    g_free(options);
}
