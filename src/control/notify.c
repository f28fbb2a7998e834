/*
 * systemd's readiness protocol: one datagram to the socket named in the environment.
 *
 * It is stable, and so small that a library for it would be more to carry than this.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "control/daemonize.h"
#include "util/log.h"

static bool send_to(const char *path, const char *text)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t len = strlen(path);
    ssize_t n;
    int fd;

    if ((path[0] != '/' && path[0] != '@') || len >= sizeof(address.sun_path)) {
        errno = EINVAL;
        return false;
    }
    memcpy(address.sun_path, path, len);
    if (path[0] == '@') {
        address.sun_path[0] = '\0'; /* an abstract socket */
    }
    fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return false;
    }
    n = sendto(fd, text, strlen(text), MSG_NOSIGNAL, (struct sockaddr *)&address,
               (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len));
    close(fd);
    return n >= 0;
}

void notify_service_manager(const char *state)
{
    const char *path = getenv("NOTIFY_SOCKET");
    g_autofree char *text = NULL;

    if (!path || !*path) {
        return;
    }
    text = g_strdup_printf("%s\nMAINPID=%ld", state, (long)getpid());
    if (!send_to(path, text)) {
        bg_log(BG_LOG_WARNING, "cannot notify the service manager at '%s': %s", path, g_strerror(errno));
    }
}
