/* For ThreadSanitizer alone: tells it that what was done before an operation was begun lies before
 * what is done after its tag was taken from a completion queue. The core orders the two by mutexes
 * of its own (futexes, not pthread's), which the sanitizer does not see. Linked in front of the
 * core by --wrap in builds with PSEG_SANITIZE=thread.
 *
 * By tag, not by one object for the whole core: so a race between two operations that have nothing
 * to do with each other is still found. What a tag's memory was before ends with its free. */
#include <grpc/grpc.h>

void __tsan_acquire(void *at); /* from the sanitizer's own sanitizer/tsan_interface.h */
void __tsan_release(void *at);

/* The names that ld's --wrap gives. */
grpc_call_error __real_grpc_call_start_batch(grpc_call *call, const grpc_op *ops, size_t n,
                                             void *tag, void *reserved);
grpc_call_error __real_grpc_server_request_call(grpc_server *server, grpc_call **call,
                                                grpc_call_details *details,
                                                grpc_metadata_array *headers,
                                                grpc_completion_queue *bound,
                                                grpc_completion_queue *told, void *tag);
void __real_grpc_server_shutdown_and_notify(grpc_server *server, grpc_completion_queue *cq,
                                            void *tag);
grpc_event __real_grpc_completion_queue_next(grpc_completion_queue *cq, gpr_timespec deadline,
                                             void *reserved);
grpc_event __real_grpc_completion_queue_pluck(grpc_completion_queue *cq, void *tag,
                                              gpr_timespec deadline, void *reserved);

grpc_call_error __wrap_grpc_call_start_batch(grpc_call *call, const grpc_op *ops, size_t n,
                                             void *tag, void *reserved);
grpc_call_error __wrap_grpc_server_request_call(grpc_server *server, grpc_call **call,
                                                grpc_call_details *details,
                                                grpc_metadata_array *headers,
                                                grpc_completion_queue *bound,
                                                grpc_completion_queue *told, void *tag);
void __wrap_grpc_server_shutdown_and_notify(grpc_server *server, grpc_completion_queue *cq,
                                            void *tag);
grpc_event __wrap_grpc_completion_queue_next(grpc_completion_queue *cq, gpr_timespec deadline,
                                             void *reserved);
grpc_event __wrap_grpc_completion_queue_pluck(grpc_completion_queue *cq, void *tag,
                                              gpr_timespec deadline, void *reserved);

grpc_call_error __wrap_grpc_call_start_batch(grpc_call *call, const grpc_op *ops, size_t n,
                                             void *tag, void *reserved)
{
    __tsan_release(tag);
    return __real_grpc_call_start_batch(call, ops, n, tag, reserved);
}

grpc_call_error __wrap_grpc_server_request_call(grpc_server *server, grpc_call **call,
                                                grpc_call_details *details,
                                                grpc_metadata_array *headers,
                                                grpc_completion_queue *bound,
                                                grpc_completion_queue *told, void *tag)
{
    __tsan_release(tag);
    return __real_grpc_server_request_call(server, call, details, headers, bound, told, tag);
}

void __wrap_grpc_server_shutdown_and_notify(grpc_server *server, grpc_completion_queue *cq,
                                            void *tag)
{
    __tsan_release(tag);
    __real_grpc_server_shutdown_and_notify(server, cq, tag);
}

grpc_event __wrap_grpc_completion_queue_next(grpc_completion_queue *cq, gpr_timespec deadline,
                                             void *reserved)
{
    grpc_event e = __real_grpc_completion_queue_next(cq, deadline, reserved);

    if (e.type == GRPC_OP_COMPLETE)
        __tsan_acquire(e.tag);
    return e;
}

grpc_event __wrap_grpc_completion_queue_pluck(grpc_completion_queue *cq, void *tag,
                                              gpr_timespec deadline, void *reserved)
{
    grpc_event e = __real_grpc_completion_queue_pluck(cq, tag, deadline, reserved);

    if (e.type == GRPC_OP_COMPLETE)
        __tsan_acquire(tag);
    return e;
}
