/*
 * Option strings as QEMU writes them, "driver=raw,file.filename=a,,b", and dotted keys in general.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_CONTROL_KEYVAL_H
#define BG_CONTROL_KEYVAL_H

#include <json-glib/json-glib.h>
#include <stdbool.h>

/* Steps of a dotted key, bytes of one, and keys in one string. */
#define KEYVAL_MAX_DEPTH 64
#define KEYVAL_MAX_KEY   256
#define KEYVAL_MAX_KEYS  4096

/*
 * Put the string `value` at the dotted `key` of the object, making the objects between. False and *errp, as
 * "option 'KEY': cause", where the key is malformed or contradicts one put before.
 */
bool keyval_put(JsonObject *object, const char *key, const char *value, GError **errp);

/*
 * After the last put: turn each object whose keys are all list indices into an array. False and *errp where
 * an index is missing. Members that are not from keyval_put are left alone.
 */
bool keyval_finish(JsonObject *object, GError **errp);

/*
 * A new object with all members of `object`, those with dotted keys as members of objects, or of lists. NULL
 * and *errp, as above, where two members are one or contradict each other.
 */
JsonObject *keyval_expand(JsonObject *object, GError **errp);

/*
 * Parse KEY=VALUE,... with ",," for a comma; or "{...}" or "json:{...}" as JSON. A first value without a key
 * is that of `implied`. NULL and *errp.
 */
JsonObject *keyval_parse(const char *text, const char *implied, GError **errp);

#endif /* BG_CONTROL_KEYVAL_H */
