/*
 * The fuzzer's corpus as a test, with any compiler: each file is one case. Or the files that are named.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <unistd.h>

#include "aio/thread-pool.h"
#include "coroutine/coroutine.h"
#include "tests/fuzz/fuzz-qcow2.h"

#include <glib.h>

/* One case may take this long under a sanitizer on a busy machine. */
#define TIMEOUT_S 120

static void replay(gconstpointer path)
{
    g_autofree char *data = NULL;
    g_autoptr(GError) err = NULL;
    gsize size;
    g_file_get_contents(path, &data, &size, &err);
    g_assert_no_error(err);
    /* Its own memory, so that a sanitizer sees where it ends. */
    g_autofree uint8_t *input = g_memdup2(data, size);
    alarm(TIMEOUT_S);
    LLVMFuzzerTestOneInput(input, size);
    alarm(0);
}

static void add_file(const char *directory, const char *name)
{
    g_autofree char *test = g_strdup_printf("/fuzz/qcow2/%s", name);
    char *path = directory ? g_build_filename(directory, name, NULL) : g_strdup(name);
    g_test_add_data_func_full(test, path, replay, g_free);
}

static void add_corpus(void)
{
    g_autoptr(GError) err = NULL;
    g_autoptr(GDir) directory = g_dir_open(FUZZ_CORPUS, 0, &err);
    g_assert_no_error(err);
    unsigned n = 0;
    for (const char *name; (name = g_dir_read_name(directory)); n++) {
        add_file(FUZZ_CORPUS, name);
    }
    g_assert_cmpuint(n, >=, 20);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    LLVMFuzzerInitialize(&argc, &argv);
    for (int i = 1; i < argc; i++) {
        add_file(NULL, argv[i]);
    }
    if (argc < 2) {
        add_corpus();
    }
    int ret = g_test_run();
    coroutine_pool_drain();
    thread_pool_shutdown();
    return ret;
}
