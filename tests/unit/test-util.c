/*
 * Text helpers, errors and log lines.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <glib.h>
#include <string.h>
#include <unistd.h>

#include "util/error.h"
#include "util/lock.h"
#include "util/log.h"
#include "util/text.h"

static void nearest(void)
{
    static const char *const words[] = {"driver",  "filename", "read-only", "discard",
                                        "locking", "size",     NULL};
    static const struct {
        const char *word;
        const char *nearest;
    } cases[] = {
        {"drvier", "driver"},
        {"driver", "driver"},
        {"DRIVER", "driver"},
        {"file-name", "filename"},
        {"filname", "filename"},
        {"read_only", "read-only"},
        {"readonly", "read-only"},
        {"discrad", "discard"},
        {"sise", "size"},
        {"siez", "size"},
        {"locks", NULL},
        {"backing", "locking"},
        {"quorum", NULL},
        {"x", NULL},
        {"", NULL},
        {"of", NULL},
        {"throttle-group", NULL},
    };
    static const char *const none[] = {NULL};
    g_autofree char *huge = g_strnfill(100000, 'd');

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_assert_cmpstr(text_nearest(cases[i].word, words), ==, cases[i].nearest);
    }
    g_assert_null(text_nearest("driver", none));
    g_assert_null(text_nearest(huge, words));
}

typedef struct SizeCase {
    const char *text;
    int ret;
    uint64_t value;
} SizeCase;

static void parse_size(void)
{
    static const SizeCase cases[] = {
        {"0", 0, 0},
        {"512", 0, 512},
        {"512b", 0, 512},
        {"64k", 0, 65536},
        {"64K", 0, 65536},
        {"1M", 0, 1048576},
        {"1.5G", 0, UINT64_C(1610612736)},
        {"0.5k", 0, 512},
        {".5k", 0, 512},
        {"1.k", 0, 1024},
        {"1.1k", 0, 1126},
        {"2T", 0, UINT64_C(2199023255552)},
        {"1P", 0, UINT64_C(1125899906842624)},
        {"7E", 0, UINT64_C(8070450532247928832)},
        {"7.999999999999999999E", 0, UINT64_C(9223372036854775806)},
        {"0x1000", 0, 4096},
        {"0xE", 0, 14},
        {"-0", 0, 0},
        {"007", 0, 7},
        {"9223372036854775807", 0, INT64_MAX},
        {"9223372036854775808", -ERANGE, 0},
        {"8E", -ERANGE, 0},
        {"0x8000000000000000", -ERANGE, 0},
        {"99999999999999999999999999", -ERANGE, 0},
        {"18446744073709551616k", -ERANGE, 0},
        {"-1", -ERANGE, 0},
        {"-1.5G", -ERANGE, 0},
        {"", -EINVAL, 0},
        {"-", -EINVAL, 0},
        {".", -EINVAL, 0},
        {".k", -EINVAL, 0},
        {"k", -EINVAL, 0},
        {"1.5", -EINVAL, 0},
        {"1.5b", -EINVAL, 0},
        {"1kk", -EINVAL, 0},
        {"1KiB", -EINVAL, 0},
        {"1x", -EINVAL, 0},
        {"0x", -EINVAL, 0},
        {"0x10k", -EINVAL, 0},
        {" 1", -EINVAL, 0},
        {"1 ", -EINVAL, 0},
        {"+1", -EINVAL, 0},
        {"--1", -EINVAL, 0},
        {"1e3", -EINVAL, 0},
        {"nan", -EINVAL, 0},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        uint64_t value = 12345;

        g_test_message("size '%s'", cases[i].text);
        g_assert_cmpint(text_parse_size(cases[i].text, &value), ==, cases[i].ret);
        g_assert_cmpuint(value, ==, cases[i].ret ? 12345 : cases[i].value);
    }
}

static void parse_uint64(void)
{
    static const SizeCase cases[] = {
        {"0", 0, 0},
        {"42", 0, 42},
        {"0xff", 0, 255},
        {"0XFF", 0, 255},
        {"18446744073709551615", 0, UINT64_MAX},
        {"0xffffffffffffffff", 0, UINT64_MAX},
        {"18446744073709551616", -ERANGE, 0},
        {"0x10000000000000000", -ERANGE, 0},
        {"-1", -ERANGE, 0},
        {"", -EINVAL, 0},
        {"12k", -EINVAL, 0},
        {"1.0", -EINVAL, 0},
        {"0x", -EINVAL, 0},
        {"ff", -EINVAL, 0},
        {" 1", -EINVAL, 0},
        {"99999999999999999999x", -EINVAL, 0},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        uint64_t value = 12345;

        g_test_message("number '%s'", cases[i].text);
        g_assert_cmpint(text_parse_uint64(cases[i].text, &value), ==, cases[i].ret);
        g_assert_cmpuint(value, ==, cases[i].ret ? 12345 : cases[i].value);
    }
}

static void parse_bool(void)
{
    static const char *const yes[] = {"on", "yes", "true", "y"};
    static const char *const no[] = {"off", "no", "false", "n"};
    static const char *const neither[] = {"", "On", "1", "0", "of", "yess", "auto"};
    bool value;

    for (size_t i = 0; i < G_N_ELEMENTS(yes); i++) {
        value = false;
        g_assert_cmpint(text_parse_bool(yes[i], &value), ==, 0);
        g_assert_true(value);
        g_assert_cmpint(text_parse_bool(no[i], &value), ==, 0);
        g_assert_false(value);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(neither); i++) {
        g_assert_cmpint(text_parse_bool(neither[i], &value), ==, -EINVAL);
    }
}

static void format_size(void)
{
    static const struct {
        uint64_t bytes;
        const char *text;
    } cases[] = {
        {0, "0 B"},
        {1023, "1023 B"},
        {1024, "1 KiB"},
        {65536, "64 KiB"},
        {1536, "1.5 KiB"},
        {1034, "1 KiB"},
        {1126, "1.09 KiB"},
        {UINT64_C(1610612736), "1.5 GiB"},
        {UINT64_C(1099511627775), "1023.99 GiB"},
        {UINT64_MAX, "15.99 EiB"},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *text = text_format_size(cases[i].bytes);

        g_assert_cmpstr(text, ==, cases[i].text);
    }
}

static void valid_name(void)
{
    static const char *const valid[] = {"a", "vm1.img", "...", ".hidden", "käse", "with space", "#block001"};
    static const char *const invalid[] = {"", ".", "..", "a/b", "/", "a\nb", "\x7f", "\xff\xfe", "a\xc2\x85"};
    g_autofree char *longest = g_strnfill(255, 'n'), *too_long = g_strnfill(256, 'n');
    const char *why = NULL;

    for (size_t i = 0; i < G_N_ELEMENTS(valid); i++) {
        g_assert_true(text_valid_name(valid[i], &why));
        g_assert_null(why);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(invalid); i++) {
        why = NULL;
        g_assert_false(text_valid_name(invalid[i], &why));
        g_assert_nonnull(why);
        g_assert_false(text_valid_name(invalid[i], NULL));
    }
    g_assert_true(text_valid_name(longest, NULL));
    g_assert_false(text_valid_name(too_long, &why));
}

static void error(void)
{
    g_autoptr(GError) err = NULL, other = g_error_new(G_FILE_ERROR, G_FILE_ERROR_NOENT, "other");

    g_assert_cmpint(bg_error_set(&err, ENOENT, "node '%s'", "x"), ==, -ENOENT);
    g_assert_error(err, BG_ERROR, ENOENT);
    g_assert_cmpstr(err->message, ==, "node 'x'");
    g_assert_cmpint(bg_error_to_errno(err), ==, -ENOENT);
    g_clear_error(&err);
    g_assert_cmpint(bg_error_set_errno(&err, EACCES, "node '%s'", "x"), ==, -EACCES);
    g_assert_cmpstr(err->message, ==, "node 'x': Permission denied");
    g_assert_cmpint(bg_error_to_errno(other), ==, -EINVAL);
    g_assert_cmpint(bg_error_set(NULL, EIO, "dropped"), ==, -EIO);
}

static void write_log(void)
{
    if (g_test_subprocess()) {
        errno = EBADF;
        bg_log(BG_LOG_ERROR, "an %s", "error");
        bg_log(BG_LOG_INFO, "not shown");
        bg_log_set_level(BG_LOG_INFO);
        bg_log(BG_LOG_INFO, "now\nshown");
        bg_log(BG_LOG_DEBUG, "not shown either");
        g_assert_cmpint(errno, ==, EBADF);
        bg_fatal("fatal %d", 7);
    }
    g_test_trap_subprocess(NULL, 0, 0);
    g_test_trap_assert_failed();
    g_test_trap_assert_stderr("*blockgraphfs: an error\nblockgraphfs: now shown\nblockgraphfs: fatal 7\n*");
    g_test_trap_assert_stderr_unmatched("*not shown*");
}

static void *assert_main_thread(void *opaque)
{
    g_assert_false(bg_is_main_thread());
    bg_main_thread_register(); /* too late */
    g_assert_false(bg_is_main_thread());
    bg_assert_main_thread();
    return NULL;
}

static void main_thread(void)
{
    if (g_test_subprocess()) {
        g_assert_false(bg_is_main_thread());
        bg_main_thread_register();
        g_assert_true(bg_is_main_thread());
        bg_assert_main_thread();
        g_thread_join(g_thread_new("other", assert_main_thread, NULL));
        _exit(0);
    }
    g_test_trap_subprocess(NULL, 0, 0);
    g_test_trap_assert_failed();
    g_test_trap_assert_stderr("*a function of the main thread was called in another thread*");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/text/nearest", nearest);
    g_test_add_func("/text/parse-size", parse_size);
    g_test_add_func("/text/parse-uint64", parse_uint64);
    g_test_add_func("/text/parse-bool", parse_bool);
    g_test_add_func("/text/format-size", format_size);
    g_test_add_func("/text/valid-name", valid_name);
    g_test_add_func("/error", error);
    g_test_add_func("/log", write_log);
    g_test_add_func("/main-thread", main_thread);
    return g_test_run();
}
