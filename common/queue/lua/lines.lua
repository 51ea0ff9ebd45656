---- lines ----
-- A line is a sorted set of the jobs of one model and tenant that may be begun. Which tenant's turn it is
-- tells start-time fair queueing (Goyal, Vin and Cheng 1996): each has a virtual time, by which its jobs'
-- compute-time over its weight is counted, and the lowest goes first. One that comes anew begins at the
-- clock, the time of the tenant that was last served, or at its own if it has run ahead: staying away
-- saves nothing up, and forgives nothing while others wait.

local function activate(p, model, tenant)
    if redis.call('ZSCORE', p .. 'fair:' .. model, tenant) then return end
    local clock = tonumber(redis.call('HGET', p .. 'clock', model) or '0')
    local own = tonumber(redis.call('ZSCORE', p .. 'idle:' .. model, tenant) or '0')
    if own > 0 then redis.call('ZREM', p .. 'idle:' .. model, tenant) end
    redis.call('ZADD', p .. 'fair:' .. model, text(math.max(clock, own)), tenant)
end

-- A tenant's line is empty. When nobody waits any more, all begin anew.
local function deactivate(p, model, tenant, time)
    redis.call('ZREM', p .. 'fair:' .. model, tenant)
    if redis.call('EXISTS', p .. 'fair:' .. model) == 0 then
        redis.call('DEL', p .. 'idle:' .. model)
        redis.call('HDEL', p .. 'clock', model)
    elseif time then
        redis.call('ZADD', p .. 'idle:' .. model, text(time), tenant)
    end
end

local function enter_line(b, model, tenant, place, id)
    redis.call('ZADD', b.p .. 'line:' .. model .. ':' .. tenant, place, id)
    activate(b.p, model, tenant)
    b.wake[model] = true
end

local function leave_line(p, model, tenant, id)
    local line = p .. 'line:' .. model .. ':' .. tenant
    if redis.call('ZREM', line, id) == 1 and redis.call('EXISTS', line) == 0 then
        deactivate(p, model, tenant, tonumber(redis.call('ZSCORE', p .. 'fair:' .. model, tenant) or '0'))
    end
end

-- What a job took more than it was charged when it was begun.
local function charge(p, model, tenant, by)
    if redis.call('ZSCORE', p .. 'fair:' .. model, tenant) then
        redis.call('ZINCRBY', p .. 'fair:' .. model, text(by), tenant)
    elseif redis.call('ZSCORE', p .. 'idle:' .. model, tenant) then
        redis.call('ZINCRBY', p .. 'idle:' .. model, text(by), tenant)
    end
end
