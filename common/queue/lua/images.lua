---- images ----

-- Images that nobody has used for their time to live. One that a live job uses gets another such time, and is marked:
-- the next look at all live jobs that begins (check_images) finds out whether there is such a job.
local function purge_images(p, now, limit, ttl_ms)
    local due = redis.call('ZRANGEBYSCORE', p .. 'images', '-inf', ms(now), 'LIMIT', 0, limit)
    for _, image in ipairs(due) do
        if tonumber(redis.call('HGET', p .. 'image_use', image) or '0') > 0 then
            redis.call('ZADD', p .. 'images', ms_up(now + ttl_ms * 1000), image)
            redis.call('HSETNX', p .. 'image_check', image, tonumber(redis.call('HGET', p .. 'count', 'pass') or '0') + 1)
        else
            local size = redis.call('STRLEN', p .. 'image:' .. image)
            redis.call('UNLINK', p .. 'image:' .. image)
            redis.call('ZREM', p .. 'images', image)
            redis.call('HDEL', p .. 'image_use', image)
            redis.call('DECRBY', p .. 'bytes', text(size))
            local tenant = string.match(image, '^([^:]*):')
            if redis.call('HINCRBY', p .. 'tenant_bytes', tenant, text(-size)) <= 0 then
                redis.call('HDEL', p .. 'tenant_bytes', tenant)
            end
        end
    end
    return #due
end

-- Stores image bytes within the bounds; nil if good, else an error reply. tenant_max: 0: none.
local function store_image(b, tenant, image, data, max_bytes, tenant_max, ttl_ms, now)
    local p = b.p
    b.held = b.held or tonumber(redis.call('GET', p .. 'bytes') or '0')
    local held = b.held + b.bytes
    if held + #data > max_bytes then
        purge_images(p, now, 1000, ttl_ms)
        b.has_purged = true
        b.held = tonumber(redis.call('GET', p .. 'bytes') or '0')
        held = b.held + b.bytes
    end
    if held + #data > max_bytes then
        return fail('QUEUE_FULL', 'an image of ' .. #data .. ' bytes does not fit: ' .. text(held) ..
            ' of ' .. text(max_bytes) .. ' bytes are held; try again later')
    end
    if tenant_max > 0 then
        local own = tonumber(redis.call('HGET', p .. 'tenant_bytes', tenant) or '0') +
            (b.incr.tenant_bytes and b.incr.tenant_bytes[tenant] or 0)
        if own + #data > tenant_max then
            return fail('TENANT_LIMIT', 'an image of ' .. #data .. ' bytes does not fit: ' .. text(own) ..
                ' of ' .. text(tenant_max) .. ' bytes of tenant ' .. tenant .. ' are held; try again later')
        end
    end
    later_set(b, p .. 'image:' .. image, data)
    b.bytes = b.bytes + #data
    b.uses[image] = 0
    later_incr(b, 'tenant_bytes', tenant, #data)
    local m = b.memo.image or ms_up(now + ttl_ms * 1000)
    b.memo.image = m
    later_zadd(b, 'images', m, image)
    return nil
end

-- tenant sha256 data max_bytes image_ttl_ms tenant_bytes  ->  {existed, size, expire_ms}
local function put_image(keys, a)
    local p, image, now = keys[1], a[1] .. ':' .. a[2], now_us()
    local expire = ms_up(now + tonumber(a[5]) * 1000)
    if redis.call('EXISTS', p .. 'image:' .. image) == 1 then
        redis.call('ZADD', p .. 'images', 'GT', expire, image)
        return { 1, redis.call('STRLEN', p .. 'image:' .. image), expire }
    end
    local b = batch(p)
    local full = store_image(b, a[1], image, a[3], tonumber(a[4]), tonumber(a[6] or '0'), tonumber(a[5]), now)
    if full then return full end
    write(b)
    return { 0, #a[3], expire }
end

-- tenant image_ttl_ms sha256...  ->  per image {size or 0, expire_ms}; held ones live longer by it
local function has_images(keys, a)
    local p, now, out = keys[1], now_us(), {}
    local expire = ms_up(now + tonumber(a[2]) * 1000)
    for i = 3, #a do
        local image = a[1] .. ':' .. a[i]
        local held = redis.call('EXISTS', p .. 'image:' .. image) == 1
        if held then redis.call('ZADD', p .. 'images', 'GT', expire, image) end
        out[#out + 1] = held and redis.call('STRLEN', p .. 'image:' .. image) or 0
        out[#out + 1] = held and expire or '0'
    end
    return out
end
