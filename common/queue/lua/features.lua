---- what models made of images ----

-- A cache: whatever is in it can be made again. `feature_use` has SIZE:KEY by the time of the last use, so that what
-- has gone by its own expiry can be taken off `feature_bytes` too.

local function forget_features(p, member)
    local size, key = string.match(member, '^(%d+):(.*)$')
    redis.call('UNLINK', p .. 'features:' .. key)
    return tonumber(size)
end

-- They are there as long as anything that they count.
local function keep_features(p, key, member, ttl_ms, now)
    redis.call('ZADD', p .. 'feature_use', ms(now), member)
    redis.call('PEXPIRE', p .. 'features:' .. key, ttl_ms)
    for _, k in ipairs({ 'feature_use', 'feature_bytes' }) do
        if redis.call('PTTL', p .. k) < tonumber(ttl_ms) then redis.call('PEXPIRE', p .. k, ttl_ms) end
    end
end

-- ttl_ms key  ->  data or nil
local function get_features(keys, a)
    local p, ttl_ms, key = keys[1], a[1], a[2]
    local data = redis.call('GET', p .. 'features:' .. key)
    if not data then return false end
    keep_features(p, key, #data .. ':' .. key, ttl_ms, now_us())
    return data
end

-- budget_bytes ttl_ms key data  ->  1; or 0: there is no room for it. Those used longest ago make room.
local function put_features(keys, a)
    local p, budget, ttl_ms, key, data = keys[1], tonumber(a[1]), a[2], a[3], a[4]
    local now = now_us()
    local member = #data .. ':' .. key
    if #data > budget then return 0 end
    if redis.call('EXISTS', p .. 'features:' .. key) == 1 then
        keep_features(p, key, member, ttl_ms, now)
        return 1
    end
    local held = tonumber(redis.call('GET', p .. 'feature_bytes') or '0')
    local old = redis.call('ZRANGEBYSCORE', p .. 'feature_use', '-inf', ms(now - tonumber(ttl_ms) * 1000), 'LIMIT', 0, 100)
    -- One that is put again after its own expiry, before the above has come to it.
    if redis.call('ZSCORE', p .. 'feature_use', member) then old[#old + 1] = member end
    for _, m in ipairs(old) do
        if redis.call('ZREM', p .. 'feature_use', m) == 1 then held = held - forget_features(p, m) end
    end
    for _ = 1, 100 do
        if held + #data <= budget then break end
        local first = redis.call('ZPOPMIN', p .. 'feature_use')
        if not first[1] then
            held = 0
        else
            held = held - forget_features(p, first[1])
        end
    end
    local fits = held + #data <= budget
    if fits then
        redis.call('SET', p .. 'features:' .. key, data)
        held = held + #data
    end
    redis.call('SET', p .. 'feature_bytes', text(held), 'KEEPTTL')
    if not fits then
        redis.call('PEXPIRE', p .. 'feature_bytes', ttl_ms)
        return 0
    end
    keep_features(p, key, member, ttl_ms, now)
    return 1
end

