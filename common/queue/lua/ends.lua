---- attempts and ends ----

local function cut(s, n)
    if #s <= n then return s end
    return (string.gsub(string.sub(s, 1, n), '[\192-\255][\128-\191]*$', ''))
end

-- One attempt that came to nothing, for the message of the job's end; and the evidence, for whoever looks at
-- the job in quarantine.
local function history(p, id, attempt, reason, message, worker, now)
    local job = p .. 'job:' .. id
    local old = redis.call('HMGET', job, 'history', 'evidence')
    local w = redis.call('HMGET', p .. 'worker:' .. worker, 'device', 'log')
    local all = (old[1] and old[1] .. '; ' or '') .. attempt .. ': ' .. reason .. ', ' .. cut(message, 120)
    local evidence = 'attempt ' .. attempt .. ' at ' .. ms(now) .. ' on ' .. worker .. ', device ' ..
        (w[1] or 'unknown') .. ': ' .. reason .. ', ' .. message .. '\n' .. (w[2] or '')
    redis.call('HSET', job, 'history', all, 'evidence', (old[2] or '') .. cut(evidence, EVIDENCE_BYTES) .. '\n')
    return all
end

-- Does the lease `fence` of the worker count?
local function holds(j, worker, fence)
    return j.state == 'RUNNING' and j.worker == worker and j.fence == tonumber(fence)
end

-- Ends a job. `...`: further fields of its hash.
local function finish_job(b, id, state, now, j, ...)
    local p, was = b.p, j.state
    local m = b.memo[j.ttl] -- texts that many jobs have in common: a format is as dear as a command
    if not m then
        m = { ms_up(now + j.ttl * 1000), ms(now) }
        b.memo[j.ttl] = m
    end
    j.state, j.finished, j.expire, j.cancel = state, now, now + j.ttl * 1000, false
    save(p, id, j, ...)
    redis.call('PEXPIRE', p .. 'job:' .. id, j.ttl)
    later_ready(b, j.model, -1)
    later_remove(b, 'ZREM', 'live', id)
    if was == 'RUNNING' then
        later_remove(b, 'ZREM', 'leases', id)
    elseif redis.call('ZREM', p .. 'delayed', id) == 0 then
        leave_line(p, j.model, j.tenant, id)
    end
    leave_image(b, j.image)
    later_incr(b, 'tenant_jobs', j.tenant, -1)
    later_zadd(b, 'ended', m[1], j.tenant .. ':' .. id .. ':' .. j.request_id)
    later_incr(b, 'count', state, 1)
    if j.batch then
        later_end(b, j.tenant .. ':' .. j.batch, state, state .. ' ' .. m[2] .. ' ' .. id .. ' ' .. j.item, number_of(j.item))
    end
    event(b, id, state, j.tenant, j.batch)
end

-- A job that failed at its last attempt, kept for somebody to look at: its image stays, too.
local function quarantine(p, id, now, j)
    local v = redis.call('HMGET', p .. 'job:' .. id, 'spec', 'evidence', 'reason', 'message')
    redis.call('HSET', p .. 'case:' .. id, 'tenant', j.tenant, 'model', j.model, 'image', j.image, 'spec', v[1] or '',
        'ttl', text(j.ttl), 'attempts', text(j.attempts), 'evidence', v[2] or '', 'reason', v[3] or '',
        'message', v[4] or '', 'request_id', j.request_id, 'at', text(now))
    redis.call('HINCRBY', p .. 'image_use', j.image, 1)
    redis.call('ZADD', p .. 'quarantine', ms(now + CASE_KEPT_US), id)
end

-- Back into line, at its old place, after an attempt that came to nothing or was handed back.
local function requeue(b, id, now, delay_ms, j, ...)
    local p = b.p
    later_remove(b, 'ZREM', 'leases', id)
    j.state, j.worker = 'QUEUED', ''
    save(p, id, j, ...)
    if delay_ms > 0 then
        redis.call('ZADD', p .. 'delayed', ms_up(now + math.min(delay_ms, DELAY_MAX_MS) * 1000), id)
    else
        enter_line(b, j.model, j.tenant, j.place, id)
    end
    event(b, id, 'QUEUED', j.tenant, j.batch)
end
