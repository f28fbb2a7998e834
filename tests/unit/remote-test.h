/*
 * A driver of a server that the test turns off, hangs, crashes and changes at will: test-remote, with the
 * options of Remote and links=N.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_TESTS_REMOTE_TEST_H
#define BG_TESTS_REMOTE_TEST_H

#include "backends/protocol/remote/remote.h"

#define REMOTE_TEST_LENGTH 65536

#define MAX_LINKS 3

/* The server. */
struct RemoteTestServer {
    _Atomic bool down, hung, other;
    _Atomic unsigned connects, attempts, flushes, resends;
    _Atomic unsigned break_resend; /* that one is not answered, and the connection goes; 0: none */
    BgMutex lock;
    uint8_t data[REMOTE_TEST_LENGTH], stable[REMOTE_TEST_LENGTH]; /* in memory, and on disk; with the lock */
};
extern struct RemoteTestServer server;

typedef struct TestLink {
    RemoteLink link;
    GQueue calls; /* Call; the link's thread */
    bool live;    /* connected; the link's thread */
} TestLink;

typedef struct TestRemote {
    Remote remote;
    uint64_t n_links;
    TestLink links[MAX_LINKS];
} TestRemote;

extern const BlockDriver test_remote_driver;

#endif /* BG_TESTS_REMOTE_TEST_H */
