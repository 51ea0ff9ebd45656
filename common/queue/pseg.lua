#!lua name=pseg1
-- The queue's state machine. Every operation on a job is one of these functions: one round trip, and
-- all of it or nothing. docs/job-lifecycle.md draws the transitions, proto/KEYS.md lists the keys.
--
-- KEYS[1] is the queue's prefix, "pseg:{NAME}:"; all other keys are made from it, so that they lie in
-- one slot of a cluster. Redis' clock is the only clock. Numbers are written by %.0f, since Lua would
-- write large ones with an exponent.
--
-- A failure that the caller must tell apart is an error reply "PSEG <REASON> <message>".

local GROUP = 'workers'
local EVENTS_MAX = 100000
local TERMINAL = { SUCCEEDED = true, FAILED = true, CANCELLED = true, EXPIRED = true }
-- The fields that a reader of a job gets, in this order (queue_redis.c reads them by place).
local FIELDS = { 'tenant', 'request_id', 'state', 'spec', 'result', 'reason', 'message', 'attempts',
    'cancel', 'created', 'started', 'finished', 'deadline', 'expire', 'ttl', 'model', 'image', 'worker' }

local function text(x) return string.format('%.0f', x) end

local function now_us()
    local t = redis.call('TIME')
    return tonumber(t[1]) * 1000000 + tonumber(t[2])
end

local function fail(reason, message)
    return redis.error_reply('PSEG ' .. reason .. ' ' .. message)
end

local function view(p, id)
    local v = redis.call('HMGET', p .. 'job:' .. id, unpack(FIELDS))
    for i = 1, #FIELDS do if not v[i] then v[i] = '' end end
    table.insert(v, 1, id)
    return v
end

local function event(p, id, state)
    redis.call('XADD', p .. 'events', 'MAXLEN', '~', EVENTS_MAX, '*', 'id', id, 'state', state)
end

local function enqueue(p, id, model)
    local entry = redis.call('XADD', p .. 'ready:' .. model, '*', 'id', id)
    redis.call('HSET', p .. 'job:' .. id, 'entry', entry)
end

-- Takes a claimed entry out of the stream. A waiting entry is left for the next claim to drop:
-- deleting it would make the group's lag unknown, by which autoscalers go.
local function drop_entry(p, job, model)
    local entry = redis.call('HGET', job, 'entry')
    if entry then
        redis.call('XACK', p .. 'ready:' .. model, GROUP, entry)
        redis.call('XDEL', p .. 'ready:' .. model, entry)
        redis.call('HDEL', job, 'entry')
    end
end

local function use_image(p, image, by)
    local n = redis.call('HINCRBY', p .. 'image_use', image, by)
    if n <= 0 then redis.call('HDEL', p .. 'image_use', image) end
end

-- Ends a job. `claimed`: its entry is with a worker.
local function finish(p, id, state, now, claimed, ...)
    local job = p .. 'job:' .. id
    local v = redis.call('HMGET', job, 'model', 'image', 'ttl', 'tenant', 'request_id')
    if claimed then drop_entry(p, job, v[1]) end
    local ttl = tonumber(v[3])
    redis.call('HSET', job, 'state', state, 'finished', text(now), 'expire', text(now + ttl * 1000),
        'cancel', '', ...)
    redis.call('PEXPIRE', job, text(ttl))
    if v[5] ~= '' then redis.call('PEXPIRE', p .. 'request:' .. v[4] .. ':' .. v[5], text(ttl)) end
    redis.call('ZREM', p .. 'live', id)
    redis.call('ZREM', p .. 'leases', id)
    redis.call('ZREM', p .. 'delayed', id)
    use_image(p, v[2], -1)
    redis.call('ZADD', p .. 'ended', text(now / 1000 + ttl), v[4] .. ':' .. id)
    redis.call('HINCRBY', p .. 'count', state, 1)
    event(p, id, state)
end

-- Back into line after an attempt that came to nothing.
local function requeue(p, id, now, delay_ms, ...)
    local job = p .. 'job:' .. id
    local model = redis.call('HGET', job, 'model')
    drop_entry(p, job, model)
    redis.call('ZREM', p .. 'leases', id)
    redis.call('HSET', job, 'state', 'QUEUED', 'worker', '', ...)
    if delay_ms > 0 then
        redis.call('ZADD', p .. 'delayed', text(now / 1000 + delay_ms), id)
    else
        enqueue(p, id, model)
    end
    event(p, id, 'QUEUED')
end

-- Images that nobody has used for their time to live, and no live job refers to.
local function purge_images(p, now, limit)
    local due = redis.call('ZRANGEBYSCORE', p .. 'images', '-inf', text(now / 1000), 'LIMIT', 0, limit)
    for _, image in ipairs(due) do
        if redis.call('HEXISTS', p .. 'image_use', image) == 1 then
            redis.call('ZADD', p .. 'images', text(now / 1000 + 60000), image)
        else
            local size = redis.call('HGET', p .. 'image_size', image)
            redis.call('DEL', p .. 'image:' .. image)
            redis.call('ZREM', p .. 'images', image)
            redis.call('HDEL', p .. 'image_size', image)
            redis.call('DECRBY', p .. 'bytes', size or '0')
        end
    end
    return #due
end

-- Stores image bytes within the bound; nil if good, else an error reply.
local function store_image(p, image, data, max_bytes, expire_ms, now)
    local held = tonumber(redis.call('GET', p .. 'bytes') or '0')
    if held + #data > max_bytes then
        purge_images(p, now, 1000)
        held = tonumber(redis.call('GET', p .. 'bytes') or '0')
    end
    if held + #data > max_bytes then
        return fail('QUEUE_FULL', 'an image of ' .. #data .. ' bytes does not fit: ' .. text(held) ..
            ' of ' .. text(max_bytes) .. ' bytes are held; try again later')
    end
    redis.call('SET', p .. 'image:' .. image, data)
    redis.call('INCRBY', p .. 'bytes', #data)
    redis.call('HSET', p .. 'image_size', image, #data)
    redis.call('ZADD', p .. 'images', text(expire_ms), image)
    return nil
end

-- tenant id request_id fingerprint model is_default sha256 spec content deadline_us max_age_ms ttl_ms
-- max_jobs max_bytes image_ttl_ms  ->  {1 if new, job view...}
local function submit(keys, a)
    local p, tenant, id, request_id, fingerprint, model = keys[1], a[1], a[2], a[3], a[4], a[5]
    local now = now_us()
    local request = p .. 'request:' .. tenant .. ':' .. request_id
    if request_id ~= '' then
        local old = redis.call('HMGET', request, 'id', 'fingerprint')
        if old[1] and redis.call('EXISTS', p .. 'job:' .. old[1]) == 1 then
            if old[2] ~= fingerprint then
                return fail('REQUEST_ID_REUSED', 'request_id "' .. request_id ..
                    '" was used for a job with other content; take a new one')
            end
            local v = view(p, old[1])
            table.insert(v, 1, 0)
            return v
        end
    end
    if a[6] ~= '1' and not redis.call('ZSCORE', p .. 'models', model) then
        local known = redis.call('ZREVRANGE', p .. 'models', 0, 9)
        return fail('MODEL_UNKNOWN', 'model "' .. model .. '" is served by no worker; known: ' ..
            (#known > 0 and table.concat(known, ', ') or 'none'))
    end
    local deadline, max_jobs, max_bytes = tonumber(a[10]), tonumber(a[13]), tonumber(a[14])
    local live = redis.call('ZCARD', p .. 'live')
    if live >= max_jobs then
        return fail('QUEUE_FULL', text(live) .. ' jobs are alive, the limit is ' .. a[13] .. '; try again later')
    end
    local image = tenant .. ':' .. a[7]
    local image_expire = now / 1000 + tonumber(a[15])
    if redis.call('EXISTS', p .. 'image:' .. image) == 0 then
        if a[9] == '' then
            return fail('IMAGE_NOT_HELD', 'image ' .. a[7] .. ' is not held; upload it and repeat')
        end
        local full = store_image(p, image, a[9], max_bytes, image_expire, now)
        if full then return full end
    else
        redis.call('ZADD', p .. 'images', 'GT', text(image_expire), image)
    end
    use_image(p, image, 1)
    local latest = now + tonumber(a[11]) * 1000
    if deadline <= 0 or deadline > latest then deadline = latest end
    redis.call('HSET', p .. 'job:' .. id, 'tenant', tenant, 'request_id', request_id, 'state', 'QUEUED',
        'spec', a[8], 'model', model, 'image', image, 'created', text(now), 'deadline', text(deadline),
        'ttl', a[12], 'attempts', '0', 'fence', '0')
    redis.call('ZADD', p .. 'live', text(deadline / 1000), id)
    redis.call('ZADD', p .. 'index:' .. tenant, 0, id)
    if request_id ~= '' then redis.call('HSET', request, 'id', id, 'fingerprint', fingerprint) end
    redis.call('HINCRBY', p .. 'count', 'submitted', 1)
    enqueue(p, id, model)
    local v = view(p, id)
    table.insert(v, 1, 1)
    return v
end

-- tenant sha256 data max_bytes image_ttl_ms  ->  {existed, size, expire_ms}
local function put_image(keys, a)
    local p, image, now = keys[1], a[1] .. ':' .. a[2], now_us()
    local expire = now / 1000 + tonumber(a[5])
    local size = redis.call('HGET', p .. 'image_size', image)
    if size then
        redis.call('ZADD', p .. 'images', 'GT', text(expire), image)
        return { 1, tonumber(size), text(expire) }
    end
    local full = store_image(p, image, a[3], tonumber(a[4]), expire, now)
    if full then return full end
    return { 0, #a[3], text(expire) }
end

-- tenant image_ttl_ms sha256...  ->  per image {size or 0, expire_ms}; held ones live longer by it
local function has_images(keys, a)
    local p, now, out = keys[1], now_us(), {}
    local expire = text(now / 1000 + tonumber(a[2]))
    for i = 3, #a do
        local image = a[1] .. ':' .. a[i]
        local size = redis.call('HGET', p .. 'image_size', image)
        if size then redis.call('ZADD', p .. 'images', 'GT', expire, image) end
        out[#out + 1] = tonumber(size or '0')
        out[#out + 1] = size and expire or '0'
    end
    return out
end

-- tenant id...  ->  one view per job that is the tenant's; an empty list for any other
local function get(keys, a)
    local out = {}
    for i = 2, #a do
        local v = view(keys[1], a[i])
        out[#out + 1] = v[2] == a[1] and v or {}
    end
    return out
end

-- tenant after_id limit  ->  {next id or '', views...}. Newest first: ids sort by time.
local function list(keys, a)
    local p, index = keys[1], keys[1] .. 'index:' .. a[1]
    local limit = tonumber(a[3])
    local ids = redis.call('ZREVRANGEBYLEX', index, a[2] == '' and '+' or '(' .. a[2], '-', 'LIMIT', 0, limit)
    local out = { #ids == limit and ids[#ids] or '' }
    for _, id in ipairs(ids) do
        local v = view(p, id)
        if v[2] == a[1] then out[#out + 1] = v end
    end
    return out
end

-- tenant id prompt_index...  ->  {view, mask or nil...}
local function masks(keys, a)
    local p, v = keys[1], view(keys[1], a[2])
    if v[2] ~= a[1] then return { {} } end
    local out = { v }
    for i = 3, #a do out[#out + 1] = redis.call('GET', p .. 'mask:' .. a[2] .. ':' .. a[i]) end
    return out
end

-- tenant id  ->  view
local function cancel(keys, a)
    local p, job = keys[1], keys[1] .. 'job:' .. a[2]
    if redis.call('HGET', job, 'tenant') ~= a[1] then return {} end
    local state = redis.call('HGET', job, 'state')
    if state == 'QUEUED' then
        finish(p, a[2], 'CANCELLED', now_us(), false)
    elseif state == 'RUNNING' then
        redis.call('HSET', job, 'cancel', '1')
    end
    return view(p, a[2])
end

-- worker lease_ms model digest device version  ->  OK. Also made at every heartbeat.
local function register(keys, a)
    local p, now = keys[1], now_us()
    local expire = now / 1000 + math.max(3 * tonumber(a[2]), 30000)
    redis.call('HSET', p .. 'worker:' .. a[1], 'model', a[3], 'digest', a[4], 'device', a[5], 'version', a[6],
        'seen', text(now))
    redis.call('PEXPIREAT', p .. 'worker:' .. a[1], text(expire))
    redis.call('ZADD', p .. 'workers', text(expire), a[1])
    redis.call('ZADD', p .. 'models', text(now / 1000), a[3])
    if redis.call('EXISTS', p .. 'ready:' .. a[3]) == 0 or
        #redis.call('XINFO', 'GROUPS', p .. 'ready:' .. a[3]) == 0 then
        redis.call('XGROUP', 'CREATE', p .. 'ready:' .. a[3], GROUP, '0', 'MKSTREAM')
    end
    return redis.status_reply('OK')
end

-- worker  ->  OK. A worker that ends in peace.
local function unregister(keys, a)
    local p = keys[1]
    local model = redis.call('HGET', p .. 'worker:' .. a[1], 'model')
    redis.call('DEL', p .. 'worker:' .. a[1])
    redis.call('ZREM', p .. 'workers', a[1])
    if model and redis.call('EXISTS', p .. 'ready:' .. model) == 1 then
        -- A consumer with pending entries is kept: deleting it would lose them.
        for _, c in ipairs(redis.call('XINFO', 'CONSUMERS', p .. 'ready:' .. model, GROUP)) do
            if c[2] == a[1] and c[4] == 0 then
                redis.call('XGROUP', 'DELCONSUMER', p .. 'ready:' .. model, GROUP, a[1])
            end
        end
    end
    return redis.status_reply('OK')
end

-- ->  per live worker {id, model, digest, device, version}
local function workers(keys)
    local p, out = keys[1], {}
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', p .. 'workers', text(now_us() / 1000), '+inf')) do
        local v = redis.call('HMGET', p .. 'worker:' .. id, 'model', 'digest', 'device', 'version')
        if v[1] then out[#out + 1] = { id, v[1], v[2] or '', v[3] or '', v[4] or '' } end
    end
    return out
end

-- worker model max lease_ms max_attempts  ->  per job {id, fence, attempt, tenant, spec, image, deadline,
-- created}. Reading the stream and taking the lease are one step: there is no moment in which a job is
-- neither in line nor leased.
local function claim(keys, a)
    local p, worker, model, want = keys[1], a[1], a[2], tonumber(a[3])
    local stream, out, now = keys[1] .. 'ready:' .. a[2], {}, now_us()
    for _ = 1, 100 do
        if want <= 0 then break end
        local got = redis.call('XREADGROUP', 'GROUP', GROUP, worker, 'COUNT', want, 'STREAMS', stream, '>')
        if not got then break end
        for _, e in ipairs(got[1][2]) do
            local id, job = e[2] and e[2][2], nil
            if id then job = p .. 'job:' .. id end
            local v = job and redis.call('HMGET', job, 'state', 'entry', 'deadline', 'attempts', 'tenant', 'spec',
                'image', 'created')
            if not job or v[1] ~= 'QUEUED' or v[2] ~= e[1] then
                -- Ended while it waited: the entry is all that is left of its place.
                redis.call('XACK', stream, GROUP, e[1])
                redis.call('XDEL', stream, e[1])
                if job and v[2] == e[1] then redis.call('HDEL', job, 'entry') end
            elseif tonumber(v[3]) <= now then
                finish(p, id, 'EXPIRED', now, true)
            else
                local fence = redis.call('HINCRBY', job, 'fence', 1)
                local attempt = tonumber(v[4]) + 1
                redis.call('HSET', job, 'state', 'RUNNING', 'worker', worker, 'started', text(now),
                    'attempts', text(attempt))
                redis.call('ZADD', p .. 'leases', text(now / 1000 + tonumber(a[4])), id)
                event(p, id, 'RUNNING')
                out[#out + 1] = { id, fence, attempt, v[5], v[6], v[7], v[3], v[8] }
                want = want - 1
            end
        end
    end
    return out
end

local function holds(job, worker, fence)
    local v = redis.call('HMGET', job, 'state', 'worker', 'fence')
    return v[1] == 'RUNNING' and v[2] == worker and v[3] == fence
end

-- worker lease_ms {id fence}...  ->  per job: ok, lost, cancel or expired
local function renew(keys, a)
    local p, out, now = keys[1], {}, now_us()
    for i = 3, #a, 2 do
        local job, answer = p .. 'job:' .. a[i], 'ok'
        if not holds(job, a[1], a[i + 1]) then
            answer = 'lost'
        else
            local v = redis.call('HMGET', job, 'cancel', 'deadline', 'model', 'entry')
            if tonumber(v[2]) <= now then
                finish(p, a[i], 'EXPIRED', now, true)
                answer = 'expired'
            else
                redis.call('ZADD', p .. 'leases', text(now / 1000 + tonumber(a[2])), a[i])
                if v[1] == '1' then answer = 'cancel' end
            end
        end
        out[#out + 1] = answer
    end
    return out
end

local function lost(id, worker)
    return fail('LEASE_LOST', 'worker ' .. worker .. ' no longer holds job ' .. id .. '; its result is dropped')
end

-- worker id fence result {mask}...  ->  the state it ended in
local function publish(keys, a)
    local p, id, now = keys[1], a[2], now_us()
    local job = p .. 'job:' .. id
    if not holds(job, a[1], a[3]) then return lost(id, a[1]) end
    local v = redis.call('HMGET', job, 'cancel', 'deadline', 'ttl')
    if v[1] == '1' then
        finish(p, id, 'CANCELLED', now, true)
        return 'CANCELLED'
    elseif tonumber(v[2]) <= now then
        finish(p, id, 'EXPIRED', now, true)
        return 'EXPIRED'
    end
    for i = 5, #a do redis.call('SET', p .. 'mask:' .. id .. ':' .. (i - 5), a[i], 'PX', v[3]) end
    finish(p, id, 'SUCCEEDED', now, true, 'result', a[4], 'reason', '', 'message', '')
    return 'SUCCEEDED'
end

-- worker id fence reason message retryable delay_ms max_attempts  ->  the state it is in now
local function give_up(keys, a)
    local p, id, now = keys[1], a[2], now_us()
    local job = p .. 'job:' .. id
    if not holds(job, a[1], a[3]) then return lost(id, a[1]) end
    local v = redis.call('HMGET', job, 'attempts', 'cancel')
    if v[2] == '1' or a[4] == 'CANCELLED' then
        finish(p, id, 'CANCELLED', now, true)
        return 'CANCELLED'
    elseif a[6] == '1' and tonumber(v[1]) < tonumber(a[8]) then
        requeue(p, id, now, tonumber(a[7]), 'reason', a[4], 'message', a[5])
        return 'QUEUED'
    end
    finish(p, id, 'FAILED', now, true, 'reason', a[4], 'message', a[5])
    return 'FAILED'
end

-- worker id fence  ->  QUEUED. A job handed back untouched, as by a worker that stops: no attempt burnt.
local function release(keys, a)
    local p, id, now = keys[1], a[2], now_us()
    local job = p .. 'job:' .. id
    if not holds(job, a[1], a[3]) then return lost(id, a[1]) end
    redis.call('HINCRBY', job, 'attempts', -1)
    requeue(p, id, now, 0)
    return 'QUEUED'
end

-- max_attempts limit  ->  {due retries, expired leases, expired jobs, purged images}
local function sweep(keys, a)
    local p, now, limit = keys[1], now_us(), tonumber(a[2])
    local due = redis.call('ZRANGEBYSCORE', p .. 'delayed', '-inf', text(now / 1000), 'LIMIT', 0, limit)
    for _, id in ipairs(due) do
        redis.call('ZREM', p .. 'delayed', id)
        if redis.call('HGET', p .. 'job:' .. id, 'state') == 'QUEUED' then
            enqueue(p, id, redis.call('HGET', p .. 'job:' .. id, 'model'))
        end
    end
    local stale = redis.call('ZRANGEBYSCORE', p .. 'leases', '-inf', text(now / 1000), 'LIMIT', 0, limit)
    for _, id in ipairs(stale) do
        local v = redis.call('HMGET', p .. 'job:' .. id, 'attempts', 'worker', 'cancel', 'deadline')
        local why = 'worker ' .. (v[2] or '') .. ' went away during attempt ' .. (v[1] or '')
        if not v[1] then
            redis.call('ZREM', p .. 'leases', id)
        elseif v[3] == '1' then
            finish(p, id, 'CANCELLED', now, true)
        elseif tonumber(v[4]) <= now then
            finish(p, id, 'EXPIRED', now, true)
        elseif tonumber(v[1]) >= tonumber(a[1]) then
            finish(p, id, 'FAILED', now, true, 'reason', 'ATTEMPTS_EXHAUSTED', 'message',
                why .. ', the last of ' .. a[1])
        else
            requeue(p, id, now, 0, 'reason', 'LEASE_LOST', 'message', why)
        end
    end
    local late = redis.call('ZRANGEBYSCORE', p .. 'live', '-inf', text(now / 1000), 'LIMIT', 0, limit)
    for _, id in ipairs(late) do
        local state = redis.call('HGET', p .. 'job:' .. id, 'state')
        if not state or TERMINAL[state] then
            redis.call('ZREM', p .. 'live', id)
        else
            finish(p, id, 'EXPIRED', now, state == 'RUNNING')
        end
    end
    -- Jobs whose record has gone leave their tenant's list.
    local gone = redis.call('ZRANGEBYSCORE', p .. 'ended', '-inf', text(now / 1000), 'LIMIT', 0, limit)
    for _, member in ipairs(gone) do
        local tenant, id = string.match(member, '^(.*):([^:]*)$')
        redis.call('ZREM', p .. 'index:' .. tenant, id)
        redis.call('ZREM', p .. 'ended', member)
    end
    return { #due, #stale, #late, purge_images(p, now, limit) }
end

-- ->  {live jobs, leased jobs, delayed jobs, image bytes held, submitted, succeeded, failed, cancelled, expired}
local function stats(keys)
    local p = keys[1]
    local c = redis.call('HMGET', p .. 'count', 'submitted', 'SUCCEEDED', 'FAILED', 'CANCELLED', 'EXPIRED')
    local out = { redis.call('ZCARD', p .. 'live'), redis.call('ZCARD', p .. 'leases'),
        redis.call('ZCARD', p .. 'delayed'), tonumber(redis.call('GET', p .. 'bytes') or '0') }
    for i = 1, 5 do out[#out + 1] = tonumber(c[i] or '0') end
    return out
end

local reads = { 'no-writes' }
-- What ends or moves a job must work when memory is full, for it is what frees memory.
local always = { 'allow-oom' }
redis.register_function('pseg1_submit', submit)
redis.register_function('pseg1_put_image', put_image)
redis.register_function { function_name = 'pseg1_has_images', callback = has_images, flags = always }
redis.register_function { function_name = 'pseg1_get', callback = get, flags = reads }
redis.register_function { function_name = 'pseg1_list', callback = list, flags = reads }
redis.register_function { function_name = 'pseg1_masks', callback = masks, flags = reads }
redis.register_function { function_name = 'pseg1_cancel', callback = cancel, flags = always }
redis.register_function { function_name = 'pseg1_register', callback = register, flags = always }
redis.register_function { function_name = 'pseg1_unregister', callback = unregister, flags = always }
redis.register_function { function_name = 'pseg1_workers', callback = workers, flags = reads }
redis.register_function { function_name = 'pseg1_claim', callback = claim, flags = always }
redis.register_function { function_name = 'pseg1_renew', callback = renew, flags = always }
redis.register_function { function_name = 'pseg1_publish', callback = publish, flags = always }
redis.register_function { function_name = 'pseg1_fail', callback = give_up, flags = always }
redis.register_function { function_name = 'pseg1_release', callback = release, flags = always }
redis.register_function { function_name = 'pseg1_sweep', callback = sweep, flags = always }
redis.register_function { function_name = 'pseg1_stats', callback = stats, flags = reads }
