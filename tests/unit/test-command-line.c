/*
 * The command line: options, SOURCE, the plan, and that --help and the man page agree.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "graph-test.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <glib/gstdio.h>

#include "control/plan.h"
#include "control/probe.h"
#include "control/source.h"
#include "util/error.h"

#define MAX_WORDS 16

/* Parse the words up to NULL. */
static CommandLine *parse(GError **errp, const char *const *words)
{
    char *argv[MAX_WORDS + 1] = {(char *)"blockgraphfs"};
    int argc = 1;

    while (words[argc - 1]) {
        g_assert_cmpint(argc, <, MAX_WORDS);
        argv[argc] = (char *)words[argc - 1];
        argc++;
    }
    return command_line_parse(argc, argv, errp);
}

#define WORDS(...) ((const char *const[]){__VA_ARGS__, NULL})

static CommandLine *accept_line(const char *const *words)
{
    g_autoptr(GError) error = NULL;
    CommandLine *line = parse(&error, words);

    g_assert_no_error(error);
    g_assert_nonnull(line);
    return line;
}

static void refuse_line(const char *message, const char *const *words)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(CommandLine) line = parse(&error, words);

    g_assert_null(line);
    g_assert_nonnull(error);
    g_assert_cmpstr(error->message, ==, message);
}

/* Parses, but makes no plan. */
static void refuse_plan(const char *message, const char *const *words)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(CommandLine) line = accept_line(words);
    g_autoptr(Plan) plan = plan_new(line, &error);

    g_assert_null(plan);
    g_assert_nonnull(error);
    g_assert_cmpstr(error->message, ==, message);
}

/* ---- Options */

static void test_operands(void)
{
    g_autofree char *cwd = g_get_current_dir();
    g_autofree char *mountpoint = g_build_filename(cwd, "mnt", NULL);
    g_autoptr(CommandLine) line = accept_line(WORDS("lab.conf", "mnt"));
    g_autoptr(CommandLine) dashes = accept_line(WORDS("-f", "--", "-lab.conf", "/mnt"));
    g_autoptr(CommandLine) mixed = accept_line(WORDS("a", "-o", "ro", "b", "-d"));

    g_assert_cmpstr(line->source, ==, "lab.conf");
    g_assert_cmpstr(line->mountpoint, ==, mountpoint);
    g_assert_true(command_line_background(line));
    g_assert_cmpstr(dashes->source, ==, "-lab.conf");
    g_assert_cmpstr(dashes->mountpoint, ==, "/mnt");
    g_assert_false(command_line_background(dashes));
    g_assert_true(mixed->mount->read_only && mixed->debug);
    g_assert_false(command_line_background(mixed));
    refuse_line("unexpected word 'c' after SOURCE and MOUNTPOINT", WORDS("a", "b", "c"));
    refuse_line("an empty word is no SOURCE and no MOUNTPOINT", WORDS("", "b"));
}

static void test_flags(void)
{
    g_autoptr(CommandLine) cluster = accept_line(WORDS("-fsv", "-oro,queues=1", "-d"));
    g_autoptr(CommandLine) daemon = accept_line(WORDS("--daemonize", "--pidfile", "/p", "--format=raw"));
    g_autoptr(CommandLine) storage = accept_line(WORDS("--blockdev", "null-co,node-name=n"));
    g_autoptr(CommandLine) help = accept_line(WORDS("-h", "--nonsense"));
    g_autoptr(CommandLine) version = accept_line(WORDS("--version"));

    g_assert_true(cluster->foreground && cluster->one_queue && cluster->verbose && cluster->debug);
    g_assert_true(cluster->mount->read_only);
    g_assert_cmpuint(cluster->mount->queues, ==, 1);
    g_assert_true(daemon->daemonize && command_line_background(daemon));
    g_assert_cmpstr(daemon->pidfile, ==, "/p");
    g_assert_cmpstr(daemon->format, ==, "raw");
    g_assert_false(command_line_background(storage));
    g_assert_cmpint(help->action, ==, COMMAND_HELP);
    g_assert_cmpint(version->action, ==, COMMAND_VERSION);
}

static void test_bad_options(void)
{
    refuse_line("unknown option '--blokdev', did you mean '--blockdev'?", WORDS("--blokdev=x"));
    refuse_line("unknown option '--xyzzy'; --help lists them", WORDS("--xyzzy"));
    refuse_line("unknown option '--block', did you mean '--blockdev'?",
                WORDS("--block", "x")); /* no abbreviations */
    refuse_line("unknown option '-x'; --help lists them", WORDS("-x"));
    refuse_line("unknown option '-x'; --help lists them", WORDS("-fx"));
    refuse_line("option '--blockdev' needs a value", WORDS("--blockdev"));
    refuse_line("option '-o' needs a value", WORDS("-o"));
    refuse_line("option '--daemonize' takes no value", WORDS("--daemonize=yes"));
    refuse_line("--daemonize contradicts -f", WORDS("-f", "--daemonize"));
    refuse_line("--daemonize contradicts -d", WORDS("-d", "--daemonize"));
    refuse_line("-s contradicts -o queues=2", WORDS("-s", "-o", "queues=2"));
    refuse_line("--format: given more than once", WORDS("--format=raw", "--format=raw"));
    refuse_line("--format: needs a value", WORDS("--format="));
    refuse_line("--pidfile: needs a value", WORDS("--pidfile="));
    refuse_line("--nbd-server is not supported yet", WORDS("--nbd-server=x"));
}

/* ---- Control sockets */

#define SOCKET "socket,id=c,path=/c,server=on,wait=off"

static const MonitorSpec *spec_at(const CommandLine *line, guint i)
{
    g_assert_cmpuint(i, <, line->monitors->specs->len);
    return line->monitors->specs->pdata[i];
}

static void test_monitors(void)
{
    g_autofree char *cwd = g_get_current_dir();
    g_autofree char *path = g_build_filename(cwd, "q,1", NULL);
    g_autoptr(CommandLine) line = accept_line(WORDS("--monitor", "chardev=c,id=m,pretty=on", "--qmp",
                                                    "unix:q,,1,server=on,wait=off", "--chardev", SOCKET));

    g_assert_cmpuint(line->monitors->specs->len, ==, 2);
    g_assert_cmpstr(spec_at(line, 0)->path, ==, path);
    g_assert_false(spec_at(line, 0)->pretty);
    g_assert_cmpstr(spec_at(line, 1)->path, ==, "/c");
    g_assert_true(spec_at(line, 1)->pretty);
}

static void test_monitor_errors(void)
{
    refuse_line("--qmp: expected unix:PATH", WORDS("--qmp", "tcp:localhost:4444"));
    refuse_line("--qmp: an option is empty (a comma in a value is written ',,')", WORDS("--qmp", "unix:"));
    refuse_line("--qmp: option 'path': is required", WORDS("--qmp", "unix:server=on"));
    refuse_line("--qmp: option 'wait': only 'off' is supported: the daemon does not wait for a client",
                WORDS("--qmp", "unix:s,wait=on"));
    refuse_line("--qmp: the socket '/s' is given twice", WORDS("--qmp", "unix:/s", "--qmp", "unix:/s"));
    refuse_line("--monitor: option 'chardev': there is no chardev 'c'", WORDS("--monitor", "chardev=c"));
    refuse_line("--monitor: option 'mode': only 'control' is supported",
                WORDS("--chardev", SOCKET, "--monitor", "c,mode=readline"));
    refuse_line("--chardev: option 'id': is required", WORDS("--chardev=socket,path=x"));
    refuse_line("--chardev: option 'backend': is required: socket", WORDS("--chardev", "id=x"));
    refuse_line("--chardev: option 'server': only 'on' is supported: clients connect to us",
                WORDS("--chardev=socket,id=c,path=x"));
    refuse_line("--chardev: option 'wait': only 'off' is supported: the daemon does not wait for a client",
                WORDS("--chardev=socket,id=c,path=x,server=on"));
    refuse_line("--chardev: option 'id': 'c' is given twice",
                WORDS("--chardev", SOCKET, "--chardev", SOCKET));
}

/* ---- Nodes, exports, objects */

static void test_items(void)
{
    g_autoptr(CommandLine) line =
        accept_line(WORDS("--blockdev", "file,node-name=a,filename=/x",
                          "--blockdev={\"driver\":\"raw\",\"node-name\":"
                          "\"b\",\"file\":\"a\"}",
                          "--export", "fuse,id=e,node-name=b,mountpoint=/m", "--object=iothread,id=io"));

    g_assert_cmpuint(config_nodes(line->config)->len, ==, 2);
    g_assert_cmpuint(config_exports(line->config)->len, ==, 1);
    g_assert_cmpuint(config_objects(line->config)->len, ==, 1);
    refuse_line("--blockdev: node: option 'node-name': is required", WORDS("--blockdev", "raw"));
    refuse_line("--blockdev: expected '=' after 'x'", WORDS("--blockdev", "raw,x"));
    refuse_line("--export: export: option 'id': is required", WORDS("--export", "fuse,node-name=a"));
    refuse_line("--blockdev: node 'a': the node name 'a' is taken already, at --blockdev",
                WORDS("--blockdev", "raw,node-name=a", "--blockdev", "raw,node-name=a"));
}

/* ---- The plan */

#define NODE "--blockdev", "null-co,node-name=n"

static void test_plan(void)
{
    g_autoptr(CommandLine) line =
        accept_line(WORDS(NODE, "--object", "iothread,id=io,poll-max-ns=5000", "none", "/m"));
    g_autoptr(GError) error = NULL;
    g_autoptr(Plan) plan = plan_new(line, &error);
    g_autoptr(CommandLine) three = accept_line(WORDS(NODE, "-o", "queues=3,fsname=lab,ro", "none", "/m"));
    g_autoptr(Plan) plan_of_three = plan_new(three, &error);

    g_assert_no_error(error);
    const IothreadSpec *thread = plan->objects->iothreads->pdata[0];

    g_assert_cmpuint(plan->objects->iothreads->len, ==, 1);
    g_assert_cmpstr(thread->id, ==, "io");
    g_assert_cmpuint(thread->poll_max_ns, ==, 5000);
    g_assert_cmpuint(plan->exports->len, ==, 1);
    g_assert_cmpstr(plan->fsname, ==, "none");
    g_assert_cmpuint(plan_of_three->objects->iothreads->len, ==, 3);
    g_assert_cmpstr(plan_of_three->fsname, ==, "lab");
    g_assert_true(
        json_object_get_boolean_member(config_find(three->config, CONFIG_NODE, "n")->options, "read-only"));
}

static void test_bad_plan(void)
{
    refuse_plan("SOURCE and MOUNTPOINT are missing; --help tells more", WORDS("-f"));
    refuse_plan("there is no node: --blockdev defines one", WORDS("none", "/m"));
    refuse_plan("MOUNTPOINT is missing: export 'n' has no mountpoint of its own", WORDS(NODE));
    refuse_plan("MOUNTPOINT is missing: export 'n' has no mountpoint of its own", WORDS(NODE, "none"));
    refuse_plan("MOUNTPOINT is missing: export 'e' has no mountpoint of its own",
                WORDS(NODE, "--export", "fuse,id=e,node-name=n"));
    refuse_plan("-o queues contradicts the 2 iothreads that are defined: leave out one or the other",
                WORDS(NODE, "--object", "iothread,id=a", "--object", "iothread,id=b", "-o", "queues=3",
                      "none", "/m"));
    refuse_plan("-s contradicts the 2 iothreads that are defined: leave out one or the other",
                WORDS(NODE, "--object", "iothread,id=a", "--object", "iothread,id=b", "-s", "none", "/m"));
    refuse_plan("--format raw: applies to an image, not to 'none'",
                WORDS(NODE, "--format=raw", "none", "/m"));
    refuse_plan(
        "--export: export 'e': option 'node-name': there is no node 'm'",
        WORDS("--blockdev", "null-co,node-name=n", "--export", "fuse,id=e,node-name=m", "none", "/m"));
}

/* ---- SOURCE */

static char *dir; /* a temporary one, for the tests below */

static char *image(const char *name, const char *head, size_t size)
{
    char *path = g_build_filename(dir, name, NULL);

    g_assert_true(g_file_set_contents(path, head, (gssize)size, NULL));
    return path;
}

static void test_image(void)
{
    g_autofree char *path = image("a:b,c.img", "", 0);
    g_autofree char *pseudo = g_strconcat("file:", path, NULL);
    g_autofree char *expected =
        g_strdup_printf("'%s' looks like a raw image and is exported read-only, since the "
                        "format was guessed: --format=raw makes it writable",
                        path);
    g_autoptr(CommandLine) guessed = accept_line(WORDS(path, "/m"));
    g_autoptr(CommandLine) given = accept_line(WORDS("--format=raw", pseudo, "/m"));
    g_autoptr(GError) error = NULL;
    g_autoptr(Plan) guessed_plan = plan_new(guessed, &error);
    g_autoptr(Plan) given_plan = plan_new(given, &error);
    ExportSpec *spec;

    g_assert_no_error(error);
    g_assert_cmpuint(guessed_plan->exports->len, ==, 1);
    spec = guessed_plan->exports->pdata[0];
    g_assert_cmpstr(spec->id, ==, "a:b,c.img");
    g_assert_cmpint(spec->writable, ==, EXPORT_READ_ONLY);
    g_assert_cmpstr(guessed_plan->notice, ==, expected);
    spec = given_plan->exports->pdata[0];
    g_assert_cmpstr(spec->id, ==, "a:b,c.img");
    g_assert_cmpint(spec->writable, ==, EXPORT_WRITABLE);
    g_assert_null(given_plan->notice);
}

static void test_bad_image(void)
{
    g_autofree char *vmdk = image("x.vmdk", "KDMV", 4);
    g_autofree char *fifo = g_build_filename(dir, "fifo", NULL);
    g_autofree char *no_driver =
        g_strdup_printf("'%s' is an image of format vmdk, for which there is no driver yet "
                        "(--format=raw exports the file's bytes as they are)",
                        vmdk);
    g_autofree char *directory = g_strdup_printf("cannot open '%s': it is a directory", dir);
    g_autofree char *is_fifo = g_strdup_printf("cannot open '%s': it is a FIFO", fifo);

    refuse_plan(no_driver, WORDS(vmdk, "/m"));
    refuse_plan(directory, WORDS(dir, "/m"));
    g_assert_cmpint(mkfifo(fifo, 0600), ==, 0);
    refuse_plan(is_fifo, WORDS(fifo, "/m"));
    refuse_plan(is_fifo, WORDS("--format=raw", fifo, "/m"));
    refuse_plan("cannot open '/nowhere/x.img': No such file or directory", WORDS("/nowhere/x.img", "/m"));
    refuse_plan("cannot open '/dev/null': it is a character device", WORDS("/dev/null", "/m"));
    refuse_plan("the file name 'x\xef\xbf\xbd' is not valid UTF-8", WORDS("x\xff", "/m"));
    refuse_plan("--format rw: no driver is named 'rw'; did you mean 'raw'?",
                WORDS("--format=rw", vmdk, "/m"));
}

/* Which node and export a URI makes. */
static void check_uri(const char *uri, const char *format, const char *driver, const char *key,
                      const char *name)
{
    g_autofree char *option = g_strdup_printf("--format=%s", format);
    g_autoptr(CommandLine) line = accept_line(format ? WORDS(option, uri, "/m") : WORDS(uri, "/m"));
    g_autoptr(GError) error = NULL;
    g_autoptr(Plan) plan = plan_new(line, &error);

    g_assert_no_error(error);
    JsonObject *node = config_find(line->config, CONFIG_NODE, name)->options;
    JsonObject *file = json_object_get_object_member(node, "file");

    g_assert_cmpstr(json_object_get_string_member(node, "driver"), ==, format ? format : "raw");
    g_assert_cmpstr(json_object_get_string_member(file, "driver"), ==, driver);
    g_assert_cmpstr(json_object_get_string_member(file, key), ==, uri);
    g_assert_cmpstr(plan->probe, ==, format ? NULL : name);
    g_assert_cmpuint(plan->exports->len, ==, 1);
    g_assert_cmpint(((ExportSpec *)plan->exports->pdata[0])->writable, ==, EXPORT_AS_NODE);
}

static void test_uri(void)
{
    static const char *const secret[][2] = {
        {"nbd://user:secret@host:10809/export?key=secret", "nbd://host:10809/export"},
        {"https://a@b:secret@host/x", "https://host/x"},
        {"nbd:host:10809", "nbd:host:10809"},
        {"rbd:pool/image", "rbd:pool/image"},
        {"disk.img", "disk.img"},
        {"./nbd:x", "./nbd:x"},
        {"a@b/c?d", "a@b/c?d"},
        {"json:{\"password\": \"secret\"}", "json:{...}"},
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(secret); i++) {
        g_autofree char *redacted = source_redacted(secret[i][0]);

        g_assert_cmpstr(redacted, ==, secret[i][1]);
    }
    refuse_plan("cannot open 'ssh://host/x': there is no driver for ssh yet",
                WORDS("ssh://u:p@host/x", "/m"));
    refuse_plan("cannot open 'nfs://host/x.conf': there is no driver for nfs yet",
                WORDS("nfs://host/x.conf", "/m"));
    check_uri("nbd://host/some%20disk?x=y", "raw", "nbd", "uri", "some disk");
    check_uri("NBD+UNIX:///?socket=/s", NULL, "nbd", "uri", "nbd");
    check_uri("https://host/a/b.qcow2#x", "qcow2", "https", "url", "b.qcow2");
    check_uri("iscsi://host:1/iqn.2026-01.org:x/2", NULL, "iscsi", "url", "2");
    check_uri("ftp://host/a%2Fb", NULL, "ftp", "url", "ftp");
    check_uri("http://host/..", NULL, "http", "url", "http");
    refuse_plan("cannot open 'nbd:unix:/x': there is no driver for nbd yet",
                WORDS("--format=raw", "nbd:unix:/x", "/m"));
}

static void test_json_source(void)
{
    g_autoptr(CommandLine) line = accept_line(
        WORDS("json:{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"/d/x.img\"}}", "/m"));
    g_autoptr(CommandLine) named =
        accept_line(WORDS("json:{\"driver\":\"null-co\",\"node-name\":\"z\",\"read-only\":true}", "/m"));
    g_autoptr(GError) error = NULL;
    g_autoptr(Plan) plan = plan_new(line, &error);
    g_autoptr(Plan) named_plan = plan_new(named, &error);
    ExportSpec *spec;

    g_assert_no_error(error);
    spec = plan->exports->pdata[0];
    g_assert_cmpstr(spec->id, ==, "x.img");
    g_assert_cmpint(spec->writable, ==, EXPORT_WRITABLE);
    spec = named_plan->exports->pdata[0];
    g_assert_cmpstr(spec->id, ==, "z");
    g_assert_cmpint(spec->writable, ==, EXPORT_READ_ONLY);
    refuse_plan("SOURCE: JSON: expected an object", WORDS("json:5", "/m"));
    refuse_plan("SOURCE: option 'node-name': expected a string, not a number",
                WORDS("json:{\"node-name\": 5}", "/m"));
}

static void test_probe(void)
{
    char tail[512] = {0};
    char vdi[0x44] = {0};

    g_assert_cmpstr(probe_format("", 0, "", 0), ==, "raw");
    g_assert_cmpstr(probe_format("QFI\xfb\0\0\0\x03", 8, "", 0), ==, "qcow2");
    g_assert_cmpstr(probe_format("QFI\xfb\0\0\0\x02", 8, "", 0), ==, "qcow2");
    g_assert_cmpstr(probe_format("QFI\xfb\0\0\0\x01", 8, "", 0), ==, "qcow");
    g_assert_cmpstr(probe_format("QFI", 3, "", 0), ==, "raw");
    g_assert_cmpstr(probe_format("KDMV", 4, "", 0), ==, "vmdk");
    g_assert_cmpstr(probe_format("# Disk DescriptorFile\n", 22, "", 0), ==, "vmdk");
    g_assert_cmpstr(probe_format("vhdxfile", 8, "", 0), ==, "vhdx");
    g_assert_cmpstr(probe_format("LUKS\xba\xbe\0\1", 8, "", 0), ==, "luks");
    g_assert_cmpstr(probe_format("QED", 4, "", 0), ==, "qed");
    memcpy(vdi + 0x40, "\x7f\x10\xda\xbe", 4);
    g_assert_cmpstr(probe_format(vdi, sizeof(vdi), "", 0), ==, "vdi");
    g_assert_cmpstr(probe_format(vdi, sizeof(vdi) - 1, "", 0), ==, "raw");
    memcpy(tail, "conectix", 8);
    g_assert_cmpstr(probe_format("", 0, tail, sizeof(tail)), ==, "vpc");
    memcpy(tail, "koly\0\0\0\4", 8);
    g_assert_cmpstr(probe_format("", 0, tail, sizeof(tail)), ==, "dmg");
    g_assert_cmpstr(probe_format("", 0, tail, sizeof(tail) - 1), ==, "raw");
}

/* ---- --help and the man page */

/* Each "-x" and "--word" of the text into the set. */
static void collect_options(GHashTable *set, const char *text)
{
    g_autoptr(GRegex) regex = g_regex_new("(?<![\\w=.-])(--[a-z][a-z-]+|-[a-zA-Z](?![\\w-]))", 0, 0, NULL);
    g_autoptr(GMatchInfo) match = NULL;

    for (g_regex_match(regex, text, 0, &match); g_match_info_matches(match); g_match_info_next(match, NULL)) {
        g_hash_table_add(set, g_match_info_fetch(match, 1));
    }
}

/* What the pattern's group finds in each line of the text, into the set. */
static void collect_words(GHashTable *set, const char *text, const char *pattern)
{
    g_autoptr(GRegex) regex = g_regex_new(pattern, G_REGEX_MULTILINE, 0, NULL);
    g_autoptr(GMatchInfo) match = NULL;

    for (g_regex_match(regex, text, 0, &match); g_match_info_matches(match); g_match_info_next(match, NULL)) {
        g_hash_table_add(set, g_match_info_fetch(match, 1));
    }
}

static char *sorted(GHashTable *set)
{
    g_autoptr(GList) keys = g_list_sort(g_hash_table_get_keys(set), (GCompareFunc)strcmp);
    GString *text = g_string_new(NULL);

    for (GList *key = keys; key; key = key->next) {
        g_string_append_printf(text, "%s ", (char *)key->data);
    }
    return g_string_free(text, FALSE);
}

/* The man page with roff's escapes undone: "\-" is "-", font changes are nothing. */
static char *man_page(void)
{
    g_autofree char *source = NULL;
    g_autofree char *dashes = NULL;
    g_autoptr(GRegex) dash = g_regex_new("\\\\-", 0, 0, NULL);
    g_autoptr(GRegex) font = g_regex_new("\\\\f[A-Z]|\\\\&", 0, 0, NULL);
    g_autoptr(GError) error = NULL;

    g_assert_true(g_file_get_contents(MAN_PAGE, &source, NULL, &error));
    dashes = g_regex_replace(dash, source, -1, 0, "-", 0, &error);
    return g_regex_replace(font, dashes, -1, 0, "", 0, &error);
}

/* Of `text` the part from `from` on, up to `to`. Newly allocated. */
static char *section(const char *text, const char *from, const char *to)
{
    const char *start = strstr(text, from), *stop;

    g_assert_nonnull(start);
    start += strlen(from);
    stop = strstr(start, to);
    g_assert_nonnull(stop);
    return g_strndup(start, stop - start);
}

static void test_help_and_man_page(void)
{
    g_autofree char *man = man_page();
    g_autofree char *man_options = section(man, ".SH OPTIONS", ".SH MOUNT OPTIONS");
    g_autoptr(GHashTable) in_help = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    g_autoptr(GHashTable) in_man = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    g_autofree char *help = NULL, *manual = NULL;

    collect_options(in_help, command_line_help());
    collect_words(in_man, man_options, "^\\.B[IR]? \"?(-[a-zA-Z-]+)");
    collect_words(in_man, man_options, "^\\.B[IR]? .*[ ,\"](--[a-z-]+)");
    help = sorted(in_help);
    manual = sorted(in_man);
    g_assert_cmpstr(help, ==, manual);
}

static void test_help_and_mount_options(void)
{
    static const char values[][2][16] = {{"queues", "1"},      {"transport", "auto"}, {"event-loop", "auto"},
                                         {"cache", "none"},    {"fsname", "x"},       {"subtype", "x"},
                                         {"max_read", "4096"}, {"context", "x"},      {"fscontext", "x"},
                                         {"defcontext", "x"},  {"rootcontext", "x"},  {"format", "raw"}};
    g_autofree char *man = man_page();
    g_autofree char *man_words = section(man, ".SH MOUNT OPTIONS", ".SH EXIT STATUS");
    g_autofree char *help_words = section(command_line_help(), "where OPTION is one of\n", "  Words that");
    g_autoptr(GHashTable) in_help = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    g_autoptr(GHashTable) in_man = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    g_autofree char *help = NULL, *manual = NULL;
    GHashTableIter iter;
    gpointer word;

    collect_words(in_help, help_words, "(?:^     |(?<=, ))([a-z][a-z_-]+)(?==|,|$|  )");
    collect_words(in_man, man_words, "^\\.T[PQ]\n\\.B ([a-z_-]+)");
    help = sorted(in_help);
    manual = sorted(in_man);
    g_assert_cmpstr(help, ==, manual);

    /* And each word is one that is accepted. */
    g_hash_table_iter_init(&iter, in_help);
    while (g_hash_table_iter_next(&iter, &word, NULL)) {
        g_autoptr(MountOptions) options = mount_options_new();
        g_autoptr(GError) error = NULL;
        g_autofree char *text = g_strdup(word);

        for (unsigned i = 0; i < G_N_ELEMENTS(values); i++) {
            if (strcmp(values[i][0], word) == 0) {
                g_free(text);
                text = g_strdup_printf("%s=%s", values[i][0], values[i][1]);
            }
        }
        g_assert_true(mount_options_add(options, text, &error));
        g_assert_no_error(error);
    }
}

int main(int argc, char **argv)
{
    int status;

    g_test_init(&argc, &argv, NULL);
    dir = graph_test_dir_new();
    g_test_add_func("/command-line/operands", test_operands);
    g_test_add_func("/command-line/flags", test_flags);
    g_test_add_func("/command-line/bad-options", test_bad_options);
    g_test_add_func("/command-line/monitors", test_monitors);
    g_test_add_func("/command-line/monitor-errors", test_monitor_errors);
    g_test_add_func("/command-line/items", test_items);
    g_test_add_func("/command-line/plan", test_plan);
    g_test_add_func("/command-line/bad-plan", test_bad_plan);
    g_test_add_func("/command-line/image", test_image);
    g_test_add_func("/command-line/bad-image", test_bad_image);
    g_test_add_func("/command-line/uri", test_uri);
    g_test_add_func("/command-line/json-source", test_json_source);
    g_test_add_func("/command-line/probe", test_probe);
    g_test_add_func("/command-line/help-and-man-page", test_help_and_man_page);
    g_test_add_func("/command-line/help-and-mount-options", test_help_and_mount_options);
    status = g_test_run();
    graph_test_dir_free(dir);
    return status;
}
