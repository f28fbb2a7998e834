/*
 * QmpCommand: one command of the control socket, and the types of its arguments.
 *
 * All that is said about a command is said once, in a const QmpCommand: the arguments are checked by it
 * before the function runs, and query-commands and x-blockgraph-help print it. Names, arguments and results
 * are those of QEMU's QMP reference; what is not there has the prefix "x-blockgraph-".
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_CONTROL_QMP_COMMAND_H
#define BG_CONTROL_QMP_COMMAND_H

#include <json-glib/json-glib.h>
#include <stdbool.h>

#include "util/compiler.h"

/* ---- Types */

typedef enum QmpKind {
    QMP_KIND_STRING,
    QMP_KIND_INT, /* 64 bits, with sign */
    QMP_KIND_BOOL,
    QMP_KIND_ENUM,
    QMP_KIND_OBJECT,
    QMP_KIND_LIST,
    QMP_KIND_UNION, /* {"type": TAG, "data": what TAG says} */
} QmpKind;

typedef struct QmpType QmpType;

/* A member of an object; of a union: a tag and its data. */
typedef struct QmpMember {
    const char *name; /* NULL ends the list */
    const QmpType *type;
    bool optional;
} QmpMember;

struct QmpType {
    QmpKind kind;
    const char *name;         /* for people: "string", or QEMU's name of the type */
    const char *const *words; /* of an enum; NULL-terminated */
    const QmpMember *members; /* of an object or union */
    const QmpType *element;   /* of a list */
};

extern const QmpType qmp_string, qmp_int, qmp_bool, qmp_string_list;

/*
 * Check `object` against the members: missing, unknown, of another type. False and *errp, which names the
 * argument by its path ("actions[1].data.device").
 */
bool qmp_check_members(const QmpMember *members, JsonObject *object, GError **errp);

/* ---- Errors */

/* The classes of QMP. Errors of other domains are of GenericError. */
typedef enum QmpErrorClass {
    QMP_GENERIC_ERROR,
    QMP_COMMAND_NOT_FOUND,
    QMP_DEVICE_NOT_FOUND,
} QmpErrorClass;

#define QMP_ERROR (qmp_error_quark())
GQuark qmp_error_quark(void);
/* "GenericError", ... Static. */
const char *qmp_error_class_name(const GError *error);

/* ---- Commands */

typedef enum QmpCommandFlags {
    QMP_CHANGES = 1 << 0,   /* changes the graph: one such command at a time, of all clients */
    QMP_NEGOTIATE = 1 << 1, /* only before the negotiation is over; all others only after */
} QmpCommandFlags;

typedef struct QmpCommand {
    const char *name;
    const char *summary;        /* one line, as an order */
    const QmpMember *arguments; /* NULL: none */
    QmpCommandFlags flags;
    /*
     * Do it. Arguments are checked. The value to return (NULL: {}), or *errp. `host` is what the server was
     * made for. Main thread, in a coroutine.
     */
    JsonNode *coroutine_fn (*run)(void *host, JsonObject *arguments, GError **errp);
} QmpCommand;

/* "{device: string, id?: string}" of the command. g_free. */
char *qmp_command_usage(const QmpCommand *command);

/* ---- Arguments that were checked; absent ones give NULL or the default. Borrowed. */
const char *qmp_get_string(JsonObject *object, const char *name);
bool qmp_get_bool(JsonObject *object, const char *name, bool absent);
JsonObject *qmp_get_object(JsonObject *object, const char *name);
JsonArray *qmp_get_list(JsonObject *object, const char *name);

#endif /* BG_CONTROL_QMP_COMMAND_H */
