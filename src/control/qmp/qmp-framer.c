/*
 * Finding messages, a byte at a time.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "control/qmp/qmp-framer.h"

#include <string.h>

void qmp_framer_init(QmpFramer *framer)
{
    *framer = (QmpFramer){.text = g_string_new(NULL)};
}

void qmp_framer_destroy(QmpFramer *framer)
{
    g_string_free(framer->text, TRUE);
}

static void reset(QmpFramer *framer, QmpFramerState state)
{
    framer->state = state;
    framer->depth = 0;
    framer->escaped = false;
    g_string_truncate(framer->text, 0);
}

static QmpFrame fail(QmpFramer *framer, QmpFramerState next, const char *why)
{
    reset(framer, next);
    framer->error = why;
    return QMP_FRAME_ERROR;
}

static QmpFrame finish(QmpFramer *framer)
{
    framer->state = QMP_FRAMER_BETWEEN;
    framer->done = true;
    return QMP_FRAME_MESSAGE;
}

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static bool is_quote(char c)
{
    return c == '"' || c == '\'';
}

static bool is_bracket(char c)
{
    return c && strchr("{}[]", c);
}

/* What no message contains, and a client may send to be sure that nothing is left of what it sent before. */
static bool is_control(const QmpFramer *framer, unsigned char c)
{
    bool space_allowed = framer->state != QMP_FRAMER_STRING;

    return c == 0xff || c == 0x7f || (c < 0x20 && !(space_allowed && is_space((char)c)));
}

static void open_string(QmpFramer *framer, char c)
{
    framer->state = QMP_FRAMER_STRING;
    framer->quote = c;
    g_string_append_c(framer->text, c);
}

static QmpFrame take_bracket(QmpFramer *framer, char c)
{
    bool opens = c == '{' || c == '[';

    if (opens && framer->depth == QMP_MAX_DEPTH) {
        return fail(framer, QMP_FRAMER_SKIPPING, "nested too deeply");
    }
    g_string_append_c(framer->text, c);
    framer->state = QMP_FRAMER_NESTED;
    framer->depth += opens ? 1 : framer->depth > 0 ? -1 : 0;
    return framer->depth == 0 ? finish(framer) : QMP_FRAME_NONE;
}

static QmpFrame take_outside(QmpFramer *framer, char c)
{
    if (is_bracket(c)) {
        return take_bracket(framer, c);
    }
    if (is_quote(c)) {
        open_string(framer, c);
        return QMP_FRAME_NONE;
    }
    if (framer->state == QMP_FRAMER_BETWEEN && !is_space(c)) {
        framer->state = QMP_FRAMER_WORD;
    }
    if (framer->state != QMP_FRAMER_BETWEEN) {
        g_string_append_c(framer->text, c);
    }
    return QMP_FRAME_NONE;
}

static QmpFrame take_in_string(QmpFramer *framer, char c)
{
    g_string_append_c(framer->text, c);
    if (framer->escaped || c == '\\') {
        framer->escaped = !framer->escaped;
        return QMP_FRAME_NONE;
    }
    if (c != framer->quote) {
        return QMP_FRAME_NONE;
    }
    framer->state = QMP_FRAMER_NESTED;
    return framer->depth == 0 ? finish(framer) : QMP_FRAME_NONE;
}

static QmpFrame take(QmpFramer *framer, char c)
{
    if (is_control(framer, (unsigned char)c)) {
        return fail(framer, QMP_FRAMER_BETWEEN, "a control character");
    }
    if (framer->state == QMP_FRAMER_SKIPPING) {
        if (c == '\n') {
            reset(framer, QMP_FRAMER_BETWEEN);
        }
        return QMP_FRAME_NONE;
    }
    if (framer->text->len == QMP_MAX_MESSAGE) {
        return fail(framer, QMP_FRAMER_SKIPPING, "too long");
    }
    return framer->state == QMP_FRAMER_STRING ? take_in_string(framer, c) : take_outside(framer, c);
}

QmpFrame qmp_framer_next(QmpFramer *framer, const char **p, const char *end)
{
    if (framer->done) {
        framer->done = false;
        reset(framer, QMP_FRAMER_BETWEEN);
    }
    while (*p < end) {
        char c = **p;
        QmpFrame frame;

        if (framer->state == QMP_FRAMER_WORD && (is_space(c) || is_bracket(c) || is_quote(c))) {
            return finish(framer);
        }
        ++*p;
        frame = take(framer, c);
        if (frame != QMP_FRAME_NONE) {
            return frame;
        }
    }
    return QMP_FRAME_NONE;
}
