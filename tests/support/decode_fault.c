/* pseg-decode with faults: a file whose text begins "fault:NAME" does to the locked-in process what
 * a flaw in the decoder of a format could. Never installed. */
#include "worker/decode/child.h"
#include "worker/decode/wire.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static void give_up(void)
{
    raise(SIGABRT);
    __builtin_trap();
}

/* Refused softly: the call must fail, else the test sees the exit status. */
static void must_fail(long result)
{
    if (result >= 0)
        _exit(99);
}

static void eat(void)
{
    for (;;) {
        char *p = malloc((size_t)1 << 20);
        if (!p)
            give_up();
        memset(p, 1, (size_t)1 << 20);
    }
}

static void attack(const char *name)
{
    char path[] = "/bin/true", *argv[] = {path, NULL};
    volatile uintptr_t nowhere = 8;
    volatile unsigned long turns = 0;

    if (strcmp(name, "crash") == 0)
        *(volatile int *)nowhere = 1;
    else if (strcmp(name, "abort") == 0)
        give_up();
    else if (strcmp(name, "loop") == 0)
        for (;;)
            turns++;
    else if (strcmp(name, "wait") == 0)
        for (;;)
            pause();
    else if (strcmp(name, "eat") == 0)
        eat();
    else if (strcmp(name, "exit") == 0)
        _exit(7);
    else if (strcmp(name, "socket") == 0)
        must_fail(socket(AF_INET, SOCK_STREAM, 0));
    else if (strcmp(name, "exec") == 0)
        must_fail(execv(path, argv));
    else if (strcmp(name, "kill") == 0)
        must_fail(kill(getppid(), SIGKILL));
    else if (strcmp(name, "ptrace") == 0)
        must_fail(syscall(SYS_ptrace, 16, getppid(), 0, 0));
    else if (strcmp(name, "soft") == 0) {
        must_fail(open("/tmp/pseg-decode-was-here", O_WRONLY | O_CREAT, 0600));
        must_fail(open("/tmp", O_RDWR));
        must_fail(unlink("/tmp/pseg-decode-was-here"));
        must_fail(syscall(SYS_fork));
        must_fail(syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));
        must_fail(ftruncate(5, 0));
        must_fail(syscall(SYS_tgkill, getppid(), getppid(), SIGKILL));
        if (mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) !=
            MAP_FAILED)
            _exit(99);
    } else if (strcmp(name, "once") == 0) {
        static int times;
        if (times++)
            give_up();
    } else if (strcmp(name, "forge") == 0) {
        /* An answer that says nothing, before the one that is due. */
        static const decode_reply nothing;
        if (send(DECODE_FD_DATA, &nothing, sizeof nothing, 0) != (ssize_t)sizeof nothing)
            _exit(99);
    } else if (strcmp(name, "read") == 0)
        must_fail(open("/etc/hostname", O_RDONLY));
}

static void before(const uint8_t *data, size_t len)
{
    char name[16] = "";

    if (len > 6 && memcmp(data, "fault:", 6) == 0) {
        memcpy(name, data + 6, len - 6 < 15 ? len - 6 : 15);
        attack(name);
    }
}

int main(int argc, char **argv)
{
    return pseg_decode_main(argc, argv, before);
}
