/* An OpenCL device that breaks when it is told to, for LD_PRELOAD under pseg-worker: while the file
 * named by PSEG_TEST_BROKEN_CL exists, the next kernel to be launched does what its first word
 * says, and the file is removed: "hang" (for ever), "fail" (CL_OUT_OF_RESOURCES, which is what a
 * lost device gives), "kill" (this process). Everything else goes to the real library. */
#define CL_TARGET_OPENCL_VERSION 120
#include <CL/cl.h>

#include <dlfcn.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef cl_int (*launch)(cl_command_queue, cl_kernel, cl_uint, const size_t *, const size_t *,
                         const size_t *, cl_uint, const cl_event *, cl_event *);

static int is_ordered(const char *what)
{
    const char *path = getenv("PSEG_TEST_BROKEN_CL");
    char word[16] = "";
    FILE *f = path ? fopen(path, "r") : NULL;

    if (!f)
        return 0;
    if (fscanf(f, "%15s", word) != 1)
        word[0] = '\0';
    fclose(f);
    return strcmp(word, what) == 0 && unlink(path) == 0;
}

CL_API_ENTRY cl_int CL_API_CALL clEnqueueNDRangeKernel(cl_command_queue q, cl_kernel k,
                                                       cl_uint dims, const size_t *offset,
                                                       const size_t *global, const size_t *local,
                                                       cl_uint n_wait, const cl_event *wait,
                                                       cl_event *event)
{
    static launch real;

    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "clEnqueueNDRangeKernel");
    if (is_ordered("fail"))
        return CL_OUT_OF_RESOURCES;
    if (is_ordered("kill"))
        raise(SIGKILL);
    if (is_ordered("hang"))
        for (;;)
            poll(NULL, 0, 1000);
    return real(q, k, dims, offset, global, local, n_wait, wait, event);
}
