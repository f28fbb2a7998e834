/*
 * BlockOptions: the options of one node, read by its driver.
 *
 * A tree of JSON values (from the graph file, the command line or QMP). Values from INI and
 * from dotted keys are strings; the getters take both "512" and 512, "on" and true. Each getter
 * marks its key as known; block_options_finish() then refuses what nobody asked for, with the
 * nearest known key. All messages read "node 'N': option 'file.offset': cause".
 *
 * Main thread. Getters return true, or false with *errp set. An absent key leaves *out at the
 * value it has (set the default before).
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_BLOCK_OPTIONS_H
#define BG_BLOCK_OPTIONS_H

#include <json-glib/json-glib.h>

#include "block/types.h"

/*
 * Options of the object `what` (as in messages: "node 'disk0'", "export 'a'") from `object`
 * (referenced). `prefix` goes before each key in messages ("file." for an inline child, "" at the top).
 */
BlockOptions *block_options_new(const char *what, const char *prefix, JsonObject *object);
void block_options_free(BlockOptions *opts);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(BlockOptions, block_options_free)

const char *block_options_what(const BlockOptions *opts);
/* What goes before each key in messages: "" or "file.", ... */
const char *block_options_prefix(const BlockOptions *opts);
/* Whether the key is there, in any form. Does not mark it as known. */
bool block_options_has(BlockOptions *opts, const char *key);
/* Whether it is there as a string (of a child: the name of a node). Does not mark it as known. */
bool block_options_is_string(BlockOptions *opts, const char *key);

/* Whether it is there as null or as an empty string, which says that there is no such child. Marks the key as
 * known where it is. */
bool block_options_is_none(BlockOptions *opts, const char *key);

/* *out: newly allocated string; free with g_free. The old value of *out is not freed. */
bool block_options_get_string(BlockOptions *opts, const char *key, char **out, GError **errp);
/* As get_string, and an absent or empty value is an error that says the key is required. */
bool block_options_require_string(BlockOptions *opts, const char *key, char **out, GError **errp);
bool block_options_get_bool(BlockOptions *opts, const char *key, bool *out, GError **errp);
/* An integer from min to max, inclusive. */
bool block_options_get_uint64(BlockOptions *opts, const char *key, uint64_t min, uint64_t max, uint64_t *out,
                              GError **errp);
/* Bytes with suffix (64k, 1G), from 0 to BLOCK_MAX_LENGTH. */
bool block_options_get_size(BlockOptions *opts, const char *key, int64_t *out, GError **errp);
/* *out: index of the value in the NULL-terminated list; an unknown word is refused with the nearest. */
bool block_options_get_enum(BlockOptions *opts, const char *key, const char *const *words, int *out,
                            GError **errp);
/*
 * *out: a NULL-terminated list, from a list of strings, or from one string with ':' between the elements;
 * g_strfreev. Elements are not empty. The old value of *out is not freed.
 */
bool block_options_get_strings(BlockOptions *opts, const char *key, char ***out, GError **errp);
/*
 * An object, either nested {"file": {...}} or dotted "file.x" keys: *out gets a reference, or stays NULL
 * where absent. Also marks the key as known. A string value in its place is an error here.
 */
bool block_options_get_object(BlockOptions *opts, const char *key, JsonObject **out, GError **errp);

/*
 * The description of a child: *ref gets the name where the value is a string (g_free), *object a reference
 * where it is an object; both stay NULL where absent. Marks the key as known.
 */
bool block_options_get_child(BlockOptions *opts, const char *key, char **ref, JsonObject **object,
                             GError **errp);

/* Mark the key as known, where another reader of the same object reads it. */
void block_options_leave(BlockOptions *opts, const char *key);

/* An option of QEMU's that is not supported. */
typedef struct BlockForeignOption {
    const char *key;
    const char *harmless; /* "on", "off" or a number: QEMU's default, which asks for nothing; NULL: none */
} BlockForeignOption;

/* Refuse those of `list`, which a NULL key ends, by name, unless with their harmless value. Marks as known.
 */
bool block_options_refuse_foreign(BlockOptions *opts, const BlockForeignOption *list, GError **errp);

/* Set *errp to "WHAT: option 'PREFIXKEY': message", with the errno value as code. Returns false. */
bool block_options_error(const BlockOptions *opts, const char *key, GError **errp, int errnum,
                         const char *fmt, ...) G_GNUC_PRINTF(5, 6);

/* After all getters: false and an error where a key was never asked for. */
bool block_options_finish(BlockOptions *opts, GError **errp);

#endif /* BG_BLOCK_OPTIONS_H */
