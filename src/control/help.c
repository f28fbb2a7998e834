/*
 * The text of --help. tests/unit/test-command-line.c compares it with blockgraphfs(8).
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "control/command-line.h"

static const char help[] =
    "usage: blockgraphfs [OPTIONS] SOURCE MOUNTPOINT\n"
    "       blockgraphfs [OPTIONS] --blockdev ... --export ...,mountpoint=FILE\n"
    "\n"
    "Mount a graph of block nodes: each exported node is a regular file in MOUNTPOINT.\n"
    "\n"
    "SOURCE is one of\n"
    "  GRAPH.conf, GRAPH.json     a graph file, see blockgraph-graph(5)\n"
    "  IMAGE                      one image file or block device\n"
    "  json:{...}                 one node, described in JSON\n"
    "  none                       nothing: the nodes come from --blockdev\n"
    "Without a MOUNTPOINT, all exports must have mountpoints of their own; then the\n"
    "command stays in the foreground unless --daemonize is given.\n"
    "\n"
    "The graph\n"
    "  --format FORMAT            format of IMAGE (raw); without it the format is\n"
    "                             probed, and a raw image is exported read-only\n"
    "  --blockdev NODE            define a node: driver=...,node-name=...,... or JSON\n"
    "  --export EXPORT            export a node: type=fuse,id=...,node-name=...\n"
    "                             [,mountpoint=FILE][,writable=on|off][,growable=on|off]\n"
    "                             [,allow-other=on|off|auto][,iothread=ID]\n"
    "  --object OBJECT            iothread,id=ID[,poll-max-ns=NS]: a thread for a queue\n"
    "\n"
    "Control\n"
    "  --qmp unix:PATH            answer QMP commands on a socket at PATH, instead of one in\n"
    "                             a private place\n"
    "  --chardev socket,id=ID,path=PATH,server=on,wait=off\n"
    "  --monitor chardev=ID       the same in two steps\n"
    "\n"
    "The daemon\n"
    "  -f                         stay in the foreground\n"
    "  -d                         debug: log each request, stay in the foreground\n"
    "  -v, --verbose              say more\n"
    "  -s                         one queue only, as -o queues=1\n"
    "  --daemonize                go to the background when all is mounted\n"
    "  --pidfile FILE             write the daemon's process id to FILE\n"
    "  -V, --version              print the version\n"
    "  -h, --help                 print this text\n"
    "\n"
    "Mount options\n"
    "  -o OPTION[,OPTION...]      where OPTION is one of\n"
    "     ro, rw                  read-only; read-write (the default)\n"
    "     format=FORMAT           as --format, for mount(8) and fstab\n"
    "     queues=N                queues and threads, from 1 to 64 (default: one for\n"
    "                             each CPU, at most 4)\n"
    "     transport=auto|dev      how requests come from the kernel\n"
    "     event-loop=auto|io_uring|epoll\n"
    "                             what the threads wait with\n"
    "     cache=none              the page cache: not used\n"
    "     strict-sync             refuse nodes whose flush does not reach stable storage\n"
    "     allow_other             let other users in\n"
    "     default_permissions     let the kernel check the modes of files\n"
    "     auto_unmount            unmount also when the daemon dies\n"
    "     fsname=NAME             the device in the list of mounts (default: SOURCE)\n"
    "     subtype=NAME            the type there, after \"fuse.\" (default: blockgraphfs)\n"
    "     max_read=BYTES          largest read request\n"
    "     suid, nosuid, dev, nodev, exec, noexec, sync, async, dirsync, atime, noatime,\n"
    "     context=, fscontext=, defcontext=, rootcontext=\n"
    "                             as in mount(8)\n"
    "  Words that mount(8) and systemd pass along are accepted and ignored.\n";

const char *command_line_help(void)
{
    return help;
}
