/* How much processor time Linux' control groups leave to this process: what a container with "2
 * CPUs" on a machine of 64 has. It reads files and knows nothing of OpenCL. */
#ifndef PSEG_CL_QUOTA_H
#define PSEG_CL_QUOTA_H

/* Seconds of processor time in a second: the least that the process' group and those above it
 * allow, by cpu.max (v2) and cpu.cfs_quota_us (v1); INFINITY where nothing limits. Files that are
 * missing or do not parse limit nothing. root: "" for this machine; tests put a folder there, which
 * then stands before every path. Any thread. */
double pseg_cpu_quota(const char *root);

#endif
