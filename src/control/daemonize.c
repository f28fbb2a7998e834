/*
 * Going to the background.
 *
 *   parent                       child
 *   waits on the pipe            opens the graph, mounts; messages go to the original stderr
 *   reads a byte: exit 0   <---  ready: writes it, closes the pipe
 *   reads the end: waitpid <---  ends before: its exit status becomes the parent's
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "control/daemonize.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util/error.h"
#include "util/log.h"

/* The status that the parent ends with when the child ended before it was ready. */
static int status_of_dead_child(pid_t pid)
{
    int status;

    while (waitpid(pid, &status, 0) < 0) {
        if (errno != EINTR) {
            return EXIT_FAILURE;
        }
    }
    if (WIFSIGNALED(status)) {
        bg_log(BG_LOG_ERROR, "the daemon was ended by signal %d (%s) while it started", WTERMSIG(status),
               g_strsignal(WTERMSIG(status)));
        return EXIT_FAILURE;
    }
    return WEXITSTATUS(status);
}

static void wait_for_child(pid_t pid, int fd) __attribute__((noreturn));
static void wait_for_child(pid_t pid, int fd)
{
    ssize_t n;
    char byte;

    do {
        n = read(fd, &byte, 1);
    } while (n < 0 && errno == EINTR);
    _exit(n == 1 ? EXIT_SUCCESS : status_of_dead_child(pid));
}

void daemonize_open_streams(void)
{
    int fd;

    do {
        fd = open("/dev/null", O_RDWR);
    } while (fd >= 0 && fd <= 2);
    if (fd > 2) {
        close(fd);
    }
}

/* For the streams, from the fork on: later there may be no descriptor left. */
static int null_fd = -1;

bool daemonize_fork(int *ready_fd, GError **errp)
{
    int fds[2];
    pid_t pid;

    null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null_fd < 0 || pipe2(fds, O_CLOEXEC) < 0) {
        bg_error_set_errno(errp, errno, "cannot go to the background");
        return false;
    }
    pid = fork();
    if (pid < 0) {
        bg_error_set_errno(errp, errno, "cannot go to the background");
        close(fds[0]);
        close(fds[1]);
        return false;
    }
    if (pid > 0) {
        close(fds[1]);
        wait_for_child(pid, fds[0]);
    }
    close(fds[0]);
    setsid();
    *ready_fd = fds[1];
    return true;
}

void daemonize_ready(int ready_fd)
{
    ssize_t n;

    bg_log_to_syslog("blockgraphfs");
    for (int fd = 0; fd <= 2; fd++) {
        dup2(null_fd, fd);
    }
    close(null_fd);
    if (chdir("/") < 0) {
        bg_log(BG_LOG_WARNING, "cannot change to the directory /: %s", g_strerror(errno));
    }
    do {
        n = write(ready_fd, "", 1); /* fails where the parent was killed, which changes nothing */
    } while (n < 0 && errno == EINTR);
    close(ready_fd);
}
