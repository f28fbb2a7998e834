/*
 * The drivers of this build, by name. A new driver adds its line to BLOCK_DRIVERS.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "block/driver.h"
#include "util/error.h"
#include "util/lock.h"
#include "util/text.h"

/* Each names a `const BlockDriver block_driver_NAME` in the driver's own file. */
#define BLOCK_DRIVERS(X)                                                                                     \
    X(blklogwrites)                                                                                          \
    X(file)                                                                                                  \
    X(ftp)                                                                                                   \
    X(ftps)                                                                                                  \
    X(host_device)                                                                                           \
    X(http)                                                                                                  \
    X(https)                                                                                                 \
    X(iscsi)                                                                                                 \
    X(nbd)                                                                                                   \
    X(null_aio)                                                                                              \
    X(null_co)                                                                                               \
    X(qcow2)                                                                                                 \
    X(raw)                                                                                                   \
    X(throttle)

#define DECLARE(name) extern const BlockDriver block_driver_##name;
#define ADDRESS(name) &block_driver_##name,

BLOCK_DRIVERS(DECLARE)
static const BlockDriver *const drivers[] = {BLOCK_DRIVERS(ADDRESS)};

/* Drivers that tests define; main thread only. */
static GPtrArray *test_drivers;

static const BlockDriver *driver_at(guint i)
{
    if (i < G_N_ELEMENTS(drivers)) {
        return drivers[i];
    }
    i -= G_N_ELEMENTS(drivers);
    return test_drivers && i < test_drivers->len ? g_ptr_array_index(test_drivers, i) : NULL;
}

const BlockDriver *block_driver_find(const char *name, GError **errp)
{
    g_autoptr(GPtrArray) names = g_ptr_array_new();
    const BlockDriver *driver;
    for (guint i = 0; (driver = driver_at(i)); i++) {
        if (strcmp(driver->name, name) == 0) {
            return driver;
        }
        g_ptr_array_add(names, (gpointer)driver->name);
    }
    g_ptr_array_add(names, NULL);

    /* Who asks for help, as with qemu-img, has not misspelt "http". */
    bool help = strcmp(name, "help") == 0;
    const char *nearest = help ? NULL : text_nearest(name, (const char *const *)names->pdata);
    if (nearest) {
        bg_error_set(errp, EINVAL, "no driver is named '%s'; did you mean '%s'?", name, nearest);
    } else {
        g_autofree char *all = g_strjoinv(", ", (char **)names->pdata);
        bg_error_set(errp, EINVAL, "no driver is named '%s'; there are %s", name, all);
    }
    return NULL;
}

void block_driver_register_for_test(const BlockDriver *driver)
{
    bg_assert_main_thread();
    if (!test_drivers) {
        test_drivers = g_ptr_array_new();
    }
    g_ptr_array_add(test_drivers, (gpointer)driver);
}
