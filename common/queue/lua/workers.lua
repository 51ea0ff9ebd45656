---- workers ----

-- After so long a silence a worker counts as gone.
local function worker_kept_ms(lease_ms) return math.max(3 * lease_ms, 30000) end

-- worker lease_ms model digest device version log  ->  OK. Also made at every heartbeat. log: its last lines,
-- evidence if it is killed.
local function register(keys, a)
    local p, now = keys[1], now_us()
    local expire = now / 1000 + worker_kept_ms(tonumber(a[2]))
    redis.call('HSET', p .. 'worker:' .. a[1], 'model', a[3], 'digest', a[4], 'device', a[5], 'version', a[6],
        'seen', text(now), 'log', a[7] or '')
    redis.call('PEXPIREAT', p .. 'worker:' .. a[1], text(expire + WORKER_KEPT_MS))
    redis.call('ZADD', p .. 'workers', text(expire), a[1])
    redis.call('ZADD', p .. 'models', ms(now), a[3])
    return redis.status_reply('OK')
end

local function forget_worker(p, id)
    redis.call('DEL', p .. 'worker:' .. id)
    redis.call('ZREM', p .. 'workers', id)
end

-- worker  ->  OK. A worker that ends in peace.
local function unregister(keys, a)
    forget_worker(keys[1], a[1])
    return redis.status_reply('OK')
end

-- ->  per live worker {id, model, digest, device, version}
local function workers(keys)
    local p, out = keys[1], {}
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', p .. 'workers', ms(now_us()), '+inf')) do
        local v = redis.call('HMGET', p .. 'worker:' .. id, 'model', 'digest', 'device', 'version')
        if v[1] then out[#out + 1] = { id, v[1], v[2] or '', v[3] or '', v[4] or '' } end
    end
    return out
end

-- How many live ones serve a model.
local function live_workers(p, model, now)
    local n = 0
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', p .. 'workers', ms(now), '+inf')) do
        if redis.call('HGET', p .. 'worker:' .. id, 'model') == model then n = n + 1 end
    end
    return n
end
