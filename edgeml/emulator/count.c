/* A QEMU plugin that counts the guest's instructions.
 *
 * A guest that closes the file 0x7fedce11, which nobody has, is told the count so far on
 * standard error: "edgeml-count N". QEMU's header is in no package; what is used of
 * version 1 of its interface is declared here. Counts are of one thread.
 *
 * Preloaded into QEMU, it is the guest's clock, too: each look at it takes a microsecond.
 * A runtime that does something every few seconds does it in none or in all of the runs.
 */
#include <stdint.h>
#include <stdio.h>
#include <time.h>

#define EXPORT __attribute__((visibility("default")))
#define MARK 0x7fedce11u
#define START_S 1700000000

struct tb;
enum { ADD_U64 = 0 };

extern void qemu_plugin_register_vcpu_tb_trans_cb(
    uint64_t id, void (*made)(uint64_t, struct tb *));
extern size_t qemu_plugin_tb_n_insns(const struct tb *block);
extern void qemu_plugin_register_vcpu_tb_exec_inline(
    struct tb *block, int operation, void *counter, uint64_t addend);
extern void qemu_plugin_register_vcpu_syscall_cb(
    uint64_t id,
    void (*called)(uint64_t, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                   uint64_t, uint64_t, uint64_t, uint64_t));

EXPORT int qemu_plugin_version = 1;
static uint64_t count;

static void made(uint64_t id, struct tb *block) {
  qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &count,
                                           qemu_plugin_tb_n_insns(block));
}

static void called(uint64_t id, unsigned cpu, int64_t number, uint64_t a1, uint64_t a2,
                   uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7,
                   uint64_t a8) {
  if ((uint32_t)a1 == MARK) {
    fprintf(stderr, "edgeml-count %llu\n", (unsigned long long)count);
    fflush(stderr);
  }
}

EXPORT int clock_gettime(clockid_t clock, struct timespec *now) {
  static uint64_t looks;
  looks++;
  now->tv_sec = START_S + looks / 1000000;
  now->tv_nsec = looks % 1000000 * 1000;
  return 0;
}

EXPORT int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv) {
  qemu_plugin_register_vcpu_tb_trans_cb(id, made);
  qemu_plugin_register_vcpu_syscall_cb(id, called);
  return 0;
}
