/*
 * iscsi:// URLs and portals.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "backends/protocol/iscsi/iscsi.h"
#include "util/error.h"

#define SCHEME "iscsi://"

static bool is_port(const char *text)
{
    char *end = NULL;
    guint64 n = g_ascii_isdigit(*text) ? g_ascii_strtoull(text, &end, 10) : 0;

    return n >= 1 && n <= 65535 && *end == '\0';
}

bool iscsi_parse_portal(const char *portal, char **host, char **port)
{
    const char *host_end, *rest;

    if (*portal == '[') {
        portal++;
        host_end = strchr(portal, ']');
        rest = host_end ? host_end + 1 : NULL;
    } else {
        host_end = portal + strcspn(portal, ":");
        rest = host_end;
    }
    if (!host_end || host_end == portal || (*rest && (*rest != ':' || !is_port(rest + 1)))) {
        return false;
    }
    *host = g_strndup(portal, host_end - portal);
    *port = g_strdup(*rest ? rest + 1 : ISCSI_DEFAULT_PORT);
    return true;
}

static bool bad(GError **errp, const char *cause)
{
    bg_error_set(errp, EINVAL, "%s; it has the form iscsi://[USER@]HOST[:PORT]/TARGET/LUN", cause);
    return false;
}

/* The part before '@'. A password is refused without being repeated: URLs end up in logs and in argv. */
static bool take_user(const char *text, size_t length, IscsiTarget *target, GError **errp)
{
    if (memchr(text, '%', length) || memchr(text, ':', length)) {
        bg_error_set(errp, EINVAL,
                     "a password in the URL would be seen by everybody; use user, and password-secret with "
                     "the id of a secret object");
        return false;
    }
    target->user = g_strndup(text, length);
    return length > 0 || bad(errp, "the user's name is empty");
}

static bool take_lun(const char *text, IscsiTarget *target, GError **errp)
{
    char *end = NULL;
    guint64 lun = g_ascii_isdigit(*text) ? g_ascii_strtoull(text, &end, 10) : 0;

    if (!end || *end != '\0' || lun > ISCSI_MAX_LUN) {
        bg_error_set(errp, EINVAL, "the LUN is not a number from 0 to %d", ISCSI_MAX_LUN);
        return false;
    }
    target->lun = lun;
    return true;
}

static bool take_path(const char *path, IscsiTarget *target, GError **errp)
{
    const char *lun = strrchr(path, '/');

    if (!lun || lun == path) {
        return bad(errp, "the URL lacks the target's name or the LUN");
    }
    target->name = g_uri_unescape_segment(path, lun, NULL);
    if (!target->name) {
        return bad(errp, "the target's name has a bad % sequence");
    }
    return take_lun(lun + 1, target, errp);
}

bool iscsi_parse_url(const char *url, IscsiTarget *target, GError **errp)
{
    if (g_ascii_strncasecmp(url, "iser://", strlen("iser://")) == 0) {
        bg_error_set(errp, ENOTSUP, "the transport iser is not supported, only tcp (iscsi://)");
        return false;
    }
    if (g_ascii_strncasecmp(url, SCHEME, strlen(SCHEME)) != 0) {
        return bad(errp, "not an iSCSI URL");
    }
    const char *authority = url + strlen(SCHEME), *path = strchr(authority, '/');

    if (strpbrk(url, "?#")) {
        bg_error_set(
            errp, EINVAL,
            "parameters in the URL are not supported; use the options header-digest, target-user and "
            "target-password-secret");
        return false;
    }
    const char *at = memchr(authority, '@', path ? (size_t)(path - authority) : strlen(authority));

    if (at && !take_user(authority, at - authority, target, errp)) {
        return false;
    }
    if (!path) {
        return bad(errp, "the URL lacks the target's name");
    }
    const char *start = at ? at + 1 : authority;
    g_autofree char *portal = g_strndup(start, path - start);

    if (!iscsi_parse_portal(portal, &target->host, &target->port)) {
        return bad(errp, "the URL has no valid host and port");
    }
    return take_path(path + 1, target, errp);
}
