/* A disk that is slow as long as there is the file that SLOW_DISK names: to be loaded before the C library. */
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static void wait_for_disk(void) {
    const char *slow = getenv("SLOW_DISK");
    if (slow != NULL && access(slow, F_OK) == 0) sleep(1);
}

int fsync(int file) {
    wait_for_disk();
    return (int)syscall(SYS_fsync, file);
}

int fdatasync(int file) {
    wait_for_disk();
    return (int)syscall(SYS_fdatasync, file);
}
