/*
 * Reading objects.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "control/objects.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "aio/iothread.h"
#include "block/options.h"
#include "control/local-file.h"
#include "util/error.h"
#include "util/log.h"
#include "util/text.h"

/* Longer than any password or key. */
#define SECRET_MAX_SIZE 65536

/* ---- Specs */

IothreadSpec *iothread_spec_new(const char *id)
{
    IothreadSpec *spec = g_new0(IothreadSpec, 1);

    spec->id = g_strdup(id);
    spec->poll_max_ns = IOTHREAD_POLL_DEFAULT_NS;
    return spec;
}

static void iothread_spec_free(gpointer data)
{
    IothreadSpec *spec = data;

    g_free(spec->id);
    g_free(spec);
}

static void secret_spec_free(gpointer data)
{
    SecretSpec *spec = data;

    g_free(spec->id);
    g_free(spec->path);
    g_free(spec);
}

static void tls_creds_spec_free(gpointer data)
{
    TlsCredsSpec *spec = data;

    g_free(spec->id);
    block_tls_creds_free(spec->creds);
    g_free(spec);
}

static void throttle_group_spec_free(gpointer data)
{
    ThrottleGroupSpec *spec = data;

    g_free(spec->id);
    g_free(spec);
}

static Objects *objects_new(void)
{
    Objects *objects = g_new0(Objects, 1);

    objects->iothreads = g_ptr_array_new_with_free_func(iothread_spec_free);
    objects->secrets = g_ptr_array_new_with_free_func(secret_spec_free);
    objects->tls_creds = g_ptr_array_new_with_free_func(tls_creds_spec_free);
    objects->throttle_groups = g_ptr_array_new_with_free_func(throttle_group_spec_free);
    return objects;
}

void objects_free(Objects *objects)
{
    if (objects) {
        g_ptr_array_unref(objects->iothreads);
        g_ptr_array_unref(objects->secrets);
        g_ptr_array_unref(objects->tls_creds);
        g_ptr_array_unref(objects->throttle_groups);
        g_free(objects);
    }
}

/* ---- Options of each type */

static bool read_iothread(Objects *objects, const ConfigItem *item, BlockOptions *opts, GError **errp)
{
    static const BlockForeignOption foreign[] = {
        {"poll-grow", "0"},
        {"poll-shrink", "0"},
        {"aio-max-batch", "0"},
        {NULL, NULL},
    };
    IothreadSpec *spec = iothread_spec_new(item->name);

    g_ptr_array_add(objects->iothreads, spec);
    return block_options_refuse_foreign(opts, foreign, errp) &&
           block_options_get_uint64(opts, "poll-max-ns", 0, IOTHREAD_POLL_MAX_NS, &spec->poll_max_ns, errp);
}

/* systemd.exec(5), LoadCredential=. */
static char *credential_path(BlockOptions *opts, const char *name, GError **errp)
{
    const char *directory = g_getenv("CREDENTIALS_DIRECTORY");

    if (strchr(name, '/') || !strcmp(name, ".") || !strcmp(name, "..")) {
        block_options_error(opts, "credential", errp, EINVAL, "'%s' is not a name of a credential", name);
        return NULL;
    }
    if (!directory) {
        block_options_error(
            opts, "credential", errp, ENOENT,
            "$CREDENTIALS_DIRECTORY is not set: the daemon does not run in a systemd unit with "
            "LoadCredential=%s",
            name);
        return NULL;
    }
    return g_build_filename(directory, name, NULL);
}

static bool read_secret(Objects *objects, const ConfigItem *item, BlockOptions *opts, GError **errp)
{
    static const BlockForeignOption foreign[] = {{"keyid", NULL}, {"iv", NULL}, {NULL, NULL}};
    static const char *const formats[] = {"raw", "base64", NULL};
    g_autofree char *file = NULL;
    g_autofree char *credential = NULL;
    SecretSpec *spec = g_new0(SecretSpec, 1);
    int format = 0;

    spec->id = g_strdup(item->name);
    g_ptr_array_add(objects->secrets, spec);
    if (block_options_has(opts, "data")) {
        return block_options_error(
            opts, "data", errp, EINVAL,
            "a secret in clear would be seen by others: put it into a file and say file=");
    }
    if (!block_options_get_string(opts, "file", &file, errp) ||
        !block_options_get_string(opts, "credential", &credential, errp) ||
        !block_options_get_enum(opts, "format", formats, &format, errp) ||
        !block_options_refuse_foreign(opts, foreign, errp)) {
        return false;
    }
    if (!file == !credential) {
        return block_options_error(opts, "file", errp, EINVAL, "either this or 'credential' is required");
    }
    spec->base64 = format == 1;
    spec->path = credential ? credential_path(opts, credential, errp) : g_steal_pointer(&file);
    return spec->path != NULL;
}

static bool read_endpoint(BlockOptions *opts, GError **errp)
{
    static const char *const endpoints[] = {"client", "server", NULL};
    int endpoint = 0;

    if (!block_options_get_enum(opts, "endpoint", endpoints, &endpoint, errp)) {
        return false;
    }
    return endpoint == 0 || block_options_error(opts, "endpoint", errp, ENOTSUP,
                                                "nothing here is a server: 'client' is supported");
}

static bool read_tls_creds(Objects *objects, const ConfigItem *item, BlockOptions *opts, bool psk,
                           GError **errp)
{
    static const BlockForeignOption foreign[] = {
        {"priority", NULL}, {"passwordid", NULL}, {"sanity-check", "on"}, {NULL, NULL}};
    TlsCredsSpec *spec = g_new0(TlsCredsSpec, 1);
    BlockTlsCreds *creds = block_tls_creds_new();

    spec->id = g_strdup(item->name);
    spec->creds = creds;
    creds->psk = psk;
    g_ptr_array_add(objects->tls_creds, spec);
    return (psk ? block_options_require_string(opts, "dir", &creds->dir, errp) &&
                      block_options_get_string(opts, "username", &creds->username, errp)
                : block_options_get_string(opts, "dir", &creds->dir, errp) &&
                      block_options_get_bool(opts, "verify-peer", &creds->verify_peer, errp)) &&
           read_endpoint(opts, errp) && block_options_refuse_foreign(opts, foreign, errp);
}

static bool read_rate(BlockOptions *opts, const char *name, ThrottleRate *rate, GError **errp)
{
    g_autofree char *avg = g_strconcat("limits.", name, NULL);
    g_autofree char *max = g_strconcat(avg, "-max", NULL);
    g_autofree char *length = g_strconcat(max, "-length", NULL);

    return block_options_get_uint64(opts, avg, 0, THROTTLE_RATE_MAX, &rate->avg, errp) &&
           block_options_get_uint64(opts, max, 0, THROTTLE_RATE_MAX, &rate->max, errp) &&
           block_options_get_uint64(opts, length, 1, THROTTLE_RATE_MAX, &rate->burst_s, errp);
}

static bool read_throttle_group(Objects *objects, const ConfigItem *item, BlockOptions *opts, GError **errp)
{
    ThrottleGroupSpec *spec = g_new0(ThrottleGroupSpec, 1);
    ThrottleFault fault;

    spec->id = g_strdup(item->name);
    throttle_limits_init(&spec->limits);
    g_ptr_array_add(objects->throttle_groups, spec);
    for (int i = 0; i < THROTTLE_RATES; i++) {
        if (!read_rate(opts, throttle_rate_names[i], &spec->limits.rate[i], errp)) {
            return false;
        }
    }
    if (!block_options_get_uint64(opts, "limits.iops-size", 0, THROTTLE_RATE_MAX, &spec->limits.iops_size,
                                  errp)) {
        return false;
    }
    if (!throttle_limits_check(&spec->limits, &fault)) {
        g_autofree char *option = g_strconcat("limits.", fault.option, NULL);

        return block_options_error(opts, option, errp, EINVAL, "%s", fault.cause);
    }
    return true;
}

static bool unknown_type(BlockOptions *opts, const char *type, GError **errp)
{
    static const char *const known[] = {"iothread",       "secret",         "tls-creds-psk",
                                        "tls-creds-x509", "throttle-group", NULL};
    const char *nearest = text_nearest(type, known);

    if (nearest) {
        return block_options_error(opts, "qom-type", errp, EINVAL, "unknown type '%s', did you mean '%s'?",
                                   type, nearest);
    }
    return block_options_error(
        opts, "qom-type", errp, EINVAL,
        "unknown type '%s', expected iothread, secret, throttle-group, tls-creds-psk or tls-creds-x509",
        type);
}

static bool read_object(Objects *objects, const ConfigItem *item, GError **errp)
{
    g_autoptr(BlockOptions) opts = block_options_new(item->what, "", item->options);
    g_autofree char *type = NULL;
    g_autofree char *id = NULL;
    bool ok;

    if (!block_options_require_string(opts, "qom-type", &type, errp) ||
        !block_options_require_string(opts, "id", &id, errp)) {
        return false;
    }
    if (strcmp(type, "iothread") == 0) {
        ok = read_iothread(objects, item, opts, errp);
    } else if (strcmp(type, "secret") == 0) {
        ok = read_secret(objects, item, opts, errp);
    } else if (g_str_has_prefix(type, "tls-creds-") &&
               (g_str_has_suffix(type, "-psk") || g_str_has_suffix(type, "-x509"))) {
        ok = read_tls_creds(objects, item, opts, g_str_has_suffix(type, "-psk"), errp);
    } else if (strcmp(type, "throttle-group") == 0) {
        ok = read_throttle_group(objects, item, opts, errp);
    } else {
        return unknown_type(opts, type, errp);
    }
    return ok && block_options_finish(opts, errp);
}

Objects *objects_read(const Config *config, GError **errp)
{
    g_autoptr(Objects) objects = objects_new();
    const GPtrArray *items = config_objects(config);

    for (guint i = 0; i < items->len; i++) {
        if (!read_object(objects, items->pdata[i], errp)) {
            config_item_locate_error(items->pdata[i], errp);
            return NULL;
        }
    }
    return g_steal_pointer(&objects);
}

void object_options_anchor(JsonObject *options, const char *base)
{
    static const char *const keys[] = {"file", "dir"};

    for (unsigned i = 0; i < G_N_ELEMENTS(keys); i++) {
        JsonNode *value = json_object_get_member(options, keys[i]);
        const char *name = value && JSON_NODE_HOLDS_VALUE(value) ? json_node_get_string(value) : NULL;

        if (name && *name && !g_path_is_absolute(name)) {
            g_autofree char *absolute = g_build_filename(base, name, NULL);

            json_object_set_string_member(options, keys[i], absolute);
        }
    }
}

/* ---- Secrets' files */

static ssize_t read_all(int fd, char *buf, size_t size)
{
    size_t done = 0;

    while (done < size) {
        ssize_t n = read(fd, buf + done, size - done);

        if (n < 0 && errno != EINTR) {
            return -errno;
        }
        if (n == 0) {
            break;
        }
        done += n > 0 ? (size_t)n : 0;
    }
    return (ssize_t)done;
}

/* Whoever writes a password with an editor or echo(1) does not mean the newline at its end. */
static size_t without_newline(const char *text, size_t size)
{
    if (size > 0 && text[size - 1] == '\n') {
        size -= size > 1 && text[size - 2] == '\r' ? 2 : 1;
    }
    return size;
}

static bool decode(const SecretSpec *spec, char *text, size_t *size, GError **errp)
{
    gsize n = 0;

    text[*size] = '\0';
    if (!spec->base64 || *size == 0) {
        return true;
    }
    g_base64_decode_inplace(text, &n);
    *size = n;
    if (n == 0) {
        bg_error_set(errp, EINVAL, "secret '%s': '%s' is not base64", spec->id, spec->path);
    }
    return n > 0;
}

static bool add_text(const SecretSpec *spec, BlockGraph *graph, char *text, int fd, GError **errp)
{
    ssize_t n = read_all(fd, text, SECRET_MAX_SIZE + 1);
    size_t size = (size_t)n;
    struct stat st;

    if (n < 0) {
        bg_error_set_errno(errp, (int)-n, "secret '%s': cannot read '%s'", spec->id, spec->path);
        return false;
    }
    if (n > SECRET_MAX_SIZE) {
        bg_error_set(errp, EFBIG, "secret '%s': '%s' is longer than %d bytes", spec->id, spec->path,
                     SECRET_MAX_SIZE);
        return false;
    }
    if (fstat(fd, &st) == 0 && (st.st_mode & S_IROTH)) {
        bg_log(BG_LOG_WARNING, "secret '%s': everybody may read '%s'", spec->id, spec->path);
    }
    size = without_newline(text, size);
    return decode(spec, text, &size, errp) && block_graph_add_secret(graph, spec->id, text, size, errp);
}

static bool add_secret(const SecretSpec *spec, BlockGraph *graph, GError **errp)
{
    g_autofree char *text = NULL;
    int fd = local_file_open(spec->path, LOCAL_FILE_REGULAR, errp);

    if (fd < 0) {
        g_prefix_error(errp, "secret '%s': ", spec->id);
        return false;
    }
    text = g_malloc0(SECRET_MAX_SIZE + 2);
    bool ok = add_text(spec, graph, text, fd, errp);

    explicit_bzero(text, SECRET_MAX_SIZE + 2);
    close(fd);
    return ok;
}

bool objects_add_to_graph(const Objects *objects, BlockGraph *graph, GError **errp)
{
    for (guint i = 0; i < objects->secrets->len; i++) {
        if (!add_secret(objects->secrets->pdata[i], graph, errp)) {
            return false;
        }
    }
    for (guint i = 0; i < objects->throttle_groups->len; i++) {
        const ThrottleGroupSpec *spec = objects->throttle_groups->pdata[i];

        if (!block_graph_add_throttle_group(graph, spec->id, &spec->limits, errp)) {
            return false;
        }
    }
    for (guint i = 0; i < objects->tls_creds->len; i++) {
        const TlsCredsSpec *spec = objects->tls_creds->pdata[i];
        BlockTlsCreds *creds = block_tls_creds_new();

        creds->psk = spec->creds->psk;
        creds->verify_peer = spec->creds->verify_peer;
        creds->dir = g_strdup(spec->creds->dir);
        creds->username = g_strdup(spec->creds->username);
        if (!block_graph_add_tls_creds(graph, spec->id, creds, errp)) {
            return false;
        }
    }
    return true;
}
