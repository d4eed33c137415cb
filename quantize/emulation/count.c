/* A plugin for qemu-aarch64: how many instructions has the program run so far? Each call of getppid(2), which nobody
 * makes otherwise and which does nothing, writes the answer as a line to the file that out=FILE names.
 *
 * QEMU's plugin interface, version 1, as far as it is used here; its header is in no package. A QEMU that has given the
 * version up refuses to load this and says so. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { GETPPID = 173 /* on aarch64 */, NO_REGISTERS = 0, VERSION = 1 };

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
typedef void translated_cb(plugin_id, struct qemu_plugin_tb *);
typedef void executed_cb(unsigned cpu, void *data);
typedef void syscall_cb(plugin_id, unsigned cpu, int64_t number, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                        uint64_t, uint64_t);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, translated_cb *);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, executed_cb *, int registers, void *data);
void qemu_plugin_register_vcpu_syscall_cb(plugin_id, syscall_cb *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);

int qemu_plugin_version = VERSION;

static uint64_t count; /* of all threads */
static FILE *out;

static void executed(unsigned cpu, void *instructions)
{
    (void)cpu;
    __atomic_fetch_add(&count, (uintptr_t)instructions, __ATOMIC_RELAXED);
}

static void translated(plugin_id id, struct qemu_plugin_tb *block)
{
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_cb(block, executed, NO_REGISTERS, (void *)qemu_plugin_tb_n_insns(block));
}

static void called(plugin_id id, unsigned cpu, int64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e,
                   uint64_t f, uint64_t g, uint64_t h)
{
    (void)id, (void)cpu, (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
    if (number == GETPPID) {
        fprintf(out, "%" PRIu64 "\n", __atomic_load_n(&count, __ATOMIC_RELAXED));
        fflush(out);
    }
}

int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
    (void)info;
    if (argc != 1 || strncmp(argv[0], "out=", 4) != 0 || !(out = fopen(argv[0] + 4, "w")))
        return 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
