/*
 * Tests of what is taken apart and put together byte by byte: requests, INIT, directory entries, the mount
 * table.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <string.h>

#include "fuse/dir-list.h"
#include "fuse/init.h"
#include "fuse/mountpoint.h"
#include "fuse/ops.h"
#include "util/error.h"

#define HEADER sizeof(struct fuse_in_header)

/* ---- Requests */

static FuseRequest *request_of(uint32_t opcode, const void *body, size_t size)
{
    FuseRequest *req = fuse_request_new(NULL);
    struct fuse_in_header *in = fuse_request_buffer(req);
    g_assert_nonnull(req);
    *in =
        (struct fuse_in_header){.len = (uint32_t)(HEADER + size), .opcode = opcode, .unique = 7, .nodeid = 1};
    memcpy(in + 1, body, size);
    return req;
}

/* Decode and free; *answerable may be NULL. */
static int decode(uint32_t opcode, const void *body, size_t size, bool *answerable)
{
    bool unused;
    FuseRequest *req = request_of(opcode, body, size);
    int ret = fuse_request_decode(req, HEADER + size, answerable ? answerable : &unused);
    fuse_request_free(req);
    return ret;
}

static void test_buffer_layout(void)
{
    FuseRequest *req = fuse_request_new(NULL);
    g_assert_cmpuint((uintptr_t)req->payload % 4096, ==, 0);
    g_assert_cmpuint((uintptr_t)fuse_request_buffer(req) + FUSE_WRITE_HEAD, ==, (uintptr_t)req->payload);
    g_assert_true((uint8_t *)fuse_request_buffer(req) >= (uint8_t *)(req + 1));
    memset(req->payload, 1, FUSE_PAYLOAD_SIZE);
    req->touched = FUSE_PAYLOAD_SIZE;
    fuse_request_trim(req);
    g_assert_cmpuint(req->touched, ==, 0);
    g_assert_cmpuint(req->payload[0], ==, 0); /* its memory was given back */
    fuse_request_free(req);
}

static void test_write(void)
{
    struct {
        struct fuse_write_in arg;
        char data[512];
    } body = {.arg = {.fh = 3, .offset = 4096, .size = 512}};
    memset(body.data, 'w', sizeof body.data);
    FuseRequest *req = request_of(FUSE_WRITE, &body, sizeof body);
    bool answerable;
    g_assert_cmpint(fuse_request_decode(req, HEADER + sizeof body, &answerable), ==, 0);
    const struct fuse_write_in *arg = req->arg;
    g_assert_cmpstr(req->op->name, ==, "WRITE");
    g_assert_cmpuint(arg->offset, ==, 4096);
    g_assert_cmpuint(req->body_len, ==, 512);
    g_assert_true((const uint8_t *)req->body == req->payload); /* the data begin on a page */
    g_assert_cmpmem(req->body, req->body_len, body.data, sizeof body.data);
    fuse_request_free(req);
}

static void test_names(void)
{
    bool answerable;
    FuseRequest *req = request_of(FUSE_LOOKUP, "disk.img", 9);
    g_assert_cmpint(fuse_request_decode(req, HEADER + 9, &answerable), ==, 0);
    g_assert_cmpstr(req->names[0], ==, "disk.img");
    fuse_request_free(req);

    char rename[sizeof(struct fuse_rename_in) + 8] = {0};
    memcpy(rename + sizeof(struct fuse_rename_in), "old\0new", 8);
    req = request_of(FUSE_RENAME, rename, sizeof rename);
    g_assert_cmpint(fuse_request_decode(req, HEADER + sizeof rename, &answerable), ==, 0);
    g_assert_cmpstr(req->names[0], ==, "old");
    g_assert_cmpstr(req->names[1], ==, "new");
    fuse_request_free(req);

    g_assert_cmpint(decode(FUSE_LOOKUP, "unterminated", 12, &answerable), ==, -EINVAL);
    g_assert_true(answerable);
    g_assert_cmpint(decode(FUSE_LOOKUP, "", 0, NULL), ==, -EINVAL);
    g_assert_cmpint(decode(FUSE_LOOKUP, "\0", 1, NULL), ==, -EINVAL);
    g_assert_cmpint(decode(FUSE_LOOKUP, "a\0b", 4, NULL), ==, -EINVAL); /* one name too many */
    g_assert_cmpint(decode(FUSE_RENAME, rename, sizeof rename - 4, NULL), ==, -EINVAL);
    g_assert_cmpint(decode(FUSE_RENAME, rename, sizeof rename - 1, NULL), ==, -EINVAL);
    g_assert_cmpint(decode(FUSE_SYMLINK, "only-one", 9, NULL), ==, -EINVAL);
}

static void test_long_name(void)
{
    char name[5000];
    bool answerable;
    memset(name, 'n', sizeof name);
    name[sizeof name - 1] = '\0';
    FuseRequest *req = request_of(FUSE_LOOKUP, name, sizeof name);
    g_assert_cmpint(fuse_request_decode(req, HEADER + sizeof name, &answerable), ==, 0);
    g_assert_cmpstr(req->names[0], ==, name); /* across the start of the payload */
    fuse_request_free(req);
}

/* Every operation with a fixed part is refused when a byte of it is missing. */
static void test_short_arguments(void)
{
    static const char zeroes[256];
    unsigned checked = 0;
    for (uint32_t opcode = 0; opcode < 64; opcode++) {
        const FuseOp *op = fuse_op_find(opcode);
        if (op && op->arg_size > 0) {
            bool answerable;
            g_assert_cmpint(decode(opcode, zeroes, op->arg_size - 1u, &answerable), ==, -EINVAL);
            g_assert_true(answerable == !op->no_reply);
            checked++;
        }
    }
    g_assert_cmpuint(checked, >, 20);
}

static void test_unknown_opcodes(void)
{
    bool answerable;
    const uint32_t unknown[] = {0, 7, 19, FUSE_GETLK, FUSE_POLL, 52, 53, 4096, UINT32_MAX};
    for (unsigned i = 0; i < G_N_ELEMENTS(unknown); i++) {
        g_assert_cmpint(decode(unknown[i], "", 0, &answerable), ==, -ENOSYS);
        g_assert_true(answerable);
    }
}

static void test_bad_lengths(void)
{
    bool answerable;
    FuseRequest *req = request_of(FUSE_STATFS, "", 0);
    g_assert_cmpint(fuse_request_decode(req, HEADER - 1, &answerable), ==, -EINVAL);
    g_assert_false(answerable);
    g_assert_cmpint(fuse_request_decode(req, HEADER + 8, &answerable), ==, -EINVAL); /* len says less */
    g_assert_false(answerable);
    g_assert_cmpint(fuse_request_decode(req, 0, &answerable), ==, -EINVAL);
    g_assert_false(answerable);
    g_assert_cmpint(fuse_request_decode(req, HEADER, &answerable), ==, 0);
    fuse_request_free(req);
}

static void test_extensions(void)
{
    /* A MKDIR with an extension of 16 bytes behind the name. */
    char body[sizeof(struct fuse_mkdir_in) + 8 + 16] = {0};
    memcpy(body + sizeof(struct fuse_mkdir_in), "dirname", 8);
    FuseRequest *req = request_of(FUSE_MKDIR, body, sizeof body);
    struct fuse_in_header *in = fuse_request_buffer(req);
    bool answerable;
    in->total_extlen = 2;
    g_assert_cmpint(fuse_request_decode(req, HEADER + sizeof body, &answerable), ==, 0);
    g_assert_cmpstr(req->names[0], ==, "dirname");
    in->total_extlen = 5; /* 40 bytes: more than there is */
    g_assert_cmpint(fuse_request_decode(req, HEADER + sizeof body, &answerable), ==, -EINVAL);
    in->total_extlen = UINT16_MAX;
    g_assert_cmpint(fuse_request_decode(req, HEADER + sizeof body, &answerable), ==, -EINVAL);
    fuse_request_free(req);
}

static bool is_inside(const FuseRequest *req, const char *p, size_t n, size_t size)
{
    const char *base = (const char *)req->payload - FUSE_WRITE_HEAD;
    return p >= base && p + n <= base + size;
}

/* Random bytes: whatever is accepted lies within what was received. */
static void test_random_bytes(void)
{
    FuseRequest *req = fuse_request_new(NULL);
    uint8_t *buf = fuse_request_buffer(req);
    unsigned accepted = 0;
    for (unsigned round = 0; round < 200000; round++) {
        struct fuse_in_header *in = (void *)buf;
        size_t size = HEADER + (size_t)g_test_rand_int_range(0, 160);
        for (size_t i = 0; i < size; i += 4) {
            *(uint32_t *)(void *)(buf + i) = (uint32_t)g_test_rand_int();
        }
        for (unsigned zeroes = 0; zeroes < 4; zeroes++) {
            buf[g_test_rand_int_range(HEADER, (gint32)size + 1)] = 0;
        }
        in->len = (uint32_t)size;
        in->opcode = (uint32_t)g_test_rand_int_range(0, 60);
        in->total_extlen = g_test_rand_bit() ? 0 : (uint16_t)g_test_rand_int_range(0, 20);
        bool answerable;
        req->names[0] = req->names[1] = NULL;
        if (fuse_request_decode(req, size, &answerable) < 0) {
            continue;
        }
        accepted++;
        g_assert_true(is_inside(req, req->arg, req->op->arg_size, size));
        g_assert_true(is_inside(req, req->body, req->body_len, size));
        for (unsigned i = 0; i < 2 && req->names[i]; i++) {
            g_assert_true(is_inside(req, req->names[i], 1, size));
            g_assert_true(is_inside(req, req->names[i], strlen(req->names[i]) + 1, size));
        }
    }
    g_assert_cmpuint(accepted, >, 1000);
    fuse_request_free(req);
}

/* ---- INIT */

typedef struct InitRequest {
    struct fuse_in_header header;
    struct fuse_init_in init;
} InitRequest;

static InitRequest init_request(uint32_t major, uint32_t minor)
{
    return (InitRequest){
        .header = {.len = sizeof(InitRequest), .opcode = FUSE_INIT, .unique = 2},
        .init = {.major = major, .minor = minor, .max_readahead = 131072, .flags = ~0u, .flags2 = ~0u},
    };
}

static void test_init(void)
{
    FuseInitReply reply;
    InitRequest req = init_request(7, 45);
    g_assert_cmpint(fuse_init_negotiate(&req, sizeof req, &reply, NULL), ==, 0);
    g_assert_cmpuint(reply.header.len, ==, sizeof reply);
    g_assert_cmpuint(reply.header.unique, ==, 2);
    g_assert_cmpuint(reply.init.major, ==, 7);
    g_assert_cmpuint(reply.init.minor, ==, FUSE_PROTO_MINOR);
    g_assert_cmpuint(reply.init.max_write, ==, 1024 * 1024);
    g_assert_cmpuint(reply.init.max_background, ==, 1024);
    uint32_t flags = reply.init.flags;
    g_assert_true((flags & FUSE_ASYNC_DIO) && (flags & FUSE_MAX_PAGES) && (flags & FUSE_INIT_EXT));
    g_assert_false(flags &
                   (FUSE_POSIX_LOCKS | FUSE_FLOCK_LOCKS | FUSE_WRITEBACK_CACHE | FUSE_ATOMIC_O_TRUNC));
    g_assert_cmpuint(reply.init.flags2, ==, FUSE_DIRECT_IO_ALLOW_MMAP >> 32);
}

static void test_init_older_kernel(void)
{
    FuseInitReply reply;
    InitRequest req = init_request(7, 31);
    req.init.flags = FUSE_BIG_WRITES | FUSE_MAX_PAGES | FUSE_ASYNC_READ;
    req.header.len = sizeof req.header + 16; /* fuse_init_in ended here */
    g_assert_cmpint(fuse_init_negotiate(&req, req.header.len, &reply, NULL), ==, 0);
    g_assert_cmpuint(reply.init.minor, ==, 31);
    g_assert_cmpuint(reply.init.flags, ==, req.init.flags);
    g_assert_cmpuint(reply.init.flags2, ==, 0); /* it offered none that it sent */
}

static void check_init_refused(InitRequest *req, size_t size, bool told, const char *word)
{
    FuseInitReply reply;
    GError *err = NULL;
    g_assert_cmpint(fuse_init_negotiate(req, size, &reply, &err), ==, -EPROTO);
    g_assert_nonnull(strstr(err->message, word));
    g_error_free(err);
    g_assert_cmpuint(reply.header.len, ==, told ? sizeof reply.header : 0);
    g_assert_cmpint(reply.header.error, ==, told ? -EPROTO : 0);
}

static void test_init_refused(void)
{
    InitRequest old_major = init_request(6, 9), old_minor = init_request(7, 30), small = init_request(7, 31);
    InitRequest other = init_request(7, 31), shorter = init_request(7, 31);
    small.init.flags &= ~(uint32_t)FUSE_MAX_PAGES;
    other.header.opcode = FUSE_LOOKUP;
    shorter.header.len = HEADER + 8;
    check_init_refused(&old_major, sizeof old_major, true, "6.9");
    check_init_refused(&old_minor, sizeof old_minor, true, "7.30");
    check_init_refused(&small, sizeof small, true, "large requests");
    check_init_refused(&other, sizeof other, false, "malformed");
    check_init_refused(&shorter, HEADER + 8, false, "malformed");
    check_init_refused(&old_major, sizeof old_major - 1, false, "malformed");
}

static void test_init_newer_major(void)
{
    FuseInitReply reply;
    InitRequest req = init_request(8, 0);
    g_assert_cmpint(fuse_init_negotiate(&req, sizeof req, &reply, NULL), ==, 1);
    g_assert_cmpuint(reply.init.major, ==, 7);
    g_assert_cmpint(reply.header.error, ==, 0);
}

/* ---- Directory entries */

static void test_dir_entries(void)
{
    g_autoptr(FuseDirList) list = fuse_dir_list_new(1, 1);
    g_autofree uint8_t *buf = g_malloc0(4096);
    size_t used = 0;
    fuse_dir_list_add(list, "disk", 12, 0100000);
    fuse_dir_list_add(list, "eightchr", 13, 0100000);
    for (uint64_t i = 0; fuse_dir_list_get(list, i); i++) {
        g_assert_true(fuse_dir_entry_pack(list, i, NULL, buf, 4096, &used));
        g_assert_cmpuint(used % 8, ==, 0);
    }
    const struct fuse_dirent *third = (void *)(buf + 2 * 32);
    g_assert_cmpuint(third->ino, ==, 12);
    g_assert_cmpuint(third->off, ==, 3);
    g_assert_cmpuint(third->namelen, ==, 4);
    g_assert_cmpuint(third->type, ==, 8); /* DT_REG */
    g_assert_cmpmem(third->name, 4, "disk", 4);
    g_assert_null(fuse_dir_list_get(list, 4));
    g_assert_null(fuse_dir_list_get(list, UINT64_MAX));
}

/* An entry is written whole or not at all, and nothing behind the room is touched. */
static void test_dir_entry_room(void)
{
    g_autoptr(FuseDirList) list = fuse_dir_list_new(1, 1);
    struct fuse_entry_out attr = {.nodeid = 5};
    fuse_dir_list_add(list, "nine-char", 5, 0100000);
    size_t need = FUSE_DIRENT_ALIGN(sizeof attr + FUSE_NAME_OFFSET + 9);
    for (size_t room = 0; room <= need; room++) {
        g_autofree uint8_t *buf = g_malloc(room + 1);
        size_t used = 0;
        memset(buf, 0xee, room + 1);
        bool fits = fuse_dir_entry_pack(list, 2, &attr, buf, room, &used);
        g_assert_true(fits == (room == need));
        g_assert_cmpuint(used, ==, fits ? need : 0);
        g_assert_cmpuint(buf[room], ==, 0xee);
    }
}

/* ---- The mount table */

static void test_unescape(void)
{
    const char *const cases[][2] = {
        {"/plain", "/plain"},
        {"/with\\040space", "/with space"},
        {"/tab\\011and\\134", "/tab\tand\\"},
        {"/short\\04", "/short\\04"},
        {"", ""},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *got = mountpoint_unescape(cases[i][0]);
        g_assert_cmpstr(got, ==, cases[i][1]);
    }
}

static void test_table_lookup(void)
{
    g_autofree char *proc = mountpoint_top_device("/proc");
    g_assert_nonnull(proc);
    g_assert_true(mountpoint_has_device("/proc", proc));
    g_assert_false(mountpoint_has_device("/proc", "9999:9999"));
    g_assert_null(mountpoint_top_device("/nothing/is/mounted/here"));
}

static void test_mountpoint_check(void)
{
    g_autoptr(GError) err = NULL;
    g_assert_cmpint(mountpoint_check("/", false, NULL), ==, 0);
    g_assert_cmpint(mountpoint_check("/", true, NULL), ==, -EINVAL);
    g_assert_cmpint(mountpoint_check("/dev/null", false, NULL), ==, -ENOTDIR);
    g_assert_cmpint(mountpoint_check("/dev/null", true, NULL), ==, -EINVAL);
    g_assert_cmpint(mountpoint_check("/nothing/here", false, &err), ==, -ENOENT);
    g_assert_nonnull(strstr(err->message, "/nothing/here"));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/decode/buffer-layout", test_buffer_layout);
    g_test_add_func("/decode/write", test_write);
    g_test_add_func("/decode/names", test_names);
    g_test_add_func("/decode/long-name", test_long_name);
    g_test_add_func("/decode/short-arguments", test_short_arguments);
    g_test_add_func("/decode/unknown-opcodes", test_unknown_opcodes);
    g_test_add_func("/decode/bad-lengths", test_bad_lengths);
    g_test_add_func("/decode/extensions", test_extensions);
    g_test_add_func("/decode/random-bytes", test_random_bytes);
    g_test_add_func("/init/negotiate", test_init);
    g_test_add_func("/init/older-kernel", test_init_older_kernel);
    g_test_add_func("/init/refused", test_init_refused);
    g_test_add_func("/init/newer-major", test_init_newer_major);
    g_test_add_func("/dir/entries", test_dir_entries);
    g_test_add_func("/dir/entry-room", test_dir_entry_room);
    g_test_add_func("/mountpoint/unescape", test_unescape);
    g_test_add_func("/mountpoint/table", test_table_lookup);
    g_test_add_func("/mountpoint/check", test_mountpoint_check);
    return g_test_run();
}
