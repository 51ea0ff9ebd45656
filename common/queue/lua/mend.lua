---- mending ----
-- What a function writes is one transaction in Redis' log. But Redis 7.0 leaves the torn half of one in the log if its
-- disk fills in the middle of a write, and runs it at the start after next. So a waiting job may be in no line, an image
-- may count a user that is not there, and a record may lie where nothing leads to it.

-- A job that has ended, but not all of its end was written.
local function mend_end(b, id, now)
    local p, j = b.p, job_of(b.p, id)
    if not j then
        redis.call('UNLINK', p .. 'job:' .. id)
        return
    end
    if redis.call('PTTL', p .. 'job:' .. id) < 0 then redis.call('PEXPIRE', p .. 'job:' .. id, j.ttl) end
    redis.call('ZADD', p .. 'ended', 'NX', ms_up(now + j.ttl * 1000), j.tenant .. ':' .. id .. ':' .. j.request_id)
    if j.batch and TERMINAL[j.state] then mend_batch_end(p, id, j) end
end

local function is_waiting(p, id, j)
    return redis.call('ZSCORE', p .. 'line:' .. j.model .. ':' .. j.tenant, id) or redis.call('ZSCORE', p .. 'delayed', id)
end

-- Whether all that a torn log may have put into line has been looked at since this process of Redis began.
local seen_since_start = { live = false, keys = false }
local function may_be_unpromised() return not (seen_since_start.live and seen_since_start.keys) end

-- The command that makes numbers count also notes in the batch's record, under the first number of the call, what that
-- call is known by. A call whose half was torn off made no number count, so the next one has the same first number and
-- takes its place there, whatever of the half has been written, and however the items are grouped then. What does not
-- have the name that stands there was never promised: its client sends the items again, or has: the torn half is run at
-- the start after next, and then other jobs have the numbers, or have ended. A batch that has gone has nothing that
-- could be told twice.
local function is_promised(p, call, tenant, batch)
    local first, nonce = string.match(call, '^(%d+) (.*)$')
    local v = redis.call('HMGET', p .. 'batch:' .. tenant .. ':' .. batch, 'next', 'c' .. (first or ''))
    return not v[1] or v[2] == nonce
end

-- Is this the job of its item? One that came out of a pack is unless the pack still has it: then that was torn, and the
-- pack knows what has become of it. -> and whether it is counted as a job if it waits in line
local function is_job_promised(b, id, tenant, batch)
    local p, call = b.p, redis.call('HGET', b.p .. 'job:' .. id, 'call')
    if call then return is_promised(p, call, tenant, batch), true end
    local prefix, i = packs.prefix_of(id), packs.index_of(id)
    local k = b.packs[prefix] or packs.read(p, prefix) -- as this call may have changed it
    return not k or i >= k.n or k.map[i + 1] == OUT, false
end

-- is_counted: it was in a line, which comes before it is counted or shortly after; a count too low is right again when
-- it gets to 0, one too high never would be. A use of its image too many is found by check_images.
local function drop_unpromised(b, id, j, is_counted)
    local p, live, number = b.p, b.p .. 'batch_live:' .. j.tenant .. ':' .. j.batch, number_of(j.item)
    redis.call('UNLINK', p .. 'job:' .. id)
    redis.call('ZREM', p .. 'live', id)
    redis.call('ZREM', p .. 'index:' .. j.tenant, id)
    if redis.call('HGET', live, number) == id then redis.call('HDEL', live, number) end
    if redis.call('ZREM', p .. 'delayed', id) == 0 then leave_line(p, j.model, j.tenant, id) end
    if is_counted then
        later_ready(b, j.model, -1)
        later_incr(b, 'tenant_jobs', j.tenant, -1)
    end
end

local function mend_live(b, id, j)
    if redis.call('ZADD', b.p .. 'live', 'NX', ms_up(j.deadline), id) == 1 then
        later_ready(b, j.model, 1)
        later_incr(b, 'tenant_jobs', j.tenant, 1)
    end
end

-- drop_unpromised for a pack.
local function drop_pack(b, k, is_counted)
    local p, live, n = b.p, b.p .. 'batch_live:' .. k.tenant .. ':' .. k.batch, packs.left(k)
    redis.call('UNLINK', k.key)
    if redis.call('ZREM', p .. 'live', k.token) == 1 then later_incr(b, 'count', 'more', 1 - n) end
    redis.call('ZREM', p .. 'index:' .. k.tenant, k.token)
    local field = 'p' .. text(k.number)
    if redis.call('HGET', live, field) == k.token then redis.call('HDEL', live, field) end
    leave_line(p, k.model, k.tenant, packs.waiting(k))
    if is_counted then
        later_ready(b, k.model, -n)
        later_incr(b, 'tenant_jobs', k.tenant, -n)
    end
end

-- A pack, to be changed. false: there is none. was_in_line: it was, and its token has been taken off.
function packs.of(b, prefix, was_in_line)
    local k = b.packs[prefix]
    if k == nil then
        k = packs.read(b.p, prefix) or false
        if k and may_be_unpromised() and k.next == 0 and not is_promised(b.p, k.call, k.tenant, k.batch) then
            drop_pack(b, k, was_in_line or redis.call('ZSCORE', b.p .. 'line:' .. k.model .. ':' .. k.tenant, k.token))
            k = false
        end
        b.packs[prefix] = k
    end
    return k
end

-- A job that waits gets every place that it must have; whether it is one of the live ones is known to
-- be so, or looked at. False: it is no such job, or its record is not whole.
local function mend(b, id, is_live)
    local p = b.p
    local j = job_of(p, id)
    if not j then return false end
    if TERMINAL[j.state] then
        if redis.call('ZREM', p .. 'live', id) == 1 then mend_end(b, id, now_us()) end
        return false
    end
    if j.state ~= 'QUEUED' then return false end
    local waits = is_waiting(p, id, j)
    if j.batch then
        local is_so, is_counted = is_job_promised(b, id, j.tenant, j.batch)
        if not is_so then
            drop_unpromised(b, id, j, is_counted and waits)
            return true
        end
    end
    if not is_live then mend_live(b, id, j) end
    if not waits then
        if not j.batch or not packs.of(b, packs.prefix_of(id)) then redis.call('ZADD', p .. 'index:' .. j.tenant, 0, id) end
        enter_line(b, j.model, j.tenant, j.place, id)
    end
    return true
end

-- Marked images that no live job used in the whole of a pass: what is left are cases in quarantine. A submit takes the
-- mark off (a scan need not show what comes while it runs), so does a job that is seen.
local function check_images(p, pass, now)
    local marked = redis.call('HGETALL', p .. 'image_check')
    local uses, n = {}, 0
    for i = 1, #marked, 2 do
        if tonumber(marked[i + 1]) <= pass then
            uses[marked[i]] = 0
            n = n + 1
        end
    end
    if n == 0 then return end
    for _, id in ipairs(redis.call('ZRANGE', p .. 'quarantine', 0, -1)) do
        local image = redis.call('HGET', p .. 'case:' .. id, 'image')
        if image and uses[image] then uses[image] = uses[image] + 1 end
    end
    for image, use in pairs(uses) do
        if use > 0 then
            redis.call('HSET', p .. 'image_use', image, text(use))
        else
            redis.call('HDEL', p .. 'image_use', image)
            redis.call('ZADD', p .. 'images', 'XX', ms(now), image)
        end
        redis.call('HDEL', p .. 'image_check', image)
    end
end

-- Items that have ended in the pack, but not all of their ends may have been written.
function packs.mend_ends(b, k)
    if redis.call('HEXISTS', k.key, 'open') == 0 then return end
    for i = 0, k.n - 1 do
        if k.map[i + 1] == DONE then mend_batch_end(b.p, k.prefix .. HEX[i], (packs.job(k, i))) end
    end
    redis.call('HDEL', k.key, 'open')
end

-- As mend: the items that wait have their token in line, those that run a lease, and one of which all have ended gets
-- its end.
function packs.mend(b, k, is_live)
    local p, n, waits = b.p, packs.left(k), packs.waiting(k)
    local in_line = redis.call('ZSCORE', p .. 'line:' .. k.model .. ':' .. k.tenant, waits)
    packs.mend_ends(b, k)
    if n == 0 then
        k.is_changed, k.is_less = true, true
        return
    end
    if not is_live and redis.call('ZADD', p .. 'live', 'NX', ms_up(k.deadline), k.token) == 1 then
        later_ready(b, k.model, n)
        later_incr(b, 'tenant_jobs', k.tenant, n)
        later_incr(b, 'count', 'more', n - 1)
        redis.call('ZADD', p .. 'index:' .. k.tenant, 0, k.token)
    end
    if k.next < k.n and not in_line then enter_line(b, k.model, k.tenant, k.place + k.next, waits) end
    local seen = {}
    for i = 0, k.n - 1 do
        local run = k.map[i + 1] == RUNS and packs.run_of(k, i)
        if run and not seen[run] then redis.call('ZADD', p .. 'leases', 'NX', ms(now_us()), run.token) end
        if run then seen[run] = true end
    end
end

-- A few of all keys at each sweep, in turn: records without an end that are not among the live jobs.
local is_scan_ours = false -- see mend_some
local function mend_lost(b, limit, now)
    local p, key = b.p, b.p .. 'count'
    local from = is_scan_ours and redis.call('HGET', key, 'scanned') or '0'
    local got = redis.call('SCAN', from, 'MATCH', p .. '[jp]*:*', 'COUNT', limit)
    is_scan_ours = true
    for _, record in ipairs(got[2]) do
        local kind, id = string.match(record, '(%l+):(%x+)$')
        if kind == 'pack' and redis.call('PTTL', record) == -1 then
            local k = packs.of(b, id)
            if not k then redis.call('UNLINK', record) end
            if k and not redis.call('ZSCORE', p .. 'live', k.token) then packs.mend(b, k, false) end
        elseif kind == 'job' and redis.call('PTTL', record) == -1 and not redis.call('ZSCORE', p .. 'live', id) then
            local j = job_of(p, id)
            if j and j.state == 'RUNNING' then
                redis.call('ZADD', p .. 'leases', 'NX', ms(now), id)
                mend_live(b, id, j)
            elseif not mend(b, id) then
                mend_end(b, id, now)
            end
        end
    end
    if got[1] == '0' then seen_since_start.keys = true end
    redis.call('HSET', key, 'scanned', got[1])
end

-- A few of the live jobs at each sweep, all of them in turn: a pass, by its number. A cursor means nothing in another
-- process of Redis, which hashes otherwise: a pass begins anew there, or it might not see all of them.
local is_pass_ours = false
local function mend_some(b, limit, now)
    local p, key = b.p, b.p .. 'count'
    local v = redis.call('HMGET', key, 'mended', 'pass')
    local cursor, pass = v[1] or '0', tonumber(v[2] or '0')
    local has_marks = redis.call('EXISTS', p .. 'image_check') == 1
    if not is_pass_ours then cursor = '0' end
    is_pass_ours = true
    if cursor == '0' then pass = pass + 1 end
    local got, seen = redis.call('ZSCAN', p .. 'live', cursor, 'COUNT', limit), {}
    for i = 1, #got[2], 2 do
        local member = got[2][i]
        if packs.is_token(member) then
            local k = packs.of(b, packs.prefix_of(member))
            if k then packs.mend(b, k, true) else packs.check_over(b, member) end
        else
            mend(b, member, true)
        end
        if has_marks then
            packs.each(member, function(id)
                local j = look_job(p, id, seen)
                if j then redis.call('HDEL', p .. 'image_check', j.image) end
            end)
        end
    end
    if got[1] == '0' then seen_since_start.live = true end
    redis.call('HSET', key, 'mended', got[1], 'pass', text(pass))
    if has_marks and got[1] == '0' then check_images(p, pass, now) end
end
