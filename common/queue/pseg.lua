#!lua name=pseg1
-- The queue's state machine. Every operation on a job is one of these functions: one round trip, and
-- all of it or nothing. docs/job-lifecycle.md draws the transitions, proto/KEYS.md lists the keys.
--
-- KEYS[1] is the queue's prefix, "pseg:{NAME}:"; all other keys are made from it, so that they lie in
-- one slot of a cluster. Redis' clock is the only clock. Numbers are written by %.0f, since Lua would
-- write large ones with an exponent.
--
-- A failure that the caller must tell apart is an error reply "PSEG <REASON> <message>".
--
-- REVISION counts the changes of this file. A process loads its copy where an older one lies and
-- leaves a newer one in place, so within "pseg1" a function keeps its arguments and its answer, and
-- new arguments are added at the end; what cannot be done so is a library "pseg2" beside this one.

local REVISION = 2
local GROUP = 'workers'
local EVENTS_MAX = 100000
local MODEL_KEPT_US = 86400 * 1000000 -- after its last worker's last heartbeat
local WORKER_KEPT_MS = 3600 * 1000    -- the record of a lost worker, until a sweep has tidied up
local MAX_TOMBSTONES = 1000           -- dropped in one call
local TERMINAL = { SUCCEEDED = true, FAILED = true, CANCELLED = true, EXPIRED = true }
-- The fields that a reader of a job gets, in this order (queue_redis.c reads them by place).
local FIELDS = { 'tenant', 'request_id', 'state', 'spec', 'result', 'reason', 'message', 'attempts',
    'cancel', 'created', 'started', 'finished', 'deadline', 'expire', 'ttl', 'model', 'image', 'worker' }

local function text(x) return string.format('%.0f', x) end
-- Scores are whole milliseconds: rounded up when they are set and down when they are compared, so that
-- nothing happens early.
local function ms_up(us) return text(math.ceil(us / 1000)) end
local function ms(us) return text(math.floor(us / 1000)) end

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

local function use_image(p, image)
    redis.call('HINCRBY', p .. 'image_use', image, 1)
end

-- An image that outlived its time because a job used it is due now.
local function leave_image(p, image, now)
    if redis.call('HINCRBY', p .. 'image_use', image, -1) > 0 then return end
    redis.call('HDEL', p .. 'image_use', image)
    redis.call('ZADD', p .. 'images', 'NX', ms_up(now), image)
end

-- One attempt that came to nothing, for the message of the job's end. Cut between characters.
local function history(job, attempt, reason, message)
    if #message > 120 then message = string.gsub(string.sub(message, 1, 120), '[\192-\255][\128-\191]*$', '') end
    local old = redis.call('HGET', job, 'history')
    local all = (old and old .. '; ' or '') .. attempt .. ': ' .. reason .. ', ' .. message
    redis.call('HSET', job, 'history', all)
    return all
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
    leave_image(p, v[2], now)
    redis.call('ZADD', p .. 'ended', ms_up(now + ttl * 1000), v[4] .. ':' .. id)
    redis.call('HINCRBY', p .. 'count', state, 1)
    event(p, id, state)
end

-- Back into line, after an attempt that came to nothing or was handed back.
local function requeue(p, id, now, delay_ms, ...)
    local job = p .. 'job:' .. id
    local model = redis.call('HGET', job, 'model')
    drop_entry(p, job, model)
    redis.call('ZREM', p .. 'leases', id)
    redis.call('HSET', job, 'state', 'QUEUED', 'worker', '', ...)
    if delay_ms > 0 then
        redis.call('ZADD', p .. 'delayed', ms_up(now + delay_ms * 1000), id)
    else
        enqueue(p, id, model)
    end
    event(p, id, 'QUEUED')
end

-- Images that nobody has used for their time to live, and no live job refers to.
local function purge_images(p, now, limit)
    local due = redis.call('ZRANGEBYSCORE', p .. 'images', '-inf', ms(now), 'LIMIT', 0, limit)
    for _, image in ipairs(due) do
        if redis.call('HEXISTS', p .. 'image_use', image) == 1 then
            redis.call('ZREM', p .. 'images', image) -- until its last job leaves it
        else
            local size = redis.call('HGET', p .. 'image_size', image)
            redis.call('UNLINK', p .. 'image:' .. image)
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
    local existing = redis.call('HGET', p .. 'job:' .. id, 'tenant')
    if existing then
        -- The same call made twice, its first answer having been lost.
        if existing ~= tenant then return fail('INTERNAL', 'job id ' .. id .. ' is taken') end
        local v = view(p, id)
        table.insert(v, 1, 0)
        return v
    end
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
    if a[6] ~= '1' and tonumber(redis.call('ZSCORE', p .. 'models', model) or '0') == 0 then
        local known = redis.call('ZREVRANGEBYSCORE', p .. 'models', '+inf', '(0', 'LIMIT', 0, 10)
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
    use_image(p, image)
    redis.call('ZADD', p .. 'models', 'NX', 0, model)
    local latest = now + tonumber(a[11]) * 1000
    if deadline <= 0 or deadline > latest then deadline = latest end
    redis.call('HSET', p .. 'job:' .. id, 'tenant', tenant, 'request_id', request_id, 'state', 'QUEUED',
        'spec', a[8], 'model', model, 'image', image, 'created', text(now), 'deadline', text(deadline),
        'ttl', a[12], 'attempts', '0', 'fence', '0')
    redis.call('ZADD', p .. 'live', ms_up(deadline), id)
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
    local expire = ms_up(now + tonumber(a[2]) * 1000)
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

local function create_group(p, model)
    local stream = p .. 'ready:' .. model
    if redis.call('EXISTS', stream) == 0 or #redis.call('XINFO', 'GROUPS', stream) == 0 then
        redis.call('XGROUP', 'CREATE', stream, GROUP, '0', 'MKSTREAM')
    end
end

-- worker lease_ms model digest device version  ->  OK. Also made at every heartbeat.
local function register(keys, a)
    local p, now = keys[1], now_us()
    local expire = now / 1000 + math.max(3 * tonumber(a[2]), 30000)
    redis.call('HSET', p .. 'worker:' .. a[1], 'model', a[3], 'digest', a[4], 'device', a[5], 'version', a[6],
        'seen', text(now))
    redis.call('PEXPIREAT', p .. 'worker:' .. a[1], text(expire + WORKER_KEPT_MS))
    redis.call('ZADD', p .. 'workers', text(expire), a[1])
    redis.call('ZADD', p .. 'models', ms(now), a[3])
    create_group(p, a[3])
    return redis.status_reply('OK')
end

-- Takes a worker out of the lists. Its consumer stays while entries are pending with it, for deleting
-- it would lose them; false then.
local function forget_worker(p, id)
    local model, tidy = redis.call('HGET', p .. 'worker:' .. id, 'model'), true
    local stream = model and p .. 'ready:' .. model
    if stream and redis.call('EXISTS', stream) == 1 and #redis.call('XINFO', 'GROUPS', stream) == 1 then
        for _, c in ipairs(redis.call('XINFO', 'CONSUMERS', stream, GROUP)) do
            if c[2] == id and c[4] == 0 then
                redis.call('XGROUP', 'DELCONSUMER', stream, GROUP, id)
            elseif c[2] == id then
                tidy = false
            end
        end
    end
    if tidy then
        redis.call('DEL', p .. 'worker:' .. id)
        redis.call('ZREM', p .. 'workers', id)
    end
    return tidy
end

-- worker  ->  OK. A worker that ends in peace.
local function unregister(keys, a)
    if not forget_worker(keys[1], a[1]) then redis.call('ZADD', keys[1] .. 'workers', 'XX', 0, a[1]) end
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

-- worker model max lease_ms max_attempts  ->  per job {id, fence, attempt, tenant, spec, image, deadline,
-- created}. Reading the stream and taking the lease are one step: there is no moment in which a job is
-- neither in line nor leased.
local function claim(keys, a)
    local p, worker, model, want = keys[1], a[1], a[2], tonumber(a[3])
    local stream, out, now = keys[1] .. 'ready:' .. a[2], {}, now_us()
    for _ = 1, MAX_TOMBSTONES do
        if want <= 0 then break end
        local got = redis.pcall('XREADGROUP', 'GROUP', GROUP, worker, 'COUNT', want, 'STREAMS', stream, '>')
        if not got then break end
        if got.err then
            -- Somebody emptied the database below a living worker.
            if not string.find(got.err, 'NOGROUP', 1, true) then return got end
            create_group(p, model)
            got = { { stream, {} } }
        end
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
                redis.call('ZADD', p .. 'leases', ms_up(now + tonumber(a[4]) * 1000), id)
                event(p, id, 'RUNNING')
                out[#out + 1] = { id, fence, attempt, v[5], v[6], v[7], v[3], v[8] }
                want = want - 1
            end
        end
    end
    return out
end

-- How a worker stands to a job: 'held'; or 'ended' and the state if it ended this very lease itself, so
-- that a request whose answer was lost can be repeated; or 'lost' and the state.
local function lease(job, worker, fence)
    local v = redis.call('HMGET', job, 'state', 'worker', 'fence', 'by')
    if v[1] == 'RUNNING' and v[2] == worker and v[3] == fence then return 'held', v[1] end
    return v[1] and v[4] == worker .. ' ' .. fence and 'ended' or 'lost', v[1]
end

-- Notes that the holder of the lease ended it.
local function sign(job, worker, fence)
    redis.call('HSET', job, 'by', worker .. ' ' .. fence)
end

-- worker lease_ms {id fence}...  ->  per job: ok, lost, cancel or expired
local function renew(keys, a)
    local p, out, now = keys[1], {}, now_us()
    for i = 3, #a, 2 do
        local job, answer = p .. 'job:' .. a[i], 'ok'
        local how, state = lease(job, a[1], a[i + 1])
        if how ~= 'held' then
            answer = state == 'EXPIRED' and 'expired' or 'lost'
        else
            local v = redis.call('HMGET', job, 'cancel', 'deadline', 'model', 'entry')
            if tonumber(v[2]) <= now then
                finish(p, a[i], 'EXPIRED', now, true)
                answer = 'expired'
            else
                redis.call('ZADD', p .. 'leases', ms_up(now + tonumber(a[2]) * 1000), a[i])
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
    local how, state = lease(job, a[1], a[3])
    if how == 'ended' and TERMINAL[state] then return state end
    if how ~= 'held' then return lost(id, a[1]) end
    sign(job, a[1], a[3])
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
    local how, state = lease(job, a[1], a[3])
    if how == 'ended' then return state end
    if how ~= 'held' then return lost(id, a[1]) end
    sign(job, a[1], a[3])
    local v = redis.call('HMGET', job, 'attempts', 'cancel', 'deadline', 'history')
    if v[2] == '1' or a[4] == 'CANCELLED' then
        finish(p, id, 'CANCELLED', now, true)
        return 'CANCELLED'
    elseif tonumber(v[3]) <= now then
        finish(p, id, 'EXPIRED', now, true, 'reason', a[4], 'message', a[5])
        return 'EXPIRED'
    elseif a[6] == '1' and tonumber(v[1]) < tonumber(a[8]) then
        history(job, v[1], a[4], a[5])
        requeue(p, id, now, tonumber(a[7]), 'reason', a[4], 'message', a[5])
        return 'QUEUED'
    end
    local before = v[4] and ' (attempt ' .. v[1] .. '; before: ' .. v[4] .. ')' or ''
    finish(p, id, 'FAILED', now, true, 'reason', a[4], 'message', a[5] .. before)
    return 'FAILED'
end

-- worker id fence  ->  QUEUED, or its end. A job handed back, as by a worker that stops: no attempt burnt.
local function release(keys, a)
    local p, id, now = keys[1], a[2], now_us()
    local job = p .. 'job:' .. id
    local how, state = lease(job, a[1], a[3])
    if how == 'ended' then return state end
    if how ~= 'held' then return lost(id, a[1]) end
    sign(job, a[1], a[3])
    local v = redis.call('HMGET', job, 'cancel', 'deadline')
    if v[1] == '1' then
        finish(p, id, 'CANCELLED', now, true)
        return 'CANCELLED'
    elseif tonumber(v[2]) <= now then
        finish(p, id, 'EXPIRED', now, true)
        return 'EXPIRED'
    end
    redis.call('HINCRBY', job, 'attempts', -1)
    requeue(p, id, now, 0)
    return 'QUEUED'
end

-- Entries at the head of a line whose jobs have ended: with no worker to drop them they would pile up.
-- They are read and acknowledged like any other, so that the group's lag stays right.
local function drop_tombstones(p, model, limit)
    local stream = p .. 'ready:' .. model
    if redis.call('EXISTS', stream) == 0 then return 0 end
    create_group(p, model)
    local group = redis.call('XINFO', 'GROUPS', stream)[1]
    local from = '-'
    for i = 1, #group, 2 do if group[i] == 'last-delivered-id' then from = '(' .. group[i + 1] end end
    local n, count = 0, 1 -- most often the first entry waits, and one look is enough
    while n < limit do
        local entries = redis.call('XRANGE', stream, from, '+', 'COUNT', count)
        local begun = n
        for _, e in ipairs(entries) do
            local v = redis.call('HMGET', p .. 'job:' .. tostring(e[2][2]), 'state', 'entry')
            if v[1] == 'QUEUED' and v[2] == e[1] then break end
            from, n = '(' .. e[1], n + 1
        end
        if n == begun or n - begun < count then break end
        count = limit - n
    end
    if n > 0 then
        local got = redis.call('XREADGROUP', 'GROUP', GROUP, 'sweep', 'COUNT', n, 'STREAMS', stream, '>')
        for _, e in ipairs(got[1][2]) do
            redis.call('XACK', stream, GROUP, e[1])
            redis.call('XDEL', stream, e[1])
        end
    end
    return n
end

-- Lost workers, models that nobody serves or asks for any more, and the heads of the lines.
local function tidy(p, now, limit)
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', p .. 'workers', '-inf', ms(now), 'LIMIT', 0, limit)) do
        forget_worker(p, id)
    end
    local models = redis.call('ZRANGE', p .. 'models', 0, limit, 'WITHSCORES')
    for i = 1, #models, 2 do
        local model, seen = models[i], tonumber(models[i + 1])
        drop_tombstones(p, model, limit)
        if seen * 1000 < now - MODEL_KEPT_US and redis.call('XLEN', p .. 'ready:' .. model) == 0 then
            redis.call('ZREM', p .. 'models', model)
            redis.call('DEL', p .. 'ready:' .. model)
        end
    end
end

-- max_attempts limit  ->  {due retries, expired leases, expired jobs, purged images}
local function sweep(keys, a)
    local p, now, limit = keys[1], now_us(), tonumber(a[2])
    local due = redis.call('ZRANGEBYSCORE', p .. 'delayed', '-inf', ms(now), 'LIMIT', 0, limit)
    for _, id in ipairs(due) do
        redis.call('ZREM', p .. 'delayed', id)
        if redis.call('HGET', p .. 'job:' .. id, 'state') == 'QUEUED' then
            enqueue(p, id, redis.call('HGET', p .. 'job:' .. id, 'model'))
        end
    end
    local stale = redis.call('ZRANGEBYSCORE', p .. 'leases', '-inf', ms(now), 'LIMIT', 0, limit)
    for _, id in ipairs(stale) do
        local v = redis.call('HMGET', p .. 'job:' .. id, 'attempts', 'worker', 'cancel', 'deadline')
        local why = 'worker ' .. (v[2] or '') .. ' went away during attempt ' .. (v[1] or '')
        local job = p .. 'job:' .. id
        if not v[1] then
            redis.call('ZREM', p .. 'leases', id)
        elseif v[3] == '1' then
            finish(p, id, 'CANCELLED', now, true)
        elseif tonumber(v[4]) <= now then
            finish(p, id, 'EXPIRED', now, true)
        elseif tonumber(v[1]) >= tonumber(a[1]) then
            local before = redis.call('HGET', job, 'history')
            finish(p, id, 'FAILED', now, true, 'reason', 'ATTEMPTS_EXHAUSTED', 'message',
                why .. ', the last of ' .. a[1] .. (before and ' (before: ' .. before .. ')' or ''))
        else
            history(job, v[1], 'LEASE_LOST', why)
            requeue(p, id, now, 0, 'reason', 'LEASE_LOST', 'message', why)
        end
    end
    local late = redis.call('ZRANGEBYSCORE', p .. 'live', '-inf', ms(now), 'LIMIT', 0, limit)
    for _, id in ipairs(late) do
        local state = redis.call('HGET', p .. 'job:' .. id, 'state')
        if not state or TERMINAL[state] then
            redis.call('ZREM', p .. 'live', id)
        else
            finish(p, id, 'EXPIRED', now, state == 'RUNNING')
        end
    end
    -- Jobs whose record has gone leave their tenant's list.
    local gone = redis.call('ZRANGEBYSCORE', p .. 'ended', '-inf', ms(now), 'LIMIT', 0, limit)
    for _, member in ipairs(gone) do
        local tenant, id = string.match(member, '^(.*):([^:]*)$')
        redis.call('ZREM', p .. 'index:' .. tenant, id)
        redis.call('ZREM', p .. 'ended', member)
    end
    tidy(p, now, limit)
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

-- ->  the revision of this library.
local function revision() return REVISION end

local reads = { 'no-writes' }
-- What ends or moves a job must work when memory is full, for it is what frees memory.
local always = { 'allow-oom' }
redis.register_function { function_name = 'pseg1_revision', callback = revision, flags = reads }
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
