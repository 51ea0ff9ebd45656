---- the sweep ----

-- When the clock has been set back, what was to be over within `longest_ms` seems to be far away: it is put that far.
local function set_back(p, key, now, longest_ms, limit)
    local far = redis.call('ZRANGEBYSCORE', p .. key, '(' .. ms_up(now + (longest_ms + 1) * 1000), '+inf', 'LIMIT', 0,
        limit)
    for _, member in ipairs(far) do redis.call('ZADD', p .. key, ms_up(now + longest_ms * 1000), member) end
end

-- Models that nobody serves or asks for any more, and workers that are gone.
local function tidy(p, now, limit, lease_ms)
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', p .. 'workers', '-inf', ms(now), 'LIMIT', 0, limit)) do
        forget_worker(p, id)
    end
    set_back(p, 'workers', now, worker_kept_ms(lease_ms), limit)
    local models = redis.call('ZRANGE', p .. 'models', 0, limit, 'WITHSCORES')
    for i = 1, #models, 2 do
        local model, seen = models[i], tonumber(models[i + 1])
        if seen * 1000 < now - MODEL_KEPT_US and redis.call('LLEN', p .. 'ready:' .. model) == 0 then
            redis.call('ZREM', p .. 'models', model)
            redis.call('DEL', p .. 'wake:' .. model, p .. 'idle:' .. model)
            redis.call('HDEL', p .. 'clock', model)
            redis.call('HDEL', p .. 'cost', model, model .. '/phrases')
        end
    end
    redis.call('ZREMRANGEBYSCORE', p .. 'tenant_rate', '-inf', text(now))
end

-- Leases that have ended, by worker; and with them those that the same worker has not renewed for as long as half
-- a lease: a living one renews all it holds three times in a lease.
local function dead_leases(b, now, limit, lease_ms)
    local p, groups, order = b.p, {}, {}
    local function until_us(us, n)
        return redis.call('ZRANGEBYSCORE', p .. 'leases', '-inf', ms(us), 'LIMIT', 0, n)
    end
    local stale = until_us(now, limit)
    if #stale == 0 then return groups, order end
    local n = 0
    for _, id in ipairs(until_us(now + lease_ms * 500, 10 * limit)) do
        if n >= 5 * limit then break end -- the rest the next time
        if packs.is_token(id) then n = n + packs.unpack_run(b, id) end
    end
    stale = until_us(now, limit)
    local all = until_us(now + lease_ms * 500, 10 * limit)
    for i, id in ipairs(all) do
        local j = job_of(p, id)
        local worker = j and j.worker or ''
        local g = groups[worker]
        if not g and i <= #stale and not packs.is_token(id) then
            g = {}
            groups[worker] = g
            order[#order + 1] = worker
        end
        if g and not packs.is_token(id) then g[#g + 1] = { id = id, j = j, is_stale = i <= #stale } end
    end
    return groups, order
end

-- What becomes of a job whose worker went silent while it held n. One of several is not charged: which of them did
-- it is found by trying them among ever fewer. Nor is one whose worker lives: it never heard of its claim.
local function lease_ended(b, now, worker, one, n, max_attempts, alive)
    local p, id, j = b.p, one.id, one.j
    if not j then
        later_remove(b, 'ZREM', 'leases', id)
        return
    end
    local why = 'worker ' .. worker .. ' went away during attempt ' .. j.attempts
    if j.cancel then
        finish_job(b, id, 'CANCELLED', now, j)
    elseif j.deadline <= now then
        finish_job(b, id, 'EXPIRED', now, j)
    elseif alive then
        j.attempts = j.attempts - 1
        requeue(b, id, now, 0, j)
    elseif n > 1 and j.group ~= 1 then
        local group = math.ceil(n / 2)
        if j.group > 0 then group = math.min(group, math.max(1, j.group - 1)) end
        j.group, j.attempts = group, j.attempts - 1
        requeue(b, id, now, 0, j, 'reason', 'LEASE_LOST', 'message', why .. ', with ' .. (n - 1) .. ' others')
    elseif j.attempts >= max_attempts then
        local before = redis.call('HGET', p .. 'job:' .. id, 'history')
        history(p, id, j.attempts, 'LEASE_LOST', why, worker, now)
        give_up(b, id, now, j, 'ATTEMPTS_EXHAUSTED', why .. ', the last of ' .. text(max_attempts) ..
            (before and ' (before: ' .. before .. ')' or ''))
    else
        history(p, id, j.attempts, 'LEASE_LOST', why, worker, now)
        requeue(b, id, now, 0, j, 'reason', 'LEASE_LOST', 'message', why)
    end
end

local function sweep_leases(b, now, limit, max_attempts, lease_ms)
    local p, n = b.p, 0
    set_back(p, 'leases', now, lease_ms, limit)
    local groups, order = dead_leases(b, now, limit, lease_ms)
    for _, worker in ipairs(order) do
        local g = groups[worker]
        local seen = tonumber(redis.call('HGET', p .. 'worker:' .. worker, 'seen') or '0')
        local alive = math.abs(now - seen) < lease_ms * 500 -- far ahead: seen before the clock was set back
        for _, one in ipairs(g) do
            if one.is_stale or not alive then lease_ended(b, now, worker, one, #g, max_attempts, alive) end
        end
        n = n + #g
    end
    return n
end

-- Records whose time has passed: they leave their tenant's list, and free their request ids.
local function sweep_ended(p, now, limit)
    local gone = redis.call('ZRANGEBYSCORE', p .. 'ended', '-inf', ms(now), 'LIMIT', 0, limit)
    local b = batch(p)
    for _, member in ipairs(gone) do
        local tenant, id, request_id = string.match(member, '^([^:]*):([^:]*):(.*)$')
        later_remove(b, 'ZREM', 'ended', member)
        if packs.is_token(id) then
            packs.forget(b, tenant, id, request_id)
            request_id = ''
        else
            later_remove(b, 'ZREM', 'index:' .. tenant, id)
            later_remove(b, 'UNLINK', 'job:' .. id, nil)
        end
        if request_id ~= '' then
            local key = p .. 'request:' .. tenant .. ':' .. request_id
            if string.sub(redis.call('GET', key) or '', 1, 32) == id then redis.call('UNLINK', key) end
        end
    end
    write(b)
    return #gone
end

local function drop_case(p, id)
    if redis.call('ZREM', p .. 'quarantine', id) == 0 then return 0 end
    local image = redis.call('HGET', p .. 'case:' .. id, 'image')
    if image then redis.call('HINCRBY', p .. 'image_use', image, -1) end
    redis.call('DEL', p .. 'case:' .. id)
    return 1
end

-- What is left of batches that are to be cancelled, of one at a time: a job that waits is taken out, and one that runs
-- is marked, and left to its worker.
local CANCELS = 500 -- a sweep
local function cancel_live(b, id, now)
    local j = own_job(b, id)
    if j and j.state == 'QUEUED' then
        finish_job(b, id, 'CANCELLED', now, j)
    elseif j and j.state == 'RUNNING' then
        j.cancel = true
        save(b.p, id, j)
    end
end

local function sweep_cancels(p, now)
    local b = batch(p)
    for _, name in ipairs(redis.call('ZRANGE', p .. 'batch_cancels', 0, 0)) do
        local live, done, n = redis.call('HRANDFIELD', p .. 'batch_live:' .. name, CANCELS, 'WITHVALUES'), {}, 0
        for i = 1, #live, 2 do
            if n >= CANCELS then break end
            done[#done + 1] = live[i]
            n = n + packs.each(live[i + 1], function(id) cancel_live(b, id, now) end)
        end
        if #done > 0 then redis.call('HDEL', p .. 'batch_live:' .. name, unpack(done)) end
        if n < CANCELS then redis.call('ZREM', p .. 'batch_cancels', name) end
    end
    write(b)
end

-- Batches that may be over: of most the last end was later than when this was last looked at.
local function sweep_batches(p, now, limit)
    for _, name in ipairs(redis.call('ZRANGEBYSCORE', p .. 'batch_ends', '-inf', ms(now), 'LIMIT', 0, limit)) do
        local v = redis.call('HMGET', p .. 'batch:' .. name, 'created', 'ttl', 'next')
        local expire = v[1] and batch_expire_us(p, name, v, redis.call('LLEN', p .. 'batch_done:' .. name), now) or 0
        if expire > now then
            redis.call('ZADD', p .. 'batch_ends', ms_up(expire), name)
        else
            local tenant, id = string.match(name, '^([^:]*):(.*)$')
            redis.call('UNLINK', p .. 'batch:' .. name, p .. 'batch_done:' .. name, p .. 'batch_live:' .. name)
            redis.call('ZREM', p .. 'batch_ends', name)
            redis.call('ZREM', p .. 'batch_cancels', name)
            redis.call('ZREM', p .. 'batches:' .. tenant, id)
        end
    end
end

-- Does it hold anything of a tenant's?
local function is_used(p)
    for _, key in ipairs { 'live', 'ended', 'images', 'batch_ends', 'quarantine' } do
        if redis.call('ZCARD', p .. key) > 0 then return true end
    end
    return false
end

local function expire_late(b, id, now)
    local j = own_job(b, id)
    if not j then
        redis.call('ZREM', b.p .. 'live', id)
    elseif not TERMINAL[j.state] then
        finish_job(b, id, 'EXPIRED', now, j)
    elseif redis.call('ZREM', b.p .. 'live', id) == 1 then
        mend_end(b, id, now)
    end
end

-- max_attempts limit lease_ms image_ttl_ms  ->  {due retries, ended leases, expired jobs, purged images}
local function sweep(keys, a)
    local p, b, now, limit = keys[1], batch(keys[1]), now_us(), tonumber(a[2])
    local lease_ms = tonumber(a[3] or '10000')
    set_back(p, 'delayed', now, DELAY_MAX_MS, limit)
    local due = redis.call('ZRANGEBYSCORE', p .. 'delayed', '-inf', ms(now), 'LIMIT', 0, limit)
    for _, id in ipairs(due) do
        redis.call('ZREM', p .. 'delayed', id)
        local j = job_of(p, id)
        if j and j.state == 'QUEUED' then enter_line(b, j.model, j.tenant, j.place, id) end
    end
    local stale = sweep_leases(b, now, limit, tonumber(a[1]), lease_ms)
    write(b)
    b = batch(p)
    local late = redis.call('ZRANGEBYSCORE', p .. 'live', '-inf', ms(now), 'LIMIT', 0, limit)
    local n_late = 0
    for _, member in ipairs(late) do
        if n_late >= limit then break end
        n_late = n_late + packs.each(member, function(id) expire_late(b, id, now) end)
        if packs.is_token(member) then packs.check_over(b, member) end
    end
    write(b)
    b = batch(p)
    if redis.call('EXISTS', p .. 'live') == 0 then redis.call('HDEL', p .. 'count', 'more') end
    mend_some(b, 50, now)
    mend_lost(b, math.max(10, math.floor(limit / 10)), now)
    write(b)
    sweep_ended(p, now, limit)
    sweep_cancels(p, now)
    sweep_batches(p, now, limit)
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', p .. 'quarantine', '-inf', ms(now), 'LIMIT', 0, limit)) do
        drop_case(p, id)
    end
    tidy(p, now, limit, lease_ms)
    redis.call('PEXPIRE', p .. 'layout', is_used(p) and LAYOUT_KEPT_MS.used or LAYOUT_KEPT_MS.empty)
    return { #due, stale, n_late, purge_images(p, now, limit, tonumber(a[4] or '3600000')) }
end
