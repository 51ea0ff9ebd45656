---- what waits for a model's workers ----

-- model limit  ->  {live jobs, live workers, mean compute-time of a job, microseconds or 0, now, deadline...}. The
-- deadlines are of those of the model's jobs that are among the `limit` of the queue that are due first, in order: what
-- is due after a thousand others does not decide how many workers are needed now.
local function backlog(keys, a)
    local p, model, now = keys[1], a[1], now_us()
    local out = { redis.call('LLEN', p .. 'ready:' .. model), live_workers(p, model, now),
        tonumber(redis.call('HGET', p .. 'cost', model) or '0'), now }
    if out[1] == 0 or tonumber(a[2]) <= 0 then return out end
    local due = redis.call('ZRANGE', p .. 'live', 0, tonumber(a[2]) - 1, 'WITHSCORES')
    for i = 1, #due, 2 do
        if redis.call('HGET', p .. 'job:' .. due[i], 'model') == model then out[#out + 1] = tonumber(due[i + 1]) * 1000 end
    end
    return out
end
