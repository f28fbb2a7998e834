/*
 * blockgraphfs: mounts a graph of block nodes as plain files.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

#include "control/command-line.h"
#include "control/daemonize.h"
#include "control/plan.h"
#include "control/server.h"
#include "util/log.h"

static int fail(GError *error)
{
    bg_log(BG_LOG_ERROR, "%s", error->message);
    g_error_free(error);
    return EXIT_FAILURE;
}

/* A full or closed stdout is a failure as well. */
static int say(const char *text)
{
    return fputs(text, stdout) == EOF || fflush(stdout) == EOF ? EXIT_FAILURE : EXIT_SUCCESS;
}

static void announce(const Plan *plan, int ready_fd)
{
    if (plan->notice) {
        bg_log(BG_LOG_WARNING, "%s", plan->notice);
    }
    if (ready_fd >= 0) {
        daemonize_ready(ready_fd);
    }
    notify_service_manager("READY=1");
}

static int serve(const Plan *plan, int ready_fd)
{
    g_autoptr(PidFile) pidfile = NULL;
    GError *error = NULL;
    Server *server;
    int status;

    if (plan->line->pidfile) {
        pidfile = pid_file_new(plan->line->pidfile, &error);
        if (!pidfile) {
            return fail(error);
        }
    }
    server = server_new(plan, &error);
    if (!server) {
        return fail(error);
    }
    announce(plan, ready_fd);
    status = server_run(server);
    server_free(server);
    return status;
}

/* Each node, queue and open snapshot of a raw file takes some; the usual soft limit of 1024 is for select(2).
 */
static void raise_descriptor_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static int run(CommandLine *line)
{
    g_autoptr(Plan) plan = NULL;
    GError *error = NULL;
    int ready_fd = -1;

    raise_descriptor_limit();
    bg_log_set_level(line->debug ? BG_LOG_DEBUG : line->verbose ? BG_LOG_INFO : BG_LOG_WARNING);
    plan = plan_new(line, &error);
    if (!plan || (command_line_background(line) && !daemonize_fork(&ready_fd, &error))) {
        return fail(error);
    }
    return serve(plan, ready_fd);
}

int main(int argc, char **argv)
{
    g_autoptr(CommandLine) line = NULL;
    GError *error = NULL;

    daemonize_open_streams();
    line = command_line_parse(argc, argv, &error);
    if (!line) {
        return fail(error);
    }
    if (line->action == COMMAND_HELP) {
        return say(command_line_help());
    }
    if (line->action == COMMAND_VERSION) {
        return say(PACKAGE_NAME "fs " PACKAGE_VERSION "\n");
    }
    return run(line);
}
