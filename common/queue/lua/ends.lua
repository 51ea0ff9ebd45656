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

-- Ends a job; v: HMGET of END_FIELDS. `...`: further fields.
local END_FIELDS = { 'model', 'image', 'ttl', 'tenant', 'request_id', 'state', 'batch', 'item' }
local function finish_with(b, id, state, now, v, ...)
    local p = b.p
    local m = b.memo[v[3]] -- numbers that many jobs have in common: a format is as dear as a command
    if not m then
        local expire = now + tonumber(v[3]) * 1000
        m = { text(now), text(expire), ms_up(expire), ms(now) }
        b.memo[v[3]] = m
    end
    redis.call('HSET', p .. 'job:' .. id, 'state', state, 'finished', m[1], 'expire', m[2], 'cancel', '', ...)
    redis.call('PEXPIRE', p .. 'job:' .. id, v[3])
    later_ready(b, v[1], -1)
    later_remove(b, 'ZREM', 'live', id)
    if v[6] == 'RUNNING' then
        later_remove(b, 'ZREM', 'leases', id)
    elseif redis.call('ZREM', p .. 'delayed', id) == 0 then
        leave_line(p, v[1], v[4], id)
    end
    redis.call('HINCRBY', p .. 'image_use', v[2], -1)
    later_incr(b, 'tenant_jobs', v[4], -1)
    later_zadd(b, 'ended', m[3], v[4] .. ':' .. id .. ':' .. v[5])
    later_incr(b, 'count', state, 1)
    if v[7] then later_end(b, v[4] .. ':' .. v[7], state, state .. ' ' .. m[4] .. ' ' .. id .. ' ' .. v[8], id) end
    event(b, id, state, v[4], v[7])
end

local function finish(b, id, state, now, ...)
    finish_with(b, id, state, now, redis.call('HMGET', b.p .. 'job:' .. id, unpack(END_FIELDS)), ...)
end

-- A job that failed at its last attempt, kept for somebody to look at: its image stays, too.
local function quarantine(p, id, now)
    local v = redis.call('HMGET', p .. 'job:' .. id, 'tenant', 'model', 'image', 'spec', 'ttl', 'attempts', 'evidence',
        'reason', 'message', 'request_id')
    redis.call('HSET', p .. 'case:' .. id, 'tenant', v[1], 'model', v[2], 'image', v[3], 'spec', v[4], 'ttl', v[5],
        'attempts', v[6], 'evidence', v[7] or '', 'reason', v[8] or '', 'message', v[9] or '', 'request_id', v[10],
        'at', text(now))
    redis.call('HINCRBY', p .. 'image_use', v[3], 1)
    redis.call('ZADD', p .. 'quarantine', ms(now + CASE_KEPT_US), id)
end

-- Back into line, at its old place, after an attempt that came to nothing or was handed back.
local function requeue(b, id, now, delay_ms, ...)
    local p, job = b.p, b.p .. 'job:' .. id
    local v = redis.call('HMGET', job, 'model', 'tenant', 'place', 'batch')
    later_remove(b, 'ZREM', 'leases', id)
    redis.call('HSET', job, 'state', 'QUEUED', 'worker', '', ...)
    if delay_ms > 0 then
        redis.call('ZADD', p .. 'delayed', ms_up(now + math.min(delay_ms, DELAY_MAX_MS) * 1000), id)
    else
        enter_line(b, v[1], v[2], v[3], id)
    end
    event(b, id, 'QUEUED', v[2], v[4])
end
