/*
 * The objects of a Config, read and checked: threads, secrets, TLS credentials, throttle groups.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_CONTROL_OBJECTS_H
#define BG_CONTROL_OBJECTS_H

#include "block/secret.h"
#include "block/throttle-group.h"
#include "control/graph-config.h"

/* A thread to be started. */
typedef struct IothreadSpec {
    char *id;
    uint64_t poll_max_ns; /* see aio_context_set_poll_max() */
} IothreadSpec;

/* With the defaults. */
IothreadSpec *iothread_spec_new(const char *id);

/* Where a secret's text is. */
typedef struct SecretSpec {
    char *id;
    char *path;  /* absolute */
    bool base64; /* what the file contains, else the text itself */
} SecretSpec;

typedef struct TlsCredsSpec {
    char *id;
    BlockTlsCreds *creds;
} TlsCredsSpec;

typedef struct ThrottleGroupSpec {
    char *id;
    ThrottleLimits limits;
} ThrottleGroupSpec;

typedef struct Objects {
    GPtrArray *iothreads;       /* IothreadSpec */
    GPtrArray *secrets;         /* SecretSpec */
    GPtrArray *tls_creds;       /* TlsCredsSpec */
    GPtrArray *throttle_groups; /* ThrottleGroupSpec */
} Objects;

/* The objects of config; what is not supported is refused. Opens no file. NULL and *errp. */
Objects *objects_read(const Config *config, GError **errp);
void objects_free(Objects *objects);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Objects, objects_free)

/* Make relative file names in an object's options absolute. */
void object_options_anchor(JsonObject *options, const char *base);

/*
 * Give the graph its secrets, credentials and throttle groups; reads files. Main thread, before the daemon
 * serves anybody. False and *errp, which names object and file and nothing of what is in it.
 */
bool objects_add_to_graph(const Objects *objects, BlockGraph *graph, GError **errp);

#endif /* BG_CONTROL_OBJECTS_H */
