/* The queue on a real redis-server. */
#include "tests/support/queue_cases_impl.h"
#include "tests/support/redis.h"

int main(void)
{
    test_redis r = {0};

    if (!test_redis_start(&r))
        return TEST_SKIPPED;
    int failed = queue_cases_run("queue on redis, socket", r.socket_url);
    test_redis_stop(&r);
    return failed ? 1 : 0;
}
