---- what waits for a model's workers ----

-- model limit  ->  {live jobs, live workers, mean compute-time of a job, microseconds or 0, now, {jobs due, deadline}...}.
-- How many of the model's jobs are due by which deadline: counted among the `limit` jobs of the queue that are due
-- first; of those behind them every so often one is looked at, and the model's share of all live jobs taken for its
-- share of those due by then, since a look at each would take Redis' time for what is due much later.
local function backlog(keys, a)
    local p, model, now = keys[1], a[1], now_us()
    local out = { redis.call('LLEN', p .. 'ready:' .. model), live_workers(p, model, now),
        tonumber(redis.call('HGET', p .. 'cost', model) or '0'), now }
    local limit, n = tonumber(a[2]), 0
    if out[1] == 0 or limit <= 0 then return out end
    local function add(count, score)
        n = count
        out[#out + 1], out[#out + 2] = count, tonumber(score) * 1000
    end
    local due = redis.call('ZRANGE', p .. 'live', 0, limit - 1, 'WITHSCORES')
    for i = 1, #due, 2 do
        local is_pack = packs.is_token(due[i])
        local j = is_pack and packs.read(p, packs.prefix_of(due[i])) or not is_pack and job_of(p, due[i])
        if j and j.model == model then add(n + (is_pack and packs.left(j) or 1), due[i + 1]) end
    end
    local all, rank = redis.call('ZCARD', p .. 'live'), limit
    while rank < all do
        local count = math.floor((rank + 1) * out[1] / all)
        if count > n then add(count, redis.call('ZRANGE', p .. 'live', rank, rank, 'WITHSCORES')[2]) end
        rank = rank == all - 1 and all or math.min(all - 1, math.max(rank + 1, math.floor(rank * 1.25)))
    end
    return out
end
