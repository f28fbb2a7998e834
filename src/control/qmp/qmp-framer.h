/*
 * QmpFramer: finds the messages in what a client sends.
 *
 * Messages need no newline between them. What is kept is bounded, whatever comes:
 *
 *   state    | is                                   | event                              -> next
 *   ---------+--------------------------------------+----------------------------------------------
 *   BETWEEN  | nothing kept                         | '{' '['                            -> NESTED
 *            |                                      | a quote                            -> STRING
 *            |                                      | other                              -> WORD
 *   WORD     | a value without brackets             | space, bracket, quote: a message   -> BETWEEN
 *   NESTED   | 1 to QMP_MAX_DEPTH brackets are open | the last one closes: a message     -> BETWEEN
 *            |                                      | a quote                            -> STRING
 *   STRING   | in a string                          | its quote                          -> NESTED, or
 *            |                                      |   where no bracket is open: a message -> BETWEEN
 *   SKIPPING | after too long or too deep a message | newline                            -> BETWEEN
 *   any      |                                      | a control character, 0xff: an error -> BETWEEN
 *   any but SKIPPING                                | too long, too deep: an error       -> SKIPPING
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_CONTROL_QMP_FRAMER_H
#define BG_CONTROL_QMP_FRAMER_H

#include <glib.h>
#include <stdbool.h>

#include "control/json-text.h"

/* Bytes of the longest message; brackets that may be open. */
#define QMP_MAX_MESSAGE (1024 * 1024)
#define QMP_MAX_DEPTH   JSON_TEXT_MAX_DEPTH

typedef enum QmpFrame {
    QMP_FRAME_NONE,    /* all bytes are taken, more are needed */
    QMP_FRAME_MESSAGE, /* framer->text holds a message, valid or not */
    QMP_FRAME_ERROR,   /* framer->error says why what came is dropped */
} QmpFrame;

typedef enum QmpFramerState {
    QMP_FRAMER_BETWEEN,
    QMP_FRAMER_WORD,
    QMP_FRAMER_NESTED,
    QMP_FRAMER_STRING,
    QMP_FRAMER_SKIPPING,
} QmpFramerState;

typedef struct QmpFramer {
    QmpFramerState state;
    unsigned depth;
    char quote;        /* in a string: which one ends it */
    bool escaped;      /* in a string: the next character is */
    bool done;         /* `text` was handed out: the next call empties it */
    GString *text;     /* what is kept of the message */
    const char *error; /* static */
} QmpFramer;

void qmp_framer_init(QmpFramer *framer);
void qmp_framer_destroy(QmpFramer *framer);
/* Take bytes from *p on, up to `end`, until there is something to tell; *p moves behind the last one taken.
 */
QmpFrame qmp_framer_next(QmpFramer *framer, const char **p, const char *end);

#endif /* BG_CONTROL_QMP_FRAMER_H */
